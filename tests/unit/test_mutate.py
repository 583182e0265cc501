"""Rules, and kernels made again at other sizes: what comes out is what TVM makes of the operator at those sizes."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tvm import relax, te
from tvm.s_tir.meta_schedule.relax_integration import extract_tasks
from tvm.script import tirx as T  # noqa: N812  # as TVMScript is written

from lorien.dialects.metaschedule import winograd
from lorien.dialects.metaschedule.extract import lower
from lorien.dialects.metaschedule.mutate import recognize
from lorien.dialects.metaschedule.workload import module_of, tvm_target, workload_of
from lorien.errors import BadInput, UnsupportedOperation
from lorien.mutate import Axes, load_rules, mutate
from lorien.records import Workload
from lorien.target import Target

Build = Callable[..., Any]
Shape = tuple[int, ...]
TARGET = Target("llvm")
WIDE = Target.parse("llvm -mcpu=x86-64-v3 -num-cores=1")
"""Blocks of 8 and, where 8 does not divide the channels, of 4."""


def kernel(build: Build, *shapes: Shape, dtype: str = "float32", name: str = "kernel") -> Workload:
    """The one kernel TVM makes of an expression over inputs of these shapes."""
    inputs = [relax.Var(f"p{index}", relax.TensorType(shape, dtype)) for index, shape in enumerate(shapes)]
    return kernel_over(inputs, build, name)


def kernel_in_model(build: Build, *shapes: Shape, is_first: bool = False) -> Workload:
    """The kernel that an expression becomes inside of a model whose channels are put in blocks.

    Each picture is what a convolution makes of one channel, so that it is in blocks where they fit; of the first
    kernel of a model the data is an input. Weights and biases are constants.
    """
    rng = np.random.default_rng(0)
    pictures = [i for i, shape in enumerate(shapes) if i == 0 or (len(shape) == 4 and i > 1 and shape[2:] != (1, 1))]
    convolved = [i for i in pictures if len(shapes[i]) == 4 and not (is_first and i == 0)]
    read = {i: (shapes[i][0], 1, *shapes[i][2:]) if i in convolved else shapes[i] for i in pictures}
    inputs = {i: relax.Var(f"p{i}", relax.TensorType(shape, "float32")) for i, shape in read.items()}

    def constant(*shape: int) -> Any:
        return relax.const(rng.random(shape, dtype=np.float32))

    builder = relax.BlockBuilder()
    with builder.function("main", list(inputs.values())):
        with builder.dataflow():
            values = {i: inputs[i] if i in inputs else constant(*shape) for i, shape in enumerate(shapes)}
            for i in convolved:
                made = builder.emit(relax.op.nn.conv2d(values[i], constant(shapes[i][1], 1, 1, 1)))
                values[i] = builder.emit(relax.op.negative(made))
            built = builder.emit(build(builder, *values.values()))
            if len(built.ty.shape) == 4:  # a concatenation counts the channels: none are added, as to a head
                built = builder.emit(relax.op.concat([built, built], axis=1))
            result = builder.emit_output(relax.op.permute_dims(built))
        builder.emit_func_output(result)
    tasks = extract_tasks(lower(builder.get(), WIDE, "auto"), tvm_target(WIDE), params={})
    (task,) = [task for task in tasks if not re.search("negative|trans|reshape|concat", task.task_name)]
    return workload_of(task.dispatched[0], "kernel")


def kernel_over(inputs: list[Any], build: Build, name: str = "kernel") -> Workload:
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(build(builder, *inputs))
        builder.emit_func_output(result)
    (task,) = extract_tasks(lower(builder.get(), TARGET, "plain"), tvm.target.Target("llvm"), params={})
    return workload_of(task.dispatched[0], name)


@T.prim_func(s_tir=True)
def without_blocks(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):  # type: ignore[no-untyped-def]
    for i in range(4):
        y[i] = x[i] + T.float32(1)


def conv(**options: Any) -> Build:
    return lambda b, x, w, *_: relax.op.nn.conv2d(x, w, **options)


def conv_depthwise(b: Any, x: Any, w: Any) -> Any:
    return relax.op.nn.conv2d(x, w, groups=int(x.ty.shape[1]), padding=1)


def conv_bias_relu(b: Any, x: Any, w: Any, bias: Any) -> Any:
    return relax.op.nn.relu(b.emit(relax.op.add(b.emit(relax.op.nn.conv2d(x, w, padding=2)), bias)))


def conv_normalized(b: Any, x: Any, w: Any, mean: Any, deviation: Any, scale: Any, bias: Any) -> Any:
    value = b.emit(relax.op.nn.conv2d(x, w))
    for op, operand in (("subtract", mean), ("divide", deviation), ("multiply", scale), ("add", bias)):
        value = b.emit(getattr(relax.op, op)(value, operand))
    return relax.op.clip(value, 0, 6)


def conv_residual(b: Any, x: Any, w: Any, other: Any) -> Any:
    return relax.op.nn.relu(b.emit(relax.op.add(b.emit(relax.op.nn.conv2d(x, w, padding=2)), other)))


def conv_swish(b: Any, x: Any, w: Any) -> Any:
    value = b.emit(relax.op.nn.conv2d(x, w))
    return relax.op.multiply(value, b.emit(relax.op.sigmoid(value)))


def dense_scaled(b: Any, x: Any, w: Any, bias: Any) -> Any:
    value = b.emit(relax.op.add(b.emit(relax.op.matmul(x, w)), bias))
    return relax.op.multiply(value, relax.const(0.125, x.ty.dtype))


CASES: dict[str, tuple[Build, list[tuple[int, ...]], dict[str, int | str], list[tuple[int, ...]]]] = {
    "conv": (
        conv(strides=[2, 1], padding=[1, 2, 0, 1], dilation=[1, 2]),
        [(1, 8, 14, 15), (16, 8, 3, 5)],
        {"batch": 4, "in_channels": 6, "out_channels": 20, "height": 28, "width": 9},
        [(4, 6, 28, 9), (20, 6, 3, 5)],
    ),
    "conv1d": (
        lambda b, x, w: relax.op.nn.conv1d(x, w, padding=1),
        [(1, 8, 14), (16, 8, 3)],
        {"batch": 2, "width": 28},
        [(2, 8, 28), (16, 8, 3)],
    ),
    "conv3d": (
        lambda b, x, w: relax.op.nn.conv3d(x, w, strides=[1, 2, 2]),
        [(1, 4, 6, 8, 8), (8, 4, 3, 3, 3)],
        {"depth": 9, "height": 16},
        [(1, 4, 9, 16, 8), (8, 4, 3, 3, 3)],
    ),
    "bias, relu": (
        conv_bias_relu,
        [(1, 8, 7, 7), (16, 8, 5, 5), (1, 16, 1, 1)],
        {"batch": 4, "out_channels": 24},
        [(4, 8, 7, 7), (24, 8, 5, 5), (1, 24, 1, 1)],
    ),
    "bias of one pixel": (
        conv_bias_relu,
        [(1, 8, 1, 1), (16, 8, 5, 5), (1, 16, 1, 1)],
        {"batch": 4, "height": 5, "width": 5},
        [(4, 8, 5, 5), (16, 8, 5, 5), (1, 16, 1, 1)],
    ),
    "batch norm, clip": (
        conv_normalized,
        [(1, 8, 7, 7), (16, 8, 1, 1), *[(1, 16, 1, 1)] * 4],
        {"batch": 2, "out_channels": 8},
        [(2, 8, 7, 7), (8, 8, 1, 1), *[(1, 8, 1, 1)] * 4],
    ),
    "residual": (
        conv_residual,
        [(1, 8, 7, 7), (16, 8, 5, 5), (1, 16, 7, 7)],
        {"batch": 2, "height": 14, "out_channels": 8},
        [(2, 8, 14, 7), (8, 8, 5, 5), (2, 8, 14, 7)],
    ),
    "gate of a larger activation": (
        lambda b, x, w, bias, other: relax.op.multiply(other, b.emit(relax.op.add(b.emit(conv()(b, x, w)), bias))),
        [(1, 8, 1, 1), (16, 8, 1, 1), (1, 16, 1, 1), (1, 16, 6, 9)],
        {"batch": 2, "out_channels": 12},
        [(2, 8, 1, 1), (12, 8, 1, 1), (1, 12, 1, 1), (2, 12, 6, 9)],
    ),
    "leaky relu": (
        lambda b, x, w: relax.op.nn.leakyrelu(b.emit(relax.op.nn.conv2d(x, w)), 0.1),
        [(1, 8, 7, 7), (16, 8, 1, 1)],
        {"batch": 2},
        [(2, 8, 7, 7), (16, 8, 1, 1)],
    ),
    "swish": (conv_swish, [(1, 8, 7, 7), (16, 8, 1, 1)], {"batch": 2}, [(2, 8, 7, 7), (16, 8, 1, 1)]),
    "depthwise": (
        conv_depthwise,
        [(1, 8, 7, 7), (8, 1, 3, 3)],
        {"channels": 12, "width": 9},
        [(1, 12, 7, 9), (12, 1, 3, 3)],
    ),
    "groups": (
        conv(groups=4),
        [(1, 8, 7, 7), (16, 2, 3, 3)],
        {"in_channels": 12, "out_channels": 4},
        [(1, 12, 7, 7), (4, 3, 3, 3)],
    ),
    "dense": (
        dense_scaled,
        [(1, 32), (32, 10), (10,)],
        {"batch": 16, "in_channels": 8, "out_channels": 12},
        [(16, 8), (8, 12), (12,)],
    ),
    "dense on tokens": (
        dense_scaled,
        [(1, 7, 32), (32, 10), (10,)],
        {"batch": 3, "length": 9},
        [(3, 9, 32), (32, 10), (10,)],
    ),
    "dense, gelu": (
        lambda b, x, w, bias: relax.op.nn.gelu(b.emit(relax.op.add(b.emit(relax.op.matmul(x, w)), bias))),
        [(1, 7, 32), (32, 10), (10,)],
        {"length": 9},
        [(1, 9, 32), (32, 10), (10,)],
    ),
    "dense, silu": (
        lambda b, x, w: relax.op.nn.silu(b.emit(relax.op.matmul(x, w))),
        [(1, 7, 32), (32, 10)],
        {"length": 9},
        [(1, 9, 32), (32, 10)],
    ),
    "attention": (
        lambda b, x, y: relax.op.matmul(x, y),
        [(2, 4, 7, 16), (2, 4, 16, 7)],
        {"batch": 3, "length": 9, "out_channels": 9},
        [(3, 4, 9, 16), (3, 4, 16, 9)],
    ),
    "max pool": (
        lambda b, x: relax.op.nn.max_pool2d(x, [3, 2], strides=[2, 2], padding=[0, 1, 1, 0]),
        [(1, 8, 12, 12)],
        {"channels": 4, "height": 24},
        [(1, 4, 24, 12)],
    ),
    "average pool": (
        lambda b, x: relax.op.nn.avg_pool2d(x, [3, 3], strides=[2, 2], padding=[1, 1, 1, 1]),
        [(1, 8, 12, 12)],
        {"batch": 2, "width": 24},
        [(2, 8, 12, 24)],
    ),
    "average pool with its padding": (
        lambda b, x: relax.op.nn.avg_pool2d(x, [3, 3], padding=[1, 1, 1, 1], count_include_pad=True),
        [(1, 8, 12, 12)],
        {"batch": 2, "width": 24},
        [(2, 8, 12, 24)],
    ),
}


PACKED_CASES: dict[str, tuple[Build, list[Shape], dict[str, int | str], list[Shape]]] = {
    **{name: case for name, case in CASES.items() if len(case[1][0]) == 4 and name != "attention"},
    "dense": (
        dense_scaled,
        [(1, 32), (32, 24), (24,)],
        {"batch": 16, "in_channels": 8, "out_channels": 12},
        [(16, 8), (8, 12), (12,)],
    ),
    "dense on tokens, gelu": (
        lambda b, x, w, bias: relax.op.nn.gelu(b.emit(relax.op.add(b.emit(relax.op.matmul(x, w)), bias))),
        [(1, 7, 32), (32, 8), (8,)],
        {"batch": 3, "length": 9, "out_channels": 40},
        [(3, 9, 32), (32, 40), (40,)],
    ),
    "dense of columns in no block": (
        dense_scaled,
        [(2, 3, 7, 32), (32, 24), (24,)],
        {"batch": 1, "out_channels": 10},
        [(1, 3, 7, 32), (32, 10), (10,)],
    ),
    "channels in no block": (
        conv_bias_relu,
        [(1, 8, 7, 7), (16, 8, 5, 5), (1, 16, 1, 1)],
        {"in_channels": 6, "out_channels": 10},
        [(1, 6, 7, 7), (10, 6, 5, 5), (1, 10, 1, 1)],
    ),
    "output that leaves its blocks": (
        conv_residual,
        [(1, 16, 7, 7), (16, 16, 5, 5), (1, 16, 7, 7)],
        {"in_channels": 12, "out_channels": 10},
        [(1, 12, 7, 7), (10, 12, 5, 5), (1, 10, 7, 7)],
    ),
    "output that enters blocks": (
        conv_bias_relu,
        [(1, 16, 7, 7), (10, 16, 5, 5), (1, 10, 1, 1)],
        {"out_channels": 24},
        [(1, 16, 7, 7), (24, 16, 5, 5), (1, 24, 1, 1)],
    ),
    "depthwise in a shorter block": (
        lambda b, x, w, bias: relax.op.clip(b.emit(relax.op.add(b.emit(conv_depthwise(b, x, w)), bias)), 0, 6),
        [(1, 16, 9, 9), (16, 1, 3, 3), (1, 16, 1, 1)],
        {"channels": 12, "batch": 2},
        [(2, 12, 9, 9), (12, 1, 3, 3), (1, 12, 1, 1)],
    ),
    "pool in no block": (
        lambda b, x: relax.op.nn.max_pool2d(x, [3, 3], strides=[2, 2], padding=[1, 1, 1, 1]),
        [(1, 8, 12, 12)],
        {"channels": 6},
        [(1, 6, 12, 12)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_at_other_sizes_is_what_tvm_makes_there(case: str) -> None:
    build, shapes, changes, expected = CASES[case]
    operator = recognize(kernel(build, *shapes))
    assert set(changes) <= set(operator.axes)
    assert operator.at({**operator.axes, **changes}, "made").key == kernel(build, *expected).key
    half = operator.at({**operator.axes, "dtype": "float16"}, "half")
    assert half.key == kernel(build, *shapes, dtype="float16").key


@pytest.mark.parametrize(
    ("case", "is_first"),
    [
        *((case, False) for case in PACKED_CASES),
        *((case, True) for case in PACKED_CASES if not re.search("pool|dense|enters", case)),
    ],
)
def test_a_kernel_in_blocks_at_other_sizes_is_what_the_model_has_there(case: str, is_first: bool) -> None:
    build, shapes, changes, expected = PACKED_CASES[case]
    given = kernel_in_model(build, *shapes, is_first=is_first)
    operator = recognize(given)
    made = operator.at({**operator.axes, **changes}, "made")
    assert set(changes) <= set(operator.axes)
    assert made.key != given.key
    assert made.key == kernel_in_model(build, *expected, is_first=is_first).key
    assert given.key != kernel(build, *shapes).key
    with pytest.raises(BadInput, match=r"only float32 has .* blocks .* Fix: extract with --layout plain"):
        operator.at({**operator.axes, "dtype": "float16"}, "half")


def test_a_kernel_that_is_plain_stays_plain() -> None:
    """Nothing in it says that the layout was ``auto``, and other channels would be in blocks."""
    given = kernel_in_model(conv(), (1, 3, 7, 7), (10, 3, 3, 3), is_first=True)
    assert given.key == kernel(conv(), (1, 3, 7, 7), (10, 3, 3, 3)).key
    operator = recognize(given)
    made = operator.at({**operator.axes, "out_channels": 16}, "made")
    assert made.key == kernel(conv(), (1, 3, 7, 7), (16, 3, 3, 3)).key


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_any_convolution(
    data: st.DataObject,
    groups: int,
    size: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> None:
    least = [1 + d * (k - 1) for d, k in zip(dilation, size, strict=True)]

    def draw() -> list[tuple[int, ...]]:
        batch, ins, outs = (data.draw(st.integers(1, 4)) for _ in range(3))
        height, width = (data.draw(st.integers(lowest, 20)) for lowest in least)
        return [(batch, ins * groups, height, width), (outs * groups, ins, *size)]

    build = conv(groups=groups, strides=list(strides), dilation=list(dilation), padding=list(padding))
    first, second = draw(), draw()
    operator = recognize(kernel(build, *first))
    (batch, ins, height, width), (outs, *_) = second
    if "channels" in operator.axes:  # depthwise: one channel each, as many as groups
        ins = outs = first[0][1]
        second = [(batch, ins, height, width), (outs, 1, *size)]
        channels = {"channels": ins}
    else:
        channels = {"in_channels": ins, "out_channels": outs}
    axes = {**channels, "batch": batch, "height": height, "width": width, "dtype": "float32"}
    assert operator.at(axes, "made").key == kernel(build, *second).key


@settings(deadline=None, max_examples=20)
@given(
    data=st.data(),
    groups=st.sampled_from([1, 2, 4, 8]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    is_first=st.booleans(),
)
def test_any_convolution_in_blocks(
    data: st.DataObject,
    groups: int,
    size: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int, int, int],
    is_first: bool,
) -> None:
    """From channels in blocks of 8 to any number of channels: in blocks of 8, of 4, or in none."""
    assume(size != (3, 3) or (*strides, *dilation) != (1, 1, 1, 1) or groups > 1)  # else it may be Winograd's
    least = [1 + d * (k - 1) for d, k in zip(dilation, size, strict=True)]

    def draw(multiple: int) -> tuple[int, ...]:
        channels = [multiple * data.draw(st.integers(1, 24 // multiple)) for _ in range(2)]
        return data.draw(st.integers(1, 3)), *channels, *(data.draw(st.integers(lowest, 12)) for lowest in least)

    def kernel_of(batch: int, ins: int, outs: int, height: int, width: int, groups: int) -> Workload:
        build = conv(groups=groups, strides=list(strides), dilation=list(dilation), padding=list(padding))
        return kernel_in_model(build, (batch, ins, height, width), (outs, ins // groups, *size), is_first=is_first)

    operator = recognize(kernel_of(*draw(8), groups))
    batch, ins, outs, height, width = draw(groups)
    if "channels" in operator.axes:
        groups = outs = ins
        channels = {"channels": ins}
    else:
        channels = {"in_channels": ins, "out_channels": outs}
    axes = {**channels, "batch": batch, "height": height, "width": width, "dtype": "float32"}
    assert operator.at(axes, "made").key == kernel_of(batch, ins, outs, height, width, groups).key


def test_winograds_computation_is_not_mutated_and_nothing_becomes_it() -> None:
    convolution = conv(padding=[1, 1, 1, 1])
    operator = recognize(kernel_in_model(convolution, (1, 16, 5, 5), (16, 16, 3, 3)))
    smaller = kernel_in_model(convolution, (1, 16, 4, 5), (16, 16, 3, 3))
    assert operator.at({**operator.axes, "height": 4}, "made").key == smaller.key
    with pytest.raises(BadInput, match="a model has Winograd's computation there"):
        operator.at({**operator.axes, "height": 56, "width": 56}, "made")
    data = te.placeholder((1, 2, 28, 28, 8), name="x")
    tiles = te.create_prim_func([data, winograd.to_tiles(data, 4, (1, 1, 1, 1), (1, 28, 28))])
    with pytest.raises(
        UnsupportedOperation, match=r"a part of Winograd's .* Fix: mutate the workloads of --layout plain"
    ):
        recognize(workload_of(tvm.IRModule({"main": tiles}), "winograd_to_tiles"))


def test_blocks_are_no_longer_than_in_the_kernel() -> None:
    """Its target, whose vectors may be longer, is not known; and a concatenation may have made a block shorter."""
    operator = recognize(kernel_in_model(conv(), (1, 12, 5, 5), (12, 12, 1, 1)))
    made = operator.at({**operator.axes, "in_channels": 24, "out_channels": 48}, "made")
    assert parameters(made) == [(1, 6, 5, 5, 4), (12, 6, 1, 1, 4, 4), (1, 12, 5, 5, 4)]

    def joined(b: Any, x: Any, w: Any, other: Any) -> Any:
        return relax.op.nn.relu(b.emit(relax.op.concat([b.emit(relax.op.nn.conv2d(x, w)), other], 1)))

    operator = recognize(kernel_in_model(joined, (1, 8, 5, 5), (16, 8, 1, 1), (1, 12, 5, 5)))
    made = operator.at({**operator.axes, "in_channels": 16, "out_channels": 32, "batch": 2}, "made")
    assert parameters(made) == [(2, 2, 5, 5, 8), (8, 2, 1, 1, 8, 4), (2, 8, 5, 5, 4)]


def parameters(workload: Workload) -> list[Shape]:
    return [tuple(int(extent) for extent in buffer.ty.shape) for buffer in module_of(workload)["main"].params]


def test_sizes_without_an_operator() -> None:
    for make, output in ((kernel, "1x16x0x5"), (kernel_in_model, "1x2x0x5x8")):
        operator = recognize(make(conv(), (1, 8, 7, 7), (16, 8, 3, 3)))
        with pytest.raises(BadInput, match=f"does not fit: the output would be {output}"):
            operator.at({**operator.axes, "height": 2}, "made")
        grouped = recognize(make(conv(groups=4), (1, 8, 7, 7), (16, 2, 3, 3)))
        with pytest.raises(BadInput, match="10 and 16 channels do not divide into 4 groups"):
            grouped.at({**grouped.axes, "in_channels": 10}, "made")
        with pytest.raises(BadInput, match="TVM cannot make it"):
            operator.at({**operator.axes, "batch": 10**30}, "made")


def test_kernels_that_are_not_understood() -> None:
    with pytest.raises(UnsupportedOperation, match="T_softmax_maxelem is no convolution"):
        recognize(kernel(lambda b, x: relax.op.nn.softmax(x), (4, 8)))
    with pytest.raises(UnsupportedOperation, match="step"):
        recognize(kernel(lambda b, x, w: relax.op.floor(b.emit(relax.op.matmul(x, w))), (4, 8), (8, 4)))
    indices = relax.Var("indices", relax.TensorType((2,), "int32"))
    table = relax.Var("table", relax.TensorType((8, 4), "float32"))
    with pytest.raises(UnsupportedOperation, match="different dtypes"):
        recognize(kernel_over([indices, table], lambda b, x, w: relax.op.take(w, x, axis=0)))
    with pytest.raises(UnsupportedOperation, match="its kernel has another form"):
        recognize(workload_of(tvm.IRModule({"main": without_blocks}), "loop"))
    with pytest.raises(BadInput, match="holds no TVM module"):
        recognize(dataclasses.replace(kernel(conv(), (1, 8, 7, 7), (16, 8, 3, 3)), definition=None))


RULES = """
version: 1
rules:
  - match: conv
    batch: [1, 4]
    channels: [x1, x0.5, x1/3]
  - batch: 4
    dtype: [float32, float16]
  - spatial: 2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def test_mutate_drops_what_is_no_operator_and_folds_duplicates(tmp_path: Path) -> None:
    given = [
        kernel(conv(), (1, 8, 7, 7), (16, 8, 3, 3), name="conv"),
        kernel(conv(), (4, 8, 7, 7), (16, 8, 3, 3), name="conv_4"),
        kernel(lambda b, x, w: relax.op.matmul(x, w), (1, 8), (8, 4), name="dense"),
        kernel(lambda b, x: relax.op.nn.softmax(x), (4, 8), name="softmax"),
        Workload("autotvm", "other", ["dense", []]),
    ]
    report = mutate(given, load_rules(write(tmp_path, RULES)))
    assert [workload.name for workload in report.workloads] == [
        "conv_in_channels4_out_channels8",
        "conv_batch4_in_channels4_out_channels8",
        "conv_batch4_float16",
        "dense_batch4",
        "dense_batch4_float16",
    ]
    # Batch 1 and 4 of both convolutions at x1 (conv_4 has conv's halves too), and both at batch 4 once more.
    assert report.duplicates == 4 + 2 + 3
    assert report.invalid == [
        "conv at batch 1, in_channels x0.333333, out_channels x0.333333: "
        "in_channels 8 times 0.333333 is 2.66667, no whole number of at least 1",
        "conv at batch 4, in_channels x0.333333, out_channels x0.333333: "
        "in_channels 8 times 0.333333 is 2.66667, no whole number of at least 1",
        "conv at height 2, width 2: the window does not fit: the output would be 1x16x0x0",
        "conv_4 at batch 1, in_channels x0.333333, out_channels x0.333333: "
        "in_channels 8 times 0.333333 is 2.66667, no whole number of at least 1",
        "conv_4 at batch 4, in_channels x0.333333, out_channels x0.333333: "
        "in_channels 8 times 0.333333 is 2.66667, no whole number of at least 1",
        "conv_4 at height 2, width 2: the window does not fit: the output would be 4x16x0x0",
    ]
    assert len(report.unsupported) == 2
    assert report.unsupported[0].startswith("softmax: T_softmax_maxelem is no convolution")
    assert report.unsupported[1].startswith("other: workloads of dialect 'autotvm' cannot be mutated")
    made = report.workloads[0]
    assert (made.networks, made.weight) == ((), 1.0)
    assert made.flop == pytest.approx(given[0].flop / 4)
    assert Workload.from_json(made.to_json()) == made
    module_of(made)
    assert len({workload.key for workload in given + report.workloads}) == len(given) + len(report.workloads)


