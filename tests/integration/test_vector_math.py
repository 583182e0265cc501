"""Vector mathematics: errors against float64, limits, no call left, and kernels fused as before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from lorien.dialects.metaschedule import extract, formulas, vector_math
from lorien.dialects.metaschedule.workload import flop_of, native_target, require_tvm, tvm_target
from lorien.target import Target

require_tvm()
import tvm  # noqa: E402
from tvm import relax  # noqa: E402

LANES = 16
# Without fused multiply-adds, and with vectors of four.
BASELINE = Target.parse({"kind": "llvm", "mcpu": "x86-64", "num-cores": 2})
SPECIAL = np.array([np.nan, -np.inf, np.inf, 0.0, -0.0, 1e-40, -1e-40, 104.5, -104.5, 3e38, -3e38], np.float32)


def network(shape: tuple[int, ...], emit: Callable[[Any], Any], dtype: str = "float32") -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(emit(x)))
        builder.emit_func_output(result)
    return builder.get()


def kernels(lowered: tvm.IRModule) -> dict[str, tvm.IRModule]:
    return {
        name.name_hint: tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        for name, function in lowered.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }


def vectorized(module: tvm.IRModule) -> tvm.IRModule:
    """Every block without a reduction in vectors, on all cores."""
    schedule = tvm.s_tir.Schedule(module)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        if all(axis.iter_type == 0 for axis in schedule.get(block).iter_vars):
            outer, inner = schedule.split(schedule.fuse(*loops) if len(loops) > 1 else loops[0], [None, LANES])
            schedule.parallel(outer)
            schedule.vectorize(inner)
    return schedule.mod


def compiled(emit: Callable[[Any], Any], shape: tuple[int, ...], target: Target) -> Any:
    (module,) = kernels(extract.lower(network(shape, emit), target)).values()
    return tvm.compile(vectorized(module), target=tvm_target(target))


def run(library: Any, x: np.ndarray) -> np.ndarray:
    result = tvm.runtime.tensor(np.zeros_like(x))
    library["main"](tvm.runtime.tensor(x), result)
    return result.numpy()


def called(library: Any) -> set[str]:
    return set(re.findall(r"\b(?:exp|erf|tanh|log|floor|round|pow)\w*(?=@PLT)", library.mod.inspect_source("asm")))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * special.ndtr(x)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def selu(x: np.ndarray) -> np.ndarray:
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.where(2 * x > 20, x, np.logaddexp(0, 2 * x) / 2)


# Operator, what float64 says, the ends of a grid, absolute and relative error allowed.
ELEMENTWISE = {
    "exp": (relax.op.exp, np.exp, (-87, 88), (0, 1.5e-7)),
    "exp-denormal": (relax.op.exp, np.exp, (-110, -87), (1.5e-45, 1e-7)),
    "erf": (relax.op.erf, special.erf, (-7, 7), (0, 4e-7)),
    "erf-small": (relax.op.erf, special.erf, (-1e-3, 1e-3), (0, 3e-7)),
    "tanh": (relax.op.tanh, np.tanh, (-20, 20), (0, 4e-7)),
    "tanh-small": (relax.op.tanh, np.tanh, (-1e-3, 1e-3), (0, 3e-7)),
    "sigmoid": (relax.op.sigmoid, special.expit, (-87, 87), (0, 3e-7)),
    "log": (relax.op.log, np.log, (1e-3, 10), (6e-8, 2e-7)),
    "log-large": (relax.op.log, np.log, (10, 3e38), (0, 2e-7)),
    "gelu": (relax.op.nn.gelu, gelu, (-12, 12), (1.3e-6, 3e-7)),
    "gelu_tanh": (relax.op.nn.gelu_tanh, gelu_tanh, (-12, 12), (1.3e-6, 3e-7)),
    "silu": (relax.op.nn.silu, lambda x: x * special.expit(x), (-80, 80), (0, 4e-7)),
    "selu": (relax.op.nn.selu, selu, (-50, 50), (3e-7, 2e-7)),
    "softplus": (lambda x: relax.op.nn.softplus(x, beta=2.0, threshold=20.0), softplus, (-40, 40), (2e-9, 3e-7)),
}


@pytest.mark.parametrize("target", [native_target(), BASELINE], ids=["native", "baseline"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_error_on_a_dense_grid(name: str, target: Target) -> None:
    emit, exact, (low, high), (absolute, relative) = ELEMENTWISE[name]
    x = np.linspace(low, high, 1 << 20).astype(np.float32)
    library = compiled(emit, x.shape, target)
    expected = exact(x.astype(np.float64))
    error = np.abs(run(library, x) - expected)
    assert not called(library)
    # Below the smallest normal number the spacing of float32 is all that can be asked for.
    assert np.all(error <= absolute + relative * np.maximum(np.abs(expected), 2.0**-126)), (
        error.max(),
        (error / np.maximum(np.abs(expected), 2.0**-126)).max(),
    )


LIMITS = {
    "exp": (relax.op.exp, [np.nan, 0, np.inf, 1, 1, 1, 1, np.inf, 0, np.inf, 0]),
    "erf": (relax.op.erf, [np.nan, -1, 1, 0, -0.0, 1.12838e-40, -1.12838e-40, 1, -1, 1, -1]),
    "tanh": (relax.op.tanh, [np.nan, -1, 1, 0, -0.0, 1e-40, -1e-40, 1, -1, 1, -1]),
    "sigmoid": (relax.op.sigmoid, [np.nan, 0, 1, 0.5, 0.5, 0.5, 0.5, 1, 0, 1, 0]),
    "log": (
        relax.op.log,
        [np.nan, np.nan, np.inf, -np.inf, -np.inf, np.log(1e-40), np.nan, np.log(104.5), np.nan, np.log(3e38), np.nan],
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_special_values(name: str) -> None:
    emit, expected = LIMITS[name]
    x = np.repeat(SPECIAL, LANES)
    result = run(compiled(emit, x.shape, native_target()), x).reshape(len(SPECIAL), LANES)
    np.testing.assert_allclose(result, np.repeat(np.float32(expected)[:, None], LANES, 1), rtol=2e-5, atol=1e-44)
    zeros = result[3:5, 0]
    if name in ("erf", "tanh"):
        assert np.signbit(zeros).tolist() == [False, True]


@pytest.mark.parametrize(
    ("shape", "axis"), [((12, 16, 128), -1), ((5, 197), 1), ((3, 7), -1), ((4, 50, 6), 1), ((2, 64, 3), 0)]
)
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_softmax(shape: tuple[int, ...], axis: int, log: bool) -> None:
    x = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    x.flat[::3] += 500.0  # exp of it overflows
    x.flat[1] = -np.inf
    library = compiled(
        lambda v: (relax.op.nn.log_softmax if log else relax.op.nn.softmax)(v, axis), shape, native_target()
    )
    expected = (special.log_softmax if log else special.softmax)(x.astype(np.float64), axis)
    np.testing.assert_allclose(run(library, x), expected, rtol=5e-7, atol=2e-7 if not log else 1e-4)
    assert not called(library)


def test_a_row_with_nan_is_nan() -> None:
    x = np.zeros((4, 64), np.float32)
    x[2, 5] = np.nan
    result = run(compiled(relax.op.nn.softmax, x.shape, native_target()), x)
    assert np.isnan(result[2]).all()
    np.testing.assert_allclose(result[[0, 1, 3]], 1 / 64, rtol=1e-6)


def test_an_epilogue_is_fused_and_counted() -> None:
    weight = relax.const(np.ones((512, 128), np.float32))
    module = network((128, 512), lambda x: relax.op.nn.gelu(relax.op.matmul(x, weight)))
    (name,) = names = kernels(extract.lower(module, native_target()))
    assert name == "fused_matmul_packed_gelu"
    product = 2 * 128 * 512 * 128
    # The epilogue is some 30 operations for an element of the output.
    assert product + 20 * 128 * 128 < (flop_of(names[name]) or 0) < product + 40 * 128 * 128


def test_one_kernel_used_twice_in_a_fused_one() -> None:
    x = np.linspace(-5, 5, 4096).astype(np.float32)
    emit = lambda v: relax.op.multiply(relax.op.nn.gelu(relax.op.nn.gelu(v)), relax.op.nn.gelu(v))  # noqa: E731
    expected = gelu(gelu(x.astype(np.float64))) * gelu(x.astype(np.float64))
    np.testing.assert_allclose(run(compiled(emit, x.shape, native_target()), x), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "dtype"), [(native_target(), "float64"), (native_target(), "float16"), (Target("c"), "float32")]
)
def test_others_are_lowered_as_tvm_does(target: Target, dtype: str) -> None:
    for emit in (relax.op.exp, relax.op.nn.softmax, relax.op.nn.gelu):
        for kernel in kernels(extract.lower(network((4, 64), emit, dtype), target)).values():
            assert "vector_" not in kernel.script()
            assert "softmax_maximum" not in kernel.script()


def test_every_formula_has_an_operator() -> None:
    assert set(vector_math.legalizations()) >= set(vector_math.ELEMENTWISE)
    assert formulas.exp in vector_math.ELEMENTWISE.values()
