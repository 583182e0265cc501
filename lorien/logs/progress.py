"""How far reading logs has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lorien.records import TuningRecord

Progress = Callable[[int, int, int], None]
"""Called with (logs done, logs in all, records read so far)."""
Tick = Callable[[Iterable[TuningRecord]], Iterator[TuningRecord]]
_EVERY_RECORDS = 2000


def ticker(progress: Progress | None, done: int, logs: int, before: int) -> Tick:
    """What passes records on and tells of every so many; ``before`` were read of other logs."""

    def tick(records: Iterable[TuningRecord]) -> Iterator[TuningRecord]:
        for count, record in enumerate(records):
            if progress and count % _EVERY_RECORDS == 0:
                progress(done, logs, before + count)
            yield record

    return tick
