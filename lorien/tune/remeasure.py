"""Which results of a batch are believed at once, and which only after a second run.

A clock that jumps, a kernel that did nothing or a counter that was reset makes one run look much faster than it is, and
nothing that is measured later would ever beat it. So a candidate that is much faster than all before it is run again,
and where the two disagree the slower counts. Ordinary results cost nothing.

Other work on the cores makes a run look slower than it is, and a workload with one schedule would keep that for good.
So a result near the best that was disturbed is run again as well: what was not disturbed counts, else the faster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from lorien.records import Measurement

MUCH_FASTER = 0.5
"""A latency below this part of the best before it is measured again."""
AGREEING = 1.25
"""Two runs agree when the slower takes at most so many times the faster."""
NEAR = 2.0
"""A disturbed result is measured again when it takes at most so many times the best: it may be the best."""
DISTURBED_RUNS = 2
"""Runs of one candidate, at most, while each is disturbed: on cores that stay busy more would not help."""
STOPPED_EARLY = "stopped early"
"""How the detail of a result begins that was clearly slower than the best, and got no full repeats."""


class Remeasurement:
    """The results of one batch of candidates for one workload.

    The first that ran has nothing to be compared with: it waits for the second, or, where there is none, for a run of
    its own. What was stopped early for being slower than a result that did not last is run again.

    Attributes
    ----------
    best_s : float
        Lowest latency that is believed, infinity while there is none. Given as None, all is believed at once.
    again : list of int
        Candidates to run again, in order. Whoever runs them takes them out.
    """

    def __init__(self, best_s: float | None, candidates: Collection[int]) -> None:
        self._believes_all = best_s is None
        self.best_s = math.inf if best_s is None else best_s
        self.again: list[int] = []
        self._open = set(candidates)
        self._doubted: dict[int, Measurement] = {}
        self._disturbed: dict[int, list[Measurement]] = {}
        self._first: int | None = None
        self._first_s = math.inf
        self._held: list[tuple[int, Measurement]] = []

    def limit_s(self, index: int) -> float | None:
        """What a candidate may be compared with, to be stopped early, when it is run now; None runs it in full."""
        if self._believes_all:
            return None
        return min(self.best_s, math.inf if index == self._first else self._first_s)

    def take(self, index: int, result: Measurement) -> Iterator[tuple[int, Measurement]]:
        """Take the result of a run. What is believed now comes back, as it is to be counted."""
        if self._believes_all:
            yield index, result
            return
        disturbed = self._disturbed.pop(index, [])
        if disturbed:
            result = least_disturbed([*disturbed, result])
        if result.disturbed and len(disturbed) + 1 < DISTURBED_RUNS and self._may_be_best(result):
            self._disturbed[index] = [*disturbed, result]
            self.again.append(index)
            return
        if index in self._doubted:
            yield from self._repeated(index, result)
        else:
            yield from self._new(index, result)
        if self._first is not None and self._open == {self._first} and self._first not in self._doubted:
            self._doubt(self._first, self._held.pop()[1])

    def rest(self) -> Iterator[tuple[int, Measurement]]:
        """What waits for another result when there will be none, for want of time. What is doubted is not believed."""
        for index, results in list(self._disturbed.items()):
            if index not in self._doubted:
                yield self._believed(index, least_disturbed(results))
        if self._first is not None and self._first not in self._doubted:
            held, self._held, self._first = self._held, [], None
            yield from (self._believed(*entry) for entry in held)

    def _may_be_best(self, result: Measurement) -> bool:
        return result.latency_s is not None and result.latency_s <= NEAR * min(self.best_s, self._first_s)

    def _new(self, index: int, result: Measurement) -> Iterator[tuple[int, Measurement]]:
        latency_s = result.latency_s
        if latency_s is None:
            yield self._believed(index, result)
        elif self._first is None and math.isinf(self.best_s):
            self._first, self._first_s = index, latency_s
            self._held.append((index, result))
        elif self._first is not None and self._first in self._doubted:
            self._held.append((index, result))
        elif self._first is not None and self._first_s < MUCH_FASTER * latency_s:
            self._doubt(self._first, self._held.pop()[1])
            self._held.append((index, result))
        elif self._first is not None:
            yield self._believed(*self._held.pop())
            self._first, self._first_s = None, math.inf
            yield from self._new(index, result)
        elif latency_s < MUCH_FASTER * self.best_s:
            self._doubt(index, result)
        else:
            yield self._believed(index, result)

    def _repeated(self, index: int, second: Measurement) -> Iterator[tuple[int, Measurement]]:
        first = self._doubted.pop(index)
        counts, agree = compared(first, second)
        yield self._believed(index, counts)
        if index == self._first:
            held, self._held, self._first, self._first_s = self._held, [], None, math.inf
            for other, result in held:
                if not agree and result.detail.startswith(STOPPED_EARLY):
                    self.again.append(other)
                else:
                    yield from self._new(other, result)

    def _doubt(self, index: int, result: Measurement) -> None:
        self._doubted[index] = result
        self.again.append(index)

    def _believed(self, index: int, result: Measurement) -> tuple[int, Measurement]:
        self._open.discard(index)
        self.best_s = min(self.best_s, math.inf if result.latency_s is None else result.latency_s)
        return index, result


def least_disturbed(results: Sequence[Measurement]) -> Measurement:
    """What counts of runs of one candidate, of which all but the last were disturbed."""
    *disturbed, last = results
    if not disturbed:
        return last
    ran = [result for result in results if result.latency_s is not None]
    counts = last if not last.disturbed or not ran else min(ran, key=lambda result: result.latency_s or math.inf)
    before = ", ".join(f"{result.latency_s:.3g} s" for result in disturbed if result.latency_s is not None)
    said = f"measured again: {before} beside other work"
    detail = counts.detail.partition("measured again: ")[0].rstrip("; ")
    return replace(counts, detail=f"{detail}; {said}".strip("; "))


def compared(first: Measurement, second: Measurement) -> tuple[Measurement, bool]:
    """What counts of two runs of one candidate, the first of which was surprisingly fast, and whether they agree."""
    first_s, second_s = first.latency_s or math.inf, second.latency_s
    if second_s is None:
        said = f"measured again, after {first_s:.3g} s at first"
        return replace(second, detail=f"{second.detail}; {said}".strip("; ")), False
    agree = max(first_s, second_s) <= AGREEING * min(first_s, second_s)
    counts = first if agree or first_s >= second_s else second
    said = f"measured again: {first_s:.3g} s at first, then {second_s:.3g} s"
    if not agree:
        said += "; the slower counts"
    return replace(counts, detail=f"{counts.detail}; {said}".strip("; ")), agree
