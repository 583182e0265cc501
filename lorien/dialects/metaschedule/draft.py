"""Schedules drafted by what they decide: tile factors and the like as arrays, thousands of them at a time.

To sample, lower and describe a schedule takes TVM some 15 ms. Most of what tells a good one from a bad one is decided
before that: the factors of the tiles, where a stage is computed, how far loops are unrolled. A model of these decisions
alone looks at tens of thousands in the time of a few dozen schedules, and only what it praises is then made.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from lorien.dialects.base import FloatArray, ScoreFn
from lorien.dialects.metaschedule.describe import (
    EARLY,
    FEATURES,
    TILING,
    TRACE_START,
    UNROLL,
    Step,
    Tiling,
    tiling_columns,
    tiling_of,
    written_factors,
)
from lorien.dialects.metaschedule.selection import breeding_weights, in_turns, positions
from lorien.dialects.metaschedule.vectors import Vectors
from lorien.dialects.metaschedule.workload import candidate_of_trace, module_of, replay
from lorien.records import Json, Workload

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

logger = logging.getLogger(__name__)

Genes = npt.NDArray[np.int8]
Rows = npt.NDArray[np.float32]

POPULATION = 512
"""Drafts of a sketch in a generation; as many of those before live on."""
GENERATIONS = 12
MUTATIONS = 1.5
"""Genes changed in a child, in the mean, beside what it takes from two parents."""
PRESSURE = 2
"""Parents are drawn by (rank / population) to this power."""
PER_FAMILY = 2
"""Drafts of a family that are taken before another family's best."""
FAMILY = ("trace_spatial_tile0", "trace_reduce_tile0", "trace_spatial_tile1", "trace_axis0_tile0")
"""Columns in which a family of drafts is alike."""

_FAMILY = positions(FAMILY)
_UNROLLING = ("meta_schedule.unroll_explicit", "meta_schedule.unroll_implicit")


class Sketch:
    """What TVM's rules make of a workload, its decisions left open.

    A draft is a row of genes. A tile has a gene for each prime factor of its extent, which says to what level the
    factor goes; any other decision is one gene.

    Parameters
    ----------
    traces : sequence of JSON traces
        Samples that differ in their decisions alone. Where a stage may be computed, they tell.
    vectors : Vectors
        Those of the target.
    """

    def __init__(self, traces: Sequence[Json], vectors: Vectors) -> None:
        self._vectors = vectors
        self.instructions = _before_postprocessors(traces[0][0])
        samples = [dict(decisions) for _, decisions in traces]
        self._open: list[_Tile | _Choice] = []
        at = 0
        for index, (kind, _, attributes, _) in enumerate(self.instructions):
            decided: _Tile | _Choice
            if kind == "SamplePerfectTile":
                decided = _Tile(index, at, samples[0][index], int(attributes[1]))
            elif kind == "SampleCategorical":
                decided = _Choice(index, at, range(len(attributes[0])))
            elif kind == "SampleComputeLocation":
                decided = _Choice(index, at, sorted({int(sample[index]) for sample in samples}))
            else:
                continue
            self._open.append(decided)
            at += len(decided.domains)
        self.domains = np.array([size for decided in self._open for size in decided.domains], dtype=np.int64)

    def columns(self, genes: Genes) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
        """Of drafts (drafts, genes): the trace's columns, what ``UNROLL`` will be, and which drafts are allowed."""
        decided = {one.index: one.values(genes) for one in self._open}
        allowed = np.ones(len(genes), dtype=np.bool_)
        for one in self._open:
            if isinstance(one, _Tile):
                allowed &= decided[one.index][-1] <= one.innermost
        tiling: Tiling = tiling_of(self._steps(decided))
        return tiling_columns(tiling, self._vectors, len(genes)), self._unroll(decided, len(genes)), allowed

    def trace(self, genes: Genes) -> Json:
        """The JSON trace of a draft (genes,), before post-processing."""
        return [self.instructions, [[one.index, one.decision(genes)] for one in self._open]]

    def _steps(self, decided: dict[int, Any]) -> Iterator[Step]:
        for index, (kind, inputs, attributes, _) in enumerate(self.instructions):
            announced = inputs[1] if kind == "Annotate" and attributes[0] == TILING else ""
            yield Step(kind, written_factors(inputs[1:]) if kind == "Split" else decided.get(index), announced)

    def _unroll(self, decided: dict[int, Any], drafts: int) -> FloatArray:
        """log2(1 + steps), as lowering will find it, if the store with most arithmetic is in what is unrolled."""
        steps: dict[str, Any] = {}
        found: Any = 0.0
        for index, (kind, inputs, attributes, outputs) in enumerate(self.instructions):
            if kind == "SampleCategorical":
                steps[outputs[0]] = np.array(attributes[0], dtype=np.float64)[decided[index]]
            elif kind == "Annotate" and attributes[0] in _UNROLLING:
                found = steps.get(inputs[1], inputs[1])
        return np.broadcast_to(np.log2(1.0 + found), (drafts,))


