"""MetaSchedule's search of many workloads over a session: asked for candidates, told what became of them."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import FloatArray, ScoreFn
from lorien.dialects.metaschedule.cpu_schedule import FIRST_DEFAULTS, cpu_schedules
from lorien.dialects.metaschedule.describe import Describer
from lorien.dialects.metaschedule.draft import draft as draft_traces
from lorien.dialects.metaschedule.draft import make, sketches_of
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.search import FAMILY, PER_FAMILY, PRESSURE
from lorien.dialects.metaschedule.selection import breeding_weights, in_turns, positions
from lorien.dialects.metaschedule.space import space_generator
from lorien.dialects.metaschedule.workload import candidate_of, module_of, schedule_of, tvm_target
from lorien.records import Candidate, Measurement, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

Rows = npt.NDArray[np.float32]

POPULATION = 64
GENERATIONS = 2
"""An eighth of the candidates and half of the rounds of TVM's own search: the pool carries over what TVM finds anew."""
FRESH = POPULATION // 4
ELITE = POPULATION // 4
"""Of the first generation, random samples and the best measured; the rest are the most promising of the pool."""
DRAFTS = 64
"""Made before anything is bred, where a model drafts."""
POOL = 512
"""Most promising candidates, not measured yet, that are kept from round to round."""
TURNS = "bbsbbsbr"
"""Whose turn it is to choose a batch's next candidate: of all that was bred, the best of each family in turn (b); of
the random samples alone, which no model has bent to its liking, the best (s); or a random one of these (r)."""
_DRY_ROUNDS = 2
"""Rounds without a new candidate after which a space counts as exhausted."""
_FAMILY = positions(FAMILY)
_TINY_SHARE = 0.5
"""Of random samples, how much must be distinct for the space to be worth more than random samples."""

# TVM reports each generation, and warns of traces that do not apply, which are a part of any search.
_tvm_logger = logging.getLogger(f"{__name__}.tvm")
_tvm_logger.setLevel(logging.ERROR)


class Model(Protocol):
    """What is known of candidates before they are measured; learns from those that are."""

    def warm_up(self) -> None:
        """Load what learning takes, while nothing waits for it."""

    def ready(self, workload: str) -> bool:
        """False as long as its scores of the workload of that key are no better than chance."""

    def score(self, rows: Rows) -> FloatArray:
        """Scores (rows,) of features (rows, columns), higher is better."""

    def learn(self, workload: str, rows: Rows, latencies_s: FloatArray) -> None:
        """Take in what was measured of the workload of that key; infinity for a failure."""


