"""Boosters that learn the order within a workload, as models AutoGluon can fit, bag and weight.

Labels are those of ``lorien.models.grouped``. What such a booster says has no unit and no zero; each is brought onto
the scale of the values by a line through its validation rows, so that a weighted sum of several makes sense.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from autogluon.core.models import AbstractModel

from lorien.models.grouped import decode, ranking_quality
from lorien.models.lower import Scaled
from lorien.models.metrics import FloatArray, IntArray

LEVELS = 32
"""Grades of relevance that LightGBM tells apart."""
STEEPNESS = 4.0
"""Gain of a value v is 2 ** (STEEPNESS * v) - 1: 15 for the best of a workload, 3 at half its speed."""
MAX_QUERY = 8192
"""Candidates ranked against each other at once, unless a model says fewer; LightGBM refuses more than 10,000."""
SEED = 0
PATIENCE = 60
"""Trees without a better ranking of the validation rows before a booster stops."""


@dataclass(frozen=True)
class Queries:
    """Rows sorted by workload, as learning to rank wants them.

    Parameters
    ----------
    features : array (rows, columns) of float32
    value, workload, weight : arrays (rows,)
        ``weight`` is the same for all rows of a workload.
    sizes : array (queries,) of int
        Rows of each query; a workload of more than ``max_query`` rows is cut into several, at random.
    """

    features: npt.NDArray[np.float32]
    value: FloatArray
    workload: IntArray
    weight: FloatArray
    sizes: IntArray

    @classmethod
    def of(cls, features: Any, label: Any, weight: Any, max_query: int = MAX_QUERY) -> Queries:
        """From AutoGluon's data frame and series; ``weight`` may be None."""
        value, workload = decode(label)
        # In the order of the log, a part of a workload would be a stage of its tuning.
        shuffled = np.random.default_rng(SEED).permutation(len(value))
        order = shuffled[np.argsort(workload[shuffled], kind="stable")]
        weights = np.ones(len(value)) if weight is None else np.asarray(weight, dtype=np.float64)
        sizes = []
        for rows in np.unique(workload, return_counts=True)[1]:
            parts = -(-rows // max_query)
            sizes += [len(part) for part in np.array_split(np.arange(rows), parts)]
        matrix = features.to_numpy(dtype=np.float32)[order]
        return cls(matrix, value[order], workload[order], weights[order], np.array(sizes))

    @property
    def gain(self) -> FloatArray:
        """What ranking a row first is worth: (rows,)."""
        return np.exp2(STEEPNESS * self.value) - 1

    @property
    def query_weight(self) -> FloatArray:
        """Weight of each query: (queries,)."""
        return self.weight[np.cumsum(self.sizes) - 1]

    @property
    def query(self) -> IntArray:
        """Number of each row's query: (rows,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def quality(self, score: FloatArray) -> float:
        """How well a score ranks these rows."""
        return ranking_quality(self.value, self.workload, np.asarray(score, dtype=np.float64))


Boost = Callable[[dict[str, Any], int, "Queries", "Queries | None", int, Callable[[], bool]], Any]
"""(parameters, trees, training rows, validation rows, threads, whether time is up) to a fitted booster."""


class _Ranker(AbstractModel):  # type: ignore[misc]
    """What the families share: rows in, a scaled booster out."""

    _supported_problem_types = ("regression",)
    seed_name = "seed"
    boost: Boost

    def _fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        X_val: Any = None,  # noqa: N803
        y_val: Any = None,
        time_limit: float | None = None,
        num_cpus: int = 1,
        sample_weight: Any = None,
        **_: Any,
    ) -> None:
        """AutoGluon's contract: fit ``self.model`` on frames of features and series of encoded labels."""
        deadline_s = time.monotonic() + (np.inf if time_limit is None else time_limit)
        parameters = dict(self._get_model_params())
        trees = parameters.pop("trees")
        train = Queries.of(self.preprocess(X), y, sample_weight, parameters.pop("max_query", MAX_QUERY))
        held = None if X_val is None else Queries.of(self.preprocess(X_val), y_val, None)
        booster = type(self).boost(parameters, trees, train, held, num_cpus, lambda: time.monotonic() > deadline_s)
        known = train if held is None else held
        raw = Scaled(booster, 1.0, 0.0).predict(known.features)
        self.model = Scaled(booster, *_line(raw, known.value))

    def _get_default_auxiliary_params(self) -> dict[str, Any]:
        defaults = super()._get_default_auxiliary_params()
        return {**defaults, "valid_raw_types": ["bool", "int", "float"]}


def _line(raw: FloatArray, value: FloatArray) -> tuple[float, float]:
    """Slope and offset of values on raw scores; the slope is never negative or zero, which would undo the order."""
    centred = raw - raw.mean()
    spread = float(centred @ centred)
    slope = max(float(centred @ value) / spread, 1e-3 / np.sqrt(spread / len(raw))) if spread > 0 else 1.0
    return slope, float(value.mean() - slope * raw.mean())


def _lightgbm(
    parameters: dict[str, Any], trees: int, train: Queries, held: Queries | None, threads: int, late: Callable[[], bool]
) -> Any:
    import lightgbm

    def dataset(rows: Queries) -> Any:
        grades = np.rint(rows.value * (LEVELS - 1))
        names = [f"f{index}" for index in range(rows.features.shape[1])]
        return lightgbm.Dataset(rows.features, grades, weight=rows.weight, group=rows.sizes, feature_name=names)

    def stop_in_time(environment: Any) -> None:
        if late():
            raise lightgbm.callback.EarlyStopException(environment.iteration, environment.evaluation_result_list or [])

    gains = (np.exp2(STEEPNESS * np.linspace(0, 1, LEVELS)) - 1).tolist()
    settings = {**parameters, "label_gain": gains, "metric": "None", "num_threads": threads, "verbose": -1}
    if held is None:
        return lightgbm.train(settings, dataset(train), trees, callbacks=[stop_in_time])
    return lightgbm.train(
        settings,
        dataset(train),
        trees,
        valid_sets=[dataset(held)],
        feval=lambda score, _: ("ranking_quality", held.quality(score), True),
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), stop_in_time],
    )


