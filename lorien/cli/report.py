"""``lorien report``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorien.cli.console import JsonFlag, command, emit, out, warn
from lorien.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from lorien.report.sources import Report


@command
def report(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FEATURES|MODELS|DB|LOGS|RUN...",
            help="Feature tables, models, a database, a log store, a tuning session; with --db, a run of jobs.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")],
    db: Annotated[str | None, typer.Option(help="Database of the runs named.")] = None,
    logs: Annotated[str | None, typer.Option(help="Log store of the runs named: shows their trials.")] = None,
    peak: Annotated[
        list[str] | None,
        typer.Option(help="What a target reaches at most: GFLOPS, TARGET=GFLOPS, or measure, for this machine."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page about data sets, models, schedules and tuning; it needs no network to be read."""
    from lorien.dialects import resolve_target
    from lorien.files import atomic_file

    try:
        from lorien.report.page import page_of
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "report") from None
    from lorien.report.peak import MEASURE, read_peaks
    from lorien.report.sources import Report, gather, low_peaks, source_of, targets_of

    sources = [source_of(text, db) for text in inputs]
    about = Report(title or "Lorien report: " + ", ".join(Path(source.url).name for source in sources), time.time())
    about.sources += sources
    gather(about, db=db, logs=logs)
    if not about.tally.workloads and not about.models and not about.runs:
        raise BadInput(
            f"{', '.join(inputs)}: nothing in there to report on. Fix: give inputs that hold records or models"
        )
    if peak:
        native = resolve_target("native").key if MEASURE in peak else ""
        about.peaks = read_peaks(peak, native, targets_of(about))
        about.problems += low_peaks(about)
    page = page_of(about).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as path:
        path.write_bytes(page)
    if as_json:
        emit(summary(about) | {"report": str(output), "bytes": len(page)})
        return
    warn(about.problems, "What is missing in it:")
    told = summary(about)
    out.print(
        f"{output}: {told['records']:,} records of {told['workloads']:,} workloads, {told['models']} models, "
        f"{len(page) / 1e6:.1f} MB",
        soft_wrap=True,
    )


def summary(about: Report) -> dict[str, Any]:
    """What ``--json`` says of a report."""
    from lorien.report.sources import fastest_of
    from lorien.report.tally import failures_by_kind

    workloads = about.tally.workloads
    return {
        "sources": [{"kind": source.kind.value, "url": source.url} for source in about.sources],
        "records": about.tally.records,
        "workloads": len(workloads),
        "targets": sorted({own.target for own in workloads.values()}),
        "failures": dict(failures_by_kind(workloads.values())),
        "ran": sum(fastest_of(about, key) < float("inf") for key in workloads),
        "schedules": len(about.schedules),
        "models": len(about.models),
        "judged": {f"{one.dialect}/{one.target}": len(one.keys) for one in about.judgements},
        "peak_gflops": {target: peak.flop_per_s / 1e9 for target, peak in about.peaks.items()},
        "problems": about.problems,
    }
