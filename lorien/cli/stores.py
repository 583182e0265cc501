"""Commands that move records: ingest, commit, query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorien.cli.console import JsonFlag, command, emit, latency, out, progress, table, warn
from lorien.target import Target

LogsUrl = Annotated[str, typer.Option("--logs", help="Log store: a folder or file:// URL.")]
DatabaseUrl = Annotated[str, typer.Option("--db", help="Schedule database, such as sqlite:///schedules.db.")]


@command
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Log files, database folders, or folders of them.")],
    dialect: Annotated[str, typer.Option(help="Framework that wrote the logs: autotvm, metaschedule.")],
    logs: LogsUrl,
    target: Annotated[str | None, typer.Option(help="Device the logs were measured on; overrides the logs.")] = None,
    network: Annotated[str | None, typer.Option(help="Network tuned; by default the file's or folder's name.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check foreign logs and put them in the log store. Taking the same log twice adds nothing."""
    from lorien.dialects import open_dialect, resolve_target
    from lorien.logs import open_logs
    from lorien.logs.ingest import ingest as run

    with progress("reading") as update:
        report = run(
            paths,
            open_logs(logs),
            dialect=open_dialect(dialect),
            target=resolve_target(target) if target else None,
            network=network,
            progress=lambda done, total, records: update(done, total, f"{records:,} records"),
        )
    warn(report.reasons, f"{report.unreadable} lines skipped, the first ones:")
    if as_json:
        emit(
            {
                "records": report.records,
                "failed": report.failed,
                "unreadable": report.unreadable,
                "workloads": report.workloads,
                "new": report.new,
                "logs": report.logs,
            }
        )
    else:
        out.print(
            f"{report.records:,} records of {report.workloads} workloads ({report.failed:,} failed measurements), "
            f"{report.unreadable} unreadable lines; {report.new:,} records are new in {logs}"
        )


@command
def commit(
    logs: LogsUrl,
    db: DatabaseUrl,
    dialect: Annotated[str | None, typer.Option(help="Only logs of this dialect.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put the best schedules of the logs into the database."""
    from lorien.database import open_database
    from lorien.logs import open_logs
    from lorien.logs.ingest import commit as run

    with open_database(db) as database, progress("committing") as update:
        report = run(
            open_logs(logs),
            database,
            dialect=dialect,
            progress=lambda done, total, records: update(done, total, f"{records:,} records"),
        )
    if as_json:
        emit({"records": report.records, "committed": report.committed})
    else:
        out.print(f"{report.records:,} records read, {report.committed:,} schedules entered {db}")


@command
def query(
    db: DatabaseUrl,
    workload: Annotated[str | None, typer.Option(help="Workload key, or a part of its name.")] = None,
    target: Annotated[str | None, typer.Option(help="Only this target: its key or TVM's form.")] = None,
    dialect: Annotated[str | None, typer.Option(help="Only this dialect.")] = None,
    network: Annotated[str | None, typer.Option(help="Only workloads of this network.")] = None,
    best: Annotated[int, typer.Option(min=1, help="Schedules per workload, fastest first.")] = 1,
    related: Annotated[bool, typer.Option(help="Also targets of the same family.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look up the best schedules known."""
    raise NotImplementedError


def query_target(text: str | None) -> Target | None:
    """A target filter as the user writes it."""
    return Target.parse(text) if text else None


__all__ = ["commit", "ingest", "latency", "query", "table"]
