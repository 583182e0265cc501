"""Logs that are a folder of two files: workloads, a line each, and records, which name their workload by its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lorien.dialects._compressed import find_file, plain_name
from lorien.dialects._lines import decode, iter_lines
from lorien.errors import BadInput, UnreadableLog
from lorien.records import Json, Workload

Workloads = list[Workload | BadInput]
"""One entry a line; the reason in place of a workload that cannot be read."""


def find_folders(path: Path, workload_file: str, record_file: str) -> Iterator[tuple[Path, Path]]:
    """Sorted folders at or below ``path`` with both files, and their workload files; a file stands for its folder."""
    if path.is_dir():
        folders = {file.parent for file in path.rglob(f"{workload_file}*")}
    else:
        folders = {path.parent} if plain_name(path.name) in (workload_file, record_file) else set()
    for folder in sorted(folders):
        workloads, records = find_file(folder, workload_file), find_file(folder, record_file)
        if workloads and records:
            yield folder, workloads


def files_of(log: Path, workload_file: str, record_file: str, framework: str) -> list[Path]:
    """The workload file and the record file. Raises ``UnreadableLog`` when one is not there."""
    found = [file for name in (workload_file, record_file) if (file := find_file(log, name)) is not None]
    if len(found) < 2:
        raise UnreadableLog(
            f"{log} is no {framework} log: it needs {workload_file} and {record_file}, plain or compressed"
        )
    return found


def read_workloads(path: Path, read: Callable[[int, bytes], Workload], what: str = "workload") -> Workloads:
    """What ``read`` makes of each line and its number. Raises ``UnreadableLog`` when no line can be read."""
    found: Workloads = []
    for index, (_, line) in enumerate(iter_lines(path)):
        try:
            found.append(decode(partial(read, index), line))
        except BadInput as error:
            found.append(error)
    if all(isinstance(entry, BadInput) for entry in found):
        raise UnreadableLog(f"{path} holds no {what}: {found[0] if found else 'it is empty'}")
    return found


def workload_at(index: Json, workloads: Workloads, workload_file: str) -> Workload:
    """The workload that a record names. Raises ``BadInput`` when there is none, or it cannot be read."""
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(workloads):
        raise BadInput(f"its workload {index!r} is not in {workload_file}")
    workload = workloads[index]
    if isinstance(workload, BadInput):
        raise BadInput(f"its workload {index} cannot be read: {workload}")
    return workload
