"""Workers as processes of this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lorien.files import temporary_folder
from lorien.tune.worker import WorkerConfig

COMMAND = (sys.executable, "-c", "from lorien.cli import main; main()", "worker")
_EXIT_TIMEOUT_S = 30.0
_TAIL_BYTES = 500


class LocalExecutor:
    """``Executor`` of this machine. Workers that measure share its cores: one at a time gives the truest latencies."""

    def __init__(self, worker: WorkerConfig) -> None:
        self._worker = worker
        self._folder = temporary_folder("lorien-workers-")
        self._running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._started = 0
        self._deaths: list[str] = []

    def start(self, target: str, count: int) -> None:
        """See ``Executor.start``."""
        for _ in range(count):
            self._started += 1
            log = Path(self._folder.name, f"worker{self._started}.log")
            with log.open("wb") as output:
                process = subprocess.Popen(  # noqa: S603
                    [*COMMAND, *replace(self._worker, target=target).arguments, "--json"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # an interrupt in the terminal is for the driver, which passes it on
                )
            self._running.append((target, process, log))

    def alive(self) -> Counter[str]:
        """See ``Executor.alive``."""
        self._reap()
        return Counter(target for target, *_ in self._running)

    def deaths(self) -> list[str]:
        """See ``Executor.deaths``."""
        self._reap()
        deaths, self._deaths = self._deaths, []
        return deaths

    def close(self) -> None:
        """See ``Executor.close``."""
        for _, process, _ in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for _, process, _ in self._running:
            try:
                process.wait(_EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        self._folder.cleanup()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _reap(self) -> None:
        running = []
        for target, process, log in self._running:
            if (code := process.poll()) is None:
                running.append((target, process, log))
                continue
            if code:
                cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                said = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
                self._deaths.append(f"{cause}. {said}".strip())
            log.unlink()
        self._running = running
