"""Scores from features, fast: one LightGBM text model, by the kernel or by LightGBM's library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput
from lorien.models.calibration import Calibration
from lorien.models.forest import read_forest
from lorien.models.lightgbm_library import LightGBMTrees
from lorien.models.metrics import FloatArray


class TreeEnsemble:
    """Sum of trees. Safe across threads.

    Parameters
    ----------
    text : bytes
        LightGBM text model.

    Attributes
    ----------
    trees, columns : int
        How many trees there are, and how many columns of features they are fitted on.

    Raises
    ------
    MissingExtra
        Neither llvmlite nor LightGBM is installed, or the model needs LightGBM.
    SchemaMismatch
        The text is no LightGBM model.
    """

    def __init__(self, text: bytes) -> None:
        self._evaluator = read_forest(text) or LightGBMTrees(text)
        self.trees = self._evaluator.trees
        self.columns = self._evaluator.columns

    def __call__(self, features: npt.NDArray[np.float32]) -> FloatArray:
        """Raw scores (rows,) of features (rows, columns). Raises ``BadInput`` on another number of columns."""
        scores: FloatArray = self.parts(features, [self.trees])[0]
        return scores

    def parts(self, features: npt.NDArray[np.float32], trees: Sequence[int]) -> FloatArray:
        """What consecutive groups of trees add: (groups, rows), for groups of the sizes given, from the first tree on.

        Raises ``BadInput`` on another number of columns.
        """
        matrix = np.ascontiguousarray(features, dtype=np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != self.columns:
            raise BadInput(f"features of shape {matrix.shape} given to a model of {self.columns} columns")
        return self._evaluator.parts(matrix, trees)


class Scorer:
    """Expected fraction of the best latency for each candidate.

    Parameters
    ----------
    trees : TreeEnsemble
        What ranks: one group of trees for each fold, fitted without that fold's workloads, then those of a base model.
    fold_trees : sequence of int
        Trees in each of the folds' groups.
    calibration : Calibration
        What turns the rank into a fraction.
    """

    def __init__(self, trees: TreeEnsemble, fold_trees: Sequence[int], calibration: Calibration) -> None:
        self.trees = trees
        self._fold_trees = fold_trees
        self._calibration = calibration

    def __call__(self, features: npt.NDArray[np.float32]) -> FloatArray:
        """Scores (rows,) in [0, 1] of features (rows, columns); 0 for a row of NaN, which could not be lowered."""
        return self._fractions(self.trees(features), features)

    def cautious(self, features: npt.NDArray[np.float32], caution: float) -> FloatArray:
        """As calling it, less ``caution`` times the standard deviation over the folds' opinions."""
        rest = self.trees.trees - sum(self._fold_trees)
        parts = self.trees.parts(features, [*self._fold_trees, rest])
        folds = parts[:-1]
        return self._fractions(parts.sum(axis=0) - caution * len(folds) * folds.std(axis=0), features)

    def unseen(self, features: npt.NDArray[np.float32], fold: npt.NDArray[np.int64]) -> FloatArray:
        """As calling it, each row by the trees fitted without its fold, those of a base aside; -1: by all of them."""
        folds = len(self._fold_trees)
        parts = self.trees.parts(features, [*self._fold_trees, self.trees.trees - sum(self._fold_trees)])
        # A fold's trees are scaled to be a mean with the others': alone they count as often as there are folds.
        alone = parts[:-1] * folds + parts[-1]
        raw = np.where(fold < 0, parts.sum(axis=0), np.take_along_axis(alone, fold[None] % folds, axis=0)[0])
        return self._fractions(raw, features)

    def _fractions(self, raw: FloatArray, features: npt.NDArray[np.float32]) -> FloatArray:
        scores = self._calibration(raw)
        scores[np.isnan(features).all(axis=1)] = 0.0
        return scores
