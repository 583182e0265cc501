"""The two programs and their commands. Commands import what they need when they run: ``--help`` stays light."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from lorien import __version__
from lorien.cli import database, fleet, learn, logs, stores, workloads
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
EXAMPLES: dict[Callable[..., Any], str] = {
    workloads.extract: "lorien extract model.onnx -o workloads.jsonl",
    tune: "lorien tune workloads.jsonl --trials 2000 --logs logs --db sqlite:///schedules.db",
    workloads.mutate: "lorien mutate workloads.jsonl --rules rules.yaml -o more.jsonl",
    stores.ingest: "lorien ingest LOGS --dialect autotvm --target cuda_rtx3080 --logs logs",
    stores.commit: "lorien commit --logs logs --db sqlite:///schedules.db",
    stores.query: "lorien query --db sqlite:///schedules.db --workload conv2d",
    learn.featurize: "lorien featurize logs -o features",
    learn.evaluate: "lorien evaluate features --models models --holdout-network resnet50",
    workloads.rank: "lorien rank workloads.jsonl --models models --top-k 8 --verify --db sqlite:///schedules.db",
    build: "lorien build model.onnx --models models --db sqlite:///schedules.db -o built --run",
    fleet.worker: "lorien worker --run nightly --db sqlite:///schedules.db --logs logs --target native",
    doctor: "lorien doctor --logs logs --db sqlite:///schedules.db",
    report: "lorien report features models -o report.html",
    serve: "lorien serve --models models --db sqlite:///schedules.db",
}
"""The commands, each with one line of its use, which its help ends with."""
for _function, _example in EXAMPLES.items():
    app.command(epilog=f"Example: {_example}")(_function)
app.add_typer(database.app, name="database")
app.add_typer(logs.app, name="logs")
app.add_typer(fleet.app, name="jobs")

train_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
train_app.command(epilog="Example: lorien-train features -o models --holdout-network resnet50")(learn.train)
