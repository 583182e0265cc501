"""Which results of a batch are believed at once: what other work disturbed is measured again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from lorien.records import Measurement, Outcome
from lorien.tune.remeasure import DISTURBED_RUNS, Remeasurement


def ran(latency_s: float, *, disturbed: bool = False) -> Measurement:
    return Measurement(Outcome.OK, (latency_s,), disturbed=disturbed)


FAILED = Measurement(Outcome.RUN_ERROR)


def counted(best_s: float, runs: dict[int, Sequence[Measurement]]) -> tuple[dict[int, Measurement], dict[int, int]]:
    """What counts of each candidate in the end, and how often each ran, where these are its runs in order."""
    batch = Remeasurement(best_s, runs)
    waiting, done = list(runs), {}
    times = dict.fromkeys(runs, 0)
    while waiting:
        index = waiting.pop(0)
        result = runs[index][min(times[index], len(runs[index]) - 1)]
        times[index] += 1
        done.update(batch.take(index, result))
        waiting[:0] = batch.again
        batch.again.clear()
    done.update(batch.rest())
    assert done.keys() == runs.keys(), "each is believed once"
    return done, times


@pytest.mark.parametrize("best_s", [1e-3, math.inf])
def test_a_disturbed_result_near_the_best_is_measured_again(best_s: float) -> None:
    done, times = counted(best_s, {0: [ran(1.1e-3)], 1: [ran(1.5e-3, disturbed=True), ran(1e-3)]})
    assert times == {0: 1, 1: 2}
    assert done[1].latency_s == 1e-3
    assert not done[1].disturbed
    assert done[1].detail == "measured again: 0.0015 s beside other work"


def test_the_one_schedule_of_a_workload_keeps_no_disturbed_latency() -> None:
    done, times = counted(math.inf, {0: [ran(290e-6, disturbed=True), ran(50e-6), ran(51e-6)]})
    assert done[0].latency_s == 50e-6
    assert not done[0].disturbed
    assert times[0] == 3, "the first that ran has nothing to be compared with, and runs once more"


def test_where_all_runs_are_disturbed_the_fastest_counts_and_says_so() -> None:
    runs = [ran(1.2e-3, disturbed=True), ran(1.5e-3, disturbed=True)]
    done, times = counted(1e-3, {0: [ran(1e-3)], 1: runs})
    assert times[1] == DISTURBED_RUNS
    assert done[1].latency_s == 1.2e-3
    assert done[1].disturbed


def test_what_cannot_be_the_best_is_not_measured_again() -> None:
    done, times = counted(1e-3, {0: [ran(1e-3)], 1: [ran(9e-3, disturbed=True)], 2: [FAILED]})
    assert times == {0: 1, 1: 1, 2: 1}
    assert done[1].disturbed
    assert done[2] == FAILED


def test_a_second_run_that_fails_counts_as_the_failure_it_is() -> None:
    done, _ = counted(1e-3, {0: [ran(1e-3)], 1: [ran(1.5e-3, disturbed=True), FAILED]})
    assert done[1].outcome is Outcome.RUN_ERROR
    assert done[1].latency_s is None


def test_time_may_end_between_two_runs() -> None:
    batch = Remeasurement(1e-3, [0])
    assert list(batch.take(0, ran(1.5e-3, disturbed=True))) == []
    assert batch.again == [0]
    ((index, result),) = batch.rest()
    assert (index, result.latency_s, result.disturbed) == (0, 1.5e-3, True)
