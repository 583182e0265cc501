"""Describe candidates by numbers: TVM's per-store features, the tiling decisions and the workload, a row each.

TVM describes every buffer store of a lowered candidate by numbers (``PerStoreFeature``, after Ansor's): arithmetic,
loop annotations, memory. A candidate has one to a handful of stores. A row holds the store that does most of the
arithmetic, and the sum over all of them. What lowering hides, the tile sizes by level, is read from the schedule's
trace. A unit of log2 means log2(1 + x) throughout.

What fits a core's vectors and registers is told in parts of them, so that a model of one target makes sense of another:
in sixteenths of a vector, and in 512ths of what all the registers hold. With AVX-512 these are plain numbers of floats.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.cpu_contraction import TILE_FACTORS
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.vectors import Vectors, vectors_of
from lorien.dialects.metaschedule.workload import module_of, tvm_target
from lorien.records import Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.s_tir import SBlock, Schedule

logger = logging.getLogger(__name__)

Number: TypeAlias = Any
"""A number, or an array of them (schedules,)."""


class Feature(NamedTuple):
    """A column of a row, as ``lorien.featurize`` keeps it."""

    name: str
    unit: str
    meaning: str


BUFFERS = 1
"""Of the memory touched, TVM's 18 numbers for each buffer of a store: we read none, and it describes one at least."""
CURVE_SAMPLES = 10
LEVELS = 5
"""Tiling levels told apart: the CUDA spaces have the most, five spatial ones."""
AXES = 3
PARTS = {"quarter": 4, "half": 2, "full": 1}

_SPATIAL, _REDUCE = 0, 2  # IterVar.DataPar, IterVar.CommReduce
TILING = "meta_schedule.tiling_structure"

_ARITHMETIC = ("mad", "add_sub", "mul", "div_mod", "compare", "math_call", "other_call")
_POSITIONS = 8
_BUFFER_NUMBERS = 18

_VECTOR = "log2 16ths of a vector"
_REGISTERS = "log2 512ths of the registers"


def _store_columns() -> list[Feature | None]:
    """The numbers of one store in TVM's order (``per_store_feature.cc``); None for those never filled or left out.

    Of each buffer it knows what is touched and reused. On networks held out these numbers made rankings worse, and
    what a model learned of them on one CPU misled it on another (docs/benchmarks.md).
    """
    columns: list[Feature | None] = []
    for kind in ("float", "int"):
        for op in _ARITHMETIC:
            meaning = f"{kind} {op.replace('_', ' ')} operations, times all loops around the store"
            # A multiply and an add are never counted as one.
            columns.append(None if op == "mad" else Feature(f"{kind}_{op}", "log2 operations", meaning))
    columns.append(Feature("bool_op", "log2 operations", "boolean operations, times all loops around the store"))
    columns.append(Feature("select_op", "log2 operations", "selects, times all loops around the store"))
    for kind in ("vectorize", "unroll", "parallel"):
        columns.append(Feature(f"{kind}_loops", "log2 loops", f"loops around the store marked {kind}"))
        unit = _VECTOR if kind == "vectorize" else "log2 iterations"
        columns.append(Feature(f"{kind}_extent", unit, f"product of the extents of those marked {kind}"))
        columns.append(Feature(f"{kind}_inner", unit, f"extent of the innermost one marked {kind}"))
        columns += [None] * _POSITIONS  # TVM tells "none" from "mixed" only, which the number of loops says already
    columns.append(Feature("is_gpu", "0 or 1", "the target is a GPU"))
    for axis in ("block_x", "block_y", "block_z", "thread_x", "thread_y", "thread_z", "vthread"):
        columns.append(Feature(axis, "log2 iterations", f"extent bound to {axis}"))
    columns += [None] * BUFFERS * _BUFFER_NUMBERS
    for sample in range(1, CURVE_SAMPLES + 1):
        meaning = f"arithmetic intensity of the inner loops that do {sample}/{CURVE_SAMPLES} of the operations"
        columns.append(Feature(f"intensity{sample}", "log2 flop per byte", meaning))
    columns.append(Feature("alloc_bytes", "log2 bytes", "size of the buffer stored to"))
    columns.append(Feature("alloc_total", "log2 elements", "its elements, times the loops around its allocation"))
    columns.append(Feature("alloc_outer", "log2 iterations", "product of the loops around its allocation"))
    columns.append(Feature("alloc_inner", "log2 iterations", "product of the loops from its allocation to the store"))
    columns.append(Feature("iterations", "log2 iterations", "product of all loops around the store"))
    columns.append(Feature("loops", "log2 loops", "loops around the store"))
    columns.append(Feature("auto_unroll", "log2 steps", "the pragma auto_unroll_max_step in force"))
    return columns


