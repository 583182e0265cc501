"""Labels that know their workload, and the score by which AutoGluon chooses among models of ranking.

AutoGluon hands a metric the labels and predictions of some rows and nothing else, and a model the same. Which rows are
candidates of one workload must therefore travel in the label itself: below the bits that a measurement can fill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput
from lorien.models.metrics import FloatArray, IntArray, place_in_group

VALUE_BITS = 24
WORKLOAD_BITS = 24
# The mean over the first ten: on some hundred workloads the top-1 score alone is noise.
DEPTH = 10


def encode(value: FloatArray, workload: IntArray) -> FloatArray:
    """Labels (rows,) that carry their workload: within 2**-24 of the value, in [0, 1].

    Raises ``BadInput`` for more than 2**24 workloads.
    """
    if len(workload) and workload.max() >= 1 << WORKLOAD_BITS:
        raise BadInput(f"more than {1 << WORKLOAD_BITS:,} workloads. Fix: train on a part of the tables")
    steps = np.floor(value * (1 << VALUE_BITS))
    return np.ldexp(steps, -VALUE_BITS) + np.ldexp(workload.astype(np.float64), -VALUE_BITS - WORKLOAD_BITS)


def decode(label: npt.ArrayLike) -> tuple[FloatArray, IntArray]:
    """(values, workloads) of labels that ``encode`` made; each (rows,)."""
    scaled = np.ldexp(np.asarray(label, dtype=np.float64), VALUE_BITS)
    steps = np.floor(scaled)
    return np.ldexp(steps, -VALUE_BITS), np.rint(np.ldexp(scaled - steps, WORKLOAD_BITS)).astype(np.int64)


def workload_quality(value: FloatArray, workload: IntArray, score: FloatArray) -> FloatArray:
    """Mean over k from 1 to ``DEPTH`` of the top-k score of each workload where anything ran, in their order."""
    ranked = np.lexsort((value, -score, workload))
    group = workload[ranked]
    place = place_in_group(group)
    first = place < DEPTH
    present, index = np.unique(group, return_inverse=True)
    top = np.zeros((len(present), DEPTH))
    top[index[first], place[first]] = value[ranked][first]
    # Past the last candidate of a small workload the best so far stands.
    best = np.zeros(len(present))
    np.maximum.at(best, index, value[ranked])
    quality: FloatArray = np.maximum.accumulate(top, axis=1).mean(axis=1)[best > 0] / best[best > 0]
    return quality


def ranking_quality(value: FloatArray, workload: IntArray, score: FloatArray) -> float:
    """Mean of ``workload_quality``: every workload counts once."""
    quality = workload_quality(value, workload, score)
    return float(quality.mean()) if len(quality) else 0.0


def ranking_metric() -> Any:
    """``ranking_quality`` as an AutoGluon scorer of encoded labels."""
    from autogluon.core.metrics import make_scorer

    return make_scorer("ranking_quality", _encoded_quality, optimum=1.0, greater_is_better=True)


def _encoded_quality(label: npt.ArrayLike, score: npt.ArrayLike, sample_weight: object = None) -> float:
    """Row weights do not enter: every workload counts once."""
    value, workload = decode(label)
    return ranking_quality(value, workload, np.asarray(score, dtype=np.float64))
