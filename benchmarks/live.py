"""Unseen workloads answered in seconds, side by side with what stock MetaSchedule finds after hundreds of trials.

    python benchmarks/live.py prepare --work WORK --data DATASETS [--network resnet50] [--workloads 8]
    python benchmarks/live.py prepare --work WORK --logs LOGS     [--network resnet50] [--workloads 8]
    python benchmarks/live.py stock   --work WORK [--trials 256]
    python benchmarks/live.py ours    --work WORK [--cold 10] [--warm 4]
    python benchmarks/live.py guided  --work WORK [--guided-trials 32]
    python benchmarks/live.py compare --work WORK [--at 64 256]
    python benchmarks/live.py drafts  --work WORK [--seconds 1 3]

``prepare`` trains a model on the logs of all other networks, or on all of LOGS, of which none may be of a workload of
the network, and chooses the network's heaviest convolutions. ``stock`` is TVM's ``tune_tasks``, on all cores. ``ours``
answers each workload cold (a ``lorien rank --verify`` of its own, told to be done in time, with ``--top-k 8`` and with
``auto``) and warm (one process that has answered another workload). ``guided`` is ``lorien tune`` of all of them with
that model, for a few trials. ``compare`` builds and runs the best of each again, in turns, in one process (latencies of
different hours say little), and has the model score them. ``drafts`` searches with and without drafts, for as many
seconds, and runs the eight candidates ranked first beside what stock found. All but ``prepare`` want an idle machine.
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
import pyarrow.parquet as pq
from harness import machine, markdown, run
from stock import tune_tasks
from tune import CAREFUL, bests, count, in_turns
from zero_shot import onnx_model

from lorien.cli.workloads import read_workloads
from lorien.delivery import open_deliverer
from lorien.dialects import open_live_dialect
from lorien.dialects.metaschedule.workload import native_target
from lorien.models import load_ranker
from lorien.records import Candidate, Workload
from lorien.tune.measure import Measurer

TOP_K = 8


def prepare(arguments: argparse.Namespace) -> None:
    """Train without the network, and choose its workloads."""
    work, network = arguments.work, arguments.network
    logs, features = work / "logs", work / "features"
    given = arguments.logs or arguments.data / "metaschedule"
    run("lorien", "ingest", given, "--dialect", "metaschedule", "--logs", logs)
    run("lorien", "featurize", logs, "-o", features)
    if arguments.logs:
        run("lorien", "extract", onnx_model(network), "--target", "native", "-o", work / "all.jsonl")
        asked = {workload.key for workload in read_workloads(work / "all.jsonl")}
        known = {key for path in features.rglob("*.parquet") for key in workload_keys(path)}
        if asked & known:
            raise SystemExit(
                f"{arguments.logs} holds {len(asked & known)} workloads of {network}: a model would know them"
            )
    held_out = () if arguments.logs else ("--holdout-network", network)
    run("lorien-train", features, "-o", work / "models", *held_out)
    kept = ("--match", "conv2d", "--heaviest", str(arguments.workloads))
    run("lorien", "extract", onnx_model(network), "--target", "native", *kept, "-o", work / "workloads.jsonl")


def workload_keys(table: Path) -> set[str]:
    """Workloads in a feature table."""
    return set(
        pq.read_table(table, columns=["workload_key"], page_checksum_verification=True)["workload_key"].to_pylist()
    )


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
        one.write_bytes(orjson.dumps(workload.to_json()) + b"\n")
        answers[workload.key] = {}
        for side, top_k in (("cold", TOP_K), ("cold, auto", "auto")):
            database.unlink(missing_ok=True)
            options = ("--db", f"sqlite:///{database}", "--budget", f"{arguments.cold}s", "--top-k", str(top_k))
            done = run("lorien", "rank", one, "--models", models, "--verify", *options)
            (answer,) = done.value["workloads"]
            kept = {"seconds": done.seconds, "schedule": answer["schedule"], "tried": len(answer["top_k"])}
            answers[workload.key][side] = kept
    options = {"models": str(models), "top_k": TOP_K, "budget_s": arguments.warm}
    with open_deliverer(native_target(), "metaschedule", **options) as deliverer:
        deliverer.deliver(workloads[-1])
        for workload in workloads:
            found = deliverer.deliver(workload)
            answers[workload.key] |= {
                "warm": {
                    "seconds": found.seconds,
                    "schedule": found.candidate.schedule,
                    "tried": len(found.trials),
                },
                "rank 1": {"schedule": found.trials[0].candidate.schedule},
            }
            told = {side: (own.get("seconds"), own.get("tried")) for side, own in answers[workload.key].items()}
            print(workload.name, told, flush=True)
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


def compare(arguments: argparse.Namespace) -> None:
    """Run the best of each again, in turns."""
    work = arguments.work
    workloads: list[Workload] = read_workloads(work / "workloads.jsonl")
    answers = json.loads((work / "ours.json").read_text())
    log = work / "stock"
    tuning_s = json.loads((log / "seconds.json").read_text())
    records = count(log).records
    rate = records / tuning_s
    tuned = {f"stock, {trials}": bests(log, trials) for trials in arguments.at}
    if (work / "guided.json").exists():
        about = json.loads((work / "guided.json").read_text())
        print(f"lorien tune --model: {about['seconds'] / len(workloads):.1f} s a workload")
        tuned = {f"lorien tune --model, {about['trials']}": bests(Path(about["log"]), about["trials"]), **tuned}
    asked = ["rank 1", "warm", "cold", "cold, auto"]
    timed = asked[1:]
    sides = ["default", *asked, *tuned]
    rows: list[list[Any]] = []
    scores: list[list[Any]] = []
    ranker = load_ranker(work / "models", native_target(), "metaschedule")
    with Measurer("metaschedule", native_target(), CAREFUL) as measurer:
        for workload in workloads:
            answer = answers[workload.key]
            candidates = [Candidate(None), *(Candidate(answer[side]["schedule"]) for side in asked)]
            candidates += [found[workload.key] for found in tuned.values()]
            # Measured by itself: the others are compared with each other.
            again = [measurer.measure(workload, candidates[:1])[0].latency_s or math.nan]
            again += in_turns(measurer, workload, candidates[1:])
            rows.append([workload.name, *(s * 1e3 for s in again), *(answer[side]["seconds"] for side in timed)])
            scores.append([workload.name, *ranker.rank(workload, candidates)])
            print(rows[-1], flush=True)
    times: list[Any] = ["geometric mean, times the last"]
    for index in range(1, 1 + len(sides)):
        ratios = [row[len(sides)] / row[index] for row in rows]
        times.append(statistics.geometric_mean(ratios))
    seconds = {side: statistics.fmean(answer[side]["seconds"] for answer in answers.values()) for side in timed}
    columns = ["ms", *sides, *(f"{side} s" for side in timed)]
    print(f"\n{machine()}\n\n{markdown(columns, [*rows, [*times, *seconds.values()]])}\n")
    print(f"{markdown(['score', *sides], scores)}\n")
    print(f"stock: {records} trials in {tuning_s:.0f} s, {rate:.2f}/s")
    for trials in arguments.at:
        stock_s = trials / rate
        print(f"{trials} trials of a workload: {stock_s:.0f} s, {stock_s / seconds['cold']:.0f}x a cold answer")


def drafts(arguments: argparse.Namespace) -> None:
    """The same model, the same seconds of search, with drafts and without: two seeds of each."""
    work, target = arguments.work, native_target()
    ranker = load_ranker(work / "models", target, "metaschedule")
    dialect = open_live_dialect("metaschedule")
    tuned = bests(work / "stock", arguments.trials)
    ways = [(seconds, hints) for seconds in arguments.seconds for hints in ({}, ranker.hints)]
    speeds: list[list[tuple[float, float]]] = [[] for _ in ways]
    with Measurer("metaschedule", target) as measurer:
        for workload in read_workloads(work / "workloads.jsonl"):
            for seed in (0, 1):
                found = [
                    dialect.search(workload, target, 4 * TOP_K, ranker.guide, seed=seed, budget_s=seconds, **hints)
                    for seconds, hints in ways
                ]
                for own, candidates in zip(speeds, found, strict=True):
                    asked = [tuned[workload.key], *candidates[:TOP_K]]
                    stock_s, *ours_s = [m.latency_s or math.inf for m in measurer.measure(workload, asked)]
                    own.append((stock_s / ours_s[0], stock_s / min(ours_s)))
            print(workload.name, [own[-1] for own in speeds], flush=True)
    columns = ["seconds of search", "drafts", "rank 1", f"best of {TOP_K}"]
    rows = [
        [
            seconds,
            "yes" if hints else "no",
            *(math.prod(side) ** (1 / len(side)) for side in zip(*own, strict=True)),  # 0 where a candidate failed
        ]
        for (seconds, hints), own in zip(ways, speeds, strict=True)
    ]
    print(f"\nSpeed, of stock's after {arguments.trials} trials, {machine()}\n\n{markdown(columns, rows)}")


PARTS = {"prepare": prepare, "stock": stock, "ours": ours, "guided": guided, "compare": compare, "drafts": drafts}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--work", type=Path, required=True, help="folder of what the parts hand on")
    parser.add_argument("--data", type=Path, help="prepare's: data sets")
    parser.add_argument("--logs", type=Path, help="prepare's: logs to learn from in place of the data sets'")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--workloads", type=int, default=8)
    parser.add_argument("--trials", type=int, default=256, help="stock's, for each workload")
    parser.add_argument("--guided-trials", type=int, default=32, help="guided's, for each workload")
    parser.add_argument("--at", type=int, nargs="+", default=[64, 256], help="trials to compare with")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0], help="drafts': of search")
    parser.add_argument("--cold", type=float, default=10.0, help="seconds for a cold answer")
    parser.add_argument("--warm", type=float, default=4.0, help="seconds for a warm answer")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
