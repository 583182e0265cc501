"""Winograd's computation of a 3x3 convolution of stride 1, as three kernels on blocked channels.

The input is cut into overlapping tiles, each tile is transformed, the transformed tiles of all channels are multiplied
with the transformed weights, place by place, and a tile of the output is made of the products. For tiles of 4x4 that is
a quarter of the multiplications, and four times the weights.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.computations import PLACED
from lorien.dialects.metaschedule.cpu_contraction import FLOAT_BYTES, MOVING_SHARE

if TYPE_CHECKING:
    from tvm.te import Tensor

Array = npt.NDArray[Any]

WINDOW = 3
ERROR = 1e-5
"""Largest error of an output, relative to the largest value: some ten times that of the direct computation."""
MULTIPLIED_PER_CYCLE = 1.6
"""Vectors that a core multiplies and adds: of the two that it can, what the default schedules reach."""
MEMORY_BYTES_PER_CYCLE, CACHE_BYTES_PER_CYCLE = 4.0, 12.0
"""That a core reads, from memory and from the last cache, of the CPUs that were measured."""
MORE_CYCLES = 4e4
"""To start two kernels more."""
GAIN = 1.25
"""How many times as fast Winograd's computation must promise to be."""
MATRIX_ROWS = "winograd_rows"
"""Name of the stage that transforms tiles along one side, before the kernel's last stages do so along the other."""
TILES = "winograd_tiles"

_INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_WEIGHT = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
"""By the side of an output's tile: B transposed, G and A transposed of the source."""


def tile_side(
    weight: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    lanes: int,
) -> int | None:
    """The side of the output's tiles that suits a convolution; None where the direct computation does.

    Larger tiles take fewer multiplications and more memory. In a network the weights come from memory, for each run
    uses them once: with few tiles, or with vectors that are fast against memory, smaller weights are better.

    Parameters
    ----------
    weight : sequence of int
        Shape OIHW.
    extents : sequence of int
        Batch, height and width of the output.
    strides, dilation : sequence of int
    groups : int
    lanes : int
        float32 numbers of a vector.
    """
    if tuple(weight[2:]) != (WINDOW, WINDOW) or groups != 1 or {*strides, *dilation} != {1}:
        return None
    pairs = math.prod(weight[:2])
    direct = _cycles(pairs * WINDOW**2, math.prod(extents), lanes)

    def cycles(side: int) -> float:
        places, tiles = (side + 2) ** 2, math.prod(_tiles(extents, side))
        moved = 2 * places * tiles * sum(weight[:2])  # written by one kernel, read by the next
        return _cycles(pairs * places, tiles, lanes) + moved * FLOAT_BYTES / CACHE_BYTES_PER_CYCLE + MORE_CYCLES

    best = min(_OUTPUT, key=cycles)
    return best if GAIN * cycles(best) < direct else None


def _cycles(weights: int, times: int, lanes: int) -> float:
    """Of one core, to multiply each weight with so many numbers."""
    compute = weights * times / (lanes * MULTIPLIED_PER_CYCLE)
    read = weights * FLOAT_BYTES / MEMORY_BYTES_PER_CYCLE
    return max(compute, read) + MOVING_SHARE * min(compute, read)


