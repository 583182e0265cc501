"""A log of several devices as a log for each: TopHub's files hold the best schedules of many."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from lorien.dialects._lines import iter_lines
from lorien.dialects.base import LineDialect, LogDialect, LogInfo
from lorien.errors import BadInput
from lorien.logs.base import read_sidecar, sidecar_of


def split_by_target(log: Path, dialect: LogDialect, folder: Path) -> list[Path]:
    """Write the lines of a log, unchanged, to a file for each target that they name; the files, by target key.

    Each file has the log's name, without ``.gz``, and its ``lorien.json`` beside it. Lines that cannot be read stay
    with those before them, so that each is reported once.

    Raises
    ------
    BadInput
        The dialect's logs are not files of a record a line, or a ``lorien.json`` names one target for all.
    """
    if not isinstance(dialect, LineDialect):
        raise BadInput(f"logs of {dialect.name} are of one device each. Fix: leave out --split")
    if read_sidecar(log).get("target"):
        raise BadInput(f"{sidecar_of(log)} names one target for all of {log.name}. Fix: leave out --split")
    record = dialect.reader(log, LogInfo())
    files: dict[str, BinaryIO] = {}
    unread: list[bytes] = []
    key = ""
    with ExitStack() as stack:
        for _, line in iter_lines(log):
            try:
                key = record(line).target.key
            except BadInput:
                if not key:
                    unread.append(line)
                    continue
            if key not in files:
                path = folder / key / log.name.removesuffix(".gz")
                path.parent.mkdir(parents=True)
                if sidecar_of(log).is_file():
                    shutil.copy(sidecar_of(log), path.parent)
                files[key] = stack.enter_context(path.open("wb"))
            files[key].writelines(part + b"\n" for part in (*unread, line))
            unread = []
        return [Path(files[key].name) for key in sorted(files)]
