"""The child's side of measuring: takes jobs from a socket, one at a time, until its parent is gone."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from lorien.dialects import open_live_dialect
from lorien.dialects.remote import DeviceLost, SessionBroken, Tracker
from lorien.errors import BadInput, LorienError
from lorien.plausible import doubt
from lorien.records import Candidate, Json, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune.compare import KERNEL, compare_outputs, load_outputs, save_outputs
from lorien.tune.nursery import MESSAGE_BYTES, RUNNING
from lorien.tune.remeasure import STOPPED_EARLY
from lorien.tune.search_job import search

if TYPE_CHECKING:
    import numpy.typing as npt

    from lorien.dialects.base import LiveDialect
    from lorien.dialects.remote import RemoteDialect

_GRACE_S = 10.0
DEVICE, LOST, NO_DEVICE = "device", "lost", "no device"
"""Keys of messages that are no measurement: the device that was taken; it gave no session; there is none to be had."""
RESULT, SPENT_S, BROKE = "result", "spent_s", "broke"
"""Keys of the message that ends a job: a measurement or null; CPU seconds, of a job done on this machine; of one on a
device, whether its session was gone before it was closed."""
_DETAIL_CHARS = 500
LOOKS = ((1, 0.002, 4.0), (2, 0.004, 2.0), (3, 0.01, 1.25))
"""What a candidate goes through before full repeats: so many repeats of so many seconds, and how many times the best
latency known it may take. A run alone says little: threads that wake up late have made one twice as long."""


def prepare(fd: int) -> None:
    """Load the framework, then be forked as often as the socket ``fd`` asks, until the parent is gone.

    The first message names the dialect, the second is the set-up of the children. Then a message with two descriptors,
    the child's wire and its log, asks for a child, and its process is the answer; a process asks for that child's exit
    code.
    """
    control = socket.socket(fileno=fd)
    name = control.recv(MESSAGE_BYTES).decode()
    _few_threads()
    with contextlib.suppress(Exception):  # each child meets it again, and can tell
        open_live_dialect(name).framework()
    setup = control.recv(MESSAGE_BYTES)
    if not setup:
        return
    with contextlib.suppress(Exception):
        open_live_dialect(name).warm_up(Target.parse(orjson.loads(setup)["target"]))
    gc.collect()
    gc.freeze()  # what is shared stays shared
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        if not message:
            return
        if descriptors:
            wire, log = descriptors
            child = os.fork()
            if not child:
                control.close()
                os.setpgid(0, 0)
                for out in (1, 2):
                    os.dup2(log, out)
                os.close(log)
                main(wire)
                return
            with contextlib.suppress(OSError):  # here as well: whoever is told of it may kill its group at once
                os.setpgid(child, child)
            os.close(wire)
            os.close(log)
            control.send(b"%d" % child)
        else:
            ended, status = os.waitpid(int(message), os.WNOHANG)
            control.send(b"%d" % os.waitstatus_to_exitcode(status) if ended else RUNNING)


def _few_threads() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's pool would take threads, and memory, from what is measured


def main(fd: int) -> None:
    """Serve the jobs that come through the socket ``fd``; every message is JSON. The first one is the set-up."""
    threading.Thread(target=_die_with_parent, args=(fd,), daemon=True).start()
    wire = Connection(fd)
    setup = orjson.loads(wire.recv_bytes())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (setup["memory_bytes"], setup["memory_bytes"]))
    _few_threads()
    target = Target.parse(setup["target"])
    dialect = open_live_dialect(setup["dialect"])
    dialect.warm_up(target)
    answer: Json = None
    while True:
        try:
            wire.send_bytes(orjson.dumps(answer))
            job = orjson.loads(wire.recv_bytes())
        except (EOFError, OSError):
            return
        # The parent kills what overruns. Should it be gone too, and the thread below kept from running by native code
        # that holds the interpreter, the kernel does it.
        signal.setitimer(signal.ITIMER_REAL, job["wait_s"] + job["timeout_s"] + _GRACE_S)
        if job["tracker"] is None:
            started_s = time.process_time()
            result = _JOBS[job["do"]](dialect, target, job)
            answer = {SPENT_S: time.process_time() - started_s, RESULT: result and result.to_json()}
        else:
            answer = _remotely(dialect, target, job, wire)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _die_with_parent(fd: int) -> None:
    hang_up = select.poll()
    hang_up.register(fd, 0)
    hang_up.poll()
    os.killpg(0, signal.SIGKILL)  # the child leads its process group: a compiler it started goes too


def _build(dialect: LiveDialect, target: Target, job: dict[str, Json]) -> Measurement | None:
    library = Path(job["library"])

    def build() -> Measurement | None:
        dialect.build(Workload.from_json(job["workload"]), Candidate(job["schedule"]), target, library)
        return None if library.is_file() else Measurement(Outcome.BUILD_ERROR, detail="the build wrote no library")

    return _attempt(build, Outcome.BUILD_ERROR)


def _remotely(dialect: LiveDialect, target: Target, job: dict[str, Json], wire: Connection) -> Json:
    """Do a job on a device of a tracker. Which one is said before it begins: the parent may have to end this."""
    farm = cast("RemoteDialect", dialect)  # the parent has looked
    result, broke = None, False
    try:
        device = farm.take(Tracker(**job["tracker"]), job["avoid"], job["banned"])
        wire.send_bytes(orjson.dumps({DEVICE: device.address}))
        started_s = time.monotonic()
        with farm.at(device, job["session_s"]) as there:
            result = _JOBS[job["do"]](there, target, job)
    except DeviceLost as error:
        return {LOST: str(error)}
    except LorienError as error:
        return {NO_DEVICE: str(error)}
    except SessionBroken:
        broke = True
    if result is not None and not result.ok and time.monotonic() - started_s >= job["session_s"]:
        broke = False
        result = Measurement(Outcome.RUN_TIMEOUT, detail=f"ended by the device after {job['session_s']:g} s")
    return {RESULT: result and result.to_json(), BROKE: broke}


def _run(dialect: LiveDialect, target: Target, job: dict[str, Json]) -> Measurement | None:
    workload, library = Workload.from_json(job["workload"]), Path(job["library"])
    # JSON knows no infinity: null, too, when there is no best yet.
    looks = LOOKS if job["best_s"] is not None else ()

    def timed(repeat: int, min_repeat_s: float) -> Measurement:
        latencies_s = dialect.run(workload, library, target, repeat=repeat, min_repeat_s=min_repeat_s)
        return _timed(latencies_s, workload.flop, target.kind)

    def run() -> Measurement:
        if job["expected"] is not None:
            wrong = _difference(dialect.outputs(workload, library, target), _load(job["expected"]))
            if wrong:
                return Measurement(Outcome.WRONG_RESULT, detail=wrong)
        for repeat, min_repeat_s, slack in looks:
            look = timed(repeat, min_repeat_s)
            if not look.ok or min(look.latencies_s) > slack * job["best_s"]:
                stopped = f"{STOPPED_EARLY}: takes more than {slack:g} times the best, {job['best_s']:.3g} s"
                return replace(look, detail=look.detail or stopped)
        return timed(job["repeat"], job["min_repeat_s"])

    return _attempt(run, Outcome.RUN_ERROR)


def _timed(latencies_s: list[float], flop: float | None, kind: str) -> Measurement:
    if latencies_s and all(0 < latency_s < math.inf for latency_s in latencies_s):
        measured = Measurement(Outcome.OK, tuple(latencies_s))
        why = doubt(measured.latency_s, flop, kind)
        return Measurement(Outcome.RUN_ERROR, detail=f"the run cannot be true: {why}") if why else measured
    return Measurement(Outcome.RUN_ERROR, detail=f"the run gave no usable latencies: {latencies_s}")


def _expect(dialect: LiveDialect, target: Target, job: dict[str, Json]) -> Measurement | None:
    def expect() -> None:
        found = dialect.outputs(Workload.from_json(job["workload"]), Path(job["library"]), target)
        save_outputs(Path(job["expected"]), found)

    return _attempt(expect, Outcome.RUN_ERROR)


def _search(dialect: LiveDialect, target: Target, job: dict[str, Json]) -> Measurement | None:
    return _attempt(lambda: search(dialect, target, job), Outcome.UNKNOWN_ERROR)


_JOBS: dict[str, Callable[[LiveDialect, Target, dict[str, Json]], Measurement | None]] = {
    "build": _build,
    "run": _run,
    "expect": _expect,
    "search": _search,
}


def _attempt(work: Callable[[], Measurement | None], failure: Outcome) -> Measurement | None:
    try:
        return work()
    except Exception as error:  # a framework raises anything; here it is data
        if isinstance(error, MemoryError) or "bad_alloc" in str(error):
            failure = Outcome.OUT_OF_MEMORY
        elif isinstance(error, BadInput):
            failure = Outcome.INSTANTIATION_ERROR
        return Measurement(failure, detail=f"{type(error).__name__}: {error}".strip()[:_DETAIL_CHARS])


@functools.lru_cache(maxsize=1)
def _load(expected: str) -> list[npt.NDArray[Any]]:
    return load_outputs(Path(expected))


def _difference(found: list[npt.NDArray[Any]], expected: list[npt.NDArray[Any]]) -> str:
    return compare_outputs(found, expected, KERNEL, reference="the naive kernel", what="tensor")
