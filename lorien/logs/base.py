"""The contract of a log store, and what it keeps beside each log."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import orjson

from lorien.dialects.base import UNKNOWN_BUILD, LogInfo, Task
from lorien.errors import BadInput, SchemaMismatch
from lorien.files import kind_of_folder
from lorien.records import Json
from lorien.target import Target

SIDECAR = "lorien.json"
SIDECAR_VERSION = 1
DETAILS = "details.jsonl"
"""Beside the native files of a session: what they have no place for."""
MAX_NAME_CHARS = 120
"""Of a network in an id: a folder's name has room for 255 bytes."""
SESSIONS = "sessions"
"""Folder of a store where tuning sessions grow: what is in it is no log yet."""


@dataclass(frozen=True)
class LogFile:
    """One native file of a log.

    Parameters
    ----------
    name : str
        As the framework named it.
    stored_bytes : int
        Size as it came, compressed or not.
    bytes, sha256 : int, str
        Of the decompressed content.
    lines_bytes, lines_sha256 : int, str
        Of the decompressed content to its last newline: the part that stays when an interrupted run is resumed.
    """

    name: str
    stored_bytes: int
    bytes: int
    sha256: str
    lines_bytes: int
    lines_sha256: str


@dataclass(frozen=True)
class StoredLog:
    """A log in a store. It never changes: a run that grew is another log, which replaces it.

    Parameters
    ----------
    dialect : str
        Framework that wrote it.
    target : Target
        The device.
    network : str, optional
        Network it was tuned for.
    build : str
        Framework and version, where the log does not say.
    tasks : tuple of Task
        The workloads as their tuner knows them, where it says.
    files : tuple of LogFile
        The native files, in the dialect's order.
    is_folder : bool
        The dialect takes the folder of the files for the log, not its one file.
    fingerprint : str
        SHA-256 over the decompressed content, hexadecimal: neither names nor compression change it.
    records, failed, unreadable, workloads : int
        What a full reading counted; ``failed`` ones are records too.
    target_given : bool, optional
        The target was given, by the user or beside the log, and overrides what its lines say; False when the log
        itself named it. None in sidecars of before this was written down.
    host, job : str, optional
        Machine it was measured on and tuning job that wrote it, where known.
    started_s, ended_s : float, optional
        Unix times of the first and last measurement, where the log says.
    place : str, optional
        Where it is in a store, when its target's key was another then.
    """

    dialect: str
    target: Target
    network: str | None
    files: tuple[LogFile, ...]
    is_folder: bool
    fingerprint: str
    records: int
    failed: int
    unreadable: int
    workloads: int
    build: str = UNKNOWN_BUILD
    tasks: tuple[Task, ...] = ()
    host: str | None = None
    job: str | None = None
    started_s: float | None = None
    ended_s: float | None = None
    target_given: bool | None = None
    place: str | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """Its place in a store: ``<dialect>/<target key>/<network>-<12 digits of the fingerprint>``."""
        if self.place:
            return self.place
        network = re.sub(r"[^A-Za-z0-9._+]+", "-", self.network or "").strip("-.")[:MAX_NAME_CHARS] or "log"
        return f"{self.dialect}/{self.target.key}/{network}-{self.fingerprint[:12]}"

    @property
    def info(self) -> LogInfo:
        """What ``LogDialect.read`` is to be told."""
        return LogInfo(self.target, self.network, self.build, self.tasks, self.target_given is not False)

    @property
    def size_bytes(self) -> int:
        """All files, as stored."""
        return sum(file.stored_bytes for file in self.files)

    def to_json(self) -> dict[str, Json]:
        """Content of the sidecar; what a tuner writes beside its log has the same names."""
        value = {"version": SIDECAR_VERSION} | asdict(self)
        value["target"] = self.target.to_json()
        del value["place"]
        value["framework"] = value.pop("build")
        value["tasks"] = [task_to_json(task) for task in self.tasks]
        return value

    def _problem(self) -> str:
        """What of a log read from a sidecar cannot be true; empty when nothing is."""
        texts = [
            self.dialect,
            self.fingerprint,
            *(part for f in self.files for part in (f.name, f.sha256, f.lines_sha256)),
        ]
        counts = [self.records, self.failed, self.unreadable, self.workloads]
        counts += [size for file in self.files for size in (file.stored_bytes, file.bytes, file.lines_bytes)]
        if not all(isinstance(text, str) and text for text in texts):
            return "a name or a digest is no text"
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            return "a count is no number"
        if not self.files or any("/" in file.name or file.name == ".." for file in self.files):
            return "it names no files of its folder"
        times = [at_s for at_s in (self.started_s, self.ended_s) if at_s is not None]
        return "" if all(isinstance(at_s, (int, float)) for at_s in times) else "a time is no number"

    @classmethod
    def from_json(cls, value: dict[str, Json], where: Path | str, place: str | None = None) -> StoredLog:
        """Read what ``to_json`` wrote, at a place in a store.

        Raises
        ------
        SchemaMismatch
            It is of another version than this Lorien's.
        BadInput
            Fields are missing or of the wrong kind.
        """
        if value.get("version") != SIDECAR_VERSION:
            raise SchemaMismatch(
                f"{where} is of version {value.get('version')!r}, this Lorien reads {SIDECAR_VERSION}. "
                "Fix: use the Lorien that wrote it, or ingest the log into a new store"
            )
        info = info_of(value, where)
        if info.target is None:
            raise BadInput(f"{where} names no target. Fix: ingest the log again with --target")
        names = ("dialect", "is_folder", "fingerprint", "records", "failed", "unreadable", "workloads")
        try:
            log = cls(
                target=info.target,
                network=info.network,
                build=info.build,
                tasks=info.tasks,
                files=tuple(LogFile(**file) for file in value["files"]),
                target_given=value.get("target_given"),
                **{name: value[name] for name in (*names, "host", "job", "started_s", "ended_s")},
            )
        except (KeyError, TypeError) as error:
            raise BadInput(f"{where} is damaged ({error}). Fix: remove its folder and ingest the log again") from None
        if problem := log._problem():
            raise BadInput(f"{where} is damaged ({problem}). Fix: remove its folder and ingest the log again")
        return log if place in (None, log.id) else replace(log, place=place)