class MetaScheduleSearch:
    """Searches the spaces of many workloads. Implements ``lorien.tune.loop.Strategy``.

    For a CPU the first candidates of a workload are its default schedule, so that tuning is never slower than none, and
    others of its kind. While the model is not ready the next are random samples, which is what TVM's evolution under
    its untrained cost model comes to, without the cost of it. Then TVM's mutators breed from random samples, the best
    measured and the most promising of all bred before, and the model chooses.

    Parameters
    ----------
    target : Target
    model : Model, optional
        Scores candidates of all the workloads. None stays with random samples: TVM's ``replay-trace``.
    threads : int
        Threads that breed and describe candidates.
    seed : int
    draft : callable, optional
        Scores drafts, as ``LiveDialect.search`` takes it: the first pool is what it praises.
    """

    def __init__(
        self, target: Target, model: Model | None, *, threads: int, seed: int, draft: ScoreFn | None = None
    ) -> None:
        register_intrinsics(target)
        describe = Describer(target, threads)
        self._model = model
        self._new = functools.partial(
            _Search, target=target, model=model, describe=describe, threads=threads, seed=seed, draft=draft
        )
        self._searches: dict[str, _Search] = {}

    def ask(self, workload: Workload, count: int) -> list[Candidate]:
        """At most ``count`` candidates neither asked for nor told of before; none when the space is exhausted."""
        return self._search(workload).ask(count)

    def prepare(self, workload: Workload, count: int) -> None:
        """Breed what ``ask`` then chooses from, by what the model knows at that time."""
        if self._model is not None:
            self._model.warm_up()
        self._search(workload).prepare(count)

    def tell(self, workload: Workload, candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> None:
        """Take in measurements, of candidates asked for or of a session before this one."""
        self._search(workload).tell(candidates, measurements)

    def _search(self, workload: Workload) -> _Search:
        if workload.key not in self._searches:
            self._searches[workload.key] = self._new(workload)
        return self._searches[workload.key]


class _Search:
    """One workload's space, what was bred in it, and what was measured of that."""

    def __init__(
        self,
        workload: Workload,
        *,
        target: Target,
        model: Model | None,
        describe: Describer,
        threads: int,
        seed: int,
        draft: ScoreFn | None,
    ) -> None:
        from tvm.s_tir import meta_schedule as ms

        self._workload = workload
        self._model = model
        self._describe = describe
        self._draft = draft
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._tiny = False
        self._seen: set[str] = set()
        self._asked: dict[str, Schedule] = {}
        self._elite: list[tuple[float, Schedule]] = []
        self._rows: dict[Schedule, npt.NDArray[np.float32]] = {}
        # By features: schedules that have all of them in common are one program, or as good as one.
        self._pool: dict[bytes, Schedule] = {}
        self._samples: dict[bytes, Schedule] = {}
        self._spent: set[bytes] = set()
        self._sampled: list[Schedule] = []
        self._bred = False
        defaults = cpu_schedules(module_of(workload), target)
        self._first, self._defaults = list(itertools.islice(defaults, FIRST_DEFAULTS)), list(defaults)
        self._strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_min_unmeasured=1, genetic_num_iters=GENERATIONS
        )
        self._context = ms.TuneContext(
            module_of(workload),
            target=tvm_target(target),
            space_generator=space_generator(module_of(workload), target),
            search_strategy=self._strategy,
            task_name=workload.name,
            rand_state=seed + 1,  # TVM takes no zero
            num_threads=threads,
            logger=_tvm_logger,
        )
        cost_model = _cost_model(self._breeding_weights)
        self._context.pre_tuning(1, 1, database=ms.database.MemoryDatabase(), cost_model=cost_model)

    def ask(self, count: int) -> list[Candidate]:
        for _ in range(_DRY_ROUNDS):
            self.prepare(count)
            guided = self._guided()
            schedules = itertools.chain(self._first, self._chosen() if guided else self._sampled)
            self._bred, self._sampled, self._first = False, [], []
            fresh: list[Candidate] = []
            for schedule in schedules:
                candidate = candidate_of(schedule)
                if candidate.key not in self._seen:
                    self._seen.add(candidate.key)
                    self._asked[candidate.key] = schedule
                    fresh.append(candidate)
                    if len(fresh) == count:
                        break
            self._tiny = self._tiny or (not guided and len(fresh) < _TINY_SHARE * count)
            if fresh:
                return fresh
        return []

    def prepare(self, count: int) -> None:
        if self._guided():
            if not self._bred:
                self._breed()
        elif not self._sampled:
            self._sampled = self._sample(count)

    def _guided(self) -> bool:
        return self._model is not None and self._model.ready(self._workload.key) and not self._tiny

    def tell(self, candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> None:
        self._seen.update(candidate.key for candidate in candidates)
        schedules = [self._asked.pop(c.key, None) or schedule_of(self._workload, c) for c in candidates]
        latencies_s = [math.inf if m.latency_s is None else m.latency_s for m in measurements]
        ran = [pair for pair in zip(latencies_s, schedules, strict=True) if pair[0] < math.inf]
        self._elite = sorted([*self._elite, *ran], key=lambda pair: pair[0])[:ELITE]
        if self._model is not None:
            rows = self._features(schedules)
            self._spent.update(row.tobytes() for row in rows)
            self._model.learn(self._workload.key, rows, np.array(latencies_s))

    def _sample(self, count: int) -> list[Schedule]:
        from tvm.s_tir.meta_schedule import _ffi_api

        return list(_ffi_api.SearchStrategyEvolutionarySearchSampleInitPopulation(self._strategy, count))

    def _breed(self) -> None:
        """Add new schedules to the pool. A space that turns out tiny is left to random samples."""
        from tvm.s_tir.meta_schedule import _ffi_api

        alone = not self._pool and self._draft is None
        parents = [*self._sampled, *self._sample(POPULATION - len(self._elite) if alone else FRESH)]
        if not self._pool and len(set(map(bytes, self._features(parents)))) < _TINY_SHARE * len(parents):
            self._tiny, self._sampled = True, parents
            return
        if not self._pool and self._draft is not None and (drafts := self._drafts(parents, self._draft)):
            self._keep(self._pool, drafts)
        if self._defaults:
            self._keep(self._pool, self._defaults)
            self._defaults = []
        self._keep(self._samples, parents)
        promising = [*(schedule for _, schedule in self._elite), *self._ranked()]
        parents += [schedule for schedule in promising if schedule.trace.decisions][: max(0, POPULATION - len(parents))]
        _ffi_api.SearchStrategyEvolutionarySearchEvolveWithCostModel(self._strategy, parents, 1)
        self._bred, self._sampled = True, []

    def _drafts(self, samples: list[Schedule], score: ScoreFn) -> list[Schedule]:
        """The schedules of the best drafts of the samples' sketches."""
        rows = self._features(samples)
        known = rows[~np.isnan(rows[:, 0])]
        if not len(known):
            return []
        traces = draft_traces(sketches_of(samples, self._describe.vectors), known[0], score, DRAFTS, self._seed)
        made = (make(self._workload, trace, self._context) for trace in traces)
        return [schedule for schedule in made if schedule is not None]

    def _chosen(self) -> Iterator[Schedule]:
        """New schedules, chosen by turns from the pool and from the random samples."""
        ranked = self._ranked()[:POOL]
        self._pool = {self._rows[schedule].tobytes(): schedule for schedule in ranked}
        samples = self._by_score(list(self._samples.values()))[:POOL]
        self._samples = {self._rows[schedule].tobytes(): schedule for schedule in samples}
        kept = (*ranked, *samples, *(schedule for _, schedule in self._elite))
        self._rows = {schedule: self._rows[schedule] for schedule in kept}
        shuffled = [samples[i] for i in self._rng.permutation(len(samples))]
        choosers = {"b": iter(self._by_families(ranked)), "s": iter(samples), "r": iter(shuffled)}
        for turn in itertools.cycle(TURNS):
            others = (choosers[turn], *choosers.values())  # one that has none left gives its turn away
            schedule = next((s for s in itertools.chain(*others) if self._rows[s].tobytes() not in self._spent), None)
            if schedule is None:
                return
            row = self._rows[schedule].tobytes()
            self._spent.add(row)
            self._pool.pop(row, None)
            self._samples.pop(row, None)
            yield schedule

    def _ranked(self) -> list[Schedule]:
        """The pool, best score first."""
        return self._by_score(list(self._pool.values()))

    def _by_score(self, schedules: list[Schedule]) -> list[Schedule]:
        return [schedules[i] for i in np.argsort(-self._scores(schedules))] if schedules else []

    def _keep(self, known: dict[bytes, Schedule], schedules: list[Schedule]) -> None:
        """Add those to ``known`` that can be lowered and were neither measured nor chosen."""
        for schedule, row in zip(schedules, self._features(schedules), strict=True):
            if row.tobytes() not in self._spent and not np.isnan(row[0]):
                known.setdefault(row.tobytes(), schedule)

    def _by_families(self, ranked: list[Schedule]) -> list[Schedule]:
        families = [self._rows[schedule][_FAMILY].tobytes() for schedule in ranked]
        return [ranked[index] for index in in_turns(families, PER_FAMILY)]

    def _breeding_weights(self, schedules: list[Schedule]) -> FloatArray:
        """What TVM asks of each generation; all that is new in it goes to the pool."""
        self._keep(self._pool, schedules)
        return breeding_weights(self._scores(schedules), PRESSURE)

    def _scores(self, schedules: list[Schedule]) -> FloatArray:
        rows = self._features(schedules)
        scores = self._model.score(rows) if self._model is not None else np.zeros(len(rows))
        return np.where(np.isnan(rows[:, 0]), -np.inf, scores)

    def _features(self, schedules: list[Schedule]) -> Rows:
        new = [schedule for schedule in dict.fromkeys(schedules) if schedule not in self._rows]
        self._rows.update(zip(new, self._describe(new, [self._workload] * len(new)), strict=True))
        return np.stack([self._rows[schedule] for schedule in schedules])


def _cost_model(weights: Callable[[list[Schedule]], FloatArray]) -> ms.CostModel:
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class Weighing(PyCostModel):  # type: ignore[misc]
        def load(self, path: str) -> None:
            """Nothing to load: what the model learned follows from the log."""

        def save(self, path: str) -> None:
            """Nothing to save."""

        def update(self, context: Any, candidates: Any, results: Any) -> None:
            """Never called: the search tells the model itself."""

        def predict(self, context: Any, candidates: Any) -> FloatArray:
            return weights([candidate.sch for candidate in candidates])

    return Weighing()
