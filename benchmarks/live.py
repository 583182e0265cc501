"""Unseen workloads answered in seconds, side by side with what stock MetaSchedule finds after hundreds of trials.

    python benchmarks/live.py prepare --work WORK --data DATASETS [--network resnet50] [--workloads 8]
    python benchmarks/live.py stock   --work WORK [--trials 256]
    python benchmarks/live.py ours    --work WORK [--cold 10] [--warm 4]
    python benchmarks/live.py guided  --work WORK [--guided-trials 32]
    python benchmarks/live.py compare --work WORK [--at 64 256]

``prepare`` trains a model on the logs of all other networks, and chooses every third of the network's heaviest
convolutions. ``stock`` is TVM's ``tune_tasks`` as it comes. ``ours`` answers each workload cold (a ``lorien rank
--verify --top-k 8`` of its own, told to be done in time) and warm (one process that has answered another workload).
``guided`` is ``lorien tune`` of all of them with that model, for a few trials. ``compare`` builds and runs the best of
each again, in turns, in one process: latencies of different hours say little. Run the last four on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import orjson
from harness import machine, markdown, run
from stock import tune_tasks
from zero_shot import onnx_model

from lorien.cli.workloads import read_workloads
from lorien.delivery import open_deliverer
from lorien.dialects import open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule.workload import native_target
from lorien.records import Candidate, Workload
from lorien.tune.measure import MeasureConfig, Measurer

TOP_K = 8
TURNS = 3
START_S = 2.5
"""Of a cold answer, what Python, TVM and the model take before the search begins."""


def prepare(arguments: argparse.Namespace) -> None:
    """Train without the network, and choose its workloads."""
    work, network = arguments.work, arguments.network
    logs, features = work / "logs", work / "features"
    run("lorien", "ingest", arguments.data / "metaschedule", "--dialect", "metaschedule", "--logs", logs)
    run("lorien", "featurize", logs, "-o", features)
    run("lorien-train", features, "-o", work / "models", "--holdout-network", network)
    everything = work / "all.jsonl"
    run("lorien", "extract", onnx_model(network), "--target", "native", "--match", "conv2d", "-o", everything)
    heaviest = sorted(read_workloads(everything), key=lambda workload: -(workload.flop or 0) * workload.weight)
    chosen = heaviest[: 3 * arguments.workloads : 3] if len(heaviest) >= 3 * arguments.workloads else heaviest
    chosen = chosen[: arguments.workloads]
    (work / "workloads.jsonl").write_bytes(b"".join(orjson.dumps(own.to_json()) + b"\n" for own in chosen))
    print(len(heaviest), "convolutions, chosen:", *(own.name for own in chosen), sep="\n")


def stock(arguments: argparse.Namespace) -> None:
    """Tune all of them with TVM's MetaSchedule."""
    folder = arguments.work / "stock"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    started_s = time.perf_counter()
    tune_tasks(read_workloads(arguments.work / "workloads.jsonl"), folder, arguments.trials)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started_s))


def ours(arguments: argparse.Namespace) -> None:
    """Answer each workload cold and warm; keep what was answered."""
    work, models = arguments.work, arguments.work / "models"
    workloads = read_workloads(work / "workloads.jsonl")
    answers: dict[str, dict[str, Any]] = {}
    for workload in workloads:
        one, database = work / "one.jsonl", work / "cold.db"
        database.unlink(missing_ok=True)
        one.write_bytes(orjson.dumps(workload.to_json()) + b"\n")
        options = ("--db", f"sqlite:///{database}", "--budget", f"{arguments.cold - START_S:.1f}s")
        done = run("lorien", "rank", one, "--models", models, "--verify", "--top-k", str(TOP_K), *options)
        (answer,) = done.value["workloads"]
        answers[workload.key] = {
            "cold": {"seconds": done.seconds, "schedule": answer["schedule"], "tried": len(answer["top_k"])}
        }
    options = {"models": str(models), "top_k": TOP_K, "budget_s": arguments.warm}
    with open_deliverer(native_target(), "metaschedule", **options) as deliverer:
        deliverer.deliver(workloads[-1])
        for workload in workloads:
            found = deliverer.deliver(workload)
            answers[workload.key] |= {
                "warm": {"seconds": found.seconds, "schedule": found.candidate.schedule, "tried": len(found.trials)},
                "rank 1": {"seconds": None, "schedule": found.trials[0].candidate.schedule, "tried": 0},
            }
            print(workload.name, answers[workload.key]["cold"]["seconds"], found.seconds, flush=True)
    (work / "ours.json").write_bytes(orjson.dumps(answers))


