"""Commands about workloads: extract them from models, make more of them, find schedules for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.markup import escape

from lorien.cli.console import JsonFlag, command, emit, err, fail, latency, out, progress, table, warn
from lorien.errors import BadInput, LorienError
from lorien.files import atomic_file
from lorien.records import Layout, Workload

if TYPE_CHECKING:
    from lorien.dialects.remote import Tracker

TargetOption = Annotated[str, typer.Option("--target", help="TVM's form, KIND_MODEL, or native for this machine.")]

LayoutOption = Annotated[
    Layout,
    typer.Option(help="Lower the model as suits the target, or plain: as its file has it. Keys of workloads differ."),
]


def parse_shapes(shapes: list[str]) -> dict[str, tuple[int, ...]]:
    """``name=1,3,224,224`` to a dictionary. Raises ``typer.BadParameter``."""
    parsed = {}
    for text in shapes:
        match = re.fullmatch(r"([^=]+)=([1-9]\d*(?:,[1-9]\d*)*)", text)
        if match is None:
            raise typer.BadParameter(f"{text!r} is not of the form name=1,3,224,224", param_hint="--shape")
        parsed[match[1]] = tuple(int(size) for size in match[2].split(","))
    return parsed


@command
def extract(
    models: Annotated[
        list[Path],
        typer.Argument(help="Models: *.onnx, *.pt2, *.json or *.py (Relax); pipelines of Halide: matmul:512,512,512."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of workloads, one JSON object a line.")],
    target: TargetOption = "native",
    shape: Annotated[list[str] | None, typer.Option(help="Static shape of an input: name=1,3,224,224.")] = None,
    match: Annotated[str | None, typer.Option(help="Keep workloads whose name matches this expression.")] = None,
    heaviest: Annotated[int | None, typer.Option(min=1, help="Keep the N with most operations over all calls.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load *.pt2 and *.py models, which can run any code on this machine.")
    ] = False,
    layout: LayoutOption = "auto",
    dialect: Annotated[str, typer.Option(help="Framework to tune with: metaschedule, halide.")] = "metaschedule",
    network: Annotated[str | None, typer.Option(help="Name of the one model's network [default: its file's].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the tuning tasks of models. A model that cannot be read is reported; the others are kept."""
    from lorien.dialects import open_live_dialect, resolve_target
    from lorien.dialects.apart import extracting
    from lorien.dialects.networks import network_names, plain_name

    try:
        pattern = re.compile(match) if match else None
    except re.error as error:
        raise typer.BadParameter(f"{match!r} is no regular expression: {error}", param_hint="--match") from None
    shapes = parse_shapes(shape or [])
    if network is not None and (len(models) > 1 or not network or network != plain_name(network)):
        raise typer.BadParameter("give one model, and a name without +", param_hint="--network")
    names = network_names(models) if network is None else [network]
    named = dict(zip(names, models, strict=True))  # a file given twice counts once
    open_live_dialect(dialect)  # an unknown one is said first
    resolved = resolve_target(target, dialect)
    found: dict[str, Workload] = {}
    refused: dict[str, str] = {}
    with (
        extracting(dialect, resolved, shapes, allow_code=allow_code, layout=layout) as run,
        progress("extracting") as update,
    ):
        for index, (name, model) in enumerate(named.items()):
            update(index, len(named), model.name)
            try:
                workloads = run(model, name)
            except LorienError as error:
                refused[str(model)] = str(error)
                err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
                continue
            for workload in workloads:
                found[workload.key] = merge(found[workload.key], workload) if workload.key in found else workload
    kept = [w for w in found.values() if pattern is None or pattern.search(w.name)]
    if heaviest is not None:
        kept = sorted(kept, key=lambda w: -(w.flop or 0.0) * w.weight)[:heaviest]
    if not kept:
        fail(f"no workload to write: {len(found)} found, {len(refused)} of {len(named)} models refused")
    write_workloads(output, kept)
    if as_json:
        emit({"workloads": len(kept), "found": len(found), "output": str(output), "refused": refused})
    else:
        out.print(f"{len(kept)} workloads of {len(named) - len(refused)} models written to {output}")
    if refused:
        raise typer.Exit(1)


