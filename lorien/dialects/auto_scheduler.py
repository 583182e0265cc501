"""Ansor (``auto_scheduler``), the log dialect: the JSON lines that TVM 0.7 to 0.18 wrote, read without TVM.

A line is::

    {"i": [[workload key, target, hardware, host target, layout rewrite, names], [[], steps]], "r": R, "v": "v0.6"}

where older versions leave out what comes after the target. A workload key is a JSON list: the name of a function that
makes the compute, or a hash of the compute, and its arguments. ``R`` is that of AutoTVM, and a step a list of its kind
(``SP``, ``FU``, ``RE``...), the stage it changes, and its arguments; ``lorien.featurize.auto_scheduler`` replays them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from lorien.dialects._lines import Targets, find_logs, iter_lines, json_object, read_records
from lorien.dialects.autotvm import measurement_of
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import BadInput, UnreadableLog
from lorien.records import Candidate, Json, TuningRecord, Workload

NAME_DIGITS = 8
"""Of a hash in a workload's name: enough to tell the tasks of a network apart."""


class AutoSchedulerDialect:
    """Reads Ansor's logs."""

    name = "auto_scheduler"
    shard_bytes = 256 << 10

    def find(self, path: Path) -> Iterator[Path]:
        """Files that hold an Ansor line."""
        yield from find_logs(path, (), _is_record)

    def files(self, log: Path) -> list[Path]:
        """The file itself."""
        return [log]

    def read(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TuningRecord]:
        """Stream the records of a log; see ``LogDialect.read``. The index that shards is that of the non-blank line."""
        if not any(_is_record(line) for _, line in iter_lines(log)):
            raise UnreadableLog(
                f"{log} holds no auto_scheduler record. Fix: name the dialect that wrote it, or give the log of Ansor"
            )
        yield from read_records(log, self.reader(log, info), report, shard)

    def reader(self, log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
        """See ``LineDialect``."""
        return _Reader(info, str(log)).record


class _Reader:
    """Decodes lines; keeps each workload and target it met, for logs repeat them thousands of times."""

    def __init__(self, info: LogInfo, log: str) -> None:
        self._info = info
        self._log = log
        self._workloads: dict[str, Workload] = {}
        self._targets = Targets(info, str)

    def record(self, line: bytes) -> TuningRecord:
        """The record of a line. Raises ``BadInput`` saying what is wrong with it."""
        row = _decode(line)
        try:
            (key, target, *_), (_, steps) = row["i"]
            latencies_s, error, _, timestamp_s = row["r"]
        except (KeyError, TypeError, ValueError) as problem:
            raise BadInput(f"not an auto_scheduler record ({type(problem).__name__}: {problem})") from None
        if not isinstance(steps, list) or not all(
            isinstance(step, list) and len(step) > 1 and isinstance(step[0], str) for step in steps
        ):
            raise BadInput("the steps are not a list of [kind, stage, ...]")
        return TuningRecord(
            workload=self._workload(key),
            target=self._targets(target),
            candidate=Candidate(steps),
            measurement=measurement_of(latencies_s, error, timestamp_s),
            build=self._info.build,
            network=self._info.network,
            log=self._log,
        )

    def _workload(self, key: Json) -> Workload:
        if not isinstance(key, str) or not key:
            raise BadInput(f"workload key {key!r:.80} is not a text")
        if key not in self._workloads:
            self._workloads[key] = workload_of(key, self._info)
        return self._workloads[key]


def workload_of(key: str, info: LogInfo) -> Workload:
    """The workload of a workload key: its identity is the list in it, of a function or a hash and its arguments."""
    try:
        identity = orjson.loads(key)
    except orjson.JSONDecodeError:
        identity = [key]
    if not isinstance(identity, list) or not identity or not isinstance(identity[0], str):
        raise BadInput(f"workload key {key!r:.80} names no function")
    function, *arguments = identity
    is_hash = len(function) >= 32 and set(function) <= set("0123456789abcdef")
    name = f"{function[:NAME_DIGITS] if is_hash else function}({', '.join(map(_text, arguments))})"
    return Workload(
        dialect=AutoSchedulerDialect.name,
        name=name,
        identity=identity,
        weight=info.weights.get(name, 1.0),
        networks=(info.network,) if info.network else (),
    )


def _text(argument: Json) -> str:
    if isinstance(argument, list):
        return "x".join(map(_text, argument))
    return argument if isinstance(argument, str) else orjson.dumps(argument).decode()


def _decode(line: bytes) -> dict[str, Any]:
    row = json_object(line)
    if row is None or "i" not in row:
        raise BadInput("not an auto_scheduler record (no input)")
    return row


def _is_record(line: bytes) -> bool:
    # The old lines of AutoTVM have "i" and "r" too, but their input starts with the target, not with a list.
    try:
        given = _decode(line)["i"]
    except BadInput:
        return False
    return isinstance(given, list) and len(given) == 2 and all(isinstance(part, list) for part in given)