class _Tile:
    """The factors of a loop: each prime of its extent goes to one of the levels."""

    def __init__(self, index: int, at: int, factors: Sequence[int], innermost: int) -> None:
        self.index = index
        self.innermost = innermost if innermost > 0 else np.inf
        self._primes = _primes(int(np.prod(factors, dtype=np.int64)))
        self._levels = len(factors)
        self._genes = slice(at, at + len(self._primes))
        self.domains = [self._levels] * len(self._primes)

    def values(self, genes: Genes) -> list[FloatArray]:
        """The factor of each level, outermost first: (drafts,)."""
        placed = genes[:, self._genes]
        return [np.where(placed == level, self._primes, 1.0).prod(axis=1) for level in range(self._levels)]

    def decision(self, genes: Genes) -> Json:
        """As a trace has it."""
        return [int(factor[0]) for factor in self.values(genes[None])]


class _Choice:
    """One of a few values."""

    def __init__(self, index: int, at: int, choices: Sequence[int]) -> None:
        self.index = index
        self._choices = np.array(choices)
        self._gene = at
        self.domains = [len(choices)]

    def values(self, genes: Genes) -> npt.NDArray[np.int64]:
        """What was chosen: (drafts,)."""
        return self._choices[genes[:, self._gene]]

    def decision(self, genes: Genes) -> Json:
        """As a trace has it."""
        return int(self.values(genes[None])[0])


def sketches_of(schedules: Sequence[Schedule], vectors: Vectors) -> list[Sketch]:
    """The sketches that random schedules of a workload are of, for a target with these vectors."""
    by_form: dict[bytes, list[Json]] = {}
    for schedule in schedules:
        trace = candidate_of_trace(schedule.trace).schedule
        by_form.setdefault(orjson.dumps(_before_postprocessors(trace[0])), []).append(trace)
    return [Sketch(traces, vectors) for traces in by_form.values()]


def draft(
    sketches: Sequence[Sketch],
    workload: Rows,
    score: ScoreFn,
    count: int,
    seed: int,
    late: Callable[[], bool] = lambda: False,
) -> list[Json]:
    """The most promising drafts as JSON traces, best first, no two families far apart in number.

    Parameters
    ----------
    sketches : sequence of Sketch
    workload : array (columns,)
        The row of any schedule of the workload: its own columns are taken.
    score : callable
        Scores (rows,) of rows (rows, columns) in which all but the columns ``EARLY`` are NaN.
    count, seed : int
    late : callable
        Asked between generations whether to breed no more.
    """
    rng = np.random.default_rng(seed)
    populations = [_Population(sketch, workload, score, rng) for sketch in sketches]
    for _ in range(GENERATIONS):
        if late():
            break
        for population in populations:
            population.breed()
    found = [one for population in populations for one in population.living()]
    found.sort(key=lambda one: -one.score)
    chosen = sorted(in_turns([one.family for one in found], PER_FAMILY)[:count])
    return [found[index].sketch.trace(found[index].genes) for index in chosen]


