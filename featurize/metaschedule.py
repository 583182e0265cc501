"""Features of MetaSchedule candidates: TVM's per-store features, the tiling decisions and the workload, a row each.

TVM describes every buffer store of a lowered candidate by 164 numbers (``PerStoreFeature``, after Ansor's): arithmetic,
loop annotations, and for up to five buffers the memory touched, its reuse and its strides. A candidate has one to a
handful of stores. A row holds the store that does most of the arithmetic, and the sum over all of them. What lowering
hides, the tile sizes by level, is read from the schedule's trace.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule import logs
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.workload import DIALECT, module_of, schedule_of, tvm_target
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, TuningRecord, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.s_tir import SBlock, Schedule

logger = logging.getLogger(__name__)

BUFFERS = 5
CURVE_SAMPLES = 10
REPLAY_BATCH = 64
LEVELS = 5
"""Tiling levels told apart: the CUDA spaces have the most, five spatial ones."""
AXES = 3
LANES = (4, 8, 16)

_SPATIAL, _REDUCE = 0, 2  # IterVar.DataPar, IterVar.CommReduce
_TILING = "meta_schedule.tiling_structure"

_ARITHMETIC = ("mad", "add_sub", "mul", "div_mod", "compare", "math_call", "other_call")
_POSITIONS = 8
_BUFFER = (
    ("is_read", "0 or 1", "only read"),
    ("is_written", "0 or 1", "only written"),
    ("is_updated", "0 or 1", "read and written"),
    ("bytes", "log2 bytes", "bytes touched by all iterations"),
    ("unique_bytes", "log2 bytes", "distinct bytes touched"),
    ("lines", "log2 lines", "cache lines touched by all iterations"),
    ("unique_lines", "log2 lines", "distinct cache lines touched"),
    ("reuse_loop", "0 or 1", "reused by a loop that does not index it"),
    ("reuse_serial", "0 or 1", "reused by a store before it"),
    ("reuse_none", "0 or 1", "not reused"),
    ("reuse_iterations", "log2 iterations", "iterations from one use to the next"),
    ("reuse_bytes", "log2 bytes", "bytes touched from one use to the next"),
    ("reuse_count", "log2 uses", "uses of each element"),
    ("bytes_per_use", "log2 bytes", "bytes over reuse count"),
    ("unique_bytes_per_use", "log2 bytes", "distinct bytes over reuse count"),
    ("lines_per_use", "log2 lines", "cache lines over reuse count"),
    ("unique_lines_per_use", "log2 lines", "distinct cache lines over reuse count"),
    ("stride", "log2 elements", "stride of the innermost loop in it"),
)


def _store_columns() -> list[Column | None]:
    """The 164 numbers of one store in TVM's order (``per_store_feature.cc``); None for those it never fills.

    "log2" is log2(1 + x) throughout.
    """
    columns: list[Column | None] = []
    for kind in ("float", "int"):
        for op in _ARITHMETIC:
            meaning = f"{kind} {op.replace('_', ' ')} operations, times all loops around the store"
            # A multiply and an add are never counted as one.
            columns.append(None if op == "mad" else Column(f"{kind}_{op}", "log2 operations", meaning))
    columns.append(Column("bool_op", "log2 operations", "boolean operations, times all loops around the store"))
    columns.append(Column("select_op", "log2 operations", "selects, times all loops around the store"))
    for kind in ("vectorize", "unroll", "parallel"):
        columns.append(Column(f"{kind}_loops", "log2 loops", f"loops around the store marked {kind}"))
        columns.append(Column(f"{kind}_extent", "log2 iterations", f"product of the extents of those marked {kind}"))
        columns.append(Column(f"{kind}_inner", "log2 iterations", f"extent of the innermost one marked {kind}"))
        columns += [None] * _POSITIONS  # TVM tells "none" from "mixed" only, which the number of loops says already
    columns.append(Column("is_gpu", "0 or 1", "the target is a GPU"))
    for axis in ("block_x", "block_y", "block_z", "thread_x", "thread_y", "thread_z", "vthread"):
        columns.append(Column(axis, "log2 iterations", f"extent bound to {axis}"))
    for buffer in range(BUFFERS):
        for name, unit, meaning in _BUFFER:
            what = f"{meaning}; of the store's buffers, number {buffer} by cache lines touched"
            columns.append(Column(f"buffer{buffer}_{name}", unit, what))
    for sample in range(1, CURVE_SAMPLES + 1):
        meaning = f"arithmetic intensity of the inner loops that do {sample}/{CURVE_SAMPLES} of the operations"
        columns.append(Column(f"intensity{sample}", "log2 flop per byte", meaning))
    columns.append(Column("alloc_bytes", "log2 bytes", "size of the buffer stored to"))
    columns.append(Column("alloc_total", "log2 elements", "its elements, times the loops around its allocation"))
    columns.append(Column("alloc_outer", "log2 iterations", "product of the loops around its allocation"))
    columns.append(Column("alloc_inner", "log2 iterations", "product of the loops from its allocation to the store"))
    columns.append(Column("iterations", "log2 iterations", "product of all loops around the store"))
    columns.append(Column("loops", "log2 loops", "loops around the store"))
    columns.append(Column("auto_unroll", "log2 steps", "the pragma auto_unroll_max_step in force"))
    return columns


def _trace_columns() -> list[Column]:
    columns = [
        Column("tiled_spatial_axes", "axes", "spatial axes tiled by the multi-level tiling rule"),
        Column("tiled_reduce_axes", "axes", "reduction axes tiled by it"),
        Column("rfactors", "count", "reductions factored in two"),
        Column("cache_writes", "count", "write caches added"),
        Column("fused_consumers", "count", "consumers moved into the tiles"),
        Column("locations", "count", "compute locations sampled"),
        Column("location_first", "loop", "first compute location sampled; -1 at the root, -2 inlined, -3 none"),
        Column("location_last", "loop", "last compute location sampled"),
        Column("rfactor_inner", "log2 iterations", "inner extent of the last reduction split for rfactor"),
    ]
    for kind in ("spatial", "reduce"):
        for level in range(LEVELS):
            meaning = f"product over the {kind} axes of the tile factors {level} levels from the innermost"
            columns.append(Column(f"{kind}_tile{level}", "log2 iterations", meaning))
    columns.append(Column("spatial_inner2", "log2 iterations", "spatial tile factors of the 2 innermost levels"))
    columns.append(Column("spatial_inner3", "log2 iterations", "spatial tile factors of the 3 innermost levels"))
    columns.append(Column("body", "log2 iterations", "spatial_tile0 times reduce_tile0"))
    columns.append(Column("body2", "log2 iterations", "spatial_inner2 times reduce_tile0"))
    for axis in range(AXES):
        for level in range(LEVELS):
            meaning = f"tile factor of spatial axis {axis} from the last, {level} levels from the innermost"
            columns.append(Column(f"axis{axis}_tile{level}", "log2 iterations", meaning))
    for name, which in (("first", "first"), ("last", "last")):
        for level in range(3):
            meaning = f"tile factor of the {which} reduction axis, {level} levels from the innermost"
            columns.append(Column(f"reduce_{name}_tile{level}", "log2 iterations", meaning))
    for lanes in LANES:
        meaning = f"share of {lanes}-lane vectors that the innermost tile of the last spatial axis fills"
        columns.append(Column(f"fill{lanes}", "fraction", meaning))
    return columns


_WORKLOAD_COLUMNS = [
    Column("blocks", "count", "blocks of the unscheduled module"),
    Column("flop", "log2 flop", "floating-point operations of one run"),
    Column("argument_bytes", "log2 bytes", "size of all arguments"),
    Column("flop_per_byte", "log2 flop per byte", "flop over argument bytes"),
    Column("spatial_points", "log2 iterations", "spatial iterations of the block with most iterations"),
    Column("reduce_points", "log2 iterations", "reduction iterations of that block"),
    *(Column(f"axis{i}", "log2 iterations", f"extent of its spatial axis {i} from the last") for i in range(AXES)),
    *(Column(f"reduce{i}", "log2 iterations", f"extent of its reduction axis {i}") for i in range(AXES)),
]
_CANDIDATE_COLUMNS = [
    Column("stores", "count", "buffers stored to"),
    Column("parallel_balance", "fraction", "share of the cores' time used when each takes whole parallel iterations"),
]
_STORE_COLUMNS = _store_columns()
_TRACE_COLUMNS = _trace_columns()
_KEPT = [index for index, column in enumerate(_STORE_COLUMNS) if column is not None]
_FLOAT_OPS = [i for i, c in enumerate(_STORE_COLUMNS) if c is not None and c.name.startswith("float_")]
_INDEX = {column.name: index for index, column in enumerate(_STORE_COLUMNS) if column is not None}


def _prefixed(prefix: str, what: str, columns: Sequence[Column | None]) -> list[Column]:
    return [Column(f"{prefix}_{c.name}", c.unit, f"{what}: {c.meaning}") for c in columns if c is not None]


FEATURES = FeatureSet(
    "metaschedule",
    1,
    (
        *_prefixed("main", "store with most arithmetic", _STORE_COLUMNS),
        *_prefixed("sum", "sum over the stores", _STORE_COLUMNS),
        *_CANDIDATE_COLUMNS,
        *_prefixed("trace", "schedule", _TRACE_COLUMNS),
        *_prefixed("workload", "workload", _WORKLOAD_COLUMNS),
    ),
)


class MetaScheduleExtractor:
    """Replays traces and describes what they lower to. Implements ``FeatureExtractor``."""

    dialect = DIALECT
    features = FEATURES

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """See ``FeatureExtractor``."""
        for batch in batched(logs.read(log, info, report, shard), batch_rows):
            rows = np.concatenate(
                [self._record_rows(batch[i : i + REPLAY_BATCH]) for i in range(0, len(batch), REPLAY_BATCH)]
            )
            good = ~np.isnan(rows[:, 0])
            for record, is_good in zip(batch, good, strict=True):
                if not is_good:
                    report.bad(f"{log.name}: {record.workload.name}", "its trace does not fit the module")
            yield [record for record, is_good in zip(batch, good, strict=True) if is_good], rows[good]

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """See ``FeatureExtractor``. Raises ``BadInput`` when the workload itself cannot be read."""
        module_of(workload)
        describe = _describer(target)
        parts = [np.empty((0, len(FEATURES.columns)), np.float32)]
        for i in range(0, len(candidates), REPLAY_BATCH):
            chunk = candidates[i : i + REPLAY_BATCH]
            parts.append(describe([_try_replay(workload, c) for c in chunk], [workload] * len(chunk)))
        return np.concatenate(parts)

    def _record_rows(self, records: Sequence[TuningRecord]) -> Features:
        """Rows of a few records; those of one target together."""
        rows = np.empty((len(records), len(FEATURES.columns)), np.float32)
        for target in dict.fromkeys(record.target for record in records):
            own = [i for i, record in enumerate(records) if record.target == target]
            describe = _describer(target)
            schedules = [_try_replay(records[i].workload, records[i].candidate) for i in own]
            rows[own] = describe(schedules, [records[i].workload for i in own])
        return rows


class Describer:
    """Rows of TVM schedules for one target; what a search calls on each generation.

    Parameters
    ----------
    target : Target
        The device: tells GPU from CPU, and how many cores share the parallel loops.
    threads : int
        Threads that lower candidates. Reading logs runs one process per core instead.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        native = tvm_target(target)
        register_intrinsics(target)
        from tvm.s_tir import meta_schedule as ms

        self._candidate = ms.MeasureCandidate
        self._context = ms.TuneContext(target=native, num_threads=threads)
        self._extractor = ms.feature_extractor.PerStoreFeature(
            buffers_per_store=BUFFERS, arith_intensity_curve_num_samples=CURVE_SAMPLES
        )
        self._cores = target.num_cores or 1
        self._workloads: dict[str, npt.NDArray[np.float64]] = {}

    def __call__(self, schedules: Sequence[Schedule | None], workloads: Sequence[Workload]) -> Features:
        """Rows (schedules, columns) in the order given; None, or a schedule that cannot be lowered, is a row of NaN."""
        rows = np.full((len(schedules), len(FEATURES.columns)), np.nan, np.float32)
        there = [i for i, schedule in enumerate(schedules) if schedule is not None]
        for i, stores in zip(there, self._stores([schedules[i] for i in there]), strict=True):
            if stores is not None:
                rows[i] = np.concatenate(
                    (
                        self._summary(stores),
                        _tiling(schedules[i]),
                        self._workload(workloads[i]),
                    )
                )
        return rows

    def _stores(self, schedules: Sequence[Schedule]) -> list[npt.NDArray[np.float64] | None]:
        """(stores, 164) of each schedule; None for one that cannot be lowered."""
        candidates = [self._candidate(schedule, []) for schedule in schedules]
        try:
            return [tensor.numpy() for tensor in self._extractor.extract_from(self._context, candidates)]
        except Exception as error:  # whatever a pass of TVM raises
            if len(schedules) == 1:
                logger.debug("a candidate cannot be lowered: %s", error)
                return [None]
            return [stores for schedule in schedules for stores in self._stores([schedule])]

    def _summary(self, stores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if not len(stores):
            stores = np.zeros((1, len(_STORE_COLUMNS)))
        arithmetic = stores[:, _FLOAT_OPS].max(axis=1)
        # Most arithmetic first; between copies, the one with most iterations.
        main = stores[np.lexsort((stores[:, _INDEX["iterations"]], arithmetic))[-1]]
        parallel = max(1.0, np.exp2(main[_INDEX["parallel_extent"]]) - 1)
        balance = parallel / (math.ceil(parallel / self._cores) * self._cores)
        return np.concatenate((main[_KEPT], stores.sum(axis=0)[_KEPT], (len(stores), balance)))

    def _workload(self, workload: Workload) -> npt.NDArray[np.float64]:
        if workload.key not in self._workloads:
            self._workloads[workload.key] = _describe_workload(workload)
        return self._workloads[workload.key]


_describer = lru_cache(maxsize=8)(Describer)


def _try_replay(workload: Workload, candidate: Candidate) -> Schedule | None:
    """The schedule, or None when its trace does not fit the workload."""
    try:
        return schedule_of(workload, candidate)
    except Exception as error:  # a trace is foreign data, and TVM raises what it likes
        logger.debug("a trace does not fit %s: %s", workload.name, error)
        return None


def _log2(value: float) -> float:
    return math.log2(1 + value)


def _padded(values: Sequence[float], length: int) -> list[float]:
    return [*values, *[0.0] * length][:length]


def _levels(tiles: Sequence[Sequence[int]]) -> list[float]:
    """Product over the axes of each level's factors, innermost level first."""
    return [float(math.prod(level)) for level in zip(*(reversed(factors) for factors in tiles), strict=True)]


def _tiling(schedule: Schedule) -> npt.NDArray[np.float64]:
    """The values of ``_TRACE_COLUMNS``: what the space's rules decided, before the post-processors."""
    decisions = schedule.trace.decisions
    structure = ""
    spatial: list[list[int]] = []
    reduce: list[list[int]] = []
    split: list[int] = []
    locations: list[int] = []
    counts = dict.fromkeys(("RFactor", "CacheWrite", "ReverseComputeAt"), 0)
    for instruction in schedule.trace.insts:
        name = instruction.kind.name
        if name == "SamplePerfectTile":
            factors = [int(factor) for factor in decisions[instruction]]
            if not structure:
                split = factors
            elif len(factors) == structure.count("S"):
                spatial.append(factors)
            else:
                reduce.append(factors)
        elif name == "SampleComputeLocation":
            locations.append(int(decisions[instruction]))
        elif name in counts:
            counts[name] += 1
        elif name == "Annotate" and instruction.attrs[0] == _TILING:
            structure = str(instruction.inputs[1])
        elif name == "EnterPostproc":
            break
    s, r = _levels(spatial), _levels(reduce)
    s0, s1, s2, *_ = [*s, 1.0, 1.0, 1.0]
    r0 = r[0] if r else 1.0
    values: list[float] = [
        len(spatial),
        len(reduce),
        *counts.values(),
        len(locations),
        locations[0] if locations else -3,
        locations[-1] if locations else -3,
        _log2(split[-1]) if split else 0,
        *_padded([_log2(level) for level in s], LEVELS),
        *_padded([_log2(level) for level in r], LEVELS),
        _log2(s0 * s1),
        _log2(s0 * s1 * s2),
        _log2(s0 * r0),
        _log2(s0 * s1 * r0),
    ]
    last_axes = [[_log2(factor) for factor in reversed(factors)] for factors in reversed(spatial)]
    for axis in [*last_axes, *[[]] * AXES][:AXES]:
        values += _padded(axis, LEVELS)
    for axis in (reduce[0], reduce[-1]) if reduce else ([], []):
        values += _padded([_log2(factor) for factor in reversed(axis)], 3)
    inner = spatial[-1][-1] if spatial else 0
    values += [inner / (math.ceil(inner / lanes) * lanes) if inner else 0 for lanes in LANES]
    return np.array(values, dtype=np.float64)


def _describe_workload(workload: Workload) -> npt.NDArray[np.float64]:
    """The values of ``_WORKLOAD_COLUMNS``, from the unscheduled module."""
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

    module = module_of(workload)
    argument_bytes = 0.0
    for argument in ms.arg_info.ArgInfo.from_entry_func(module):
        argument_bytes += math.prod(int(extent) for extent in argument.shape) * np.dtype(argument.dtype).itemsize
    schedule = Schedule(module, error_render_level="none")
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    extents = [_extents(block) for block in blocks]
    spatial, reduce = max(extents, key=lambda e: math.prod(e[0]) * math.prod(e[1]), default=([], []))
    flop = workload.flop or 0.0
    values = [
        len(blocks),
        _log2(flop),
        _log2(argument_bytes),
        _log2(flop / max(argument_bytes, 1.0)),
        _log2(math.prod(spatial)),
        _log2(math.prod(reduce)),
        *_padded([_log2(extent) for extent in reversed(spatial)], AXES),
        *_padded([_log2(extent) for extent in reduce], AXES),
    ]
    return np.array(values, dtype=np.float64)


def _extents(block: SBlock) -> tuple[list[int], list[int]]:
    """Extents of the spatial and of the reduction axes of a block; an extent that is not known counts as one."""
    found: dict[int, list[int]] = {_SPATIAL: [], _REDUCE: []}
    for axis in block.iter_vars:
        extent = getattr(axis.dom.extent, "value", 1)
        found.setdefault(int(axis.iter_type), []).append(int(extent))
    return found[_SPATIAL], found[_REDUCE]
