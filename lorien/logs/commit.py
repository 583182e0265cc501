"""The best schedules of stored logs into the database."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lorien.database.base import ScheduleDatabase, latency_of
from lorien.dialects.base import ReadReport
from lorien.errors import ChecksumMismatch, LorienError, UnreadableLog
from lorien.logs.base import LogStore, StoredLog, no_logs
from lorien.logs.progress import Progress, ticker
from lorien.logs.walk import LogWalk
from lorien.plausible import doubt_of
from lorien.records import TuningRecord
from lorien.target import Target

MAX_DOUBTS = 5


@dataclass
class CommitReport:
    """What ``commit`` met.

    Parameters
    ----------
    logs, records : int
        Read.
    committed : int
        Schedules that entered the database's n best.
    unreadable : int
        Lines that could not be read.
    reasons : list of str
        Why lines could not be read: the first of each log.
    implausible : int
        Records left out because their latencies cannot be true (``lorien.plausible``).
    doubts : list of str
        Why, with the id of the log: the first few.
    failed_logs : list of str
        Logs of which nothing was committed, and why.
    """

    logs: int = 0
    records: int = 0
    committed: int = 0
    unreadable: int = 0
    reasons: list[str] = field(default_factory=list)
    implausible: int = 0
    doubts: list[str] = field(default_factory=list)
    failed_logs: list[str] = field(default_factory=list)


def commit(
    store: LogStore,
    database: ScheduleDatabase,
    *,
    dialect: str | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> CommitReport:
    """Put the best schedules of the logs into the database. Doing it again changes nothing.

    Of a log that is damaged nothing is committed; the others are, and the report names it.

    Raises
    ------
    BadInput
        The store holds no such log.
    ChecksumMismatch, UnreadableLog
        None of the logs can be read.
    StoreUnavailable, DatabaseUnavailable
        What was committed before stays.
    """
    report = CommitReport()
    failure: LorienError | None = None
    walk = LogWalk(store, dialect, target)
    for log in walk:
        read = ReadReport()
        try:
            records = walk.read(log, read)
            tick = ticker(progress, walk.done, walk.total, report.records)
            best = _n_best(_plausible(tick(records), log, report), database.n_best)
        except (ChecksumMismatch, UnreadableLog) as error:
            failure = error
            report.failed_logs.append(f"{log.id}: {error}")
            continue
        report.committed += database.put_many(replace(record, log=f"{store.url}/{log.id}") for record in best)
        report.logs += 1
        report.records += read.records
        report.unreadable += read.unreadable
        report.reasons += read.reasons
    if not walk.total:
        raise no_logs(store.url)
    if failure is not None and not report.logs:
        raise failure
    return report


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