@command
def mutate(
    workloads: Annotated[Path, typer.Argument(help="File of workloads, written by lorien extract.")],
    rules: Annotated[Path, typer.Option(help="YAML file of rules, see docs/workloads.md.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the new workloads, one JSON object a line.")],
    as_json: JsonFlag = False,
) -> None:
    """Make more workloads by rules on batch, channels, spatial sizes and dtype."""
    from lorien.mutate import load_rules
    from lorien.mutate import mutate as run

    given = read_workloads(workloads)
    with progress("mutating") as update:
        report = run(given, load_rules(rules), lambda done: update(done, len(given), ""))
    warn(report.unsupported, f"{len(report.unsupported)} of {len(given)} workloads cannot be mutated:")
    warn(report.invalid, f"{len(report.invalid)} combinations are no operator:")
    if not report.workloads:
        fail(f"no new workload to write; {report.duplicates} combinations gave one that is in {workloads}")
    write_workloads(output, report.workloads)
    if as_json:
        emit(
            {
                "workloads": len(report.workloads),
                "given": len(given),
                "duplicates": report.duplicates,
                "unsupported": report.unsupported,
                "invalid": report.invalid,
                "output": str(output),
            }
        )
    else:
        out.print(
            f"{len(report.workloads)} workloads made of {len(given)} written to {output}; "
            f"{report.duplicates} duplicates, {len(report.invalid)} invalid"
        )


def merge(first: Workload, second: Workload) -> Workload:
    """The same workload in two networks: calls add up."""
    import dataclasses

    networks = tuple(dict.fromkeys((*first.networks, *second.networks)))
    return dataclasses.replace(first, weight=first.weight + second.weight, networks=networks)


def read_workloads(path: Path) -> list[Workload]:
    """The workloads of a ``workloads.jsonl``. Raises ``BadInput`` naming the line that is none."""
    if not path.is_file():
        raise BadInput(f"{path} is no file. Fix: write it with lorien extract MODEL -o {path}")
    workloads = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            workloads.append(Workload.from_json(orjson.loads(line)))
        except orjson.JSONDecodeError:
            raise BadInput(
                f"{path}:{number}: no workload. Fix: if this is a model, lorien extract {path} -o workloads.jsonl"
            ) from None
        except BadInput as error:
            raise BadInput(f"{path}:{number}: {error}") from None
    if not workloads:
        raise BadInput(f"{path} holds no workload. Fix: write it with lorien extract MODEL -o {path}")
    return workloads


def write_workloads(path: Path, workloads: list[Workload]) -> None:
    """Write a ``workloads.jsonl``, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(orjson.dumps(workload.to_json()) + b"\n" for workload in workloads))


RunnerOption = Annotated[
    str | None, typer.Option("--runner", help="Measure on devices of an RPC tracker: rpc://TRACKER:PORT/KEY.")
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-network", help="The tracker and its devices may be other machines; anyone there can use them."
    ),
]


def read_runner(runner: str | None, trust_network: bool) -> Tracker | None:
    """The tracker that ``--runner`` names."""
    from lorien.dialects.remote import Tracker

    return Tracker.parse(runner, trusted=trust_network) if runner is not None else None


@command
def rank(
    workloads: Annotated[Path, typer.Argument(help="File of workloads, written by lorien extract.")],
    models: Annotated[str | None, typer.Option(help="Model store, written by lorien-train.")] = None,
    target: TargetOption = "native",
    top_k: Annotated[
        str, typer.Option(metavar="K", help="Candidates to verify; auto: as many as the model's confidence asks for.")
    ] = "8",
    verify: Annotated[bool, typer.Option("--verify", help="Build and run the top k.")] = False,
    runner: RunnerOption = None,
    trust_network: TrustOption = False,
    db: Annotated[str | None, typer.Option(help="Schedule database to ask first and to commit to.")] = None,
    search_s: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of search per workload [default: 8].")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for a whole answer, start and verifying included: 10s, 2m.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Find a schedule for each workload: in the database, else ranked (and verified), else the default."""
    from lorien.delivery import SEARCH_S, Delivery, open_deliverer
    from lorien.machine import process_age_s

    if budget is not None and search_s is not None:
        raise typer.BadParameter("the search gets what verifying leaves of --budget: give one of the two")
    k, budget_s = parse_top_k(top_k), None if budget is None else parse_seconds(budget)
    asked = read_workloads(workloads)
    dialects = {workload.dialect for workload in asked}
    if len(dialects) > 1:
        raise BadInput(f"{workloads} mixes the dialects {', '.join(sorted(dialects))}. Fix: one file for each")
    (dialect,) = dialects
    tracker = read_runner(runner, trust_network)
    answers: list[Delivery] = []
    with (
        open_deliverer(
            target,
            dialect,
            database=db,
            models=models,
            top_k=k,
            verify=verify,
            search_s=SEARCH_S if search_s is None else search_s,
            budget_s=budget_s,
            seed=seed,
            tracker=tracker,
        ) as deliverer,
        progress("ranking") as update,
    ):
        for index, workload in enumerate(asked):
            update(index, len(asked), workload.name)
            # Who waits for the first answer waits for Python, TVM and the model too.
            answers.append(deliverer.deliver(workload, spent_s=0.0 if answers else process_age_s()))
    if as_json:
        emit({"workloads": [answer_json(answer) for answer in answers]})
    else:
        print_answers(answers, deliverer.target.key)


