"""Commands of ``lorien database``: create, copy, stats, remove."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from lorien.cli.console import JsonFlag, command, emit, err, out, progress
from lorien.cli.stores import name_pattern

Url = Annotated[str, typer.Argument(help="sqlite:///path or dynamodb://table?region=...&endpoint_url=...")]


@command
def create(
    url: Url,
    n_best: Annotated[
        int | None, typer.Option(min=1, help="Schedules kept per workload, target and framework build; 8 by default.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a schedule database; one that is there stays as it is. A DynamoDB table is billed by request."""
    from lorien.database import open_database

    with open_database(url, create=True, n_best=n_best) as database:
        kept = database.n_best
    if as_json:
        emit({"database": url, "n_best": kept})
    else:
        out.print(f"{url} keeps the {kept} best schedules")


@command
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Schedule database to read.")],
    destination: Annotated[str, typer.Argument(metavar="TO", help="Schedule database to merge into.")],
    as_json: JsonFlag = False,
) -> None:
    """Merge a database into another, the better schedules staying: export, import and back up."""
    from lorien.database import open_database
    from lorien.database.copy import copy as run

    with (
        open_database(source, create=False) as reader,
        open_database(destination) as writer,
        progress("copying") as update,
    ):
        report = run(reader, writer, lambda records: update(records, None, ""))
    if as_json:
        emit(dataclasses.asdict(report))
    else:
        out.print(f"{report.records:,} schedules read, {report.entered:,} entered {destination}")


@command
def stats(url: Url, as_json: JsonFlag = False) -> None:
    """Count what a database holds."""
    from lorien.database import open_database

    with open_database(url, create=False) as database:
        counts = dataclasses.asdict(database.stats()) | {"n_best": database.n_best}
    if as_json:
        emit(counts)
    else:
        out.print(
            f"{counts['records']:,} schedules of {counts['workloads']:,} workloads on {counts['targets']:,} targets, "
            f"the {counts['n_best']} best of each"
        )


@command
def remove(
    url: Url,
    target: Annotated[str | None, typer.Option(help="Only of this target: TVM's form, KIND_MODEL or native.")] = None,
    workload: Annotated[str | None, typer.Option(help="Only of this workload: its key, or a part of its name.")] = None,
    build: Annotated[str | None, typer.Option(help="Only of this framework and version: 'tvm 0.27.0.post1'.")] = None,
    log: Annotated[str | None, typer.Option(help="Only schedules from this log: its id, or its full path.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All schedules, where nothing else is given.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be removed, and remove nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take schedules out of a database: those that fit all options given. Logs stay as they are."""
    from lorien.database import open_database
    from lorien.database.base import Selection
    from lorien.dialects import resolve_target

    if every == any(given is not None for given in (target, workload, build, log)):
        raise typer.BadParameter("say which: give --target, --workload, --build or --log, or --all alone")
    asked = resolve_target(target) if target is not None else None
    selection = Selection(asked, workload and name_pattern(workload), build, log)
    with open_database(url, create=False) as database:
        removal = database.remove(selection, dry_run=dry_run)
    if as_json:
        emit({"schedules": removal.schedules, "items": removal.items, "dry_run": dry_run})
        return
    verb = "would be removed" if dry_run else "removed"
    out.print(f"{removal.schedules:,} schedules of {removal.items:,} (target, workload, build) {verb} from {url}")
    if not removal.schedules:
        err.print(f"no schedule of {url} fits. Fix: lorien query --db {url} shows what there is", soft_wrap=True)


app = typer.Typer(no_args_is_help=True, help="Make, copy and count schedule databases, and take schedules out.")
for _function in (create, copy, stats, remove):
    app.command()(_function)
