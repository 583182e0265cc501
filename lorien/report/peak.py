"""What a machine could do at best: given, or measured here by a matrix product, or not known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorien.errors import BadInput
from lorien.machine import available_cores

SIZE = 2048
SECONDS = 1.5
MEASURE = "measure"


@dataclass(frozen=True)
class Peak:
    """Floating-point operations a second that a target reaches at most, and how that is known."""

    flop_per_s: float
    how: str


def measured_peak() -> Peak:
    """Best rate of single-precision matrix products by NumPy's own library on all cores, in some seconds.

    The best libraries reach some 90 % of what the hardware could do: a little below the true peak, and honest.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.random((SIZE, SIZE), dtype=np.float32) for _ in range(2))
    out = left @ right  # the first one starts the threads
    best_s, end_s = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end_s:
        started_s = time.perf_counter()
        np.matmul(left, right, out=out)
        best_s = min(best_s, time.perf_counter() - started_s)
    how = (
        f"measured on the machine that made this page: the best single-precision {SIZE}x{SIZE} matrix product of "
        f"NumPy's library on {available_cores()} cores; the hardware's own peak is a little higher"
    )
    return Peak(2 * SIZE**3 / best_s, how)


def read_peaks(values: Sequence[str], native: str, targets: Sequence[str]) -> dict[str, Peak]:
    """Peaks by target key from ``GFLOPS``, ``TARGET=GFLOPS`` or ``measure``.

    Parameters
    ----------
    values : sequence of str
        What was asked for. A number alone is for the only target there is; ``measure``, for this machine.
    native, targets : str, sequence of str
        Key of this machine as a target, and those that are reported on.

    Raises
    ------
    BadInput
        It is none of these, or of no target that is reported on.
    """
    peaks: dict[str, Peak] = {}
    for value in values:
        target, named, number = value.rpartition("=")
        if value == MEASURE:
            if native not in targets:
                raise BadInput(
                    f"this machine is {native}, the report is of {_listed(targets)}: its peak cannot be measured here. "
                    "Fix: --peak TARGET=GFLOPS"
                )
            peaks[native] = measured_peak()
            continue
        if not named and len(targets) != 1:
            raise BadInput(f"--peak {value}: of which target? Fix: --peak TARGET=GFLOPS, of {_listed(targets)}")
        if named and target not in targets:
            raise BadInput(f"--peak {value}: nothing is reported of {target!r}. Fix: one of {_listed(targets)}")
        try:
            rate = float(number) * 1e9
        except ValueError:
            raise BadInput(f"--peak {value}: no number. Fix: GFLOPS, TARGET=GFLOPS or {MEASURE}") from None
        if not 0 < rate < float("inf"):
            raise BadInput(f"--peak {value}: not a rate. Fix: GFLOPS above zero")
        peaks[target if named else targets[0]] = Peak(rate, "given with --peak")
    return peaks


def _listed(targets: Sequence[str]) -> str:
    return ", ".join(targets[:5]) + (", ..." if len(targets) > 5 else "") or "no target"
