"""Logs of a record a line, plain or compressed, whole or cut short: what every reader of them shares."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from lorien.dialects._compressed import SUFFIXES, archive_kind, chunks
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import BadInput, UnreadableLog
from lorien.records import Json, TuningRecord
from lorien.target import Target

T = TypeVar("T")

SNIFF_LINES = 20
SNIFF_BYTES = 32 << 20
MAX_LINE_BYTES = 64 << 20
"""The longest lines known, modules of large fused kernels, have less than 1 MiB."""
MAX_NESTING = 128
"""Levels of lists and objects in a line. Real records have 12; orjson writes no more than 254."""
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What decoding a damaged line raises where it holds a value of another type or size than expected."""

_OPENING = np.zeros(256, np.int8)
_OPENING[list(b"[{")] = 1
_OPENING[list(b"]}")] = -1


def read_records(
    path: Path, record: Callable[[bytes], TuningRecord], report: ReadReport, shard: tuple[int, int]
) -> Iterator[TuningRecord]:
    """Stream what ``record`` makes of each line of a file; lines that are no record are skipped and counted.

    A shard has every so many of the non-blank lines, readable or not: each line is one shard's business.
    """
    part, parts = shard
    for index, (number, line) in enumerate(iter_lines(path)):
        if index % parts != part:
            continue
        try:
            found = decode(record, line)
        except BadInput as error:
            report.bad(f"{path.name}:{number}", str(error))
        else:
            report.saw(found)
            yield found


def decode(read: Callable[[bytes], T], line: bytes) -> T:
    """What ``read`` makes of a line. Raises ``BadInput`` alone: a line is foreign data and may hold anything."""
    try:
        return read(line)
    except BadInput:
        raise
    except DAMAGE as error:
        raise BadInput(f"damaged ({type(error).__name__}: {str(error)[:160]})") from None


class Targets:
    """The targets of a log's lines by what they say of them, which logs repeat in every line.

    ``kind`` is the form in which the framework writes targets. ``info.target`` overrides what lines say where it was
    given. Where the log named it, a line of another target, or whose target cannot be read, is refused, as it was when
    the log was ingested.
    """

    def __init__(self, info: LogInfo, kind: type[str] | type[dict[str, Json]]) -> None:
        self._info = info
        self._kind = kind
        self._seen: dict[str | bytes, Target] = {}

    def __call__(self, said: Json) -> Target:
        """The target of a line. Raises ``BadInput``."""
        expected = self._info.target
        if expected is not None and self._info.target_given:
            return expected
        if said is None:
            raise BadInput("it names no target. Fix: --target")
        if not isinstance(said, self._kind):
            raise BadInput(f"target {said!r:.80} is not {'a string' if self._kind is str else 'an object'}")
        key = said if isinstance(said, str) else orjson.dumps(said)
        if key not in self._seen:
            self._seen[key] = Target.parse(said)
        target = self._seen[key]
        if expected is not None and target.key != expected.key:
            raise BadInput(f"its target is {target.key}, the target of the log is {expected.key}")
        return target


def parsed(line: bytes) -> Json:
    """The JSON value of a line. Raises ``BadInput`` when it holds none, or one nested over ``MAX_NESTING`` deep."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        what = "binary data" if is_binary(line) else f"not JSON or cut short ({error})"
        raise BadInput(what) from None
    if line.count(b"[") + line.count(b"{") > MAX_NESTING and _is_deep(line, value):
        raise BadInput(f"it is nested over {MAX_NESTING} deep: no framework writes that")
    return value


def json_object(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, None when it holds other JSON. Raises ``BadInput`` when it holds none."""
    value = parsed(line)
    return value if isinstance(value, dict) else None


def refuse_binary(path: Path, what: str) -> None:
    """Raise ``UnreadableLog`` when a file does not begin with text; ``what`` names the lines it should hold."""
    if any(is_binary(line) for _, line in itertools.islice(iter_lines(path), 1)):
        raise UnreadableLog(f"{path} is binary, not {what}")