def make(workload: Workload, trace: Json, context: ms.TuneContext) -> Schedule | None:
    """The schedule of a draft after the context's post-processors; None where TVM has none."""
    try:
        schedule = replay(module_of(workload), trace)
        schedule.enter_postproc()
        made = all(step.apply(schedule) for step in context.space_generator.postprocs)
    except Exception as error:  # a decision that TVM takes back: whatever it raises
        logger.debug("a draft of %s cannot be made: %s", workload.name, error)
        return None
    return schedule if made else None


class _Living(NamedTuple):
    score: float
    family: bytes
    sketch: Sketch
    genes: Genes


class _Population:
    """The best drafts of a sketch so far."""

    def __init__(self, sketch: Sketch, workload: Rows, score: ScoreFn, rng: np.random.Generator) -> None:
        self._sketch = sketch
        self._score = functools.partial(_scored, sketch, workload=workload, score=score)
        self._rng = rng
        self._genes = rng.integers(0, sketch.domains, (2 * POPULATION, len(sketch.domains))).astype(np.int8)
        self._rows, self._scores = self._score(self._genes)

    def breed(self) -> None:
        """Add a generation, and keep the best of all."""
        rng, alive = self._rng, self._genes
        weights = breeding_weights(self._scores, PRESSURE)
        parents = rng.choice(len(alive), (2, POPULATION), p=weights / weights.sum())
        children = np.where(rng.random((POPULATION, alive.shape[1])) < 0.5, alive[parents[0]], alive[parents[1]])
        changed = rng.random(children.shape) < MUTATIONS / max(1, children.shape[1])
        children = np.where(changed, rng.integers(0, self._sketch.domains, children.shape), children).astype(np.int8)
        new_rows, new_scores = self._score(children)
        rows, scores = np.concatenate((self._rows, new_rows)), np.concatenate((self._scores, new_scores))
        # Equal rows are one draft to the model: the first stays.
        first = np.array(list({row.tobytes(): at for at, row in reversed(list(enumerate(rows[:, EARLY])))}.values()))
        kept = first[np.argsort(-scores[first], kind="stable")][: 2 * POPULATION]
        self._genes, self._rows, self._scores = np.concatenate((alive, children))[kept], rows[kept], scores[kept]

    def living(self) -> Iterator[_Living]:
        """Those that are allowed."""
        for genes, row, score in zip(self._genes, self._rows, self._scores, strict=True):
            if np.isfinite(score):
                yield _Living(float(score), row[_FAMILY].tobytes(), self._sketch, genes)


def _scored(sketch: Sketch, genes: Genes, workload: Rows, score: ScoreFn) -> tuple[Rows, FloatArray]:
    """Rows and scores of drafts; minus infinity for what is not allowed."""
    trace, unroll, allowed = sketch.columns(genes)
    rows = np.full((len(genes), len(FEATURES)), np.nan, dtype=np.float32)
    rows[:, EARLY] = workload[EARLY]
    rows[:, TRACE_START : TRACE_START + trace.shape[1]] = trace
    rows[:, UNROLL] = unroll
    return rows, np.where(allowed, score(rows), -np.inf)


def _before_postprocessors(instructions: Sequence[Json]) -> list[Json]:
    kinds = [instruction[0] for instruction in instructions]
    return list(instructions[: kinds.index("EnterPostproc")] if "EnterPostproc" in kinds else instructions)


def _primes(number: int) -> npt.NDArray[np.float64]:
    found, divisor = [], 2
    while divisor * divisor <= number:
        if number % divisor:
            divisor += 1
        else:
            found.append(divisor)
            number //= divisor
    return np.array(found + [number] * (number > 1), dtype=np.float64)
