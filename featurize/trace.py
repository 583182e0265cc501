"""What schedule traces say of a program without lowering it: shared by every dialect whose schedules are traces.

A trace is a list of steps with numbers in them. Records whose traces differ in numbers alone have one *form* and are
computed together: a number of a step is an array (records,). A dialect reads its steps into the tiling of what is tiled
most (``Split``, ``Tiling``); what the tiling implies is the same for all of them.

Both Ansor and MetaSchedule cut each output axis in five on a GPU (block, virtual thread, thread, two inner levels) and
each reduction in three; on a CPU in four and two. Axes are numbered in the order of the trace: batch, channels, height
and width of a convolution in NCHW.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson

from lorien.dialects.base import ReadReport
from lorien.featurize.base import Features
from lorien.featurize.schema import FeatureSet
from lorien.records import Json, TuningRecord, Workload

Array = npt.NDArray[np.float64]

AXES, LEVELS = 4, 5
REDUCE_AXES, REDUCE_LEVELS = 3, 3
READS = 2
GPU_PARTS, CPU_PARTS = 5, 4
ELEMENT_BYTES = 4  # a trace names no types
WARP = 32
# Of a GPU, the same for all: the model of a target learns what its own limits are.
MULTIPROCESSORS, SM_THREADS, SM_BLOCKS, SM_REGISTERS, SM_SHARED_BYTES = 80, 2048, 16, 65536, 98304
THREAD_REGISTERS = 32  # beside the accumulators
ONE: Array = np.array(1.0)

# Which output axes index an input, by the number of output and reduction axes: the convolutions of layout NCHW, the
# matrix products. Elsewhere an input is taken to be indexed by all.
_READ_AXES = {
    (4, 3): ((0, 2, 3), (1,)),
    (4, 2): ((0, 1, 2, 3), (1,)),
    (3, 1): ((0, 1), (0, 2)),
    (2, 1): ((0,), (1,)),
}
_WINDOWS = {(4, 3): {2: 1, 3: 2}, (4, 2): {2: 0, 3: 1}}
"""Output axes that slide a window over the first input, and the reduction axis that runs along each."""


class TraceExtractor(ABC):
    """Rows of traces, form by form; a dialect says what a form is and what it means."""

    features: FeatureSet

    @abstractmethod
    def form(self, schedule: Json) -> tuple[Json, list[float]]:
        """A trace without its numbers, and the numbers. Raises ``ValueError`` and its like on what is no trace."""

    @abstractmethod
    def describe(self, form: Json, numbers: Array) -> dict[str, Array]:
        """Features by column name, of ``numbers`` (records, numbers of the form): (records,) or one for all.

        Raises ``ValueError``, ``TypeError``, ``LookupError`` or ``ArithmeticError`` when the steps do not fit.
        """

    @abstractmethod
    def describe_workload(self, workload: Workload) -> dict[str, float]:
        """Features that do not depend on the schedule."""

    def rows(self, pairs: Sequence[tuple[Workload, Json]]) -> tuple[Features, dict[int, str]]:
        """The rows of (workload, trace), NaN where there is a problem, and the problems by index."""
        rows = np.full((len(pairs), len(self.features.columns)), np.nan, dtype=np.float32)
        problems: dict[int, str] = {}
        groups: dict[bytes, tuple[Json, list[int], list[list[float]]]] = {}
        for index, (_, schedule) in enumerate(pairs):
            try:
                form, numbers = self.form(schedule)
                _, indices, values = groups.setdefault(orjson.dumps(form), (form, [], []))
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                problems[index] = f"a step is not of the form of its kind ({error})"
                continue
            indices.append(index)
            values.append(numbers)
        for form, indices, values in groups.values():
            self._fill(rows, form, indices, values, problems)
        known: dict[str, dict[str, float]] = {}
        for index, (workload, _) in enumerate(pairs):
            if index not in problems:
                if workload.key not in known:
                    known[workload.key] = self.describe_workload(workload)
                for name, value in known[workload.key].items():
                    rows[index, self._index[name]] = value
        return rows, problems

    def good_rows(
        self, batch: list[TuningRecord], log: str, report: ReadReport
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """A batch of records and their rows; those with a problem are reported and left out."""
        rows, problems = self.rows([(record.workload, record.candidate.schedule) for record in batch])
        for index, reason in problems.items():
            report.bad(log, f"{batch[index].workload.name}: {reason}")
        if problems:
            kept = [index for index in range(len(batch)) if index not in problems]
            batch, rows = [batch[index] for index in kept], rows[kept]
        if batch:
            yield batch, rows

    @property
    def _index(self) -> dict[str, int]:
        if not hasattr(self, "_positions"):
            self._positions = {name: index for index, name in enumerate(self.features.names)}
        return self._positions

    def _fill(
        self, rows: Features, form: Json, indices: list[int], values: list[list[float]], problems: dict[int, str]
    ) -> None:
        """Write the rows of records of one form."""
        try:
            numbers = np.array(values, dtype=np.float64)
            if np.isinf(numbers).any() or (np.abs(numbers) >= 2.0**63).any():
                raise ValueError("a number out of range")
            found = self.describe(form, numbers)
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if len(indices) == 1:
                problems[indices[0]] = f"its steps do not fit one another ({error})"
                return
            # One bad value spoils its group: halve it until that is alone.
            middle = len(indices) // 2
            self._fill(rows, form, indices[:middle], values[:middle], problems)
            self._fill(rows, form, indices[middle:], values[middle:], problems)
            return
        columns = [np.broadcast_to(column, len(indices)) for column in found.values()]
        rows[np.ix_(indices, [self._index[name] for name in found])] = np.stack(columns, axis=1)


@dataclass(frozen=True)
class Split:
    """A loop cut in parts: its extent (records,), NaN where unknown, and the extents of the parts, outermost first."""

    extent: Array
    parts: Sequence[Array]

    @property
    def tile(self) -> Array:
        """All parts but the outermost."""
        return product(self.parts[1:])


@dataclass(frozen=True)
class Read:
    """An input that a block of threads loads together: length of one load, and what a thread needs where told."""

    vector: Array
    needed: Array | None = None


@dataclass(frozen=True)
class Tiling:
    """The computation that is tiled most.

    Parameters
    ----------
    splits : sequence of Split
        Of its loops, in the order of the trace. Those cut in most parts are its output axes, the others its reductions.
    reads : sequence of Read
        Inputs loaded to shared memory, in their order.
    threads : array, optional
        Threads of a block, on a GPU.
    unroll : array, optional
        Steps up to which loops are unrolled.
    """

    splits: Sequence[Split]
    reads: Sequence[Read] = field(default=())
    threads: Array | None = None
    unroll: Array | None = None

    def columns(self) -> dict[str, Array]:
        """Its features by column name; none when no loop is cut in enough parts to be tiled."""
        depth = max((len(split.parts) for split in self.splits), default=0)
        if depth < CPU_PARTS:
            return {}
        return _Tiled(self, depth).columns()


def tiling_columns() -> Iterator[tuple[str, str, str]]:
    """Name, unit and meaning of every column of ``Tiling``."""
    yield "axes", "", "output axes of the tiled computation"
    yield "reduce_axes", "", "reduction axes of the tiled computation"
    yield "parts", "", "parts an output axis is cut in: 5 on a GPU, 4 on a CPU"
    for axis in range(AXES):
        yield f"s{axis}", "log2", f"extent of output axis {axis}"
        for level in range(LEVELS):
            yield f"s{axis}_{level}", "log2", f"part {level} of output axis {axis}, from the innermost"
        yield f"s{axis}_tile", "log2", f"output axis {axis}: all parts but the outermost"
        yield f"s{axis}_held", "log2", f"output axis {axis}: what one thread computes, virtual threads included"
    for axis in range(REDUCE_AXES):
        yield f"r{axis}", "log2", f"extent of reduction axis {axis}"
        for level in range(REDUCE_LEVELS):
            yield f"r{axis}_{level}", "log2", f"part {level} of reduction axis {axis}, from the innermost"
    yield "macs", "log2", "multiply-adds of the tiled computation"
    yield "waste", "log2", "iterations over those needed, where parts do not divide extents"
    yield "inner_tile", "log2 elements", "output elements of the innermost level"
    yield "reg_tile", "log2 elements", "output elements a thread holds"
    yield "block_tile", "log2 elements", "output elements of a block (GPU) or an outermost iteration (CPU)"
    yield "outer", "log2", "blocks (GPU) or outermost iterations (CPU)"
    yield "chunk", "log2", "reduction steps between two loads of the tiles"
    yield "chunks", "log2", "loads of the tiles in one block"
    yield "inner_reduce", "log2", "reduction steps of the innermost level"
    yield "body", "log2", "multiply-adds of a thread in one chunk"
    yield "body_over_unroll", "log2", "body over the steps unrolled"
    yield "unroll_step", "log2(1+steps)", "steps up to which loops are unrolled"
    for read in range(READS):
        yield f"read{read}", "log2 elements", f"input {read}: elements one thread needs for a chunk, as the trace says"
        yield f"read{read}_block", "log2 elements", f"input {read}: elements a block loads for a chunk"
        yield f"read{read}_loads", "log2", f"input {read}: loads of each thread for a chunk"
        yield f"read{read}_vector", "log2 elements", f"input {read}: length of one load"
        yield f"read{read}_waste", "log2", f"input {read}: threads' loads over the elements needed"
    yield "loaded", "log2 elements", "elements that a tile and chunk touch of both inputs"
    yield "reuse", "log2", "multiply-adds of a tile and chunk over the elements it touches"
    yield "traffic_per_mac", "log2", "elements that all tiles load, per multiply-add"
    yield "resident_threads", "log2", "threads that fit a multiprocessor, by threads, registers, shared memory"
    yield "waves", "log2", "blocks over those that fit a multiprocessor at once"
    yield "tail", "fraction", f"use of {MULTIPROCESSORS} multiprocessors by the waves of blocks"
    yield "x_threads", "log2", "threads along the last output axis"
    yield "x_run", "log2", "consecutive elements of the last output axis that one thread writes"


class _Tiled:
    def __init__(self, tiling: Tiling, depth: int) -> None:
        self._depth = depth
        self._gpu = depth >= GPU_PARTS
        self._spatial = [split for split in tiling.splits if len(split.parts) == depth]
        self._reduce = [split for split in tiling.splits if len(split.parts) < depth]
        self._reads = tiling.reads[:READS]
        self._unroll = tiling.unroll
        self._threads = tiling.threads if tiling.threads is not None else ONE

    def columns(self) -> dict[str, Array]:
        spatial, reduce = self._spatial, self._reduce
        chunk = product(part for split in reduce for part in split.parts[1:])
        reg_tile = product(self._held(split) for split in spatial)
        block_tile = product(split.tile for split in spatial)
        found = {
            "axes": np.array(float(len(spatial))),
            "reduce_axes": np.array(float(len(reduce))),
            "parts": np.array(float(self._depth)),
        }
        sizes = dict(self._parts())
        sizes |= {
            "macs": product(split.extent for split in (*spatial, *reduce)),
            "waste": product(product(split.parts) / split.extent for split in (*spatial, *reduce)),
            "inner_tile": product(split.parts[-1] for split in spatial),
            "reg_tile": reg_tile,
            "block_tile": block_tile,
            "outer": product(split.parts[0] for split in spatial),
            "chunk": chunk,
            "chunks": product(split.parts[0] for split in reduce),
            "inner_reduce": product(split.parts[-1] for split in reduce),
            "body": reg_tile * chunk,
            "x_threads": spatial[-1].parts[2],
            "x_run": spatial[-1].parts[-1] * spatial[-1].parts[-2],
        }
        if self._unroll is not None:
            sizes["unroll_step"] = 1 + self._unroll
            sizes["body_over_unroll"] = reg_tile * chunk / (1 + self._unroll)
        touched = self._touched()
        loaded = np.sum(np.broadcast_arrays(*touched), axis=0)
        sizes["loaded"] = loaded
        sizes["reuse"] = block_tile * chunk / loaded
        sizes["traffic_per_mac"] = sizes["outer"] * sizes["chunks"] * loaded / sizes["macs"]
        if self._gpu:
            sizes |= self._loads(touched)
            resident = self._resident(reg_tile, ELEMENT_BYTES * loaded if self._reads else ONE)
            sizes |= {"resident_threads": resident * self._threads, "waves": sizes["outer"] / resident}
            waves = sizes["waves"] / MULTIPROCESSORS
            found["tail"] = waves / np.ceil(waves)
        return found | {name: np.log2(size) for name, size in sizes.items()}

    def _parts(self) -> Iterator[tuple[str, Array]]:
        for axis, split in enumerate(self._spatial[:AXES]):
            yield f"s{axis}", split.extent
            yield f"s{axis}_tile", split.tile
            yield f"s{axis}_held", self._held(split)
            yield from ((f"s{axis}_{level}", split.parts[-1 - level]) for level in range(min(LEVELS, self._depth)))
        for axis, split in enumerate(self._reduce[:REDUCE_AXES]):
            yield f"r{axis}", split.extent
            levels = min(REDUCE_LEVELS, len(split.parts))
            yield from ((f"r{axis}_{level}", split.parts[-1 - level]) for level in range(levels))

    def _held(self, split: Split) -> Array:
        """Elements of an axis that one thread computes: virtual threads are its own."""
        return product([split.parts[1], *split.parts[3:]]) if self._gpu else product(split.parts[-2:])

    def _touched(self) -> list[Array]:
        """Elements of each input that a tile and chunk touch; windows that slide are taken to move one at a time."""
        shape = len(self._spatial), len(self._reduce)
        found = []
        for read, axes in enumerate(_READ_AXES.get(shape, (tuple(range(shape[0])),) * READS)):
            windows = _WINDOWS.get(shape, {}) if read == 0 else {}
            factors = [split.tile for r, split in enumerate(self._reduce) if r not in windows.values()]
            factors += [self._spatial[axis].tile for axis in axes if axis not in windows]
            factors += [self._spatial[axis].tile + self._reduce[r].tile - 1 for axis, r in windows.items()]
            found.append(product(factors))
        return found

    def _loads(self, touched: Sequence[Array]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for number, (read, block) in enumerate(zip(self._reads, touched, strict=False)):
            loads = np.ceil(block / (read.vector * self._threads))
            found |= {
                f"read{number}_block": block,
                f"read{number}_vector": read.vector,
                f"read{number}_loads": loads,
                f"read{number}_waste": loads * read.vector * self._threads / block,
            }
            if read.needed is not None:
                found[f"read{number}"] = read.needed
        return found

    def _resident(self, reg_tile: Array, shared_bytes: Array) -> Array:
        """Blocks that fit a multiprocessor at once; half a block stands for one that does not fit."""
        lanes = np.ceil(self._threads / WARP) * WARP
        limits = [
            SM_THREADS / lanes,
            SM_REGISTERS / (lanes * (reg_tile + THREAD_REGISTERS)),
            SM_SHARED_BYTES / np.maximum(shared_bytes, 1.0),
        ]
        fitting: Array = np.clip(np.floor(np.min(np.broadcast_arrays(*limits), axis=0)), 0.5, SM_BLOCKS)
        return fitting


def product(factors: Iterable[Array]) -> Array:
    """Product of arrays (records,) or of one number for all; 1 of none."""
    result = ONE
    for factor in factors:
        result = result * factor
    return result
