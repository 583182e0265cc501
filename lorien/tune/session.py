"""The log of one tuning session: what is measured goes in, a line at a time, and all of the session's state comes out.

A session is a folder: the framework's native files, ``lorien.json``, and ``details.jsonl`` with what native logs have
no place for: the kind and the text of an error, or that a slow candidate was stopped early. The folder comes
into being whole. After that its files only grow, and a record is acknowledged when its line is on the disk: the
``fsync`` of each is about a hundredth of what it cost to measure. Whatever stops the session, the acknowledged records
are a prefix of the file; a torn last line is cut off on resume.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from pathlib import Path

import orjson

from lorien.dialects import open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport, Task
from lorien.errors import BadInput, StoreUnavailable
from lorien.files import atomic_folder
from lorien.logs.base import DETAILS, SIDECAR, info_of, read_sidecar, task_to_json
from lorien.records import Candidate, Measurement, Workload, canonical_json
from lorien.target import Target

logger = logging.getLogger(__name__)

_NAME_CHARS = 80
KEPT = 64
"""Fastest candidates of a workload that stay in memory, for a search to start from."""


@dataclass
class Trials:
    """What a session knows of one workload."""

    workload: Workload
    latencies_s: list[float] = field(default_factory=list)
    """Of each trial in order, infinity for a failure."""
    keys: set[str] = field(default_factory=set)
    """Candidates measured."""
    _top: list[tuple[float, int, Candidate, Measurement]] = field(default_factory=list)

    @property
    def best_s(self) -> float:
        """Lowest latency in seconds; infinity while nothing ran."""
        return min(self.latencies_s, default=math.inf)

    def top(self) -> list[tuple[Candidate, Measurement]]:
        """At most ``KEPT`` candidates that ran, fastest first."""
        fastest = sorted(self._top, key=lambda entry: entry[:2], reverse=True)
        return [(candidate, measurement) for *_, candidate, measurement in fastest]

    def add(self, candidate: Candidate, measurement: Measurement) -> None:
        """Count one trial."""
        latency_s = measurement.latency_s
        self.keys.add(candidate.key)
        self.latencies_s.append(math.inf if latency_s is None else latency_s)
        if latency_s is not None:
            entry = (-latency_s, -len(self.latencies_s), candidate, measurement)
            (heappush if len(self._top) < KEPT else heappushpop)(self._top, entry)


class Session:
    """An open session. One process at a time: the kernel lets go of the folder's lock however that process ends.

    Attributes
    ----------
    workloads, target, dialect, build
        What is tuned, where, and with what.
    trials : list of Trials
        One for each workload, in the order of the session.
    outcomes : Counter of str
        Trials by outcome.
    """

    def __init__(self, folder: Path) -> None:
        """Open a session that is there; every acknowledged record is counted, and nothing but the log is read.

        Raises
        ------
        BadInput
            There is no session, another process writes it, another framework build wrote it, or it is damaged.
        """
        sidecar = read_sidecar(folder)
        info = info_of(sidecar, folder / SIDECAR)
        try:
            self.workloads = [Workload.from_json(workload) for workload in sidecar["workloads"]]
            self.dialect = open_live_dialect(sidecar["dialect"])
            self.target = Target.parse(sidecar["target"])
        except (KeyError, TypeError) as error:
            raise BadInput(f"{folder} holds no tuning session: {SIDECAR} lacks {error}. Fix: remove it") from None
        self.folder = folder
        self.build = self.dialect.framework()
        if info.build != self.build:
            raise BadInput(
                f"{folder} was tuned with {info.build}, this is {self.build}: their latencies do not mix. "
                "Fix: install that build, or tune into other --logs"
            )
        self.trials = [Trials(workload) for workload in self.workloads]
        self.outcomes: Counter[str] = Counter()
        self._writer = self.dialect.log_writer(self.workloads, self.target)
        self._records = folder / self._writer.record_file
        with ExitStack() as stack:
            self._record_handle = stack.enter_context(_locked(self._records))
            self._detail_handle = stack.enter_context(_locked(folder / DETAILS))
            self._load()
            self._open = stack.pop_all()

    @classmethod
    def create(cls, folder: Path, workloads: Sequence[Workload], target: Target) -> Session:
        """Start a session of distinct workloads of one dialect, in a folder that is not there yet, or empty.

        Of processes that do so at the same time, one makes the folder and one has the session, none replaces another's.

        Raises
        ------
        BadInput
            The workloads are none, or of several dialects; or another process has the session.
        StoreUnavailable
            The folder cannot be written.
        """
        dialects = {workload.dialect for workload in workloads}
        if len(dialects) != 1:
            raise BadInput(f"a session is of one dialect; the workloads have {sorted(dialects) or 'none'}")
        dialect = open_live_dialect(dialects.pop())
        writer = dialect.log_writer(workloads, target)
        networks = {network for workload in workloads for network in workload.networks}
        sidecar = {
            "dialect": dialect.name,
            "target": target.to_json(),
            "framework": dialect.framework(),
            "network": networks.pop() if len(networks) == 1 else None,  # of several, each workload names its own
            "host": socket.gethostname(),
            "job": folder.name,
            "started_s": time.time(),
            "tasks": [task_to_json(Task(w.name, w.weight, w.networks)) for w in workloads],
            "workloads": [workload.to_json() for workload in workloads],
        }
        try:
            with atomic_folder(folder, replace=False) as temporary:
                (temporary / writer.workload_file).write_bytes(writer.workload_lines())
                (temporary / writer.record_file).touch()
                (temporary / DETAILS).touch()
                (temporary / SIDECAR).write_bytes(orjson.dumps(sidecar, option=orjson.OPT_INDENT_2))
        except OSError as error:
            if not _begun(folder):
                raise StoreUnavailable(f"cannot create {folder}: {error}. Fix: free space, or other --logs") from error
            # Another process came first; it may not have opened it yet. Whoever locks it has it.
        return cls(folder)

    def append(self, index: int, candidate: Candidate, measurement: Measurement) -> None:
        """Acknowledge one trial of workload number ``index``: it is on the disk when this returns.

        Raises
        ------
        StoreUnavailable
            It could not be written, for want of space or by a fault of the disk. What was acknowledged before is there.
        """
        try:
            # First, so that no record is without its details. Those of a record that then never comes count for
            # nothing: the next of that number has the last word.
            detail = {"record": self.records, **measurement.to_json()}
            told = bool(measurement.detail or not measurement.ok)
            _append(self._detail_handle, orjson.dumps(detail) + b"\n", sync=told)
            _append(self._record_handle, self._writer.record_line(index, candidate, measurement))
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write {self._records}: {error.strerror}; the {self.records} trials before are safe. "
                "Fix: free space, then the same command with --resume"
            ) from error
        self._count(index, candidate, measurement)

    @property
    def records(self) -> int:
        """Trials acknowledged."""
        return sum(self.outcomes.values())

    def close(self) -> None:
        """Let go of the folder. Closing twice is fine."""
        self._open.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _count(self, index: int, candidate: Candidate, measurement: Measurement) -> None:
        self.trials[index].add(candidate, measurement)
        self.outcomes[measurement.outcome.value] += 1

    def _load(self) -> None:
        _cut_torn_end(self._records, self._record_handle)
        _cut_torn_end(self.folder / DETAILS, self._detail_handle)
        if not self._records.stat().st_size:
            return
        details = _details(self.folder / DETAILS)
        index = {workload.key: number for number, workload in enumerate(self.workloads)}
        report = ReadReport()
        for number, record in enumerate(self.dialect.read(self.folder, LogInfo(self.target), report)):
            detailed = details.get(number, record.measurement)
            measurement = detailed if detailed.ok == record.measurement.ok else record.measurement
            self._count(index[record.workload.key], record.candidate, measurement)
        if report.unreadable:
            raise BadInput(
                f"{self._records} is damaged before its end, in {report.unreadable} lines: {report.reasons[0]}. "
                "Fix: lorien ingest what can be read of it, and tune into other --logs"
            )


def open_session(root: Path, workloads: Sequence[Workload], target: Target, *, resume: bool) -> Session:
    """The session of these workloads on this target, whatever their order, in a folder of ``root`` named after them.

    Raises
    ------
    BadInput
        It is there, with trials, and ``resume`` is False; or see ``Session``.
    StoreUnavailable
        It cannot be created.
    """
    folder = root / session_name(workloads, target)
    if _begun(folder):
        session = Session(folder)
    else:
        session = Session.create(folder, list({workload.key: workload for workload in workloads}.values()), target)
    if session.records and not resume:
        session.close()
        raise BadInput(
            f"{folder} holds {session.records} trials of these workloads. Fix: --resume goes on with them; "
            "to tune anew, remove the folder or give other --logs"
        )
    return session


def session_name(workloads: Sequence[Workload], target: Target) -> str:
    """Name of the session of these workloads on this target, whatever their order and on every machine."""
    identity = canonical_json([target.key, sorted({workload.key for workload in workloads})])
    networks = "+".join(sorted({network for workload in workloads for network in workload.networks})) or "tune"
    readable = re.sub(r"[^A-Za-z0-9._+]+", "-", networks)[:_NAME_CHARS]
    return f"{readable}-{hashlib.sha256(identity).hexdigest()[:12]}"


def _begun(folder: Path) -> bool:
    """Whether there is a session, or anything else that a new one must not replace."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        raise BadInput(f"{path.parent} holds no tuning session: {path.name} is missing. Fix: remove it") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    except BlockingIOError:
        raise BadInput(f"{path.parent} is being written by another process. Fix: wait for it, or stop it") from None
    finally:
        os.close(handle)


def _append(handle: int, line: bytes, *, sync: bool = True) -> None:
    """Write a line to the disk, or leave the file as it was. Without ``sync``, the disk has it some seconds later."""
    end = os.fstat(handle).st_size
    try:
        while line:
            line = line[os.write(handle, line) :]
        if sync:
            os.fsync(handle)
    except OSError:
        os.ftruncate(handle, end)
        raise


def _cut_torn_end(path: Path, handle: int) -> None:
    """Remove what a crash left of the last line: no newline, or after a power loss pages that were never written."""
    size = whole = 0
    with path.open("rb") as file:
        for line in file:
            size += len(line)
            if line.endswith(b"\n") and b"\0" not in line:
                whole = size
    if whole < size:
        logger.warning("%s: removed %d bytes of a line that was never acknowledged", path, size - whole)
        os.ftruncate(handle, whole)


def _details(path: Path) -> dict[int, Measurement]:
    """Measurements in full, by number of the record; a line that cannot be read tells nothing."""
    found = {}
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            value = orjson.loads(line)
            found[int(value["record"])] = Measurement.from_json(value)
    return found
