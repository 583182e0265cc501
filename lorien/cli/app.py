"""The two programs and their commands. Commands import what they need when they run: ``--help`` stays light."""

from __future__ import annotations

from typing import Annotated

import typer

from lorien import __version__
from lorien.cli import database, fleet, learn, stores, workloads
from lorien.cli.build import build
from lorien.cli.doctor import doctor
from lorien.cli.report import report
from lorien.cli.serve import serve
from lorien.cli.tune import tune


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Turn tuning logs into good schedules for workloads nobody has tuned, and prove them on the device."""


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.callback()(_root)
for _function in (
    workloads.extract,
    tune,
    workloads.mutate,
    stores.ingest,
    stores.commit,
    stores.query,
    learn.featurize,
    learn.evaluate,
    workloads.rank,
    build,
    fleet.worker,
    doctor,
    report,
    serve,
):
    app.command()(_function)
app.add_typer(database.app, name="database")
app.add_typer(fleet.app, name="jobs")

train_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
train_app.command()(learn.train)
