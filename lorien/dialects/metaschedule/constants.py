"""Operators on constants, computed by NumPy while a model is rewritten.

TVM's ``FoldConstant`` compiles a kernel for each; what it folds is not known before, when weights are packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.rewriter import name_of, shape_of

Array = npt.NDArray[Any]

_GROWTH_BYTES = 1 << 20
"""What a result may be larger than its operands. A view of a smaller array takes nothing."""


def evaluate(call: Any, operands: Sequence[Array | None]) -> Array | None:
    """The value of a call whose operands (None: no constant tensor) are known; None where it is not to be had.

    Parameters
    ----------
    call : relax.Call
    operands : sequence of array or None
        One for each argument of the call.
    """
    rule = _RULES.get(name_of(call))
    shape = shape_of(call)
    if rule is None or shape is None or str(call.ty.dtype) not in _DTYPES:
        return None
    known = [operand for operand in operands if operand is not None]
    if not known and name_of(call) not in _OF_NOTHING:
        return None
    bytes_made = math.prod(shape) * np.dtype(str(call.ty.dtype)).itemsize
    if name_of(call) not in _VIEWS and bytes_made > 2 * sum(operand.nbytes for operand in known) + _GROWTH_BYTES:
        return None
    with np.errstate(all="ignore"):
        value = rule(call, operands, shape)
    if value is None or tuple(value.shape) != shape:
        return None
    return value.astype(str(call.ty.dtype), copy=False)


_Rule = Callable[[Any, Sequence[Array | None], tuple[int, ...]], "Array | None"]


def _elementwise(function: Callable[..., Array]) -> _Rule:
    def rule(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
        if any(operand is None or operand.dtype.kind != "f" for operand in operands):
            return None  # integers are divided otherwise
        return function(*operands)

    return rule


def _isnan(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    return None if operands[0] is None or operands[0].dtype.kind != "f" else np.isnan(operands[0])


def _where(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    condition, one, other = operands
    return None if condition is None or one is None or other is None else np.where(condition, one, other)


def _reshape(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    return None if operands[0] is None else operands[0].reshape(shape)


def _broadcast(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    return None if operands[0] is None else np.broadcast_to(operands[0], shape)


def _full(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    return None if operands[1] is None else np.broadcast_to(operands[1], shape)


def _permute(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    if operands[0] is None:
        return None
    axes = call.attrs.axes
    return np.transpose(operands[0], None if axes is None else [int(axis) for axis in axes])


def _cast(call: Any, operands: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    return operands[0]


_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
"""Those that NumPy has."""
_VIEWS = ("broadcast_to", "full", "reshape", "expand_dims", "squeeze", "permute_dims")
_OF_NOTHING = ("full",)
_RULES: dict[str, _Rule] = {
    "add": _elementwise(np.add),
    "subtract": _elementwise(np.subtract),
    "multiply": _elementwise(np.multiply),
    "divide": _elementwise(np.divide),
    "sqrt": _elementwise(np.sqrt),
    "rsqrt": _elementwise(lambda x: 1 / np.sqrt(x)),
    "negative": _elementwise(np.negative),
    "reshape": _reshape,
    "expand_dims": _reshape,
    "squeeze": _reshape,
    "broadcast_to": _broadcast,
    "full": _full,
    "permute_dims": _permute,
    "astype": _cast,
    "isnan": _isnan,
    "where": _where,
}
