"""The logs of a store, read one after the other beside those who write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import LogGone
from lorien.logs.base import LogStore, StoredLog
from lorien.records import TuningRecord
from lorien.target import Target


class LogWalk:
    """Iterates over the logs of a store, each once.

    A log that grew is stored anew, and what it was is removed. One that goes in this way after it was listed is passed
    over, and its successor comes at the end.

    Attributes
    ----------
    done, total : int
        Logs iterated over, and known of so far.
    """

    def __init__(self, store: LogStore, dialect: str | None = None, target: Target | None = None) -> None:
        self._store = store
        self._filter = dialect, target
        self._waiting = list(store.list(dialect, target))
        self._seen = {log.id for log in self._waiting}
        self._gone = False
        self.done, self.total = 0, len(self._waiting)

    def __iter__(self) -> Iterator[StoredLog]:
        while self._waiting:
            for log in self._waiting:
                yield log
                self.done += 1
            self._waiting = (
                [log for log in self._store.list(*self._filter) if log.id not in self._seen] if self._gone else []
            )
            self._gone = False
            self._seen |= {log.id for log in self._waiting}
            self.total += len(self._waiting)

    def read(self, log: StoredLog, report: ReadReport) -> Iterator[TuningRecord]:
        """The records of a log; none of one that has gone.

        Raises
        ------
        ChecksumMismatch, UnreadableLog, StoreUnavailable
            See ``LogStore.local`` and ``LogDialect.read``.
        """
        try:
            with self._store.local(log) as path:
                yield from open_dialect(log.dialect).read(path, info_for(log, path), report)
        except LogGone:
            self._gone = True


def info_for(log: StoredLog, path: Path) -> LogInfo:
    """What a reader of a stored log is to be told, so that it refuses what ``ingest`` refused.

    A sidecar of before Lorien wrote down who named the target leaves that open. It matters where lines were refused:
    if the log's own word gives the records that ``ingest`` counted, that was it.
    """
    if log.target_given is not None or not log.unreadable:
        return log.info
    named = replace(log.info, target_given=False)
    report = ReadReport()
    for _ in open_dialect(log.dialect).read(path, named, report):
        pass
    return named if report.records == log.records else log.info
