"""Sums of products on a CPU: what of a block is one, and a register tile of it that keeps the cores busy.

A tile of rows x columns of vectors stays in registers while the sum runs. In a step of the sum each column loads one
vector of the streamed operand; each row loads one number of the broadcast operand, which multiplies all columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lorien.dialects.metaschedule.cpu_access import Access, Axis, NotAffine, accesses, axes_of
from lorien.dialects.metaschedule.cpu_loops import (
    PARTITION,
    block_names,
    inner_loops,
    is_plain,
    lanes_of,
    vectorise,
    vectorise_last,
)
from lorien.dialects.metaschedule.vectors import Vectors

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import LoopRV, SBlockRV

FMA_PER_CYCLE, LOADS_PER_CYCLE = 2.0, 2.0
FMA_LATENCY_CYCLES = 4.0
L1_BYTES = 32 << 10
L2_BYTES = {16: 1 << 20}
"""By lanes: CPUs with AVX-512 have twice the cache of others, or more."""
OTHER_L2_BYTES = 512 << 10
L2_BYTES_PER_CYCLE, L3_BYTES_PER_CYCLE = 32.0, 12.0
MOVING_SHARE = 0.2
"""Of the shorter of computing and moving, what the longer one does not hide."""
SET_BYTES = 4096
"""Rows this far apart share the few lines of one set of the nearest cache."""
SET_ROWS = 8
PART_CYCLES = 100.0
"""To begin a part."""
SMALL_CYCLES = 1e4
"""What one core does in less is not given to several: to wake them takes as long."""
REST_SHARE = 0.93
"""Of its speed, what a tile keeps that does not cut its axis evenly."""
PACK_ROWS = 16
"""Rows that pay for a copy of the streamed operand."""
WIDE_BYTES = 1024
"""Between the vectors of a column, from which a copy of them pays."""
FLOAT_BYTES = 4
TILE_FACTORS = "lorien.tile_factors"
"""Attribute by which the trace tells ``tiles_text``, for those who describe schedules. No kernel keeps it."""
TILES, PARTS = 6, 4
"""Register tiles, and cuts into parts of each, that are worth a try beside the best."""
_PROBED = 4
"""First values of an axis that tell how an operand lies along it."""


@dataclass(frozen=True)
class Contraction:
    """A block that adds products of two operands.

    Parameters
    ----------
    batch, rows, columns : tuple of Axis
        Spatial axes of both operands, of the broadcast one, and of the streamed one without the vector; in the block's
        order.
    vector : Axis
        Innermost axis of the output.
    sums : tuple of Axis
    broadcast, streamed : Access
    contiguous : bool
        The streamed operand's vectors lie in memory as in the output.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    vector: Axis
    sums: tuple[Axis, ...]
    broadcast: Access
    streamed: Access
    output: Access
    contiguous: bool

    @property
    def steps(self) -> int:
        """Products that one value adds up."""
        return extent(self.sums)

    @property
    def products(self) -> int:
        """Products in all."""
        return extent((*self.batch, *self.rows, *self.columns, self.vector, *self.sums))


class Tile(NamedTuple):
    """How many values of the innermost row axis, of the one around it, and of the columns a register tile holds."""

    inner_rows: int
    outer_rows: int
    columns: int
    cycles: float
    """Of a step of the sum."""

    @property
    def rows(self) -> int:
        """Rows of the tile."""
        return self.inner_rows * self.outer_rows


def extent(axes: Sequence[Axis]) -> int:
    """Values of all axes together."""
    return math.prod(axis.extent for axis in axes)


def contraction_of(schedule: Schedule, block: SBlockRV) -> Contraction | None:
    """The block as a contraction; None where it is none, or where vectors do not run along its output.

    Another reduction whose vectors run along the output, such as pooling, is taken for one with a single operand.
    """
    from tvm import tirx

    stmt = schedule.get(block)
    if stmt.init is None or not isinstance(stmt.body, tirx.BufferStore):
        return None
    try:
        axes = axes_of(stmt)
        reads, writes = accesses(stmt)
        reads = [read for read in reads if not read.buffer.same_as(writes[0].buffer)]
        wide = [axis for axis in axes if not axis.reduces and axis.extent > 1]
        if len(writes) != 1 or not wide or writes[0].stride(wide[-1].index) != 1:
            return None
        value = stmt.body.value
        if len(reads) == 2 and isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul):
            return _contraction(axes, reads, writes[0], wide[-1])
        if len(reads) == 1:
            return _reduction(axes, reads[0], writes[0], wide[-1])
    except NotAffine:
        pass
    return None


