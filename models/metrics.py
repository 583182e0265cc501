"""How good a ranking is: top-k scores per workload and of a set, beside what a random ranking would get.

The *value* of a candidate is the best latency of its workload over its own: 1 for the best, 0 for one that failed. The
top-k score of a workload is the largest value among the k candidates ranked first. Among equal scores the slowest
counts as ranked first (a failure before all), so a model gains nothing by not deciding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """Measured candidates of many workloads.

    Parameters
    ----------
    workload : array (rows,) of int
        Index of the row's workload, into ``weight``.
    latency_s : array (rows,) of float
        Seconds; NaN for a failure.
    weight : array (workloads,) of float
        Calls of the workload in its networks.
    """

    workload: IntArray
    latency_s: FloatArray
    weight: FloatArray

    def value(self) -> FloatArray:
        """Best latency of the row's workload over the row's: (rows,) in [0, 1], 0 for a failure.

        All 0 in a workload where everything failed.
        """
        best = self.best_s()[self.workload]
        return np.where(np.isfinite(self.latency_s), best / self.latency_s, 0.0)

    def best_s(self) -> FloatArray:
        """Lowest latency of each workload in seconds: (workloads,), infinite where nothing ran."""
        best = np.full(len(self.weight), np.inf)
        np.fmin.at(best, self.workload, self.latency_s)
        return best


def ranking_scores(candidates: Candidates, score: FloatArray) -> dict[str, float | int]:
    """The scores of a ranking over a set of workloads.

    Parameters
    ----------
    candidates : Candidates
        What was measured.
    score : array (rows,) of float
        Higher is ranked earlier; NaN is ranked last.

    Returns
    -------
    dict
        ``workloads`` and ``records`` scored; ``failed_workloads`` left out because none of their candidates ran;
        ``top1_mean``, ``top5_mean``, ``top10_mean`` over workloads; ``top1_weighted`` and ``top5_weighted``:
        sum(weight * best) / sum(weight * best of top k), where a workload whose first k all failed pays its slowest
        measured latency; ``min_top10``, the worst workload's; ``spearman_mean``, rank correlation of score and value
        over the workloads where both vary; ``random_top1_mean`` and ``random_top5_mean``, the exact expectation of a
        random order. The means are NaN when no workload is left.
    """
    best_s = candidates.best_s()
    ran = np.isfinite(best_s)
    rows = ran[candidates.workload]
    # The rows of workloads that ran, numbered anew without a gap.
    workload = (np.cumsum(ran) - 1)[candidates.workload[rows]]
    value = candidates.value()[rows]
    order_score = np.nan_to_num(score[rows], nan=-np.inf)
    best, weight = best_s[ran], candidates.weight[ran]
    slowest = np.zeros(len(best))
    np.fmax.at(slowest, workload, candidates.latency_s[rows])

    result: dict[str, float | int] = {
        "workloads": len(best),
        "records": len(value),
        "failed_workloads": int((~ran).sum()),
    }
    ranked = np.lexsort((value, -order_score, workload))
    place = place_in_group(workload[ranked])
    for k in (1, 5, 10):
        first = ranked[place < k]
        top = np.zeros(len(best))
        np.maximum.at(top, workload[first], value[first])
        result[f"top{k}_mean"] = _mean(top)
        if k < 10:
            paid = np.divide(best, top, out=slowest.copy(), where=top > 0)
            result[f"top{k}_weighted"] = float((weight @ best) / (weight @ paid)) if len(best) else np.nan
        else:
            result["min_top10"] = float(top.min()) if len(best) else np.nan
    result["spearman_mean"] = _spearman_mean(workload, order_score, value, len(best))
    for k in (1, 5):
        result[f"random_top{k}_mean"] = _mean(random_top(workload, value, k))
    return result


def random_top(workload: IntArray, value: FloatArray, k: int) -> FloatArray:
    """Expected top-k score of each workload under a random order: (workloads,), exact.

    The largest of k of n values drawn without replacement is the i-th smallest with probability C(i-1, k-1) / C(n, k).
    """
    order = np.lexsort((value, workload))
    group = workload[order]
    count = np.bincount(group)
    n = count[group].astype(np.float64)
    i = place_in_group(group).astype(np.float64)
    draws = np.minimum(k, n)
    chance = draws / n
    for j in range(1, k):
        # One factor of the two binomials at a time; a workload with fewer than k candidates is drawn whole.
        factor = np.divide(i - j + 1, n - j, out=np.ones_like(n), where=j < draws)
        chance *= np.maximum(factor, 0.0)
    return np.bincount(group, weights=chance * value[order]).astype(np.float64)


def top_curve(candidates: Candidates, score: FloatArray, depth: int) -> FloatArray:
    """Top-k score of each workload for k from 1 to ``depth``: (workloads, depth), 0 where none of the first k ran.

    ``score`` (rows,) and ties are taken as ``ranking_scores`` takes them. A workload with fewer candidates than k is
    tried whole.
    """
    value, workload = candidates.value(), candidates.workload
    ranked = np.lexsort((value, -np.nan_to_num(score, nan=-np.inf), workload))
    place = place_in_group(workload[ranked])
    first, place = ranked[place < depth], place[place < depth]
    top = np.zeros((len(candidates.weight), depth))
    top[workload[first], place] = value[first]
    return np.maximum.accumulate(top, axis=1)


def place_in_group(group: IntArray) -> IntArray:
    """Position of each row in its run of equal, adjacent group numbers, from 0."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.r_[starts, len(group)])
    return np.arange(len(group)) - np.repeat(starts, lengths)


def _ranks(group: IntArray, value: FloatArray) -> FloatArray:
    """Rank of each value within its group, equal values sharing their mean rank."""
    order = np.lexsort((value, group))
    place = place_in_group(group[order]).astype(np.float64)
    new_run = np.r_[True, (np.diff(group[order]) != 0) | (value[order][1:] != value[order][:-1])]
    run = np.cumsum(new_run) - 1
    ranks = np.empty(len(value))
    ranks[order] = (np.bincount(run, weights=place) / np.bincount(run))[run]
    return ranks


def _spearman_mean(group: IntArray, score: FloatArray, value: FloatArray, groups: int) -> float:
    if not len(group):
        return np.nan
    count = np.bincount(group, minlength=groups)
    centred = []
    for ranks in (_ranks(group, score), _ranks(group, value)):
        centred.append(ranks - (np.bincount(group, weights=ranks, minlength=groups) / count)[group])
    cross, own_score, own_value = (
        np.bincount(group, weights=product, minlength=groups)
        for product in (centred[0] * centred[1], centred[0] ** 2, centred[1] ** 2)
    )
    varies = (own_score > 0) & (own_value > 0)
    return _mean(cross[varies] / np.sqrt(own_score[varies] * own_value[varies]))


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else np.nan
