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


PRESETS = {
    "fast": Preset(
        folds=4,
        max_rows=30_000,
        time_limit_s=150,
        hyperparameters={
            "GBM": [
                _named("deep", num_boost_round=300, learning_rate=0.05, num_leaves=63, feature_fraction=0.5),
            ],
        },
    ),
    "best": Preset(
        folds=8,
        max_rows=200_000,
        time_limit_s=3600,
        hyperparameters={
            "GBM": [
                _named("deep", num_boost_round=800, learning_rate=0.03, num_leaves=63, feature_fraction=0.5),
            ],
            "XGB": [_named("hist", n_estimators=600, learning_rate=0.05, max_depth=8, colsample_bytree=0.5)],
            "CAT": [_named("oblivious", iterations=800, learning_rate=0.06, depth=7)],
        },
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises ``BadInput``."""
    if name not in PRESETS:
        raise BadInput(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
