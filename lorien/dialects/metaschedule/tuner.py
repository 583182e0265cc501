"""MetaSchedule's own searches, asked for candidates and told what became of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorien.dialects.base import FloatArray
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.workload import candidate_of, module_of, schedule_of, tvm_target
from lorien.records import Candidate, Measurement, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.s_tir import meta_schedule as ms

POPULATION = 256
GENERATIONS = 3
"""Half the candidates and three quarters of the rounds of TVM's own setting, for a third of its seconds."""
MEASURED_SHARE = 0.2
"""Of the first generation, how much may come from the best measured so far. TVM's own setting."""
_ENDLESS = 1 << 30
"""Trials that TVM's strategies are told of: when to stop is the session's business."""
_DRY_ROUNDS = 2
"""Rounds without a new candidate after which a space counts as exhausted."""
_TINY_SHARE = 0.5
"""Of a random batch, how much must be distinct for the space to be worth more than random samples."""

# TVM reports each generation, and warns of traces that do not apply, which are a part of any search.
_tvm_logger = logging.getLogger(f"{__name__}.tvm")
_tvm_logger.setLevel(logging.ERROR)


class Guide(Protocol):
    """What is known of candidates before they are measured; learns from those that are."""

    @property
    def ready(self) -> bool:
        """False as long as its scores are no better than chance."""

    def score(self, workload: Workload, candidates: Sequence[ms.MeasureCandidate]) -> FloatArray:
        """One score each, positive, higher is better."""

    def learn(
        self, workload: Workload, candidates: Sequence[ms.MeasureCandidate], measurements: Sequence[Measurement]
    ) -> None:
        """Take in what was measured."""


class MetaScheduleSearch:
    """Searches the spaces of many workloads. Implements ``lorien.tune.strategy.Strategy``.

    While the guide is not ready candidates are random samples, which is what TVM's evolution under its untrained cost
    model comes to, without the cost of it. Then ``EvolutionarySearch`` breeds them from random samples and from the
    best measured, scored by the guide.

    Parameters
    ----------
    target : Target
    guide : Guide, optional
        None stays with random samples: TVM's ``replay-trace``.
    batch : int
        Candidates made at a time.
    threads : int
        Threads of the search.
    seed : int
    """

    def __init__(self, target: Target, guide: Guide | None, *, batch: int, threads: int, seed: int) -> None:
        register_intrinsics(target)
        self._new = functools.partial(_Search, target=target, guide=guide, batch=batch, threads=threads, seed=seed)
        self._searches: dict[str, _Search] = {}

    def ask(self, workload: Workload, count: int) -> list[Candidate]:
        """At most ``count`` candidates neither asked for nor told of before; none when the space is exhausted."""
        return self._search(workload).ask(count)

    def tell(self, workload: Workload, candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> None:
        """Take in measurements, of candidates asked for or of a session before this one."""
        self._search(workload).tell(candidates, measurements)

    def _search(self, workload: Workload) -> _Search:
        if workload.key not in self._searches:
            self._searches[workload.key] = self._new(workload)
        return self._searches[workload.key]


class _Search:
    """One workload's space: TVM's tune context, strategies and database."""

    def __init__(
        self, workload: Workload, *, target: Target, guide: Guide | None, batch: int, threads: int, seed: int
    ) -> None:
        from tvm.s_tir import meta_schedule as ms

        self._workload = workload
        self._target = tvm_target(target)
        self._guide = guide
        self._batch = batch
        self._tiny = False
        self._seen: set[str] = set()
        self._asked: dict[str, ms.MeasureCandidate] = {}
        self._database = ms.database.MemoryDatabase()
        self._entry = self._database.commit_workload(module_of(workload))

        def context(strategy: ms.SearchStrategy, cost_model: ms.CostModel) -> ms.TuneContext:
            made = ms.TuneContext(
                module_of(workload),
                target=self._target,
                space_generator="post-order-apply",
                search_strategy=strategy,
                task_name=workload.name,
                rand_state=seed + 1,  # TVM takes no zero
                num_threads=threads,
                logger=_tvm_logger,
            )
            made.pre_tuning(_ENDLESS, batch, database=self._database, cost_model=cost_model)
            return made

        self._random = context(ms.search_strategy.ReplayTrace(), ms.cost_model.RandomModel())
        if guide is not None:
            evolution = ms.search_strategy.EvolutionarySearch(
                population_size=POPULATION, genetic_num_iters=GENERATIONS, init_measured_ratio=MEASURED_SHARE
            )
            self._guided = context(evolution, _cost_model(guide, workload))

    def ask(self, count: int) -> list[Candidate]:
        for _ in range(_DRY_ROUNDS):
            guided = self._guide is not None and self._guide.ready and not self._tiny
            found = (self._guided if guided else self._random).generate_measure_candidates() or ()
            made = {candidate.key: (candidate, one) for one in found for candidate in (candidate_of(one.sch),)}
            self._tiny = self._tiny or (not guided and len(made) < _TINY_SHARE * self._batch)
            fresh = [(candidate, one) for key, (candidate, one) in made.items() if key not in self._seen][:count]
            if fresh:
                self._seen.update(candidate.key for candidate, _ in fresh)
                self._asked.update((candidate.key, one) for candidate, one in fresh)
                return [candidate for candidate, _ in fresh]
        return []

    def tell(self, candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> None:
        from tvm.s_tir import meta_schedule as ms

        made = [self._asked.pop(candidate.key, None) or self._made(candidate) for candidate in candidates]
        for candidate, one, measurement in zip(candidates, made, measurements, strict=True):
            self._seen.add(candidate.key)
            if measurement.ok:
                record = ms.database.TuningRecord(
                    one.sch.trace, self._entry, list(measurement.latencies_s), self._target, one.args_info
                )
                self._database.commit_tuning_record(record)
        if self._guide is not None:
            self._guide.learn(self._workload, made, measurements)

    def _made(self, candidate: Candidate) -> ms.MeasureCandidate:
        from tvm.s_tir import meta_schedule as ms

        module = module_of(self._workload)
        arguments = ms.arg_info.ArgInfo.from_entry_func(module, remove_preproc=True)
        return ms.MeasureCandidate(schedule_of(self._workload, candidate), arguments)


def _cost_model(guide: Guide, workload: Workload) -> ms.CostModel:
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class Guided(PyCostModel):  # type: ignore[misc]
        def load(self, path: str) -> None:
            """Nothing to load: what the guide learned follows from the log."""

        def save(self, path: str) -> None:
            """Nothing to save."""

        def update(self, context: Any, candidates: Any, results: Any) -> None:
            """Never called: the session tells the guide itself."""

        def predict(self, context: Any, candidates: Any) -> FloatArray:
            return np.ascontiguousarray(guide.score(workload, list(candidates)), dtype=np.float64)

    return Guided()
