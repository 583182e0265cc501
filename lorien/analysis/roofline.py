"""Measured candidates under a roofline: operations a second against operations for each byte of their arguments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput
from lorien.models.metrics import FloatArray

FloatColumn = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Roofline:
    """Candidates that ran, and the roofs that the fastest of them draw.

    Parameters
    ----------
    intensity : array (candidates,)
        Operations for each byte of the arguments, every byte moved once: what no schedule can exceed.
    flop_per_s : array (candidates,)
        Operations a second.
    peak_flop_per_s, peak_bytes_per_s : float
        The largest rate of operations, and of argument bytes, that any candidate reached. They are seen, not the
        hardware's: data that stay in a cache can exceed what memory delivers.
    """

    intensity: FloatArray
    flop_per_s: FloatArray
    peak_flop_per_s: float
    peak_bytes_per_s: float

    def roof(self, intensity: FloatArray) -> FloatArray:
        """Most operations a second at an intensity: (points,)."""
        return np.minimum(self.peak_flop_per_s, intensity * self.peak_bytes_per_s)

    def reached(self) -> FloatArray:
        """Share of the roof that each candidate reaches: (candidates,) in (0, 1]."""
        return self.flop_per_s / self.roof(self.intensity)


def roofline(latency_s: FloatArray, flop: FloatArray, argument_bytes: FloatArray) -> Roofline:
    """Place candidates (rows,) under their roofline; those that failed, and without operations, are left out.

    Raises ``BadInput`` when none is left.
    """
    ran = np.isfinite(latency_s) & (flop > 0) & (argument_bytes > 0)
    if not ran.any():
        raise BadInput("no candidate ran whose operations are known. Fix: choose logs of other workloads")
    rate, moved = flop[ran] / latency_s[ran], argument_bytes[ran] / latency_s[ran]
    return Roofline(flop[ran] / argument_bytes[ran], rate, float(rate.max()), float(moved.max()))
