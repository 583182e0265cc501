"""What else uses the cores or the device that candidates are measured on.

Whoever measures tells the other processes of the machine: it holds a socket in Linux's abstract namespace, and the name
has its process and what it measures on. The kernel drops the name when the process ends, however that comes. Nobody
waits: who measures beside another, or on cores that are busy otherwise, says so at the start and marks the results.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lorien.machine import busy_s, place_of_processes, process_cpu_s
from lorien.records import Json
from lorien.target import Target

logger = logging.getLogger(__name__)

BUSY_CORES = 0.5
"""Cores' worth of others' work from which on a run is disturbed. The services of a quiet system take under 0.1."""
MIN_SAMPLE_S = 0.2
"""The kernel counts in hundredths of a second: over less than this the count says little."""
_CPU_KINDS = ("llvm", "c")
_CORES = "cores"
_PREFIX = "lorien-measuring"
_COMMAND_CHARS = 80


@dataclass
class Contention:
    """What disturbed some runs.

    Parameters
    ----------
    measurers : list of str
        Other processes that measured on the same cores or device meanwhile: command and number.
    runs, disturbed_runs : int
        Runs, and those beside another measurer or ``BUSY_CORES`` of other work.
    others_core_s, seconds : float
        Core seconds that other processes used on these cores, and seconds in which they were counted.
    """

    measurers: list[str] = field(default_factory=list)
    runs: int = 0
    disturbed_runs: int = 0
    others_core_s: float = 0.0
    seconds: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether the results are not what an idle machine would give."""
        return bool(self.measurers or self.disturbed_runs)

    @property
    def others_cores(self) -> float | None:
        """Mean cores that other processes used; None where that was not counted."""
        return self.others_core_s / self.seconds if self.seconds else None

    def __str__(self) -> str:
        """One line for people; empty when nothing disturbed."""
        if not self.disturbed:
            return ""
        beside = f", beside {' and '.join(self.measurers)}" if self.measurers else ""
        used = f"; other processes used {self.others_cores:.1f} cores on average" if self.others_cores else ""
        return f"{self.disturbed_runs} of {self.runs} runs were disturbed{beside}{used}"

    def to_json(self) -> dict[str, Json]:
        """What stands beside results in ``--json``."""
        return {"disturbed": self.disturbed, "disturbance": str(self), "others_cores": self.others_cores}


class Watch:
    """Tells others that this process measures, and finds out who else does. Safe across threads.

    Parameters
    ----------
    target : Target
        What is measured: cores that this process may use, or the device of the machine.
    own : callable
        Process numbers of this one's children whose work is not others'.
    remote : bool
        Whether it is measured on other machines' devices. A tracker gives each to one at a time: nothing to watch.
    """

    def __init__(self, target: Target, own: Callable[[], Iterable[int]], *, remote: bool = False) -> None:
        self._device = None if remote else _device(target)
        self._own = own
        self._name = f"{_PREFIX}/{place_of_processes()}/{os.getpid()}/{self._device}/{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self._open: list[Contention] = []
        self._announced: socket.socket | None = None
        self._said: set[str] = set()
        self._load = _Load(own) if self._device == _CORES else None

    @contextmanager
    def measuring(self) -> Iterator[Contention]:
        """Be seen to measure until the block ends; what disturbs meanwhile is in what this yields."""
        contention = Contention()
        with self._lock:
            self._open.append(contention)
            if self._announced is None and self._device is not None:
                self._announced = _announce(self._name)
        self._look()
        try:
            yield contention
        finally:
            with self._lock:
                self._open = [one for one in self._open if one is not contention]
                if not self._open and self._announced is not None:
                    self._announced.close()
                    self._announced = None

    def begin(self) -> None:
        """Runs begin: what the machine did before is not beside them, but tells whether it is idle."""
        self._sample(of_run=False)

    def ran(self) -> tuple[bool, float | None]:
        """A run ended: whether it was disturbed, and how many cores others used, where that was counted."""
        others = self._look()
        cores = self._sample(of_run=True)
        disturbed = bool(others) or (cores is not None and cores >= BUSY_CORES)
        with self._lock:
            for one in self._open:
                one.runs += 1
                one.disturbed_runs += disturbed
        return disturbed, cores

    def _look(self) -> list[str]:
        """Other measurers at work now; of one seen first a warning says."""
        others = [] if self._device is None else _others(self._device)
        with self._lock:
            for one in self._open:
                one.measurers += [other for other in others if other not in one.measurers]
            new = [other for other in others if other not in self._said]
            self._said.update(new)
        for other in new:
            what, own = (
                ("cores", "cores of its own (taskset)") if self._device == _CORES else ("device", "a device of its own")
            )
            logger.warning(
                "%s measures on the same %s: both get latencies that are too long. Fix: wait for it, or give each "
                "process %s",
                *(other, what, own),
            )
        return others

    def _sample(self, *, of_run: bool) -> float | None:
        if self._load is None:
            return None
        with self._lock:
            sample = self._load.sample(reset=not of_run)
            if of_run and sample is not None and sample.new:
                for one in self._open:
                    one.others_core_s += sample.cores * sample.seconds
                    one.seconds += sample.seconds
            new = sample is not None and sample.cores >= BUSY_CORES and "busy" not in self._said
            if new:
                self._said.add("busy")
        if new and sample is not None:
            logger.warning(
                "other processes use %.1f of these %d cores: latencies will be too long. Fix: end them, or measure on "
                "an idle machine",
                sample.cores,
                len(os.sched_getaffinity(0)),
            )
        return sample.cores if sample is not None else None


