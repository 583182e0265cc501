"""How many of the ranked candidates to try: a statement learned on unseen workloads, by split conformal prediction.

A candidate that is good enough may not be ranked first, but it is rarely scored far below the first. How far, is
measured on workloads that the scoring model has not seen. The distance that sufficed for nine in ten of them is the
margin, and of a new workload everything within it is tried: little where one candidate stands out, much where the
scores lie together.

It holds for workloads like those it was learned on; how well it does for another network, ``lorien evaluate`` reports.
Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorien.models.metrics import FloatArray, IntArray, place_in_group

GOOD = 0.95
"""Fraction of the best performance that is good enough."""
SHARE = 0.90
"""Share of workloads for which the statement is to hold."""
DEPTH = 32
"""Largest k with an expectation of its own."""


@dataclass(frozen=True)
class Confidence:
    """What unseen workloads say about the top k.

    Parameters
    ----------
    margin : float
        Among candidates scored within this of the first, one reaches ``GOOD`` of the best in ``SHARE`` of workloads.
        Infinite when there were too few workloads to say.
    expected : tuple of float
        Mean top-k score for k from 1 to ``DEPTH``.
    """

    margin: float
    expected: tuple[float, ...]

    def needed(self, score: FloatArray) -> int:
        """The k to try of candidates with these scores, in any order; at least 1 when there are any."""
        return int(np.count_nonzero(score >= score.max() - self.margin)) if len(score) else 0

    def expected_fraction(self, k: int) -> float:
        """Fraction of the best that the best of the first k is expected to reach, k at least 1."""
        return self.expected[min(k, len(self.expected)) - 1]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object; ``margin`` is null when infinite."""
        return {"margin": self.margin if math.isfinite(self.margin) else None, "expected": list(self.expected)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Confidence:
        """From what ``to_json`` made."""
        return cls(math.inf if value["margin"] is None else value["margin"], tuple(value["expected"]))


def learn_confidence(workload: IntArray, value: FloatArray, score: FloatArray) -> Confidence:
    """Learn from scored rows (rows,) whose workloads the scoring model has not seen.

    ``value`` is the best latency of the workload over the row's, 0 for a failure.
    """
    drops, tops = [], []
    for rows in _by_workload(workload):
        ranked = rows[np.lexsort((value[rows], -score[rows]))]
        if value[ranked].max(initial=0.0) < GOOD:
            continue
        first_good = int(np.argmax(value[ranked] >= GOOD))
        drops.append(float(score[ranked[0]] - score[ranked[first_good]]))
        top = np.maximum.accumulate(value[ranked[:DEPTH]])
        tops.append(np.pad(top, (0, DEPTH - len(top)), mode="edge"))
    wanted = math.ceil((len(drops) + 1) * SHARE)
    margin = sorted(drops)[wanted - 1] if wanted <= len(drops) else math.inf
    expected = np.mean(tops, axis=0) if tops else np.zeros(DEPTH)
    return Confidence(margin, tuple(expected.tolist()))


def check_confidence(
    confidence: Confidence, workload: IntArray, value: FloatArray, score: FloatArray
) -> dict[str, float]:
    """How the statement fares on scored rows.

    Returns
    -------
    dict
        ``coverage``: share of workloads where one of the k candidates it names is good enough, of those where any is;
        ``coverage_claimed``; ``needed_median``: the median k. NaN without such a workload.
    """
    held, needed = [], []
    for rows in _by_workload(workload):
        if value[rows].max(initial=0.0) < GOOD:
            continue
        k = confidence.needed(score[rows])
        ranked = rows[np.lexsort((value[rows], -score[rows]))]
        held.append(bool((value[ranked[:k]] >= GOOD).any()))
        needed.append(k)
    return {
        "coverage": float(np.mean(held)) if held else math.nan,
        "coverage_claimed": SHARE,
        "needed_median": float(np.median(needed)) if needed else math.nan,
    }


def _by_workload(workload: IntArray) -> Sequence[IntArray]:
    """Indices of the rows of each workload."""
    order = np.argsort(workload, kind="stable")
    starts = np.flatnonzero(place_in_group(workload[order]) == 0)
    return np.split(order, starts[1:]) if len(order) else []
