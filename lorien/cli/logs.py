"""Commands of ``lorien logs``: list, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorien.cli.console import JsonFlag, command, emit, err, out, table
from lorien.errors import BadInput
from lorien.records import Json

if TYPE_CHECKING:
    from lorien.logs.base import LogStore, StoredLog

Store = Annotated[str, typer.Argument(metavar="LOGS", help="Log store: a folder, file:// or s3:// URL.")]
Dialect = Annotated[str | None, typer.Option(help="Only logs of this dialect.")]
TargetName = Annotated[str | None, typer.Option(help="Only of this target: TVM's form, KIND_MODEL or native.")]
Network = Annotated[str | None, typer.Option(help="Only logs of this network.")]


@command
def list_(
    logs: Store,
    dialect: Dialect = None,
    target: TargetName = None,
    network: Network = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the logs of a store, with the ids that remove takes."""
    from lorien.logs import open_logs

    found = found_in(open_logs(logs), dialect, target, network)
    if as_json:
        emit({"logs": [log_json(log) for log in found]})
        return
    if not found:
        err.print(f"no such log in {logs}. Fix: lorien ingest PATH --dialect D --logs {logs}", soft_wrap=True)
    rows = [
        [log.id, log.dialect, log.target.key, log.network, log.records, log.failed, log.unreadable, size(log)]
        for log in found
    ]
    columns = ["id", "dialect", "target", "network", "records", "failed", "unreadable", "size"]
    table(f"{len(found)} logs in {logs}", columns, rows)


@command
def remove(
    logs: Store,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, as lorien logs list shows.")] = None,
    dialect: Dialect = None,
    target: TargetName = None,
    network: Network = None,
    every: Annotated[bool, typer.Option("--all", help="All logs, where nothing else is given.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take logs out of a store: those of these ids, or all that fit the options. Databases stay as they are."""
    from lorien.logs import open_logs

    filtered = any(given is not None for given in (dialect, target, network))
    if bool(ids) + filtered + every != 1:
        raise typer.BadParameter("say which: give ids, or --dialect, --target or --network, or --all alone")
    store = open_logs(logs)
    found = found_in(store, dialect, target, network)
    if ids:
        by_id = {log.id: log for log in found}
        if unknown := sorted(set(ids) - set(by_id)):
            raise BadInput(f"no log {unknown[0]!r} in {logs}. Nothing was removed. Fix: lorien logs list {logs}")
        found = [by_id[name] for name in dict.fromkeys(ids)]
    if not dry_run:
        for log in found:
            store.remove(log)
    if as_json:
        emit({"removed": [log_json(log) for log in found], "dry_run": dry_run})
        return
    for log in found:
        out.print(f"{'would remove' if dry_run else 'removed'} {log.id}: {log.records:,} records, {size(log)}")
    if not found:
        err.print(f"no such log in {logs}. Fix: lorien logs list {logs}", soft_wrap=True)
        return
    err.print("Schedules committed from them stay in their databases. To take those out as well:", soft_wrap=True)
    for log in found:
        err.print(f"  lorien database remove DATABASE --log {log.id}", soft_wrap=True, markup=False)


def found_in(store: LogStore, dialect: str | None, target: str | None, network: str | None) -> list[StoredLog]:
    """The logs of a store that fit."""
    from lorien.dialects import resolve_target

    logs = store.list(dialect, resolve_target(target) if target is not None else None)
    # The dialect once more: a store takes an empty one, as of a variable that is not set, for all.
    return [log for log in logs if network in (None, log.network) and dialect in (None, log.dialect)]


def log_json(log: StoredLog) -> dict[str, Json]:
    """One log of ``lorien logs list --json``."""
    return {
        "id": log.id,
        "dialect": log.dialect,
        "target": log.target.key,
        "network": log.network,
        "build": log.build,
        "workloads": log.workloads,
        "records": log.records,
        "failed": log.failed,
        "unreadable": log.unreadable,
        "size_bytes": log.size_bytes,
    }


def size(log: StoredLog) -> str:
    """Bytes as stored, for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if log.size_bytes >= factor:
            return f"{log.size_bytes / factor:.3g} {unit}"
    return f"{log.size_bytes} bytes"


app = typer.Typer(no_args_is_help=True, help="List the logs of a store, and take logs out.")
app.command("list")(list_)
app.command()(remove)
