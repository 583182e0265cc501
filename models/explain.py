"""What features explain: a plain booster, and how much each column adds to each of its predictions.

The trees that rank are many boosters in one, without the row counts that attribution needs. What is explained here is
one of the boosters such a model is made of, fitted alone on the same rows. The shares are Shapley values of the trees
(Lundberg et al., "Consistent Individualized Feature Attribution for Tree Ensembles", 2018), as LightGBM computes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput, MissingExtra
from lorien.models.metrics import BoolArray, FloatArray
from lorien.models.presets import PRESETS

SEED = 0
_NUMBER = re.compile(r"(?<=\D)\d+")


@dataclass(frozen=True)
class Explanation:
    """Predictions on rows that were held out, taken apart.

    Parameters
    ----------
    names : tuple of str
        The columns.
    predicted : array (rows,)
        Fraction of the best, as predicted.
    base : float
        What is predicted before any column is looked at.
    shares : array (rows, columns)
        What each column adds: ``base`` and a row's shares sum to its prediction.
    """

    names: tuple[str, ...]
    predicted: FloatArray
    base: float
    shares: FloatArray

    def importance(self) -> FloatArray:
        """Mean size of each column's share: (columns,), in fractions of the best."""
        sizes: FloatArray = np.abs(self.shares).mean(axis=0)
        return sizes

    def grouped(self) -> dict[str, float]:
        """Mean size of the summed share of columns that differ in a number only, the largest first."""
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            groups.setdefault(_NUMBER.sub("#", name), []).append(index)
        sizes = {name: float(np.abs(self.shares[:, own].sum(axis=1)).mean()) for name, own in groups.items()}
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def explain(
    features: npt.NDArray[np.float32], value: FloatArray, held_out: BoolArray, names: Sequence[str]
) -> Explanation:
    """Fit a booster on the rows that are not held out, and take its predictions on the others apart.

    Parameters
    ----------
    features : array (rows, columns) of float32
        Feature rows.
    value : array (rows,)
        Best latency of the row's workload over the row's; 0 for a failure.
    held_out : array (rows,) of bool
        Rows to explain. Whole workloads, or what is explained is memory.
    names : sequence of str
        The columns.

    Raises
    ------
    BadInput
        No row is held out, or all are.
    MissingExtra
        LightGBM is not installed.
    """
    if held_out.all() or not held_out.any():
        raise BadInput("some rows are to be learned from and some to be held out. Fix: hold out another network")
    try:
        import lightgbm
    except ModuleNotFoundError:
        raise MissingExtra("lightgbm", "train") from None
    settings = PRESETS["fast"].settings("GBM", "Plain")
    rounds = settings.pop("num_boost_round")
    learn = lightgbm.Dataset(features[~held_out], value[~held_out], free_raw_data=False)
    booster = lightgbm.train({**settings, "objective": "l2", "seed": SEED, "verbosity": -1}, learn, rounds)
    parts = np.asarray(booster.predict(features[held_out], pred_contrib=True), dtype=np.float64)
    return Explanation(tuple(names), parts.sum(axis=1), float(parts[0, -1]), parts[:, :-1])
