"""A report as one HTML page that needs nothing else: data, style, script and plots are in it."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from contextlib import suppress
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lorien import __version__
from lorien.files import cache_folder, keep
from lorien.records import Json
from lorien.report import charts
from lorien.report.rows import rows_of
from lorien.report.sources import Report
from lorien.report.tally import failures_by_kind

NONE = "\N{EN DASH}"
"""Where there is no value."""


def page_of(report: Report) -> str:
    """The page. Whatever names and texts hold, none of it becomes markup or script."""
    rows = rows_of(report)
    workloads = list(report.tally.workloads.values())
    plots = {
        "latencies": charts.latencies(list(report.tally.targets.values())),
        "failures": charts.failures(workloads),
        "converging": charts.converging(workloads),
        "predicted": charts.predicted(report.judgements),
        "top_k": charts.top_k(report.judgements),
    }
    drawn = {name: spec for name, spec in plots.items() if spec is not None}
    fastest: dict[str, float] = {}
    for target, rate in zip(rows.columns.get("target", ()), rows.columns.get("rate", ()), strict=True):
        fastest[rows.targets[target]] = max(fastest.get(rows.targets[target], 0.0), rate or 0.0)
    peaks = {name: {"gflops": peak.flop_per_s / 1e9, "how": peak.how} for name, peak in report.peaks.items()}
    data: dict[str, Json] = {
        "columns": rows.columns,
        "targets": rows.targets,
        "networks": rows.networks,
        "schedules": rows.schedules,
        "peaks": peaks,
        "fastest": fastest,
        "charts": drawn | ({"steps": charts.steps()} if workloads else {}),
    }
    return render(
        "report.html.j2",
        scripts=["page.js", "table.js"],
        data=data,
        report=report,
        rows=rows,
        workloads=workloads,
        failures=failures_by_kind(workloads),
        networks=sorted({name for own in workloads for name in own.networks}),
        charts=drawn,
        peaks=peaks,
    )


def render(template: str, *, scripts: list[str], **values: Any) -> str:
    """A page of a template, with style sheet, plotting library and scripts in it; no script but these may run there."""
    code = [_vega(), *(_static(name) for name in scripts)]
    allowed = " ".join(f"'sha256-{_hash(text)}'" for text in code)
    return (
        _environment()
        .get_template(template)
        .render(
            version=__version__,
            vega=vl_convert.get_vega_version(),
            style=Markup(_static("page.css")),  # noqa: S704 (a file of this package)
            code=[Markup(text) for text in code],  # noqa: S704 (files of this package, and the library)
            allowed=allowed,
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lorien.report", "static"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"latency": latency, "when": when, "percent": percent, "span": span}
    return environment


@cache
def _static(name: str) -> str:
    return (resources.files("lorien.report") / "static" / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """The plotting library in one script. Bundling takes seconds: it stays in ``~/.cache/lorien``, by its checksum."""
    begins = f"vega-{version('vl-convert-python')}-"

    def named(content: bytes) -> Path:
        return cache_folder() / f"{begins}{hashlib.sha256(content).hexdigest()}.js"

    for path in cache_folder().glob(f"{begins}*.js"):
        with suppress(OSError):
            if path == named(content := path.read_bytes()):
                return content.decode()
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # A scope of its own: it declares names of one letter.
    script = "(() => {" + bundle.replace("</script", r"<\/script") + "})();"
    keep(named(script.encode()), script.encode())
    return script


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def latency(seconds: float | None) -> str:
    """A latency for people; a dash where there is none."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def when(unix_s: float) -> str:
    """A time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def span(seconds: float) -> str:
    """How long something took."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"


def percent(fraction: float | None) -> str:
    """A fraction in percent; a dash where there is none."""
    return NONE if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f} %"
