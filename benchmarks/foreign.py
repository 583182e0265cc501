"""What a model of another CPU is worth here, for a network and a machine that it knows nothing of.

    python benchmarks/foreign.py --logs LOGS --work FOLDER [--network squeezenet] [--workloads 12] [--trials 32]

Trains on LOGS, but for the network where they have it. Builds and runs random schedules of the network's heaviest
workloads on this machine, has the model rank them, and answers the workloads with it, in one ``lorien rank --verify``.
The answers and the best of the random schedules are run once more at the end, in turns. The random schedules stay in
FOLDER, and are not made again. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from harness import machine, markdown, run
from model_curves import networks_of
from tune import CAREFUL, bests, in_turns
from zero_shot import TOP_K, onnx_model

from lorien.cli.workloads import read_workloads
from lorien.dialects.metaschedule.workload import native_target
from lorien.featurize.schema import is_of
from lorien.records import Candidate
from lorien.tune.measure import Measurer

SEARCH_S = 6
SCORES = ("workloads", "records", "top1_mean", "top5_mean", "spearman_mean", "random_top1_mean", "random_top5_mean")


def random_session(work: Path, network: str, workloads: int, trials: int) -> Path:
    """The log of random schedules of the network's heaviest workloads."""
    about = work / "random.json"
    if not about.exists():
        asked, heaviest = work / "workloads.jsonl", ("--heaviest", str(workloads))
        run("lorien", "extract", onnx_model(network), "--target", "native", *heaviest, "-o", asked)
        limits = ("--trials", str(workloads * trials), "--trials-per-workload", str(trials))
        done = run("lorien", "tune", asked, "--strategy", "replay", *limits, "--logs", work / "random")
        about.write_text(json.dumps(done.value))
    return Path(json.loads(about.read_text())["session"])


def main() -> None:
    """Train, run at random, rank, answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, required=True, help="MetaSchedule logs of another machine")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep logs, tables and models in")
    parser.add_argument("--network", default="squeezenet")
    parser.add_argument("--workloads", type=int, default=12)
    parser.add_argument("--trials", type=int, default=32, help="random schedules of each")
    arguments = parser.parse_args()
    work, network = arguments.work, arguments.network
    work.mkdir(parents=True, exist_ok=True)
    session = random_session(work, network, arguments.workloads, arguments.trials)

    models, own = work / "models", work / "own"
    run("lorien", "ingest", arguments.logs, "--dialect", "metaschedule", "--logs", work / "logs")
    run("lorien", "featurize", work / "logs", "-o", work / "features")
    there = any(is_of(name, network) for name in networks_of(work / "features"))
    held_out = ("--holdout-network", network) if there else ()
    run("lorien-train", work / "features", "-o", models, *held_out, "--reuse")
    run("lorien", "featurize", work / "random", "-o", own)
    (scores,) = run("lorien", "evaluate", own, "--models", models).value["targets"].values()
    print(f"\n{network}'s random schedules, {machine()}, the model of {scores['model']}\n")
    print(markdown(SCORES, [[scores[name] for name in SCORES]]), flush=True)

    workloads = read_workloads(work / "workloads.jsonl")
    (work / "answers.db").unlink(missing_ok=True)
    verified = ("--verify", "--top-k", str(TOP_K), "--search-s", str(SEARCH_S))
    kept = ("--models", models, "--db", f"sqlite:///{work / 'answers.db'}")
    done = run("lorien", "rank", work / "workloads.jsonl", *kept, *verified)
    answers = {answer["key"]: answer for answer in done.value["workloads"]}
    best = bests(session)
    rows: list[list[Any]] = []
    with Measurer("metaschedule", native_target(), CAREFUL) as measurer:
        for workload in workloads:
            answer = answers[workload.key]
            again_s = in_turns(measurer, workload, [best[workload.key], Candidate(answer["schedule"])])
            first_s = answer["rank1_latency_s"] or math.nan
            first = answer["best_latency_s"] / first_s * again_s[0] / again_s[1]
            default_s = answer["default_latency_s"] or math.nan
            rows.append([workload.name, default_s * 1e3, *(s * 1e3 for s in again_s), first, again_s[0] / again_s[1]])
            print(rows[-1], flush=True)
    means = [statistics.geometric_mean(row[i] for row in rows if math.isfinite(row[i])) for i in (4, 5)]
    columns = ["ms", "default", f"best of {arguments.trials} random", f"verified top {TOP_K}", "rank 1, times", "times"]
    print(f"\n{markdown(columns, [*rows, ['geometric mean', *[None] * 3, *means]])}\n")
    print(f"lorien rank: {done.seconds / len(workloads):.1f} s a workload")


if __name__ == "__main__":
    main()
