"""Schedules for workloads nobody has tuned: how good, how fast, against what tuning found.

    python benchmarks/zero_shot.py --data DATASETS [--network squeezenet]

Trains on every MetaSchedule log but the network's, asks for its six heaviest convolutions, cold, one `lorien rank
--verify` each, and compares with the best of the up to 64 trials in the network's own log: with the latency in the log,
and with what the log's three fastest schedules do when they are built and run here, right after ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import machine, markdown, run

if TYPE_CHECKING:
    from lorien.target import Target

TOP_K = 8
WORKLOADS = 6
AGAIN = 3


def onnx_model(network: str) -> Path:
    """The network's real graph, which ships in the onnx package."""
    import onnx

    return Path(onnx.__file__).parent / f"backend/test/data/light/light_{network}.onnx"


def tuned(logs: Path, network: str, workload_key: str, target: Target) -> tuple[float | None, float | None]:
    """(lowest latency in the log, lowest when its three fastest schedules are built and run again here), in seconds."""
    from lorien.database import open_database
    from lorien.tune.measure import Measurer

    with open_database(f"sqlite:///{logs.parent / 'tuned.db'}") as database:
        records = list(itertools.islice(database.query(workload=workload_key, network=network), AGAIN))
    with Measurer("metaschedule", target) as measurer:
        again = measurer.measure(records[0].workload, [record.candidate for record in records])
    return records[0].measurement.latency_s, min((m.latency_s for m in again if m.latency_s), default=None)


def main() -> None:
    """Train, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", default="squeezenet")
    arguments = parser.parse_args()
    data: Path = arguments.data
    network: str = arguments.network

    from lorien.cli.workloads import read_workloads
    from lorien.dialects import resolve_target

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        logs, features, models = scratch / "logs", scratch / "features", scratch / "models"
        run("lorien", "ingest", data / "metaschedule", "--dialect", "metaschedule", "--logs", logs)
        run("lorien", "featurize", logs, "-o", features)
        run("lorien-train", features, "-o", models, "--holdout-network", network)
        run("lorien", "commit", "--logs", logs, "--db", f"sqlite:///{scratch / 'tuned.db'}")
        run(
            *("lorien", "extract", onnx_model(network), "--target", "native", "--match", "conv2d"),
            *("--heaviest", str(WORKLOADS), "-o", scratch / "all.jsonl"),
        )
        target = resolve_target("native")
        for workload in read_workloads(scratch / "all.jsonl"):
            one = scratch / "one.jsonl"
            one.write_text(json.dumps(workload.to_json()) + "\n")
            done = run("lorien", "rank", one, "--models", models, "--verify", "--top-k", str(TOP_K))
            (answer,) = done.value["workloads"]
            logged_s, again_s = tuned(logs, network, workload.key, target)
            best_s = answer["best_latency_s"]
            rows.append(
                [
                    workload.name,
                    f"{answer['default_latency_s'] * 1e3:.2f}",
                    f"{(answer['rank1_latency_s'] or math.nan) * 1e3:.3f}",
                    f"{best_s * 1e3:.3f}",
                    f"{logged_s * 1e3:.3f}" if logged_s else None,
                    f"{again_s * 1e3:.3f}" if again_s else None,
                    logged_s / best_s if logged_s else None,
                    again_s / best_s if again_s else None,
                    done.seconds,
                ]
            )
            print(rows[-1], flush=True)
    columns = ["workload", "default ms", "rank-1 ms", f"verified top-{TOP_K} ms", "tuned (log) ms", "tuned (again) ms"]
    columns += ["vs log", "vs again", "seconds, cold"]

    means = [statistics.geometric_mean(row[index] for row in rows if row[index]) for index in (6, 7, 8)]
    mean = ["geometric mean", *[None] * 5, *means]
    print(f"\n{network}, {machine()}\n\n{markdown(columns, [*rows, mean])}")


if __name__ == "__main__":
    main()
