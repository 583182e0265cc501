"""The search space of a workload: TVM's rules for the target, and vectors along the last axis where that fits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.vectors import vectors_of
from lorien.target import Target

if TYPE_CHECKING:
    import tvm
    from tvm.s_tir import meta_schedule as ms

_STRUCTURE = "SSRSRS"
_MAX_INNERMOST = 64
"""TVM's own numbers for CPUs."""
_FLOAT32_BITS = 32


def space_generator(module: tvm.IRModule, target: Target) -> ms.SpaceGenerator | str:
    """What samples the schedules of a workload's module.

    TVM's rules split every axis at random: of a block of 16 channels one sample in 35 keeps the whole as its innermost
    loop, and the others are scalar or half as fast. Where the axis is a vector, or several, it stays one.

    Returns
    -------
    SpaceGenerator or str
        As ``TuneContext`` takes it; the string is TVM's own.
    """
    from tvm.s_tir import meta_schedule as ms

    if target.kind != "llvm" or not _fits(module, vectors_of(target).lanes):
        return "post-order-apply"
    wide = ms.schedule_rule.MultiLevelTilingWideVector(
        _STRUCTURE,
        vectors_of(target).lanes * _FLOAT32_BITS,
        _MAX_INNERMOST,
        None,
        ms.schedule_rule.ReuseType("may", [1, 2], "global"),
    )
    rules = ms.ScheduleRule.create("llvm")
    return ms.space_generator.PostOrderApply(
        sch_rules=[wide if isinstance(rule, ms.schedule_rule.MultiLevelTiling) else rule for rule in rules],
        postprocs=ms.Postproc.create("llvm"),
        mutator_probs=ms.Mutator.create("llvm"),
    )


def _fits(module: tvm.IRModule, lanes: int) -> bool:
    """Whether the last axis of what a module computes most is whole vectors of float32, or a part of one."""
    from tvm.s_tir import Schedule

    schedule = Schedule(module, error_render_level="none")
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    most = max(blocks, key=_points, default=None)
    if most is None or not most.writes or str(most.writes[0].source.dtype) != "float32":
        return False
    extents = [_extent(axis) for axis in most.iter_vars if axis.iter_type == axis.DataPar]
    if not extents or len(extents) == len(most.iter_vars):
        return False  # it reduces nothing, and is not tiled
    last = extents[-1]
    return last % lanes == 0 or (last < lanes and lanes % last == 0)


def _points(block: Any) -> int:
    return math.prod(_extent(axis) for axis in block.iter_vars)


def _extent(axis: Any) -> int:
    return int(getattr(axis.dom.extent, "value", 1))
