"""Other computations of a 3x3 convolution of stride 1, beside the direct one in blocks; products combined.

    python benchmarks/alternatives.py

*Winograd* is the computation of ``lorien/dialects/metaschedule/winograd.py``, with output tiles of 2x2 and of 4x4: the
sum of its three kernels. *NHWC* is the convolution on activations NHWC and weights HWIO. Each kernel is measured under
the first schedules of the default one's kind, and its best latency counts. The weights of all are in their layout
beforehand. They are in the caches, which they need not be in a network.

Three products of one tensor (the queries, keys and values of attention) are measured beside one product of it with the
three weights side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import harness
import tvm
from tvm import te

from lorien.dialects.metaschedule import computations, winograd
from lorien.dialects.metaschedule.cpu_schedule import FIRST_DEFAULTS, cpu_schedules
from lorien.dialects.metaschedule.vectors import vectors_of
from lorien.dialects.metaschedule.workload import candidate_of, module_of, native_target, workload_of
from lorien.tune.measure import Measurer

if TYPE_CHECKING:
    from tvm.te import Tensor

# Channels in, channels out, height and width: of resnet50, squeezenet and vgg19.
SHAPES = ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7), (16, 64, 55), (64, 256, 13), (256, 256, 56))
# Rows, depth and columns of one of three products: BERT-tiny's and BERT-base's.
PRODUCTS = ((128, 128, 128), (128, 768, 768))
SIDES = (2, 4)


def placeholder(shape: Sequence[int], name: str) -> Tensor:
    """An input of float32."""
    return te.placeholder(shape, "float32", name)


def direct(channels: int, filters: int, extent: int, lanes: int) -> list[Tensor]:
    """Inputs and output of the convolution that Lorien lowers to."""
    data = placeholder((1, channels // lanes, extent, extent, lanes), "data")
    shape = computations.packed_shape((filters, channels, winograd.WINDOW, winograd.WINDOW), lanes, lanes)
    weight = placeholder(shape, "weight")
    return [data, weight, computations.convolution(data, weight, (1, 1), (1, 1, 1, 1), (1, 1), 1)]


def nhwc(channels: int, filters: int, extent: int) -> list[Tensor]:
    """The same, with the channels of a pixel together."""
    data = placeholder((1, extent, extent, channels), "data")
    weight = placeholder((winograd.WINDOW, winograd.WINDOW, channels, filters), "weight")
    padded = te.compute(
        (1, extent + 2, extent + 2, channels),
        lambda n, y, x, c: te.if_then_else(
            te.all(y >= 1, y <= extent, x >= 1, x <= extent), data(n, y - 1, x - 1, c), 0.0
        ),
        name="pad",
    )
    ky, kx = te.reduce_axis((0, winograd.WINDOW), "ky"), te.reduce_axis((0, winograd.WINDOW), "kx")
    k = te.reduce_axis((0, channels), "k")
    out = te.compute(
        (1, extent, extent, filters),
        lambda n, y, x, f: te.sum(padded(n, y + ky, x + kx, k) * weight(ky, kx, k, f), axis=[ky, kx, k]),
        name="conv2d",
    )
    return [data, weight, out]


def winograd_kernels(channels: int, filters: int, extent: int, lanes: int, side: int) -> dict[str, list[Tensor]]:
    """Inputs and output of each kernel of Winograd's computation."""
    extents, weights = (1, extent, extent), (filters, channels, winograd.WINDOW, winograd.WINDOW)
    data = placeholder((1, channels // lanes, extent, extent, lanes), "data")
    to_tiles = winograd.to_tiles(data, side, (1, 1, 1, 1), extents)
    tiles = placeholder(tuple(map(int, to_tiles.shape)), "tiles")
    weight = placeholder(winograd.packed_shape(weights, side, lanes), "weight")
    products = winograd.products(tiles, weight)
    made = placeholder(tuple(map(int, products.shape)), "made")
    return {
        "to_tiles": [data, to_tiles],
        "products": [tiles, weight, products],
        "from_tiles": [made, winograd.from_tiles(made, side, extents)],
    }


def product(rows: int, depth: int, columns: int, lanes: int) -> list[Tensor]:
    """Inputs and output of a product with packed weights."""
    data, weight = placeholder((rows, depth), "data"), placeholder((columns // lanes, depth, lanes), "weight")
    return [data, weight, computations.product(data, weight)]


def best_s(measurer: Measurer, tensors: list[Tensor], name: str) -> float:
    """Best latency of a kernel under the default schedule and others of its kind."""
    module = tvm.IRModule({"main": te.create_prim_func(tensors)})
    workload = workload_of(module, name)
    schedules = itertools.islice(cpu_schedules(module_of(workload), measurer.target), FIRST_DEFAULTS)
    measured = measurer.measure(workload, [candidate_of(schedule) for schedule in schedules])
    return min(one.latency_s for one in measured if one.latency_s is not None)


def main() -> None:
    """Measure all shapes, print a table, keep the results."""
    target = native_target()
    lanes = vectors_of(target).lanes
    rows: list[dict[str, Any]] = []
    with Measurer("metaschedule", target) as measurer, measurer.measuring() as contention:
        for channels, filters, extent in SHAPES:
            direct_s = best_s(measurer, direct(channels, filters, extent, lanes), "direct")
            parts_s = {
                side: {
                    name: best_s(measurer, tensors, name)
                    for name, tensors in winograd_kernels(channels, filters, extent, lanes, side).items()
                }
                for side in SIDES
            }
            rows.append(
                {
                    "shape": f"{channels} to {filters} at {extent}x{extent}",
                    "direct_s": direct_s,
                    **{f"winograd{side}_s": sum(parts_s[side].values()) for side in SIDES},
                    **{f"winograd{side}_parts_s": parts_s[side] for side in SIDES},
                    "nhwc_s": best_s(measurer, nhwc(channels, filters, extent), "nhwc"),
                }
            )
            print(rows[-1]["shape"], flush=True)
        combined = [
            {
                "shape": f"{length} x {depth} times three {depth} x {wide}",
                "three_s": 3 * best_s(measurer, product(length, depth, wide, lanes), "one"),
                "combined_s": best_s(measurer, product(length, depth, 3 * wide, lanes), "combined"),
            }
            for length, depth, wide in PRODUCTS
        ]
    columns = ("shape", "direct, us", *(f"Winograd {side}x{side}, us" for side in SIDES), "NHWC, us")
    table = [
        (
            row["shape"],
            row["direct_s"] * 1e6,
            *(row[f"winograd{side}_s"] * 1e6 for side in SIDES),
            row["nhwc_s"] * 1e6,
        )
        for row in rows
    ]
    print(harness.markdown(columns, table))
    cells = [(one["shape"], one["three_s"] * 1e6, one["combined_s"] * 1e6) for one in combined]
    print(harness.markdown(("product", "three, us", "combined, us"), cells))
    harness.write_result("alternatives", {"convolutions": rows, "products": combined, **contention.to_json()})


if __name__ == "__main__":
    main()
