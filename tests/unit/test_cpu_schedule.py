"""The default schedule for CPUs computes what the kernel as written does, on every kind of kernel, and is fast."""

import numpy as np
import pytest

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

import tvm
import tvm_ffi
from tvm import IRModule, te, tirx, topi

from lorien.dialects.metaschedule.compile import warm_up
from lorien.dialects.metaschedule.cpu_contraction import tiles_of
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.vectors import AVX, AVX512, NEON
from lorien.dialects.metaschedule.workload import candidate_of, native_target, replay, tvm_target
from lorien.target import Target

TARGET = native_target()
OTHERS = ("llvm -mcpu=haswell -num-cores=4", "llvm -mcpu=skylake-avx512 -num-cores=8", "llvm -num-cores=4")
ARM = "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1 -num-cores=4"


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "1")  # put back what warm_up sets in this process
    warm_up(TARGET)


def tensor(*shape, dtype="float32", name="x"):
    return te.placeholder(shape, dtype, name=name)


def kernel(*tensors):
    function = te.create_prim_func(list(tensors)).with_attr({"global_symbol": "main", "tirx.noalias": True})
    return IRModule({"main": function})


def blocked(inputs, outputs, size, filter_size, stride=1, block=16, batch=1, first=None):
    block_in = first or block
    data = tensor(batch, inputs // block_in, size, size, block_in)
    weight = tensor(outputs // block, inputs // block_in, filter_size, filter_size, block_in, block, name="w")
    bias = tensor(1, outputs // block, 1, 1, block, name="b")
    layouts = f"NCHW{block_in}c", f"NCHW{block}c"
    with tvm_target(TARGET):
        product = topi.nn.conv2d_NCHWc(data, weight, stride, filter_size // 2, 1, *layouts, "float32")
    summed = topi.add(product, bias)
    residual = tensor(*summed.shape, name="r")
    return kernel(data, weight, bias, residual, topi.nn.relu(topi.add(summed, residual)))


def depthwise(channels, size, filter_size, stride=1, block=16):
    data, weight = (
        tensor(1, channels // block, size, size, block),
        tensor(channels // block, filter_size, filter_size, block, name="w"),
    )
    margin = filter_size // 2
    padded = topi.nn.pad(data, (0, 0, margin, margin, 0), (0, 0, margin, margin, 0), name="data_pad")
    kh, kw = te.reduce_axis((0, filter_size)), te.reduce_axis((0, filter_size))
    out = (size + 2 * margin - filter_size) // stride + 1
    product = te.compute(
        (1, channels // block, out, out, block),
        lambda n, c, h, w, i: te.sum(
            padded[n, c, h * stride + kh, w * stride + kw, i] * weight[c, kh, kw, i], [kh, kw]
        ),
    )
    return kernel(data, weight, topi.nn.relu(product))


def plain(inputs, outputs, size, filter_size, stride=1, groups=1):
    data, weight = tensor(1, inputs, size, size), tensor(outputs, inputs // groups, filter_size, filter_size, name="w")
    if groups == 1:
        product = topi.nn.conv2d_nchw(data, weight, stride, filter_size // 2, 1)
    else:
        product = topi.nn.group_conv2d_nchw(data, weight, stride, filter_size // 2, 1, groups)
    return kernel(data, weight, topi.nn.relu(product))


def matmul(rows, steps, columns, batch=()):
    a, b = tensor(*batch, rows, steps, name="a"), tensor(*batch, steps, columns, name="b")
    bias = tensor(columns, name="bias")
    product = topi.nn.batch_matmul(a, b, transpose_b=False) if batch else topi.matmul(a, b)
    return kernel(a, b, bias, topi.add(product, bias))


def gelu(rows, steps, columns):
    a, b, bias = tensor(rows, steps, name="a"), tensor(steps, columns, name="b"), tensor(columns, name="bias")
    x = topi.add(topi.matmul(a, b), bias)
    return kernel(a, b, bias, topi.multiply(x, topi.add(topi.erf(x), tirx.const(1.0, "float32"))))


def packed(rows, steps, columns, block=16):
    a, b = tensor(rows, steps, name="a"), tensor(columns // block, steps, block, name="b")
    k = te.reduce_axis((0, steps))
    return kernel(a, b, te.compute((rows, columns), lambda m, n: te.sum(a[m, k] * b[n // block, k, n % block], k)))


def dense(rows, steps, columns):
    a, b, bias = tensor(rows, steps, name="a"), tensor(columns, steps, name="b"), tensor(columns, name="bias")
    return kernel(a, b, bias, topi.add(topi.nn.dense(a, b), bias))


def pool(shape, mode, layout, stride=2, padding=1):
    x = tensor(*shape)
    return kernel(x, topi.nn.pool2d(x, [3, 3], [stride] * 2, [1, 1], [padding] * 4, mode, layout=layout))


def mean(*shape):
    x = tensor(*shape)
    return kernel(x, topi.divide(topi.sum(x, [2, 3], keepdims=True), tirx.const(float(shape[2] * shape[3]), "float32")))


def layer_norm(rows, columns):
    x, scale, shift = tensor(rows, columns), tensor(columns, name="scale"), tensor(columns, name="shift")
    return kernel(x, scale, shift, topi.nn.layer_norm(x, scale, shift, [1]))


def of(compute, *shape):
    x = tensor(*shape)
    return kernel(x, compute(x))


def concatenation():
    a, b = tensor(1, 2, 7, 7, 16, name="a"), tensor(1, 3, 7, 7, 16, name="b")
    return kernel(a, b, topi.nn.relu(topi.concatenate([a, b], 1)))


def two_outputs():
    x = tensor(5, 6)
    return kernel(x, topi.exp(x), topi.nn.relu(x))


KERNELS = {
    "blocked 3x3": lambda: blocked(32, 32, 13, 3),
    "blocked 3x3, stride 2": lambda: blocked(16, 32, 27, 3, 2),
    "blocked 3x3, prime extent": lambda: blocked(16, 32, 37, 3),
    "blocked 1x1": lambda: blocked(32, 48, 7, 1),
    "blocked by 8": lambda: blocked(24, 24, 7, 3, block=8),
    "blocked, a batch": lambda: blocked(16, 16, 13, 3, batch=2),
    "blocked, first": lambda: blocked(3, 32, 27, 7, 2, first=3),
    "depthwise": lambda: depthwise(32, 13, 3),
    "depthwise, stride 2": lambda: depthwise(32, 27, 3, 2),
    "depthwise by 8": lambda: depthwise(24, 7, 5, block=8),
    "matmul": lambda: matmul(13, 40, 48),
    "matmul of odd extents": lambda: matmul(7, 33, 50),
    "matmul of prime extents": lambda: matmul(37, 29, 31),
    "matmul, wide": lambda: matmul(40, 64, 512),
    "matmul of one row": lambda: matmul(1, 64, 1000),
    "batched matmul": lambda: matmul(13, 24, 32, batch=(4,)),
    "matmul and gelu": lambda: gelu(16, 24, 32),
    "packed weights": lambda: packed(24, 40, 64),
    "dense": lambda: dense(24, 32, 48),
    "dense of one row": lambda: dense(1, 64, 30),
    "max pool": lambda: pool((1, 16, 27, 27), "max", "NCHW"),
    "blocked max pool": lambda: pool((1, 2, 27, 27, 16), "max", "NCHW16c", padding=0),
    "blocked average pool": lambda: pool((1, 2, 13, 13, 16), "avg", "NCHW16c", stride=1),
    "mean": lambda: mean(1, 16, 7, 7),
    "blocked mean": lambda: mean(1, 3, 7, 7, 16),
    "softmax": lambda: of(topi.nn.softmax, 2, 5, 32),
    "softmax of odd rows": lambda: of(topi.nn.softmax, 4, 7, 13),
    "softmax of one row": lambda: of(topi.nn.softmax, 1, 1000),
    "softmax along another axis": lambda: of(lambda x: topi.nn.softmax(x, axis=1), 2, 24, 5, 5),
    "layer norm": lambda: layer_norm(5, 48),
    "layer norm of odd rows": lambda: layer_norm(7, 13),
    "relu": lambda: of(topi.nn.relu, 1, 3, 13, 7),
    "concatenation": concatenation,
    "transposition": lambda: of(lambda x: topi.transpose(x, [0, 1, 3, 2]), 2, 3, 5, 20),
    "to blocks": lambda: of(lambda x: topi.layout_transform(x, "NCHW", "NCHW16c"), 1, 32, 7, 7),
    "from blocks": lambda: of(lambda x: topi.layout_transform(x, "NCHW16c", "NCHW"), 1, 2, 7, 7, 16),
    "pad": lambda: of(lambda x: topi.nn.pad(x, (0, 0, 1, 1, 0), (0, 0, 1, 1, 0)), 1, 2, 13, 13, 16),
    "resize": lambda: of(lambda x: topi.image.resize2d(x, [0.0] * 4, (14, 14), method="linear"), 1, 4, 7, 7),
    "plain 3x3": lambda: plain(8, 12, 13, 3),
    "plain 3x3, stride 2": lambda: plain(8, 12, 27, 3, 2),
    "plain 1x1": lambda: plain(16, 24, 7, 1),
    "plain, groups": lambda: plain(16, 32, 13, 3, groups=4),
    "plain depthwise": lambda: plain(16, 16, 13, 3, groups=16),
    "sum of columns": lambda: of(lambda x: topi.sum(x, axis=0), 40, 33),
    "argmax": lambda: of(lambda x: topi.argmax(x, axis=1), 40, 33),
    "two outputs": two_outputs,
}


def run(module, arguments):
    tensors = [tvm.runtime.tensor(value, tvm.cpu()) for value in arguments]
    tvm.tirx.build(module, tvm_target(TARGET))["main"](*tensors)
    return [value.numpy() for value in tensors]


def random_arguments(module):
    rng = np.random.default_rng(0)
    shapes = [([int(extent) for extent in p.ty.shape], str(p.ty.dtype)) for p in module["main"].params]
    return [rng.standard_normal(shape).astype(dtype) for shape, dtype in shapes]


@pytest.mark.parametrize("name", KERNELS)
def test_the_result_is_that_of_the_kernel_as_written(name):
    module = KERNELS[name]()
    schedule = cpu_schedule(module, TARGET)
    assert not tvm_ffi.structural_equal(schedule.mod, module)
    assert tvm_ffi.structural_equal(replay(module, candidate_of(schedule).schedule).mod, schedule.mod)
    arguments = random_arguments(module)
    for found, expected in zip(run(schedule.mod, arguments), run(module, arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [*OTHERS, ARM])
def test_every_cpu_has_a_schedule_of_every_kernel(target):
    for name, make in KERNELS.items():
        module = make()
        schedule = cpu_schedule(module, Target.parse(target))
        replayed = replay(module, candidate_of(schedule).schedule).mod
        assert tvm_ffi.structural_equal(replayed, schedule.mod), name


def scatter():
    x, indices = tensor(4, 20), tensor(1, 2, dtype="int32", name="i")
    updates = tensor(2, 20, name="u")
    return kernel(x, indices, updates, topi.scatter_nd(x, indices, updates, "update"))


def cumulative_sum():
    x = tensor(4, 20)
    return kernel(x, topi.cumsum(x, axis=1))


def open_rows():
    rows = tirx.Var("rows", "int64")
    x = te.placeholder((rows, 16), name="x")
    return kernel(x, topi.nn.relu(x))


@pytest.mark.parametrize("make", [scatter, cumulative_sum, open_rows])
def test_a_kernel_that_no_rule_knows_is_left_as_it_is(make):
    module = make()
    assert tvm_ffi.structural_equal(cpu_schedule(module, TARGET).mod, module)


def test_only_cpus_are_scheduled():
    module = matmul(16, 16, 16)
    assert tvm_ffi.structural_equal(cpu_schedule(module, Target.parse("cuda -arch=sm_86")).mod, module)


@pytest.mark.parametrize("heavy", [lambda: blocked(64, 64, 56, 3), lambda: matmul(128, 768, 768)])
def test_a_heavy_kernel_is_parallel_and_its_sums_are_held_in_registers(heavy):
    script = cpu_schedule(heavy(), Target.parse("llvm -mcpu=skylake-avx512 -num-cores=4")).mod.script()
    assert script.count("T.parallel(") == 1
    assert 'scope="local"' in script
    assert "T.vectorized(16)" in script


def test_a_light_kernel_is_not_parallel():
    assert "T.parallel(" not in cpu_schedule(blocked(16, 16, 7, 1), TARGET).mod.script()


@pytest.mark.parametrize("vectors", [AVX512, AVX, NEON])
@pytest.mark.parametrize(("rows", "columns"), [(7, 8), (13, 4), (27, 1), (56, 4), (128, 48), (149, 2), (1, 1)])
def test_a_tile_fits_the_registers(vectors, rows, columns):
    tile = tiles_of(rows, 1, columns, vectors, vectors.registers)[0]
    assert tile.rows * tile.columns + tile.columns < vectors.registers
    assert columns % tile.columns == 0
    assert tile.rows <= rows


def test_a_tile_keeps_the_multipliers_busy():
    tile = tiles_of(56, 56, 4, AVX512, AVX512.registers)[0]
    assert tile.rows * tile.columns >= 16
    assert tile.cycles == tile.rows * tile.columns / 2