class LogStore(Protocol):
    """Full tuning logs as their frameworks wrote them. Safe across threads and processes.

    All methods raise ``StoreUnavailable`` when the store cannot be read or written.
    """

    url: str

    def list(self, dialect: str | None = None, target: Target | None = None) -> Iterator[StoredLog]:
        """Stream the logs by dialect, target and name; none where the store is empty or not there yet.

        Raises
        ------
        SchemaMismatch, BadInput
            A sidecar is of another version, or damaged.
        """

    def local(self, log: StoredLog) -> AbstractContextManager[Path]:
        """The log as a local path for ``LogDialect.read``, as long as the context lasts. Every byte of it is checked.

        Raises
        ------
        LogGone
            It is no longer there, or went before the files could be opened.
        ChecksumMismatch
            A file is not the one that was published: it was damaged since.
        """

    def publish(self, log: StoredLog, files: Sequence[Path]) -> bool:
        """Copy a log in: seen whole or not at all. False when a log of that id was there already.

        Raises
        ------
        BadInput
            A file changed since the log was described.
        """

    def describe(self, log: StoredLog) -> None:
        """Write down anew what is known of a stored log, whose files stay as they are; nothing when it is gone."""

    def remove(self, log: StoredLog) -> None:
        """Take a log out; nothing when it is gone."""


def no_logs(url: str) -> BadInput:
    """The error of a store that holds no log (of the kind asked for)."""
    kind = None if "://" in url else kind_of_folder(Path(url))
    if kind == "tuning logs":
        return BadInput(
            f"no such logs in the store {url}; if it is a folder of native logs, "
            f"Fix: lorien ingest {url} --dialect D --logs LOGS, and give LOGS"
        )
    if kind:
        return BadInput(f"{url} holds {kind}, no logs. Fix: give the store that lorien ingest or lorien tune wrote")
    return BadInput(f"no logs in {url}. Fix: lorien ingest PATH --dialect D --logs {url}")


def sidecar_of(log: Path) -> Path:
    """Where the ``lorien.json`` of a log is: in the folder that is the log, or that holds it."""
    return (log if log.is_dir() else log.parent) / SIDECAR


def read_sidecar(log: Path) -> dict[str, Json]:
    """What the ``lorien.json`` of a log says; empty when there is none.

    Raises
    ------
    BadInput
        It cannot be read, or is no JSON object.
    """
    path = sidecar_of(log)
    try:
        value = orjson.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}. Fix: correct or remove it") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is no JSON object. Fix: correct or remove it")
    return value


def task_to_json(task: Task) -> dict[str, Json]:
    """A task as a sidecar lists it."""
    value: dict[str, Json] = {"task": task.name, "weight": task.weight}
    return value | ({"networks": list(task.networks)} if task.networks else {})


def info_of(sidecar: dict[str, Json], where: Path | str) -> LogInfo:
    """What a sidecar tells a reader. Raises ``BadInput`` on values of the wrong kind."""
    target, network, build = (sidecar.get(name) for name in ("target", "network", "framework"))
    try:
        return LogInfo(
            target=Target.parse(target) if target else None,
            network=str(network) if network else None,
            build=str(build) if build else UNKNOWN_BUILD,
            tasks=tuple(
                Task(str(task["task"]), float(task["weight"]), tuple(map(str, task.get("networks") or ())))
                for task in sidecar.get("tasks") or ()
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{where}: {type(error).__name__} {error}. Fix: correct or remove it") from None
