"""Logs into the log store, and their best schedules from there into the database."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorien.database.base import ScheduleDatabase, latency_of
from lorien.dialects import names, open_dialect
from lorien.dialects._lines import chunks
from lorien.dialects.base import UNKNOWN_BUILD, LogDialect, ReadReport
from lorien.errors import BadInput, LorienError, UnreadableLog
from lorien.logs.base import LogFile, LogStore, StoredLog, info_of, no_logs, read_sidecar, sidecar_of
from lorien.logs.split import split_by_target
from lorien.plausible import doubt_of
from lorien.records import Json, TuningRecord
from lorien.target import Target

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]
"""Called with (logs done, logs in all, records read so far)."""
PROGRESS_RECORDS = 2000
MAX_DOUBTS = 5

Tick = Callable[[Iterable[TuningRecord]], Iterator[TuningRecord]]


@dataclass
class IngestReport:
    """What ``ingest`` met.

    Parameters
    ----------
    records, failed, unreadable : int
        Readable records, those of them whose measurement failed, and lines that could not be read.
    workloads : int
        Distinct ones.
    new : int
        Records the store did not have.
    logs : list of str
        Ids of the logs in the store, in the order read.
    reasons : list of str
        Why lines could not be read: the first of each log.
    """

    records: int = 0
    failed: int = 0
    unreadable: int = 0
    workloads: int = 0
    new: int = 0
    logs: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass
class CommitReport:
    """What ``commit`` met.

    Parameters
    ----------
    logs, records, unreadable : int
        Logs and records read, and lines that could not be read.
    committed : int
        Schedules that entered the database's n best.
    reasons : list of str
        Why lines could not be read: the first of each log.
    implausible : int
        Records left out because their latencies cannot be true (``lorien.plausible``).
    doubts : list of str
        Why, with the id of the log: the first few.
    """

    logs: int = 0
    records: int = 0
    committed: int = 0
    unreadable: int = 0
    reasons: list[str] = field(default_factory=list)
    implausible: int = 0
    doubts: list[str] = field(default_factory=list)


def ingest(
    paths: Sequence[Path],
    store: LogStore,
    *,
    dialect: LogDialect,
    target: Target | None = None,
    network: str | None = None,
    build: str | None = None,
    split: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Check the logs at or below the paths, every record of them, and put them in the store.

    A log whose content is there already adds nothing. A log that grew takes the place of what it grew from.

    Parameters
    ----------
    target : Target, optional
        The device; else a ``lorien.json`` beside the log tells it, else the log itself.
    network : str, optional
        The network; else a ``lorien.json`` beside the log tells it, else the name of the file or folder.
    build : str, optional
        Framework and version; else a ``lorien.json`` beside the log tells it, else the log, else it stays unknown.
    split : bool
        Store what a log holds of each target as a log of its own.

    Raises
    ------
    UnreadableLog
        There is no log of the dialect under a path, or one without a readable record. Logs before it are stored.
    BadInput
        A log holds records of several targets, no target is given and it is not to be split; a ``lorien.json`` is
        damaged; a target is given and logs are to be split.
    StoreUnavailable
        The store cannot be read or written.
    """
    if split and target is not None:
        raise BadInput(
            "--target names one device for all records, --split takes them apart. Fix: leave out one of them"
        )
    logs = list(dict.fromkeys(log for path in paths for log in _found(path, dialect)))
    if not split:
        return _ingest(logs, store, dialect, target, network, build, progress)
    with tempfile.TemporaryDirectory(prefix="lorien-split-") as temporary:
        folders = (Path(temporary, str(index)) for index in range(len(logs)))
        parts = [
            part for log, folder in zip(logs, folders, strict=True) for part in split_by_target(log, dialect, folder)
        ]
        return _ingest(parts, store, dialect, None, network, build, progress)


def _ingest(
    logs: Sequence[Path],
    store: LogStore,
    dialect: LogDialect,
    target: Target | None,
    network: str | None,
    build: str | None,
    progress: Progress | None,
) -> IngestReport:
    report = IngestReport()
    workloads: set[str] = set()
    for done, path in enumerate(logs):
        read = ReadReport()
        tick = _ticker(progress, done, len(logs), report.records)
        log, keys = _describe(path, dialect, target, network, build, read, tick)
        log, new = _store(log, dialect.files(path), store)
        workloads |= keys
        report.records += read.records
        report.failed += read.failed
        report.unreadable += read.unreadable
        report.reasons += read.reasons
        report.new += new
        report.logs.append(log.id)
    report.workloads = len(workloads)
    return report


