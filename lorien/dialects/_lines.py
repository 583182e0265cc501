"""Logs of a record a line, plain or gzip, whole or cut short: what every reader of them shares."""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from lorien.dialects.base import ReadReport
from lorien.errors import BadInput, UnreadableLog
from lorien.records import Json, TuningRecord
from lorien.target import Target

logger = logging.getLogger(__name__)

GZIP_MAGIC = b"\x1f\x8b"
SNIFF_LINES = 20
CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 256 << 20


def read_records(
    path: Path, record: Callable[[bytes], TuningRecord], report: ReadReport, shard: tuple[int, int]
) -> Iterator[TuningRecord]:
    """Stream what ``record`` makes of each line of a file, those for which it raises ``BadInput`` skipped and counted.

    A shard has every so many of the non-blank lines, readable or not: each line is one shard's business.
    """
    part, parts = shard
    for index, (number, line) in enumerate(iter_lines(path)):
        if index % parts != part:
            continue
        try:
            found = record(line)
        except BadInput as error:
            report.bad(f"{path.name}:{number}", str(error))
        else:
            report.saw(found)
            yield found


class Targets:
    """The targets of a log by what it says of them, which it repeats in every line."""

    def __init__(self) -> None:
        self._seen: dict[str | bytes, Target] = {}

    def __call__(self, said: Json) -> Target:
        """The target. Raises ``BadInput`` when it is none."""
        if not isinstance(said, (str, dict)):
            raise BadInput(f"target {said!r:.80} is neither a text nor an object")
        key = said if isinstance(said, str) else orjson.dumps(said)
        if key not in self._seen:
            self._seen[key] = Target.parse(said)
        return self._seen[key]


def json_object(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, None when it holds other JSON. Raises ``BadInput`` when it holds none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        what = "binary data" if is_binary(line) else f"not JSON or cut short ({error})"
        raise BadInput(what) from None
    return value if isinstance(value, dict) else None


def plain_or_gzip(folder: Path, name: str) -> Path | None:
    """The file of that name, or with ``.gz``, that is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def refuse_binary(path: Path, what: str) -> None:
    """Raise ``UnreadableLog`` when a file does not begin with text; ``what`` names the lines it should hold."""
    if any(is_binary(line) for _, line in itertools.islice(iter_lines(path), 1)):
        raise UnreadableLog(f"{path} is binary, not {what}")


def iter_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Stream the non-blank lines of a file, without their newline, numbered from 1.

    Gzip is told by its first bytes, not by the name; members appended to one another are read on. Where an interrupted
    writer or a damaged gzip ends the text inside a line, that part is the last line yielded: whether it is whole is for
    the caller to judge.

    Raises
    ------
    UnreadableLog
        The file cannot be opened, or has a line so long that it is no text log.
    """
    number = 0
    rest = b""
    try:
        for chunk in chunks(path):
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                rest += chunk
                if len(rest) > MAX_LINE_BYTES:
                    raise UnreadableLog(
                        f"{path}: line {number + 1} is longer than {MAX_LINE_BYTES >> 20} MiB, this is no text log"
                    )
                continue
            for line in (rest + head).split(b"\n"):
                number += 1
                if line and not line.isspace():
                    yield number, line
            rest = tail
    except OSError as error:
        raise UnreadableLog(f"{path} cannot be read: {error.strerror or error}") from error
    if rest and not rest.isspace():
        yield number + 1, rest


def head_lines(path: Path, count: int = SNIFF_LINES) -> list[bytes]:
    """The first non-blank lines of a text file; empty when it is binary, empty or not readable."""
    try:
        lines = [line for _, line in itertools.islice(iter_lines(path), count)]
    except UnreadableLog:
        return []
    return [] if any(is_binary(line) for line in lines) else lines


def is_binary(line: bytes) -> bool:
    """True for bytes that no text log holds."""
    return b"\0" in line


def find_logs(path: Path, suffixes: tuple[str, ...], accepts: Callable[[bytes], bool]) -> Iterator[Path]:
    """The file ``path``, or those below it named with one of ``suffixes`` (or that and ``.gz``), that are of a dialect.

    A file belongs to the dialect when ``accepts`` is true of one of its first lines: the very first may be damaged.
    The order is that of the sorted paths.
    """
    names = suffixes + tuple(f"{suffix}.gz" for suffix in suffixes)
    files = [file for file in sorted(path.rglob("*")) if file.name.endswith(names)] if path.is_dir() else [path]
    for file in files:
        if file.is_file() and any(map(accepts, head_lines(file))):
            yield file


def chunks(path: Path) -> Iterator[bytes]:
    """Stream the decompressed bytes of a file, gzip or not, whole or cut short. Raises ``OSError``."""
    with path.open("rb") as stream:
        is_gzip = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        stream.seek(0)
        yield from _inflate(stream, path) if is_gzip else iter(lambda: stream.read(CHUNK_BYTES), b"")


def _inflate(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    # The gzip module throws away what it had decompressed when the file ends early; zlib hands it over.
    data = stream.read(CHUNK_BYTES)
    while data:
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while data and not inflater.eof:
            try:
                yield inflater.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                logger.warning("%s: gzip data is damaged (%s); what follows is lost", path, error)
                return
            data = inflater.unconsumed_tail or inflater.unused_data or stream.read(CHUNK_BYTES)
        if not inflater.eof:
            logger.warning("%s: gzip data ends early; what came before is read", path)
            yield inflater.flush()
        data = data.lstrip(b"\0")  # some writers pad between members
