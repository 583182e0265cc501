"""The schedule of a kernel that nobody tuned, for CPUs: parallel outside, vectors inside, sums in registers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from lorien.dialects.metaschedule.cpu_contraction import schedule_contraction
from lorien.dialects.metaschedule.cpu_loops import block_names
from lorien.dialects.metaschedule.cpu_stages import schedule_rows, schedule_stage
from lorien.dialects.metaschedule.cpu_winograd import is_computed_once, schedule_transformation
from lorien.dialects.metaschedule.vectors import vectors_of
from lorien.machine import available_cores
from lorien.target import Target

if TYPE_CHECKING:
    import tvm
    from tvm.s_tir import Schedule

logger = logging.getLogger(__name__)

FIRST_DEFAULTS = 8
"""Schedules of the default one's kind that are tried before anything else; others are left to the model."""


def cpu_schedules(module: tvm.IRModule, target: Target) -> Iterator[Schedule]:
    """The default schedule of a CPU, and others that cut the sum of products in another way, a few dozen at most.

    The most promising come first. On other kinds of target there are none.
    """
    from tvm_ffi import structural_hash

    found: set[int] = set()
    while target.kind == "llvm":
        schedule = cpu_schedule(module, target, choice=len(found))
        if (program := structural_hash(schedule.mod)) in found:
            return
        found.add(program)
        yield schedule


def cpu_schedule(module: tvm.IRModule, target: Target, choice: int = 0) -> Schedule:
    """A fixed schedule, by rules on the blocks of a kernel. It computes what the module does.

    Parameters
    ----------
    module : IRModule
        One function named ``main``, as MetaSchedule extracts it.
    target : Target
        A CPU: its vectors and its cores say how loops are cut. On any other kind the loops stay as written.
    choice : int
        Which of the ways to cut a sum of products, the most promising first; past the last it is the last.

    Returns
    -------
    Schedule
        Its trace replays on the module. A block that no rule can schedule keeps its loops.
    """
    from tvm.s_tir import Schedule

    schedule = Schedule(module, seed=1, debug_mask="none", error_render_level="none")
    if target.kind != "llvm":
        return schedule
    vectors, cores = vectors_of(target), target.num_cores or available_cores()
    try:
        names = block_names(schedule)
    except Exception:  # no blocks: another function, which builds as it is
        return schedule

    def attempt(rule: Callable[[Schedule], set[str]]) -> set[str]:
        nonlocal schedule
        changed = schedule.copy()
        try:
            done = rule(changed)
            if done and _is_sound(changed):
                schedule = changed
                return done
        except Exception as error:  # TVM and blocks raise anything where a loop cannot be changed
            logger.debug("a rule of the default schedule does not apply: %s", error)
        return set()

    for name in names:
        if not is_computed_once(name, names):
            _inline(schedule, name)
    done = attempt(partial(schedule_transformation, vectors=vectors, cores=cores))
    reductions = _reductions(schedule)
    rows = partial(schedule_rows, vectors=vectors, cores=cores)
    if len(reductions) > 1:  # of a softmax: all of a row at once, while it is near
        done |= attempt(partial(rows, names=block_names(schedule)))
    for name in reductions if not done else ():
        rule = partial(schedule_contraction, name=name, vectors=vectors, cores=cores, choice=choice)
        done |= attempt(rule) or attempt(partial(rule, fused=False))
    if not done and len(reductions) == 1:
        done |= attempt(partial(rows, names=block_names(schedule)))
    for name in block_names(schedule):
        if name not in done:
            attempt(partial(schedule_stage, name=name, vectors=vectors, cores=cores))
    return schedule


def _is_sound(schedule: Schedule) -> bool:
    """Whether all loops that are written out or run as vectors have known extents: TVM compiles no others."""
    from tvm import tirx

    fixed = (tirx.ForKind.UNROLLED, tirx.ForKind.VECTORIZED)
    loops = {loop for name in block_names(schedule) for loop in schedule.get_loops(schedule.get_sblock(name))}
    return all(
        schedule.get(loop).kind not in fixed or isinstance(schedule.get(loop).extent, tirx.IntImm) for loop in loops
    )


def _reductions(schedule: Schedule) -> list[str]:
    """The blocks of a kernel that sum or otherwise reduce."""
    names = block_names(schedule)
    return [name for name in names if schedule.get(schedule.get_sblock(name)).init is not None]


def _inline(schedule: Schedule, name: str) -> None:
    """Compute an elementwise stage where its values are used, unless a sum would compute them again and again."""
    block = schedule.get_sblock(name)
    consumers = schedule.get_consumers(block)
    if consumers and all(schedule.get(stage).init is None for stage in (block, *consumers)):
        with suppress(Exception):  # TVM refuses before it changes anything
            schedule.compute_inline(block)
