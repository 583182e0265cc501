"""Whether two builds of the same computation gave the same outputs: one comparison for kernels and for networks.

A schedule may reorder sums, fuse a product with a sum, and replace exp by a polynomial. So floats may differ, and how
much follows from what a sum adds up: a value near zero that is left of large terms has the error of those terms. A
value that is small for another reason, as the channel of a small filter, has not. Only the second kind is held to its
own size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]

_ZERO = {8: 2.0**-48, 4: 2.0**-19, 2: 2.0**-6, 1: 0.5}
"""Sixteen roundings (of float16; bfloat16's are coarser)."""
_RARE = 1e-3
"""Share of the elements of a tensor that may be such, or an integer that was rounded the other way."""
_FEWEST = 8
"""Values other than zero in a slice that is held to its own size: fewer may all be near zero by chance."""
_BAND_BITS = 8
"""Powers of two in a band of magnitudes."""
_CROWDED = 8.0
"""How many times more values than a smooth density leaves near zero are still thought to be there by chance."""
_SURE = 9.0
"""Natural logarithm of how unlikely that has to be before they are not."""


@dataclass(frozen=True)
class Tolerance:
    """Differences that are taken for rounding, by bytes of a float.

    Parameters
    ----------
    relative : mapping of int to float
        In parts of the value itself.
    absolute : mapping of int to float
        In parts of the largest finite value of the tensor. An element may differ by the sum of both.
    group : mapping of int to float
        Sum of the differences in a slice, or in a band of small values, in parts of the sum of their magnitudes.
    zero : mapping of int to float
        What an exact zero may become, in parts of the largest value of all tensors.
    """

    relative: Mapping[int, float]
    absolute: Mapping[int, float]
    group: Mapping[int, float]
    zero: Mapping[int, float] = field(default_factory=lambda: _ZERO)


KERNEL = Tolerance(
    relative={8: 1e-6, 4: 1e-4, 2: 1e-2, 1: 0.2},
    absolute={8: 4e-7, 4: 4e-5, 2: 1e-2, 1: 0.2},
    group={8: 1e-3, 4: 1e-2, 2: 0.25, 1: 0.5},
)
"""Of one workload under another schedule."""
NETWORK = Tolerance(
    relative={8: 1e-6, 4: 1e-3, 2: 5e-2, 1: 0.3},
    absolute={8: 1e-6, 4: 2e-4, 2: 5e-2, 1: 0.3},
    group={8: 1e-2, 4: 5e-2, 2: 0.4, 1: 0.6},
)
"""Of a whole model: a network adds up what its workloads' schedules reorder."""
IMPORTED = Tolerance(
    relative={8: 1e-4, 4: 1e-2, 2: 0.1, 1: 0.5},
    absolute={8: 1e-5, 4: 1e-3, 2: 0.1, 1: 0.5},
    group={8: 0.1, 4: 0.1, 2: 0.5, 1: 0.7},
)
"""Of a model under another framework: its operators are other programs, and no reordered ones."""
QUANTISED = Tolerance(
    relative=dict.fromkeys(_ZERO, 0.25),
    absolute=dict.fromkeys(_ZERO, 0.25),
    group=dict.fromkeys(_ZERO, 0.5),
    zero=dict.fromkeys(_ZERO, 0.25),
)
"""The same of a model that rounds to integers inside: what is rounded the other way is a step off, and steps add up."""


class _Rules(NamedTuple):
    """A tolerance for one element type."""

    relative: float
    absolute: float
    group: float
    zero: float

    @classmethod
    def of(cls, tolerance: Tolerance, dtype: np.dtype[Any]) -> _Rules:
        size_bytes = dtype.itemsize
        by_bytes = (tolerance.relative, tolerance.absolute, tolerance.group, tolerance.zero)
        return cls(*(rule[size_bytes] for rule in by_bytes))


def compare_outputs(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: Tolerance,
    *,
    reference: str,
    what: str,
) -> str:
    """Where tensors differ by more than rounding.

    Number, shapes and element types are the same; infinities (with their signs) and NaN are in the same places;
    integers are equal, but for a few of 8 or 16 bits off by one where floats were rounded to them. Of floats, each
    element, each slice along each axis, and each band of magnitudes that chance does not explain is within its
    tolerance.

    Parameters
    ----------
    found, expected : sequence of array
    tolerance : Tolerance
    reference, what : str
        Names for what gave ``expected``, and for one of the tensors, in the answer.

    Returns
    -------
    str
        The first difference; empty when there is none.
    """
    if len(found) != len(expected):
        return f"{len(found)} {what}s where {reference} has {len(expected)}"
    rounded = any(not _is_integer(tensor) for tensor in expected)
    for index, (value, right) in enumerate(zip(found, expected, strict=True)):
        name = f"{what} {index}"
        if value.shape != right.shape:
            return f"{name} has shape {value.shape} where {reference} has {right.shape}"
        if value.dtype != right.dtype:
            return f"{name} is of {value.dtype} where {reference} has {right.dtype}"
        if np.array_equal(value, right):  # the inputs, among what a kernel gives back
            continue
        if _is_integer(right):
            difference = _integers(value, right, reference, rounded)
        else:
            difference = _differing(
                _floats(value), _floats(right), _Rules.of(tolerance, right.dtype), reference, expected
            )
        if difference:
            return f"{name} {difference}"
    return ""


def save_outputs(path: Path, tensors: Sequence[Tensor]) -> None:
    """Write tensors to a file that ``load_outputs`` reads."""
    # numpy's files do not keep the names of bfloat16 and its like; float32 holds their values.
    named = {f"{index}.{tensor.dtype.name}": tensor for index, tensor in enumerate(tensors)}
    kept = {name: t if t.dtype.isbuiltin == 1 else t.astype(np.float32) for name, t in named.items()}
    np.savez(path, **kept)  # type: ignore[arg-type]


def load_outputs(path: Path) -> list[Tensor]:
    """Read what ``save_outputs`` wrote. Element types that numpy lacks must be registered, as a framework does it."""
    with np.load(path) as tensors:
        return [tensors[name].astype(np.dtype(name.partition(".")[2]), copy=False) for name in tensors.files]


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype.kind in "biu" or tensor.dtype.name.lstrip("u").startswith("int")


def _floats(tensor: Tensor) -> _Floats:
    return tensor.astype(np.float64)


def _largest(values: _Floats) -> float:
    """The largest magnitude that is finite."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _integers(value: Tensor, right: Tensor, reference: str, rounded: bool) -> str:
    rounded = rounded and right.dtype.kind in "iu" and right.dtype.itemsize <= 2  # wider ones count or point
    if value.dtype.kind not in "iu":  # bool, and four bits
        value, right = value.astype(np.int8), right.astype(np.int8)
    gap = np.where(value > right, value - right, right - value)
    off = gap != 0
    if not off.any() or (rounded and not (off & (gap != 1)).any() and off.sum() <= max(1.0, _RARE * gap.size)):
        return ""
    at = _position(off.argmax(), off.shape)
    first = f"first at {at}: {value[at]} where {reference} has {right[at]}"
    return f"differs in {int(off.sum())} of {off.size} integers, {first}"


def _differing(value: _Floats, right: _Floats, rules: _Rules, reference: str, expected: Sequence[Tensor]) -> str:
    value, right = np.atleast_1d(value), np.atleast_1d(right)
    for kind in (np.isnan, np.isposinf, np.isneginf):
        off = kind(value) != kind(right)
        if off.any():
            at = _position(off.argmax(), off.shape)
            return f"is {value[at]:.4g} at {at} where {reference} has {right[at]:.4g}"
    finite = np.isfinite(right)
    value, right = np.where(finite, value, 0.0), np.where(finite, right, 0.0)
    error, size = np.abs(value - right), np.abs(right)
    if (error <= rules.relative * size).all():
        return ""
    scale = float(size.max())
    # What was added up to zero, only the other tensors tell.
    largest = max(_largest(_floats(tensor)) for tensor in expected if not _is_integer(tensor))
    noise = rules.zero * largest
    excess = error - rules.relative * size - (rules.absolute * scale if scale else noise)
    if (excess > 0.0).any():
        at = _position(excess.argmax(), excess.shape)
        return f"is off by {error[at]:.3g} where {reference}'s largest value is {scale:.3g}"
    zeros = (right == 0.0) & (error > noise)
    if zeros.sum() > max(1.0, _RARE * zeros.size):
        at = _position(zeros.argmax(), zeros.shape)
        return f"has {int(zeros.sum())} values, first {value[at]:.3g} at {at}, where {reference} has zero"
    return _slices(error, size, rules.group, reference) or _bands(error, size, rules.group, reference)


def _slices(error: _Floats, size: _Floats, tolerance: float, reference: str) -> str:
    """A row, a channel or the like that is wrong as a whole, however small its values are beside the others'."""
    for axis in range(size.ndim):
        others = tuple(other for other in range(size.ndim) if other != axis)
        filled = (size > 0.0).sum(axis=others) >= _FEWEST
        off, norm = error.sum(axis=others), size.sum(axis=others)
        wrong = filled & (off > tolerance * norm)
        if wrong.any():
            at = int(wrong.argmax())
            largest = np.take(size, at, axis).max()
            where = f"slice {at} of axis {axis}, where {reference}'s largest value is {largest:.3g}"
            return f"is off by {off[at] / norm[at]:.0%} in {where}"
    return ""


def _bands(error: _Floats, size: _Floats, tolerance: float, reference: str) -> str:
    """Small values of which there are too many to be left of larger ones by chance, wrong as a whole.

    Sums whose terms cancel have a smooth density at zero: of them, ``_BAND_BITS`` bits fewer leave as many times fewer
    values. More than that (by Chernoff's bound of a Poisson variable) are small by themselves.
    """
    exponents = np.frexp(size)[1]
    bands = np.where(size > 0.0, (exponents[size > 0.0].max(initial=0) - exponents) // _BAND_BITS, -1)
    by_chance = 0.0
    for band in range(int(bands.max()) + 1):
        here = bands == band
        count = int(here.sum())
        sure = count * math.log(count / by_chance) - count + by_chance if count > by_chance > 0.0 else math.inf * count
        off, norm = float(error[here].sum()), float(size[here].sum())
        if count > by_chance and sure > _SURE and off > tolerance * norm:
            where = f"{count} values of up to {size[here].max():.3g}, where {reference}'s largest is {size.max():.3g}"
            return f"is off by {off / norm:.0%} in {where}"
        by_chance = (by_chance + _CROWDED * count) * 2.0**-_BAND_BITS
    return ""


def _position(index: np.intp, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(at) for at in np.unravel_index(index, shape))
