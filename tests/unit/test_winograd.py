"""Winograd's computation gives what the direct one gives, on every CPU's blocks, under its default schedules."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import te, topi

from lorien.dialects.metaschedule import winograd
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.workload import candidate_of, replay, tvm_target
from lorien.target import Target

HERE = Target.parse("llvm -num-cores=2")
OTHERS = ["llvm -mcpu=skylake-avx512 -num-cores=4", "llvm -mcpu=znver3 -num-cores=2"]


def kernel(*tensors):
    return tvm.IRModule({"main": te.create_prim_func(tensors).with_attr("global_symbol", "main")})


def run(module, *inputs):
    """The output of a kernel under its default schedule, whose trace must replay."""
    schedule = cpu_schedule(module, HERE)
    assert not tvm_ffi.structural_equal(schedule.mod, module)
    assert tvm_ffi.structural_equal(replay(module, candidate_of(schedule).schedule).mod, schedule.mod)
    shape = [int(extent) for extent in module["main"].params[-1].ty.shape]
    tensors = [tvm.runtime.tensor(value) for value in (*inputs, np.full(shape, np.nan, np.float32))]
    tvm.tirx.build(schedule.mod, tvm_target(HERE))["main"](*tensors)
    return tensors[-1].numpy()


def direct(data, weight, padding):
    """The convolution of (n, c, h, w) in double precision."""
    top, left, bottom, right = padding
    data = np.pad(data.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = (extent - winograd.WINDOW + 1 for extent in data.shape[2:])
    parts = (
        np.einsum("oc,ncyx->noyx", weight[:, :, v, u].astype(np.float64), data[:, :, v : v + height, u : u + width])
        for v in range(winograd.WINDOW)
        for u in range(winograd.WINDOW)
    )
    return sum(parts)


def blocks_of(data, block):
    n, c, h, w = data.shape
    return np.ascontiguousarray(data.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize(
    ("batch", "height", "width", "padding"),
    [(1, 13, 13, (1, 1, 1, 1)), (2, 8, 11, (0, 0, 0, 0)), (1, 3, 5, (1, 0, 2, 1)), (1, 56, 57, (1, 1, 1, 1))],
)
def test_three_kernels_compute_a_convolution(side, batch, height, width, padding):
    inside, channels, block, filters = 8, 24, 16, 32
    rng = np.random.default_rng(0)
    data = rng.standard_normal((batch, channels, height, width)).astype(np.float32)
    weight = rng.standard_normal((filters, channels, 3, 3)).astype(np.float32)
    expected = direct(data, weight, padding)
    extents = (batch, *expected.shape[2:])

    x = te.placeholder((batch, channels // inside, height, width, inside), name="x")
    tiles = winograd.to_tiles(x, side, padding, extents)
    t = te.placeholder(tiles.shape, name="t")
    w = te.placeholder(winograd.packed_shape(weight.shape, side, block), name="w")
    made = winograd.products(t, w)
    m = te.placeholder(made.shape, name="m")
    found = run(kernel(x, tiles), blocks_of(data, inside))
    found = run(kernel(t, w, made), found, winograd.pack_weight(weight, side, block))
    found = run(kernel(m, winograd.from_tiles(m, side, extents)), found)
    error = np.abs(found - blocks_of(expected, block)).max() / np.abs(expected).max()
    assert error < winograd.ERROR


def test_steps_that_follow_are_computed_with_the_tile():
    m = te.placeholder((6, 6, 2, 16, 16), name="m")
    bias, rest = te.placeholder((1, 2, 1, 1, 16), name="b"), te.placeholder((1, 2, 14, 13, 16), name="r")
    out = topi.nn.relu(topi.add(topi.add(winograd.from_tiles(m, 4, (1, 14, 13)), bias), rest))
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(tuple(map(int, tensor.shape))).astype(np.float32) for tensor in (m, bias, rest)]
    alone = run(kernel(m, winograd.from_tiles(m, 4, (1, 14, 13))), values[0])
    np.testing.assert_allclose(
        run(kernel(m, bias, rest, out), *values), np.maximum(alone + values[1] + values[2], 0), rtol=1e-5, atol=1e-5
    )
    script = cpu_schedule(kernel(m, bias, rest, out), HERE).mod.script()
    assert script.count('scope="local"') == 2
    assert "winograd_from_tiles" not in script


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("extent", [6, 13, 56])
def test_a_transformation_is_written_out_in_vectors_and_is_parallel_where_it_is_large(target, extent):
    x = te.placeholder((1, 8, extent, extent, 8), name="x")
    module = kernel(x, winograd.to_tiles(x, 4, (1, 1, 1, 1), (1, extent, extent)))
    schedule = cpu_schedule(module, Target.parse(target))
    assert tvm_ffi.structural_equal(replay(module, candidate_of(schedule).schedule).mod, schedule.mod)
    script = schedule.mod.script()
    assert "T.vectorized(8)" in script
    assert script.count("T.unroll(6)") == 6
    assert ("T.parallel(" in script) == (extent > 6)


@pytest.mark.parametrize(
    ("channels", "extents", "by_lanes"),
    [
        (64, (1, 56, 56), {4: 4, 8: 4, 16: 4}),
        # Of 256 channels the weights for tiles of 4x4 are 9 MB: fast vectors would wait for them.
        (256, (1, 14, 14), {4: 4, 8: 4, 16: 2}),
        (512, (1, 7, 7), {4: 4, 8: 2, 16: None}),
        (512, (8, 7, 7), {4: 4, 8: 4, 16: 4}),
        (64, (1, 4, 4), {4: None, 8: None, 16: None}),
    ],
)
def test_tiles_are_as_large_as_the_weights_allow(channels, extents, by_lanes):
    shape = (channels, channels, 3, 3)
    found = {lanes: winograd.tile_side(shape, extents, (1, 1), (1, 1), 1, lanes) for lanes in by_lanes}
    assert found == by_lanes


@pytest.mark.parametrize(
    ("weight", "strides", "dilation", "groups"),
    [
        ((64, 64, 1, 1), (1, 1), (1, 1), 1),
        ((64, 64, 5, 5), (1, 1), (1, 1), 1),
        ((64, 64, 3, 3), (2, 2), (1, 1), 1),
        ((64, 64, 3, 3), (1, 1), (2, 2), 1),
        ((64, 1, 3, 3), (1, 1), (1, 1), 64),
    ],
)
def test_other_convolutions_are_computed_directly(weight, strides, dilation, groups):
    assert winograd.tile_side(weight, (1, 56, 56), strides, dilation, groups, 8) is None
