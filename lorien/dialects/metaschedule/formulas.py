"""exp, erf, tanh and what is made of them, for float32, as TIR expressions without calls.

Each is one expression of additions, multiplications, divisions, selections, conversions and shifts, which every CPU
does in vectors. NaN gives NaN.

The coefficients are minimax fits: least squares on 1,500 to 4,000 Chebyshev nodes in extended precision, reweighted by
the error of the step before (Lawson's algorithm) for 60 steps, against mpmath with 30 digits. The errors below were
measured against float64, with and without fused multiply-adds; tests/integration/test_vector_math.py does it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm import tirx

    Formula = Callable[[tirx.Expr], tirx.Expr]

# (exp(r) - 1 - r) / r**2 for |r| <= 0.35, a little beyond log(2) / 2.
_EXP = (0.499999931, 0.166665149, 0.041668456, 0.00836941096, 0.00138131591)
# erf(x) / x as P(x**2) / Q(x**2) for |x| <= 3.925, where erf(x) is 1 in float32. All are positive: nothing cancels.
_ERF_LIMIT = 3.925
_ERF_P = (1.12837915, 0.190581436, 0.052767465, 0.00377197068, 0.000284822199, 2.04601129e-06)
_ERF_Q = (1.0, 0.502231133, 0.114177447, 0.0149820374, 0.00116370213, 3.80464958e-05)
# tanh(x) / x likewise for |x| <= 9.02.
_TANH_LIMIT = 9.02
_TANH_P = (0.999999979, 0.133796666, 0.00349397254, 2.05824341e-05, 1.33176008e-08)
_TANH_Q = (1.0, 0.46712982, 0.0258708399, 0.000328299005, 7.76142011e-07)
# log(1 + u) / u for 0 <= u <= 1.
_LOG1P = (
    *(0.99999997, -0.499994931, 0.333190962, -0.248429775, 0.191059885),
    *(-0.136632069, 0.0782254939, -0.0295049575, 0.00523262408),
)
# (log(1 + u) - u) / u**2 for 1 + u between sqrt(1/2) and sqrt(2).
_LOG = (
    *(-0.499999883, 0.333333254, -0.250015882, 0.200019933, -0.166089743),
    *(0.14181397, -0.132434675, 0.129073568, -0.0762416751),
)
# log(2) in two parts: the first has so few bits that its products with exponents are exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2_E = 1.4426950408889634


def _real(value: float) -> tirx.Expr:
    from tvm import tirx

    return tirx.const(value, "float32")


def bound(value: tirx.Expr, body: Formula) -> tirx.Expr:
    """``body`` of a name for ``value``: written out in each place, an expression of expressions grows exponentially."""
    from tvm import tirx

    name = tirx.Var("v", value.ty.dtype)
    return tirx.Let(name, value, body(name))


def _polynomial(coefficients: Sequence[float], x: tirx.Expr) -> tirx.Expr:
    result = _real(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + _real(coefficient)
    return result


def _clamped(x: tirx.Expr, low: float, high: float, body: Formula) -> tirx.Expr:
    """``body`` of ``x`` between the limits. NaN stays NaN: its comparisons are false."""
    from tvm import tirx

    def upper(x: tirx.Expr) -> tirx.Expr:
        return bound(tirx.Select(x > _real(high), _real(high), x), body)

    return bound(tirx.Select(x < _real(low), _real(low), x), upper)


def exp(x: tirx.Expr) -> tirx.Expr:
    """``exp(x)`` with a relative error of 1.3e-7, denormal results included; 0 below -104, infinite above 88.73."""
    return _clamped(x, -104.0, 89.0, _exp_within)


def _exp_within(x: tirx.Expr) -> tirx.Expr:
    """2**n * exp(r) for -104 <= x <= 89, with n the whole number next to x / log(2)."""
    from tvm import tirx

    def scaled(count: tirx.Expr) -> tirx.Expr:
        n = tirx.Cast("float32", count) - _real(151.0)
        return bound(n, lambda n: bound(x - n * _real(_LN2_HIGH) - n * _real(_LN2_LOW), partial(power, count)))

    def power(count: tirx.Expr, r: tirx.Expr) -> tirx.Expr:
        # In two halves: 2**n alone is no float32 where the result is denormal, or infinite.
        half = (count - 151) >> 1
        rest = count - 151 - half
        return _polynomial((1.0, 1.0, *_EXP), r) * _power_of_two(half) * _power_of_two(rest)

    # Above zero a conversion is a floor, and unlike floor it is one instruction on every CPU.
    return bound(tirx.Cast("int32", x * _real(_LOG2_E) + _real(151.5)), scaled)


def _power_of_two(exponent: tirx.Expr) -> tirx.Expr:
    from tvm import tirx

    return tirx.reinterpret("float32", (exponent + 127) << 23)


def _odd_rational(p: Sequence[float], q: Sequence[float], limit: float) -> Formula:
    """x * P(x**2) / Q(x**2) with x held within the limit and the result within -1 and 1."""

    def inner(x: tirx.Expr) -> tirx.Expr:
        ratio = bound(x * x, lambda t: x * _polynomial(p, t) / _polynomial(q, t))
        return bound(ratio, lambda y: _clamped(y, -1.0, 1.0, lambda y: y))

    return lambda x: _clamped(x, -limit, limit, inner)


def erf(x: tirx.Expr) -> tirx.Expr:
    """``erf(x)`` with a relative error of 2.4e-7; -1 and 1 at the infinities."""
    return _odd_rational(_ERF_P, _ERF_Q, _ERF_LIMIT)(x)


def tanh(x: tirx.Expr) -> tirx.Expr:
    """``tanh(x)`` with a relative error of 2.4e-7; -1 and 1 at the infinities."""
    return _odd_rational(_TANH_P, _TANH_Q, _TANH_LIMIT)(x)


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    """1 / (1 + exp(-x)) with an absolute error of 1e-7; 0 and 1 at the infinities."""
    return _real(1.0) / (_real(1.0) + exp(_real(0.0) - x))


def log(x: tirx.Expr) -> tirx.Expr:
    """``log(x)`` with an absolute error of 1e-7 or a relative of 1.3e-7; -inf at 0, NaN below."""
    from tvm import tirx

    def inner(x: tirx.Expr) -> tirx.Expr:
        tiny = x < _real(2.0**-126)
        scaled = tirx.Select(tiny, x * _real(2.0**23), x)
        offset = tirx.Select(tiny, _real(-23.0), _real(0.0))
        bits = tirx.reinterpret("int32", scaled)

        def parts(bits: tirx.Expr) -> tirx.Expr:
            # 0x3F3504F3 is sqrt(1/2): the mantissa lies between that and its double.
            exponent = (bits - 0x3F3504F3) >> 23
            return bound(exponent, lambda e: joined(bits, e))

        def joined(bits: tirx.Expr, exponent: tirx.Expr) -> tirx.Expr:
            e = tirx.Cast("float32", exponent) + offset
            u = tirx.reinterpret("float32", bits - (exponent << 23)) - _real(1.0)
            return bound(
                e,
                lambda e: bound(
                    u, lambda u: e * _real(_LN2_HIGH) + (u + (u * u * _polynomial(_LOG, u) + e * _real(_LN2_LOW)))
                ),
            )

        finite = bound(bits, parts)
        # Beyond the largest number are infinity and NaN, which are their own logarithms.
        positive = tirx.Select(x <= _real(3.4028234663852886e38), finite, x)
        below = tirx.Select(x == _real(0.0), _real(-math.inf), _real(math.nan))
        return tirx.Select(x <= _real(0.0), below, positive)

    return bound(x, inner)


def gelu(x: tirx.Expr) -> tirx.Expr:
    """x / 2 * (1 + erf(x / sqrt(2)))."""
    return bound(x, lambda x: x * (_real(0.5) + _real(0.5) * erf(x * _real(math.sqrt(0.5)))))


def gelu_tanh(x: tirx.Expr) -> tirx.Expr:
    """Gelu with tanh in place of erf, as networks are trained with."""

    def inner(x: tirx.Expr) -> tirx.Expr:
        scaled = _real(math.sqrt(2.0 / math.pi)) * x * (_real(1.0) + _real(0.044715) * x * x)
        return _real(0.5) * x * (_real(1.0) + tanh(scaled))

    return bound(x, inner)


def silu(x: tirx.Expr) -> tirx.Expr:
    """x * sigmoid(x)."""
    return bound(x, lambda x: x * sigmoid(x))


def selu(x: tirx.Expr) -> tirx.Expr:
    """Scaled exponential linear unit."""
    from tvm import tirx

    alpha, scale = 1.6732632423543772, 1.0507009873554805
    zero = _real(0.0)
    return bound(
        x,
        lambda x: _real(scale) * tirx.Select(x > zero, x, _real(alpha) * (exp(x) - _real(1.0))),
    )


def softplus(x: tirx.Expr, beta: float, threshold: float) -> tirx.Expr:
    """log(1 + exp(beta * x)) / beta with an absolute error of 2e-7 / beta; x where beta * x is above the threshold."""
    from tvm import tirx

    def inner(x: tirx.Expr) -> tirx.Expr:
        scaled = x * _real(beta)
        # exp of what is below zero lies between 0 and 1, where one polynomial is the logarithm.
        below = tirx.Select(scaled < _real(0.0), scaled, _real(0.0) - scaled)
        rest = bound(exp(below), lambda u: u * _polynomial(_LOG1P, u))
        above = tirx.Select(scaled < _real(0.0), _real(0.0), scaled)
        return tirx.Select(scaled > _real(threshold), x, (above + rest) * _real(1.0 / beta))

    return bound(x, inner)
