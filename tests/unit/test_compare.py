"""What passes for the same outputs: every valid schedule's, and none that lost or made up a value."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lorien.tune.compare import IMPORTED, KERNEL, NETWORK, QUANTISED, compare_outputs, load_outputs, save_outputs
from lorien.tune.model_run import difference

Array = npt.NDArray[Any]
F32 = np.float32
INF, NAN = np.inf, np.nan


def compare(found: Any, expected: Any, tolerance: Any = KERNEL, dtype: Any = F32) -> str:
    tensors = ([np.asarray(value, dtype)] for value in (found, expected))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare_outputs(*tensors, tolerance, reference="the default schedule", what="tensor")


@pytest.mark.parametrize("tolerance", [KERNEL, NETWORK, IMPORTED])
@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        ([INF, 1e30, -7, 0], [INF, 1, 2, 3], "off by 1e+30 where the default schedule's largest value is 3"),
        ([0, 1, 2, 3], [INF, 1, 2, 3], "0 at (0,) where the default schedule has inf"),
        ([-INF, 1, 2, 3], [INF, 1, 2, 3], "-inf at (0,)"),
        ([INF, NAN, 2, 3], [INF, 1, 2, 3], "nan at (1,)"),
        ([0, 0], [NAN, NAN], "0 at (0,) where the default schedule has nan"),
        ([INF, 1], [0, 1], "inf at (0,)"),
        ([3e38, 1], [INF, 1], "3e+38 at (0,)"),
        ([1e6, 0, 0, 0], [1e6, 50, 50, 50], "off by"),
        ([1e6, 0, 0, 0], [1e6, 1, 2, 3], "off by 100% in 3 values of up to 3"),
        ([1e10, 0, 0, 0], [1e10, 1, 2, 3], "off by 100%"),
        ([1e-30] * 4, [0] * 4, "off by 1e-30"),
        (1.1, 1.0, "off by 0.1"),
        ([1.0], [[1.0]], "has shape (1,) where the default schedule has (1, 1)"),
        ([1.0], [1.0] * 4, "has shape (1,)"),
    ],
)
def test_refused(found: Any, expected: Any, says: str, tolerance: Any) -> None:
    assert says in compare(found, expected, tolerance)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([INF, -INF, NAN, 1], [INF, -INF, NAN, 1]),
        ([INF, 1.00001], [INF, 1]),
        ([NAN] * 4, [NAN] * 4),
        ([-0.0, 1.0], [0.0, 1.0]),
        (1.00001, 1.0),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        ([1e-7, 1], [0, 1]),  # what rounding left of 1 - 1
        ([1e38, 2e38], [1.00001e38, 2e38]),
    ],
)
def test_accepted(found: Any, expected: Any) -> None:
    assert compare(found, expected) == ""


def test_number_and_element_types() -> None:
    ones = np.ones(4, F32)
    assert "1 outputs where the naive build has 2" in difference([ones], [ones, ones])
    assert "of float64 where the naive build has float32" in difference([ones.astype("f8")], [ones])


def test_integers_are_equal_but_for_a_rounding() -> None:
    bytes_, wide, floats = np.zeros(100, np.int8), np.zeros(100, np.int64), np.ones(2, F32)

    def off(tensor: Array, by: int, count: int = 1) -> Array:
        return tensor + np.asarray((np.arange(100) < count) * by, tensor.dtype)

    assert "differs in 1 of 100 integers, first at (0,): 1 where" in difference([off(bytes_, 1)], [bytes_])
    assert difference([off(bytes_, 1), floats], [bytes_, floats]) == ""  # rounded from the floats, the other way
    assert difference([off(bytes_, 2), floats], [bytes_, floats])
    assert difference([off(bytes_, 1, 5), floats], [bytes_, floats])
    assert difference([off(wide, 1), floats], [wide, floats])  # an index, or a count
    assert difference([np.array([2**60])], [np.array([2**60 + 1])])
    assert difference([np.array([True, False]), floats], [np.array([True, True]), floats])
    assert difference([np.uint8([0]), floats], [np.uint8([255]), floats])


def mixed(rng: np.random.Generator) -> Array:
    return rng.normal(size=(64, 128)).astype(F32) * F32(1e3)


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-9, 1e-20])
@pytest.mark.parametrize("tolerance", [KERNEL, NETWORK, IMPORTED])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_row_of_small_values_is_checked(scale: float, tolerance: Any, axis: int) -> None:
    rng = np.random.default_rng(0)
    expected = np.moveaxis(mixed(rng), axis, 0)
    expected[7] *= F32(scale)
    for wrong in (0.0, rng.permutation(expected[7]), expected[7] * F32(1.5), -expected[7]):
        found = expected.copy()
        found[7] = wrong
        assert compare(found, expected, tolerance)
    assert compare(expected * F32(1 + 1e-6), expected, tolerance) == ""


def test_small_values_are_checked_without_rows() -> None:
    flat = mixed(np.random.default_rng(1)).ravel()
    flat[:100] *= F32(1e-7)
    found = flat.copy()
    found[:100] = 0
    assert "off by 100% in" in compare(found, flat)
    dead = np.maximum(flat, 0)
    found = np.where(dead == 0, F32(1e-2), dead)
    assert "values, first 0.01 at" in compare(found, dead)


def sums(terms: Array) -> list[Array]:
    """The same sums in other orders, as schedules make them."""
    last = terms.shape[-1]
    blocked = np.add.reduce(terms.reshape(*terms.shape[:-1], last // 8, 8), axis=-2, dtype=F32).sum(-1, dtype=F32)
    orders = (np.arange(last), np.arange(last)[::-1], np.random.default_rng(2).permutation(last))
    return [blocked, *(np.add.accumulate(terms[..., order], axis=-1, dtype=F32)[..., -1] for order in orders)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "terms"), [((40, 50), 512), ((3, 4), 32768), ((2000,), 64), ((1,), 4096)])
def test_sums_in_another_order_agree_also_where_their_terms_cancel(
    shape: tuple[int, ...], terms: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for values in (rng.normal(size=(*shape, terms)), rng.random((*shape, terms)) + 0.1):
        first, *others = sums(values.astype(F32))
        for other in others:
            for function in (lambda x: x, lambda x: np.maximum(x, 0), lambda x: np.exp2(x / terms)):
                assert compare(function(other), function(first)) == ""


def test_normalised_rows_agree() -> None:
    rows = np.random.default_rng(3).normal(size=(64, 512)).astype(F32) * F32(30)

    def softmax(total: Any) -> Array:
        exponents = np.exp(rows - rows.max(1, keepdims=True))
        result: Array = exponents / total(exponents)
        return result

    expected = softmax(lambda x: x.sum(1, keepdims=True, dtype=F32))
    assert expected[expected > 0].min() < 1e-20
    found = softmax(lambda x: np.add.accumulate(x, 1, dtype=F32)[:, -1:]) * F32(1 + 2e-7)
    assert compare(found, expected) == ""
    assert compare(np.where(expected < 1e-6, 0, expected), expected)


def test_half_precision_and_the_names_of_types(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(4)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        expected = rng.random((16, 16)).astype(dtype)
        assert compare(expected * dtype(1.004), expected, dtype=dtype) == ""
        assert compare(expected * dtype(1.1), expected, dtype=dtype)
    tensors = [np.ones(3, ml_dtypes.bfloat16), np.arange(3), np.ones(2, ml_dtypes.float8_e5m2), np.array([True])]
    tensors += [np.array([1, 2], ml_dtypes.int4), np.array([2**60 + 1]), np.float64([1 + 2**-50])]
    save_outputs(tmp_path / "outputs.npz", tensors)
    found = load_outputs(tmp_path / "outputs.npz")
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in tensors]
    assert all((one == other).all() for one, other in zip(found, tensors, strict=True))


def test_what_is_quantised_may_be_a_step_off_and_not_another_thing() -> None:
    steps = np.random.default_rng(5).integers(0, 255, (8, 64)).astype(F32)
    assert compare(steps + 3, steps, QUANTISED) == ""
    assert compare(steps[::-1], steps, QUANTISED)
    assert compare(steps * 0, steps, QUANTISED)
