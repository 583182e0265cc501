"""Search a workload's space with a model in place of the device: TVM's evolution, TVM's mutators, our scores."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import FloatArray, ScoreFn
from lorien.dialects.metaschedule.cpu_schedule import FIRST_DEFAULTS, cpu_schedules
from lorien.dialects.metaschedule.describe import Describer
from lorien.dialects.metaschedule.draft import draft as draft_traces
from lorien.dialects.metaschedule.draft import make, sketches_of
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.selection import breeding_weights, in_turns, positions
from lorien.dialects.metaschedule.space import space_generator
from lorien.dialects.metaschedule.workload import candidate_of, candidate_of_trace, module_of, tvm_target
from lorien.errors import BadInput
from lorien.machine import available_cores
from lorien.records import Candidate, Json, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.schedule import Trace

logger = logging.getLogger(__name__)
# TVM reports every generation, and warns of traces that do not apply, which are a part of any search.
_tvm_logger = logging.getLogger(f"{__name__}.tvm")
_tvm_logger.setLevel(logging.ERROR)

POPULATION = 256
GENERATIONS = 4
PROBE = 32
"""Samples that tell how large the space is."""
DRAFT_PROBE = 8
"""The same where the next are drafted: they tell the sketches too, and are rarely among the best."""
SAMPLING_SHARE = 0.3
"""Of the seconds given, what the first, random generation may take: later ones hold the better schedules."""
DRAFTING_SHARE = 0.5
"""Of the seconds given, until when drafts are bred."""
MAKING_SHARE = 0.8
"""The same until when they are made: a first generation of drafts is as good as later ones, and more varied."""
CHUNK = 8
"""Drafts made before they are scored."""
_STEP = 2
"""Samples between two looks at the clock."""
PRESSURE = 3
"""Parents are drawn by (rank / population) to this power, whatever the scale of the scores."""
_SMALLEST = 4
"""Probes that make up the smallest population worth evolving: it bounds the threads used."""
_EXHAUSTED = 0.5
"""Of a round of samples, the share that must be new for the space to be worth more of them."""
FAMILY = ("main_parallel_extent", "main_vectorize_inner", "trace_spatial_tile0", "trace_reduce_tile0")
"""Features in which a family of schedules is alike. Where the model is wrong of one, it is wrong of all."""
PER_FAMILY = 1
"""Schedules of a family that are taken before another family's best."""
_TRIES = 4
"""Rounds of samples at most, where a round gives fewer than asked for."""
_USABLE = 0.25
"""Of the drafts made but for the last few, the share that must be schedules for more to be worth making."""
_SEEDS = 2**31 - 2
_FAMILY = positions(FAMILY)


