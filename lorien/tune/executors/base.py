"""The contract of an executor, and the driver that keeps the workers of a run alive until all jobs are over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from lorien.database.jobs import Counts, JobTable
from lorien.database.queue import JobQueue
from lorien.errors import LorienError

POLL_S = 1.0
COUNT_PAUSE = 20
"""Times that counting the jobs took, until they are counted again: in DynamoDB it reads all of them."""
MAX_DEATHS = 10
"""Workers in a row that ended badly while no job moved: something is wrong with all of them."""

Watch = Callable[[Counts], None]
"""Told of the jobs now and then."""


class Executor(Protocol):
    """Starts workers. It remembers nothing of a run: a driver that starts again, starts with another executor."""

    def start(self, target: str, count: int) -> None:
        """Start workers for the jobs of a target, or ask for them: they may come later."""

    def alive(self) -> Counter[str]:
        """Workers that were asked for and have not ended, by target."""

    def deaths(self) -> list[str]:
        """What is known of each worker that ended badly since the last call."""

    def close(self) -> None:
        """End all workers. What they were doing goes back or lapses."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *error: object) -> None: ...


def drive(
    table: JobTable,
    queue: JobQueue,
    executor: Executor,
    workers: int,
    watch: Watch | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Counts:
    """Keep at most ``workers`` workers of each target alive until every job is over.

    Raises
    ------
    LorienError
        The workers die before they do anything.
    DatabaseUnavailable
        The jobs cannot be read.
    """
    before: Counts | None = None
    deaths: list[str] = []
    next_count_s = 0.0
    while True:
        started_s = time.monotonic()
        deaths += executor.deaths()
        if started_s >= next_count_s or len(deaths) >= MAX_DEATHS:
            counts = table.counts(queue.run.name, time.time())
            next_count_s = time.monotonic() + COUNT_PAUSE * (time.monotonic() - started_s)
            if watch is not None:
                watch(counts)
            if not counts.open:
                return counts
            if counts != before:
                deaths.clear()
            before = counts
        if len(deaths) >= MAX_DEATHS:
            raise LorienError(
                f"run {queue.run.name!r}: {len(deaths)} workers in a row ended and no job moved; the last said: "
                f"{deaths[-1]}. Fix: what it says, then the same command with --resume"
            )
        alive = executor.alive()
        for target in queue.run.targets:
            if room := workers - alive[target]:
                waiting = table.waiting(queue.run.name, target, room)
                if free := len(waiting or table.lapsed(queue.run.name, target, time.time(), room)):
                    executor.start(target, free)
        sleep(POLL_S)
