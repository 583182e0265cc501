"""The plots of a page, as Vega-Lite: what is drawn is here, how it looks in the page's style sheet.

Colours are variables of the page (``var(--ink)``), so that light and dark need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lorien.records import Json
from lorien.report.judge import Judgement
from lorien.report.tally import (
    BINS_PER_DECADE,
    FASTEST_LOG10,
    TargetTally,
    WorkloadTally,
    convergence,
    failures_by_kind,
)

Spec = dict[str, Any]

SERIES = [f"var(--series{number})" for number in range(1, 7)]
MAX_SERIES = len(SERIES)
MAX_TRIALS = 1 << 20
HEIGHT = 220
_SI = {"format": "~s", "tickCount": 5}
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "gridColor": "var(--line)",
        "domainColor": "var(--line)", "tickColor": "var(--line)", "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelOverlap": True,
    },
    "axisX": {"grid": False},
    "legend": {
        "labelColor": "var(--ink)", "labelFontSize": 12, "title": None, "orient": "top", "labelLimit": 260,
        "columns": 1,
    },
    "mark": {"color": "var(--series1)"},
    "bar": {"cornerRadiusEnd": 2},
    "range": {"category": SERIES},
}  # fmt: skip


def latencies(targets: Sequence[TargetTally]) -> Spec | None:
    """How many records ran how fast, by target: thirds of a decade."""
    wide = BINS_PER_DECADE // 3
    rows: list[Json] = []
    for target in sorted(targets, key=lambda target: -target.records)[:MAX_SERIES]:
        for first in range(0, len(target.latencies), wide):
            count = int(target.latencies[first : first + wide].sum())
            if count:
                low, high = (10 ** (FASTEST_LOG10 + place / BINS_PER_DECADE) for place in (first, first + wide))
                rows.append({"low": low, "high": high, "records": count, "target": _label(target)})
    if not rows:
        return None
    several = len({row["target"] for row in rows}) > 1
    return _spec(
        "Records by latency",
        rows,
        {"type": "bar", "tooltip": True, "binSpacing": 1, "opacity": 0.6 if several else 1},
        x=_quantitative("low", "latency in seconds", scale={"type": "log"}, axis=_SI),
        x2={"field": "high"},
        y=_quantitative("records", "records", stack=None, axis={"tickMinStep": 1, "tickCount": 5}),
        y2={"datum": 0},
        **({"color": {"field": "target", "type": "nominal"}} if several else {}),
    )


def failures(workloads: Sequence[WorkloadTally]) -> Spec | None:
    """Failed records by kind."""
    rows = [{"kind": kind.replace("_", " "), "records": n} for kind, n in failures_by_kind(workloads).most_common()]
    if not rows:
        return None
    return _spec(
        "Failed records by kind",
        rows,
        {"type": "bar", "tooltip": True, "color": "var(--bad)", "height": {"band": 0.6}},
        y={"field": "kind", "type": "nominal", "sort": "-x", "title": None},
        x=_quantitative("records", "records", axis={"tickMinStep": 1, "tickCount": 5}),
    ) | {"height": max(60, 34 * len(rows))}


def converging(workloads: Sequence[WorkloadTally]) -> Spec | None:
    """Best found so far over the best found in the end: the median workload, and the middle eight tenths."""
    most = max((own.trials for own in workloads if own.steps), default=0)
    if most < 2:
        return None
    at = sorted({round(2 ** (power / 4)) for power in range(4 * math.ceil(math.log2(min(most, MAX_TRIALS))) + 1)})
    at = [trials for trials in at if trials < most] + [most]
    reached = convergence(workloads, at)
    low, middle, high = np.quantile(reached, [0.1, 0.5, 0.9], axis=0)
    rows = [
        {"trials": trials, "low": round(a, 4), "median": round(b, 4), "high": round(c, 4)}
        for trials, a, b, c in zip(at, low.tolist(), middle.tolist(), high.tolist(), strict=True)
    ]
    x = _quantitative("trials", "trials of a workload", scale={"type": "log", "base": 2}, axis={"format": "~s"})
    y = _quantitative("median", "of the best in the end", scale={"domain": [0, 1]}, axis={"format": "%"})
    tooltip = [{"field": "trials"}, *({"field": name, "format": ".1%"} for name in ("low", "median", "high"))]
    return _base("Best found so far against trials", rows) | {
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.22},
                "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}, "tooltip": tooltip},
            },
            {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": {"y": y}},
            {"mark": {"type": "point", "size": 60, "opacity": 0}, "encoding": {"y": y, "tooltip": tooltip}},
        ],
    }


def predicted(judgements: Sequence[Judgement]) -> Spec | None:
    """Expected against measured fraction of the best, of workloads the trees have not seen."""
    rows = [
        {"predicted": round(expected, 3), "measured": round(measured, 3), "target": _label(one)}
        for one in judgements[:MAX_SERIES]
        for expected, measured in zip(one.predicted.tolist(), one.measured.tolist(), strict=True)
    ]
    if not rows:
        return None
    share = {"scale": {"domain": [0, 1]}, "axis": {"format": "%"}}
    several = len(judgements) > 1
    return _base("Predicted against measured", rows) | {
        "height": 300,
        "layer": [
            {
                "data": {"values": [{"predicted": 0, "measured": 0}, {"predicted": 1, "measured": 1}]},
                "mark": {"type": "line", "strokeDash": [4, 4], "color": "var(--soft)", "strokeWidth": 1},
                "encoding": {"x": _quantitative("predicted", ""), "y": _quantitative("measured", "")},
            },
            {
                "mark": {"type": "circle", "size": 18, "opacity": 0.5, "tooltip": True},
                "encoding": {
                    "x": _quantitative("predicted", "predicted fraction of the best", **share),
                    "y": _quantitative("measured", "measured", **share),
                    **({"color": {"field": "target", "type": "nominal"}} if several else {}),
                },
            },
        ],
    }


def top_k(judgements: Sequence[Judgement]) -> Spec | None:
    """Mean top-k score against k, the model's beside a random order's."""
    rows = []
    for one in judgements[:MAX_SERIES]:
        label = _label(one)
        curves = (("model", one.top.mean(axis=0)), ("random order", one.random.mean(axis=0)))
        for ranking, curve in curves:
            rows += [
                {"k": k, "score": round(score, 4), "ranking": ranking, "target": label}
                for k, score in enumerate(curve.tolist(), start=1)
            ]
    if not rows:
        return None
    colour = "target" if len(judgements) > 1 else "ranking"
    return _spec(
        "Top-k score against k",
        rows,
        {"type": "line", "strokeWidth": 2.5, "tooltip": True, "point": {"size": 50, "opacity": 0}},
        x=_quantitative("k", "candidates tried (k)", scale={"type": "log", "base": 2, "nice": False}),
        y=_quantitative("score", "of the best", scale={"domain": [0, 1]}, axis={"format": "%"}),
        color={"field": colour, "type": "nominal"},
        strokeDash={"field": "ranking", "type": "nominal"},
    )


def steps() -> Spec:
    """Best latency of one workload against trials; the page gives it its rows."""
    return _spec(
        "Best latency against trials",
        [],
        {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5, "tooltip": True, "point": {"size": 45}},
        x=_quantitative("trial", "trials", axis={"tickCount": 8, "format": "d"}),
        y=_quantitative(
            "latency", "best latency in seconds", scale={"type": "log"}, axis={"format": "~s", "tickCount": 5}
        ),
    ) | {"height": 180}


def trials_over_time() -> Spec:
    """Trials of a run while it goes on; the page gives it its rows."""
    return _spec(
        "Trials since this page was served",
        [],
        {"type": "line", "strokeWidth": 2.5, "tooltip": True},
        x={"field": "time", "type": "temporal", "title": None, "axis": {"format": "%H:%M:%S", "tickCount": 5}},
        y=_quantitative("trials", "trials", scale={"zero": False}),
    ) | {"height": 180}


def _label(what: TargetTally | Judgement) -> str:
    return f"{what.target} ({what.dialect})"


def _quantitative(name: str, title: str, **more: Json) -> Spec:
    return {"field": name, "type": "quantitative", "title": title, **more}


def _spec(title: str, rows: Sequence[Json], mark: Spec, **encoding: Spec) -> Spec:
    return _base(title, rows) | {"mark": mark, "encoding": encoding}


def _base(title: str, rows: Sequence[Json]) -> Spec:
    return {
        "description": title,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "rows", "values": list(rows)},
        "config": CONFIG,
    }
