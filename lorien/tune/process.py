"""The handle of a measuring process: started, given one job at a time, killed when it takes too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe
from pathlib import Path

import orjson

from lorien.errors import LorienError
from lorien.records import Json, Measurement, Outcome
from lorien.tune._child import BROKE, DEVICE, LOST, NO_DEVICE, RESULT, SPENT_S
from lorien.tune.nursery import Forked

_START_TIMEOUT_S = 120.0
_EXIT_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 500


class ProcessHandle:
    """One child process: dead (``died``: not by our hand); warming up; idle; or busy with a job."""

    def __init__(self, setup: bytes, log: Path, launch: Callable[[int, int], subprocess.Popen[bytes] | Forked]) -> None:
        self._setup = setup
        self._log = log
        self._launch = launch
        self._false_starts = 0
        self.start()

    def start(self) -> None:
        """Start a process and let it warm up."""
        self.wire, theirs = Pipe()
        with theirs, self._log.open("wb") as log:
            self._process = self._launch(theirs.fileno(), log.fileno())
        self.dead = self.died = self.broke = False
        self.device = self.lost = ""
        self.jobs = 0
        self.spent_s = 0.0
        self._job: int | None = None
        self._said_before = 0
        self._overrun = Outcome.UNKNOWN_ERROR
        self._send(self._setup, _START_TIMEOUT_S)

    def give(self, index: int, job: Json, timeout_s: float, wait_s: float) -> None:
        """Send a job to an idle child. Its time begins with its device, for which it waits ``wait_s``."""
        self.jobs += 1
        self.device, self.lost, self.broke = "", "", False
        self._job = index
        self._said_before = self._log.stat().st_size
        self._overrun = Outcome.BUILD_TIMEOUT if job["do"] == "build" else Outcome.RUN_TIMEOUT
        self._send(orjson.dumps({**job, "timeout_s": timeout_s, "wait_s": wait_s}), timeout_s, wait_s)

    def _send(self, message: bytes, timeout_s: float, wait_s: float = 0.0) -> None:
        self.idle = False
        self._timeout_s = timeout_s
        self._sent_s = time.monotonic()
        self.deadline_s = time.monotonic() + (wait_s or timeout_s)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: found out by answers()
            self.wire.send_bytes(message)

    @property
    def pid(self) -> int:
        """Number of the process; 0 until there is one."""
        return self._process.pid

    @property
    def working(self) -> bool:
        """True when it has a job."""
        return self._job is not None and not self.dead

    @property
    def exited(self) -> bool:
        """True when the process is gone, of its own or by another's hand."""
        return self._process.poll() is not None

    def answers(self) -> Iterator[tuple[int, Measurement | None]]:
        """The job that ended, if one did: its index, and a Measurement or None for a build that went well."""
        result: Measurement | None
        self.spent_s = time.monotonic() - self._sent_s
        if self.wire.poll():
            try:
                value = orjson.loads(self.wire.recv_bytes())
            except (EOFError, OSError, ValueError):  # dead, or it writes rubbish
                result = self._death()
            else:
                if value and DEVICE in value:
                    self.device = value[DEVICE]
                    self.deadline_s = time.monotonic() + self._timeout_s
                    return
                self.idle = True
                if value and RESULT in value:
                    self.spent_s, self.broke = value.get(SPENT_S, self.spent_s), value.get(BROKE, False)
                    value = value[RESULT]
                if value and (LOST in value or NO_DEVICE in value):
                    self.lost = value.get(LOST, "")
                    value = Measurement(Outcome.UNKNOWN_ERROR, detail=self.lost or value[NO_DEVICE]).to_json()
                result = Measurement.from_json(value) if value is not None else None
                if result is not None and result.outcome is Outcome.OUT_OF_MEMORY:
                    self.kill()  # what it could not free would count against the next
        elif time.monotonic() >= self.deadline_s:
            self.kill()
            self.broke = True
            result = Measurement(self._overrun, detail=f"killed after {self._timeout_s:g} s")
        else:
            return
        index, self._job = self._job, None
        if index is not None:
            yield index, result
        elif result is None:
            self._false_starts = 0
        elif self._false_starts == 0:  # killed by another, perhaps: it is started again when it is needed
            self._false_starts = 1
        else:
            reason = result.detail.splitlines()[-1]
            raise LorienError(f"a measuring process did not start: {reason}. Fix: run lorien doctor")

    def _death(self) -> Measurement:
        with contextlib.suppress(subprocess.TimeoutExpired):  # the socket closes a little before the process ends
            self._process.wait(_EXIT_TIMEOUT_S)
        self.kill()
        self.died = self.broke = True
        code = self._process.wait()
        said = self._log.read_bytes()[self._said_before :][-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        if code == -signal.SIGKILL:
            return Measurement(Outcome.OUT_OF_MEMORY, detail=f"killed, as the kernel does for want of memory. {said}")
        outcome = Outcome.OUT_OF_MEMORY if "bad_alloc" in said or "out of memory" in said.lower() else Outcome.CRASH
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Measurement(outcome, detail=f"{cause}. {said}".strip())

    def kill(self) -> None:
        """End the process, and what it started, and wait for its end."""
        if not self.dead:
            if not self.exited:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended just now
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.wire.close()
            self.dead, self.idle = True, False
