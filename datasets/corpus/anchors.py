"""What a kernel computes most: the operator and the extents by which workloads of the corpus are told apart."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.workload import module_of
from lorien.records import Workload

AXES = 9
"""Of an anchor's axes, told apart in a vector: a blocked convolution has five spatial ones and four of its sum."""
_NUMBER = re.compile(r"(?:_\d+|\d+)$")


@dataclass(frozen=True)
class Anchor:
    """The block of a kernel that has most points.

    Parameters
    ----------
    operator : str
        Its name in TIR, without a number: ``conv2d_NCHWc``, ``matmul``, ``T_softmax_exp``.
    spatial, reduced : tuple of int
        Extents of its axes.
    reads : tuple of tuple of int
        Shapes of what it reads: they tell a stride and a dilation, which extents do not.
    blocks : int
        Of the whole kernel.
    """

    operator: str
    spatial: tuple[int, ...]
    reduced: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    blocks: int

    @property
    def problem(self) -> tuple[Any, ...]:
        """The same for two kernels of one operator with different steps after it."""
        return (self.operator, self.spatial, self.reduced, self.reads)

    @property
    def vector(self) -> npt.NDArray[np.float64]:
        """Its sizes on a scale of log2, to measure distances by (AXES + 4,)."""
        extents = [*self.spatial, *self.reduced][:AXES]
        sizes = [math.prod(self.spatial), math.prod(self.reduced), sum(map(math.prod, self.reads)), self.blocks]
        found: npt.NDArray[np.float64] = np.log2([*sizes, *extents, *[1] * (AXES - len(extents))])
        return found


def anchor_of(workload: Workload) -> Anchor:
    """Read it off the workload's module. Raises ``BadInput`` as ``module_of`` does."""
    from tvm.s_tir import Schedule

    schedule = Schedule(module_of(workload), error_render_level="none")
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    # Of equals the last: what is before is padding, or a copy.
    most = max(reversed(blocks), key=lambda block: math.prod(map(_extent, block.iter_vars)))
    return Anchor(
        _NUMBER.sub("", most.name_hint),
        tuple(_extent(axis) for axis in most.iter_vars if axis.iter_type == axis.DataPar),
        tuple(_extent(axis) for axis in most.iter_vars if axis.iter_type != axis.DataPar),
        tuple(sorted(tuple(map(int, region.source.shape)) for region in most.reads)),
        len(blocks),
    )


def _extent(axis: Any) -> int:
    return int(getattr(axis.dom.extent, "value", 1))
