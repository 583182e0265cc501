"""Read the folders that TVM's ``JSONDatabase`` writes, without building a TVM object per record."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from lorien.dialects._folders import Workloads, files_of, find_folders, read_workloads, workload_at
from lorien.dialects._lines import (
    Targets,
    head_lines,
    is_number,
    parsed,
    read_records,
    refuse_binary,
)
from lorien.dialects.base import LogInfo, ReadReport, Task
from lorien.dialects.metaschedule.graph import module_graph
from lorien.dialects.metaschedule.workload import BUILD, DIALECT, IDENTITY_KIND, flop_of, load_module
from lorien.errors import BadInput, MissingExtra, VersionClash
from lorien.records import Candidate, Json, Measurement, Outcome, TuningRecord, Workload

logger = logging.getLogger(__name__)

WORKLOADS = "database_workload.json"
RECORDS = "database_tuning_record.json"
FAILED_S = 1e10
"""What TVM writes in place of a latency when a candidate did not build or run."""

_OLD_TVM = f"written by an older TVM, whose modules and traces {BUILD} cannot read. Fix: --dialect metaschedule_legacy"


ReadWorkload = Callable[[bytes, LogInfo], Workload]
"""A workload from a line of the workload file; raises ``BadInput``."""


def find(path: Path) -> Iterator[Path]:
    """Sorted folders at or below ``path`` that hold a workload and a record file; a file stands for its folder."""
    return folders(path, legacy=False)


def folders(path: Path, *, legacy: bool) -> Iterator[Path]:
    """As ``find``; with ``legacy``, those that an older TVM wrote, whose modules are in another JSON."""
    for folder, workloads in find_folders(path, WORKLOADS, RECORDS):
        lines = [line for line in head_lines(workloads) if line.lstrip().startswith(b'["')]
        if lines and any(map(_is_legacy, lines)) == legacy:
            yield folder


def files(log: Path) -> list[Path]:
    """The workload file and the record file. Raises ``UnreadableLog`` when one is not there."""
    return files_of(log, WORKLOADS, RECORDS, "MetaSchedule")


def read(
    log: Path,
    info: LogInfo,
    report: ReadReport,
    shard: tuple[int, int] = (0, 1),
    read_workload: ReadWorkload | None = None,
) -> Iterator[TuningRecord]:
    """Stream the records of a folder; see ``LogDialect.read``. ``read_workload`` knows the form of its workloads."""
    record_file = files(log)[-1]
    refuse_binary(record_file, "JSON lines of MetaSchedule")
    yield from read_records(record_file, reader(log, info, read_workload), report, shard)


def reader(log: Path, info: LogInfo, read_workload: ReadWorkload | None = None) -> Callable[[bytes], TuningRecord]:
    """See ``LineDialect``: what makes a record of a line of the record file. Reads the workload file once."""
    workloads = _workloads(files(log)[0], info, read_workload or _workload)
    targets = Targets(info, dict)
    return lambda line: _record(line, workloads, targets, info, log)


def _is_legacy(line: bytes) -> bool:
    """True of a workload line whose JSON starts as an older TVM's."""
    try:
        _, _, definition, *_ = line[:200].split(b'"')[1:]
        head = base64.b64decode(definition[: len(definition) // 4 * 4])[8:].split(b'"')
    except ValueError:
        return False
    return len(head) > 1 and head[1] == b"root"


def _workloads(path: Path, info: LogInfo, read_workload: ReadWorkload) -> Workloads:
    """The workloads of a log, with what their tuner knows of them."""

    def read(index: int, line: bytes) -> Workload:
        workload = read_workload(line, info)
        # TVM writes workloads in the order of its tasks but without their names: what no name tells goes by position.
        by_position = info.tasks[index] if index < len(info.tasks) else Task(workload.name)
        task = info.named.get(workload.name, by_position)
        return replace(workload, weight=task.weight, networks=task.networks or workload.networks)

    return read_workloads(path, read)


def _workload(line: bytes, info: LogInfo) -> Workload:
    structural_hash, definition, name = _definition(line)
    return Workload(
        dialect=DIALECT,
        name=name,
        identity=[IDENTITY_KIND, structural_hash],
        definition=definition,
        flop=_flop(structural_hash, definition),
        networks=(info.network,) if info.network else (),
    )


def parts_of(line: bytes) -> tuple[str, str]:
    """Structural hash and definition, from a line of the workload file. Raises ``BadInput``."""
    value = parsed(line)
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise BadInput("not a workload of JSONDatabase: it is not [hash, module]")
    structural_hash, definition = value
    return structural_hash, definition


def _definition(line: bytes) -> tuple[str, str, str]:
    """Structural hash, module text and a name for people, from a line of the workload file."""
    structural_hash, definition = parts_of(line)
    graph = module_graph(definition)
    if "root_index" not in graph:
        raise BadInput(_OLD_TVM)
    try:
        return structural_hash, definition, _name(graph["nodes"])
    except (KeyError, IndexError, TypeError) as error:
        raise BadInput(f"the module of workload {structural_hash} is damaged: {error!r}") from None


def _name(nodes: list[Json]) -> str:
    """Blocks and argument shapes of a module: ``conv2d_nchw+T_add(1x3x8x8,4x3x3x3,1x4x6x6)``."""

    def shape(parameter: int) -> str:
        buffer = nodes[nodes[parameter]["data"]["ty"]]["data"]
        extents = (nodes[extent] for extent in nodes[buffer["shape"]]["data"])
        return "x".join(str(nodes[e["data"]["value"]]["data"]) if e["type"] == "ir.IntImm" else "?" for e in extents)

    blocks = [nodes[n["data"]["name_hint"]]["data"] for n in nodes if n["type"] == "s_tir.SBlock"]
    function = next(n for n in nodes if n["type"] == "tirx.PrimFunc")
    shapes = [shape(parameter) for parameter in nodes[function["data"]["params"]]["data"]]
    return f"{'+'.join(block for block in blocks if block != 'root')}({','.join(shapes)})"


def _flop(structural_hash: str, definition: str) -> float | None:
    try:
        return flop_of(load_module(structural_hash, definition))
    except (MissingExtra, VersionClash, BadInput) as error:
        logger.debug("flop of workload %s unknown: %s", structural_hash, error)
        return None


def _record(line: bytes, workloads: Workloads, targets: Targets, info: LogInfo, log: Path) -> TuningRecord:
    """One line of the record file. Raises ``BadInput`` with the reason it cannot be read."""
    try:
        index, (trace, run_secs, target, *_) = parsed(line)
        instructions, decisions = trace
        names = {instruction[0] for instruction in instructions}
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise BadInput(f"not a record of JSONDatabase: {error}") from None
    workload = workload_at(index, workloads, WORKLOADS)
    if "GetBlock" in names and workload.dialect == DIALECT:
        raise BadInput(_OLD_TVM)
    return TuningRecord(
        workload=workload,
        target=targets(target),
        candidate=Candidate([instructions, decisions]),
        measurement=_measurement(run_secs),
        build=info.build,
        network=workload.networks[0] if len(workload.networks) == 1 else None,
        log=str(log),
    )


def _measurement(run_secs: Json) -> Measurement:
    if not run_secs:
        return Measurement(Outcome.UNKNOWN_ERROR, detail="no latency in the log")
    if not isinstance(run_secs, list) or not all(map(is_number, run_secs)):
        raise BadInput(f"its latencies are no numbers: {run_secs!r:.80}")
    if any(s >= FAILED_S for s in run_secs):
        return Measurement(Outcome.UNKNOWN_ERROR, detail="failed to build or run; the log does not say why")
    if not all(math.isfinite(s) and s > 0 for s in run_secs):
        raise BadInput(f"its latencies are not positive and finite: {run_secs!r:.80}")
    return Measurement(Outcome.OK, tuple(float(s) for s in run_secs))