def _xgboost(
    parameters: dict[str, Any], trees: int, train: Queries, held: Queries | None, threads: int, late: Callable[[], bool]
) -> Any:
    import xgboost

    def matrix(rows: Queries) -> Any:
        return xgboost.DMatrix(rows.features, rows.gain, group=rows.sizes, weight=rows.query_weight, nthread=threads)

    class StopInTime(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return late()

    # The gains are in the labels already.
    settings = {"ndcg_exp_gain": False, "disable_default_eval_metric": True, **parameters, "nthread": threads}
    callbacks: list[Any] = [StopInTime()]
    if held is None:
        return xgboost.train(settings, matrix(train), trees, callbacks=callbacks, verbose_eval=False)
    callbacks.append(xgboost.callback.EarlyStopping(PATIENCE, metric_name="ranking_quality", maximize=True))
    return xgboost.train(
        settings,
        matrix(train),
        trees,
        evals=[(matrix(held), "held")],
        custom_metric=lambda score, _: ("ranking_quality", held.quality(score)),
        callbacks=callbacks,
        verbose_eval=False,
    )


def _catboost(
    parameters: dict[str, Any], trees: int, train: Queries, held: Queries | None, threads: int, late: Callable[[], bool]
) -> Any:
    import catboost

    def pool(rows: Queries) -> Any:
        return catboost.Pool(rows.features, rows.value, group_id=rows.query, group_weight=rows.weight)

    class StopInTime:
        def after_iteration(self, info: Any) -> bool:
            return not late()

    # CatBoost takes no metric of ours when it ranks: its own of the first ten is the nearest.
    settings = {"eval_metric": "NDCG:top=10", "od_type": "Iter", "od_wait": PATIENCE, **parameters}
    model = catboost.CatBoost(
        {**settings, "iterations": trees, "thread_count": threads, "allow_writing_files": False, "verbose": False}
    )
    eval_set = None if held is None else pool(held)
    return model.fit(pool(train), eval_set=eval_set, use_best_model=held is not None, callbacks=[StopInTime()])


class LightGbmRanker(_Ranker):
    """LightGBM: ``objective`` is ``lambdarank`` or ``rank_xendcg``."""

    ag_key = "GBM_RANK"
    ag_name = "LightGBMRank"
    boost = staticmethod(_lightgbm)


class XgboostRanker(_Ranker):
    """XGBoost: ``objective`` is ``rank:ndcg`` or ``rank:pairwise``."""

    ag_key = "XGB_RANK"
    ag_name = "XGBoostRank"
    boost = staticmethod(_xgboost)


class CatboostRanker(_Ranker):
    """CatBoost: ``loss_function`` is ``YetiRank`` or one of its kind."""

    ag_key = "CAT_RANK"
    ag_name = "CatBoostRank"
    seed_name = "random_seed"
    boost = staticmethod(_catboost)


RANKERS = (LightGbmRanker, XgboostRanker, CatboostRanker)