def test_the_rules_in_the_documentation_are_rules(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/workloads.md").read_text()
    rules = load_rules(write(tmp_path, text.partition("```yaml\n")[2].partition("```")[0]))
    axes: Axes = {"batch": 1, "in_channels": 8, "out_channels": 16, "height": 7, "width": 7, "dtype": "float32"}
    assert [len(list(rule.choices(axes))) for rule in rules] == [12, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nrules: [", "is not YAML"),
        ("\x00\x01", "is not YAML"),
        ("version: 2020-13-45", "is not YAML"),
        ("[" * 9999, "is not YAML"),
        ("- 1", "is no file of rules"),
        ("version: 1", "is no file of rules"),
        ("version: 1\nrules: 3", "is no file of rules"),
        ("version: 2\nrules: [{batch: 1}]", "rules of version 2, this Lorien reads 1"),
        ("version: 1\nrules: []", "holds no rule"),
        ("version: 1\nrules: [batch]", "rule 1: 'batch' is not a mapping"),
        ("version: 1\nrules: [{batch: 2}, {heigth: 2}]", "rule 2: unknown name heigth; known: match, channels"),
        ("version: 1\nrules: [{match: '('}]", r"rule 1: match '\(' is no regular expression"),
        ("version: 1\nrules: [{match: conv}]", "rule 1: no values for any axis"),
        ("version: 1\nrules: [{batch: []}]", "rule 1: no values for batch"),
        ("version: 1\nrules: [{batch: 0}]", "batch 0 is neither an extent"),
        ("version: 1\nrules: [{batch: -4}]", "batch -4 is neither"),
        ("version: 1\nrules: [{batch: 1.5}]", "batch 1.5 is neither"),
        ("version: 1\nrules: [{batch: true}]", "batch True is neither"),
        ("version: 1\nrules: [{batch: x0}]", "batch 'x0' is neither"),
        ("version: 1\nrules: [{batch: 2x}]", "batch '2x' is neither"),
        ("version: 1\nrules: [{batch: {a: 1}}]", "neither"),
        ("version: 1\nrules: [{dtype: int3}]", "dtype 'int3' is none of float16"),
        ("version: 1\nrules: [{dtype: [[float16]]}]", "is none of"),
        ("version: 1\nrules: [{spatial: 7, height: 7}]", "spatial already gives height its values"),
        ("version: 1\nrules: [!!python/object/apply:os.system ['true']]", "is not YAML"),
    ],
)
def test_rules_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInput, match=message) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)


