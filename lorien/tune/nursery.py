"""Children that begin warm: one process loads the framework, and each child is a fork of it.

To import TVM takes a core for a second or two, in each of the children, and again whenever one was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

RUNNING = b"running"
"""What the nursery says of a child that has not ended; else its exit code, in digits."""
MESSAGE_BYTES = 1 << 16
_POLL_S = 0.001


def spawn(command: Sequence[str], wire: int, log: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command, with the number of the socket ``wire`` as its last argument; what it says goes to ``log``.

    What it and its compilers leave when they are killed is in ``folder``, which the caller removes.
    """
    return subprocess.Popen(  # noqa: S603
        [*command, str(wire)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[wire],
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,  # an interrupt in the terminal is for the parent, which then kills
    )


class Nursery:
    """The process that is forked. It ends with this one, however that comes.

    Parameters
    ----------
    command : sequence of str
        What it is started by: ``lorien.tune._child.prepare`` with the number of the socket, which follows the command.
    dialect : str
        What it loads at once; ``warm_up`` says the rest.
    log : Path
        Where it writes what nobody should read.
    """

    def __init__(self, command: Sequence[str], dialect: str, log: Path) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("wb") as out:
            self._process = spawn(command, theirs.fileno(), out.fileno(), log.parent)
        self._control.send(dialect.encode())
        self._lock = threading.Lock()
        self._unborn: deque[Forked] = deque()
        self._births = 0

    def warm_up(self, setup: bytes) -> None:
        """Say what it loads for, before its first child: the message that each child gets first as well."""
        with contextlib.suppress(OSError):  # it has ended: so will its children
            self._control.send(setup)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """True when it cannot be forked any more."""
        return self._process.poll() is not None

    def fork(self, wire: int, log: int) -> Forked:
        """A child that serves the jobs of the socket ``wire``; it comes when the framework is loaded."""
        child = Forked(self)
        with self._lock:
            self._unborn.append(child)
            try:
                socket.send_fds(self._control, [b"fork"], [wire, log])
            except OSError:  # it has ended: so have its children to be
                self._bury()
        return child

    def look_after(self, child: Forked) -> None:
        """Find out whether a child has ended, and how."""
        with self._lock:
            try:
                while self._unborn:
                    born = self._receive()
                    self._unborn.popleft().pid = int(born)
                    self._births += 1
                if child.returncode is None:  # once it is told, there is no such child any more
                    self._control.send(b"%d" % child.pid)
                    answer = self._receive()
                    child.returncode = None if answer == RUNNING else int(answer)
            except OSError:
                self._bury()
                if child.returncode is None and not _alive(child.pid):
                    child.returncode = -signal.SIGKILL

    def cancel(self) -> None:
        """End it where it has no child yet: nobody waits for the framework any more."""
        with self._lock:
            if not self._births:
                self._bury()

    def close(self) -> None:
        """End it; its children are to be ended before."""
        with self._lock:
            self._bury()
            self._control.close()

    def _receive(self) -> bytes:
        message = self._control.recv(MESSAGE_BYTES)
        if not message:
            raise ConnectionResetError
        return message

    def _bury(self) -> None:
        self._process.kill()
        self._process.wait()
        while self._unborn:
            self._unborn.popleft().returncode = -signal.SIGKILL


class Forked:
    """A child of the nursery, with as much of ``subprocess.Popen`` as it takes to end it."""

    def __init__(self, nursery: Nursery) -> None:
        self.pid = 0
        """Zero until it is born."""
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """The exit code; None as long as it lives."""
        if self.returncode is None:
            self._nursery.look_after(self)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        began_s = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began_s > timeout:
                raise subprocess.TimeoutExpired("a measuring process", timeout)
            time.sleep(_POLL_S)
        return code


def _alive(pid: int) -> bool:
    """Whether an orphan still runs: where nobody reaps them, one that has ended stays as a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
