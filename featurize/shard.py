"""One shard of a log to one feature table, written in row groups: memory does not grow with the log."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import ChecksumMismatch
from lorien.featurize import open_extractor
from lorien.featurize.parquet import writing
from lorien.featurize.schema import ROW_FIELDS, joined
from lorien.featurize.store import TableStore
from lorien.logs.content import content_of
from lorien.logs.walk import info_for
from lorien.plausible import doubt_of
from lorien.records import TuningRecord

if TYPE_CHECKING:
    from lorien.featurize.base import Features
    from lorien.logs.base import LogStore, StoredLog

# Small enough that the garbage collector walks few objects: 1,024 rows go through a fifth faster than 8,192.
BATCH_ROWS = 1024
ROW_GROUP_ROWS = 64 * BATCH_ROWS
GC_ALLOCATIONS = 1_000_000
SHARD_ROWS = 512
"""Records that are worth a table of their own."""


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th record of a log from ``index`` on, and where they are to be a table of some feature set."""

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
        return {
            "store": self.logs.url,
            "log": self.log.id,
            "fingerprint": self.log.fingerprint,
            "shard": f"{self.index}/{self.count}",
            "log_records": str(self.log.records),
        }

    @property
    def lines(self) -> int:
        """Records of the log, readable or not, that are this shard's."""
        return len(range(self.index, self.log.records + self.log.unreadable, self.count))


@dataclass(frozen=True)
class ShardDone:
    """Rows written, records left out, and why: the first reasons."""

    rows: int
    skipped: int
    reasons: tuple[str, ...]


def shards_of(log: StoredLog, logs: LogStore, store: TableStore, feature_set: str | None) -> list[Shard]:
    """The shards that a log is cut into."""
    by_size = -(-log.size_bytes // open_dialect(log.dialect).shard_bytes)
    # Of a log that came uncompressed, or whose workloads outweigh its records, size alone makes tables of a few rows.
    count = min(by_size, -(-log.records // SHARD_ROWS))
    return [Shard(logs, log, index, count, store, feature_set) for index in range(count)]


def fetch_and_write(shard: Shard) -> ShardDone:
    """Write a table with all that it takes: its log is fetched, and the table sent."""
    with shard.logs.local(shard.log) as path, shard.tables.writing(shard.table) as temporary:
        return write_table(shard, path, temporary)


def write_table(shard: Shard, path: Path, table: Path) -> ShardDone:
    """Write the table of a shard, from its log at one path to another.

    Raises
    ------
    ChecksumMismatch
        Records are missing, and the log is not the one that was stored.
    """
    # Two workers on two cores: threads inside them would only get in each other's way.
    pa.set_cpu_count(1)
    # Records are trees of lists without cycles: looking for cycles among them at every turn takes half the time.
    gc.set_threshold(GC_ALLOCATIONS)
    log = shard.log
    extractor = open_extractor(log.dialect, shard.feature_set)
    schema = extractor.features.arrow_schema(log.dialect, log.target.key, shard.source)
    report, rows = ReadReport(), 0
    with writing(table, schema) as writer:
        batches: list[pa.RecordBatch] = []
        info = info_for(log, path)
        for read, rows_read in extractor.extract_log(path, info, report, (shard.index, shard.count), BATCH_ROWS):
            records, features = _plausible(read, rows_read, report)
            batches.append(_record_batch(schema, records, features, info))
            rows += len(records)
            if sum(batch.num_rows for batch in batches) >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(batches))
                batches = []
        if batches:
            writer.write_table(pa.Table.from_batches(batches))
    if report.records != shard.lines:  # Some cannot be read: they never could, or the log was damaged since.
        _check_content(log, path)
    return ShardDone(rows, report.unreadable, tuple(report.reasons))


def _plausible(
    records: Sequence[TuningRecord], features: Features, report: ReadReport
) -> tuple[Sequence[TuningRecord], Features]:
    """The records whose latencies can be true: another would be the best of its workload, and spoil every label."""
    doubts = [doubt_of(record) for record in records]
    for record, why in zip(records, doubts, strict=True):
        if why:
            report.bad(record.workload.name, why)
    if not any(doubts):
        return records, features
    kept = [index for index, why in enumerate(doubts) if not why]
    return [records[index] for index in kept], features[kept]


def _check_content(log: StoredLog, path: Path) -> None:
    """Raise ``ChecksumMismatch`` when a log is not the one that was stored."""
    for file in log.files:
        if content_of(path / file.name if log.is_folder else path).sha256 != file.sha256:
            raise ChecksumMismatch(
                f"{file.name} is not the file that was stored, records are missing. Fix: put back the file, or remove "
                "the log and ingest it again"
            )


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