ALIASES = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
MERGES = "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"version: 1\nrules: [{{batch: x{'9' * 400}}}]", "batch 'x999.* is neither an extent .* at most 12 digits"),
        (f"version: 1\nrules: [{{batch: x0.{'0' * 400}1}}]", "batch 'x0.000.* is neither"),
        (f"version: 1\nrules: [{{batch: x1/{'9' * 400}}}]", "batch 'x1/999.* is neither"),
        (f"version: 1\nrules: [{{batch: {'9' * 400}}}]", "batch a number of 1329 bits is neither"),
        (f"version: 1\nrules: [{{batch: {'9' * 5000}}}]", "is not YAML: a number"),
        (f"version: 1\nrules: [{{batch: [[0x{'f' * 9999}]]}}]", r"batch \[a number of 39996 bits\] is neither"),
        ("version: 1\nrules: [{batch: 2147483648}]", "batch 2147483648 is neither .* an extent is at most 2147483647"),
        ("version: 1\nrules: [{batch: [.nan]}]", "batch nan is neither"),
        ("version: 1\nrules: [{batch: [.inf]}]", "batch inf is neither"),
        (f"version: 1\nrules: [{{batch: {':'.join(['1'] * 9999)}}}]", "batch a number of .* bits is neither"),
        ("version: 1\nrules: [{batch: !!int ''}]", "is not YAML: a number, a date or a tagged value"),
        ("version: 1\nrules: [{batch: !!bool maybe}]", "is not YAML: a number, a date or a tagged value"),
        ("version: 1\nrules: [{match: [conv], batch: 2}]", r"match \['conv'\] is no text"),
        ("version: 1\nrules: [{match: null, batch: 2}]", "match None is no text"),
        ("version: 1\nrules: [{match: 'a{99999999999}', batch: 2}]", "is no regular expression"),
        (f"rules: []\nversion:\n- &a0 [x, x]\n{ALIASES}", "has rules of version"),
        ("version: 1\nrules: &r [*r]", "is not a mapping"),
        (f"m0: &m0 {{a: 1}}\n{MERGES}", "is not YAML: << is not allowed in rules"),
        ("version: 1\nrules:\n" + "- batch: 8\n" * 9999, "is larger than 64 KiB"),
    ],
)
def test_rules_that_ask_for_too_much(tmp_path: Path, text: str, message: str) -> None:
    started_s = time.process_time()
    with pytest.raises(BadInput, match=message) as caught:
        load_rules(write(tmp_path, text))
    assert len(str(caught.value)) < 4000
    assert time.process_time() - started_s < 5


def test_sizes_and_combinations_have_limits(tmp_path: Path) -> None:
    given = [kernel(lambda b, x, w: relax.op.matmul(x, w), (1, 8), (8, 4), name="dense")]
    rules = load_rules(write(tmp_path, "version: 1\nrules: [{batch: [x999999999999, x1/999999999999]}]"))
    report = mutate(given, rules)
    assert not report.workloads
    assert "an axis may have 2147483647 entries, and all together 1125899906842624" in report.invalid[0]
    assert "no whole number of at least 1" in report.invalid[1]
    rules = load_rules(write(tmp_path, "version: 1\nrules: [{batch: 2147483647, channels: 2147483647}]"))
    assert "an axis may have" in mutate(given, rules).invalid[0]
    values = list(range(1, 400))
    rules = load_rules(write(tmp_path, f"version: 1\nrules: [{{batch: {values}, channels: {values}}}]"))
    with pytest.raises(BadInput, match="the rules have 159201 combinations for 1 workloads; the limit is 100000"):
        mutate(given, rules)


def test_rules_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load_rules(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80\x81")
    with pytest.raises(BadInput, match=r"binary\.yaml"):
        load_rules(tmp_path / "binary.yaml")
