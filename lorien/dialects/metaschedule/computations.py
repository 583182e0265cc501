"""Convolutions and products on blocked channels and packed weights, as tensor expressions.

A blocked tensor (n, c, h, w) of blocks of ``b`` channels is (n, c / b, h, w, b): NCHW*b*c. The last axis is as long as
the target's vectors, or a part of them, whatever the picture's width is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tvm.te import Tensor

Array = npt.NDArray[Any]

PLACED = {"schedule_rule": "None"}
"""Attribute of a stage that MetaSchedule's rules leave as it is."""


def pack_convolution(weight: Array, in_block: int | None, out_block: int | None) -> Array:
    """Weights OIHW as ``convolution`` reads them: OIHW*x*i*y*o.

    Parameters
    ----------
    weight : array of float32 (out, in / groups, height, width)
    in_block : int or None
        Channels of a block of the input; None for an input NCHW, whose channels are one block.
    out_block : int or None
        The same of the output. None leaves the last axis out.

    Returns
    -------
    array of float32 (out / out_block, in / groups / in_block, height, width, in_block, out_block)
    """
    shape = packed_shape(weight.shape, in_block, out_block)
    outer, inner, height, width, in_channels, *_ = shape
    view = weight.reshape(outer, out_block or 1, inner, in_channels, height, width)
    return np.ascontiguousarray(view.transpose(0, 2, 4, 5, 3, 1)).reshape(shape)


