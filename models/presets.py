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
        AutoGluon's: family to a list of settings, in the order in which they are fitted: where time is short, the last
        are left out. Families are those ``lower`` can export.
    """

    folds: int
    max_rows: int
    time_limit_s: float
    hyperparameters: dict[str, list[dict[str, Any]]]

    @property
    def models(self) -> int:
        """Models of all families."""
        return sum(map(len, self.hyperparameters.values()))

    def settings(self, family: str, name: str) -> dict[str, Any]:
        """What one of the models is fitted with: its entry, without what only AutoGluon reads."""
        entry = next(e for e in self.hyperparameters[family] if e["ag_args"]["name_suffix"] == f"_{name}")
        return {key: value for key, value in entry.items() if key != "ag_args"}


def _named(name: str, **settings: Any) -> dict[str, Any]:
    return {**settings, "ag_args": {"name_suffix": f"_{name}"}}


# Columns and rows are drawn at random for each tree: the folds and the ways to grow trees then err apart, and their
# mean errs less than any of them. Settings were chosen by cross-validation over workloads of AutoTVM and MetaSchedule
# logs, where rows beyond some 300 a workload, deeper trees and label transforms made no difference that repeated.
_TREES = {
    "num_leaves": 63,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "max_bin": 127,
    # Left to itself, LightGBM times two algorithms that round differently and takes the faster.
    "deterministic": True,
    "force_col_wise": True,
}

_SMOOTH = _TREES | {"min_data_in_leaf": 50, "lambda_l2": 10.0, "path_smooth": 10.0}

_LAMBDA = _TREES | {"objective": "lambdarank", "lambdarank_truncation_level": 30}

# Its loss shares one unit of probability among the candidates of a query: among a thousand it learns next to nothing.
_XENDCG = _TREES | {"objective": "rank_xendcg", "max_query": 256}

_XGB_DRAWS = {"tree_method": "hist", "colsample_bytree": 0.4, "subsample": 0.8}

# Pairs at random take less than a third of the time of those of the first 32. Pairwise ranks better so, NDCG worse.
_XGB_PAIRS = _XGB_DRAWS | {"lambdarank_pair_method": "mean", "lambdarank_num_pair_per_sample": 4}

PRESETS = {
    "fast": Preset(
        folds=4,
        max_rows=30_000,
        time_limit_s=240,
        hyperparameters={
            "GBM": [
                _named("Plain", num_boost_round=150, learning_rate=0.1, **_TREES),
                _named("Extra", num_boost_round=250, learning_rate=0.1, extra_trees=True, **_TREES),
                _named("Smooth", num_boost_round=150, learning_rate=0.1, **_SMOOTH),
            ],
            "GBM_RANK": [
                _named("Lambda", trees=200, learning_rate=0.1, **_LAMBDA),
                _named("Xendcg", trees=200, learning_rate=0.1, **_XENDCG),
            ],
        },
    ),
    "best": Preset(
        folds=4,
        max_rows=100_000,
        time_limit_s=1700,
        hyperparameters={
            "GBM": [
                _named("Plain", num_boost_round=250, learning_rate=0.08, **_TREES),
                _named("Extra", num_boost_round=400, learning_rate=0.1, extra_trees=True, **_TREES),
                _named("Smooth", num_boost_round=250, learning_rate=0.08, **_SMOOTH),
            ],
            "GBM_RANK": [
                _named("Lambda", trees=200, learning_rate=0.1, **_LAMBDA),
                _named("Xendcg", trees=300, learning_rate=0.1, **_XENDCG),
            ],
            "CAT": [_named("Oblivious", iterations=300, learning_rate=0.12, depth=6, rsm=0.4)],
            "XGB": [_named("Hist", n_estimators=200, learning_rate=0.1, max_depth=8, **_XGB_DRAWS)],
            # The dearest come last.
            "XGB_RANK": [
                _named("Pairwise", trees=120, objective="rank:pairwise", eta=0.12, max_depth=8, **_XGB_PAIRS),
                _named("Ndcg", trees=120, objective="rank:ndcg", eta=0.12, max_depth=8, **_XGB_PAIRS),
            ],
            "CAT_RANK": [_named("Yeti", trees=60, loss_function="YetiRank", learning_rate=0.2, depth=6, max_query=64)],
        },
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises ``BadInput``."""
    if name not in PRESETS:
        raise BadInput(f"no preset {name!r}. Fix: --preset {' or '.join(PRESETS)}")
    return PRESETS[name]