def _contraction(axes: list[Axis], reads: list[Access], output: Access, vector: Axis) -> Contraction | None:
    if any(str(access.buffer.dtype) != "float32" for access in (*reads, output)):
        return None
    using = [read for read in reads if read.uses(vector)]
    along = [read for read in using if read.contiguous(vector, min(vector.extent, _PROBED))]
    if not using or (len(using) == 2 and len(along) < 2):
        return None
    # Where both run along the vector, the smaller operand stays in registers.
    streamed = min(using, key=lambda read: sum(read.uses(axis) for axis in axes if not axis.reduces))
    broadcast = reads[1] if streamed is reads[0] else reads[0]
    others = [axis for axis in axes if not axis.reduces and axis is not vector]
    rows = tuple(axis for axis in others if axis.extent > 1 and not streamed.uses(axis))
    if not along and extent(rows) < PACK_ROWS:
        return None  # too few to turn the operand round for them
    return Contraction(
        batch=tuple(a for a in others if a.extent == 1 or (streamed.uses(a) and broadcast.uses(a))),
        rows=rows,
        columns=tuple(a for a in others if a.extent > 1 and streamed.uses(a) and not broadcast.uses(a)),
        vector=vector,
        sums=tuple(axis for axis in axes if axis.reduces),
        broadcast=broadcast,
        streamed=streamed,
        output=output,
        contiguous=any(read is streamed for read in along),
    )


def _reduction(axes: list[Axis], read: Access, output: Access, vector: Axis) -> Contraction | None:
    sums = tuple(axis for axis in axes if axis.reduces)
    steps = [axis for axis in sums if axis.extent > 1]
    if not sums or (steps and read.stride(vector.index) != 1):
        return None  # vectors run along the sum, or nowhere
    others = [axis for axis in axes if not axis.reduces and axis is not vector]
    return Contraction(
        batch=tuple(axis for axis in others if axis.extent == 1),
        rows=tuple(axis for axis in others if axis.extent > 1),
        columns=(),
        vector=vector,
        sums=sums,
        broadcast=read,
        streamed=read,
        output=output,
        contiguous=True,
    )


def divisors(number: int) -> list[int]:
    """All divisors, smallest first."""
    return [value for value in range(1, number + 1) if number % value == 0]


def tile_cycles(rows: int, columns: int) -> float:
    """Of a step of the sum: what the multipliers, the loads or the wait for the last step take."""
    return max(rows * columns / FMA_PER_CYCLE, (rows + columns) / LOADS_PER_CYCLE, FMA_LATENCY_CYCLES)


