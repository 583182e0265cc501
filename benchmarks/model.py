"""Held-out ranking scores on real logs, beside a random ranking, XGBoost as MetaSchedule configures it, and what a
model reaches that has seen other records of the same workloads.

    python benchmarks/model.py --data DATASETS --work FOLDER [--autotvm DEVICE…] [--metaschedule] [--networks N…]
        [--preset fast] [--time-limit SECONDS]
    python benchmarks/model.py --data DATASETS --work FOLDER --speed

Each network is held out in turn, with every workload it shares with another. The commands are a user's. Logs, feature
tables and models stay in FOLDER, so that a run that is cut short goes on where it was: what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import GIB, machine, markdown, run

DEVICES = ("cuda_rtx3080", "cuda_gtx1650", "x86_inteli7-3770", "x86_inteli5-1035G1", "arm_cortex-a72", "arm_cortex-a7")
SCORES = ("top1_mean", "top5_mean", "top10_mean", "min_top10", "top1_weighted", "top5_weighted", "spearman_mean")
STATED = ("coverage", "needed_median")
BASELINES = (
    "random_top1_mean",
    "random_top5_mean",
    "xgb_top1_mean",
    "xgb_top5_mean",
    "seen_top1_mean",
    "seen_top5_mean",
)
COLUMNS = (*SCORES, *STATED, *BASELINES)
# The booster of TVM's own cost model (s_tir/meta_schedule/cost_model/xgb_model.py, XGBConfig).
METASCHEDULE_XGB = {"max_depth": 10, "gamma": 0.001, "min_child_weight": 0, "eta": 0.2, "seed": 43}
XGB_ROUNDS = 100
BASELINE_ROWS = 30_000
SEEN = {"num_leaves": 127, "learning_rate": 0.1, "feature_fraction": 0.7, "seed": 0, "verbose": -1}
SEEN_ROUNDS = 200


def prepare(data: Path, work: Path, dialect: str, name: str) -> Path:
    """Logs of ``data/dialect/name`` taken in and featurized; the folder of the feature tables."""
    logs, features = work / name / "logs", work / name / "features"
    target = ["--target", name] if dialect == "autotvm" else []
    run("lorien", "ingest", data / dialect / name, "--dialect", dialect, *target, "--logs", logs)
    run("lorien", "featurize", logs, "-o", features)
    return features


def held_out(features: Path, models: Path, network: str, preset: str, *options: str | Path) -> dict[str, Any]:
    """Train without a network, then score it: what both commands say of the one target there is."""
    trained = run(
        *("lorien-train", features, "-o", models, "--preset", preset, "--holdout-network", network, "--reuse"), *options
    )
    scored = run("lorien", "evaluate", features, "--models", models, "--holdout-network", network)
    (report,) = trained.value["models"].values()
    (scores,) = scored.value["targets"].values()
    cost = {"fit_s": round(report["fit_seconds"]), "peak_gib": trained.peak_bytes / GIB}
    return {**scores, "training_rows": report["rows"], **cost}


def xgboost_scores(features: Path, network: str) -> dict[str, float]:
    """XGBoost with MetaSchedule's parameters on the same split and columns, squared error of best / latency.

    MetaSchedule's own predicts store by store and sums; its features, without the tiling decisions, are among ours.
    """
    import xgboost

    from lorien.featurize.splits import split_holdout
    from lorien.models.data import group_tables, read_features, read_rows
    from lorien.models.metrics import ranking_scores
    from lorien.models.sampling import sample_rows

    (group,) = group_tables(features)
    rows = read_rows(group)
    value = rows.candidates(rows.all()).value()
    learn, test = split_holdout(rows.workload_keys(), rows.network_names(), network)
    learn[learn] = sample_rows(rows.workload[learn], value[learn], BASELINE_ROWS, 0)
    data = xgboost.DMatrix(read_features(group, learn), value[learn])
    booster = xgboost.train(METASCHEDULE_XGB, data, XGB_ROUNDS)
    score = booster.predict(xgboost.DMatrix(read_features(group, test))).astype(np.float64)
    found = ranking_scores(rows.candidates(test), score)
    return {"xgb_top1_mean": found["top1_mean"], "xgb_top5_mean": found["top5_mean"]}


def seen_scores(features: Path, network: str) -> dict[str, float]:
    """What is to be had at all: a model that has seen half of the records of every workload ranks the other half.

    Records are halved at random. What such a model misses of the best is noise in the measurements, or nothing the
    features tell.
    """
    import lightgbm

    from lorien.featurize.schema import is_of
    from lorien.models.data import group_tables, read_features, read_rows
    from lorien.models.metrics import ranking_scores

    (group,) = group_tables(features)
    rows = read_rows(group)
    chosen = np.array([is_of(name, network) for name in rows.network_names()])
    candidates = rows.candidates(chosen)
    value, matrix = candidates.value(), np.column_stack([read_features(group, chosen), candidates.workload])
    half = np.random.default_rng(0).integers(0, 2, len(value))
    score = np.empty(len(value))
    for part in (0, 1):
        data = lightgbm.Dataset(matrix[half != part], value[half != part], categorical_feature=[matrix.shape[1] - 1])
        score[half == part] = lightgbm.train(SEEN, data, SEEN_ROUNDS).predict(matrix[half == part])
    found = ranking_scores(candidates, score)
    return {"seen_top1_mean": found["top1_mean"], "seen_top5_mean": found["top5_mean"]}


def scores_of(features: Path, work: Path, network: str, preset: str, *options: str) -> dict[str, Any]:
    """All columns of one row of the table."""

    def ours() -> dict[str, Any]:
        return held_out(features, work / f"models-{preset}" / network, network, preset, *options)

    def baselines() -> dict[str, Any]:
        return xgboost_scores(features, network) | seen_scores(features, network)

    return kept_or(work / f"{network}-baselines.json", baselines) | kept_or(
        work / f"{'-'.join((network, preset, *options))}.json", ours
    )


def kept_or(done: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file has, or what is made and written there when there is none."""
    if not done.exists():
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text(json.dumps(make()))
    return dict(json.loads(done.read_text()))


