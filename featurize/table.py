"""Logs to feature tables: a Parquet data set partitioned by dialect and target, written by several processes.

A log is cut into shards and each shard is one table. A table appears under its name only when it is whole, and carries
the fingerprint of the log it came from, so that a second run does only what is new.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from lorien.cluster import ray_pool
from lorien.errors import LorienError
from lorien.featurize import open_extractor
from lorien.featurize.dataset import Contents, tables
from lorien.featurize.schema import TableAbout
from lorien.featurize.shard import Shard, ShardDone, fetch_and_write, shards_of, write_table
from lorien.featurize.store import TableStore, open_tables
from lorien.logs.base import no_logs
from lorien.machine import available_cores

if TYPE_CHECKING:
    from lorien.logs.base import LogStore, StoredLog

__all__ = ["FeaturizeReport", "Progress", "featurize", "tables"]

logger = logging.getLogger(__name__)

PASSES = 3
"""Times that a run looks for logs that others have stored, or replaced, while it was at work."""
Progress = Callable[[int, int, int], None]
"""Called with (tables done, tables to do, rows written so far)."""


@dataclass
class FeaturizeReport:
    """What one run did. ``tables`` are those written now; ``unchanged`` counts those that were up to date."""

    rows: int = 0
    skipped: int = 0
    unchanged: int = 0
    tables: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    failed_logs: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _ShardFailed:
    log: str
    error: BaseException

    @property
    def reason(self) -> str:
        """Why, for people."""
        died = isinstance(self.error, ProcessExpired)
        return f"the worker died ({self.error})" if died else str(self.error)


_Outcome = tuple[Shard, ShardDone | _ShardFailed]


@dataclass(frozen=True)
class _Plan:
    """Tables that are to be there, those of them to be written, and those to be dropped afterwards; their dialects."""

    expected: list[Shard]
    stale: list[Shard]
    replaced: set[str]
    dialects: list[str]


def featurize(
    logs: LogStore,
    out: str | Path,
    *,
    dialect: str | None = None,
    feature_set: str | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
    executor: str = "local",
    ray_address: str | None = None,
) -> FeaturizeReport:
    """Bring the tables under ``out`` up to date with the logs of a store.

    Parameters
    ----------
    logs : LogStore
        Where the logs are.
    out : str or Path
        Folder or ``s3://`` URL of the Parquet data set: ``dialect=<name>/target=<key>/<log>-<shard>.parquet``.
    dialect : str, optional
        Only logs of this dialect.
    feature_set : str, optional
        Another feature set than the one a dialect is searched with, for dialects that have it: ``metaschedule_trace``.
    processes : int, optional
        Worker processes; the cores this process may use by default.
    executor : str
        ``local``, or ``ray``: as many processes as the cluster has cores. Its nodes read the log store and write to
        ``out``, which therefore are in S3 or in folders that all of them share.
    ray_address : str, optional
        See ``lorien.cluster.connected``.

    Raises
    ------
    BadInput
        The store holds no log (of that dialect).
    LorienError
        A table of ``out`` was written with another feature set than this version's.
    """
    started_s = time.monotonic()
    report = FeaturizeReport()
    stored = list(logs.list(dialect=dialect))
    if not stored:
        raise no_logs(logs.url)
    store = open_tables(out)
    written: set[str] = set()
    failed: dict[str, _ShardFailed] = {}
    for _ in range(PASSES):
        plan = _plan(stored, logs, store, dialect, feature_set)
        if plan.stale or plan.replaced:
            _write_contents(store, logs.url, plan)
        # Spawned, not forked: a forked child of a process that has started Arrow's or TVM's threads can deadlock.
        context = multiprocessing.get_context("spawn")
        workers = max(1, min(processes or available_cores(), len(plan.stale)))
        far = executor == "ray"
        pool = ray_pool(ray_address) if far else ProcessPool(max_workers=workers, context=context)
        for shard, outcome in _run(plan.stale, pool, 0 if far else 2 * workers, progress):
            if isinstance(outcome, _ShardFailed):
                failed[shard.table] = outcome
                continue
            failed.pop(shard.table, None)
            written.add(shard.table)
            report.rows += outcome.rows
            report.skipped += outcome.skipped
            report.reasons.extend(outcome.reasons)
            if outcome.rows:
                report.tables.append(f"{store.url}/{shard.table}")
        _drop_replaced(store, plan, written)
        before, stored = {log.id for log in stored}, list(logs.list(dialect=dialect)) if plan.stale else stored
        ids = {log.id for log in stored}
        # A log that another process has replaced since it was listed has not failed: what it grew to has its records.
        failed = {table: failure for table, failure in failed.items() if failure.log in ids}
        if ids == before:
            break
    report.unchanged = len({shard.table for shard in plan.expected} - written - failed.keys())
    report.failed_logs = [f"{failure.log}: {failure.reason}" for failure in failed.values()]
    report.tables.sort()
    report.seconds = time.monotonic() - started_s
    return report


def _plan(
    stored: Sequence[StoredLog], logs: LogStore, store: TableStore, dialect: str | None, feature_set: str | None
) -> _Plan:
    """Compare the logs of a store with the tables that are there."""
    present = store.abouts()
    expected = [shard for log in stored for shard in shards_of(log, logs, store, feature_set)]
    stale = [shard for shard in expected if not _is_current(shard, present.get(shard.table))]
    # The largest first: the last shard to end is then a small one.
    stale.sort(key=lambda shard: -shard.log.size_bytes / shard.count)
    own = {
        name: about
        for name, about in present.items()
        if about.source.get("store") == logs.url and dialect in (None, about.dialect)
    }
    dialects = {log.dialect for log in stored} | {about.dialect for about in own.values()}
    return _Plan(expected, stale, own.keys() - {shard.table for shard in expected}, sorted(dialects))


def _is_current(shard: Shard, about: TableAbout | None) -> bool:
    if about is None:
        return False
    # An earlier Lorien took what it could read of a damaged log for the whole.
    checked = "log_records" in about.source or about.rows == shard.lines
    return (
        checked
        and about.source.get("fingerprint") == shard.log.fingerprint
        and about.feature_set == open_extractor(shard.log.dialect, shard.feature_set).features
    )


def _write_contents(store: TableStore, url: str, plan: _Plan) -> None:
    """Write down which tables the logs of a store are to have: readers compare, and know what is missing."""
    for dialect in plan.dialects:
        own = {shard.log.id: shard.count for shard in plan.expected if shard.log.dialect == dialect}
        contents = Contents(url, own)
        with store.writing(contents.name(dialect)) as path:
            path.write_bytes(contents.to_bytes())


def _drop_replaced(store: TableStore, plan: _Plan, written: Container[str]) -> None:
    """Drop tables of logs that the store has no more: those of a log that grew would count its records twice.

    They stay while the tables of what it grew to are not all there: readers take them in their place.
    """
    unfinished = {_network_of(shard.table) for shard in plan.stale if shard.table not in written}
    for name in sorted(plan.replaced):
        if _network_of(name) not in unfinished:
            logger.info("dropping %s: its log is no longer in the store", name)
            store.drop(name)


def _network_of(table: str) -> str:
    """The part of its name that the tables of a log share with those of what it grew to."""
    return table.rpartition("-")[0].rpartition("-")[0]


def _run(
    shards: Sequence[Shard], processes: AbstractContextManager[Any], at_once: int, progress: Progress | None
) -> list[_Outcome]:
    """Write the tables. Raises what is neither the logs' fault, nor the disk's.

    Processes of this machine extract, while threads here fetch the next logs and send the tables before: each log is
    fetched once, and at most ``at_once`` lie here at a time. With ``at_once`` 0 the processes are on other machines,
    and each fetches and sends its own.
    """
    finished: list[_Outcome] = []
    if not shards:
        return finished
    of_log: dict[str, list[Shard]] = {}
    for shard in shards:
        of_log.setdefault(shard.log.id, []).append(shard)
    outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
    rows = 0
    with ThreadPoolExecutor(max(1, at_once)) as fetchers, processes as pool:
        work = _Work(pool, at_once, outcomes)
        try:
            if at_once:
                for group in of_log.values():
                    fetchers.submit(work.do_log, group)
            else:
                for shard in shards:
                    work.do_elsewhere(shard)
            for _ in shards:
                shard, outcome = outcomes.get()
                if isinstance(outcome, ShardDone):
                    rows += outcome.rows
                elif not isinstance(outcome.error, (ProcessExpired, LorienError, OSError)):
                    raise outcome.error
                finished.append((shard, outcome))
                if progress is not None:
                    progress(len(finished), len(shards), rows)
        except BaseException:
            fetchers.shutdown(wait=False, cancel_futures=True)
            work.stop()
            raise
    return finished


class _Work:
    """What the threads of a run do. Each shard has one outcome: what was written, or why not."""

    def __init__(self, pool: Any, at_once: int, outcomes: queue.SimpleQueue[_Outcome]) -> None:
        self._pool = pool
        self._at_once = at_once
        self._outcomes = outcomes
        self._running: list[Future[ShardDone]] = []
        self._scheduling = threading.Lock()

    def do_log(self, shards: Sequence[Shard]) -> None:
        """Fetch a log and write the tables of its shards."""
        with ExitStack() as stack:
            try:
                path = stack.enter_context(shards[0].logs.local(shards[0].log))
            except Exception as error:
                for shard in shards:
                    self._outcomes.put((shard, _ShardFailed(shard.log.id, error)))
                return
            writers = stack.enter_context(ThreadPoolExecutor(min(self._at_once, len(shards))))
            for shard in shards:
                writers.submit(self._do, shard, path)

    def do_elsewhere(self, shard: Shard) -> None:
        """Have a process fetch the log, write the table and send it."""
        future: Future[ShardDone] = self._pool.schedule(fetch_and_write, args=(shard,))

        def tell(done: Future[ShardDone]) -> None:
            error = done.exception()
            self._outcomes.put((shard, _ShardFailed(shard.log.id, error) if error else done.result()))

        future.add_done_callback(tell)

    def stop(self) -> None:
        """Give up what is being done."""
        self._pool.stop()  # From here on nothing more can be scheduled.
        with self._scheduling:
            for future in self._running:
                future.cancel()

    def _do(self, shard: Shard, path: Path) -> None:
        try:
            with shard.tables.writing(shard.table) as temporary:
                with self._scheduling:
                    future = self._pool.schedule(write_table, args=(shard, path, temporary))
                    self._running.append(future)
                done: ShardDone = future.result()
        except Exception as error:
            self._outcomes.put((shard, _ShardFailed(shard.log.id, error)))
        else:
            self._outcomes.put((shard, done))
