"""A device farm on loopback: TVM's own tracker and servers, each in a process group that can be frozen and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from servers import free_port

from lorien.dialects.remote import Tracker

KEY = "board"
_START_S = 60.0


class DeviceFarm:
    """A tracker, and devices that are added to it."""

    def __init__(self) -> None:
        from lorien.dialects.metaschedule import MetaScheduleDialect

        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._dialect = MetaScheduleDialect()
        port = free_port()
        self.tracker = Tracker("127.0.0.1", port, KEY)
        self.url = f"rpc://127.0.0.1:{port}/{KEY}"
        self._address = f"127.0.0.1:{port}"
        self._start("tracker", *_module("rpc_tracker", port))
        self._wait(lambda: self.devices() == [])

    def add(self, count: int) -> list[str]:
        """Start devices; their addresses once all are registered."""
        ports = [free_port() for _ in range(count)]
        added = [f"127.0.0.1:{port}" for port in ports]
        for port, address in zip(ports, added, strict=True):
            self._start(address, *_module("rpc_server", port), "--tracker", self._address, "--key", KEY)
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

    def _start(self, name: str, *arguments: str) -> None:
        self._processes[name] = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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
                raise RuntimeError("the farm did not start")
            time.sleep(0.05)


def _module(name: str, port: int) -> list[str]:
    return ["-m", f"tvm.exec.{name}", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
