"""Channels in blocks: a pass that lowers convolutions and what stands between them for a CPU's vectors.

Tensors that must have their channels in the same order (what an addition adds, what a concatenation joins) are a set.
A set that a convolution writes to is blocked, by the longest block that divides the channels of all its tensors. Where
no convolution reads the set, and nothing counts its channels, a few channels are added to fill the last block: heads of
255 or 1,000 channels. A convolution reads what it finds, blocked or NCHW. Any other reader gets the tensor as it was,
by a ``layout_transform``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from lorien.dialects.metaschedule import computations, winograd
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
    shape_of_type,
)

if TYPE_CHECKING:
    import tvm

MIN_BLOCK = 4
"""Channels. Shorter blocks are not worth the vectors."""
MOST_ADDED = 1 / 8
"""Of the channels of a tensor, those that may be added to fill a block."""
TRANSFORM = "layout_transform"
"""What the functions are named by that bring a tensor from one layout to another."""

_CHANNEL = 1
_UNARY = frozenset(
    {
        *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "clip", "cos", "cosh", "erf", "exp"),
        *("floor", "log", "negative", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan"),
        *("tanh", "nn.relu", "nn.relu6", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.selu"),
        "nn.softplus",
    }
)
_BINARY = frozenset(("add", "subtract", "multiply", "divide", "power", "maximum", "minimum"))
_POOLS = frozenset(("nn.max_pool2d", "nn.avg_pool2d", "nn.adaptive_avg_pool2d"))
_REDUCTIONS = frozenset(("mean", "sum", "max", "min"))


def block_channels(module: tvm.IRModule, lanes: int) -> tvm.IRModule:
    """The module with the channels of its convolutions in blocks, and the weights of its products packed.

    Parameters
    ----------
    module : IRModule
        Simplified: the weights of convolutions and products are constants, or filled weights.
    lanes : int
        float32 numbers of a vector: the longest block.
    """
    from tvm import relax

    function = module["main"]
    filled = filled_weights(module)
    blocked = rewrite(module, _Blocking(function, filled, lanes))
    return relax.transform.DeadCodeElimination(["main"])(blocked)


def transformations(module: tvm.IRModule) -> int:
    """How many layout transformations a rewritten module is left with, before its operators are fused."""
    return sum(
        name_of(value) == "call_tir" and value.args[0].name_hint.startswith(TRANSFORM)
        for _, value in bindings(module["main"])
    )


def longest_block(channels: int, longest: int) -> int | None:
    """The longest block that divides so many channels: ``longest``, its half, its quarter. None where none does."""
    block = longest
    while block >= MIN_BLOCK:
        if channels % block == 0:
            return block
        block //= 2
    return None


class _Pattern(IntEnum):
    """How TVM may fuse a kernel, by its numbers."""

    OUT_ELEMENTWISE_FUSABLE = 4
    """With elementwise steps that follow, and nothing else."""
    OPAQUE = 8
    """With nothing."""


class _Sets:
    """Tensors that have their channels in the same order, in sets (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}
        self._channels: dict[Any, int] = {}
        self._written: set[Any] = set()
        self._fixed: set[Any] = set()

    def root(self, var: Any) -> Any:
        while (parent := self._parent.setdefault(var, var)) is not var:
            self._parent[var] = self._parent[parent]
            var = parent
        return var

    def join(self, var: Any, other: Any) -> None:
        one, two = self.root(var), self.root(other)
        if one is not two:
            self._parent[two] = one
            self.divide(one, self._channels.get(two, 0))
            for marked in (self._written, self._fixed):
                if two in marked:
                    marked.add(one)

    def divide(self, var: Any, channels: int) -> None:
        """Blocks must divide this number of channels."""
        root = self.root(var)
        known = self._channels.get(root, 0)
        if known and channels and known != channels:
            self._fixed.add(root)
        self._channels[root] = math.gcd(known, channels)

    def fix(self, var: Any) -> None:
        """No channels may be added to the tensor."""
        self._fixed.add(self.root(var))

    def write(self, var: Any) -> None:
        """A convolution writes the tensor."""
        self._written.add(self.root(var))

    def block(self, var: Any, lanes: int) -> int | None:
        """Channels of a block of the tensor's set; None where it stays as it is."""
        if var not in self._parent:
            return None
        root = self.root(var)
        if root not in self._written:
            return None
        channels = self._channels[root]
        if root not in self._fixed and _in_whole_blocks(channels, lanes) <= channels * (1 + MOST_ADDED):
            return lanes
        return longest_block(channels, lanes)