@dataclass(frozen=True)
class _Sample:
    cores: float
    seconds: float
    new: bool = True


class _Load:
    """Cores that others use, of those that this process may use, as the kernel counts them."""

    def __init__(self, own: Callable[[], Iterable[int]]) -> None:
        self._own = own
        self._last: _Sample | None = None
        # The children have done nothing yet. To ask for their numbers waits for the framework, which a child loads.
        self._from = self._counted(())

    def sample(self, *, reset: bool) -> _Sample | None:
        """Of the time since the last one; again the last one while that is too short, None when there is none."""
        now = self._counted(tuple(self._own()))
        if now is None or self._from is None:
            return None
        (end_s, all_s, own_s), (begin_s, all_before_s, own_before_s) = now, self._from
        seconds = end_s - begin_s
        if seconds < MIN_SAMPLE_S:
            if reset:
                self._from = now
            return self._last and _Sample(self._last.cores, 0.0, new=False)
        self._from = now
        others_s = (all_s - all_before_s) - (own_s - own_before_s)
        self._last = _Sample(max(0.0, others_s / seconds), seconds)
        return self._last

    def _counted(self, children: Iterable[int]) -> tuple[float, float, float] | None:
        """Moment, and CPU seconds until then of all processes on these cores and of ours; None where nothing counts."""
        if not hasattr(os, "sched_getaffinity") or (all_s := busy_s(os.sched_getaffinity(0))) is None:
            return None
        return time.monotonic(), all_s, sum(process_cpu_s(pid) for pid in (os.getpid(), *children))


def _device(target: Target) -> str:
    """What candidates of a target run on: the cores of this process, or the device of the machine that is visible."""
    if target.kind in _CPU_KINDS:
        return _CORES
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("HIP_VISIBLE_DEVICES") or "0"
    return re.sub(r"[^A-Za-z0-9:.-]", "-", visible.partition(",")[0])[:48]


def _announce(name: str) -> socket.socket | None:
    """Hold a name that every process of the machine can read; None where the system has no such names."""
    announced = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        announced.bind(f"\0{name}")
    except (OSError, ValueError):
        announced.close()
        return None
    return announced


def _others(device: str) -> list[str]:
    """Commands and numbers of other processes that measure on a device, or on cores that this one may use too."""
    found = []
    with suppress(OSError):
        pattern = re.compile(rf"@{_PREFIX}/{place_of_processes()}/(\d+)/{re.escape(device)}/[0-9a-f]{{8}}$", re.M)
        for match in pattern.finditer(Path("/proc/net/unix").read_text(errors="replace")):
            pid = int(match[1])
            if pid == os.getpid():
                continue
            with suppress(OSError, psutil.Error):  # it has ended
                if device != _CORES or os.sched_getaffinity(pid) & os.sched_getaffinity(0):
                    found.append(f"{_command(pid)} (process {pid})")
    return sorted(set(found))


def _command(pid: int) -> str:
    words = psutil.Process(pid).cmdline()
    named = [Path(word).name if place < 2 else word for place, word in enumerate(words)]
    if len(named) > 1 and named[0].startswith("python") and not named[1].startswith("-"):
        named = named[1:]
    return " ".join(" ".join(named).split())[:_COMMAND_CHARS]
