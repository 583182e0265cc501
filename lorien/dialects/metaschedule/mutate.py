"""What operator a kernel is, and the same operator at other sizes.

A kernel is TIR with constants for extents, and nothing says which constant follows from which. So the operator is read
off its blocks (convolution, matrix product or pooling, then element-wise steps), written again in Relax, and lowered as
models are. Only where that gives the very same kernel at unchanged sizes is the reading trusted with other sizes.

Where a tensor has its channels in blocks, it has the block there that the layout ``auto`` gives the other number of
channels. ``_Block`` is the rule. It knows of no model: no channels are added, as ``auto`` adds them to some heads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from lorien.dialects.metaschedule import computations, winograd
from lorien.dialects.metaschedule.blocks import longest_block
from lorien.dialects.metaschedule.extract import fused_kernels
from lorien.dialects.metaschedule.vector_math import ELEMENTWISE, block_name
from lorien.dialects.metaschedule.workload import module_of, tvm_target, workload_of
from lorien.errors import BadInput, LorienError, UnsupportedOperation
from lorien.mutate import Axes
from lorien.records import Workload
from lorien.target import Target

if TYPE_CHECKING:
    import tvm

Shape: TypeAlias = tuple[int, ...]

_SPATIAL = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_CONV = re.compile(r"(?:group_|depthwise_)?conv[123]d_n")
_PACKED_CONV = ("conv2d", "depthwise_conv2d")
"""Those of ``computations.convolution``."""
_PADS = ("pad_temp", "data_pad")
_BLOCKED_DTYPE = "float32"
_BINARY = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Max": "maximum", "Min": "minimum"}
_UNARY = ("erf", "exp", "sigmoid", "sqrt", "tanh")
_WITH_ATTRIBUTES = ("clip", "nn.leakyrelu")
"""Steps whose numbers are attributes, not operands."""
_GELU = ("multiply", "erf", "multiply", "add", "multiply")
_TARGET = Target("llvm")
"""Fusing wants a target, and makes the same kernels for all."""
_VECTOR_MATH = {block_name(operator): operator.removeprefix("relax.") for operator in ELEMENTWISE}


@dataclass(frozen=True)
class _Anchor:
    """The operator a kernel starts with, as functions of its axes."""

    axes: Axes
    inputs: tuple[Any, ...]
    output: Any
    shapes: Callable[[Axes], Sequence[Shape]]
    """Those of ``inputs``. Raises ``BadInput`` where there is no such operator."""
    emit: Callable[..., Any]
    """The Relax expression over (builder, axes, *inputs)."""
    block: Callable[[Axes], int | None] = lambda axes: None
    """Channels of a block of the output; None where its channels are not in blocks."""
    is_packed: bool = False
    """Whether it is a kernel of the layout ``auto`` alone: channels in blocks, or packed weights."""


@dataclass(frozen=True)
class _Step:
    """An element-wise operator after the anchor: its name in ``relax.op``, over TIR buffers and numbers."""

    op: str
    operands: tuple[Any, ...]
    output: Any


@dataclass(frozen=True)
class KernelOperator:
    """A kernel read as an anchor and the steps fused to it. Implements ``lorien.mutate.Operator``."""

    axes: Axes
    inputs: tuple[Any, ...]
    """TIR buffers, in the order of the kernel's parameters."""
    anchor: _Anchor
    steps: tuple[_Step, ...]
    vector_math: bool
    """Whether steps are computed as ``vector_math`` does it."""

    def at(self, axes: Axes, name: str) -> Workload:
        """See ``Operator``."""
        from tvm.s_tir.meta_schedule.relax_integration import extract_tasks

        try:
            with tvm_target(_TARGET):
                kernels = fused_kernels(self._relax(axes), vector_math=self.vector_math)
            tasks = extract_tasks(kernels, tvm_target(_TARGET), params={})
        except BadInput:
            raise
        except Exception as error:  # shape inference and legalization raise what they like
            raise BadInput(f"TVM cannot make it: {_reason(error)}") from error
        if len(tasks) != 1:
            raise BadInput(f"TVM makes {len(tasks)} kernels of it")
        return workload_of(tasks[0].dispatched[0], name)

    def _relax(self, axes: Axes) -> tvm.IRModule:
        from tvm import relax

        dtype = str(axes["dtype"])
        if self.anchor.is_packed and dtype != _BLOCKED_DTYPE:
            raise BadInput(
                f"only {_BLOCKED_DTYPE} has channels in blocks and packed weights. "
                "Fix: extract with --layout plain for other dtypes"
            )
        builder = relax.BlockBuilder()
        shapes = dict(zip(self.anchor.inputs, self.anchor.shapes(axes), strict=True))
        values = {buffer: _variable(buffer, shape, dtype) for buffer, shape in shapes.items()}
        anchor = self.anchor.emit(builder, axes, *values.values())
        output = tuple(int(extent) for extent in builder.normalize(anchor).ty.shape)
        if min(output) < 1:
            raise BadInput(f"the window does not fit: the output would be {'x'.join(map(str, output))}")
        for buffer in self.inputs:
            if buffer not in values:
                values[buffer] = _variable(buffer, self._operand_shape(buffer, axes, output), dtype)
        with builder.function("main", [values[buffer] for buffer in self.inputs]):
            with builder.dataflow():
                values[self.anchor.output] = last = builder.emit(anchor)
                for step in self.steps:
                    operands = [
                        values[operand] if operand in values else _number(operand, step.op, dtype)
                        for operand in step.operands
                    ]
                    values[step.output] = last = builder.emit(attrgetter(step.op)(relax.op)(*operands))
                result = builder.emit_output(last)
            builder.emit_func_output(result)
        return builder.get()

    def _operand_shape(self, buffer: Any, axes: Axes, output: Shape) -> Shape:
        """That of a step's input where the anchor's output has this shape."""
        old, new = self.anchor.block(self.axes), self.anchor.block(axes)
        plain = _follow(
            _out_of_blocks(_shape(buffer), old),
            _out_of_blocks(_shape(self.anchor.output), old),
            _out_of_blocks(output, new),
        )
        return _in_blocks(plain, new)