def packed_shape(shape: Sequence[int], in_block: int | None, out_block: int | None) -> tuple[int, ...]:
    """What ``pack_convolution`` makes of weights of this shape."""
    out, channels, height, width = shape
    # The channels of a group may be fewer than a block, and are then one.
    in_channels = in_block if in_block and channels % in_block == 0 else channels
    packed = (out // (out_block or 1), channels // in_channels, height, width, in_channels)
    return packed if out_block is None else (*packed, out_block)


def convolution(
    data: Tensor,
    weight: Tensor,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution whose input and output are blocked, or NCHW.

    Parameters
    ----------
    data : Tensor (n, c / x, h, w, x) or (n, c, h, w)
    weight : Tensor
        As ``pack_convolution`` makes it; with the last axis the output is blocked.
    strides, padding, dilation : sequence of int
        (2,), (4,: top, left, bottom, right) and (2,).
    groups : int
        As many as channels in and out: a depthwise convolution, on blocks of the same size.

    Returns
    -------
    Tensor (n, out / y, h, w, y) or (n, out, h, w)
    """
    from tvm import te

    weights = [int(extent) for extent in weight.shape]
    outer, _, height, width, in_channels, *out_block = weights
    block_out = out_block[0] if out_block else 1
    batch, channels, in_height, in_width = _extents(data)
    per_group, out_per_group = channels // groups, outer * block_out // groups
    extents = (in_height, in_width), (height, width)
    out_height, out_width = output_extents(*extents, strides, padding, dilation)
    padded = _padded(data, padding)
    ic = te.reduce_axis((0, per_group), name="ic")
    kh = te.reduce_axis((0, height), name="kh")
    kw = te.reduce_axis((0, width), name="kw")
    depthwise = per_group == out_per_group == 1

    def at(batch: Any, outer: Any, row: Any, column: Any, inner: Any) -> Any:
        y, x = row * strides[0] + kh * dilation[0], column * strides[1] + kw * dilation[1]
        if depthwise and len(data.shape) == 5 and out_block:
            return padded(batch, outer, y, x, inner) * weight(outer, 0, kh, kw, 0, inner)
        first = 0 if groups == 1 else _group(outer, inner, block_out, out_per_group) * per_group
        read = _read(padded, batch, first + (0 if depthwise else ic), y, x)
        place = (outer, ic // in_channels, kh, kw, ic % in_channels)
        return read * (weight(*place, inner) if out_block else weight(*place))

    axes = [kh, kw] if depthwise else [ic, kh, kw]
    name = "depthwise_conv2d" if depthwise else "conv2d"
    if out_block:
        return te.compute(
            (batch, outer, out_height, out_width, block_out),
            lambda n, o, h, w, i: te.sum(at(n, o, h, w, i), axis=axes),
            name=name,
        )
    return te.compute(
        (batch, outer, out_height, out_width), lambda n, o, h, w: te.sum(at(n, o, h, w, 0), axis=axes), name=name
    )


def output_extents(
    extents: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of what a convolution makes of a picture; arguments as ``convolution`` takes them."""
    top, left, bottom, right = padding
    height, width = (
        (extent + added - (size - 1) * step - 1) // stride + 1
        for extent, added, size, step, stride in zip(
            extents, (top + bottom, left + right), window, dilation, strides, strict=True
        )
    )
    return height, width


def pack_product(weight: Array, block: int) -> Array:
    """Weights (k, n) as ``product`` reads them: (n / block, k, block)."""
    k, n = weight.shape
    return np.ascontiguousarray(weight.reshape(k, n // block, block).transpose(1, 0, 2))


def product(data: Tensor, weight: Tensor) -> Tensor:
    """(…, k) times packed weights (n / block, k, block): (…, n)."""
    from tvm import te

    outer, depth, block = (int(extent) for extent in weight.shape)
    k = te.reduce_axis((0, depth), name="k")

    def at(*index: Any) -> Any:
        *rows, n = index
        return te.sum(data(*rows, k) * weight(n // block, k, n % block), axis=k)

    return te.compute((*data.shape[:-1], outer * block), at, name="matmul")


def shuffle(data: Tensor, groups: int) -> Tensor:
    """Blocked channels in the order in which each group gives one in turn."""
    from tvm import te

    _, outer, _, _, block = (int(extent) for extent in data.shape)
    per_group = outer * block // groups

    def at(batch: Any, outer: Any, row: Any, column: Any, inner: Any) -> Any:
        channel = outer * block + inner
        source = channel % groups * per_group + channel // groups
        return data(batch, source // block, row, column, source % block)

    return te.compute(data.shape, at, name="channel_shuffle")


def to_blocks(data: Tensor, block: int) -> Tensor:
    """(n, c, h, w) as (n, c / block, h, w, block)."""
    from tvm import te

    batch, channels, height, width = data.shape
    return te.compute(
        (batch, channels // block, height, width, block),
        lambda n, o, h, w, i: data(n, o * block + i, h, w),
        name="layout_transform",
    )


def from_blocks(data: Tensor, channels: int) -> Tensor:
    """The first channels of (n, c / block, h, w, block) as (n, channels, h, w)."""
    from tvm import te

    batch, _, height, width, block = data.shape
    return te.compute(
        (batch, channels, height, width),
        lambda n, c, h, w: data(n, c // block, h, w, c % block),
        name="layout_transform",
    )


def _extents(data: Tensor) -> tuple[int, int, int, int]:
    batch, outer, height, width, *inner = (int(extent) for extent in data.shape)
    return batch, outer * (inner[0] if inner else 1), height, width


def _padded(data: Tensor, padding: Sequence[int]) -> Tensor:
    from tvm import topi

    top, left, bottom, right = padding
    if not any(padding):
        return data
    blocked = [0] * (len(data.shape) - 4)
    return topi.nn.pad(data, [0, 0, top, left, *blocked], [0, 0, bottom, right, *blocked], name="data_pad")


def _read(data: Tensor, batch: Any, channel: Any, row: Any, column: Any) -> Any:
    if len(data.shape) == 4:
        return data(batch, channel, row, column)
    block = int(data.shape[4])
    return data(batch, channel // block, row, column, channel % block)


def _group(outer: Any, inner: Any, block: int, out_per_group: int) -> Any:
    """The group of an output channel. Where groups are whole blocks it is the same for all lanes of a vector."""
    if out_per_group % block == 0:
        return outer // (out_per_group // block)
    return (outer * block + inner) // out_per_group