def publish(path: Path, store: LogStore, *, dialect: LogDialect) -> StoredLog:
    """Check the log that is at a path, and put it in the store. Publishing it again adds nothing.

    For a log that has ended and no earlier version of which is there: unlike ``ingest``, this lists nothing, and takes
    no longer in a large store.

    Raises
    ------
    UnreadableLog, BadInput, StoreUnavailable
        See ``ingest``.
    """
    log, _ = _describe(path, dialect, None, None, None, ReadReport(), iter)
    store.publish(log, dialect.files(path))
    return log


def commit(
    store: LogStore,
    database: ScheduleDatabase,
    *,
    dialect: str | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> CommitReport:
    """Put the best schedules of the logs into the database. Doing it again changes nothing.

    Raises
    ------
    BadInput
        The store holds no such log.
    StoreUnavailable, DatabaseUnavailable
        What was committed before stays.
    """
    report = CommitReport()
    logs = list(store.list(dialect, target))
    if not logs:
        raise no_logs(store.url)
    for done, log in enumerate(logs):
        reader = open_dialect(log.dialect)
        read = ReadReport()
        with store.local(log) as path:
            tick = _ticker(progress, done, len(logs), report.records)
            records = _plausible(tick(reader.read(path, log.info, read)), log, report)
            best = _n_best(records, database.n_best)
        report.committed += database.put_many(replace(record, log=f"{store.url}/{log.id}") for record in best)
        report.logs += 1
        report.records += read.records
        report.unreadable += read.unreadable
        report.reasons += read.reasons
    return report


def _found(path: Path, dialect: LogDialect) -> list[Path]:
    """The logs at or below a path. Raises ``UnreadableLog`` that says what is there instead."""
    if found := list(dialect.find(path)):
        return found
    if not path.exists():
        raise UnreadableLog(f"{path} does not exist. Fix: give the path of a log, or of a folder of logs")
    others = []
    for name in names():
        # A dialect that does not open here, for want of its framework, has nothing to say.
        with suppress(LorienError, ImportError):
            if any(True for _ in open_dialect(name).find(path)):
                others.append(name)
    looks = f"it looks like {' or '.join(others)}" if others else f"nor one of {', '.join(names())}"
    raise UnreadableLog(f"{path} holds no {dialect.name} log, {looks}. Fix: --dialect with the framework that wrote it")


def _describe(
    path: Path,
    dialect: LogDialect,
    target: Target | None,
    network: str | None,
    build: str | None,
    report: ReadReport,
    tick: Tick,
) -> tuple[StoredLog, set[str]]:
    """Read every record of a log once: what the store keeps of it, and the keys of its workloads."""
    sidecar = read_sidecar(path)
    beside = info_of(sidecar, sidecar_of(path))
    info = replace(
        beside,
        target=target or beside.target,
        network=network or beside.network or _plain_name(path),
        build=build or beside.build,
        # Who names one network for all overrules what the tuner knew of each workload.
        tasks=tuple(replace(task, networks=()) for task in beside.tasks) if network else beside.tasks,
    )
    files = tuple(_content(file) for file in dialect.files(path))
    targets: dict[str, Target] = {}
    workloads: set[str] = set()
    started_s, ended_s = math.inf, 0.0
    for record in tick(dialect.read(path, info, report)):
        targets[record.target.key] = record.target
        workloads.add(record.workload.key)
        if at_s := record.measurement.timestamp_s:
            started_s, ended_s = min(started_s, at_s), max(ended_s, at_s)
    if not targets:
        first = report.reasons[0] if report.reasons else "it is empty"
        raise UnreadableLog(f"{path} has no readable record ({first}). Nothing of it was stored")
    if len(targets) > 1:
        raise BadInput(
            f"{path} holds records of {len(targets)} targets: {', '.join(sorted(targets))}. "
            "Fix: split it by target with --split, or name the device that measured all of it with --target"
        )
    (found,) = targets.values()
    log = StoredLog(
        dialect=dialect.name,
        target=found,
        network=info.network,
        build=info.build,
        tasks=info.tasks,
        files=files,
        is_folder=path.is_dir(),
        fingerprint=hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest(),
        records=report.records,
        failed=report.failed,
        unreadable=report.unreadable,
        workloads=len(workloads),
        host=_text(sidecar.get("host")),
        job=_text(sidecar.get("job")),
        started_s=started_s if ended_s else None,
        ended_s=ended_s or None,
    )
    return log, workloads


def _text(value: Json) -> str | None:
    return str(value) if value else None


def _plain_name(path: Path) -> str:
    """``resnet50`` of ``resnet50.log.gz``."""
    return re.sub(r"(\.(log|jsonl?|txt))?(\.gz)?$", "", path.name) if path.is_file() else path.resolve().name


def _content(path: Path) -> LogFile:
    """Sizes and digests of a native file."""
    digest = hashlib.sha256()
    size = 0
    tail = b""
    for chunk in chunks(path):
        head, newline, rest = chunk.rpartition(b"\n")
        digest.update(tail + head + newline if newline else b"")
        tail = rest if newline else tail + rest
        size += len(chunk)
    whole = digest.copy()
    whole.update(tail)
    # A file without a newline is one line: all of it stays.
    lines, lines_size = (digest, size - len(tail)) if len(tail) < size else (whole, size)
    return LogFile(path.name, path.stat().st_size, size, whole.hexdigest(), lines_size, lines.hexdigest())


def _store(log: StoredLog, files: Sequence[Path], store: LogStore) -> tuple[StoredLog, int]:
    """The log as the store has it from now on, and how many of its records the store did not have."""
    others = list(store.list(log.dialect, log.target))
    shorter = _grown_from(log, files, others)
    same = next((other for other in others if other.fingerprint == log.fingerprint), None)
    new = 0
    if same is None:
        # False when another process has just stored the same.
        if store.publish(log, files):
            new = log.records - max((other.records for other in shorter), default=0)
    elif same.build == UNKNOWN_BUILD != log.build:
        log = replace(same, build=log.build)
        store.describe(log)
        logger.info("%s is there already, and now of %s", log.id, log.build)
    else:
        logger.info("%s is there already", same.id)
        log = same
    for other in shorter:
        logger.info("%s grew to %s, which takes its place", other.id, log.id)
        store.remove(other)
    return log, new


def _grown_from(log: StoredLog, files: Sequence[Path], others: Sequence[StoredLog]) -> list[StoredLog]:
    """Stored logs that hold nothing but the beginning of this one, as of a run that was resumed."""
    shorter = [
        other
        for other in others
        if other.fingerprint != log.fingerprint
        and len(other.files) == len(log.files)
        and all(old.lines_bytes <= new.bytes for old, new in zip(other.files, log.files, strict=True))
    ]
    digests = [
        _prefixes(path, {other.files[index].lines_bytes for other in shorter}) for index, path in enumerate(files)
    ]
    return [
        other
        for other in shorter
        if all(digest[old.lines_bytes] == old.lines_sha256 for digest, old in zip(digests, other.files, strict=True))
    ]


def _prefixes(path: Path, sizes: set[int]) -> dict[int, str]:
    """SHA-256 of the first bytes of a file's content, for each of the sizes, in one pass."""
    found = {}
    digest = hashlib.sha256()
    at = 0
    wanted = sorted(sizes)
    for chunk in chunks(path) if wanted else ():
        while wanted and wanted[0] <= at + len(chunk):
            prefix = digest.copy()
            prefix.update(chunk[: wanted[0] - at])
            found[wanted.pop(0)] = prefix.hexdigest()
        if not wanted:
            break
        digest.update(chunk)
        at += len(chunk)
    return found


def _plausible(records: Iterable[TuningRecord], log: StoredLog, report: CommitReport) -> Iterator[TuningRecord]:
    """Those whose latencies can be true; the others are counted."""
    for record in records:
        if why := doubt_of(record):
            report.implausible += 1
            if len(report.doubts) < MAX_DOUBTS:
                report.doubts.append(f"{log.id}: {record.workload.name}: {why}")
        else:
            yield record


def _n_best(records: Iterable[TuningRecord], n: int) -> list[TuningRecord]:
    """What of a log can enter a database: ``n`` of each workload, build and variant, however many records there are."""
    best: dict[tuple[str, str, str | None], dict[str, TuningRecord]] = {}
    slowest_s: dict[tuple[str, str, str | None], float] = {}
    for record in records:
        item = record.workload.key, record.build, record.variant
        if not record.measurement.ok or latency_of(record) > slowest_s.get(item, math.inf):
            continue
        kept = best.setdefault(item, {})
        if record.key not in kept or latency_of(record) < latency_of(kept[record.key]):
            kept[record.key] = record
        if len(kept) == 2 * n:
            best[item] = dict(sorted(kept.items(), key=_rank)[:n])
            slowest_s[item] = max(map(latency_of, best[item].values()))
    return [record for kept in best.values() for _, record in sorted(kept.items(), key=_rank)[:n]]


def _rank(item: tuple[str, TuningRecord]) -> tuple[float, str]:
    key, record = item
    return latency_of(record), key


def _ticker(progress: Progress | None, done: int, logs: int, before: int) -> Tick:
    def tick(records: Iterable[TuningRecord]) -> Iterator[TuningRecord]:
        for count, record in enumerate(records):
            if progress and count % PROGRESS_RECORDS == 0:
                progress(done, logs, before + count)
            yield record

    return tick
