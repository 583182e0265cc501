"""``lorien build``: a model compiled with the best schedules known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorien.cli.console import JsonFlag, command, emit, latency, out, progress, table
from lorien.cli.workloads import LayoutOption, TargetOption, parse_shapes

if TYPE_CHECKING:
    from lorien.network import BuildReport


@command
def build(
    model: Annotated[Path, typer.Argument(help="A model: *.onnx, *.pt2, *.json or *.py (Relax).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of library.so, report.json, workloads.jsonl.")],
    target: TargetOption = "native",
    db: Annotated[str | None, typer.Option(help="Schedule database to ask first and to commit to.")] = None,
    models: Annotated[str | None, typer.Option(help="Model store, for workloads that are not in the database.")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds to rank and verify those, heaviest first.")] = 60.0,
    check: Annotated[bool, typer.Option(help="Compare the outputs with the naive kernels', and with ONNX's.")] = True,
    run: Annotated[bool, typer.Option("--run", help="Time it, beside a build of default schedules.")] = False,
    shape: Annotated[list[str] | None, typer.Option(help="Static shape of an input: name=1,3,224,224.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load *.pt2 and *.py models, which can run any code on this machine.")
    ] = False,
    layout: LayoutOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Compile a model with the best schedules known, and say where each one comes from."""
    from lorien.network import build as run_build

    shapes = parse_shapes(shape or [])
    with progress("ranking") as update:
        report = run_build(
            model,
            target,
            output=output,
            database=db,
            models=models,
            shapes=shapes,
            budget_s=budget,
            check=check,
            run=run,
            allow_code=allow_code,
            layout=layout,
            progress=update,
        )
    if as_json:
        emit(report.to_json())
    else:
        print_report(report)


def print_report(report: BuildReport) -> None:
    """A table of the workloads, heaviest first, and what was built."""
    from lorien.network import work

    rows = [
        [choice.workload.name, choice.workload.weight, choice.source.value, latency(choice.latency_s), choice.why]
        for choice in sorted(report.choices, key=lambda choice: -work(choice.workload))
    ]
    table(f"Schedules for {report.target}", ["workload", "calls", "source", "latency", "why"], rows)
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
    out.print(f"{report.library} written ({steps})", soft_wrap=True)
    if report.disturbance:
        out.print(f"latencies may be too long: {report.disturbance}", soft_wrap=True, markup=False)
    if report.run is not None:
        reference = report.reference
        if reference is not None and not reference.skipped:
            out.print(f"outputs agree with the naive kernels', and with those of {reference.name}", soft_wrap=True)
        else:
            out.print("outputs agree with the naive kernels'")
            if reference is not None:
                out.print(f"not compared with another implementation: {reference.skipped}", soft_wrap=True)
    if report.run is not None and report.run.latency_s and report.run.default_latency_s:
        speedup = report.run.default_latency_s / report.run.latency_s
        default = latency(report.run.default_latency_s)
        out.print(f"{latency(report.run.latency_s)} an inference, {default} by default: {speedup:.1f}x")