def iter_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Stream the non-blank lines of a file, without their newline, numbered from 1.

    A byte order mark is skipped. Compression is told by the first bytes, not by the name. Where an interrupted writer
    or damaged compression ends the text inside a line, that part is the last line yielded: whether it is whole is for
    the caller to judge.

    Raises
    ------
    UnreadableLog
        The file cannot be opened, is UTF-16, or has a line so long that it is no text log.
    """
    number = 0
    pieces: list[bytes] = []
    length = 0
    try:
        for chunk in _text(path):
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                pieces.append(head)
                for line in b"".join(pieces).split(b"\n"):
                    number += 1
                    if _holds_text(line):
                        yield number, line
                pieces, length = [tail], len(tail)
                continue
            pieces.append(chunk)
            length += len(chunk)
            if length > MAX_LINE_BYTES:
                raise UnreadableLog(
                    f"{path}: line {number + 1} is longer than {MAX_LINE_BYTES >> 20} MiB, this is no text log. "
                    "Fix: remove that line"
                )
    except OSError as error:
        raise UnreadableLog(f"{path} cannot be read: {error.strerror or error}") from error
    rest = b"".join(pieces)
    if _holds_text(rest):
        yield number + 1, rest


def head_lines(path: Path, count: int = SNIFF_LINES) -> list[bytes]:
    """The first non-blank lines of a text file, as far as it can be read; none when it is binary."""
    lines: list[bytes] = []
    size = 0
    with suppress(UnreadableLog):
        for _, line in itertools.islice(iter_lines(path), count):
            if is_binary(line):
                return []
            lines.append(line)
            size += len(line)
            if size > SNIFF_BYTES:
                break
    return lines


def is_number(value: Json) -> bool:
    """True of a number of JSON: ``true`` is none, though it is an ``int`` to Python."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_binary(line: bytes) -> bool:
    """True for bytes that no text log holds, but at the end of a line: there a power loss leaves them."""
    return b"\0" in line and b"\0" in line.rstrip(b"\0")


def find_logs(path: Path, suffixes: tuple[str, ...], accepts: Callable[[bytes], bool]) -> Iterator[Path]:
    """The file ``path``, or those below it named with one of ``suffixes`` (or that and a compression's), of a dialect.

    With no suffixes, files of any name.

    A file belongs to the dialect when ``accepts`` is true of one of its first lines: the very first may be damaged.
    The order is that of the sorted paths.
    """
    names = tuple(f"{suffix}{packed}" for suffix in suffixes for packed in ("", *SUFFIXES)) or ("",)
    files = [file for file in sorted(path.rglob("*")) if file.name.endswith(names)] if path.is_dir() else [path]
    for file in files:
        if file.is_file() and any(map(accepts, head_lines(file))):
            yield file


def why_not(path: Path, dialect: str) -> str:
    """Why a file is no log of a dialect, for people."""
    try:
        if not path.stat().st_size:
            return "it is empty"
        kind = archive_kind(path)
        if kind:
            return f"it is {kind}. Fix: unpack it"
        line = next((line for _, line in iter_lines(path)), b"")
    except UnreadableLog as error:
        return str(error).replace(f"{path} is", "it is").removeprefix(f"{path}: ")
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return "it is binary" if is_binary(line) else f"its first {SNIFF_LINES} lines hold no {dialect} record"


def _holds_text(line: bytes) -> bool:
    # Zeros are pages that were never written before the power failed.
    return bool(line) and not line.isspace() and (line[0] != 0 or bool(line.strip(b"\0")))


def _text(path: Path) -> Iterator[bytes]:
    """``chunks`` without a byte order mark. Raises ``UnreadableLog`` on UTF-16, which no framework reads."""
    stream = chunks(path)
    first = next(stream, b"")
    if _is_utf16(first):
        raise UnreadableLog(
            f"{path} is UTF-16 text. Fix: convert it, as with iconv -f UTF-16 -t UTF-8, or write it without "
            "PowerShell's > redirection"
        )
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from stream


def _is_utf16(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    # Without a mark: every other byte of ASCII text is zero. 16 characters are enough to tell it from binary data.
    sample = head[:32]
    return len(sample) == 32 and (
        (not any(sample[1::2]) and sample[::2].isascii() and all(sample[::2]))
        or (not any(sample[::2]) and sample[1::2].isascii() and all(sample[1::2]))
    )


def _is_deep(line: bytes, value: Json) -> bool:
    # Brackets in texts count too, so that this is an estimate; what it suspects is looked at.
    if int(np.cumsum(_OPENING[np.frombuffer(line, np.uint8)], dtype=np.int64).max()) <= MAX_NESTING:
        return False
    level: list[Json] = [value]
    for _ in range(MAX_NESTING):
        level = [
            item
            for parent in level
            if isinstance(parent, (list, dict))
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(item, (list, dict)) for item in level)