def tiles_of(inner: int, outer: int, columns: int, vectors: Vectors, most_rows: int) -> list[Tile]:
    """Register tiles, those first that do most in a cycle; among equals those that stream least."""

    def tiles() -> Iterator[Tile]:
        for row, column in itertools.product(range(1, min(inner, most_rows) + 1), divisors(columns)):
            for around in divisors(outer) if row == inner else (1,):
                rows = row * around
                # One register for a number of the broadcast operand, and those of the columns.
                if rows <= most_rows and rows * column + column + 1 <= vectors.registers:
                    yield Tile(row, around, column, tile_cycles(rows, column))

    def quality(tile: Tile) -> tuple[float, float]:
        used = inner / (-(-inner // tile.inner_rows) * tile.inner_rows)
        rest = 1.0 if used == 1.0 else REST_SHARE
        done = tile.rows * tile.columns * used * rest / tile.cycles
        return round(done, 1), tile.rows + tile.columns / 2

    return sorted(tiles(), key=quality, reverse=True)


@dataclass(frozen=True)
class Plan:
    """How a contraction is cut.

    Parameters
    ----------
    lanes : int
    tile : Tile
    row_parts, column_parts : int
        In how many parts the tiles of rows (of their outer axis, where there are two) and of columns are given to
        threads.
    pack : bool
        The streamed operand's columns are copied together before they are used.
    parallel : bool
    """

    lanes: int
    tile: Tile
    row_parts: int
    column_parts: int
    pack: bool
    parallel: bool


def plans(c: Contraction, vectors: Vectors, cores: int, *, padded: bool) -> list[Plan]:
    """Ways to cut a contraction for a number of cores, the one that promises most first.

    With ``padded``, each part makes its own share of a padded operand.
    """
    lanes = lanes_of(c.vector.extent, vectors, loaded_once=not c.rows)
    inner, outer = row_extents(c)
    tiles = tiles_of(inner, outer, column_extent(c, lanes), vectors, most_rows(c, vectors))[:TILES]
    packed = packs(c)
    found = [
        _cuts(c, lanes, tile, vectors, cores, padded=padded, pack=pack)[:count]
        for count, pack in ((PARTS, packed), (1, not packed))
        if pack or c.contiguous
        for tile in tiles
    ]
    # The best cut of each tile comes before the second of any.
    return [plan for cuts in itertools.zip_longest(*found) for plan in cuts if plan is not None]


def _cuts(
    c: Contraction, lanes: int, tile: Tile, vectors: Vectors, cores: int, *, padded: bool, pack: bool
) -> list[Plan]:
    """Ways to give the tiles to cores, those first that take the fewest cycles."""
    inner, outer = row_extents(c)
    columns = column_extent(c, lanes)
    others = c.products // (c.steps * lanes * inner * outer * columns)
    l2_bytes = L2_BYTES.get(vectors.lanes, OTHER_L2_BYTES)
    panel_bytes = tile.columns * lanes * FLOAT_BYTES * c.steps
    # Of a row, its share of what all rows read.
    row_bytes = FLOAT_BYTES * math.prod(map(int, c.broadcast.buffer.shape)) / extent((*c.batch, *c.rows))
    column_tiles = columns // tile.columns
    inner_tiles, outer_tiles = -(-inner // tile.inner_rows), outer // tile.outer_rows
    cut_tiles = outer_tiles if outer > 1 else inner_tiles if inner % tile.inner_rows == 0 else 1

    def cycles(parts: tuple[int, int]) -> float:
        row_parts, column_parts = parts
        row_tiles, panels = inner_tiles * outer_tiles // row_parts, column_tiles // column_parts
        rows_bytes = row_tiles * tile.rows * row_bytes
        compute = row_tiles * panels * c.steps * tile.cycles
        # Columns are walked outside: a panel of them is read for each tile of rows, all rows for each panel.
        moved = panels * reading_cycles(panel_bytes, row_tiles, l2_bytes) + reading_cycles(rows_bytes, panels, l2_bytes)
        copied = (rows_bytes if padded else 0.0) + (3 * panel_bytes * panels if pack else 0.0)
        each = max(compute, moved) + MOVING_SHARE * min(compute, moved) + copied / (lanes * FLOAT_BYTES)
        return -(-others * row_parts * column_parts // cores) * (each + PART_CYCLES)

    def plan(parts: tuple[int, int]) -> Plan:
        parallel = cores > 1 and others * math.prod(parts) > 1 and cycles(parts) > SMALL_CYCLES
        return Plan(lanes, tile, *parts, pack, parallel)

    return [plan(parts) for parts in sorted(itertools.product(divisors(cut_tiles), divisors(column_tiles)), key=cycles)]


def row_extents(c: Contraction) -> tuple[int, int]:
    """Of the innermost row axis and of the one around it."""
    extents = [1, 1, *(axis.extent for axis in c.rows)]
    return extents[-1], extents[-2]


def column_extent(c: Contraction, lanes: int) -> int:
    """Vectors of the innermost axis; of the next column axis where that is one vector only."""
    if c.vector.extent > lanes:
        return c.vector.extent // lanes
    return c.columns[-1].extent if c.columns else 1


def most_rows(c: Contraction, vectors: Vectors) -> int:
    """Rows of a tile whose numbers of the broadcast operand stay in the nearest cache together."""
    apart = abs(c.broadcast.stride(c.rows[-1].index)) * FLOAT_BYTES if c.rows and c.rows[-1].extent > 1 else 0
    return SET_ROWS if apart and apart % SET_BYTES == 0 else vectors.registers


def packs(c: Contraction) -> bool:
    """Whether the streamed operand is read so often, and lies so wide apart, that a copy of its columns pays."""
    if extent(c.rows) < PACK_ROWS:
        return False
    apart = [abs(c.streamed.stride(axis.index)) * FLOAT_BYTES for axis in c.sums if axis.extent > 1]
    return not c.contiguous or min(apart, default=0) >= WIDE_BYTES


def reading_cycles(size_bytes: float, times: int, l2_bytes: int) -> float:
    """To read as many bytes so many times: first from far away, then from the cache that holds them."""
    far = size_bytes / L3_BYTES_PER_CYCLE
    again = 0.0 if size_bytes <= L1_BYTES else far if size_bytes > l2_bytes else size_bytes / L2_BYTES_PER_CYCLE
    return far + again * (times - 1)


def schedule_contraction(
    schedule: Schedule, name: str, vectors: Vectors, cores: int, *, fused: bool = True, choice: int = 0
) -> set[str]:
    """Schedule a block that is a contraction, the stages that only it reads, and with ``fused`` the one that follows.

    ``choice`` counts the ways to cut it, the most promising first; past the last it is the last. Returns the names of
    these blocks, empty where it is none. Raises TVM's errors, and leaves the schedule half changed, where it cannot be
    cut.
    """
    block = schedule.get_sblock(name)
    c = contraction_of(schedule, block) if is_plain(schedule, block) else None
    if c is None:
        return set()
    producers = [
        producer
        for producer in schedule.get_producers(block)
        if len(schedule.get_consumers(producer)) == 1 and schedule.get(producer).init is None
    ]
    consumers = schedule.get_consumers(block)
    epilogue = consumers[0] if fused and len(consumers) == 1 else None
    ways = plans(c, vectors, cores, padded=bool(producers))
    cut = ways[min(choice, len(ways) - 1)]
    known = {str(schedule.get(stage).name_hint) for stage in (block, *producers, *([epilogue] if epilogue else []))}
    before = set(block_names(schedule))
    _apply(schedule, block, c, cut, producers, epilogue)
    return known | (set(block_names(schedule)) - before)


def tiles_text(c: Contraction, cut: Plan) -> str:
    """Factors of all axes by level, outermost first, spatial axes before sums: ``1,7,1,1;2,16,1,2|64,1``.

    The levels are those of TVM's ``SSRSRS``. Of a spatial axis they are the parts, the tiles of a part, one, the tile.
    """
    inner, outer = row_extents(c)
    levels = {axis.index: [axis.extent, 1, 1, 1] for axis in (*c.batch, *c.rows, *c.columns, c.vector)}

    def cut_axis(axis: Axis, extent: int, parts: int, tile: int, lanes: int = 1) -> None:
        levels[axis.index] = [parts, -(-extent // (parts * tile)), 1, tile * lanes]

    if c.rows:
        cut_axis(c.rows[-1], inner, 1 if outer > 1 else cut.row_parts, cut.tile.inner_rows)
    if len(c.rows) > 1:
        cut_axis(c.rows[-2], outer, cut.row_parts if outer > 1 else 1, cut.tile.outer_rows)
    columns = column_extent(c, cut.lanes)
    if c.vector.extent > cut.lanes:
        cut_axis(c.vector, columns, cut.column_parts, cut.tile.columns, cut.lanes)
    else:
        levels[c.vector.index] = [1, 1, 1, cut.lanes]
        if c.columns:
            cut_axis(c.columns[-1], columns, cut.column_parts, cut.tile.columns)
    spatial = (levels[index] for index in sorted(levels))
    sums = ([axis.extent, 1] for axis in sorted(c.sums, key=lambda axis: axis.index))
    return "|".join(";".join(",".join(map(str, factors)) for factors in axes) for axes in (spatial, sums))


def _apply(
    schedule: Schedule,
    block: SBlockRV,
    c: Contraction,
    cut: Plan,
    producers: Sequence[SBlockRV],
    epilogue: SBlockRV | None,
) -> None:
    schedule.annotate(block, TILE_FACTORS, tiles_text(c, cut))
    schedule.unannotate(block, TILE_FACTORS)
    if epilogue is None:
        epilogue = schedule.cache_write(block, 0, "local")
    else:
        schedule.set_scope(block, 0, "local")
    loops = dict(enumerate(schedule.get_loops(block)))
    rest = [loops[axis.index] for axis in (*c.batch, *c.rows[:-2], *c.columns)]
    outside: list[LoopRV] = []
    walked: list[LoopRV] = []
    held: list[LoopRV] = []

    def split(loop: LoopRV, parts: int, size: int) -> None:
        for kind, piece in zip((outside, walked, held), schedule.split(loop, [parts, None, size]), strict=True):
            kind.append(piece)

    vector = loops[c.vector.index]
    column: LoopRV | None = None
    if c.vector.extent > cut.lanes:
        column, vector = schedule.split(vector, [None, cut.lanes])
    elif c.columns:
        column = rest.pop()
    if column is not None:
        split(column, cut.column_parts, cut.tile.columns)
    columns_held = held[:]
    held.clear()
    inner, outer = row_extents(c)
    if len(c.rows) > 1:
        split(loops[c.rows[-2].index], cut.row_parts if outer > 1 else 1, cut.tile.outer_rows)
    if c.rows:
        split(loops[c.rows[-1].index], 1 if outer > 1 else cut.row_parts, cut.tile.inner_rows)
    sums = _sums(schedule, c, loops)
    # Columns inside rows: a number of the broadcast operand is loaded once, used for all columns, and forgotten.
    schedule.reorder(*rest, *outside, *walked, *sums, *held, *columns_held, vector)
    shared = [*rest, *outside]
    part = schedule.fuse(*shared) if len(shared) > 1 else shared[0] if shared else schedule.add_unit_loop(block)
    if cut.parallel:
        schedule.parallel(part)
    last = walked[-1] if walked else part
    if inner % cut.tile.inner_rows:
        schedule.annotate(last, PARTITION, 1)
    schedule.reverse_compute_at(epilogue, last)
    vectorise(schedule, inner_loops(schedule, epilogue, last), cut.lanes)
    for producer in reversed(producers):
        schedule.compute_at(producer, part)
        vectorise_last(schedule, inner_loops(schedule, producer, part), cut.lanes)
    if cut.pack:
        _pack(schedule, block, c, walked[0] if column is not None else part, cut.lanes)
    for loop in (*held, *columns_held):
        schedule.unroll(loop)
    schedule.vectorize(vector)
    schedule.decompose_reduction(block, sums[0])


def _sums(schedule: Schedule, c: Contraction, loops: dict[int, LoopRV]) -> list[LoopRV]:
    """The loops of the sum in the order in which the streamed operand lies in memory."""
    ordered: list[tuple[int, LoopRV]] = []
    for axis in c.sums:
        loop = loops[axis.index]
        inner = _block_extent(c, axis)
        if inner < axis.extent:
            outer, loop = schedule.split(loop, [None, inner])
            ordered.append((abs(c.streamed.stride(axis.index, inner)), outer))
        ordered.append((abs(c.streamed.stride(axis.index)) if axis.extent > 1 else 0, loop))
    # A loop of one step may stand anywhere; outside it does not hide the innermost one.
    return [loop for _, loop in sorted(ordered, key=lambda pair: -(pair[0] or math.inf))]


def _block_extent(c: Contraction, axis: Axis) -> int:
    """Values of a summed axis that lie evenly spaced in both operands before the layout starts a new block."""
    for inner in divisors(axis.extent)[1:-1]:
        if any(a.stride(axis.index, inner) != inner * a.stride(axis.index) for a in (c.streamed, c.broadcast)):
            return inner
    return axis.extent


def _pack(schedule: Schedule, block: SBlockRV, c: Contraction, at: LoopRV, lanes: int) -> None:
    """Copy a part's columns of the streamed operand together, with the vectors along memory."""
    regions = schedule.get(block).reads
    read = next(i for i, region in enumerate(regions) if region.source.same_as(c.streamed.buffer))
    copy = schedule.cache_read(block, read, "global")
    if not c.contiguous:
        dimension = next(i for i, index in enumerate(c.streamed.indices) if c.streamed.along(index, c.vector))
        schedule.transform_layout(
            copy, ("write", 0), lambda *index: [*index[:dimension], *index[dimension + 1 :], index[dimension]]
        )
    schedule.compute_at(copy, at)
    loops = inner_loops(schedule, copy, at)
    if not c.contiguous:
        loops.append(loops.pop(dimension - len(c.streamed.indices)))
        schedule.reorder(*loops)
    vectorise_last(schedule, loops, lanes)