def recognize(workload: Workload) -> KernelOperator:
    """The operator of a workload.

    Raises
    ------
    BadInput
        The workload holds no kernel that TVM reads.
    UnsupportedOperation
        The kernel is not understood; the message says where.
    """
    module = module_of(workload)
    try:
        return _read(module, workload)
    except LorienError:
        raise
    except Exception as error:  # a kernel of any other make: without blocks, without inputs, with other statements
        raise UnsupportedOperation(f"its kernel has another form: {_reason(error)}") from error


def _read(module: tvm.IRModule, workload: Workload) -> KernelOperator:
    from tvm.s_tir import Schedule

    schedule = Schedule(module, debug_mask="none", error_render_level="none")
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    *inputs, _ = module["main"].params
    if len({str(buffer.ty.dtype) for buffer in inputs}) > 1:
        raise UnsupportedOperation("its inputs have different dtypes")
    for anchor, rest in _anchors(blocks):
        axes = {**anchor.axes, "dtype": str(inputs[0].ty.dtype)}
        steps = tuple(_step(block) for block in rest)
        vector_math = any(_vector_math(block) for block in rest)
        for reading in dict.fromkeys((steps, _gelu(steps))):
            operator = KernelOperator(axes, tuple(inputs), anchor, reading, vector_math)
            try:
                if operator.at(axes, workload.name).key == workload.key:
                    return operator
            except BadInput:
                continue
    raise UnsupportedOperation(f"TVM does not make it of {', '.join(block.name_hint for block in blocks)} as read here")


def _anchors(blocks: list[Any]) -> Iterator[tuple[_Anchor, list[Any]]]:
    """Readings of the first blocks, and the blocks that follow."""
    pad, rest = (blocks[0], blocks[1:]) if blocks[0].name_hint in _PADS else (None, blocks)
    name = rest[0].name_hint if rest else blocks[0].name_hint
    if any(block.name_hint.startswith("winograd_") for block in blocks):
        raise UnsupportedOperation(
            "it is a part of Winograd's computation. Fix: mutate the workloads of --layout plain"
        )
    if name in _PACKED_CONV or (_CONV.match(name) and pad is not None):
        yield _conv(pad, rest[0], is_packed=name in _PACKED_CONV), rest[1:]
    elif name == "matmul" and pad is None:
        if len(_shape(rest[0].reads[1].source)) == 3:  # a right side in 3-D may be packed weights
            yield _matmul(rest[0], is_packed=True), rest[1:]
        yield _matmul(rest[0], is_packed=False), rest[1:]
    elif name == "pool_max":
        yield _pool("max", pad, rest[0], rest[0], count_include_pad=False), rest[1:]
    elif name == "pool_sum" and len(rest) > 1:
        for count_include_pad in (False, True):  # only to be told from the divisor
            yield _pool("avg", pad, rest[0], rest[1], count_include_pad=count_include_pad), rest[2:]
    else:
        raise UnsupportedOperation(f"{name} is no convolution (NCHW), matrix product or pooling")


