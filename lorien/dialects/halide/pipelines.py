"""Halide pipelines by name: each makes its algorithm, without a schedule, from a few sizes.

A workload is written ``matmul:512,512,512``; one of your own, ``my_package.my_module:pyramid:640,480``, names a
function that takes the sizes and gives a ``Pipeline``. Such a module is imported when the workload is built, never when
a log of it is read.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorien.errors import BadInput, MissingExtra
from lorien.records import Workload

if TYPE_CHECKING:
    import halide as hl

DIALECT = "halide"
MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class Pipeline:
    """An algorithm with its shapes.

    Parameters
    ----------
    output : halide.Func
        What is computed.
    shape : sequence of int
        Extents of the output, in the order of its arguments.
    inputs : sequence of (halide.ImageParam, shape)
        What is read.
    flop : float
        Operations of one run.
    """

    output: hl.Func
    shape: Sequence[int]
    inputs: Sequence[tuple[hl.ImageParam, Sequence[int]]]
    flop: float


def parse(text: str) -> Workload:
    """The workload that ``NAME:SIZE,SIZE...`` or ``MODULE:FUNCTION:SIZE,SIZE...`` names; nothing is imported.

    Raises ``BadInput``.
    """
    name, _, sizes = text.rpartition(":")
    if not name or not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", sizes):
        raise BadInput(
            f"{text!r} is no pipeline with sizes. Fix: matmul:512,512,512; there are: {', '.join(PIPELINES)}"
        )
    return workload_of(name, [int(size) for size in sizes.split(",")])


def workload_of(name: str, sizes: Sequence[int]) -> Workload:
    """A named pipeline as a workload. Raises ``BadInput`` when there is none of that name or it takes other sizes."""
    if any(not 0 < size <= MAX_SIZE for size in sizes):
        raise BadInput(f"sizes of {name} are from 1 to {MAX_SIZE}, not {list(sizes)}")
    if ":" not in name:
        if name not in PIPELINES:
            raise BadInput(f"no pipeline {name!r}; there are: {', '.join(PIPELINES)}, and MODULE:FUNCTION of your own")
        names = list(inspect.signature(PIPELINES[name]).parameters)
        if len(sizes) != len(names):
            raise BadInput(f"{name} takes {len(names)} sizes, {','.join(names)}, not {len(sizes)}")
    return Workload(DIALECT, f"{name}({','.join(map(str, sizes))})", [name, list(sizes)])


def pipeline_of(workload: Workload) -> Pipeline:
    """The workload's algorithm, new each time: a schedule changes it.

    Raises
    ------
    MissingExtra
        Halide is not installed.
    BadInput
        The workload is of another dialect, or there is no such pipeline.
    """
    require_halide()
    try:
        name, sizes = workload.identity
    except (TypeError, ValueError):
        raise BadInput(f"workload {workload.name!r} ({workload.dialect}) names no Halide pipeline") from None
    checked = workload_of(name, sizes)
    make = PIPELINES.get(name) or _imported(name)
    try:
        made = make(*checked.identity[1])
    except TypeError as error:
        raise BadInput(f"pipeline {name}: {error}. Fix: give it the sizes it takes") from None
    if not isinstance(made, Pipeline):
        raise BadInput(f"{name} gave {type(made).__name__}. Fix: return lorien.dialects.halide.Pipeline")
    for image, shape in made.inputs:
        image.set_estimates([(0, extent) for extent in shape])
        for dimension, extent in enumerate(shape):
            image.dim(dimension).set_bounds(0, extent)
    made.output.set_estimates([(0, extent) for extent in made.shape])
    return made


def require_halide() -> None:
    """Raises ``MissingExtra`` when Halide is not installed."""
    try:
        import halide  # noqa: F401
    except ImportError:
        raise MissingExtra("halide", "halide") from None


def _imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"no pipeline {name}: {error}. Fix: install the package, or set PYTHONPATH") from None
    if not callable(found):
        raise BadInput(f"{name} is no function")
    made: Callable[..., Any] = found
    return made


def _image(name: str, dimensions: int, kind: str = "float32") -> hl.ImageParam:
    import halide as hl

    return hl.ImageParam(hl.UInt(8) if kind == "uint8" else hl.Float(32), dimensions, name)


def matmul(m: int, n: int, k: int) -> Pipeline:
    """Product of (m, k) and (k, n)."""
    import halide as hl

    a, b = _image("a", 2), _image("b", 2)
    x, y = hl.Var("x"), hl.Var("y")
    r = hl.RDom([(0, k)], "r")
    product, output = hl.Func("product"), hl.Func("output")
    product[x, y] = 0.0
    product[x, y] += a[r.x, y] * b[x, r.x]
    output[x, y] = product[x, y]
    return Pipeline(output, (n, m), ((a, (k, m)), (b, (n, k))), 2.0 * m * n * k)


def conv2d(height: int, width: int, channels: int, filters: int, kernel: int) -> Pipeline:
    """Convolution with bias and ReLU, channels innermost, of an input that is padded already."""
    import halide as hl

    data, weight, bias = _image("data", 3), _image("weight", 4), _image("bias", 1)
    c, x, y = hl.Var("c"), hl.Var("x"), hl.Var("y")
    r = hl.RDom([(0, channels), (0, kernel), (0, kernel)], "r")
    conv, output = hl.Func("conv"), hl.Func("output")
    conv[c, x, y] = bias[c]
    conv[c, x, y] += weight[c, r.x, r.y, r.z] * data[r.x, x + r.y, y + r.z]
    output[c, x, y] = hl.max(conv[c, x, y], 0.0)
    shapes = (channels, width + kernel - 1, height + kernel - 1), (filters, channels, kernel, kernel), (filters,)
    return Pipeline(
        output,
        (filters, width, height),
        tuple(zip((data, weight, bias), shapes, strict=True)),
        2.0 * height * width * channels * filters * kernel**2,
    )


def depthwise_conv2d(height: int, width: int, channels: int, kernel: int) -> Pipeline:
    """Depthwise convolution with bias and ReLU, channels innermost, of an input that is padded already."""
    import halide as hl

    data, weight, bias = _image("data", 3), _image("weight", 3), _image("bias", 1)
    c, x, y = hl.Var("c"), hl.Var("x"), hl.Var("y")
    r = hl.RDom([(0, kernel), (0, kernel)], "r")
    conv, output = hl.Func("conv"), hl.Func("output")
    conv[c, x, y] = bias[c]
    conv[c, x, y] += weight[c, r.x, r.y] * data[c, x + r.x, y + r.y]
    output[c, x, y] = hl.max(conv[c, x, y], 0.0)
    shapes = (channels, width + kernel - 1, height + kernel - 1), (channels, kernel, kernel), (channels,)
    return Pipeline(
        output,
        (channels, width, height),
        tuple(zip((data, weight, bias), shapes, strict=True)),
        2.0 * height * width * channels * kernel**2,
    )


def blur(height: int, width: int) -> Pipeline:
    """Mean over 3 x 3 pixels, in two passes, edges repeated."""
    import halide as hl

    image = _image("image", 2)
    x, y = hl.Var("x"), hl.Var("y")
    clamped = hl.BoundaryConditions.repeat_edge(image, [(0, width), (0, height)])
    rows, output = hl.Func("rows"), hl.Func("output")
    rows[x, y] = (clamped[x - 1, y] + clamped[x, y] + clamped[x + 1, y]) / 3.0
    output[x, y] = (rows[x, y - 1] + rows[x, y] + rows[x, y + 1]) / 3.0
    return Pipeline(output, (width, height), ((image, (width, height)),), 6.0 * height * width)


def unsharp(height: int, width: int) -> Pipeline:
    """Unsharp mask of an RGB image: its grey is blurred by a 7 x 7 Gaussian, edges repeated."""
    import halide as hl

    image = _image("image", 3)
    x, y, c = hl.Var("x"), hl.Var("y"), hl.Var("c")
    weights = [math.exp(-(d**2) / (2 * 1.5**2)) / (math.sqrt(2 * math.pi) * 1.5) for d in range(-3, 4)]
    kernel, (red, green, blue) = [hl.f32(w) for w in weights], [hl.f32(w) for w in (0.299, 0.587, 0.114)]
    clamped = hl.BoundaryConditions.repeat_edge(image, [(0, width), (0, height), (0, 3)])
    grey, down, soft, ratio, output = (hl.Func(n) for n in ("grey", "down", "soft", "ratio", "output"))
    grey[x, y] = red * clamped[x, y, 0] + green * clamped[x, y, 1] + blue * clamped[x, y, 2]
    down[x, y] = sum((kernel[d + 3] * grey[x, y + d] for d in range(-2, 4)), kernel[0] * grey[x, y - 3])
    soft[x, y] = sum((kernel[d + 3] * down[x + d, y] for d in range(-2, 4)), kernel[0] * down[x - 3, y])
    ratio[x, y] = (2.0 * grey[x, y] - soft[x, y]) / (grey[x, y] + hl.f32(0.01))
    output[x, y, c] = ratio[x, y] * clamped[x, y, c]
    return Pipeline(output, (width, height, 3), ((image, (width, height, 3)),), 39.0 * height * width)


def resize(height: int, width: int, factor: int) -> Pipeline:
    """Bilinear enlargement of a one-channel image to (height, width), by a whole factor, edges repeated."""
    import halide as hl

    image = _image("image", 2)
    x, y = hl.Var("x"), hl.Var("y")
    small = -(-width // factor), -(-height // factor)
    clamped = hl.BoundaryConditions.repeat_edge(image, [(0, small[0]), (0, small[1])])
    columns, output = hl.Func("columns"), hl.Func("output")
    down, across = hl.f32(y % factor) / float(factor), hl.f32(x % factor) / float(factor)
    columns[x, y] = clamped[x, y // factor] * (1.0 - down) + clamped[x, y // factor + 1] * down
    output[x, y] = columns[x // factor, y] * (1.0 - across) + columns[x // factor + 1, y] * across
    return Pipeline(output, (width, height), ((image, small),), 8.0 * height * width)


def softmax(rows: int, columns: int) -> Pipeline:
    """Softmax over each row."""
    import halide as hl

    scores = _image("scores", 2)
    x, y = hl.Var("x"), hl.Var("y")
    r = hl.RDom([(0, columns)], "r")
    largest, power, total, output = (hl.Func(n) for n in ("largest", "power", "total", "output"))
    largest[y] = scores[0, y]
    largest[y] = hl.max(largest[y], scores[r.x, y])
    power[x, y] = hl.exp(scores[x, y] - largest[y])
    total[y] = 0.0
    total[y] += power[r.x, y]
    output[x, y] = power[x, y] / total[y]
    return Pipeline(output, (columns, rows), ((scores, (columns, rows)),), 5.0 * rows * columns)


def layer_norm(rows: int, columns: int) -> Pipeline:
    """Layer normalisation over each row, with scale and shift."""
    import halide as hl

    data, scale, shift = _image("data", 2), _image("scale", 1), _image("shift", 1)
    x, y = hl.Var("x"), hl.Var("y")
    r = hl.RDom([(0, columns)], "r")
    total, squares, inverse, output = (hl.Func(n) for n in ("total", "squares", "inverse", "output"))
    total[y] = 0.0
    total[y] += data[r.x, y]
    squares[y] = 0.0
    squares[y] += data[r.x, y] * data[r.x, y]
    mean = total[y] / float(columns)
    inverse[y] = 1.0 / hl.sqrt(squares[y] / float(columns) - mean * mean + hl.f32(1e-5))
    output[x, y] = (data[x, y] - mean) * inverse[y] * scale[x] + shift[x]
    shapes = (columns, rows), (columns,), (columns,)
    return Pipeline(
        output, (columns, rows), tuple(zip((data, scale, shift), shapes, strict=True)), 8.0 * rows * columns
    )


def histogram_equalisation(height: int, width: int) -> Pipeline:
    """Grey levels of an 8-bit image spread so that each is as frequent as the others."""
    import halide as hl

    image = _image("image", 2, "uint8")
    x, y, i = hl.Var("x"), hl.Var("y"), hl.Var("i")
    pixels = hl.RDom([(0, width), (0, height)], "pixels")
    levels = hl.RDom([(1, 255)], "levels")
    count, below, output = hl.Func("count"), hl.Func("below"), hl.Func("output")
    count[i] = hl.u32(0)
    count[hl.i32(image[pixels.x, pixels.y])] += hl.u32(1)
    below[i] = count[i]
    below[levels.x] += below[levels.x - 1]
    share = hl.f32(below[hl.clamp(hl.i32(image[x, y]), 0, 255)]) / float(height * width)
    output[x, y] = hl.u8(hl.clamp(share * 255.0, 0.0, 255.0))
    return Pipeline(output, (width, height), ((image, (width, height)),), 4.0 * height * width)


PIPELINES: dict[str, Callable[..., Pipeline]] = {
    function.__name__: function
    for function in (
        matmul, conv2d, depthwise_conv2d, blur, unsharp, resize, softmax, layer_norm, histogram_equalisation,
    )
}  # fmt: skip
