"""The guided search, on TVM's own spaces."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from lorien.dialects import open_live_dialect
from lorien.dialects.base import FloatArray
from lorien.dialects.metaschedule import search as subject
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedules
from lorien.dialects.metaschedule.workload import candidate_of, module_of, workload_of
from lorien.errors import BadInput
from lorien.featurize import open_extractor
from lorien.featurize.base import Features
from lorien.records import Workload
from lorien.target import Target

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

from tvm import te, tirx, topi
from tvm.ir import IRModule

TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
DIALECT = open_live_dialect("metaschedule")
EXTRACTOR = open_extractor("metaschedule")
DEPTH = EXTRACTOR.features.names.index("trace_reduce_tile0")
BALANCE = EXTRACTOR.features.names.index("parallel_balance")


def workload(name: str, *tensors: te.Tensor) -> Workload:
    return workload_of(IRModule({"main": te.create_prim_func(list(tensors))}), name)


def data(*shape: int) -> te.Tensor:
    return te.placeholder(shape, "float32", name=f"in{len(shape)}")


def dense() -> Workload:
    a, b = data(64, 128), te.placeholder((96, 128), "float32", name="weight")
    return workload("dense", a, b, topi.nn.dense(a, b))


def conv() -> Workload:
    a, b = data(1, 8, 10, 10), te.placeholder((16, 8, 3, 3), "float32", name="weight")
    return workload("conv2d", a, b, topi.nn.conv2d(a, b, 1, 0, 1))


def pool() -> Workload:
    a = data(1, 16, 14, 14)
    return workload("max_pool", a, topi.nn.pool2d(a, [2, 2], [2, 2], [1, 1], [0, 0, 0, 0], "max"))


def softmax() -> Workload:
    a = data(32, 100)
    return workload("softmax", a, topi.nn.softmax(a))


def relu() -> Workload:
    a = data(16, 64)
    return workload("relu", a, te.compute(a.shape, lambda *i: tirx.max(a(*i), tirx.const(0, "float32")), name="relu"))


def defaults(task: Workload, target: Target) -> set[str]:
    return {candidate_of(schedule).key for schedule in cpu_schedules(module_of(task), target)}


def deep_and_balanced(rows: Features) -> FloatArray:
    """A cost model anyone can check: long reductions in the innermost tile, cores evenly busy."""
    return (rows[:, DEPTH] / 10 + rows[:, BALANCE]).astype(np.float64) / 2


@pytest.fixture(autouse=True)
def _small_populations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PROBE", 8)
    monkeypatch.setattr(subject, "POPULATION", 64)
    monkeypatch.setattr(subject, "GENERATIONS", 2)


def test_the_score_guides_the_search() -> None:
    task = dense()
    found = DIALECT.search(task, TARGET, 12, deep_and_balanced, seed=1)
    scores = [candidate.score or 0.0 for candidate in found]
    random = deep_and_balanced(EXTRACTOR.extract(task, DIALECT.search(task, TARGET, 32, None, seed=1), TARGET))
    assert len({candidate.key for candidate in found}) == 12
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > np.median(random)
    assert scores[0] >= max(random)
    rows = EXTRACTOR.extract(task, found, TARGET)
    assert deep_and_balanced(rows) == pytest.approx(scores), "what was scored is what is returned"


def test_the_same_seed_finds_the_same_and_another_another() -> None:
    first, again, other = (DIALECT.search(dense(), TARGET, 8, deep_and_balanced, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert [candidate.key for candidate in first] != [candidate.key for candidate in other]


def test_without_a_score_candidates_are_random_samples() -> None:
    found = DIALECT.search(conv(), TARGET, 10, None, seed=3)
    assert len({candidate.key for candidate in found}) == 10
    assert {candidate.score for candidate in found} == {None}
    assert found == DIALECT.search(conv(), TARGET, 10, None, seed=3)


@pytest.mark.parametrize("task", [conv, pool, softmax, relu])
def test_every_kind_of_operator_has_candidates_that_lower(task: Callable[[], Workload]) -> None:
    found = DIALECT.search(task(), TARGET, 6, deep_and_balanced, seed=1)
    assert 1 <= len(found) <= 6
    assert len({candidate.key for candidate in found}) == len(found)
    assert np.isfinite(EXTRACTOR.extract(task(), found, TARGET)).all()


def test_a_space_of_one_has_one_candidate_beside_the_default() -> None:
    (only,) = DIALECT.search(relu(), TARGET, 6, None)
    found = {candidate.key for candidate in DIALECT.search(relu(), TARGET, 6, deep_and_balanced)}
    assert found == {only.key, *defaults(relu(), TARGET)}


def test_the_default_and_its_likes_are_scored_too() -> None:
    """The sketches' schedules tile axes, which the trace tells; those of the default's kind cut loops as written."""
    tiled = EXTRACTOR.features.names.index("trace_tiled_spatial_axes")
    found = DIALECT.search(dense(), TARGET, 40, lambda rows: -rows[:, tiled].astype(np.float64), seed=1)
    likes = defaults(dense(), TARGET)
    assert 8 < len(likes) < 40
    # One of each family is taken before the second of any.
    assert len(likes & {candidate.key for candidate in found}) > len(likes) / 2
    gpu = Target.parse({"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024})
    assert not defaults(dense(), gpu)


def test_the_budget_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second passes each time the search looks
    monkeypatch.setattr(subject.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(subject, "POPULATION", 100_000)
    found = DIALECT.search(dense(), TARGET, 4, deep_and_balanced, budget_s=8.0)
    assert len(found) == 4


def test_no_time_at_all_still_gives_the_default_and_samples() -> None:
    found = {one.key for one in DIALECT.search(dense(), TARGET, 4, deep_and_balanced, budget_s=0.0)}
    default = candidate_of(next(cpu_schedules(module_of(dense()), TARGET)))
    assert default.key in found
    assert found - defaults(dense(), TARGET)


def test_a_model_that_fails_is_not_hidden() -> None:
    def broken(rows: Features) -> FloatArray:
        raise ArithmeticError("the model is broken")

    with pytest.raises(ArithmeticError, match="the model is broken"):
        DIALECT.search(dense(), TARGET, 4, broken)


def test_a_target_without_cores_says_what_it_lacks() -> None:
    with pytest.raises(BadInput, match="num-cores"):
        DIALECT.search(dense(), Target.parse("llvm -mcpu=znver4"), 4, None)


def test_one_family_does_not_take_all_places() -> None:
    ranked = [(9 - 0.1 * place, 1) for place in range(subject.PER_FAMILY + 1)] + [(3.0, 2)]
    found = [
        subject._Found(score, np.full(len(EXTRACTOR.features.columns), family, np.float32), None)
        for score, family in ranked
    ]
    scores = [score for score, _ in ranked]
    count = subject.PER_FAMILY + 1
    assert [one.score for one in subject._diverse(found, count)] == [*scores[: subject.PER_FAMILY], 3.0]
    assert [one.score for one in subject._diverse(found, 99)] == scores


def test_a_slow_kernel_is_sampled_no_longer_than_the_clock_allows() -> None:
    """Each sample of a kernel of a hundred blocks takes a second; without a clock all are drawn at once, as ever."""
    space = subject._Space(dense(), TARGET, 0)
    spent = subject._Clock(started_s=0.0, budget_s=1.0)
    assert 0 < len(space.sample(64, spent)) <= subject._STEP
    assert len(space.sample(64, subject._Clock(0.0, float("inf")))) == 64
    island = subject._Island(space, deep_and_balanced)
    assert 0 < len(island.probe(8, spent)) <= subject._STEP
    island.evolve(64, (), spent)
    assert 0 < island.scored <= subject._STEP
