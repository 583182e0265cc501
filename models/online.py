"""A model that follows a tuning session: a trained model's scores, if there is one, corrected by what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorien.models.metrics import FloatArray

if TYPE_CHECKING:
    from lorien.featurize.base import Features

PriorFn = Callable[[npt.NDArray[np.float32]], FloatArray]

FIRST_ROWS = 64
"""Measurements before the first correction: with fewer, it made rankings worse than the prior alone."""
GROWTH = 1.2
"""Refit when the measurements have grown by this factor, so that the cost stays a share of theirs."""
ROUNDS = 100
PARAMETERS = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "num_threads": 1,  # hundreds of rows: OpenMP's threads would wait for each other longer than they work
    "seed": 0,
    "verbose": -1,
}


class OnlineModel:
    """Expected fraction of the best latency, better with each measurement.

    A small booster learns the label of the performance models (best latency of the workload so far / latency, 0 for a
    failure) over all workloads of the session: what the prior leaves of it, with the prior's score as a feature.

    Parameters
    ----------
    prior : callable, optional
        Features (rows, columns) to scores (rows,): a ``Ranker.guide``. None learns from the session alone.
    """

    def __init__(self, prior: PriorFn | None) -> None:
        self._prior = prior
        self._rows: list[Features] = []
        self._latencies_s: list[FloatArray] = []
        self._workloads: list[str] = []
        self._fitted_rows = 0
        self._booster: Any = None

    def warm_up(self) -> None:
        """Load the library that learns: it takes a second, which the first correction need not wait for."""
        import lightgbm  # noqa: F401

    def ready(self, workload: str) -> bool:
        """False while there is no prior, and no correction either or none that knows the workload of that key."""
        return self._prior is not None or (self._booster is not None and workload in self._workloads)

    def score(self, rows: Features) -> FloatArray:
        """Scores (rows,) of features (rows, columns); about [0, 1], higher is better."""
        prior = self._prior_scores(rows)
        if self._booster is None:
            return prior
        corrected: FloatArray = prior + self._booster.predict(np.column_stack((rows, prior)), num_threads=1)
        return corrected

    def learn(self, workload: str, rows: Features, latencies_s: FloatArray) -> None:
        """Take in measured candidates of the workload of that key; infinite latencies are failures."""
        good = ~np.isnan(rows).all(axis=1)
        self._rows.append(rows[good])
        self._latencies_s.append(latencies_s[good])
        self._workloads += [workload] * int(good.sum())
        if len(self._workloads) >= max(FIRST_ROWS, GROWTH * self._fitted_rows):
            self._fit()

    def _prior_scores(self, rows: Features) -> FloatArray:
        return self._prior(rows) if self._prior is not None else np.zeros(len(rows))

    def _fit(self) -> None:
        import lightgbm

        rows = np.concatenate(self._rows)
        prior = self._prior_scores(rows)
        data = lightgbm.Dataset(
            np.column_stack((rows, prior)),
            _fractions(np.array(self._workloads), np.concatenate(self._latencies_s)),
            init_score=prior,
        )
        self._booster = lightgbm.train(PARAMETERS, data, ROUNDS)
        self._fitted_rows = len(rows)


def _fractions(workloads: npt.NDArray[np.str_], latencies_s: FloatArray) -> FloatArray:
    """Best latency of each row's workload / its latency; 0 where nothing ran."""
    _, index = np.unique(workloads, return_inverse=True)
    best_s = np.full(index.max() + 1, np.inf)
    np.minimum.at(best_s, index, latencies_s)
    ran = np.isfinite(latencies_s)
    fractions = np.zeros(len(latencies_s))
    fractions[ran] = best_s[index[ran]] / latencies_s[ran]
    return fractions
