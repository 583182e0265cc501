"""Halide keeps no logs of its own: a run is a folder of two JSON lines files, written here and read without Halide.

``halide_workloads.jsonl`` holds a workload a line; ``halide_records.jsonl``, a line a measurement,
``[number of the workload, schedule, latencies in seconds, target]``, the latencies empty for a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from lorien.dialects._folders import Workloads, files_of, find_folders, read_workloads, workload_at
from lorien.dialects._lines import (
    DAMAGE,
    Targets,
    head_lines,
    is_number,
    parsed,
    read_records,
    refuse_binary,
)
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.halide.pipelines import DIALECT
from lorien.errors import BadInput
from lorien.records import Candidate, Json, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

WORKLOADS = "halide_workloads.jsonl"
RECORDS = "halide_records.jsonl"


def find(path: Path) -> Iterator[Path]:
    """Sorted folders at or below ``path`` that hold both files; a file stands for its folder."""
    yield from (folder for folder, workloads in find_folders(path, WORKLOADS, RECORDS) if head_lines(workloads))


def files(log: Path) -> list[Path]:
    """The workload file and the record file. Raises ``UnreadableLog`` when one is not there."""
    return files_of(log, WORKLOADS, RECORDS, "Halide")


def read(log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)) -> Iterator[TuningRecord]:
    """Stream the records of a folder; see ``LogDialect.read``. The index that shards is that of the non-blank line."""
    record_file = files(log)[-1]
    refuse_binary(record_file, "JSON lines")
    yield from read_records(record_file, reader(log, info), report, shard)


def reader(log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
    """See ``LineDialect``."""
    workloads, targets = read_workloads(files(log)[0], _workload, "workload of Halide"), Targets(info, dict)
    return lambda line: _record(line, workloads, targets, info, log)


class Writer:
    """The lines of one log. Implements ``LogWriter``."""

    workload_file = WORKLOADS
    record_file = RECORDS

    def __init__(self, workloads: Sequence[Workload], target: Target) -> None:
        self._workloads = list(workloads)
        self._target = target.to_json()

    def workload_lines(self) -> bytes:
        """See ``LogWriter``."""
        return b"".join(orjson.dumps(workload.to_json()) + b"\n" for workload in self._workloads)

    def record_line(self, index: int, candidate: Candidate, measurement: Measurement) -> bytes:
        """See ``LogWriter``."""
        return orjson.dumps([index, candidate.schedule, measurement.latencies_s, self._target]) + b"\n"


def _workload(_: int, line: bytes) -> Workload:
    try:
        workload = Workload.from_json(parsed(line))
        if workload.dialect != DIALECT:
            raise BadInput(f"a workload of {workload.dialect}")
    except DAMAGE as error:
        raise BadInput(f"not a workload: {error}") from None
    return workload


def _record(line: bytes, workloads: Workloads, targets: Targets, info: LogInfo, log: Path) -> TuningRecord:
    try:
        index, schedule, latencies_s, target = parsed(line)
    except (ValueError, TypeError) as error:
        raise BadInput(f"not a record of a Halide log: {error}") from None
    return TuningRecord(
        workload=workload_at(index, workloads, WORKLOADS),
        target=targets(target),
        candidate=Candidate(schedule),
        measurement=_measurement(latencies_s),
        build=info.build,
        network=info.network,
        log=str(log),
    )


def _measurement(latencies_s: Json) -> Measurement:
    if not isinstance(latencies_s, list) or not all(is_number(s) and s > 0 for s in latencies_s):
        raise BadInput(f"its latencies are no positive numbers: {latencies_s!r:.80}")
    if not latencies_s:
        return Measurement(Outcome.UNKNOWN_ERROR, detail="failed to build or run; details.jsonl beside may say why")
    return Measurement(Outcome.OK, tuple(float(s) for s in latencies_s))
