"""What each model of the presets is worth alone: held-out scores, and the seconds of one fit.

    python benchmarks/model_members.py --features FEATURES [--presets fast best] [--networks A B…]

FEATURES are tables of one target. Networks are held out two at a time, with every workload they share with others, and
each of the two is scored: a choice between models that is made by this table has a training set of its own for every
network. One fit of each model on one core, without AutoGluon, which bags and weights them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import machine, markdown

from lorien.featurize.splits import split_holdout
from lorien.models.data import group_tables, read_features, read_rows
from lorien.models.grouped import encode
from lorien.models.lower import Scaled
from lorien.models.metrics import ranking_scores
from lorien.models.presets import PRESETS
from lorien.models.rankers import MAX_QUERY, RANKERS, Queries
from lorien.models.sampling import row_weights, sample_rows

THREADS = 1
Predict = Callable[[np.ndarray], np.ndarray]


def fit(
    family: str, settings: dict[str, Any], features: np.ndarray, value: np.ndarray, workload: np.ndarray
) -> Predict:
    """One booster on all rows given."""
    weight = row_weights(workload)
    settings = {key: setting for key, setting in settings.items() if key != "ag_args"}
    ranker = {ranker.ag_key: ranker for ranker in RANKERS}.get(family)
    if ranker is not None:
        trees, longest = settings.pop("trees"), settings.pop("max_query", MAX_QUERY)
        queries = Queries.of(pd.DataFrame(features), encode(value, workload), weight, longest)
        return Scaled(ranker.boost(settings, trees, queries, None, THREADS, lambda: False), 1.0, 0.0).predict
    if family == "GBM":
        import lightgbm

        rounds = settings.pop("num_boost_round")
        data = lightgbm.Dataset(features, value, weight=weight)
        return lightgbm.train({**settings, "num_threads": THREADS, "verbose": -1}, data, rounds).predict
    if family == "XGB":
        import xgboost

        return xgboost.XGBRegressor(**settings, n_jobs=THREADS).fit(features, value, sample_weight=weight).predict
    import catboost

    settings |= {"thread_count": THREADS, "allow_writing_files": False, "verbose": False}
    return catboost.CatBoostRegressor(**settings).fit(features, value, sample_weight=weight).predict


def members(names: list[str]) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """(name, rows, family, settings) of each model of the presets."""
    for name in names:
        for family, models in PRESETS[name].hyperparameters.items():
            for model in models:
                yield f"{name} {family}{model['ag_args']['name_suffix']}", PRESETS[name].max_rows, family, model


def main() -> None:
    """One line for each model: seconds, and the means over networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--networks", nargs="*", default=())
    arguments = parser.parse_args()
    (group,) = group_tables(arguments.features)
    rows = read_rows(group)
    matrix = read_features(group, rows.all())
    value = rows.candidates(rows.all()).value()
    ran = np.bincount(rows.workload, weights=value, minlength=len(rows.keys)) > 0
    networks = sorted(arguments.networks or [name for name in rows.networks if name])
    found: dict[str, list[list[float]]] = defaultdict(list)
    for pair in (networks[at : at + 2] for at in range(0, len(networks), 2)):
        splits = {network: split_holdout(rows.workload_keys(), rows.network_names(), network) for network in pair}
        learn = np.logical_and.reduce([split[0] for split in splits.values()]) & ran[rows.workload]
        for name, most, family, settings in members(arguments.presets):
            learned = learn.copy()
            learned[learned] = sample_rows(rows.workload[learned], value[learned], most, 0)
            started_s = time.perf_counter()
            predict = fit(family, settings, matrix[learned], value[learned], rows.workload[learned])
            seconds = time.perf_counter() - started_s
            for network, (_, test) in splits.items():
                scores = ranking_scores(rows.candidates(test), np.asarray(predict(matrix[test]), dtype=np.float64))
                row = [int(learned.sum()), seconds, *(scores[f"top{k}_mean"] for k in (1, 5, 10))]
                found[name].append(row)
                print(name, network, row, flush=True)
    means = {name: [statistics.fmean(column) for column in zip(*values, strict=True)] for name, values in found.items()}
    lines = [[name, round(used), *rest] for name, (used, *rest) in means.items()]
    title = f"{group.dialect} {group.target}, {', '.join(networks)} held out in pairs"
    columns = ["model", "rows", "fit s", "top1_mean", "top5_mean", "top10_mean"]
    print(f"\n{title}, {machine()}\n\n{markdown(columns, lines)}")


if __name__ == "__main__":
    main()
