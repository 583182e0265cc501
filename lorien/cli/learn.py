"""Commands that learn: featurize, evaluate, and ``lorien-train``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from lorien.cli.console import JsonFlag, command, emit, out, progress, table, warn

Features = Annotated[str, typer.Argument(help="Feature tables, written by lorien featurize: a folder or s3:// URL.")]


@command
def featurize(
    logs: Annotated[str, typer.Argument(help="Log store: a folder, file:// or s3:// URL.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Where the feature tables are: a folder or s3:// URL.")],
    dialect: Annotated[str | None, typer.Option(help="Only logs of this dialect.")] = None,
    features: Annotated[
        Literal["metaschedule_trace"] | None,
        typer.Option(help="Another feature set, where a dialect has it: of traces as they are, without lowering."),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes; the cores by default.")] = None,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Where: this machine, or a Ray cluster.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of a running cluster; without, one is started here.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn logs into Parquet feature tables; only logs that are new are read."""
    from lorien.featurize.table import featurize as run
    from lorien.logs import open_logs

    with progress("featurizing") as update:
        report = run(
            open_logs(logs),
            output,
            dialect=dialect,
            feature_set=features,
            processes=processes,
            progress=lambda done, total, rows: update(done, total, f"{rows:,} rows"),
            executor=executor,
            ray_address=ray_address,
        )
    warn(report.reasons, f"{report.skipped} records skipped, the first of each log:")
    warn(report.failed_logs, f"{len(report.failed_logs)} logs could not be featurized; run again once they are mended:")
    if as_json:
        emit(
            {
                "rows": report.rows,
                "skipped": report.skipped,
                "tables": report.tables,
                "seconds": report.seconds,
                "unchanged": report.unchanged,
                "failed_logs": report.failed_logs,
            }
        )
    else:
        rate = report.rows / report.seconds if report.seconds else 0.0
        out.print(
            f"{report.rows:,} rows in {len(report.tables)} new tables ({report.unchanged} were up to date), "
            f"{report.skipped} records skipped, {report.seconds:.1f} s ({rate:,.0f} rows/s)"
        )
    if report.failed_logs:
        raise typer.Exit(1)


@command
def evaluate(
    features: Features,
    models: Annotated[str, typer.Option(help="Model store, written by lorien-train.")],
    holdout_network: Annotated[str | None, typer.Option(help="Score only workloads of this network.")] = None,
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score models on workloads they were not trained on, beside a random ranking."""
    from lorien.models.evaluate import evaluate as run

    scores = run(features, models, holdout_network=holdout_network, target=target)
    if as_json:
        emit({"targets": scores})
    else:
        print_scores("Held-out scores", scores)


@command
def train(
    features: Features,
    output: Annotated[str, typer.Option("-o", "--output", help="Model store to publish into.")],
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Seconds of training per target.")] = None,
    preset: Annotated[str, typer.Option(help="fast: minutes; best: the most accurate.")] = "fast",
    holdout_network: Annotated[
        str | None, typer.Option(help="Keep this network, and every workload it shares, out of training.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Model store: start from its model that is nearest to each target.")
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Keep a model already trained on the same tables with the same options.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train one performance model per target with AutoGluon, split by workload."""
    from lorien.models.train import train as run

    with progress("training") as update:
        reports = run(
            features,
            output,
            target=target,
            preset=preset,
            time_limit_s=time_limit,
            holdout_network=holdout_network,
            base=base,
            reuse=reuse,
            progress=update,
        )
    if as_json:
        emit({"models": {name: report.to_json() for name, report in reports.items()}})
        return
    for name, report in reports.items():
        out.print(
            f"{name}: {report.rows:,} rows, {report.workloads} workloads, {report.fit_seconds:.0f} s, {report.path}"
        )
    print_scores("Held-out scores", {name: report.holdout for name, report in reports.items()})


def print_scores(title: str, scores: dict[str, dict[str, Any]]) -> None:
    """One row per target: the model's scores beside those of a random ranking."""
    columns = {
        "workloads": "workloads",
        "top1_mean": "top-1",
        "top5_mean": "top-5",
        "top10_mean": "top-10",
        "min_top10": "worst top-10",
        "spearman_mean": "Spearman",
        "random_top1_mean": "random top-1",
        "random_top5_mean": "random top-5",
    }
    rows = [[name, *(row.get(column) for column in columns)] for name, row in scores.items()]
    table(title, ["target", *columns.values()], rows)
