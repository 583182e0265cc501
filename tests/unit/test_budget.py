"""What takes longer than there is time for is ended: searches, builds and runs of ``stub_dialect/misbehaving.py``."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lorien import delivery, network
from lorien.delivery import Deliverer, Source, open_deliverer
from lorien.errors import BadInput
from lorien.models import load_ranker
from lorien.models.store import open_models
from lorien.network import Budget, Choice, _rank
from lorien.records import Candidate, Outcome, Workload
from lorien.target import Target
from lorien.tune import deadline
from lorien.tune.measure import MeasureConfig, Measurer
from lorien.tune.search_job import SPENT

STUB = Path(__file__).parent / "stub_dialect"
GOLDEN = Path(__file__).parents[1] / "golden" / "formats_v1" / "models"
TARGET = Target.parse("llvm -model=i7-3770")
FINE, DEFAULT = Candidate({}), Candidate(None)
HANGS = Candidate({"build": "hang"})


def workload(name: str = "fine") -> Workload:
    """Its name says what its search does."""
    return Workload("forked", name, [name])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MIN_SHARE_S", 0.5)
    monkeypatch.syspath_prepend(STUB)
    monkeypatch.setattr(deadline, "GRACE_S", 0.5)
    monkeypatch.setattr(delivery, "GRACE_S", 0.5)


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A store with a model of the stub."""
    stored = open_models(GOLDEN).read("autotvm", TARGET.key)
    assert stored is not None
    open_models(tmp_path / "models").publish(
        dataclasses.replace(stored.model, dialect="forked", confidence={}), Path(stored.folder)
    )
    return str(tmp_path / "models")


@pytest.fixture
def measurer(models: str) -> Iterator[Measurer]:
    with Measurer("forked", TARGET, MeasureConfig(builders=2), models=models) as measurer:
        measurer.measure(workload(), [FINE])  # its children are there
        yield measurer


def search(measurer: Measurer, name: str, wait_s: float) -> tuple[int, str]:
    until_s = time.monotonic() + wait_s
    found = measurer.search(workload(name), 3, seed=0, budget_s=None, until_s=until_s)
    return len(found.candidates), found.note


def test_a_search_is_ended_whatever_it_does_and_the_next_one_is_answered(measurer: Measurer) -> None:
    assert search(measurer, "fine", 60) == (3, "")
    assert search(measurer, "hang", 0.3) == (0, SPENT)
    assert search(measurer, "fine", 60) == (3, "")
    count, note = search(measurer, "segfault", 60)
    assert count == 0
    assert note.startswith("the search failed: crash SIGSEGV")
    assert search(measurer, "raise", 60) == (0, "the search failed: unknown_error RuntimeError: the compiler says no")
    with pytest.raises(BadInput, match="does not fit"):
        search(measurer, "unfit", 60)
    assert search(measurer, "fine", 60) == (3, "")


def test_builds_and_runs_are_ended_once_something_is_verified(measurer: Measurer) -> None:
    spent = [(Outcome.BUILD_TIMEOUT, SPENT)]

    def measured(candidates: list[Candidate], best_s: float = math.inf) -> list[tuple[Outcome, str]]:
        results = measurer.measure(workload(), candidates, best_s=best_s, until_s=time.monotonic())
        return [(result.outcome, result.detail) for result in results]

    assert measured([HANGS, FINE], best_s=1e-3) == 2 * spent  # something was verified before
    first, second = measured([HANGS, FINE])
    assert (first, second[0]) == (*spent, Outcome.OK)
    assert second[1].startswith("measured again")  # the only one that ran
    assert measured([HANGS]) == spent
    assert measured([Candidate({"run": "hang"})]) == [(Outcome.RUN_TIMEOUT, SPENT)]
    first, second = measured([FINE, Candidate({"run": "hang"})])
    assert first[0] == Outcome.OK
    assert second[1] == SPENT  # in its build or in its run
    (whole,) = measurer.measure(workload(), [FINE], best_s=math.inf, until_s=time.monotonic() + 60)
    assert whole.ok


def test_an_answer_in_time_is_the_default_and_says_why(models: str) -> None:
    for verify in (False, True):
        with open_deliverer(TARGET, "forked", models=models, verify=verify, budget_s=60) as deliverer:
            assert deliverer.deliver(workload()).source is Source.RANKED
            late = deliverer.deliver(workload("hang"), spent_s=60)
            assert (late.source, late.candidate, late.note) == (Source.DEFAULT, DEFAULT, SPENT)
            crashed = deliverer.deliver(workload("segfault"))
            assert crashed.source is Source.DEFAULT
            assert "SIGSEGV" in crashed.note


def test_what_was_verified_in_time_is_the_answer(
    models: str, measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliverer = Deliverer(TARGET, ranker=load_ranker(models, TARGET, "forked"), measurer=measurer, budget_s=60)
    for ranked, source, note, tried in (
        ([HANGS, FINE, FINE], Source.RANKED, "the budget ended after 1 of 3 candidates", 1),
        ([HANGS, HANGS], Source.DEFAULT, SPENT, 0),
    ):
        found = delivery.Found(ranked)
        monkeypatch.setattr(deliverer, "_search", lambda *_, found=found: found)
        answer = deliverer.deliver(workload(), spent_s=60)
        assert (answer.source, answer.note, len(answer.trials)) == (source, note, tried)


def test_a_workload_of_a_model_that_takes_long_leaves_the_others_their_share(models: str, measurer: Measurer) -> None:
    missing = [Choice(workload(name), Source.DEFAULT, DEFAULT, None, "missing") for name in ("hang", "fine")]
    ranker = load_ranker(models, TARGET, "forked")

    class Shares(Budget):
        def share(self, works: Sequence[float], now_s: float | None = None) -> float:
            return 0.01 * 1000 ** (2 - len(works))

    first, second = _rank(missing, Shares(time.monotonic() + 60), TARGET, None, ranker, measurer, None)
    assert (first.source, first.why) == (Source.DEFAULT, f"missing; {SPENT}")
    assert second.why != first.why
    assert second.latency_s