def guided(arguments: argparse.Namespace) -> None:
    """Tune all of them with the model."""
    work, asked = arguments.work, arguments.work / "workloads.jsonl"
    shutil.rmtree(work / "guided", ignore_errors=True)
    each = arguments.guided_trials
    limits = ("--trials", str(each * len(read_workloads(asked))), "--trials-per-workload", str(each))
    done = run("lorien", "tune", asked, *limits, "--model", work / "models", "--logs", work / "guided")
    about = {"log": done.value["session"], "seconds": done.seconds, "trials": each}
    (work / "guided.json").write_text(json.dumps(about))
    print(about)


def bests(log: Path, trials: int) -> dict[str, Candidate]:
    """Fastest of the first so many records of each workload in a log."""
    best: dict[str, tuple[float, Candidate]] = {}
    seen: dict[str, int] = {}
    for record in open_live_dialect("metaschedule").read(log, LogInfo(), ReadReport()):
        key, latency_s = record.workload.key, record.measurement.latency_s
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= trials and latency_s is not None and latency_s < best.get(key, (math.inf,))[0]:
            best[key] = (latency_s, record.candidate)
    return {key: candidate for key, (_, candidate) in best.items()}


def compare(arguments: argparse.Namespace) -> None:
    """Run the best of each again, in turns."""
    work = arguments.work
    workloads: list[Workload] = read_workloads(work / "workloads.jsonl")
    answers = json.loads((work / "ours.json").read_text())
    log = work / "stock"
    tuning_s = json.loads((log / "seconds.json").read_text())
    counted = ReadReport()
    for _ in open_live_dialect("metaschedule").read(log, LogInfo(), counted):
        pass
    rate = counted.records / tuning_s
    tuned = {f"stock, {trials}": bests(log, trials) for trials in arguments.at}
    if (work / "guided.json").exists():
        about = json.loads((work / "guided.json").read_text())
        print(f"lorien tune --model: {about['seconds'] / len(workloads):.1f} s a workload")
        tuned = {f"lorien tune --model, {about['trials']}": bests(Path(about["log"]), about["trials"]), **tuned}
    sides = ["default", "rank 1", "warm", "cold", *tuned]
    rows: list[list[Any]] = []
    with Measurer("metaschedule", native_target(), MeasureConfig(repeat=7, min_repeat_s=0.1)) as measurer:
        for workload in workloads:
            answer = answers[workload.key]
            candidates = [Candidate(None), *(Candidate(answer[side]["schedule"]) for side in sides[1:4])]
            candidates += [found[workload.key] for found in tuned.values()]
            # The unscheduled one is slow, and nobody doubts which is faster.
            again = [measurer.measure(workload, candidates[:1])[0].latency_s or math.nan]
            measured = measurer.measure(workload, candidates[1:] * TURNS)
            count = len(candidates) - 1
            again += [statistics.median(m.latency_s or math.nan for m in measured[i::count]) for i in range(count)]
            rows.append(
                [workload.name, *(s * 1e3 for s in again), answer["cold"]["seconds"], answer["warm"]["seconds"]]
            )
            print(rows[-1], flush=True)
    times: list[Any] = ["geometric mean, times the last"]
    for index in range(1, 1 + len(sides)):
        ratios = [row[len(sides)] / row[index] for row in rows]
        times.append(math.exp(statistics.fmean(map(math.log, ratios))))
    seconds = [statistics.fmean(row[index] for row in rows) for index in (-2, -1)]
    columns = ["ms", *sides, "cold s", "warm s"]
    print(f"\n{machine()}\n\n{markdown(columns, [*rows, [*times, *seconds]])}\n")
    print(f"stock: {counted.records} trials in {tuning_s:.0f} s, {rate:.2f}/s")
    for trials in arguments.at:
        print(f"{trials} trials of a workload: {trials / rate:.0f} s, {trials / rate / seconds[0]:.0f}x a cold answer")


PARTS = {"prepare": prepare, "stock": stock, "ours": ours, "guided": guided, "compare": compare}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--work", type=Path, required=True, help="folder of what the parts hand on")
    parser.add_argument("--data", type=Path, help="prepare's: data sets")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--workloads", type=int, default=8)
    parser.add_argument("--trials", type=int, default=256, help="stock's, for each workload")
    parser.add_argument("--guided-trials", type=int, default=32, help="guided's, for each workload")
    parser.add_argument("--at", type=int, nargs="+", default=[64, 256], help="trials to compare with")
    parser.add_argument("--cold", type=float, default=10.0, help="seconds for a cold answer")
    parser.add_argument("--warm", type=float, default=4.0, help="seconds for a warm answer")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
