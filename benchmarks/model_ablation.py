"""What groups of features are worth: held-out scores with all columns, and without each group.

    python benchmarks/model_ablation.py --features FEATURES [--seeds 3] [--networks NETWORK…]

FEATURES are tables of one target. Each network is held out in turn, with every workload it shares with another; the
score is that of three boosters of preset ``fast`` added (plain, random cuts, LambdaRank), for each of the seeds, and
the mean is over networks and seeds. The preset bags and weights them and two more with AutoGluon. One core.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import machine, markdown
from model_members import fit

from lorien.featurize.splits import split_holdout
from lorien.models.data import Rows, group_tables, read_features, read_rows
from lorien.models.metrics import ranking_scores
from lorien.models.presets import PRESETS
from lorien.models.sampling import sample_rows

PRESET = PRESETS["fast"]
GROUPS = {
    "metaschedule": {
        "the main store": r"main_",
        "sums over stores": r"sum_",
        "the trace's tiles": r"trace_",
        "the workload": r"workload_",
        "intensity curve": r"(main|sum)_intensity",
    },
    "autotvm": {
        "tile factors": r"([bfyxc]|r[yx])_(\d|out|tile)",
        "what tiling implies": r"(inner|reg|block|in|weight|out|tile)_[tfi]|red_|footprint|shared|reg_reuse|traffic",
        "threads and occupancy": r"blocks|threads|vthreads|warp|.*_loads|body|thread_work|resident|waves",
        "vectors and cores": r"parallel|vec|unrolled|waste|c_over_f",
        "options": r"unroll_|reorder|ann_|other_",
        "the workload": r"w_|is_",
    },
}


def score(features: np.ndarray, value: np.ndarray, workload: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Scores (test rows,) of three boosters of the preset, each brought to the same spread, added."""
    scores = []
    for family, name in (("GBM", "Plain"), ("GBM", "Extra"), ("GBM_RANK", "Lambda")):
        settings = PRESET.settings(family, name) | {"seed": seed}
        scores.append(np.asarray(fit(family, settings, features, value, workload)(test)))
    return np.sum([(one - one.mean()) / (one.std() or 1.0) for one in scores], axis=0)


def held_out(rows: Rows, matrix: np.ndarray, networks: Sequence[str], seeds: int) -> list[float]:
    """Mean top-1, top-5 and worst top-10 over networks and seeds."""
    value = rows.candidates(rows.all()).value()
    ran = np.bincount(rows.workload, weights=value, minlength=len(rows.keys)) > 0
    found = []
    for network in networks:
        learn, test = split_holdout(rows.workload_keys(), rows.network_names(), network)
        learn &= ran[rows.workload]
        learn[learn] = sample_rows(rows.workload[learn], value[learn], PRESET.max_rows, 0)
        for seed in range(seeds):
            scores = score(matrix[learn], value[learn], rows.workload[learn], matrix[test], seed)
            result = ranking_scores(rows.candidates(test), scores)
            found.append([result[name] for name in ("top1_mean", "top5_mean", "min_top10")])
    return [float(mean) for mean in np.mean(found, axis=0)]


def main() -> None:
    """All columns, then each group left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=())
    arguments = parser.parse_args()
    (group,) = group_tables(arguments.features)
    rows = read_rows(group)
    matrix = read_features(group, rows.all())
    networks = arguments.networks or [name for name in rows.networks if name]
    lines = [["all", matrix.shape[1], *held_out(rows, matrix, networks, arguments.seeds)]]
    print(lines[0], flush=True)
    for name, pattern in GROUPS[group.dialect].items():
        kept = [index for index, column in enumerate(group.features.names) if not re.match(pattern, column)]
        lines.append([f"without {name}", len(kept), *held_out(rows, matrix[:, kept], networks, arguments.seeds)])
        print(lines[-1], flush=True)
    title = f"{group.dialect} {group.target}, {', '.join(networks)} held out in turn, {arguments.seeds} seeds"
    print(f"\n{title}, {machine()}\n\n{markdown(['columns', 'count', 'top1_mean', 'top5_mean', 'min_top10'], lines)}")


if __name__ == "__main__":
    main()