def _trace_columns() -> list[Feature]:
    columns = [
        Feature("tiled_spatial_axes", "axes", "spatial axes tiled by the multi-level tiling rule"),
        Feature("tiled_reduce_axes", "axes", "reduction axes tiled by it"),
        Feature("rfactors", "count", "reductions factored in two"),
        Feature("cache_writes", "count", "write caches added"),
        Feature("fused_consumers", "count", "consumers moved into the tiles"),
        Feature("locations", "count", "compute locations sampled"),
        Feature("location_first", "loop", "first compute location sampled; -1 at the root, -2 inlined, -3 none"),
        Feature("location_last", "loop", "last compute location sampled"),
        Feature("rfactor_inner", "log2 iterations", "inner extent of the last reduction split for rfactor"),
    ]
    for kind in ("spatial", "reduce"):
        for level in range(LEVELS):
            meaning = f"product over the {kind} axes of the tile factors {level} levels from the innermost"
            unit = _REGISTERS if (kind, level) == ("spatial", 0) else "log2 iterations"
            columns.append(Feature(f"{kind}_tile{level}", unit, meaning))
    columns.append(Feature("spatial_inner2", _REGISTERS, "spatial tile factors of the 2 innermost levels"))
    columns.append(Feature("spatial_inner3", _REGISTERS, "spatial tile factors of the 3 innermost levels"))
    columns.append(Feature("body", _REGISTERS, "spatial_tile0 times the innermost reduce_tile0 iterations"))
    columns.append(Feature("body2", _REGISTERS, "spatial_inner2 times the innermost reduce_tile0 iterations"))
    for axis in range(AXES):
        for level in range(LEVELS):
            meaning = f"tile factor of spatial axis {axis} from the last, {level} levels from the innermost"
            unit = _VECTOR if (axis, level) == (0, 0) else "log2 iterations"
            columns.append(Feature(f"axis{axis}_tile{level}", unit, meaning))
    for name, which in (("first", "first"), ("last", "last")):
        for level in range(3):
            meaning = f"tile factor of the {which} reduction axis, {level} levels from the innermost"
            columns.append(Feature(f"reduce_{name}_tile{level}", "log2 iterations", meaning))
    for name in PARTS:
        meaning = f"share of {name} vectors that the innermost tile of the last spatial axis fills"
        columns.append(Feature(f"fill_{name}", "fraction", meaning))
    return columns


_WORKLOAD_COLUMNS = [
    Feature("blocks", "count", "blocks of the unscheduled module"),
    Feature("flop", "log2 flop", "floating-point operations of one run"),
    Feature("argument_bytes", "log2 bytes", "size of all arguments"),
    Feature("flop_per_byte", "log2 flop per byte", "flop over argument bytes"),
    Feature("spatial_points", "log2 iterations", "spatial iterations of the block with most iterations"),
    Feature("reduce_points", "log2 iterations", "reduction iterations of that block"),
    *(Feature(f"axis{i}", "log2 iterations", f"extent of its spatial axis {i} from the last") for i in range(AXES)),
    *(Feature(f"reduce{i}", "log2 iterations", f"extent of its reduction axis {i}") for i in range(AXES)),
]
_CANDIDATE_COLUMNS = [
    Feature("stores", "count", "buffers stored to"),
    Feature("parallel_balance", "fraction", "share of the cores' time used when each takes whole parallel iterations"),
]
_STORE_COLUMNS = _store_columns()
_TRACE_COLUMNS = _trace_columns()
_KEPT = [index for index, column in enumerate(_STORE_COLUMNS) if column is not None]
_FLOAT_OPS = [i for i, c in enumerate(_STORE_COLUMNS) if c is not None and c.name.startswith("float_")]
_INDEX = {column.name: index for index, column in enumerate(_STORE_COLUMNS) if column is not None}
_IN_VECTORS = [_INDEX["vectorize_extent"], _INDEX["vectorize_inner"]]


def _prefixed(prefix: str, what: str, columns: Sequence[Feature | None]) -> list[Feature]:
    return [Feature(f"{prefix}_{c.name}", c.unit, f"{what}: {c.meaning}") for c in columns if c is not None]


