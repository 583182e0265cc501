"""A ``lorien featurize`` whose worker waits for the content of a log, as of a slow disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def featurizing(words: Sequence[object], stored: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Run ``lorien`` with these words until its worker is at the stored log; the command and the worker.

    The log's checksum is looked at before a worker is started. Then a pipe takes the place of the log, which opens for
    writing when the worker reads it. What is running in the end is killed, and the log put back.
    """
    aside = stored.with_name(f"{stored.name}.aside")
    program = [sys.executable, "-B", "-c", "from lorien.cli import main; main()", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, start_new_session=True, **pipes) as running:
        try:
            worker = _worker_of(running)
            worker.send_signal(signal.SIGSTOP)
            stored.rename(aside)
            os.mkfifo(stored)
            worker.send_signal(signal.SIGCONT)
            with stored.open("wb"):
                yield running, worker
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            aside.replace(stored)


def _worker_of(running: subprocess.Popen[str]) -> psutil.Process:
    while running.poll() is None:
        for child in psutil.Process(running.pid).children(recursive=True):
            try:
                if any("spawn_main" in word for word in child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
    raise AssertionError(f"it ended without a worker: {running.communicate()}")
