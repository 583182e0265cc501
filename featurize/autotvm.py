"""Feature set ``autotvm``: the workload, its knobs on canonical axes, and what the tiling implies.

All records of a batch that have the same template and the same knobs are computed at once; see ``autotvm_nest``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lorien.dialects.autotvm import AutoTvmDialect, Operator
from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize.autotvm_nest import GPU_LEVELS, OTHER_KNOBS, OUTPUT_AXES, REDUCE_AXES, Knob, Nest
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, Json, TuningRecord, Workload
from lorien.target import Target

# No absolute size: with flop and bytes a model remembers workloads, and ranks larger ones worse.
_WORKLOAD_COLUMNS = {
    "n": ("log2", "batch"),
    "f": ("log2", "output channels"),
    "y": ("log2", "output height, rows of a matrix"),
    "x": ("log2", "output width"),
    "c": ("log2", "input channels of a group, depth of a matrix product"),
    "ry": ("", "kernel height"),
    "rx": ("", "kernel width"),
    "stride": ("", "stride in height"),
    "dilation": ("", "dilation in height"),
    "padding": ("", "padding, all four sides"),
    "intensity": ("log2 flop/B", "operations per byte of input, weight and output"),
    "f_pow2": ("log2", "largest power of two that divides f"),
    "y_pow2": ("log2", "largest power of two that divides y"),
    "x_pow2": ("log2", "largest power of two that divides x"),
    "c_pow2": ("log2", "largest power of two that divides c"),
}


def _columns() -> Iterator[Column]:
    for kind in ("depthwise", "winograd", "gemm", "packed", "gpu"):
        yield Column(f"is_{kind}", "0 or 1", f"the template is {kind}")
    for name, (unit, meaning) in _WORKLOAD_COLUMNS.items():
        yield Column(f"w_{name}", unit, f"workload: {meaning}")
    for axis in OUTPUT_AXES:
        for level in range(GPU_LEVELS - 1):
            yield Column(f"{axis}_{level}", "log2", f"tile factor of axis {axis}, level {level} from the innermost")
        yield Column(f"{axis}_out", "log2", f"outermost extent of axis {axis}")
        yield Column(f"{axis}_tile", "log2", f"product of the factors of axis {axis} but the outermost")
    for axis in REDUCE_AXES:
        yield Column(f"{axis}_0", "log2", f"innermost tile factor of axis {axis}")
        yield Column(f"{axis}_out", "log2", f"outermost extent of axis {axis}")
    yield Column("unroll_step", "log2(1+steps)", "auto_unroll_max_step")
    yield Column("unroll_explicit", "0 or 1", "unroll_explicit")
    yield Column("unroll_kw", "0 or 1", "unroll_kw")
    yield Column("reorder_last", "", "which loop the first reorder knob puts innermost, by its number")
    for position in range(2):
        yield Column(f"ann_reduce_{position}", "0 none, 1 unroll, 2 vec", f"annotation of reduction loop {position}")
    for position in range(3):
        yield Column(f"ann_{position}", "0 none, 1 unroll, 2 vec", f"annotation of spatial loop {position}")
    yield Column("inner_tile", "log2 elements", "output elements of the innermost tile")
    yield Column("reg_tile", "log2 elements", "output elements held by one thread")
    yield Column("block_tile", "log2 elements", "output elements of one block (GPU) or tile (CPU)")
    yield Column("red_chunk", "log2", "reduction steps between two loads of the tiles")
    yield Column("red_steps", "log2", "loads of the tiles in one block")
    yield Column("in_tile", "log2 B", "input touched by one tile and chunk")
    yield Column("weight_tile", "log2 B", "weight touched by one tile and chunk")
    yield Column("out_tile", "log2 B", "output touched by one tile")
    yield Column("footprint", "log2 B", "input, weight and output touched by one tile and chunk")
    yield Column("shared", "log2 B", "shared memory of a block: input and weight")
    yield Column("in_full", "log2 B", "input touched by one tile over the whole reduction")
    yield Column("weight_full", "log2 B", "weight touched by one tile over the whole reduction")
    yield Column("tile_intensity", "log2 flop/B", "operations per byte of input and weight of one tile and chunk")
    yield Column("reg_reuse", "log2", "multiply-adds per element that the innermost tile loads")
    yield Column("traffic", "log2", "bytes that all tiles load over those of input, weight and output")
    yield Column("waste", "log2", "iterations over those needed, where factors do not divide extents")
    yield Column("blocks", "log2", "blocks (GPU), outer iterations (CPU)")
    yield Column("threads", "log2", "threads in a block")
    yield Column("threads_x", "log2", "threads in a block along x")
    yield Column("vthreads", "log2", "virtual threads")
    yield Column("warp_use", "fraction", "threads over lanes of the warps they take")
    yield Column("in_loads", "log2", "input elements each thread loads for one chunk")
    yield Column("weight_loads", "log2", "weight elements each thread loads for one chunk")
    yield Column("body", "log2", "multiply-adds of a thread in one chunk: what unrolling would lay out")
    yield Column("thread_work", "log2", "multiply-adds of a thread over the whole reduction")
    yield Column(
        "resident_threads", "log2", "threads that fit a multiprocessor at once, by threads, registers and shared memory"
    )
    yield Column("waves", "log2", "blocks over those that fit a multiprocessor at once")
    yield Column("body_over_unroll", "log2", "body over auto_unroll_max_step")
    yield Column("parallel", "log2", "iterations shared out to the cores (CPU)")
    yield Column("parallel_use4", "fraction", "use of four cores by the parallel iterations")
    yield Column("vec", "elements", "length of the vectorised loop (CPU); 1 when there is none")
    for lanes in (4, 8, 16):
        yield Column(f"vec_use{lanes}", "fraction", f"use of vectors of {lanes} elements")
    yield Column("vec_registers4", "log2", "accumulators of the innermost tile in vectors of 4 elements")
    yield Column("vec_registers8", "log2", "accumulators of the innermost tile in vectors of 8 elements")
    yield Column("unrolled", "log2", "product of the loops annotated unroll")
    yield Column("c_over_f", "log2", "inner channels of the input over those of the output")
    for position in range(OTHER_KNOBS):
        yield Column(f"other_{position}", "log2 or code", f"value {position} of the knobs no column above takes")


FEATURES = FeatureSet("autotvm", 1, tuple(_columns()))
_INDEX = {name: index for index, name in enumerate(FEATURES.names)}


class AutoTvmExtractor:
    """Feature set ``autotvm``; NaN where a feature has no meaning for the template."""

    dialect = AutoTvmDialect.name
    features = FEATURES

    def __init__(self) -> None:
        self._operators: dict[str, Operator | None] = {}

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """Stream a log; see ``FeatureExtractor.extract_log``."""
        for batch in batched(AutoTvmDialect().read(log, info, report, shard), batch_rows):
            rows, problems = self._rows([(record.workload, record.candidate.schedule) for record in batch])
            for index, reason in problems.items():
                report.bad(log.name, f"{batch[index].workload.name}: {reason}")
            if problems:
                kept = [index for index in range(len(batch)) if index not in problems]
                batch, rows = [batch[index] for index in kept], rows[kept]
            if batch:
                yield batch, rows

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """Rows in the order given; see ``FeatureExtractor.extract``."""
        return self._rows([(workload, candidate.schedule) for candidate in candidates])[0]

    def _rows(self, pairs: Sequence[tuple[Workload, Json]]) -> tuple[Features, dict[int, str]]:
        """The rows, NaN where there is a problem, and the problems by index."""
        rows = np.full((len(pairs), len(FEATURES.columns)), np.nan, dtype=np.float32)
        problems: dict[int, str] = {}
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, (workload, schedule) in enumerate(pairs):
            try:
                shape = tuple([(name, kind, len(v) if isinstance(v, list) else 0) for name, kind, v in schedule])
                key = (workload.identity[0], self._operator(workload) is None, shape)
                groups.setdefault(key, []).append(index)
            except (TypeError, ValueError):
                problems[index] = "the schedule is not a list of [name, kind, value]"
        for indices in groups.values():
            self._fill(rows, indices, pairs, problems)
        return rows, problems

    def _fill(
        self,
        rows: Features,
        indices: list[int],
        pairs: Sequence[tuple[Workload, Json]],
        problems: dict[int, str],
    ) -> None:
        """Write the rows of records that share their template and the names, kinds and lengths of their knobs."""
        try:
            self._compute(rows, indices, pairs)
        except (TypeError, ValueError, OverflowError) as error:
            if len(indices) == 1:
                problems[indices[0]] = f"bad knob value ({error})"
                return
            # One bad value spoils its group: halve it until that is alone.
            middle = len(indices) // 2
            self._fill(rows, indices[:middle], pairs, problems)
            self._fill(rows, indices[middle:], pairs, problems)

    def _compute(self, rows: Features, indices: list[int], pairs: Sequence[tuple[Workload, Json]]) -> None:
        workload, schedule = pairs[indices[0]]
        known = [self._operator(pairs[index][0]) for index in indices]
        knobs = {
            name: Knob.parse(kind, [pairs[index][1][position][2] for index in indices])
            for position, (name, kind, _) in enumerate(schedule)
        }
        operators = [operator for operator in known if operator is not None]
        found = Nest(workload.identity[0], operators, knobs, len(indices)).columns()
        rows[np.ix_(indices, [_INDEX[name] for name in found])] = np.stack(list(found.values()), axis=1)

    def _operator(self, workload: Workload) -> Operator | None:
        if workload.key not in self._operators:
            self._operators[workload.key] = Operator.of(workload.identity)
        return self._operators[workload.key]
