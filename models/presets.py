"""What ``--preset`` means: rows, folds, and the models AutoGluon may choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorien.errors import BadInput


@dataclass(frozen=True)
class Preset:
    """How much to spend on one model.

    Parameters
    ----------
    folds : int
        Workload folds of the bagging: each model is fitted that many times.
    max_rows : int
        Training rows above this are sampled down, workload by workload.
    time_limit_s : float
        Seconds AutoGluon may take, unless the caller says otherwise.
    hyperparameters : dict
        AutoGluon's: family to a list of settings. Families are those ``lower`` can export.
    """

    folds: int
    max_rows: int
    time_limit_s: float
    hyperparameters: dict[str, list[dict[str, Any]]]


def _named(name: str, **settings: Any) -> dict[str, Any]:
    return {**settings, "ag_args": {"name_suffix": f"_{name}"}}


# Each column, row and split is drawn at random: the folds and the two ways to grow trees then err apart, and their mean
# less than any of them. Settings were chosen by cross-validation over workloads of AutoTVM and MetaSchedule logs, where
# rows beyond some 300 a workload, deeper trees and label transforms made no difference that repeated.
_ROWS = {"bagging_fraction": 0.8, "bagging_freq": 1, "min_data_in_leaf": 20, "max_bin": 127}

PRESETS = {
    "fast": Preset(
        folds=4,
        max_rows=30_000,
        time_limit_s=150,
        hyperparameters={
            "GBM": [
                _named("Plain", num_boost_round=150, learning_rate=0.1, num_leaves=63, feature_fraction=0.4, **_ROWS),
                _named(
                    "Extra",
                    num_boost_round=250,
                    learning_rate=0.1,
                    num_leaves=63,
                    feature_fraction=0.4,
                    extra_trees=True,
                    **_ROWS,
                ),
            ],
        },
    ),
    "best": Preset(
        folds=8,
        max_rows=100_000,
        time_limit_s=3600,
        hyperparameters={
            "GBM": [
                _named("Plain", num_boost_round=500, learning_rate=0.04, num_leaves=63, feature_fraction=0.4, **_ROWS),
                _named(
                    "Extra",
                    num_boost_round=800,
                    learning_rate=0.05,
                    num_leaves=63,
                    feature_fraction=0.4,
                    extra_trees=True,
                    **_ROWS,
                ),
            ],
            "XGB": [
                _named("Hist", n_estimators=400, learning_rate=0.05, max_depth=8, colsample_bytree=0.4, subsample=0.8)
            ],
            "CAT": [_named("Oblivious", iterations=600, learning_rate=0.08, depth=6, rsm=0.4)],
        },
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises ``BadInput``."""
    if name not in PRESETS:
        raise BadInput(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
