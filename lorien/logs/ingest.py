"""Logs into the log store."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorien.dialects._compressed import plain_name
from lorien.dialects.base import UNKNOWN_BUILD, LogDialect, ReadReport
from lorien.errors import BadInput, ChecksumMismatch, LogGone, LorienError, UnreadableLog
from lorien.files import temporary_folder
from lorien.logs.base import LogStore, StoredLog, info_of, read_sidecar, sidecar_of
from lorien.logs.content import content_of, prefix_digests
from lorien.logs.found import found, passed_over
from lorien.logs.progress import Progress, Tick, ticker
from lorien.logs.split import Part, split_by_target
from lorien.records import Json
from lorien.target import Target

logger = logging.getLogger(__name__)


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
    passed_over : list of str
        Files of the folders given that are no logs of the dialect, and why.
    failed_logs : list of str
        Logs of which nothing was stored, and why.
    """

    records: int = 0
    failed: int = 0
    unreadable: int = 0
    workloads: int = 0
    new: int = 0
    logs: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    failed_logs: list[str] = field(default_factory=list)


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

    A log whose content is there already adds nothing. A log that grew takes the place of what it grew from. Of several
    logs, one that cannot be stored does not keep the others out: the report names it.

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
        There is no log of the dialect under any path, or the only one has no readable record.
    BadInput
        The only log holds records of several targets, no target is given and it is not to be split, or a
        ``lorien.json`` beside it is damaged; a target is given and logs are to be split.
    StoreUnavailable
        The store cannot be read or written. Logs before it are stored.
    """
    if split and target is not None:
        raise BadInput(
            "--target names one device for all records, --split takes them apart. Fix: leave out one of them"
        )
    report = IngestReport()
    failures: list[LorienError] = []

    def failed(where: Path, error: LorienError) -> None:
        failures.append(error)
        report.failed_logs.append(str(error) if str(where) in str(error) else f"{where}: {error}")

    for path in paths:
        if not path.exists():
            raise UnreadableLog(f"{path} does not exist. Fix: give the path of a log, or of a folder of logs")
    logs: dict[Path, None] = {}
    for path in paths:
        try:
            below = found(path, dialect)
        except UnreadableLog as error:
            failed(path, error)
            continue
        logs |= dict.fromkeys(below)
        report.passed_over += [f"{file}: {reason}" for file, reason in passed_over(path, below, dialect)]
    workloads: set[str] = set()
    for done, path in enumerate(logs):
        try:
            for part in _parts(path, dialect, split):
                given = (target, network, build)
                tick = ticker(progress, done, len(logs), report.records)
                workloads |= _ingest(part, store, dialect, given, report, tick)
        except BadInput as error:
            failed(path, error)
    report.workloads = len(workloads)
    if failures and not report.logs:
        raise failures[0] if len(failures) == 1 else BadInput(f"nothing was stored. {' '.join(report.failed_logs)}")
    return report


def _parts(path: Path, dialect: LogDialect, split: bool) -> Iterator[Path | Part]:
    """The log itself, or what it holds of each target, which are there until all are taken."""
    if not split:
        yield path
        return
    with temporary_folder("lorien-split-") as temporary:
        yield from split_by_target(path, dialect, Path(temporary))


def _ingest(
    part: Path | Part,
    store: LogStore,
    dialect: LogDialect,
    given: tuple[Target | None, str | None, str | None],
    report: IngestReport,
    tick: Tick,
) -> set[str]:
    """Store one log, or a part of one that was split, and count it; the keys of its workloads."""
    path = part.path if isinstance(part, Part) else part
    read = ReadReport()
    log, workloads = _describe(path, dialect, *given, read, tick)
    log, new = _store(log, dialect.files(path), store)
    report.records += read.records
    report.failed += read.failed
    report.unreadable += read.unreadable
    report.reasons += [part.where(reason) for reason in read.reasons] if isinstance(part, Part) else read.reasons
    report.new += new
    report.logs.append(log.id)
    return workloads


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
    files = tuple(content_of(file) for file in dialect.files(path))
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
    (device,) = targets.values()
    log = StoredLog(
        dialect=dialect.name,
        target=device,
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
        target_given=info.target is not None,
        started_s=started_s if ended_s else None,
        ended_s=ended_s or None,
    )
    return log, workloads


def _text(value: Json) -> str | None:
    return str(value) if value else None


def _plain_name(path: Path) -> str:
    """``resnet50`` of ``resnet50.log.gz``."""
    if not path.is_file():
        return path.resolve().name
    return re.sub(r"\.(log|jsonl?|txt)$", "", plain_name(path.name).removesuffix(".tmp"), flags=re.IGNORECASE)


def _store(log: StoredLog, files: Sequence[Path], store: LogStore) -> tuple[StoredLog, int]:
    """The log as the store has it from now on, and how many of its records the store did not have."""
    others = list(store.list(log.dialect, log.target))
    shorter = _grown_from(log, files, others)
    same = next((other for other in others if other.fingerprint == log.fingerprint), None)
    known = max((other.records for other in shorter), default=0)
    if same is not None and not _is_whole(same, store):
        logger.warning("%s was damaged in the store; it is stored anew", same.id)
        known = max(known, same.records)
        store.remove(same)
        same = None
    if same is None:
        # False when another process has just stored the same.
        new = log.records - known if store.publish(log, files) else 0
    else:
        log, new = _told_anew(log, same, store)
    for other in shorter:
        logger.info("%s grew to %s, which takes its place", other.id, log.id)
        store.remove(other)
    return log, new


def _told_anew(log: StoredLog, same: StoredLog, store: LogStore) -> tuple[StoredLog, int]:
    """What is known of a log that is there already, after it was ingested again: what was told first stays."""
    told = replace(same, build=log.build if same.build == UNKNOWN_BUILD else same.build)
    if log.target_given and not same.target_given:  # Now the user vouches for lines that were of no target before.
        told = replace(told, target_given=True, records=log.records, failed=log.failed, unreadable=log.unreadable)
    if told == same:
        logger.info("%s is there already", same.id)
    else:
        store.describe(told)
        logger.info("%s is there already; its description was brought up to date", same.id)
    return told, max(0, told.records - same.records)


def _is_whole(log: StoredLog, store: LogStore) -> bool:
    try:
        with store.local(log):
            return True
    except (ChecksumMismatch, LogGone):
        return False


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
        prefix_digests(path, {other.files[index].lines_bytes for other in shorter}) for index, path in enumerate(files)
    ]
    return [
        other
        for other in shorter
        if all(digest[old.lines_bytes] == old.lines_sha256 for digest, old in zip(digests, other.files, strict=True))
    ]
