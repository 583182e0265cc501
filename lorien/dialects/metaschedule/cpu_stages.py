"""Stages of a kernel on a CPU that are no sums of products: elementwise steps, copies, and rows with reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.cpu_access import accesses, axes_of
from lorien.dialects.metaschedule.cpu_loops import (
    block_names,
    extent_of,
    inner_loops,
    is_plain,
    lanes_of,
    vectorise_last,
)
from lorien.dialects.metaschedule.vectors import Vectors

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import SBlockRV

SMALL_BYTES = 1 << 18
"""What a core moves in about the time that it takes to wake another one."""
RECOMPUTED = 1.5
"""How many times a stage may be computed, at most, when each row computes its own part."""
FEWEST_LANES = 4


def schedule_stage(schedule: Schedule, name: str, vectors: Vectors, cores: int) -> set[str]:
    """Schedule a block without reductions: parallel outside, vectors inside."""
    block = schedule.get_sblock(name)
    if not is_plain(schedule, block) or any(axis.reduces for axis in axes_of(schedule.get(block))):
        return set()
    loops = schedule.get_loops(block)
    if not loops:
        return set()
    parallel = cores > 1 and moved_bytes(schedule, [block]) > SMALL_BYTES
    if _is_flat(schedule.get(block)):
        fused = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
        lanes = lanes_of(extent_of(schedule, fused), vectors, loaded_once=True)
        outer, inner = schedule.split(fused, [None, lanes])
        schedule.vectorize(inner)
        if parallel:
            schedule.parallel(outer)
        return {name}
    wide = [at for at, loop in enumerate(loops) if extent_of(schedule, loop) > 1]
    last = wide[-1] if wide else len(loops) - 1
    outside = [*loops[:last], *loops[last + 1 :]]
    if outside:
        schedule.reorder(*outside, loops[last])
        fused = schedule.fuse(*outside) if len(outside) > 1 else outside[0]
        if parallel:
            schedule.parallel(fused)
    vectorise_last(schedule, [loops[last]], vectors.lanes)
    return {name}


def schedule_rows(schedule: Schedule, names: Sequence[str], vectors: Vectors, cores: int) -> set[str]:
    """Schedule the stages of a softmax, a normalisation or a mean: rows in parallel, all stages of a row together."""
    blocks = [schedule.get_sblock(name) for name in names]
    outputs = [block for block in blocks if not schedule.get_consumers(block)]
    if len(outputs) != 1 or not any(_reduces(schedule, block) for block in blocks):
        return set()
    (output,) = outputs
    depth = _common_rows(schedule, blocks)
    if depth == 0:
        return set()
    points = {name: _points(schedule, block) for name, block in zip(names, blocks, strict=True)}
    parallel = cores > 1 and moved_bytes(schedule, blocks) > SMALL_BYTES
    lanes = {_partial(schedule, block, vectors) for block in blocks if _reduces(schedule, block)}
    loops = schedule.get_loops(output)[:depth]
    rows = math.prod(extent_of(schedule, loop) for loop in loops)
    row = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    if parallel and rows > 1:
        schedule.parallel(row)
    for name in reversed(block_names(schedule)):  # what a stage reads is placed after the stage
        block = schedule.get_sblock(name)
        if not schedule.get(block).same_as(schedule.get(output)):
            schedule.compute_at(block, row)
        own = inner_loops(schedule, block, row)
        computed = rows * math.prod(extent_of(schedule, loop) for loop in own)
        if computed > RECOMPUTED * points.get(name, computed):
            return set()
        if name in lanes:
            lane, *steps = own  # in the order of the block's axes: the lane is the newest
            schedule.reorder(*steps, lane)
            schedule.vectorize(lane)
            schedule.decompose_reduction(block, steps[0])
        elif not _reduces(schedule, block):
            vectorise_last(schedule, own, vectors.lanes)
    return set(block_names(schedule))


def moved_bytes(schedule: Schedule, blocks: Sequence[SBlockRV]) -> int:
    """Bytes that blocks read and write, each buffer once a block."""
    total = 0
    for block in blocks:
        stmt = schedule.get(block)
        points = math.prod(axis.extent for axis in axes_of(stmt))
        for access in (a for side in accesses(stmt) for a in side):
            size = math.prod(int(extent) for extent in access.buffer.shape)
            total += min(size, points) * access.buffer.dtype.bits // 8
    return total


def _is_flat(stmt: Any) -> bool:
    """Whether all loops of a stage can be walked as one: each access goes on by one element, or stays."""
    axes = axes_of(stmt)
    reads, writes = accesses(stmt)
    if not all(access.is_affine for access in (*reads, *writes)):
        return False
    steps = [math.prod(axis.extent for axis in axes[at + 1 :]) for at in range(len(axes))]
    wide = [(axis, step) for axis, step in zip(axes, steps, strict=True) if axis.extent > 1]
    if not all(access.stride(axis.index) == step for access in writes for axis, step in wide):
        return False
    return all(
        all(access.stride(axis.index) == step for axis, step in wide) or not any(access.uses(axis) for axis, _ in wide)
        for access in reads
    )


def _common_rows(schedule: Schedule, blocks: Sequence[SBlockRV]) -> int:
    """How many outermost axes all blocks have in common. What is not reduced keeps its last one for vectors."""
    reduced = min(_points(schedule, block, sums=False) for block in blocks if _reduces(schedule, block))
    extents: list[list[int]] = []
    for block in blocks:
        own = [axis.extent for axis in axes_of(schedule.get(block)) if not axis.reduces]
        if math.prod(own) > reduced:
            last = max(at for at, extent in enumerate(own) if extent > 1)
            own = own[:last]
        extents.append(own)
    depth = 0
    while all(len(own) > depth and own[depth] == extents[0][depth] for own in extents):
        depth += 1
    return depth


def _partial(schedule: Schedule, block: SBlockRV, vectors: Vectors) -> str:
    """Cut a sum along memory into one for each lane of a vector; the name of their block, empty where it is short."""
    axes = axes_of(schedule.get(block))
    sums = [axis for axis in axes if axis.reduces and axis.extent > 1]
    lanes = lanes_of(sums[-1].extent, vectors) if sums and is_plain(schedule, block) else 0
    if lanes < FEWEST_LANES or lanes == math.prod(axis.extent for axis in sums):
        return ""
    _, lane = schedule.split(schedule.get_loops(block)[sums[-1].index], [None, lanes])
    partial = schedule.rfactor(lane, sum(not axis.reduces for axis in axes))
    return str(schedule.get(partial).name_hint)


def _reduces(schedule: Schedule, block: SBlockRV) -> bool:
    return schedule.get(block).init is not None


def _points(schedule: Schedule, block: SBlockRV, *, sums: bool = True) -> int:
    """How often a block runs; without the sums, how many values it makes."""
    return math.prod(axis.extent for axis in axes_of(schedule.get(block)) if sums or not axis.reduces)
