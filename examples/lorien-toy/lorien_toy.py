"""A log dialect: a tuner that writes a line ``operator size... | knob=value... | milliseconds`` for each trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lorien.dialects._lines import find_logs, iter_lines
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import BadInput, UnreadableLog
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target


class ToyDialect:
    """Implements ``LogDialect``."""

    name = "toy"
    shard_bytes = 1 << 20

    def find(self, path: Path) -> Iterator[Path]:
        """Files named ``*.toy`` with a line of ours among the first."""
        yield from find_logs(path, (".toy",), _is_record)

    def files(self, log: Path) -> list[Path]:
        """The file itself."""
        return [log]

    def read(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TuningRecord]:
        """Stream the records; a line that cannot be read is counted and skipped."""
        if not any(_is_record(line) for _, line in iter_lines(log)):
            raise UnreadableLog(f"{log} holds no toy record. Fix: name the dialect that wrote it")
        mine, count = shard
        for index, (number, line) in enumerate(iter_lines(log)):
            if index % count != mine:
                continue
            try:
                record = _record(line, info, str(log))
            except BadInput as error:
                report.bad(f"{log.name}:{number}", str(error))
                continue
            report.saw(record)
            yield record


class ToyFeatures:
    """Implements ``FeatureExtractor``: three sizes and two knobs, NaN where a record has none."""

    dialect = ToyDialect.name
    features = FeatureSet(
        "toy",
        1,
        (
            *(Column(f"size_{index}", "log2", f"size {index} of the operator") for index in range(3)),
            *(Column(knob, "log2", f"knob {knob}") for knob in ("tile", "unroll")),
        ),
    )

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """Stream batches of records and their rows."""
        for batch in batched(ToyDialect().read(log, info, report, shard), batch_rows):
            yield batch, np.stack([_row(record.workload, record.candidate) for record in batch])

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """The rows of candidates, in their order."""
        return np.stack([_row(workload, candidate) for candidate in candidates])


def _row(workload: Workload, candidate: Candidate) -> Features:
    sizes = [*workload.identity[1][:3], *[np.nan] * 3][:3]
    knobs = [candidate.schedule.get(name, np.nan) for name in ("tile", "unroll")]
    return np.log2(np.array([*sizes, *knobs], dtype=np.float32))


def _record(line: bytes, info: LogInfo, log: str) -> TuningRecord:
    try:
        operator, knobs, milliseconds = line.decode().split("|")
        name, *sizes = operator.split()
        identity = [name, [int(size) for size in sizes]]
        schedule = {key: int(value) for key, value in (knob.split("=") for knob in knobs.split())}
        latency_s = float(milliseconds) / 1e3
    except ValueError as error:
        raise BadInput(f"not a toy record: {error}") from None
    ran = latency_s > 0
    return TuningRecord(
        workload=Workload(
            dialect=ToyDialect.name,
            name=f"{name}({', '.join(sizes)})",
            identity=identity,
            networks=(info.network,) if info.network else (),
        ),
        target=info.target or Target.parse("llvm"),
        candidate=Candidate(schedule),
        measurement=Measurement(Outcome.OK, (latency_s,)) if ran else Measurement(Outcome.UNKNOWN_ERROR),
        build=info.build,
        network=info.network,
        log=log,
    )


def _is_record(line: bytes) -> bool:
    try:
        _record(line, LogInfo(), "")
    except BadInput:
        return False
    return True