def search(
    workload: Workload,
    target: Target,
    count: int,
    score: ScoreFn | None,
    *,
    seed: int = 0,
    budget_s: float | None = None,
    draft: ScoreFn | None = None,
    rows: dict[str, npt.NDArray[np.float32]] | None = None,
) -> list[Candidate]:
    """See ``LiveDialect.search``.

    Each core evolves a population of its own: TVM's threads would share one in an order that differs from run to run.
    So a search without a budget gives the same candidates for the same seed on machines of as many cores.
    Candidates whose features are equal count as one: a model cannot tell them apart, and hardly can the device.

    Raises
    ------
    BadInput
        The workload cannot be read, or MetaSchedule has no search space for it on this target.
    """
    started_s = time.monotonic()
    register_intrinsics(target)
    if score is None:
        return _random(_Space(workload, target, seed), count)
    clock = _Clock(started_s, budget_s if budget_s is not None else float("inf"))
    cores = max(1, min(available_cores(), POPULATION // (_SMALLEST * PROBE)))
    lock = threading.Lock()

    def locked(rows: npt.NDArray[np.float32]) -> FloatArray:
        with lock:  # a model need not be safe across threads
            return score(rows)

    islands = [_Island(_Space(workload, target, seed * cores + i), locked) for i in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        defaults = cpu_schedules(module_of(workload), target)
        in_time = functools.partial(itertools.takewhile, lambda _: not clock.past(SAMPLING_SHARE))
        # Of all that was not measured they are the best guess: one is scored however little time there is.
        first, others = itertools.islice(defaults, 1), itertools.islice(defaults, FIRST_DEFAULTS - 1)
        islands[0].weigh(itertools.chain(first, in_time(others)))
        probe = PROBE if draft is None else DRAFT_PROBE
        probed = pool.map(lambda island: island.probe(probe, clock), islands)
        samples = [schedule for found in probed for schedule in found]
        islands[0].weigh(in_time(defaults))
        drafts = _drafts(islands[0], samples, draft, POPULATION - cores * probe, seed, clock)
        shares = [drafts[index::cores] for index in range(cores)]
        list(pool.map(lambda island, share: island.evolve(POPULATION // cores, share, clock), islands, shares))
    found = {features: one for island in islands for features, one in island.found.items()}
    best: dict[str, Candidate] = {}
    for one in _diverse(found.values(), count):
        candidate = candidate_of_trace(one.trace, one.score)
        best[candidate.key] = candidate
        if rows is not None:
            rows[candidate.key] = one.row
    scored = sum(island.scored for island in islands)
    logger.info("%s: %d candidates scored in %.1f s", workload.name, scored, time.monotonic() - started_s)
    return list(best.values())


class _Clock(NamedTuple):
    """When a search began, and the seconds it has."""

    started_s: float
    budget_s: float

    def past(self, share: float, ahead_s: float = 0.0) -> bool:
        """Whether that share of the seconds is used up, or will be when what takes ``ahead_s`` is done."""
        return time.monotonic() + ahead_s - self.started_s > share * self.budget_s


def _drafts(
    island: _Island, samples: Sequence[Schedule], score: ScoreFn | None, count: int, seed: int, clock: _Clock
) -> Sequence[Json]:
    """The best drafts of the samples' sketches; none where the samples are all there is, or nobody scores drafts."""
    if score is None or island.exhausted or island.described is None:
        return ()
    late = functools.partial(clock.past, DRAFTING_SHARE)
    return draft_traces(sketches_of(samples, island.vectors), island.described, score, count, seed, late)


def _diverse(found: Iterable[_Found], count: int) -> list[_Found]:
    """The best of each family before the families' next best; those chosen, best first."""
    ranked = sorted(found, key=lambda one: -one.score)
    return [ranked[index] for index in sorted(in_turns([one.family for one in ranked], PER_FAMILY)[:count])]


def _random(space: _Space, count: int) -> list[Candidate]:
    """At most ``count`` distinct random candidates; fewer when a round of as many samples shows too few new ones."""
    import tvm_ffi

    found: dict[int, Schedule] = {}
    while len(found) < count:
        known = len(found)
        for schedule in space.sample(count):
            found.setdefault(tvm_ffi.structural_hash(schedule.mod), schedule)
        if len(found) - known < _EXHAUSTED * count:
            break
    return [candidate_of(schedule) for schedule in list(found.values())[:count]]


class _Space:
    """MetaSchedule's search space of a workload: TVM's rules, mutators and post-processors for the target."""

    def __init__(self, workload: Workload, target: Target, seed: int) -> None:
        self.workload = workload
        self.target = target
        self._seed = seed
        self._context = self.context(1)

    def context(self, population: int, model: ms.CostModel | None = None) -> ms.TuneContext:
        """A tune context ready to sample, and to evolve under ``model``."""
        from tvm.s_tir import meta_schedule as ms

        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=population, init_measured_ratio=0.0, init_min_unmeasured=1, genetic_num_iters=GENERATIONS
        )
        try:
            context = ms.TuneContext(
                module_of(self.workload),
                target=tvm_target(self.target),
                space_generator=space_generator(module_of(self.workload), self.target),
                search_strategy=strategy,
                num_threads=1,
                rand_state=self._seed % _SEEDS + 1,
                logger=_tvm_logger,
            )
            context.pre_tuning(1, 1, database=ms.database.MemoryDatabase(), cost_model=model)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise BadInput(
                f"MetaSchedule has no search space for {self.workload.name} on {self.target}: {reason}"
            ) from error
        return context

    def make(self, trace: Json) -> Schedule | None:
        """The schedule of a draft; None where TVM has none."""
        return make(self.workload, trace, self._context)

    def sample(self, count: int, clock: _Clock | None = None) -> list[Schedule]:
        """At most ``count`` random schedules that every post-processor accepts; duplicates are possible.

        With a clock, of one at least, and no more than the first generation has time for: of a kernel of a hundred
        blocks a sample takes a second.
        """
        from tvm.s_tir.meta_schedule import _ffi_api as ffi

        timed = clock is not None and clock.budget_s < float("inf")
        found: list[Schedule] = []
        for _ in range(0, count, _STEP if timed else count):
            if timed and found and clock is not None and clock.past(SAMPLING_SHARE):
                break
            some = min(_STEP, count - len(found)) if timed else count
            found += ffi.SearchStrategyEvolutionarySearchSampleInitPopulation(self._context.search_strategy, some)
        return found


class _Found(NamedTuple):
    """What is kept of a schedule: its trace is a hundredth of its module."""

    score: float
    row: npt.NDArray[np.float32]
    trace: Trace

    @property
    def family(self) -> bytes:
        """What it has in common with others of its family."""
        return self.row[_FAMILY].tobytes()


class _Island:
    """A population that evolves in one thread, and all that was found in it, by features."""

    def __init__(self, space: _Space, score: ScoreFn) -> None:
        self.scored = 0
        self.exhausted = False
        self.described: npt.NDArray[np.float32] | None = None
        """The row of a schedule."""
        self.found: dict[bytes, _Found] = {}
        self._space = space
        self._describe = Describer(space.target)
        self.vectors = self._describe.vectors
        self._score = score
        self._scores: dict[Schedule, float] = {}
        self._first: list[Schedule] = []
        self._each_s = 0.0
        """How long a sample takes."""

    def probe(self, count: int, clock: _Clock) -> list[Schedule]:
        """The first random samples, scored; fewer where they take longer than the clock allows."""
        known = len(self.found)
        began_s = time.monotonic()
        for _ in range(_TRIES):  # of a GPU's samples most break its limits
            if len(self._first) < count and not (self._first and clock.past(SAMPLING_SHARE)):
                self._first += self._space.sample(count, clock)
        self._each_s = (time.monotonic() - began_s) / max(1, len(self._first))
        self._weights(self._first)
        # Of a handful of schedules more samples find all, and there is nothing to breed.
        self.exhausted = 0 < len(self.found) - known <= _EXHAUSTED * len(self._first)
        return self._first

    def weigh(self, schedules: Iterable[Schedule]) -> None:
        """Score schedules that come from elsewhere."""
        self._score_beside(list(schedules))

    def _score_beside(self, schedules: Sequence[Schedule]) -> None:
        """Score schedules of the same generation as those scored before."""
        known = self._scores
        self._weights(schedules)
        self._scores |= known

    def evolve(self, population: int, drafts: Sequence[Json], clock: _Clock) -> None:
        """Make a population of drafts, or sample one, and breed from it until its generations or the seconds end."""
        from tvm.s_tir.meta_schedule import _ffi_api as ffi

        if self.exhausted:
            self._weights(self._space.sample(PROBE, clock))
            return
        made = self._made(drafts, clock)
        first = [*self._first, *made]
        while len(made) < PROBE and len(first) < population and not clock.past(SAMPLING_SHARE):
            first += self._space.sample(min(PROBE, population - len(first)), clock)
        # To breed one takes as long as to sample one, and TVM's loop over them has no way out.
        if not first or clock.past(1.0, len(first) * self._each_s):
            return
        scored_s = time.monotonic()
        expired = False

        def weigh(schedules: Sequence[Schedule]) -> FloatArray:
            nonlocal expired, scored_s
            now_s = time.monotonic()
            # This generation was bred since the last was scored, and its scores take as long again: not past the end.
            expired = now_s + (now_s - scored_s) > clock.started_s + clock.budget_s
            if expired:
                raise TimeoutError("out of time")  # the only way out of TVM's loop
            weights = self._weights(schedules)
            scored_s = time.monotonic()
            return weights

        context = self._space.context(len(first), _cost_model(weigh))
        try:
            ffi.SearchStrategyEvolutionarySearchEvolveWithCostModel(context.search_strategy, first, 1)
        except Exception:
            if not expired:
                raise

    def _made(self, drafts: Sequence[Json], clock: _Clock) -> list[Schedule]:
        """The schedules of the drafts there is time for, of a few at least, scored.

        A model that learned nothing of a GPU's limits drafts what breaks them: then it ends early.
        """
        found: list[Schedule] = []
        for at in range(0, len(drafts), CHUNK):
            if at and (clock.past(MAKING_SHARE) or len(found) < _USABLE * (at - CHUNK)):
                break
            made: list[Schedule] = []
            for trace in drafts[at : at + CHUNK]:
                schedule = None if made and clock.past(MAKING_SHARE) else self._space.make(trace)
                made += [schedule] if schedule is not None else []
            self._score_beside(made)
            found += made
        return found

    def _weights(self, schedules: Sequence[Schedule]) -> FloatArray:
        """Score a generation, and say how much each is to be bred from."""
        # Those not mutated are in the next generation again, as the same objects.
        new = [schedule for schedule in dict.fromkeys(schedules) if schedule not in self._scores]
        rows = self._describe(new, [self._space.workload] * len(new))
        values = np.full(len(new), -np.inf)
        good = ~np.isnan(rows[:, 0])
        if good.any():
            values[good] = self._score(rows[good])
        known = {**self._scores, **dict(zip(new, values.tolist(), strict=True))}
        self._scores = {schedule: known[schedule] for schedule in schedules}
        self.scored += len(new)
        self.described = rows[good][0] if good.any() else self.described
        for schedule, row, value in zip(new, rows, values.tolist(), strict=True):
            if np.isfinite(value):
                features = row.tobytes()
                self.found.setdefault(features, _Found(value, np.frombuffer(features, row.dtype), schedule.trace))
        return breeding_weights([self._scores[schedule] for schedule in schedules], PRESSURE)


def _cost_model(weigh: Callable[[Sequence[Schedule]], FloatArray]) -> ms.CostModel:
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class Scored(PyCostModel):  # type: ignore[misc]
        def load(self, path: str) -> None:
            """Nothing to load: the model comes trained."""

        def save(self, path: str) -> None:
            """Nothing to save."""

        def update(self, context: Any, candidates: Any, results: Any) -> None:
            """Nothing to learn: no candidate is measured here."""

        def predict(self, context: Any, candidates: Any) -> FloatArray:
            return weigh([candidate.sch for candidate in candidates])

    return Scored()
