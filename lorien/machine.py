"""This machine, as far as the process may use it."""

from __future__ import annotations

import os
import time

import psutil


def available_cores() -> int:
    """Logical cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def physical_cores() -> int:
    """Physical cores this process may run on, as far as the system tells."""
    available = available_cores()
    return min(available, psutil.cpu_count(logical=False) or available)


def process_age_s() -> float:
    """Seconds since this process was started, its interpreter's start included."""
    created_s: float = psutil.Process().create_time()
    return max(0.0, time.time() - created_s)
