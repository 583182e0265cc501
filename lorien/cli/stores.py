"""Commands that move records: ingest, commit, query."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorien.cli.console import JsonFlag, command, emit, err, latency, out, progress, table, warn
from lorien.errors import BadInput
from lorien.files import temporary_folder
from lorien.records import Json, TuningRecord

if TYPE_CHECKING:
    from lorien.logs.base import LogStore
    from lorien.target import Target

LogsUrl = Annotated[str, typer.Option("--logs", help="Log store: a folder, file:// or s3:// URL.")]
DatabaseUrl = Annotated[str, typer.Option("--db", help="Schedule database: sqlite:///path or dynamodb://table.")]

MAX_PASSED_OVER = 20
KEY = re.compile(r"[0-9a-f]{32}")


@command
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Log files, database folders, or folders of them.")],
    dialect: Annotated[
        str, typer.Option(help="Framework that wrote the logs: autotvm, auto_scheduler, metaschedule...")
    ],
    logs: LogsUrl,
    target: Annotated[str | None, typer.Option(help="Device the logs were measured on; overrides the logs.")] = None,
    network: Annotated[str | None, typer.Option(help="Network tuned; by default the file's or folder's name.")] = None,
    build: Annotated[
        str | None, typer.Option(help="Framework and version that made logs which do not tell: 'tvm 0.27.0.post1'.")
    ] = None,
    split: Annotated[
        bool, typer.Option("--split", help="A log of several devices: store what is of each as a log of its own.")
    ] = False,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Of metaschedule_legacy: also store what replays on today's TVM, as such.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check foreign logs and put them in the log store. Taking the same log twice adds nothing."""
    from lorien.dialects import open_dialect, resolve_target
    from lorien.logs import open_logs
    from lorien.logs.ingest import ingest as run

    resolved, store = resolve_target(target) if target else None, open_logs(logs)
    with progress("reading") as update:
        report = run(
            paths,
            store,
            dialect=open_dialect(dialect),
            target=resolved,
            network=network,
            build=build,
            split=split,
            progress=lambda done, total, records: update(done, total, f"{records:,} records"),
        )
    warn(report.reasons, f"{report.unreadable} lines skipped, the first ones:")
    hidden = len(report.passed_over) - MAX_PASSED_OVER
    warn(
        report.passed_over[:MAX_PASSED_OVER] + ([f"and {hidden} more; --json names all"] if hidden > 0 else []),
        f"{len(report.passed_over)} files are no logs of {dialect} and were not read:",
    )
    warn(report.failed_logs, f"{len(report.failed_logs)} logs could not be stored:")
    answer: dict[str, Json] = {
        "records": report.records,
        "failed": report.failed,
        "unreadable": report.unreadable,
        "workloads": report.workloads,
        "new": report.new,
        "logs": report.logs,
        "passed_over": report.passed_over,
        "failed_logs": report.failed_logs,
    }
    if migrate:
        moved = answer["migrated"] = migrated(paths, dialect, store, resolved, network)
    if as_json:
        emit(answer)
    else:
        out.print(
            f"{report.records:,} records of {report.workloads} workloads ({report.failed:,} failed measurements), "
            f"{report.unreadable} unreadable lines; {report.new:,} records are new in {logs}"
        )
        if migrate:
            out.print(
                f"migrated: {moved['rebuilt']} of {moved['workloads']} workloads rebuilt, "
                f"{moved['replayed']:,} of {moved['records']:,} records replay on today's TVM"
            )
    if report.failed_logs:
        raise typer.Exit(1)


