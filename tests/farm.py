"""A device farm on loopback: TVM's own tracker and servers, each in a process group that can be frozen and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lorien.dialects.remote import Tracker
from servers import free_port

KEY = "board"
_START_S = 60.0


class DeviceFarm:
    """A tracker, and devices that are added to it."""

    def __init__(self, folder: Path) -> None:
        from lorien.dialects.metaschedule import MetaScheduleDialect

        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._dialect = MetaScheduleDialect()
        port = free_port()
        self.tracker = Tracker("127.0.0.1", port, KEY)
        self.url = f"rpc://127.0.0.1:{port}/{KEY}"
        self._start("tracker", "rpc_tracker", port)
        self._wait(lambda: self.devices() == [])

    def add(self, count: int) -> list[str]:
        """Start devices; their addresses once all are registered."""
        ports = [free_port() for _ in range(count)]
        added = [f"127.0.0.1:{port}" for port in ports]
        for port, address in zip(ports, added, strict=True):
            options = ["--tracker", f"127.0.0.1:{self.tracker.port}", "--key", KEY]
            self._start(address, "rpc_server", port, *options)
        self._wait(lambda: set(added) <= set(self.devices()))
        return added

    def devices(self) -> list[str]:
        """Those registered."""
        return self._dialect.devices(self.tracker)

    def signal(self, name: str, number: int) -> None:
        """To all processes of a device, the one of its present session included."""
        os.killpg(self._processes[name].pid, number)

    def kill(self, name: str) -> None:
        """As when the power goes."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Kill all that is left."""
        for name in list(self._processes):
            self.kill(name)

    def _start(self, name: str, module: str, port: int, *options: str) -> None:
        command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1"]
        with (self._folder / f"{name.replace(':', '-')}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*command, "--port", str(port), "--port-end", str(port + 1), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, ready: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + _START_S
        while True:
            try:
                if ready():
                    return
            except OSError:
                pass
            if time.monotonic() > give_up_s:
                self.close()
                raise RuntimeError(f"the farm did not start; see {self._folder}")
            time.sleep(0.05)