@dataclass(frozen=True)
class _Kept:
    """An operator that takes blocks as well: the operands that have its channels, and how it is made of blocks."""

    operands: tuple[Any, ...]
    make: Callable[[_Blocking, Any, int], Any]
    """Of the pass, the old call and the block."""
    parts: tuple[int, ...] = ()
    """Channels that blocks must divide beside those of the operands and the result."""
    counts: bool = False
    """Whether it depends on the number of channels."""


class _Blocking(Rewriting):
    def __init__(self, function: Any, filled: set[Any], lanes: int) -> None:
        from tvm import relax

        self._filled = filled
        self._lanes = lanes
        self._sets = _Sets()
        self._values = dict(bindings(function))
        self._blocked: dict[Any, Any] = {}
        """The rebuilt blocked tensor of an old variable."""
        self._plain: dict[Any, Any] = {}
        """The same as it was before, where something reads that."""
        self._transformed: dict[Any, Any] = {}
        self._made: set[Any] = set()
        """Variables that a convolution makes, or an operator that takes blocks."""
        for var, value in self._values.items():
            if isinstance(var, relax.DataflowVar):
                self._analyse(var, value)

    def _analyse(self, var: Any, value: Any) -> None:
        shape = shape_of(var)
        if shape is None or len(shape) != 4 or not is_float32(var):
            return
        if self._is_convolution(value):
            self._sets.divide(var, shape[_CHANNEL])
            self._sets.write(var)
            data = value.args[0]
            self._sets.fix(data)
            if int(value.attrs.groups) > 1:
                self._sets.fix(var)
            self._made.add(var)
            if _is_depthwise(value):
                self._sets.divide(data, shape[_CHANNEL])
                self._sets.join(var, data)
            return
        kept = _kept(value, self._values)
        if kept is None:
            return
        self._made.add(var)
        for extent in (shape[_CHANNEL], *kept.parts):
            self._sets.divide(var, extent)
        if kept.counts:
            self._sets.fix(var)
        for operand in kept.operands:
            extents = shape_of(operand)
            if operand not in self._made and not _is_constant(operand) and math.prod(extents or ()) != 1:
                self._sets.fix(var)
            if extents is not None and len(extents) == 4 and extents[_CHANNEL] > 1 and not _is_constant(operand):
                self._sets.divide(operand, extents[_CHANNEL])
                self._sets.join(var, operand)

    def bind(self, var: Any, value: Any) -> Any:
        name = name_of(value)
        block = self._sets.block(var, self._lanes)
        if self._is_convolution(value):
            if block is None and not self._is_blocked(value.args[0]):
                return None
            made = self._convolution(value, block)
            if block is None:
                return made
        elif block is not None:
            kept = _kept(value, self._values)
            if kept is None:
                return None  # a tensor that something else makes, in a set with blocked ones
            made = kept.make(self, value, block)
        elif name in _REDUCTIONS and self._is_blocked(value.args[0]) and _is_spatial(value):
            return self._reduced(value)
        elif name == "matmul":
            return self._product(value)
        else:
            return None
        self._blocked[var] = self.builder.emit(made)
        return DROPPED

    def use(self, var: Any) -> Any:
        if var not in self._blocked:
            return None
        if var not in self._plain:
            shape = shape_of(var)
            assert shape is not None  # noqa: S101 (blocked tensors have one)
            made = self._blocked[var]
            # One pixel of all channels has them in the same order either way.
            if shape[2] == shape[3] == 1:
                plain = self._first_channels(made, shape)
            else:
                plain = self.call(computations.from_blocks, made, shape[_CHANNEL], name=TRANSFORM)
            self._plain[var] = self.builder.emit(plain)
        return self._plain[var]

    def blocked(self, operand: Any, block: int, shape: tuple[int, ...]) -> Any:
        """An operand of an operator whose result has this shape (n, c, h, w), as it is broadcast to blocks."""
        from tvm import relax

        if operand in self._blocked:
            return self._blocked[operand]
        extents = shape_of(operand) or ()
        if math.prod(extents) == 1:
            return self.visit(operand)
        if _is_constant(operand):
            return relax.const(_constant_in_blocks(operand.value.numpy(), block))
        aligned = (1,) * (len(shape) - len(extents)) + extents
        made = self.visit(operand)
        if aligned != extents:
            made = self.builder.emit(relax.op.reshape(made, aligned))
        if aligned[_CHANNEL] == 1:
            return self.builder.emit(relax.op.reshape(made, (*aligned, 1)))
        if operand not in self._transformed:
            n, c, h, w = aligned
            if h == w == 1:
                call = relax.op.reshape(made, (n, c // block, 1, 1, block))
            else:
                call = self.call(computations.to_blocks, made, block, name=TRANSFORM)
            self._transformed[operand] = self.builder.emit(call)
        return self._transformed[operand]

    def _is_blocked(self, expr: Any) -> bool:
        return expr in self._blocked

    def _is_convolution(self, value: Any) -> bool:
        """A convolution in two dimensions with weights that can be packed."""
        return (
            is_nchw_convolution(value)
            and is_float32(value.args[0])
            and shape_of(value) is not None
            and shape_of(value.args[0]) is not None
            and self._can_be_packed(value.args[1])
        )

    def _can_be_packed(self, weight: Any) -> bool:
        return _is_constant(weight) or weight in self._filled

    def _convolution(self, call: Any, block: int | None) -> Any:
        data, weight = call.args
        attributes = call.attrs
        read = self._blocked.get(data)
        if _is_depthwise(call) and block is not None:
            read = self.blocked(data, block, shape_of(data) or ())
        in_block = int(read.ty.shape[4]) if read is not None else None
        if _is_depthwise(call):
            in_block = None
        groups = int(attributes.groups)
        shape = shape_of(weight) or ()
        out = _in_whole_blocks(shape[0], block or 1)
        if read is not None and block is not None and (side := self._winograd_side(call)) is not None:
            return self._winograd(call, read, side, block, out)
        return self.call(
            computations.convolution,
            self.visit(data) if read is None else read,
            self._packed_weight(
                weight,
                lambda array: computations.pack_convolution(_with_channels(array, out), in_block, block),
                computations.packed_shape((out, *shape[1:]), in_block, block),
            ),
            [int(extent) for extent in attributes.strides],
            [int(extent) for extent in attributes.padding],
            [int(extent) for extent in attributes.dilation],
            groups,
            name=f"{'depthwise_' * _is_depthwise(call)}conv2d_NCHW{'c' * (block is not None)}",
        )

    def _winograd_side(self, call: Any) -> int | None:
        """See ``winograd.tile_side``."""
        n, _, height, width = shape_of(call) or ()
        strides, dilation = ([int(step) for step in steps] for steps in (call.attrs.strides, call.attrs.dilation))
        weight, groups = shape_of(call.args[1]) or (), int(call.attrs.groups)
        return winograd.tile_side(weight, (n, height, width), strides, dilation, groups, self._lanes)

    def _winograd(self, call: Any, read: Any, side: int, block: int, out: int) -> Any:
        """A convolution by Winograd's computation, of a blocked input."""
        n, _, height, width = shape_of(call) or ()
        extents = (n, height, width)
        shape = (out, *(shape_of(call.args[1]) or ())[1:])
        weight = self._packed_weight(
            call.args[1],
            lambda array: winograd.pack_weight(_with_channels(array, out), side, block),
            winograd.packed_shape(shape, side, block),
        )
        padding = [int(extent) for extent in call.attrs.padding]
        tiles = self.builder.emit(
            self.call(
                *(winograd.to_tiles, read, side, padding, extents),
                name="conv2d_winograd_to_tiles",
                pattern=_Pattern.OPAQUE,
            )
        )
        made = self.builder.emit(self.call(winograd.products, tiles, weight, name="conv2d_winograd_products"))
        return self.call(
            *(winograd.from_tiles, made, side, extents),
            name="conv2d_winograd_from_tiles",
            pattern=_Pattern.OUT_ELEMENTWISE_FUSABLE,
        )

    def _product(self, call: Any) -> Any:
        """A product with constant weights, packed; None for another."""
        data, weight = call.args
        rows, shape = shape_of(data), shape_of(weight)
        if rows is None or shape is None or len(shape) != 2 or len(rows) < 2 or not is_float32(call):
            return None
        block = longest_block(shape[1], self._lanes)
        if block is None or not self._can_be_packed(weight):
            return None
        packed = self._packed_weight(
            weight,
            lambda array: computations.pack_product(array, block),
            (shape[1] // block, shape[0], block),
        )
        return self.call(computations.product, self.visit(data), packed, name="matmul_packed")

    def _packed_weight(self, weight: Any, pack: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
        from tvm import relax

        if _is_constant(weight):
            return relax.const(pack(weight.value.numpy()))
        # Only kernels are wanted: where the weights come from is no kernel of the model.
        kind = relax.TensorType(shape, "float32")
        return self.builder.emit(relax.op.call_pure_packed("lorien.packed_weight", self.visit(weight), ty_args=[kind]))

    def _reduced(self, call: Any) -> Any:
        """A reduction over the picture, of blocks."""
        from tvm import relax

        reduce = getattr(relax.op, name_of(call))
        made = reduce(self._blocked[call.args[0]], [2, 3], keepdims=False)
        return self._first_channels(self.builder.emit(made), shape_of(call) or ())

    def _first_channels(self, blocks: Any, shape: tuple[int, ...]) -> Any:
        """The channels of one pixel as a tensor of this shape (n, c, …), without those that were added."""
        from tvm import relax

        extents = [int(extent) for extent in blocks.ty.shape]
        if math.prod(extents) == math.prod(shape):
            return relax.op.reshape(blocks, shape)
        flat = self.builder.emit(relax.op.reshape(blocks, (shape[0], math.prod(extents) // shape[0])))
        first = self.builder.emit(relax.op.strided_slice(flat, [_CHANNEL], [0], [shape[_CHANNEL]]))
        return relax.op.reshape(first, shape)

    def call(self, compute: Callable[..., Any], *arguments: Any, name: str, pattern: _Pattern | None = None) -> Any:
        """A call of a kernel that computes a tensor expression; without a pattern, TVM finds how it can be fused."""
        attributes = None if pattern is None else {"op_pattern": int(pattern)}
        return self.builder.call_te(compute, *arguments, primfunc_name_hint=name, primfunc_attrs=attributes)


def _kept(value: Any, values: Mapping[Any, Any]) -> _Kept | None:
    """How an operator is made of blocks; None for one that is not. ``values`` are those of all variables."""
    from tvm import relax

    name = name_of(value)
    if isinstance(value, relax.TupleGetItem):
        return _part(values.get(value.tuple_value), value.index)
    if name == "strided_slice":
        return _slice(value)
    if name == "reshape":
        return _shuffle(value, values)
    if name in _UNARY:
        return _Kept((value.args[0],), _made_unary)
    if name in _BINARY:
        ranks = [len(shape_of(operand) or (0,) * 9) for operand in value.args]
        return _Kept(tuple(value.args), _made_binary) if max(ranks) == 4 else None
    if name in _POOLS:
        attributes = value.attrs
        plain = str(attributes.layout) == "NCHW" == str(attributes.out_layout)
        return _Kept((value.args[0],), _made_pool) if plain else None
    if name == "concat":
        parts = value.args[0]
        if int(value.attrs.axis or 0) % 4 != _CHANNEL or not isinstance(parts, relax.Tuple):
            return None
        extents = [shape_of(part) for part in parts.fields]
        if None in extents:
            return None
        # What has one channel would be taken for broadcast.
        channels = tuple(extent[_CHANNEL] for extent in extents if extent)
        return _Kept(tuple(parts.fields), _made_concat, channels, counts=True)
    if name in _REDUCTIONS and _is_spatial(value) and bool(value.attrs.keepdims):
        return _Kept((value.args[0],), _made_reduction)
    if name == "nn.pad":
        widths = [int(width) for width in value.attrs.pad_width]
        return _Kept((value.args[0],), _made_pad) if len(widths) == 8 and not any(widths[:4]) else None
    if name == "image.resize2d":
        return _Kept((value.args[0],), _made_resize) if str(value.attrs.layout) == "NCHW" else None
    return None


def _part(split: Any, index: int) -> _Kept | None:
    """One of the parts of a split of the channels."""
    if name_of(split) != "split" or int(split.attrs.axis) % 4 != _CHANNEL:
        return None
    extents = [shape_of_type(kind) for kind in split.ty.fields]
    if any(extent is None or len(extent) != 4 for extent in extents):
        return None
    counts = [extent[_CHANNEL] for extent in extents if extent]
    return _channels(split.args[0], sum(counts[:index]), counts[index])


def _slice(call: Any) -> _Kept | None:
    """A slice of the channels alone."""
    from tvm import tirx

    shape, source = shape_of(call), shape_of(call.args[0])
    given = [tuple(getattr(argument, "fields", ())) for argument in call.args[1:]]
    if shape is None or source is None or len(source) != 4 or any(len(numbers) != 1 for numbers in given):
        return None
    if not all(isinstance(number, tirx.IntImm) for (number,) in given):
        return None
    axis, first, _, *step = (int(number) for (number,) in given)
    if axis % 4 != _CHANNEL or step not in ([], [1]):
        return None
    return _channels(call.args[0], first + (source[_CHANNEL] if first < 0 else 0), shape[_CHANNEL])


def _channels(data: Any, first: int, count: int) -> _Kept:
    """So many channels of a tensor, from the first on."""

    def make(blocking: _Blocking, call: Any, block: int) -> Any:
        from tvm import relax

        read = blocking.blocked(data, block, shape_of(data) or ())
        return relax.op.strided_slice(read, [_CHANNEL], [first // block], [(first + count) // block])

    return _Kept((data,), make, (first, count), counts=True)


def _shuffle(call: Any, values: Mapping[Any, Any]) -> _Kept | None:
    """Channels shuffled: (n, c, h, w) as (n, groups, c / groups, h, w) with its groups last, and back."""
    turned: Any = values.get(call.args[0])
    if name_of(turned) != "permute_dims":
        return None
    grouped: Any = values.get(turned.args[0])
    if name_of(grouped) != "reshape":
        return None
    data, axes = grouped.args[0], turned.attrs.axes
    shape, inner = shape_of(data), shape_of(grouped)
    if shape is None or inner is None or shape != shape_of(call) or len(shape) != 4 or axes is None:
        return None
    if [int(axis) for axis in axes] != [0, 2, 1, 3, 4] or inner[0] != shape[0] or inner[3:] != shape[2:]:
        return None
    groups = inner[1]

    def make(blocking: _Blocking, call: Any, block: int) -> Any:
        read = blocking.blocked(data, block, shape)
        return blocking.call(computations.shuffle, read, groups, name="channel_shuffle")

    return _Kept((data,), make, counts=True)


def _made_unary(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    operands = [blocking.blocked(call.args[0], block, shape_of(call) or ()), *call.args[1:]]
    return relax.Call(call.op, operands, call.attrs)


def _made_binary(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    shape = shape_of(call) or ()
    return relax.Call(call.op, [blocking.blocked(operand, block, shape) for operand in call.args], call.attrs)


def _made_pool(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    data = blocking.blocked(call.args[0], block, shape_of(call.args[0]) or ())
    a, layout = call.attrs, f"NCHW{block}c"
    if name_of(call) == "nn.adaptive_avg_pool2d":
        return relax.op.nn.adaptive_avg_pool2d(data, a.output_size, layout, layout)
    pool = relax.op.nn.max_pool2d if name_of(call) == "nn.max_pool2d" else relax.op.nn.avg_pool2d
    sizes = [[int(extent) for extent in extents] for extents in (a.pool_size, a.strides, a.padding, a.dilation)]
    return pool(data, *sizes, bool(a.ceil_mode), bool(a.count_include_pad), layout, layout)


def _made_concat(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    parts = [blocking.blocked(part, block, shape_of(part) or ()) for part in call.args[0].fields]
    return relax.op.concat(parts, _CHANNEL)


def _made_reduction(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    data = blocking.blocked(call.args[0], block, shape_of(call.args[0]) or ())
    return getattr(relax.op, name_of(call))(data, [2, 3], keepdims=True)


def _made_pad(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    data = blocking.blocked(call.args[0], block, shape_of(call.args[0]) or ())
    widths = [int(width) for width in call.attrs.pad_width]
    return relax.op.nn.pad(data, [*widths, 0, 0], str(call.attrs.pad_mode), float(call.attrs.pad_value))


def _made_resize(blocking: _Blocking, call: Any, block: int) -> Any:
    from tvm import relax

    data = blocking.blocked(call.args[0], block, shape_of(call.args[0]) or ())
    a = call.attrs
    size = tuple(int(extent) for extent in call.args[1])
    return relax.op.image.resize2d(
        data,
        size,
        [float(edge) for edge in a.roi],
        f"NCHW{block}c",
        str(a.method),
        str(a.coordinate_transformation_mode),
        str(a.rounding_method),
        float(a.cubic_alpha),
        int(a.cubic_exclude),
        float(a.extrapolation_value),
    )


def _is_depthwise(call: Any) -> bool:
    weight, data = shape_of(call.args[1]), shape_of(call.args[0])
    return weight is not None and data is not None and weight[1] == 1 and int(call.attrs.groups) == weight[0] == data[1]


def _is_spatial(call: Any) -> bool:
    """Whether a reduction is over the picture of (n, c, h, w)."""
    axes, shape = call.attrs.axis, shape_of(call.args[0])
    return shape is not None and len(shape) == 4 and axes is not None and {int(axis) % 4 for axis in axes} == {2, 3}


def _is_constant(expr: Any) -> bool:
    from tvm.ir import GenericConst

    return isinstance(expr, GenericConst)


def _in_whole_blocks(channels: int, block: int) -> int:
    """So many channels that they fill their blocks."""
    return -(-channels // block) * block


def _with_channels(weight: Any, channels: int) -> Any:
    """Weights OIHW with so many output channels; those that are added are zero."""
    added = channels - len(weight)
    return np.pad(weight, ((0, added), (0, 0), (0, 0), (0, 0))) if added else weight


def _constant_in_blocks(constant: Any, block: int) -> Any:
    """A constant that is broadcast to (n, c, h, w), as it is broadcast to blocks."""
    array = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
    if array.shape[_CHANNEL] == 1:
        return array[..., None]
    # Ones are harmless to whatever a network does to them; what comes of them is not read.
    added = _in_whole_blocks(array.shape[_CHANNEL], block) - array.shape[_CHANNEL]
    array = np.pad(array, ((0, 0), (0, added), (0, 0), (0, 0)), constant_values=1)
    n, c, h, w = array.shape
    return np.ascontiguousarray(array.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2))