@dataclass(frozen=True)
class _Block:
    """Which block the channels of a tensor have at other numbers of channels: the longest that divides them.

    The target is not known, so no block is longer than the longest of the kernel, nor than that of the tensor where
    something outside of the kernel has shortened it (a concatenation with fewer channels).
    """

    longest: int | None
    """Channels; None where the tensor never is in blocks."""

    @classmethod
    def of(cls, channels: int, block: int | None, lanes: int) -> _Block:
        """The rule for a tensor that has this block, in a kernel whose longest block are ``lanes`` channels."""
        longest = cls(lanes)
        return longest if longest.at(channels) == block else cls(block)

    def at(self, channels: int) -> int | None:
        """Channels of a block; None where no block fits, and the channels stay as they are."""
        return None if self.longest is None else longest_block(channels, self.longest)


def _conv(pad: Any, block: Any, *, is_packed: bool) -> _Anchor:
    data, weight, output = (pad or block).reads[0].source, block.reads[1].source, block.writes[0].source
    out_channels, group_in, *kernel = _unpacked(_shape(weight)) if is_packed else _shape(weight)
    batch, in_channels, extents, in_block = _picture(data, len(kernel))
    *_, out_block = _picture(output, len(kernel))
    spatial, groups = _SPATIAL[len(extents)], in_channels // group_in
    window = _window(pad, block, len(kernel))
    depthwise = groups == in_channels == out_channels > 1
    channels = {"channels": in_channels} if depthwise else {"in_channels": in_channels, "out_channels": out_channels}
    lanes = max(in_block or 0, out_block or 0)
    block_in = _Block.of(in_channels, in_block, lanes) if in_block else _Block(None)
    block_out = _Block.of(out_channels, out_block, lanes)

    def split(axes: Axes) -> tuple[int, int, int]:
        if depthwise:
            return (int(axes["channels"]),) * 3
        return int(axes["in_channels"]), int(axes["out_channels"]), groups

    def blocks(axes: Axes) -> tuple[int | None, int | None]:
        """Of the input and of the output."""
        channels_in, channels_out, parts = split(axes)
        out = block_out.at(channels_out)
        return (out if channels_in == channels_out == parts else block_in.at(channels_in)), out

    def shapes(axes: Axes) -> Sequence[Shape]:
        channels_in, channels_out, parts = split(axes)
        if channels_in % parts or channels_out % parts:
            raise BadInput(f"{channels_in} and {channels_out} channels do not divide into {parts} groups")
        plain = int(axes["batch"]), channels_in, *(int(axes[axis]) for axis in spatial)
        weights: Shape = channels_out, channels_in // parts, *kernel
        in_block, out_block = blocks(axes)
        if in_block and out_block and _tile_side(plain, weights, window, parts, lanes) is not None:
            raise BadInput("a model has Winograd's computation there: three kernels, and none of them is this one")
        if in_block or out_block:
            weights = computations.packed_shape(weights, in_block, out_block)
        return _in_blocks(plain, in_block), weights

    def emit(builder: Any, axes: Axes, data: Any, weight: Any) -> Any:
        from tvm import relax

        *_, parts = split(axes)
        if any(blocks(axes)):
            return builder.call_te(computations.convolution, data, weight, groups=parts, **window)
        conv = getattr(relax.op.nn, f"conv{len(spatial)}d")
        return conv(data, weight, groups=parts, **window)

    axes: Axes = {"batch": batch, **channels, **dict(zip(spatial, extents, strict=True))}
    return _Anchor(axes, (data, weight), output, shapes, emit, lambda axes: blocks(axes)[1], is_packed)


