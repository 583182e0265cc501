"""Small steps that the rules of the default schedule for CPUs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorien.dialects.metaschedule.vectors import Vectors

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import LoopRV, SBlockRV

PARTITION = "pragma_loop_partition_hint"
"""TVM gives the rest of a loop that is not cut evenly code of its own: no condition is left in the vectors."""


def is_plain(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block stores one value, with a loop of known extent for each of its axes, in their order."""
    from tvm import tirx

    stmt = schedule.get(block)
    loops = schedule.get_loops(block)
    kinds = {tirx.IterVar.DataPar, tirx.IterVar.CommReduce}
    return (
        isinstance(stmt.body, tirx.BufferStore)
        and len(loops) == len(stmt.iter_vars)
        and all(variable.iter_type in kinds for variable in stmt.iter_vars)
        and all(
            isinstance(schedule.get(loop).extent, tirx.IntImm)
            and int(schedule.get(loop).extent) == int(variable.dom.extent)
            for loop, variable in zip(loops, stmt.iter_vars, strict=True)
        )
    )


def block_names(schedule: Schedule) -> list[str]:
    """The blocks of a kernel, producers first."""
    return [str(schedule.get(block).name_hint) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]


def lanes_of(extent: int, vectors: Vectors) -> int:
    """Lanes of vectors that cut an extent without a rest, as many as a register has at most."""
    return max(lanes for lanes in range(1, vectors.lanes + 1) if extent % lanes == 0)


def extent_of(schedule: Schedule, loop: LoopRV) -> int:
    """Iterations of a loop. Raises ``TypeError`` where they are no number."""
    return int(schedule.get(loop).extent)


def inner_loops(schedule: Schedule, block: SBlockRV, outside: LoopRV) -> list[LoopRV]:
    """The loops of a block inside another loop."""
    loops = schedule.get_loops(block)
    around = schedule.get(outside)
    at = next(index for index, loop in enumerate(loops) if schedule.get(loop).same_as(around))
    return list(loops[at + 1 :])


def vectorise_last(schedule: Schedule, loops: Sequence[LoopRV], lanes: int) -> None:
    """Vectors along the last of the loops that has more than one iteration."""
    wide = [loop for loop in loops if extent_of(schedule, loop) > 1]
    if not wide:
        return
    extent = extent_of(schedule, wide[-1])
    if extent <= lanes:
        schedule.vectorize(wide[-1])
        return
    outer, inner = schedule.split(wide[-1], [None, lanes])
    schedule.vectorize(inner)
    if extent % lanes:
        schedule.annotate(outer, PARTITION, 1)


def vectorise(schedule: Schedule, loops: Sequence[LoopRV], lanes: int) -> None:
    """Vectors along the last loop, and the others written out."""
    if not loops:
        return
    *others, last = loops
    extent = extent_of(schedule, last)
    if extent > lanes and extent % lanes == 0:
        outer, last = schedule.split(last, [None, lanes])
        others.append(outer)
    schedule.vectorize(last)
    for loop in others:
        schedule.unroll(loop)
