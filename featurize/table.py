"""Logs to feature tables: a Parquet data set partitioned by dialect and target, written by several processes.

A log is cut into shards and each shard is one table, written in row groups: memory does not grow with the log. A table
appears under its name only when it is whole, and carries the fingerprint of the log it came from, so that a second run
does only what is new.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pebble import ProcessExpired, ProcessPool

from lorien.cluster import ray_pool
from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import BadInput, LorienError
from lorien.featurize import open_extractor
from lorien.featurize.schema import ROW_FIELDS, TableAbout, joined
from lorien.featurize.store import TableStore, about_of, open_tables
from lorien.files import kind_of_folder
from lorien.logs.base import no_logs
from lorien.logs.walk import info_for
from lorien.machine import available_cores
from lorien.records import TuningRecord

if TYPE_CHECKING:
    from lorien.featurize.base import Features
    from lorien.logs.base import LogStore, StoredLog

logger = logging.getLogger(__name__)

# Small enough that the garbage collector walks few objects: 1,024 rows go through a fifth faster than 8,192.
BATCH_ROWS = 1024
ROW_GROUP_ROWS = 64 * BATCH_ROWS
GC_ALLOCATIONS = 1_000_000
SHARD_ROWS = 512
"""Records that are worth a table of their own."""
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
class _Shard:
    logs: LogStore
    log: StoredLog
    index: int
    count: int
    tables: TableStore
    feature_set: str | None

    @property
    def table(self) -> str:
        """Its name in the data set."""
        name = f"{self.log.id.rpartition('/')[2]}-{self.index}of{self.count}.parquet"
        return f"dialect={self.log.dialect}/target={self.log.target.key}/{name}"

    @property
    def source(self) -> dict[str, str]:
        """What the table says of where it is from."""
        shard = f"{self.index}/{self.count}"
        return {"store": self.logs.url, "log": self.log.id, "fingerprint": self.log.fingerprint, "shard": shard}


@dataclass(frozen=True)
class _ShardDone:
    table: str
    rows: int
    skipped: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _ShardFailed:
    log: str
    error: BaseException


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
    present = store.abouts()
    _drop_tables_of_gone_logs(store, present, logs.url, {log.id for log in stored})
    todo = [shard for log in stored for shard in _shards(log, logs, store, feature_set)]
    stale = [shard for shard in todo if not _is_current(shard, present.get(shard.table))]
    report.unchanged = len(todo) - len(stale)
    # The largest first: the last shard to end is then a small one.
    stale.sort(key=lambda shard: -shard.log.size_bytes / shard.count)
    # Spawned, not forked: a forked child of a process that has started Arrow's or TVM's threads can deadlock.
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(processes or available_cores(), len(stale)))
    far = executor == "ray"
    pool = ray_pool(ray_address) if far else ProcessPool(max_workers=workers, context=context)
    for done in _run(stale, pool, 0 if far else 2 * workers, report, progress):
        report.rows += done.rows
        report.skipped += done.skipped
        report.reasons.extend(done.reasons)
        if done.rows:
            report.tables.append(done.table)
    report.tables.sort()
    report.seconds = time.monotonic() - started_s
    return report


def tables(features: Path, *, dialect: str | None = None, target: str | None = None) -> list[tuple[Path, TableAbout]]:
    """Tables of a data set with what they say of themselves, in a stable order.

    Raises
    ------
    BadInput
        The folder is missing or holds no table.
    SchemaMismatch
        A table is damaged, or no feature table.
    """
    found = []
    for path in sorted(features.rglob("*.parquet")):
        if any(part.startswith(".") for part in path.relative_to(features).parts):
            continue
        about = about_of(path)
        if dialect in (None, about.dialect) and target in (None, about.target):
            found.append((path, about))
    if not found:
        which = "".join(f" for {name}" for name in (dialect, target) if name)
        if kind_of_folder(features) == "tuning logs":
            raise BadInput(f"{features} holds logs, not features. Fix: lorien featurize {features} -o FEATURES first")
        raise BadInput(f"no feature tables{which} in {features}. Fix: lorien featurize LOGS -o {features}")
    return found


def _shards(log: StoredLog, logs: LogStore, store: TableStore, feature_set: str | None) -> list[_Shard]:
    by_size = -(-log.size_bytes // open_dialect(log.dialect).shard_bytes)
    # Of a log that came uncompressed, or whose workloads outweigh its records, size alone makes tables of a few rows.
    count = min(by_size, -(-log.records // SHARD_ROWS))
    return [_Shard(logs, log, index, count, store, feature_set) for index in range(count)]


def _is_current(shard: _Shard, about: TableAbout | None) -> bool:
    return (
        about is not None
        and about.source.get("fingerprint") == shard.log.fingerprint
        and about.feature_set == open_extractor(shard.log.dialect, shard.feature_set).features
    )


def _drop_tables_of_gone_logs(
    store: TableStore, present: dict[str, TableAbout], logs_url: str, stored: set[str]
) -> None:
    """A log that grew is stored under a new name: the tables of the old one would count its records twice."""
    for name, about in present.items():
        if about.source.get("store") == logs_url and about.source.get("log") not in stored:
            logger.info("dropping %s: its log %s is no longer in the store", name, about.source.get("log"))
            store.drop(name)


def _run(
    shards: Sequence[_Shard],
    processes: AbstractContextManager[Any],
    at_once: int,
    report: FeaturizeReport,
    progress: Progress | None,
) -> list[_ShardDone]:
    """Write the tables.

    Processes of this machine extract, while threads here fetch the next logs and send the tables before: each log is
    fetched once, and at most ``at_once`` lie here at a time. With ``at_once`` 0 the processes are on other machines,
    and each fetches and sends its own.
    """
    finished: list[_ShardDone] = []
    if not shards:
        return finished
    of_log: dict[str, list[_Shard]] = {}
    for shard in shards:
        of_log.setdefault(shard.log.id, []).append(shard)
    outcomes: queue.SimpleQueue[_ShardDone | _ShardFailed] = queue.SimpleQueue()
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
                outcome = outcomes.get()
                if isinstance(outcome, _ShardDone):
                    finished.append(outcome)
                elif isinstance(outcome.error, ProcessExpired):
                    report.failed_logs.append(f"{outcome.log}: the worker died ({outcome.error})")
                elif isinstance(outcome.error, (LorienError, OSError)):
                    report.failed_logs.append(f"{outcome.log}: {outcome.error}")
                else:
                    raise outcome.error
                if progress is not None:
                    progress(len(finished) + len(report.failed_logs), len(shards), sum(d.rows for d in finished))
        except BaseException:
            fetchers.shutdown(wait=False, cancel_futures=True)
            work.stop()
            raise
    return finished


class _Work:
    """What the threads of a run do. Each shard has one outcome: what was written, or why not."""

    def __init__(self, pool: Any, at_once: int, outcomes: queue.SimpleQueue[_ShardDone | _ShardFailed]) -> None:
        self._pool = pool
        self._at_once = at_once
        self._outcomes = outcomes
        self._running: list[Future[_ShardDone]] = []
        self._scheduling = threading.Lock()

    def do_log(self, shards: Sequence[_Shard]) -> None:
        """Fetch a log and write the tables of its shards."""
        with ExitStack() as stack:
            try:
                path = stack.enter_context(shards[0].logs.local(shards[0].log))
            except Exception as error:
                for shard in shards:
                    self._outcomes.put(_ShardFailed(shard.log.id, error))
                return
            writers = stack.enter_context(ThreadPoolExecutor(min(self._at_once, len(shards))))
            for shard in shards:
                writers.submit(self._do, shard, path)

    def do_elsewhere(self, shard: _Shard) -> None:
        """Have a process fetch the log, write the table and send it."""
        future: Future[_ShardDone] = self._pool.schedule(_write_shard_there, args=(shard,))

        def tell(done: Future[_ShardDone]) -> None:
            error = done.exception()
            self._outcomes.put(_ShardFailed(shard.log.id, error) if error else done.result())

        future.add_done_callback(tell)

    def stop(self) -> None:
        """Give up what is being done."""
        self._pool.stop()  # From here on nothing more can be scheduled.
        with self._scheduling:
            for future in self._running:
                future.cancel()

    def _do(self, shard: _Shard, path: Path) -> None:
        try:
            with shard.tables.writing(shard.table) as temporary:
                with self._scheduling:
                    future = self._pool.schedule(_write_shard, args=(shard, path, temporary))
                    self._running.append(future)
                done: _ShardDone = future.result()
        except Exception as error:
            self._outcomes.put(_ShardFailed(shard.log.id, error))
        else:
            self._outcomes.put(done)


def _write_shard_there(shard: _Shard) -> _ShardDone:
    with shard.logs.local(shard.log) as path, shard.tables.writing(shard.table) as temporary:
        return _write_shard(shard, path, temporary)


def _write_shard(shard: _Shard, path: Path, table: Path) -> _ShardDone:
    # Two workers on two cores: threads inside them would only get in each other's way.
    pa.set_cpu_count(1)
    # Records are trees of lists without cycles: looking for cycles among them at every turn takes half the time.
    gc.set_threshold(GC_ALLOCATIONS)
    log = shard.log
    extractor = open_extractor(log.dialect, shard.feature_set)
    schema = extractor.features.arrow_schema(log.dialect, log.target.key, shard.source)
    report, rows = ReadReport(), 0
    with pq.ParquetWriter(table, schema, compression="zstd") as writer:
        batches: list[pa.RecordBatch] = []
        info = info_for(log, path)
        for records, features in extractor.extract_log(path, info, report, (shard.index, shard.count), BATCH_ROWS):
            batches.append(_record_batch(schema, records, features, info))
            rows += len(records)
            if sum(batch.num_rows for batch in batches) >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(batches))
                batches = []
        if batches:
            writer.write_table(pa.Table.from_batches(batches))
    return _ShardDone(f"{shard.tables.url}/{shard.table}", rows, report.unreadable, tuple(report.reasons))


def _record_batch(
    schema: pa.Schema, records: Sequence[TuningRecord], features: Features, info: LogInfo
) -> pa.RecordBatch:
    workloads = [record.workload for record in records]
    rows = {
        "workload_key": [workload.key for workload in workloads],
        "workload": [workload.name for workload in workloads],
        "network": [joined(record.workload.networks) or record.network for record in records],
        "weight": [info.weights.get(workload.name, workload.weight) for workload in workloads],
        "flop": [workload.flop for workload in workloads],
        "candidate": [record.candidate.key for record in records],
        "build": [record.build for record in records],
        "latency_s": [record.measurement.latency_s for record in records],
        "error": [None if record.measurement.ok else record.measurement.outcome.value for record in records],
    }
    arrays = [pa.array(rows[name], kind) for name, kind, *_ in ROW_FIELDS]
    columns = np.ascontiguousarray(features.T, dtype=np.float32)
    arrays += [pa.array(column) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