def _pool(kind: str, pad: Any, block: Any, last: Any, *, count_include_pad: bool) -> _Anchor:
    data = (pad or block).reads[0].source
    size = [int(axis.dom.extent) for axis in block.iter_vars if axis.iter_type == axis.CommReduce]
    spatial = _SPATIAL.get(len(size), ())
    if not spatial:
        raise UnsupportedOperation(f"{block.name_hint} over {len(size)} dimensions")
    batch, channels, extents, in_block = _picture(data, len(size))
    window = _window(pad, block, len(size))
    fitting = _Block(in_block)

    def block_at(axes: Axes) -> int | None:
        return fitting.at(int(axes["channels"]))

    def shapes(axes: Axes) -> Sequence[Shape]:
        return [_in_blocks(tuple(int(axes[axis]) for axis in ("batch", "channels", *spatial)), block_at(axes))]

    def emit(builder: Any, axes: Axes, data: Any) -> Any:
        from tvm import relax

        pool = getattr(relax.op.nn, f"{kind}_pool{len(spatial)}d")
        block = block_at(axes)
        layout = {} if block is None else {"layout": f"NCHW{block}c"}
        return pool(data, size, count_include_pad=count_include_pad, **window, **layout)

    axes: Axes = {"batch": batch, "channels": channels, **dict(zip(spatial, extents, strict=True))}
    return _Anchor(axes, (data,), last.writes[0].source, shapes, emit, block_at, in_block is not None)


def _tile_side(data: Shape, weight: Shape, window: dict[str, Any], groups: int, lanes: int) -> int | None:
    """See ``winograd.tile_side``, of a convolution with these attributes."""
    strides, dilation = window["strides"], window["dilation"]
    extents = computations.output_extents(data[2:], weight[2:], strides, window["padding"], dilation)
    return winograd.tile_side(weight, (data[0], *extents), strides, dilation, groups, lanes)


