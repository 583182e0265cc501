"""Which workload is tuned next. Both rules are MetaSchedule's, as functions of what has been measured so far.

TVM keeps their state in its scheduler objects, where it ends with the process. Here it follows from the latencies in
the log: a resumed session goes on as if it had never stopped, and workloads of every dialect are scheduled alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias

ALPHA = 0.2
"""Share of the recent gain in the gradient; the rest is the optimistic guess that n batches more halve the latency."""
WINDOW = 3
"""Batches that the recent gain is taken over."""

Latencies: TypeAlias = Sequence[float]
"""Seconds of each trial of a workload, in order; infinity for one that failed."""

Scheduler: TypeAlias = Callable[[Sequence[float], Sequence[Latencies], int], int]
"""Weights and latencies of the workloads that are still open, trials in a batch: index of the one to tune next."""


def round_robin(weights: Sequence[float], latencies_s: Sequence[Latencies], batch: int) -> int:
    """The workload with the fewest batches, the first of them."""
    batches = [math.ceil(len(latencies) / batch) for latencies in latencies_s]
    return batches.index(min(batches))


def gradient(weights: Sequence[float], latencies_s: Sequence[Latencies], batch: int) -> int:
    """The workload whose next batch promises to take most off the latency of the whole, after one batch of each.

    The rule of ``GradientBased`` in MetaSchedule, which is Ansor's without its comparison of similar tasks.
    """
    for index, latencies in enumerate(latencies_s):
        if not latencies:
            return index
    gains = [weight * _gain_s(_best_s(own, batch)) for weight, own in zip(weights, latencies_s, strict=True)]
    return gains.index(max(gains))


def _best_s(latencies_s: Latencies, batch: int) -> list[float]:
    """Best latency at the end of each batch, the last of them perhaps cut short."""
    best_s = list(accumulate(latencies_s, min))
    return [*best_s[batch - 1 : -1 : batch], best_s[-1]]


def _gain_s(best_s: list[float]) -> float:
    batches, best = len(best_s), best_s[-1]
    if math.isinf(best):  # nothing of it has run: last in line
        return -math.inf
    recent = (best_s[-1 - WINDOW] - best) / WINDOW if batches > WINDOW else 0.0
    return ALPHA * recent + (1 - ALPHA) * best / batches


SCHEDULERS: dict[str, Scheduler] = {"gradient": gradient, "round-robin": round_robin}
