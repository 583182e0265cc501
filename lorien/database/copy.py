"""Export, import and merge: the schedules of one database into another, of any two backends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from lorien.database.base import ScheduleDatabase

BATCH_RECORDS = 1000

Progress = Callable[[int], None]
"""Called with the records read so far."""


@dataclass
class CopyReport:
    """Records read from the source, and those of them that entered the n best of the destination."""

    records: int = 0
    entered: int = 0


def copy(source: ScheduleDatabase, destination: ScheduleDatabase, progress: Progress | None = None) -> CopyReport:
    """Merge a database into another, the better schedules staying. Doing it again changes nothing.

    Memory does not grow with the databases.

    Raises
    ------
    DatabaseUnavailable
        One of them cannot be reached now. What was copied before stays; run again.
    """
    report = CopyReport()
    records = source.query()
    while batch := list(itertools.islice(records, BATCH_RECORDS)):
        report.entered += destination.put_many(batch)
        report.records += len(batch)
        if progress is not None:
            progress(report.records)
    return report
