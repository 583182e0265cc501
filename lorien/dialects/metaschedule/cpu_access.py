"""How a block walks through its buffers: the elements between two values of an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm


class NotAffine(ValueError):
    """An index that is more than sums, products, quotients and remainders of axes and numbers."""


@dataclass(frozen=True)
class Axis:
    """An iteration variable of a block: its place among them, its extent, and whether it is summed over."""

    index: int
    extent: int
    reduces: bool


@dataclass(frozen=True)
class Access:
    """A read or write of a buffer by a block, with one element each time."""

    buffer: Any
    indices: tuple[Any, ...]
    variables: tuple[Any, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours along each dimension of the buffer."""
        shape = [int(extent) for extent in self.buffer.shape]
        return tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))

    def position(self, values: Mapping[int, int]) -> int:
        """The element at values of axes, by their places; the others are 0. Raises ``NotAffine``."""
        bound = {hash(self.variables[index]): value for index, value in values.items()}
        return sum(evaluate(index, bound) * stride for index, stride in zip(self.indices, self.strides, strict=True))

    def stride(self, axis: int, step: int = 1) -> int:
        """Elements between an axis's values 0 and ``step``. Raises ``NotAffine``."""
        return self.position({axis: step}) - self.position({})

    def uses(self, axis: Axis) -> bool:
        """Whether the element depends on an axis. Raises ``NotAffine``."""
        at = self.position({})
        return any(self.position({axis.index: value}) != at for value in {1, axis.extent - 1} if value)

    def along(self, index: Any, axis: Axis) -> bool:
        """Whether one of the indices depends on an axis. Raises ``NotAffine``."""
        variable = hash(self.variables[axis.index])
        return evaluate(index, {}) != evaluate(index, {variable: axis.extent - 1})

    def contiguous(self, axis: Axis, count: int) -> bool:
        """Whether the first ``count`` values of an axis lie beside each other. Raises ``NotAffine``."""
        return all(self.stride(axis.index, step) == step for step in {1, count - 1} if 0 < step < axis.extent)


def evaluate(expression: Any, bound: Mapping[int, int]) -> int:
    """An index where the variables not bound, by their hashes, are 0. Raises ``NotAffine``."""
    from tvm import tirx

    if isinstance(expression, int):
        return expression
    if isinstance(expression, tirx.IntImm):
        return int(expression)
    if isinstance(expression, tirx.Var):
        return bound.get(hash(expression), 0)
    if isinstance(expression, tirx.Cast):
        return evaluate(expression.value, bound)
    if isinstance(expression, (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod)):
        left, right = evaluate(expression.a, bound), evaluate(expression.b, bound)
        if isinstance(expression, tirx.Add):
            return left + right
        if isinstance(expression, tirx.Sub):
            return left - right
        if isinstance(expression, tirx.Mul):
            return left * right
        if right == 0:
            raise NotAffine(str(expression))
        return left // right if isinstance(expression, tirx.FloorDiv) else left % right
    raise NotAffine(type(expression).__name__)


def axes_of(block: tvm.s_tir.SBlock) -> list[Axis]:
    """The iteration variables of a block. Raises ``NotAffine`` where an extent is not a number."""
    from tvm import tirx

    axes = []
    for index, variable in enumerate(block.iter_vars):
        if not isinstance(variable.dom.extent, tirx.IntImm) or int(variable.dom.min) != 0:
            raise NotAffine("open extent")
        axes.append(Axis(index, int(variable.dom.extent), variable.iter_type == tirx.IterVar.CommReduce))
    return axes


def accesses(block: tvm.s_tir.SBlock) -> tuple[list[Access], list[Access]]:
    """Reads, each region as its first element, and writes of a block."""
    variables = tuple(variable.var for variable in block.iter_vars)

    def of(regions: Any) -> list[Access]:
        return [
            Access(
                region.buffer if hasattr(region, "buffer") else region.source,
                tuple(r.min for r in region.region),
                variables,
            )
            for region in regions
        ]

    return of(block.reads), of(block.writes)
