"""Commands of ``lorien database``: create, copy, stats."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from lorien.cli.console import JsonFlag, command, emit, out, progress

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


app = typer.Typer(no_args_is_help=True, help="Make, copy and count schedule databases.")
for _function in (create, copy, stats):
    app.command()(_function)
