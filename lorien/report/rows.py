"""What the table of a page shows of each workload."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from lorien.records import Json
from lorien.report.sources import Report, fastest_of
from lorien.report.tally import Key, WorkloadTally, thinned
from lorien.report.trace import lines_of

MAX_ROWS = 20_000
"""Workloads in a page; of more, those with most latency in their networks are shown."""
PAGE_CHARS = 3_400_000
"""Of the table and the traces together: 10,000 workloads and what draws the plots then make a page below 5 MB."""
MIN_TRACE_CHARS = 300_000
"""Of the traces, however long the table: those of the workloads that take most time come first."""


@dataclass(frozen=True)
class Rows:
    """The table of a page.

    Parameters
    ----------
    columns : dict of str to list
        Equally long, see ``rows_of``; ``target`` and ``networks`` are numbers into the lists of that name.
    targets, networks : list of str
        Names.
    schedules : dict of str to dict
        By row: text, latency, build and log of the fastest schedule known.
    of : int
        Workloads there are, shown or not.
    """

    columns: dict[str, list[Json]]
    targets: list[str]
    networks: list[str]
    schedules: dict[str, Json]
    of: int


def rows_of(report: Report) -> Rows:
    """The table: those workloads first that take most time in their networks.

    ``best`` is in seconds, ``rate`` in GFLOPS, ``share`` the rate over the target's peak; ``steps`` are trial and best
    latency in turns; ``top1`` and ``top5`` are scores by trees that have not seen the workload. Each is null where it
    is not known.
    """
    scores = {
        (one.dialect, one.target, key): (top[0], top[4])
        for one in report.judgements
        for key, top in zip(one.keys, one.top.tolist(), strict=True)
    }
    keys = sorted(report.tally.workloads, key=lambda key: (-_cost_s(report, key), key))
    targets: dict[str, int] = {}
    networks: dict[str, int] = {}
    table: list[dict[str, Json]] = []
    for key in keys[:MAX_ROWS]:
        own = report.tally.workloads[key]
        best_s = fastest_of(report, key)
        rate = own.flop / best_s if own.flop and math.isfinite(best_s) else None
        peak = report.peaks.get(own.target)
        top1, top5 = scores.get(key, (None, None))
        table.append(
            {
                "name": own.name,
                "key": own.key,
                "dialect": own.dialect,
                "target": targets.setdefault(own.target, len(targets)),
                "networks": [networks.setdefault(name, len(networks)) for name in own.networks],
                "calls": _digits(own.weight),
                "trials": own.trials,
                "failed": own.failed,
                "kinds": dict(own.failures.most_common()) or None,
                "best": _digits(best_s),
                "rate": _digits(rate and rate / 1e9),
                "share": _digits(rate / peak.flop_per_s) if rate and peak else None,
                "top1": _digits(top1),
                "top5": _digits(top5),
                "steps": _steps(own),
            }
        )
    columns = {name: [row[name] for row in table] for name in (table[0] if table else ())}
    schedules: dict[str, Json] = {}
    room = max(MIN_TRACE_CHARS, PAGE_CHARS - len(orjson.dumps(columns)))
    for number, key in enumerate(keys[: len(table)]):
        schedule = report.schedules.get(key)
        if schedule is not None and room > 0:
            text = lines_of(key[0], schedule.schedule)
            room -= len(orjson.dumps(text))  # as it stands in the page, its lines and quotes escaped
            about = {"best": _digits(schedule.latency_s), "build": schedule.build, "log": schedule.log}
            schedules[str(number)] = {"text": text, **about}
    return Rows(columns, list(targets), list(networks), schedules, len(keys))


def _cost_s(report: Report, key: Key) -> float:
    """Seconds a workload takes in its networks at best; 0 when nothing ran."""
    best_s = fastest_of(report, key)
    return report.tally.workloads[key].weight * best_s if math.isfinite(best_s) else 0.0


def _steps(own: WorkloadTally) -> list[Json]:
    return [number for trial, latency_s in thinned(own.steps) for number in (trial, _digits(latency_s))]


def _digits(value: float | None) -> float | None:
    """Four digits: what is shown, at half the size; None for what is not finite."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
