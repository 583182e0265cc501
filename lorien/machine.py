"""This machine, as far as the process may use it."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import time
from collections.abc import Collection
from pathlib import Path

_PROC = Path("/proc")


def available_cores() -> int:
    """Logical cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def physical_cores() -> int:
    """Physical cores this process may run on, as far as the system tells."""
    import psutil

    available = available_cores()
    return min(available, psutil.cpu_count(logical=False) or available)


def process_age_s() -> float:
    """Seconds since this process was started, its interpreter's start included."""
    import psutil

    created_s: float = psutil.Process().create_time()
    return max(0.0, time.time() - created_s)


@functools.lru_cache(maxsize=1)
def place_of_processes() -> str:
    """Twelve hexadecimal digits that are the same for processes which know each other by number, until a restart."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text() + os.readlink(_PROC / "self/ns/pid")
    except OSError:
        boot = socket.gethostname()
    return hashlib.sha256(boot.encode()).hexdigest()[:12]


def started(pid: int) -> int | None:
    """When a process of this place started, in a unit of the system's; None when it does not live.

    With the number of the process this tells it from every other one since the machine started.
    """
    if (_PROC / "self/stat").exists():
        try:
            fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else int(fields[19])
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        return None


def busy_s(cores: Collection[int]) -> float | None:
    """Seconds that some cores have not been idle since the machine started; None where the system does not tell.

    What a hypervisor took from them counts. psutil tells cores by their place in a list, which is not their number
    where some are offline.
    """
    ticks = 0
    try:
        with (_PROC / "stat").open() as file:
            for line in file:
                if not line.startswith("cpu"):
                    break
                name, user, nice, system, _idle, _wait, *others = line.split()
                if name[3:].isdecimal() and int(name[3:]) in cores:
                    ticks += int(user) + int(nice) + int(system) + sum(map(int, others[:3]))
    except (OSError, ValueError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process, and of those of its children that ended and were waited for; 0 when it is gone."""
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return sum(getattr(times, kind, 0.0) for kind in ("user", "system", "children_user", "children_system"))