FEATURES: tuple[Feature, ...] = (
    *_prefixed("main", "store with most arithmetic", _STORE_COLUMNS),
    *_prefixed("sum", "sum over the stores", _STORE_COLUMNS),
    *_CANDIDATE_COLUMNS,
    *_prefixed("trace", "schedule", _TRACE_COLUMNS),
    *_prefixed("workload", "workload", _WORKLOAD_COLUMNS),
)
_NAMES = [feature.name for feature in FEATURES]
TRACE_START = _NAMES.index("trace_" + _TRACE_COLUMNS[0].name)
UNROLL = _NAMES.index("main_auto_unroll")
EARLY = [i for i, name in enumerate(_NAMES) if name.startswith(("trace_", "workload_"))] + [UNROLL]
"""Columns known before a schedule is lowered."""


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
        self.vectors = vectors_of(target)
        self._workloads: dict[str, npt.NDArray[np.float64]] = {}

    def __call__(self, schedules: Sequence[Schedule | None], workloads: Sequence[Workload]) -> npt.NDArray[np.float32]:
        """Rows (schedules, columns) in the order given; None, or a schedule that cannot be lowered, is a row of NaN."""
        rows = np.full((len(schedules), len(FEATURES)), np.nan, np.float32)
        there = [i for i, schedule in enumerate(schedules) if schedule is not None]
        for i, stores in zip(there, self._stores([schedules[i] for i in there]), strict=True):
            if stores is not None:
                tiling = tiling_columns(tiling_of(_steps(schedules[i])), self.vectors)[0]
                parts = (self._summary(stores), tiling, self._workload(workloads[i]))
                rows[i] = np.concatenate(parts)
        return rows

    def _stores(self, schedules: Sequence[Schedule]) -> list[npt.NDArray[np.float64] | None]:
        """(stores, numbers) of each schedule; None for one that cannot be lowered."""
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
        stores[:, _IN_VECTORS] = np.log2(1 + (np.exp2(stores[:, _IN_VECTORS]) - 1) * self.vectors.sixteenths)
        arithmetic = stores[:, _FLOAT_OPS].max(axis=1)
        # Most arithmetic first; between copies, the one with most iterations.
        main = stores[np.lexsort((stores[:, _INDEX["iterations"]], arithmetic))[-1]]
        parallel = max(1, round(np.exp2(main[_INDEX["parallel_extent"]]) - 1))
        balance = parallel / (math.ceil(parallel / self._cores) * self._cores)
        return np.concatenate((main[_KEPT], stores.sum(axis=0)[_KEPT], (len(stores), balance)))

    def _workload(self, workload: Workload) -> npt.NDArray[np.float64]:
        if workload.key not in self._workloads:
            self._workloads[workload.key] = _describe_workload(workload)
        return self._workloads[workload.key]


def _log2(value: float) -> float:
    return math.log2(1 + value)


def _padded(values: Sequence[Number], length: int) -> list[Number]:
    return [*values, *[0.0] * length][:length]


def _levels(tiles: Sequence[Sequence[Number]]) -> list[Number]:
    """Product over the axes of each level's factors, innermost level first; blocks may be tiled to other depths."""
    transposed = zip_longest(*(reversed(factors) for factors in tiles), fillvalue=1)
    return [math.prod(level, start=1.0) for level in transposed]


class Tiling(NamedTuple):
    """What a trace decides before the post-processors. A number may be an array, of schedules alike but for it."""

    spatial: Sequence[Sequence[Number]]
    """Factors of each spatial axis that the multi-level tiling rule tiled, outermost level first."""
    reduce: Sequence[Sequence[Number]]
    split: Sequence[Number]
    """Factors of the last split for rfactor."""
    locations: Sequence[Number]
    counts: tuple[int, int, int]
    """Reductions factored, write caches added, consumers moved."""


class Step(NamedTuple):
    """What matters of an instruction of a trace: its kind, what was decided, and the structure it announces.

    Of a split it is the factors, where they are written down and not sampled; None is the factor that is left over. Of
    a default schedule's ``TILE_FACTORS`` it is the factors of the spatial and of the reduction axes.
    """

    kind: str
    decision: Any = None
    structure: str = ""


def tiling_of(steps: Iterable[Step]) -> Tiling:
    """The tiling that a trace's steps amount to; those of the post-processors are not read."""
    structure = ""
    spatial: list[Sequence[Number]] = []
    reduce: list[Sequence[Number]] = []
    split: Sequence[Number] = []
    locations: list[Number] = []
    vector: Sequence[Number] = []
    counts = dict.fromkeys(("RFactor", "CacheWrite", "ReverseComputeAt"), 0)
    for kind, decision, announced in steps:
        if kind == "SamplePerfectTile":
            if not structure:
                split = decision
            elif len(decision) + len(vector) == structure.count("S"):
                spatial.append([*decision, *vector])
                vector = []
            else:
                reduce.append(decision)
        elif kind == "Split" and structure and decision:
            # An axis of whole vectors: its innermost loop is one of them, whatever is sampled for the others.
            if len(decision) == structure.count("S") and None not in decision:
                spatial.append(decision)
            elif len(decision) == 2 and decision[0] is None:
                vector = decision[1:]
        elif kind == "SampleComputeLocation":
            locations.append(decision)
        elif kind in counts:
            counts[kind] += 1
        elif kind == "Annotate":
            structure = announced or structure
        elif kind == TILE_FACTORS:
            spatial, reduce = decision
        elif kind == "EnterPostproc":
            break
    factored, cached, fused = counts.values()
    return Tiling(spatial, reduce, split, locations, (factored, cached, fused))


