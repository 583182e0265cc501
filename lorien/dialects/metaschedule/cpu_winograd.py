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
    loops = schedule.get_loops(block)
    inside = _tile_of_output(schedule, loops) if TILES in before else _tile_of_input(loops)
    outside = [loop for loop in schedule.get_loops(block) if all(not _same(schedule, loop, one) for one in inside)]
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


def _tile_of_input(loops: Sequence[LoopRV]) -> list[LoopRV]:
    """Of (a, a, tiles, c / x, x), a tile's loops."""
    row, column, _, _, block = loops
    return [row, column, block]


def _tile_of_output(schedule: Schedule, loops: Sequence[LoopRV]) -> list[LoopRV]:
    """Of (n, out / y, h, w, y), a tile's loops."""
    tiles = schedule.get(schedule.get_sblock(TILES))
    side = int(tiles.iter_vars[4].dom.extent)
    *_, height, width, block = loops
    _, row = schedule.split(height, [None, side])
    _, column = schedule.split(width, [None, side])
    return [row, column, block]


def _same(schedule: Schedule, loop: LoopRV, other: LoopRV) -> bool:
    return bool(schedule.get(loop).same_as(schedule.get(other)))
