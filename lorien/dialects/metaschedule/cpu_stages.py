"""Stages of a kernel on a CPU whose vectors run along no sum: elementwise steps and copies; and rows with reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.cpu_access import accesses, axes_of
from lorien.dialects.metaschedule.cpu_loops import block_names, extent_of, inner_loops, is_plain, lanes_of, vectorise_last
from lorien.dialects.metaschedule.vectors import Vectors

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import LoopRV, SBlockRV

SMALL_BYTES = 1 << 21
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
        lanes = lanes_of(extent_of(schedule, fused), vectors)
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
    if len(outputs) != 1 or not any(schedule.get(block).init is not None for block in blocks):
        return set()
    output = outputs[0]
    depth = _common_rows(schedule, blocks)
    sizes = {name: math.prod(axis.extent for axis in axes_of(schedule.get(block))) for name, block in zip(names, blocks)}
    rows = math.prod(axis.extent for axis in axes_of(schedule.get(output))[:depth])
    if rows == 1:
        return set()
    parallel = cores > 1 and moved_bytes(schedule, blocks) > SMALL_BYTES
    partial = {}
    for name, block in zip(names, blocks, strict=True):
        if schedule.get(block).init is not None and is_plain(schedule, block):
            made = _partial(schedule, block, vectors)
            if made is not None:
                partial[schedule.get(made).name_hint] = made
    # In order: partial sums stand before what adds them up.
    ordered = schedule.get_child_blocks(schedule.get_sblock("root"))
    loops = schedule.get_loops(output)[:depth]
    row = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    if parallel:
        schedule.parallel(row)
    for block in reversed(ordered):
        stmt = schedule.get(block)
        if stmt.name_hint == schedule.get(output).name_hint:
            if stmt.init is None:
                vectorise_last(schedule, inner_loops(schedule, block, row), vectors.lanes)
            continue
        schedule.compute_at(block, row)
        own = inner_loops(schedule, block, row)
        computed = rows * math.prod(extent_of(schedule, loop) for loop in own)
        if computed > RECOMPUTED * sizes.get(stmt.name_hint, computed):
            return set()
        if stmt.init is None:
            vectorise_last(schedule, own, vectors.lanes)
        elif stmt.name_hint in partial:
            lane, *steps = own  # in the order of the block's axes: the lane was made first
            schedule.reorder(*steps, lane)
            schedule.vectorize(lane)
            schedule.decompose_reduction(block, steps[0])
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
    steps = [math.prod(axis.extent for axis in axes[at + 1 :]) for at in range(len(axes))]
    wide = [(axis, step) for axis, step in zip(axes, steps, strict=True) if axis.extent > 1]
    if not all(access.stride(axis.index) == step for access in writes for axis, step in wide):
        return False
    return all(
        all(access.stride(axis.index) == step for axis, step in wide) or not any(access.uses(axis) for axis, _ in wide)
        for access in reads
    )


def _common_rows(schedule: Schedule, blocks: Sequence[SBlockRV]) -> int:
    """How many outermost axes all blocks have in common; of a block without reductions, the last wide one is none."""
    kept: list[list[int]] = []
    for block in blocks:
        axes = axes_of(schedule.get(block))
        spatial = [axis.extent for axis in axes if not axis.reduces]
        if not any(axis.reduces for axis in axes):
            wide = [at for at, extent in enumerate(spatial) if extent > 1]
            spatial = spatial[: wide[-1]] if wide and len(blocks) > 1 and _has_inner(schedule, blocks, spatial) else spatial
        kept.append(spatial)
    depth = 0
    while all(len(extents) > depth and extents[depth] == kept[0][depth] for extents in kept):
        depth += 1
    return depth


def _has_inner(schedule: Schedule, blocks: Sequence[SBlockRV], spatial: Sequence[int]) -> bool:
    """Whether a stage has more values than rows: then its last axis is walked inside a row."""
    rows = min(
        math.prod(axis.extent for axis in axes_of(schedule.get(block)) if not axis.reduces)
        for block in blocks
        if schedule.get(block).init is not None
    )
    return math.prod(spatial) > rows


def _partial(schedule: Schedule, block: SBlockRV, vectors: Vectors) -> SBlockRV | None:
    """Cut a sum along memory into one for each lane of a vector; the block of these, or None where it is too short."""
    stmt = schedule.get(block)
    axes = axes_of(stmt)
    sums = [axis for axis in axes if axis.reduces and axis.extent > 1]
    if not sums:
        return None
    loops = schedule.get_loops(block)
    lanes = lanes_of(sums[-1].extent, vectors)
    if lanes < FEWEST_LANES or lanes == math.prod(axis.extent for axis in sums):
        return None
    loop = loops[sums[-1].index]
    _, lane = schedule.split(loop, [None, lanes])
    made = schedule.rfactor(lane, sum(not axis.reduces for axis in axes))
    return made