def tiling_columns(tiling: Tiling, vectors: Vectors, rows: int = 1) -> npt.NDArray[np.float64]:
    """The values of ``_TRACE_COLUMNS`` (rows, columns) on a core with these vectors."""
    spatial, reduce, split, locations, counts = tiling
    s, r = _levels(spatial), _levels(reduce)
    s0, s1, s2, *_ = [*s, 1.0, 1.0, 1.0]
    r0 = r[0] if r else 1.0
    vector, held = vectors.sixteenths, vectors.register_parts
    values: list[Number] = [
        len(spatial),
        len(reduce),
        *counts,
        len(locations),
        locations[0] if locations else -3,
        locations[-1] if locations else -3,
        np.log2(1 + split[-1]) if len(split) else 0,
        *_padded([np.log2(1 + level * scale) for level, scale in zip(s, (held, *[1] * LEVELS), strict=False)], LEVELS),
        *_padded([np.log2(1 + level) for level in r], LEVELS),
        np.log2(1 + s0 * s1 * held),
        np.log2(1 + s0 * s1 * s2 * held),
        np.log2(1 + s0 * r0 * held),
        np.log2(1 + s0 * s1 * r0 * held),
    ]
    last_axes = [[np.log2(1 + factor) for factor in reversed(factors)] for factors in reversed(spatial)]
    if last_axes:
        last_axes[0][0] = np.log2(1 + spatial[-1][-1] * vector)
    for axis in [*last_axes, *[[]] * AXES][:AXES]:
        values += _padded(axis, LEVELS)
    for factors in (reduce[0], reduce[-1]) if reduce else ([], []):
        values += _padded([np.log2(1 + factor) for factor in reversed(factors)], 3)
    inner = spatial[-1][-1] if spatial else 0
    for lanes in (max(1, vectors.lanes // part) for part in PARTS.values()):
        values.append(inner / np.maximum(np.ceil(inner / lanes) * lanes, 1))
    columns = np.empty((rows, len(values)))
    for index, value in enumerate(values):
        columns[:, index] = value
    return columns


def _steps(schedule: Schedule) -> Iterator[Step]:
    """The steps of a traced schedule."""
    decisions = schedule.trace.decisions
    for instruction in schedule.trace.insts:
        kind = instruction.kind.name
        if kind == "SamplePerfectTile":
            yield Step(kind, [int(factor) for factor in decisions[instruction]])
        elif kind == "SampleComputeLocation":
            yield Step(kind, int(decisions[instruction]))
        elif kind == "Annotate" and instruction.attrs[0] == TILING:
            yield Step(kind, None, str(instruction.inputs[1]))
        elif kind == "Annotate" and instruction.attrs[0] == TILE_FACTORS:
            yield Step(TILE_FACTORS, _tiles(str(instruction.inputs[1])))
        elif kind == "Split":
            yield Step(kind, written_factors(instruction.inputs[1:]))
        else:
            yield Step(kind)


def _tiles(text: str) -> list[list[list[int]]]:
    """Factors of the spatial and of the reduction axes, as ``tiles_text`` writes them."""
    return [
        [[int(factor) for factor in axis.split(",")] for axis in axes.split(";") if axis] for axes in text.split("|")
    ]


def written_factors(factors: Sequence[Any]) -> list[int | None] | None:
    """The factors of a split that are written down; None where some are sampled. TVM's objects, or of a JSON trace."""
    found = [
        None if factor is None or (isinstance(factor, str) and factor == "None") else getattr(factor, "value", factor)
        for factor in factors
    ]
    return found if all(factor is None or isinstance(factor, int) for factor in found) else None


def _describe_workload(workload: Workload) -> npt.NDArray[np.float64]:
    """The values of ``_WORKLOAD_COLUMNS``, from the unscheduled module."""
    from tvm import DataType
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

    module = module_of(workload)
    argument_bytes = sum(
        math.prod(map(int, argument.shape)) * DataType(argument.dtype).bits // 8
        for argument in ms.arg_info.ArgInfo.from_entry_func(module)
    )
    schedule = Schedule(module, error_render_level="none")
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    extents = [_extents(block) for block in blocks]
    spatial, reduce = max(extents, key=lambda e: math.prod(e[0]) * math.prod(e[1]), default=([], []))
    flop = workload.flop or 0.0
    values = [
        len(blocks),
        _log2(flop),
        _log2(argument_bytes),
        _log2(flop / max(argument_bytes, 1)),
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
