"""Drafts of MetaSchedule's schedules, against the schedules that TVM makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lorien.dialects import open_live_dialect
from lorien.dialects.base import FloatArray
from lorien.dialects.metaschedule import draft as subject
from lorien.dialects.metaschedule import search
from lorien.dialects.metaschedule.describe import EARLY, FEATURES, Describer
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.search import _Space
from lorien.dialects.metaschedule.vectors import vectors_of
from lorien.featurize import open_extractor
from lorien.featurize.base import Features
from lorien.records import Workload
from tests.unit.test_metaschedule_search import TARGET, conv, dense, pool, relu, softmax

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

NAMES = [feature.name for feature in FEATURES]
DEPTH, UNROLL, TILE = (NAMES.index(name) for name in ("trace_reduce_tile0", "main_auto_unroll", "trace_spatial_tile1"))
LOCATIONS = [NAMES.index(name) for name in ("trace_location_first", "trace_location_last")]


@pytest.fixture(autouse=True)
def _intrinsics() -> None:
    register_intrinsics(TARGET)  # as every search does first: TVM itself would parse those of all targets


@pytest.fixture
def small_population(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "POPULATION", 96)


def deep_and_small_tiles(rows: Features) -> FloatArray:
    """A model of decisions that anyone can check."""
    return rows[:, DEPTH].astype(np.float64) - 0.01 * rows[:, TILE] + 0.001 * rows[:, UNROLL]


@pytest.mark.parametrize("task", [conv, dense, pool, softmax, relu])
def test_a_draft_is_described_as_the_schedule_it_becomes(task: Callable[[], Workload]) -> None:
    space, describe = _Space(task(), TARGET, 1), Describer(TARGET)
    samples = space.sample(24)
    known = describe(samples[:1], [task()])[0]
    rng = np.random.default_rng(0)
    compared = 0
    for sketch in subject.sketches_of(samples, vectors_of(TARGET)):
        genes = rng.integers(0, sketch.domains, (12, len(sketch.domains))).astype(np.int8)
        rows, scores = subject._scored(sketch, genes, known, deep_and_small_tiles)
        assert np.isnan(np.delete(rows, EARLY, axis=1)).all(), "nothing is given that a draft cannot know"
        for row, score, one in zip(rows, scores, genes, strict=True):
            schedule = space.make(sketch.trace(one)) if np.isfinite(score) else None
            if schedule is not None:
                found = describe([schedule], [task()])[0]
                # Between the stages of a softmax, the store with most arithmetic need not be in the unrolled one, and
                # TVM moves a stage that cannot be computed where it was decided.
                open_ = {UNROLL, *LOCATIONS} if task is softmax else set()
                exact = [column for column in EARLY if column not in open_]
                np.testing.assert_array_equal(found[exact], row[exact])
                compared += 1
    assert compared >= 6


def test_drafts_are_what_the_model_asks_for_and_follow_the_seed() -> None:
    space = _Space(conv(), TARGET, 1)
    samples = space.sample(24)
    known = Describer(TARGET)(samples[:1], [conv()])[0]
    sketches = subject.sketches_of(samples, vectors_of(TARGET))
    first, again, other = (subject.draft(sketches, known, deep_and_small_tiles, 20, seed) for seed in (1, 1, 2))
    assert first == again != other
    made = [schedule for schedule in map(space.make, first) if schedule is not None]
    assert len(made) >= 15
    rows = Describer(TARGET)(made, [conv()] * len(made))
    random = deep_and_small_tiles(Describer(TARGET)(samples, [conv()] * len(samples)))
    assert np.median(deep_and_small_tiles(rows)) >= max(random)
    assert len({row[subject._FAMILY].tobytes() for row in rows}) >= len(rows) / 4, "families far apart are kept"


@pytest.mark.usefixtures("small_population")
def test_a_search_tells_the_features_of_what_it_returns() -> None:
    rows: dict[str, Features] = {}
    found = open_live_dialect("metaschedule").search(dense(), TARGET, 8, deep_and_small_tiles, seed=1, rows=rows)
    assert set(rows) == {candidate.key for candidate in found}
    again = open_extractor("metaschedule").extract(dense(), found, TARGET)
    np.testing.assert_array_equal(np.stack([rows[candidate.key] for candidate in found]), again)


@pytest.mark.usefixtures("small_population")
def test_a_search_that_drafts_finds_more_and_follows_the_seed() -> None:
    dialect = open_live_dialect("metaschedule")
    plain = dialect.search(dense(), TARGET, 16, deep_and_small_tiles, seed=1)
    drafted = [
        dialect.search(dense(), TARGET, 16, deep_and_small_tiles, seed=1, draft=deep_and_small_tiles) for _ in range(2)
    ]
    assert drafted[0] == drafted[1]
    mean, plain_mean = (np.mean([candidate.score for candidate in found]) for found in (drafted[0], plain))
    assert mean > plain_mean
