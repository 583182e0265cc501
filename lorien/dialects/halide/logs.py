"""Halide keeps no logs of its own: a run is a folder of two JSON lines files, written here and read without Halide.

``halide_workloads.jsonl`` holds a workload a line; ``halide_records.jsonl``, a line a measurement,
``[number of the workload, schedule, latencies in seconds, target]``, the latencies empty for a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from lorien.dialects._compressed import find_file, plain_name
from lorien.dialects._lines import (
    DAMAGE,
    Targets,
    head_lines,
    is_number,
    iter_lines,
    parsed,
    read_records,
    refuse_binary,
)
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.halide.pipelines import DIALECT
from lorien.errors import BadInput, UnreadableLog
from lorien.records import Candidate, Json, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

WORKLOADS = "halide_workloads.jsonl"
RECORDS = "halide_records.jsonl"


def find(path: Path) -> Iterator[Path]:
    """Sorted folders at or below ``path`` that hold both files; a file stands for its folder."""
    if path.is_dir():
        folders = {file.parent for file in path.rglob(f"{WORKLOADS}*")}
    else:
        folders = {path.parent} if plain_name(path.name) in (WORKLOADS, RECORDS) else set()
    for folder in sorted(folders):
        workloads, records = (find_file(folder, name) for name in (WORKLOADS, RECORDS))
        if workloads and records and head_lines(workloads):
            yield folder


def files(log: Path) -> list[Path]:
    """The workload file and the record file. Raises ``UnreadableLog`` when one is not there."""
    found = [file for name in (WORKLOADS, RECORDS) if (file := find_file(log, name)) is not None]
    if len(found) < 2:
        raise UnreadableLog(f"{log} is no Halide log: it needs {WORKLOADS} and {RECORDS}, plain or compressed")
    return found


def read(log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)) -> Iterator[TuningRecord]:
    """Stream the records of a folder; see ``LogDialect.read``. The index that shards is that of the non-blank line."""
    record_file = files(log)[-1]
    refuse_binary(record_file, "JSON lines")
    yield from read_records(record_file, reader(log, info), report, shard)


def reader(log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
    """See ``LineDialect``."""
    workloads, targets = _workloads(files(log)[0], info), Targets(info, dict)
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


def _workloads(path: Path, info: LogInfo) -> list[Workload | BadInput]:
    found: list[Workload | BadInput] = []
    for _, line in iter_lines(path):
        try:
            workload = Workload.from_json(parsed(line))
            if workload.dialect != DIALECT:
                raise BadInput(f"a workload of {workload.dialect}")
        except DAMAGE as error:
            found.append(BadInput(f"not a workload: {error}"))
        else:
            found.append(workload)
    if all(isinstance(entry, BadInput) for entry in found):
        raise UnreadableLog(f"{path} holds no workload of Halide: {found[0] if found else 'it is empty'}")
    return found


def _record(
    line: bytes, workloads: list[Workload | BadInput], targets: Targets, info: LogInfo, log: Path
) -> TuningRecord:
    try:
        index, schedule, latencies_s, target = parsed(line)
    except (ValueError, TypeError) as error:
        raise BadInput(f"not a record of a Halide log: {error}") from None
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(workloads):
        raise BadInput(f"its workload {index!r} is not in {WORKLOADS}")
    workload = workloads[index]
    if isinstance(workload, BadInput):
        raise BadInput(f"its workload {index} cannot be read: {workload}")
    return TuningRecord(
        workload=workload,
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
