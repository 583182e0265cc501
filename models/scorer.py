"""Scores from features, fast: one LightGBM text model through its C interface.

``import lightgbm`` brings scikit-learn, SciPy and pandas with it and takes longer than everything else a ranking does.
The shared library it ships has a stable C interface, which is all that prediction needs; it is found without importing
the package. https://lightgbm.readthedocs.io/en/stable/C-API.html
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput, MissingExtra, SchemaMismatch
from lorien.machine import available_cores
from lorien.models.calibration import Calibration
from lorien.models.metrics import FloatArray

# LightGBM takes each row through all trees: as many at a time as the cache holds is twice as fast as thousands.
PASS_TREES = 256
# On fewer rows a second thread saves milliseconds, and on a busy machine waiting for it costs tens.
PARALLEL_ROWS = 2048

_FLOAT32 = 0
_RAW_SCORE = 1


class TreeEnsemble:
    """Sum of trees, evaluated by LightGBM's library. Safe across threads.

    Raises
    ------
    MissingExtra
        LightGBM is not installed.
    SchemaMismatch
        The text is no LightGBM model.
    """

    def __init__(self, text: bytes) -> None:
        self._library = _lightgbm()
        self._text = text
        self._boosters: list[ctypes.c_void_p] = []
        self._cores = available_cores()
        trees, columns = ctypes.c_int(), ctypes.c_int()
        with self._booster() as booster:
            self._library.LGBM_BoosterGetCurrentIteration(booster, ctypes.byref(trees))
            self._library.LGBM_BoosterGetNumFeature(booster, ctypes.byref(columns))
        self.trees = trees.value
        self.columns = columns.value

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
        scores = np.zeros((len(trees), len(matrix)), dtype=np.float64)
        threads = self._cores if len(matrix) >= PARALLEL_ROWS else 1
        last = 0
        with self._booster() as booster:
            for part, count in zip(scores, trees, strict=True):
                first, last = last, last + count
                for start in range(first, last if len(matrix) else first, PASS_TREES):
                    part += self._pass(booster, matrix, start, min(PASS_TREES, last - start), threads)
        return scores

    @contextmanager
    def _booster(self) -> Iterator[ctypes.c_void_p]:
        """A booster that no other thread is using: LightGBM keeps the range of trees asked for in the booster itself.

        There are as many as were ever in use at a time. To take one from the list, or put it back, is atomic.
        """
        try:
            booster = self._boosters.pop()
        except IndexError:
            booster, trees = ctypes.c_void_p(), ctypes.c_int()
            status = self._library.LGBM_BoosterLoadModelFromString(
                self._text, ctypes.byref(trees), ctypes.byref(booster)
            )
            if status:
                raise SchemaMismatch(f"not a LightGBM model: {self._error()}. Fix: lorien-train again") from None
        try:
            yield booster
        finally:
            self._boosters.append(booster)

    def _pass(
        self, booster: ctypes.c_void_p, matrix: npt.NDArray[np.float32], first: int, count: int, threads: int
    ) -> FloatArray:
        scores = np.empty(len(matrix), dtype=np.float64)
        written = ctypes.c_int64()
        status = self._library.LGBM_BoosterPredictForMat(
            booster,
            matrix.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(_FLOAT32),
            ctypes.c_int32(matrix.shape[0]),
            ctypes.c_int32(matrix.shape[1]),
            ctypes.c_int(1),  # row major
            ctypes.c_int(_RAW_SCORE),
            ctypes.c_int(first),
            ctypes.c_int(count),
            f"verbosity=-1 num_threads={threads}".encode(),
            ctypes.byref(written),
            scores.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
        )
        if status:
            raise SchemaMismatch(f"LightGBM could not predict: {self._error()}. Fix: lorien-train again")
        return scores

    def __del__(self) -> None:
        for booster in getattr(self, "_boosters", ()):
            self._library.LGBM_BoosterFree(booster)

    def _error(self) -> str:
        return str(self._library.LGBM_GetLastError().decode(errors="replace"))


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


@cache
def _lightgbm() -> ctypes.CDLL:
    spec = importlib.util.find_spec("lightgbm")
    places: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    for place in places:
        for path in sorted(Path(place).rglob("lib_lightgbm.*")):
            library = ctypes.CDLL(str(path))
            library.LGBM_GetLastError.restype = ctypes.c_char_p
            return library
    raise MissingExtra("lightgbm", "train")
