"""Held-out ranking scores on real logs, beside a random ranking.

    python benchmarks/model.py --data DATASETS [--autotvm] [--metaschedule] [--preset fast]

AutoTVM: per device, vgg-16 is held out and every workload it shares is dropped from training. MetaSchedule: each
network is held out in turn. The commands are a user's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import machine, markdown, run

DEVICES = ("cuda_rtx3080", "cuda_gtx1650", "x86_inteli7-3770", "x86_inteli5-1035G1", "arm_cortex-a72", "arm_cortex-a7")
HELD_OUT = "vgg-16"
SCORES = ("top1_mean", "top5_mean", "top10_mean", "top1_weighted", "top5_weighted", "min_top10", "spearman_mean")
RANDOM = ("random_top1_mean", "random_top5_mean")


def held_out(features: Path, models: Path, network: str, preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train without a network, then score it: (training report, scores) of the one target there is."""
    trained = run("lorien-train", features, "-o", models, "--preset", preset, "--holdout-network", network)
    scored = run("lorien", "evaluate", features, "--models", models, "--holdout-network", network)
    (report,) = trained.value["models"].values()
    (scores,) = scored.value["targets"].values()
    return report, scores


def print_table(title: str, rows: list[list[Any]]) -> None:
    """Rows of (name, training rows, fit seconds, workloads, scores…) and their mean."""
    columns = ["held out", "training rows", "fit s", "workloads", *SCORES, *RANDOM]
    mean = ["mean", None, None, None, *(statistics.fmean(row[i] for row in rows) for i in range(4, len(columns)))]
    print(f"\n{title}, {machine()}\n\n{markdown(columns, [*rows, mean])}", flush=True)


def row(name: str, report: dict[str, Any], scores: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    head = [name, report["rows"], round(report["fit_seconds"]), scores["workloads"]]
    return [*head, *(scores[column] for column in (*SCORES, *RANDOM))]


def autotvm(data: Path, scratch: Path, preset: str) -> None:
    """One model per device."""
    rows = []
    for device in DEVICES:
        logs, features = scratch / device / "logs", scratch / device / "features"
        run("lorien", "ingest", data / "autotvm" / device, "--dialect", "autotvm", "--target", device, "--logs", logs)
        run("lorien", "featurize", logs, "-o", features)
        rows.append(row(device, *held_out(features, scratch / device / "models", HELD_OUT, preset)))
        print(device, rows[-1], flush=True)
    print_table(f"AutoTVM, {HELD_OUT} held out, preset {preset}", rows)


def metaschedule(data: Path, scratch: Path, preset: str) -> None:
    """One model per network held out."""
    logs, features = scratch / "logs", scratch / "features"
    (target,) = (data / "metaschedule").iterdir()
    run("lorien", "ingest", target, "--dialect", "metaschedule", "--logs", logs)
    run("lorien", "featurize", logs, "-o", features)
    rows = []
    for network in sorted(path.name for path in target.iterdir()):
        rows.append(row(network, *held_out(features, scratch / "models" / network, network, preset)))
        print(network, rows[-1], flush=True)
    print_table(f"MetaSchedule, each network held out, preset {preset}", rows)


def main() -> None:
    """Run what was asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--autotvm", action="store_true")
    parser.add_argument("--metaschedule", action="store_true")
    parser.add_argument("--preset", default="fast")
    arguments = parser.parse_args()
    both = arguments.autotvm == arguments.metaschedule
    with tempfile.TemporaryDirectory() as scratch:
        if both or arguments.autotvm:
            autotvm(arguments.data, Path(scratch) / "autotvm", arguments.preset)
        if both or arguments.metaschedule:
            metaschedule(arguments.data, Path(scratch) / "metaschedule", arguments.preset)


if __name__ == "__main__":
    main()
