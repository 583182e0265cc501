"""Which rows a model is fitted on, and how much each of them counts."""

from __future__ import annotations

import numpy as np

from lorien.models.metrics import BoolArray, FloatArray, IntArray

BEST_SHARE = 0.25
FAILED_SHARE = 0.25


def sample_rows(workload: IntArray, value: FloatArray, max_rows: int, seed: int) -> BoolArray:
    """At most ``max_rows`` rows, taken evenly: workloads with few rows keep them all, the others an equal number.

    Of a workload that is cut, a quarter are its best candidates (telling those apart is what the model is for), up to a
    quarter its failures, and the rest is drawn at random.

    Parameters
    ----------
    workload : array (rows,) of int
        Index of the row's workload.
    value : array (rows,) of float
        Best latency of the workload over the row's; 0 for a failure.
    max_rows : int
        Never exceeded, unless there are more workloads than that: each keeps one row.
    seed : int
        Of the random part.

    Returns
    -------
    array (rows,) of bool
    """
    kept = np.ones(len(workload), dtype=np.bool_)
    if len(workload) <= max_rows:
        return kept
    counts = np.bincount(workload)
    cap = _even_cap(counts[counts > 0], max_rows)
    rng = np.random.default_rng(seed)
    order = np.argsort(workload, kind="stable")
    for rows in np.split(order, np.cumsum(counts)[:-1]):
        if len(rows) <= cap:
            continue
        shuffled = rng.permutation(rows)
        ranked = shuffled[np.argsort(-value[shuffled], kind="stable")]
        best, others = np.split(ranked, [max(1, int(BEST_SHARE * cap))])
        # In random order again: failures first, as many as their share, then whatever comes.
        others = rng.permutation(others)
        failed = others[value[others] == 0][: int(FAILED_SHARE * cap)]
        ran = others[value[others] > 0][: cap - len(best) - len(failed)]
        kept[rows] = False
        kept[np.concatenate([best, failed, ran])] = True
    return kept


def _even_cap(counts: IntArray, max_rows: int) -> int:
    """The largest number of rows per workload whose total is at most ``max_rows``; at least 1."""
    low, high = 1, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() <= max_rows:
            low = middle
        else:
            high = middle - 1
    return low


def row_weights(workload: IntArray) -> FloatArray:
    """Weights (rows,) of mean 1 under which a workload counts by the square root of its rows.

    Between rows that count alike, where a workload tuned at length drowns the others, and workloads that count alike,
    where a handful of noisy measurements count as much as a thousand.
    """
    weights = 1.0 / np.sqrt(np.bincount(workload)[workload])
    return weights / weights.mean() if len(weights) else weights
