"""What of the top k is verified in the time given, by a clock that measuring alone moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lorien import delivery
from lorien.delivery import BATCH, VERIFY_S, Deliverer
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target

TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
WORKLOAD = Workload("toy", "a workload", [1])
DEFAULT = Candidate(None)
RANKED = [Candidate([number]) for number in range(8)]


class Device:
    """Takes as long for each candidate."""

    def __init__(self, each_s: float) -> None:
        self.now_s = 0.0
        self.batches: list[int] = []
        self._each_s = each_s

    def measure(
        self, workload: Workload, batch: Sequence[Candidate], *, best_s: float = math.inf, until_s: float = math.inf
    ) -> list[Measurement]:
        self.now_s += len(batch) * self._each_s
        self.batches.append(len(batch))
        return [Measurement(Outcome.OK, (1e-3,)) for _ in batch]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """The candidates of each batch, by seconds for each, the budget and how many; the default is in the first."""

    def verify(each_s: float, budget_s: float | None, ranked: int = 8) -> list[int]:
        device: Any = Device(each_s)
        monkeypatch.setattr(delivery.time, "monotonic", lambda: device.now_s)
        by_default, measured = Deliverer(TARGET)._verify(device, WORKLOAD, DEFAULT, RANKED[:ranked], budget_s)
        assert by_default.ok
        assert len(measured) == sum(device.batches) - 1
        assert budget_s is None or device.now_s <= max(budget_s, (1 + BATCH) * each_s)
        return device.batches

    return verify


Batches = Callable[..., list[int]]


def test_without_a_budget_all_at_once(batches: Batches) -> None:
    assert batches(1.0, None) == [9]


@pytest.mark.parametrize(
    ("budget_s", "tried"), [(0.1, [3]), (6.5, [5]), (7.5, [5, 2]), (8.9, [5, 2]), (9.1, [5, 4]), (60, [5, 4])]
)
def test_as_many_as_there_is_time_for_and_the_first_ones_in_any_case(
    batches: Batches, budget_s: float, tried: list[int]
) -> None:
    assert batches(1.0, budget_s) == tried


@pytest.mark.parametrize(("ranked", "budget_s", "tried"), [(5, 5.9, [5]), (5, 6.1, [5, 1]), (7, 8.1, [5, 3])])
def test_the_last_ones_need_no_time_for_more(batches: Batches, ranked: int, budget_s: float, tried: list[int]) -> None:
    assert batches(1.0, budget_s, ranked) == tried


def test_the_first_ones_are_fewer_where_time_is_short(batches: Batches) -> None:
    assert batches(VERIFY_S, 5 * VERIFY_S - 0.01) == [3]
    assert batches(VERIFY_S, 5 * VERIFY_S + 0.01) == [5]


def test_slower_than_thought_counts_at_once_and_faster_by_halves(batches: Batches) -> None:
    # Half of what is assumed: the next are thought to take three quarters of it, and then five eighths.
    half_s = VERIFY_S / 2
    assert batches(half_s, 5 * half_s + 3 * VERIFY_S + 0.01) == [5, 4]
    assert batches(half_s, 5 * half_s + 3 * VERIFY_S - 0.01) == [5, 2, 2]
    # Twice of it: none is begun for which there is too little time.
    assert batches(2 * VERIFY_S, 14 * VERIFY_S - 0.01) == [5]
    assert batches(2 * VERIFY_S, 14 * VERIFY_S + 0.01) == [5, 2]
    assert batches(2 * VERIFY_S, 18 * VERIFY_S + 0.01) == [5, 4]
