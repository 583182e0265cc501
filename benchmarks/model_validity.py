"""Would a model of its own for failures rank better? Plain LightGBM, each network held out in turn.

    python benchmarks/model_validity.py --features FEATURES…

For every network of a target: the area under the ROC curve with which a classifier (does the candidate build and run?)
and the regression (best / latency, 0 for a failure) tell what ran from what failed; and the top-k scores of ranking by
the regression, by the classifier's probability times a regression over what ran, and by that regression alone.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from harness import machine, markdown
from sklearn.metrics import roc_auc_score

from lorien.featurize.splits import split_holdout
from lorien.models.data import Tables, group_tables, read_features, read_rows
from lorien.models.metrics import ranking_scores
from lorien.models.presets import PRESETS
from lorien.models.sampling import row_weights, sample_rows

ROUNDS = 200
MAX_ROWS = 30_000
SETTINGS = PRESETS["fast"].hyperparameters["GBM"][0]


def fit(features: Any, label: Any, workload: Any, objective: str) -> Any:
    """The preset's plain LightGBM with another objective."""
    settings = {k: v for k, v in SETTINGS.items() if k not in ("ag_args", "num_boost_round")}
    data = lightgbm.Dataset(features, label, weight=row_weights(workload))
    return lightgbm.train({**settings, "objective": objective, "seed": 0, "verbose": -1}, data, ROUNDS)


def rows_of(group: Tables) -> list[list[Any]]:
    """A line for each network of one target."""
    rows = read_rows(group)
    value, ran = rows.candidates(rows.all()).value(), np.isfinite(rows.latency_s)
    lines = []
    for network in sorted(rows.networks):
        learn, test = split_holdout(rows.workload_keys(), rows.network_names(), network)
        learn[learn] = sample_rows(rows.workload[learn], value[learn], MAX_ROWS, 0)
        seen, asked = read_features(group, learn), read_features(group, test)
        label, valid, workload = value[learn], ran[learn], rows.workload[learn]
        score = fit(seen, label, workload, "regression").predict(asked)
        chance = fit(seen, valid.astype(float), workload, "binary").predict(asked)
        if_valid = fit(seen[valid], label[valid], workload[valid], "regression").predict(asked)
        line: list[Any] = [group.target, network, 1 - float(ran[test].mean())]
        line += [float(roc_auc_score(ran[test], by)) for by in (chance, score)]
        for ranking in (score, chance * if_valid, if_valid):
            found = ranking_scores(rows.candidates(test), ranking)
            line += [found["top1_mean"], found["top5_mean"]]
        lines.append(line)
        print(*line, flush=True)
    return lines


def main() -> None:
    """Score every target whose tables are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, nargs="+", required=True)
    lines = [line for path in parser.parse_args().features for group in group_tables(path) for line in rows_of(group)]
    scores = [f"{name} top-{k}" for name in ("score", "product", "if valid") for k in (1, 5)]
    columns = ["target", "held out", "failed", "AUC of the classifier", "AUC of the score", *scores]
    mean = ["mean", None, *(statistics.fmean(line[i] for line in lines) for i in range(2, len(columns)))]
    print(f"\n{machine()}\n\n{markdown(columns, [*lines, mean])}")


if __name__ == "__main__":
    main()