def parse_top_k(text: str) -> int | None:
    """A positive number, or None for ``auto``. Raises ``typer.BadParameter``."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise typer.BadParameter(f"{text!r} is neither a number from 1 nor auto", param_hint="--top-k")
    return int(text)


def parse_seconds(text: str) -> float:
    """Seconds of ``10s``, ``1.5m`` or ``10``. Raises ``typer.BadParameter``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)?", text)
    seconds = float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}[match[2]] if match else 0.0
    if seconds <= 0:
        raise typer.BadParameter(f"{text!r} is no time: write 10s or 2m", param_hint="--budget")
    return seconds


def answer_json(answer: Any) -> dict[str, Any]:
    """One workload of ``lorien rank --json``."""
    return {
        "name": answer.workload.name,
        "key": answer.workload.key,
        "source": answer.source.value,
        "candidates": answer.candidates,
        "rank1_latency_s": answer.rank1_latency_s,
        "best_latency_s": answer.latency_s,
        "default_latency_s": answer.default_latency_s,
        "seconds": answer.seconds,
        "note": answer.note,
        "confident_k": answer.confident_k,
        "expected_fraction": answer.expected_fraction,
        "disturbed": bool(answer.disturbance),
        "disturbance": answer.disturbance,
        "schedule": answer.candidate.schedule,
        "top_k": [
            {
                "score": trial.candidate.score,
                "latency_s": trial.measurement.latency_s if trial.measurement else None,
                "error": trial.measurement.outcome.value if trial.measurement and not trial.measurement.ok else None,
            }
            for trial in answer.trials
        ],
    }


def print_answers(answers: list[Any], target: str) -> None:
    """The table of ``lorien rank``."""
    columns = ["workload", "source", "predicted", "default", "rank 1", "best", "speed-up", "seconds"]
    rows = []
    for answer in answers:
        speedup = (
            f"{answer.default_latency_s / answer.latency_s:.1f}x"
            if answer.default_latency_s and answer.latency_s
            else "-"
        )
        score = answer.trials[0].candidate.score if answer.trials else None
        rows.append(
            [
                answer.workload.name,
                answer.source.value,
                "-" if score is None else f"{score:.2f}",
                latency(answer.default_latency_s),
                latency(answer.rank1_latency_s),
                latency(answer.latency_s),
                speedup,
                f"{answer.seconds:.1f}",
            ]
        )
    table(f"Schedules for {target}", columns, rows)
    for answer in answers:
        if answer.note:
            out.print(f"{answer.workload.name}: {answer.note}")
        if answer.disturbance:
            out.print(f"{answer.workload.name}: latencies may be too long: {answer.disturbance}", markup=False)