def _matmul(block: Any, *, is_packed: bool) -> _Anchor:
    left, right = (region.source for region in block.reads)
    *outer, rows, inner = _shape(left)
    *right_outer, _, columns = _shape(right)
    axes: Axes = {"batch": outer[0], "length": rows} if outer else {"batch": rows}
    fitting = _Block(columns if is_packed else None)
    if is_packed:
        (blocks,), right_outer = right_outer, []
        columns *= blocks
    paired = right_outer == outer  # one right side for each left, as in attention; else a weight

    def shapes(axes: Axes) -> Sequence[Shape]:
        batch = (int(axes["batch"]), *outer[1:], int(axes["length"])) if outer else (int(axes["batch"]),)
        channels_in, channels_out = int(axes["in_channels"]), int(axes["out_channels"])
        block = fitting.at(channels_out)
        if block is not None:
            return (*batch, channels_in), (channels_out // block, channels_in, block)
        return (*batch, channels_in), (*(batch[:-1] if paired else right_outer), channels_in, channels_out)

    def emit(builder: Any, axes: Axes, left: Any, right: Any) -> Any:
        from tvm import relax

        if fitting.at(int(axes["out_channels"])) is not None:
            return builder.call_te(computations.product, left, right)
        return relax.op.matmul(left, right)

    axes |= {"in_channels": inner, "out_channels": columns}
    return _Anchor(axes, (left, right), block.writes[0].source, shapes, emit, is_packed=is_packed)


def _window(pad: Any, block: Any, dimensions: int) -> dict[str, list[int]]:
    """Strides, dilation and padding of a sliding window, from the indices it reads at."""
    from tvm.sym import detect_linear_equation

    picture = slice(2, 2 + dimensions)
    axes = [axis.var for axis in block.iter_vars]
    reads = [detect_linear_equation(extent.min, axes) for extent in block.reads[0].region[picture]]
    before, after = [0] * dimensions, [0] * dimensions
    if pad is not None:
        pad_axes = [axis.var for axis in pad.iter_vars]
        offsets = [detect_linear_equation(extent.min, pad_axes) for extent in pad.reads[0].region[picture]]
        extents, padded = (_shape(region.source)[picture] for region in (*pad.reads, *pad.writes))
        before = [-int(offset[-1]) if offset else 0 for offset in offsets]
        after = [p - b - d for p, b, d in zip(padded, before, extents, strict=True)]
    if not all(reads):
        raise UnsupportedOperation(f"{block.name_hint} does not read a plain sliding window")
    return {
        "strides": [int(read[2 + index]) for index, read in enumerate(reads)],
        "dilation": [int(read[len(axes) - dimensions + index]) for index, read in enumerate(reads)],
        "padding": [*before, *after],
    }


def _step(block: Any) -> _Step:
    value: Any = getattr(block.body, "value", None)
    kind = type(value).__name__
    operands: tuple[Any, ...]
    if op := _vector_math(block):
        return _Step(op, (block.reads[0].source,), block.writes[0].source)
    if kind == "Max" and type(value.a).__name__ == "Min":
        op, operands = "clip", (value.a.a, value.b, value.a.b)
    elif kind == "Max" and block.name_hint.startswith("compute"):
        op, operands = "nn.relu", (value.a,)
    elif kind == "Select" and type(value.false_value).__name__ == "Mul":
        op, operands = "nn.leakyrelu", (value.true_value, value.false_value.b)
    elif kind in _BINARY:
        op, operands = _BINARY[kind], (value.a, value.b)
    elif kind == "Call" and value.op.name.rpartition(".")[2] in _UNARY:
        op, operands = value.op.name.rpartition(".")[2], tuple(value.args)
    else:
        raise UnsupportedOperation(f"its step {block.name_hint} is not one of those understood")
    return _Step(op, tuple(_operand(block, operand) for operand in operands), block.writes[0].source)


def _vector_math(block: Any) -> str:
    """Operator that ``vector_math`` wrote the block for; empty for another's. Fusing numbers blocks of one name."""
    return _VECTOR_MATH.get(re.sub(r"_?\d+$", "", block.name_hint), "")


def _gelu(steps: tuple[_Step, ...]) -> tuple[_Step, ...]:
    """The steps with what one Gelu expands to put together again; its blocks have names of their own."""
    ops = tuple(step.op for step in steps)
    for start in range(len(steps) - len(_GELU) + 1):
        end = start + len(_GELU)
        if ops[start:end] == _GELU:
            gelu = _Step("nn.gelu", steps[start].operands[:1], steps[end - 1].output)
            return (*steps[:start], gelu, *steps[end:])
    return steps


def _operand(block: Any, operand: Any) -> Any:
    kind = type(operand).__name__
    if kind == "TensorLoad":
        return operand.source
    if kind in ("FloatImm", "IntImm"):
        return operand.value
    raise UnsupportedOperation(f"its step {block.name_hint} computes more than one operator")


def _follow(shape: Shape, old: Shape, new: Shape) -> Shape:
    """Shape of a step's input when the anchor's output goes from ``old`` to ``new``.

    Extents that are the output's follow it, others stay. So do the ones of a parameter, told from an activation of
    batch 1 by its shape: one extent above 1 at most, or a one where the output has more.
    """
    skip = len(old) - len(shape)
    extents = list(zip(shape, old[skip:], new[skip:], strict=True))
    is_parameter = sum(extent > 1 for extent in shape) < 2 or any(extent == 1 != was for extent, was, _ in extents)
    return tuple(extent if extent != was or (extent == 1 and is_parameter) else now for extent, was, now in extents)


def _picture(buffer: Any, dimensions: int) -> tuple[int, int, Shape, int | None]:
    """Batch, channels, the picture's extents, and the channels of a block; None for no blocks."""
    batch, outer, *rest = _shape(buffer)
    extents, inner = tuple(rest[:dimensions]), rest[dimensions:]
    return batch, outer * math.prod(inner), extents, inner[0] if inner else None


def _unpacked(shape: Shape) -> Shape:
    """Of weights as ``computations.pack_convolution`` makes them: the shape they had, OIHW."""
    outer, channels, height, width, in_block, *out_block = shape
    return outer * math.prod(out_block), channels * in_block, height, width


def _out_of_blocks(shape: Shape, block: int | None) -> Shape:
    """The shape (n, c, h, w) of what is in blocks, or is broadcast to them."""
    if block is None or len(shape) != 5:
        return shape
    n, outer, h, w, inner = shape
    return n, outer * inner, h, w


def _in_blocks(shape: Shape, block: int | None) -> Shape:
    """The shape in blocks of what has this one, or is broadcast to it. One number is left as it is."""
    if block is None or math.prod(shape) == 1:
        return shape
    n, c, h, w = (*(1,) * (4 - len(shape)), *shape)
    return (n, 1, h, w, 1) if c == 1 else (n, c // block, h, w, block)


def _number(value: float, op: str, dtype: str) -> Any:
    from tvm import relax

    return value if op in _WITH_ATTRIBUTES else relax.const(value, dtype)


def _variable(buffer: Any, shape: Shape, dtype: str) -> Any:
    from tvm import relax

    return relax.Var(buffer.name, relax.TensorType(shape, dtype))


def _reason(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def _shape(buffer: Any) -> Shape:
    return tuple(int(extent) for extent in buffer.ty.shape)
