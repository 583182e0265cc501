"""A Relax module without what its file writes down in more operators than it takes.

- Steps that scale and shift the channels of a convolution (a normalisation, in whichever operators a front end writes
  it, a bias) become a part of its weights and one addition. Where no convolution stands before them they become one
  multiplication and one addition.
- A sum that is a stack and a reduction becomes additions.
- Dropout and operators that change nothing go.
- Operators on constants become constants.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.constants import evaluate
from lorien.dialects.metaschedule.limits import filled_weights
from lorien.dialects.metaschedule.rewriter import (
    DROPPED,
    Rewriting,
    bindings,
    is_float32,
    is_nchw_convolution,
    name_of,
    rewrite,
    shape_of,
    uses_in,
)

if TYPE_CHECKING:
    import tvm

Array = npt.NDArray[Any]

_CHANNEL = 1
_AFFINE = ("add", "subtract", "multiply", "divide")


def simplify(module: tvm.IRModule) -> tvm.IRModule:
    """The same function in fewer operators; see the text of this module.

    Values differ by rounding: a scale is multiplied into weights, and a division becomes a multiplication.
    """
    from tvm import relax
    from tvm.ir.transform import Sequential

    tidy = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    # The items of a normalisation that nothing reads go first: they would keep it.
    module = Sequential([relax.transform.ConvertToDataflow(), *tidy])(module)
    return Sequential(tidy)(rewrite(module, _Simplification(module["main"], filled_weights(module))))


@dataclass(frozen=True)
class _Affine:
    """Channels scaled and shifted: ``source * scale + shift``, not written down before it is read."""

    source: Any
    """A rebuilt expression, or the call of a convolution in old variables."""
    rank: int
    scale: Array | None = None
    """(channels,) or (1,), float64."""
    shift: Array | None = None

    def then(self, operator: str, constant: Array, *, flipped: bool) -> _Affine:
        """With one more step, of this float64 constant as the right operand, or the left one."""
        scale = np.ones(1) if self.scale is None else self.scale
        shift = np.zeros(1) if self.shift is None else self.shift
        if operator == "add":
            return replace(self, shift=shift + constant)
        if operator == "subtract":
            return self._with(-scale, constant - shift) if flipped else replace(self, shift=shift - constant)
        factor = constant if operator == "multiply" else 1 / constant
        return self._with(scale * factor, None if self.shift is None else shift * factor)

    def _with(self, scale: Array, shift: Array | None) -> _Affine:
        return replace(self, scale=scale, shift=shift)


class _Simplification(Rewriting):
    def __init__(self, function: Any, filled: set[Any]) -> None:
        self._filled = filled
        self._uses = uses_in(function)
        self._values = dict(bindings(function))
        self._first = _read_by_first_item(self._values, self._uses)
        self._items: dict[Any, _Affine] = {}
        """What the first item of a tuple is."""
        self._known: dict[Any, Array] = {}
        self._affine: dict[Any, _Affine] = {}
        self._same: dict[Any, Any] = {}
        """What a dropped variable is another name of, in old variables."""

    def bind(self, var: Any, value: Any) -> Any:
        from tvm import relax

        made = self._rebuilt(var, value)
        if isinstance(var, relax.DataflowVar):
            return made
        # What leaves the block is written down.
        return self.use(var) if made is DROPPED else made

    def use(self, var: Any) -> Any:
        from tvm import relax

        if var in self._known:
            known = np.ascontiguousarray(self._known[var])
            return relax.const(known, str(known.dtype))  # without a dtype, TVM halves the width of 64 bits
        if var in self._same:
            return self.visit(self._same[var])
        affine = self._affine.pop(var, None)
        if affine is None:
            return None
        made = self._written(affine)
        self._same[var] = made  # rebuilt variables stand for themselves
        return made

    def _rebuilt(self, var: Any, value: Any) -> Any:
        from tvm import relax

        if isinstance(value, relax.TupleGetItem):
            return self._item(var, value)
        name = name_of(value)
        if not name:
            return None
        if var in self._first and name == "nn.dropout":
            return DROPPED
        if var in self._first and name == "nn.batch_norm":
            return self._normalised(var, value)
        if _changes_nothing(name, value):
            self._same[var] = value.args[0]
            return DROPPED
        operands = [self._constant(argument) for argument in value.args]
        constant = evaluate(value, operands)
        if constant is not None:
            self._known[var] = constant
            return DROPPED
        if is_nchw_convolution(value) and self._has_weights(value.args[1]):
            self._affine[var] = _Affine(value, 4)
            return DROPPED
        if name in _AFFINE:
            return self._step(var, name, value, operands)
        if name == "sum":
            return self._addition(value)
        return None

    def _item(self, var: Any, value: Any) -> Any:
        whole = value.tuple_value
        if whole in self._items:
            self._affine[var] = self._items.pop(whole)
            return DROPPED
        if whole in self._first and name_of(self._values[whole]) == "nn.dropout":
            self._same[var] = self._values[whole].args[0]
            return DROPPED
        return None

    def _normalised(self, var: Any, call: Any) -> Any:
        """A normalisation with constant statistics, of which the result alone is read, as scales and shifts."""
        constants = [self._constant(argument) for argument in call.args[1:]]
        shape = shape_of(call.args[0])
        attributes = call.attrs
        if any(constant is None for constant in constants) or shape is None or not is_float32(call.args[0]):
            return None
        if int(attributes.axis) != _CHANNEL or bool(attributes.training) or self._uses[var] != 1:
            return None
        gamma, beta, mean, variance = (np.asarray(constant, np.float64) for constant in constants)
        with np.errstate(all="ignore"):
            scale = (gamma if attributes.scale else 1.0) / np.sqrt(variance + float(attributes.epsilon))
            shift = (beta if attributes.center else 0.0) - mean * scale
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return None
        before = self._begun(call.args[0], len(shape))
        self._items[var] = before.then("multiply", scale, flipped=False).then("add", shift, flipped=False)
        return DROPPED

    def _step(self, var: Any, name: str, value: Any, operands: list[Array | None]) -> Any:
        """An operator that scales or shifts channels by a constant, remembered."""
        shape = shape_of(value)
        side = next((index for index, operand in enumerate(operands) if operand is not None), None)
        if side is None or shape is None or len(shape) != 4 or not is_float32(value):
            return None
        operand, other = operands[side], value.args[1 - side]
        if operand is None or shape_of(other) != shape or (name == "divide" and side == 0):
            return None
        constant = _by_channel(operand, shape)
        if constant is None or (name == "divide" and not constant.all()):
            return None
        self._affine[var] = self._begun(other, 4).then(name, constant, flipped=side == 0)
        return DROPPED

    def _begun(self, expr: Any, rank: int) -> _Affine:
        """What scales and shifts an expression so far, to go on from; it is read here alone."""
        if self._uses[expr] == 1 and expr in self._affine:
            return self._affine.pop(expr)
        return _Affine(self.visit(expr), rank)

    def _has_weights(self, weight: Any) -> bool:
        return weight in self._filled or self._constant(weight) is not None

    def _written(self, affine: _Affine) -> Any:
        """The operators that scaled and shifted channels amount to."""
        from tvm import relax

        made, scale = affine.source, affine.scale
        if name_of(made) == "nn.conv2d":
            made, scale = self._convolution(made, scale), None
        for operator, factor in ((relax.op.multiply, scale), (relax.op.add, affine.shift)):
            if factor is not None:
                constant = relax.const(factor.astype(np.float32).reshape(1, -1, *[1] * (affine.rank - 2)))
                made = self.builder.emit(operator(made, constant))
        return made

    def _convolution(self, call: Any, scale: Array | None) -> Any:
        from tvm import relax

        data, weight = call.args
        array = self._constant(weight)
        if array is not None and scale is not None:
            # A filled weight that is not multiplied stays a view of one number.
            scaled = (array * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
            weight = relax.const(scaled)
        call = relax.Call(call.op, [self.visit(data), self.visit(weight)], call.attrs, call.ty_args)
        return self.builder.emit(call)

    def _addition(self, value: Any) -> Any:
        """A sum over what was stacked for it, as additions."""
        from tvm import relax

        stack: Any = self._values.get(value.args[0])
        if name_of(stack) != "stack" or self._uses[value.args[0]] != 1:
            return None
        axes, parts = value.attrs.axis, stack.args[0]
        if axes is None or [int(axis) for axis in axes] != [int(stack.attrs.axis or 0)] or bool(value.attrs.keepdims):
            return None
        if not isinstance(parts, relax.Tuple) or len(parts.fields) < 2:
            return None
        made, *others = (self.visit(part) for part in parts.fields)
        for other in others:
            made = self.builder.emit(relax.op.add(made, other))
        return made

    def _constant(self, expr: Any) -> Array | None:
        from tvm.ir import GenericConst

        if isinstance(expr, GenericConst) and str(getattr(expr.ty, "dtype", "")) != "bfloat16":
            return np.asarray(expr.value.numpy())
        return self._known.get(self._same.get(expr, expr))


def _read_by_first_item(values: dict[Any, Any], uses: Counter[Any]) -> set[Any]:
    """The variables of tuples of which the first item alone is read."""
    from tvm import relax

    firsts = Counter(
        value.tuple_value for value in values.values() if isinstance(value, relax.TupleGetItem) and value.index == 0
    )
    return {var for var, count in firsts.items() if uses[var] == count}


def _by_channel(constant: Array, shape: tuple[int, ...]) -> Array | None:
    """A constant operand as (channels,) or (1,) numbers of float64; None where it differs within a channel."""
    dims = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(dims) != len(shape) or any(extent != 1 for axis, extent in enumerate(dims) if axis != _CHANNEL):
        return None
    return constant.astype(np.float64).reshape(-1)


def _changes_nothing(name: str, call: Any) -> bool:
    if name in ("broadcast_to", "reshape", "expand_dims", "squeeze"):
        return shape_of(call) is not None and shape_of(call) == shape_of(call.args[0])
    if name == "astype":
        return bool(call.ty.dtype == call.args[0].ty.dtype)
    if name == "permute_dims":
        axes, shape = call.attrs.axes, shape_of(call.args[0])
        return axes is not None and shape is not None and [int(axis) for axis in axes] == list(range(len(shape)))
    return False
