"""Whether a latency can be true: no run ends before a clock can see it, or computes faster than any device.

A run that was cut off, a counter that ran backwards or a log that somebody edited gives a latency that beats every real
one, for ever. The limits here are far beyond what was ever measured, so that they refuse nothing real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorien.records import TuningRecord

MIN_LATENCY_S = 1e-9
"""A nanosecond is a tick of the finest clock that frameworks read, and less than a call and its return take. Of the
920,000 latencies in the logs that Lorien was tried on, the lowest are 2.1 us on a CPU and 2.3 us on a GPU."""
MAX_FLOPS = 1e18
"""FLOP per second of any device. The fastest one of 2025, a whole wafer, reaches 1.3e17 in half precision, and an
algorithm such as Winograd's needs a quarter of the operations that are counted. In the same logs: 3.4e13."""
MAX_CPU_FLOPS = 1e16
"""The same of CPUs: two sockets of 128 cores with matrix units reach 3e15 operations of 8 bits. In the logs: 4.4e11."""
_CPU_KINDS = frozenset({"llvm", "c"})


def doubt(latency_s: float | None, flop: float | None, kind: str) -> str:
    """Why a latency cannot be true; empty when nothing speaks against it.

    Parameters
    ----------
    latency_s : float, optional
        Median over the repeats; None for a failure, which nothing speaks against.
    flop : float, optional
        Floating-point operations of one run, where known.
    kind : str
        Kind of the target, such as ``cuda``.
    """
    if latency_s is None:
        return ""
    if latency_s < MIN_LATENCY_S:
        return f"{latency_s:.3g} s is less than a clock can see ({MIN_LATENCY_S:g} s)"
    most = MAX_CPU_FLOPS if kind in _CPU_KINDS else MAX_FLOPS
    if flop is not None and flop / latency_s > most:
        return f"{flop:.3g} FLOP in {latency_s:.3g} s is more than any {kind} device computes ({most:g} FLOP/s)"
    return ""


def doubt_of(record: TuningRecord) -> str:
    """``doubt`` of a record."""
    return doubt(record.measurement.latency_s, record.workload.flop, record.target.kind)
