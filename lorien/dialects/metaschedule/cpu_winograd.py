"""The default schedules of Winograd's transformations: tile by tile, a tile in registers, vectors of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorien.dialects.metaschedule.cpu_loops import block_names, inner_loops, vectorise
from lorien.dialects.metaschedule.cpu_stages import SMALL_BYTES, moved_bytes
from lorien.dialects.metaschedule.vectors import Vectors
from lorien.dialects.metaschedule.winograd import MATRIX_ROWS, TILES

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import LoopRV


def is_computed_once(name: str, names: Sequence[str]) -> bool:
    """Whether a stage is of a transformation: inlined, it would be computed again for each value of a tile."""
    return MATRIX_ROWS in names and name in ("data_pad", MATRIX_ROWS, TILES)


def schedule_transformation(schedule: Schedule, vectors: Vectors, cores: int) -> set[str]:
    """Schedule a kernel that transforms tiles, what stands before and after it included. Returns its blocks.

    The last stage walks tile by tile; the others make of each tile what it needs.
    """
    *before, last = block_names(schedule)
    if MATRIX_ROWS not in before:
        return set()
    block = schedule.get_sblock(last)
    outside, inside = (_by_output if TILES in before else _by_input)(schedule, schedule.get_loops(block))
    schedule.reorder(*outside, *inside)
    parallel = cores > 1 and moved_bytes(schedule, [block]) > SMALL_BYTES
    *shared, tile = outside
    if parallel and shared:
        schedule.parallel(schedule.fuse(*shared) if len(shared) > 1 else shared[0])
    for name in reversed(before):
        stage = schedule.get_sblock(name)
        schedule.compute_at(stage, tile)
        schedule.set_scope(stage, 0, "local")
    for name in (*before, last):
        vectorise(schedule, inner_loops(schedule, schedule.get_sblock(name), tile), vectors.lanes)
    return {*before, last}


def _by_input(schedule: Schedule, loops: Sequence[LoopRV]) -> tuple[list[LoopRV], list[LoopRV]]:
    """Of (a, a, tiles, c / x, x), the loops over tiles and those of a tile."""
    row, column, *outside, block = loops
    return outside, [row, column, block]


def _by_output(schedule: Schedule, loops: Sequence[LoopRV]) -> tuple[list[LoopRV], list[LoopRV]]:
    """Of (n, out / y, h, w, y), the loops over tiles and those of a tile."""
    tiles = schedule.get(schedule.get_sblock(TILES))
    side = int(tiles.iter_vars[4].dom.extent)
    *outside, height, width, block = loops
    rows, row = schedule.split(height, [None, side])
    columns, column = schedule.split(width, [None, side])
    return [*outside, rows, columns], [row, column, block]