def migrated(
    paths: list[Path], dialect: str, store: LogStore, target: Target | None, network: str | None
) -> dict[str, Json]:
    """Store what of old logs replays on today's TVM; the counts of ``lorien ingest --migrate --json``."""
    from lorien.dialects import open_dialect
    from lorien.dialects.metaschedule.migrate import MigrateReport, migrate
    from lorien.logs.ingest import ingest as run

    if dialect != "metaschedule_legacy":
        raise BadInput(f"logs of {dialect} need no migration. Fix: leave out --migrate")
    total = MigrateReport()
    stored: list[str] = []
    found = [log for path in paths for log in open_dialect(dialect).find(path)]
    with progress("replaying") as update:
        for index, log in enumerate(found):
            update(index, len(found), log.name)
            with temporary_folder("lorien-migrate-") as folder:
                new = Path(folder, log.resolve().name)
                new.mkdir()
                report = migrate(log, new)
                if report.replayed:
                    reader = open_dialect("metaschedule")
                    stored += run([new], store, dialect=reader, target=target, network=network).logs
            total.add(report)
    reasons = [f"{count} times: {reason}" for reason, count in total.reasons.most_common(20)]
    warn(reasons, f"{total.records - total.replayed} records do not replay on today's TVM:")
    return dataclasses.asdict(total) | {"reasons": dict(total.reasons), "logs": stored}


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
    from lorien.logs.commit import commit as run

    with open_database(db) as database, progress("committing") as update:
        report = run(
            open_logs(logs),
            database,
            dialect=dialect,
            progress=lambda done, total, records: update(done, total, f"{records:,} records"),
        )
    warn(report.reasons, f"{report.unreadable} lines skipped, the first ones:")
    warn(
        report.doubts,
        f"{report.implausible:,} records have latencies that cannot be true and were left out. The first ones:",
    )
    warn(report.failed_logs, f"{len(report.failed_logs)} logs could not be read; nothing of them was committed:")
    if as_json:
        emit(
            {
                "records": report.records,
                "committed": report.committed,
                "unreadable": report.unreadable,
                "implausible": report.implausible,
                "failed_logs": report.failed_logs,
            }
        )
    else:
        left_out = f", {report.implausible:,} implausible ones left out" if report.implausible else ""
        out.print(f"{report.records:,} records read{left_out}, {report.committed:,} schedules entered {db}")
    if report.failed_logs:
        raise typer.Exit(1)


@command
def query(
    db: DatabaseUrl,
    workload: Annotated[str | None, typer.Option(help="Workload key, or a part of its name.")] = None,
    target: Annotated[str | None, typer.Option(help="Only this target: TVM's form, KIND_MODEL or native.")] = None,
    dialect: Annotated[str | None, typer.Option(help="Only this dialect.")] = None,
    network: Annotated[str | None, typer.Option(help="Only workloads of this network.")] = None,
    best: Annotated[int, typer.Option(min=1, help="Schedules per workload and framework build, fastest first.")] = 1,
    variants: Annotated[
        bool, typer.Option("--variants", help="So many of each variant (data layout) instead.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look up the best schedules known."""
    from lorien.database import open_database
    from lorien.dialects import resolve_target

    asked = resolve_target(target) if target else None
    if workload:
        workload = name_pattern(workload)
    found: list[TuningRecord] = []
    with open_database(db, create=False) as database:
        records = database.query(target=asked, workload=workload, dialect=dialect, network=network)
        for _, item in itertools.groupby(records, lambda r: (r.target.key, r.workload.key, r.build)):
            seen: Counter[str | None] = Counter()
            for record in item:
                shown = record.variant if variants else None
                if seen[shown] < best:
                    found.append(record)
                seen[shown] += 1
    if as_json:
        emit({"records": [record_json(record) for record in found]})
        return
    if not found:
        err.print(f"nothing of that in {db}. Fix: ask for less; lorien database stats {db} counts all", soft_wrap=True)
    rows = [[r.workload.name, r.target.key, r.build, latency(r.measurement.latency_s), gflops(r)] for r in found]
    columns = ["workload", "target", "build", "latency", "GFLOPS"]
    if any(record.variant for record in found):
        columns.insert(3, "variant")
        for row, record in zip(rows, found, strict=True):
            row.insert(3, record.variant or "-")
    table(f"{len(found)} schedules in {db}", columns, rows)


def name_pattern(workload: str) -> str:
    """What a database is asked for: a key or a pattern as it is, and a part of a name as a pattern."""
    return workload if KEY.fullmatch(workload) or set("*?[") & set(workload) else f"*{workload}*"


def record_json(record: TuningRecord) -> dict[str, Json]:
    """One schedule of ``lorien query --json``."""
    return {
        "name": record.workload.name,
        "key": record.workload.key,
        "dialect": record.workload.dialect,
        "target": record.target.key,
        "networks": list(record.workload.networks),
        "build": record.build,
        "latency_s": record.measurement.latency_s,
        "log": record.log,
        "variant": record.variant,
        "schedule": record.candidate.schedule,
    }


def gflops(record: TuningRecord) -> str:
    """Rate of a schedule for people; a dash when the operations are not known."""
    flop, latency_s = record.workload.flop, record.measurement.latency_s
    return f"{flop / latency_s / 1e9:.1f}" if flop and latency_s else "-"
