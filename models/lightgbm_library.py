"""Scores from features by LightGBM's library: slower than the kernel, for all models LightGBM can write.

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

from lorien.errors import MissingExtra, SchemaMismatch
from lorien.machine import available_cores
from lorien.models.metrics import FloatArray

# LightGBM takes each row through all trees: as many at a time as the cache holds is twice as fast as thousands.
PASS_TREES = 256
# On fewer rows a second thread saves milliseconds, and on a busy machine waiting for it costs tens.
PARALLEL_ROWS = 2048

_FLOAT32 = 0
_RAW_SCORE = 1


class LightGBMTrees:
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

    def parts(self, matrix: npt.NDArray[np.float32], trees: Sequence[int]) -> FloatArray:
        """See ``TreeEnsemble.parts``; the matrix is contiguous and has the columns."""
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