def pack_weight(weight: Array, side: int, block: int) -> Array:
    """Weights OIHW, transformed, as ``products`` reads them: (a, a, out / block, in, block), a = side + 2."""
    out, channels, *_ = weight.shape
    matrix = np.array(_WEIGHT[side])
    # One product for all: G w transposed(G) of each window w.
    both = np.kron(matrix, matrix).astype(weight.dtype)
    windows = weight.reshape(out // block, block, channels, WINDOW**2).transpose(3, 0, 2, 1).reshape(WINDOW**2, -1)
    return np.asarray(both @ windows).reshape(packed_shape(weight.shape, side, block))


def packed_shape(shape: Sequence[int], side: int, block: int) -> tuple[int, ...]:
    """What ``pack_weight`` makes of weights of this shape."""
    return (side + 2, side + 2, shape[0] // block, shape[1], block)


def to_tiles(data: Tensor, side: int, padding: Sequence[int], extents: Sequence[int]) -> Tensor:
    """Transformed tiles of a blocked input.

    Parameters
    ----------
    data : Tensor (n, c / x, h, w, x)
    side : int
    padding : sequence of int
        (4,): top, left, bottom, right.
    extents : sequence of int
        Batch, height and width of the output.

    Returns
    -------
    Tensor (a, a, tiles, c / x, x)
    """
    from tvm import te, tirx

    _, outer, height, width, block = map(int, data.shape)
    batch, rows, columns = _tiles(extents, side)
    top, left, *_ = padding
    place, matrix = side + 2, _INPUT[side]

    def inside(n: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
        there = tirx.all(y >= top, y < height + top, x >= left, x < width + left)
        return tirx.if_then_else(there, data(n, c, y - top, x - left, i), tirx.const(0.0, "float32"))

    # Inlined by MetaSchedule's rules, a stage would be computed again for each value of a tile: all are PLACED.
    # The last tiles may end beyond the picture, and what they make there is not read.
    padded = te.compute(
        (batch, outer, rows * side + 2, columns * side + 2, block), inside, name="data_pad", attrs=PLACED
    )
    turned = te.compute(
        (batch, rows, columns, outer, place, place, block),
        lambda n, ty, tx, c, i, v, lane: _transformed(
            matrix, i, lambda u: padded(n, c, ty * side + u, tx * side + v, lane)
        ),
        name=MATRIX_ROWS,
        attrs=PLACED,
    )
    one = rows * columns
    return te.compute(
        (place, place, batch * one, outer, block),
        lambda i, j, t, c, lane: _transformed(
            matrix, j, lambda v: turned(t // one, t % one // columns, t % columns, c, i, v, lane)
        ),
        name="winograd_to_tiles",
        attrs=PLACED,
    )


def products(tiles: Tensor, weight: Tensor) -> Tensor:
    """For each place of a tile, the product of all tiles with the weights.

    Parameters
    ----------
    tiles : Tensor (a, a, tiles, c / x, x)
    weight : Tensor (a, a, out / y, c, y)

    Returns
    -------
    Tensor (a, a, out / y, tiles, y)
    """
    from tvm import te

    place, _, count, _, inside = map(int, tiles.shape)
    _, _, outer, channels, block = map(int, weight.shape)
    k = te.reduce_axis((0, channels), "k")
    return te.compute(
        (place, place, outer, count, block),
        lambda i, j, o, t, lane: te.sum(tiles(i, j, t, k // inside, k % inside) * weight(i, j, o, k, lane), axis=k),
        name="winograd_products",
    )


def from_tiles(made: Tensor, side: int, extents: Sequence[int]) -> Tensor:
    """The output, of the products for its tiles.

    Parameters
    ----------
    made : Tensor (a, a, out / y, tiles, y)
    side : int
    extents : sequence of int
        Batch, height and width of the output.

    Returns
    -------
    Tensor (n, out / y, h, w, y)
    """
    from tvm import te

    place, _, outer, _, block = map(int, made.shape)
    batch, rows, columns = _tiles(extents, side)
    matrix = _OUTPUT[side]
    turned = te.compute(
        (batch, outer, rows, columns, side, place, block),
        lambda n, o, ty, tx, i, j, lane: _transformed(
            matrix, i, lambda u: made(u, j, o, (n * rows + ty) * columns + tx, lane)
        ),
        name=MATRIX_ROWS,
        attrs=PLACED,
    )
    tiles = te.compute(
        (batch, outer, rows, columns, side, side, block),
        lambda n, o, ty, tx, i, j, lane: _transformed(matrix, j, lambda v: turned(n, o, ty, tx, i, v, lane)),
        name=TILES,
        attrs=PLACED,
    )
    return te.compute(
        (batch, outer, *extents[1:], block),
        lambda n, o, y, x, lane: tiles(n, o, y // side, x // side, y % side, x % side, lane),
        name="winograd_from_tiles",
        attrs=PLACED,
    )


def _tiles(extents: Sequence[int], side: int) -> tuple[int, int, int]:
    """Batch, rows and columns of the tiles that cover an output."""
    batch, height, width = extents
    return batch, -(-height // side), -(-width // side)


def _transformed(matrix: Sequence[Sequence[float]], row: Any, read: Callable[[int], Any]) -> Any:
    """A row of a matrix times what is read. Where the loop of the row is written out, one of the sums is left."""
    from tvm import tirx

    *others, chosen = (_sum(coefficients, read) for coefficients in matrix)
    for index in reversed(range(len(others))):
        chosen = tirx.Select(row == index, others[index], chosen)
    return chosen


def _sum(coefficients: Sequence[float], read: Callable[[int], Any]) -> Any:
    """What is read, by coefficients, without what they leave out."""
    from tvm import tirx

    def term(place: int) -> Any:
        size = abs(coefficients[place])
        return read(place) if size == 1 else read(place) * tirx.const(float(size), "float32")

    # A positive one first: to begin with a negative one is an operation more.
    places = sorted((at for at, one in enumerate(coefficients) if one), key=lambda at: coefficients[at] < 0)
    total = term(places[0])
    for place in places[1:]:
        total = total + term(place) if coefficients[place] > 0 else total - term(place)
    return total