def print_table(title: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Rows of (name, scores) and their mean."""
    about = ("training_rows", "fit_s", "peak_gib", "workloads")
    columns = ["held out", *about, *COLUMNS]
    lines = [[name, *(s[c] for c in (*about, *COLUMNS))] for name, s in rows]
    first = 1 + len(about)
    mean = ["mean", *[None] * len(about), *(statistics.fmean(x[i] for x in lines) for i in range(first, len(columns)))]
    print(f"\n{title}, {machine()}\n\n{markdown(columns, [*lines, mean])}", flush=True)


def compare(
    data: Path, work: Path, dialect: str, name: str, networks: Sequence[str], preset: str, *options: str
) -> None:
    """One table: each network of a device held out in turn."""
    features = prepare(data, work, dialect, name)
    found = sorted(path.name.split(".")[0] for path in (data / dialect / name).iterdir())
    rows = []
    for network in found:
        if not networks or network in networks:
            rows.append((network, scores_of(features, work / name, network, preset, *options)))
            print(name, *rows[-1], flush=True)
    print_table(f"{dialect} {name}, each network held out in turn, preset {' '.join((preset, *options))}", rows)


def speed(data: Path, work: Path, preset: str) -> None:
    """Scores from features on one core, cold and warm, with the model of one device."""
    device, network = "x86_inteli7-3770", "vgg-16"
    features = prepare(data, work, "autotvm", device)
    models = work / device / f"models-{preset}" / network
    held_out(features, models, network, preset)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from lorien.models import load_ranker
    from lorien.models.data import group_tables, read_features, read_rows

    (group,) = group_tables(features)
    matrix = read_features(group, read_rows(group).all())
    ranker = load_ranker(models, device)

    def times_s(rows: int, repeat: int) -> list[float]:
        taken = []
        for index in range(repeat):
            part = matrix[index * rows : (index + 1) * rows]
            started_s = time.perf_counter()
            ranker.score(part)
            taken.append(time.perf_counter() - started_s)
        return sorted(taken)

    script = "import sys; from lorien.models import load_ranker; load_ranker(sys.argv[1], sys.argv[2])"
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, models, device], check=True)
    cold_s = time.perf_counter() - started_s
    bulk, warm = times_s(20_000, 3), times_s(512, 100)
    rows = [[preset, ranker._scorer.trees.trees, 20_000 / bulk[1], 1000 * warm[50], 1000 * warm[95], cold_s]]
    columns = ["preset", "trees", "candidates/s", "512 candidates p50 ms", "p95 ms", "Python and loading, cold, s"]
    print(f"\nScores from features on one core, {machine()}\n\n{markdown(columns, rows)}", flush=True)


def main() -> None:
    """Run what was asked for; every device and MetaSchedule by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder to keep logs, tables and models in")
    parser.add_argument("--autotvm", nargs="*", metavar="DEVICE", help="these devices, or all")
    parser.add_argument("--metaschedule", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--networks", nargs="*", default=(), help="hold out only these")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--time-limit", metavar="SECONDS", help="for each model, in place of the preset's")
    arguments = parser.parse_args()
    if arguments.speed:
        speed(arguments.data, arguments.work, arguments.preset)
        return
    both = arguments.autotvm is None and not arguments.metaschedule
    targets = [("autotvm", name) for name in arguments.autotvm or DEVICES if both or arguments.autotvm is not None]
    if both or arguments.metaschedule:
        targets += [("metaschedule", path.name) for path in sorted((arguments.data / "metaschedule").iterdir())]
    options = ("--time-limit", arguments.time_limit) if arguments.time_limit else ()
    for dialect, name in targets:
        compare(arguments.data, arguments.work, dialect, name, arguments.networks, arguments.preset, *options)


if __name__ == "__main__":
    main()
