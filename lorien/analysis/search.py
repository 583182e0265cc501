"""How long a search takes to come near the best: a tuner's own order, a model's, and a random one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lorien.errors import BadInput
from lorien.models.metrics import Candidates, FloatArray, place_in_group
from lorien.report.tally import WorkloadTally


def tuner_trials(workloads: Iterable[WorkloadTally], fraction: float) -> FloatArray:
    """Trials that the tuner took, in its own order, to reach a fraction of the best it found: (workloads,).

    Infinite where nothing ran. Raises ``BadInput`` when the fraction is none.
    """
    _check(fraction)
    return np.array(
        [
            next((trial for trial, latency_s in own.steps if own.best_s / latency_s >= fraction), math.inf)
            for own in workloads
        ]
    )


def ranked_trials(candidates: Candidates, score: FloatArray, fraction: float) -> FloatArray:
    """Trials to reach a fraction of the best of each workload when the highest score is tried first: (workloads,).

    Of equal scores the slowest comes first. Infinite where nothing ran. Raises ``BadInput`` when the fraction is none.
    """
    _check(fraction)
    value, workload = candidates.value(), candidates.workload
    order = np.lexsort((value, -score, workload))
    place = place_in_group(workload[order]) + 1
    good = value[order] >= fraction
    needed = np.full(len(candidates.weight), np.inf)
    np.fmin.at(needed, workload[order][good], place[good])
    return needed


def random_trials(candidates: Candidates, fraction: float) -> FloatArray:
    """As ``ranked_trials`` for a random order, in the mean: (workloads,), exact.

    The first of g good ones among n drawn without replacement comes, in the mean, at (n + 1) / (g + 1).
    """
    good = np.bincount(candidates.workload, candidates.value() >= fraction, len(candidates.weight))
    count = np.bincount(candidates.workload, minlength=len(candidates.weight))
    return np.where(good > 0, (count + 1) / (good + 1), np.inf)


def random_share_reached(candidates: Candidates, fraction: float, trials: FloatArray) -> FloatArray:
    """Share of the workloads expected to have reached a fraction after so many random trials: (len(trials),), exact.

    Of n candidates of which g are good, k drawn without replacement are all bad with probability C(n-g, k) / C(n, k).
    """
    good = np.bincount(candidates.workload, candidates.value() >= fraction, len(candidates.weight))
    count = np.bincount(candidates.workload, minlength=len(candidates.weight)).astype(np.float64)
    none, reached = np.ones(len(count)), [0.0]
    for drawn in range(int(trials.max())):
        left = count - drawn
        none = none * np.divide(np.maximum(left - good, 0), left, out=np.zeros_like(left), where=left > 0)
        # A workload where nothing ran has no good one, however many are drawn.
        reached.append(float(np.where(good > 0, 1 - none, 0).mean()))
    return np.array(reached)[trials.astype(np.int64)]


def share_reached(needed: FloatArray, trials: FloatArray) -> FloatArray:
    """Share of the workloads that have what they need after so many trials each: (len(trials),)."""
    return (needed[:, None] <= trials[None, :]).mean(axis=0) if len(needed) else np.full(len(trials), math.nan)


def calibration_bins(predicted: FloatArray, measured: FloatArray, bins: int = 10) -> FloatArray:
    """Mean prediction and mean measured value in groups of equally many rows, by rising prediction: (2, bins)."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(bins, len(predicted)))
    return np.array([[values[part].mean() for part in parts] for values in (predicted, measured)])


def _check(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise BadInput(f"{fraction} is no fraction of the best. Fix: a number above 0, at most 1")
