"""A log of several devices as a log for each: TopHub's files hold the best schedules of many."""

from __future__ import annotations

import shutil
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lorien.dialects._compressed import plain_name
from lorien.dialects._lines import decode, iter_lines
from lorien.dialects.base import LineDialect, LogDialect
from lorien.errors import BadInput, UnreadableLog
from lorien.logs.base import info_of, read_sidecar, sidecar_of


@dataclass
class Part:
    """What a log holds of one target.

    Parameters
    ----------
    path : Path
        The part, a log of the same dialect.
    source : Path
        Record file of the log that was split.
    lines : array of int
        Number in ``source`` of each line of the part's record file.
    """

    path: Path
    source: Path
    lines: array[int] = field(default_factory=lambda: array("q"), repr=False)

    def where(self, reason: str) -> str:
        """A reason of a ``ReadReport`` on the part, with the file and the line number of the source."""
        place, _, why = reason.partition(": ")
        _, _, number = place.rpartition(":")
        return f"{self.source.name}:{self.lines[int(number) - 1]}: {why}" if number.isdecimal() else reason


def split_by_target(log: Path, dialect: LogDialect, folder: Path) -> list[Part]:
    """Write the lines of a log, unchanged, to a log for each target that they name; the parts, by target key.

    Each part has the log's name, uncompressed, its ``lorien.json`` and its other files. Lines that cannot be read stay
    with those before them, so that each is reported once.

    Raises
    ------
    BadInput
        The dialect's logs have no record a line, or a ``lorien.json`` names one target for all.
    UnreadableLog
        No line can be read.
    """
    if not isinstance(dialect, LineDialect):
        raise BadInput(f"logs of {dialect.name} cannot be split. Fix: leave out --split")
    sidecar = read_sidecar(log)
    if sidecar.get("target"):
        raise BadInput(f"{sidecar_of(log)} names one target for all of {log.name}. Fix: leave out --split")
    *others, source = dialect.files(log)
    # Who made the log may be told beside it; which device, each line says.
    record = dialect.reader(log, info_of(sidecar, sidecar_of(log)))
    name = plain_name(source.name)
    parts: dict[str, Part] = {}
    files: dict[str, BinaryIO] = {}
    unread: list[tuple[int, bytes]] = []
    first = "it is empty"
    key = ""
    with ExitStack() as stack:
        for number, line in iter_lines(source):
            try:
                key = decode(record, line).target.key
            except BadInput as error:
                if not key:
                    first = first if unread else f"{source.name}:{number}: {error}"
                    unread.append((number, line))
                    continue
            if key not in files:
                path = _new_part(log, folder / key, others)
                files[key] = stack.enter_context((path / name if log.is_dir() else path).open("wb"))
                parts[key] = Part(path, source)
            for own, text in (*unread, (number, line)):
                files[key].write(text + b"\n")
                parts[key].lines.append(own)
            unread = []
    if not parts:
        raise UnreadableLog(f"{log} has no readable record ({first}). Nothing of it was stored")
    return [parts[key] for key in sorted(parts)]


def _new_part(log: Path, folder: Path, others: list[Path]) -> Path:
    """The path of a part, with all but its record file in place."""
    path = folder / (log.resolve().name if log.is_dir() else plain_name(log.name))
    place = path if log.is_dir() else folder
    place.mkdir(parents=True)
    for file in (*others, sidecar_of(log)):
        if file.is_file():
            shutil.copy(file, place)
    return path
