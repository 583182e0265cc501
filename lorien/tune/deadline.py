"""When work in child processes is ended for want of time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

GRACE_S = 5.0
"""What is under way gets so many seconds after the end where there is nothing to answer with yet."""


@dataclass
class Deadline:
    """A moment after which jobs are ended, unless they are all there is.

    Parameters
    ----------
    until_s : float
        Moment of ``time.monotonic``; infinity for never.
    enough : bool
        Whether there is something to answer with: else what is under way gets ``GRACE_S`` more.
    """

    until_s: float = math.inf
    enough: bool = False

    @property
    def left_s(self) -> float:
        """Seconds until jobs are ended; 0 when they are."""
        return max(0.0, self.until_s + (0.0 if self.enough else GRACE_S) - time.monotonic())
