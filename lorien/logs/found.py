"""The logs of a dialect below a path, and the files there that are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lorien.dialects import names, open_dialect
from lorien.dialects._lines import why_not
from lorien.dialects.base import LogDialect
from lorien.errors import LorienError, UnreadableLog
from lorien.logs.base import DETAILS, SIDECAR

_OURS = {SIDECAR, DETAILS}


def found(path: Path, dialect: LogDialect) -> list[Path]:
    """The logs at or below a path. Raises ``UnreadableLog`` that says what is there instead."""
    if logs := list(dialect.find(path)):
        return logs
    if others := _others(path, dialect):
        raise UnreadableLog(
            f"{path} holds no {dialect.name} log, it looks like {' or '.join(others)}. "
            "Fix: --dialect with the framework that wrote it"
        )
    files = [path] if path.is_file() else list(_files(path))
    reasons = {why_not(file, dialect.name) for file in files[:1000]}
    if len(reasons) == 1 and "Fix" in (reason := reasons.pop()):
        raise UnreadableLog(f"{path} holds no {dialect.name} log: {reason}")
    raise UnreadableLog(
        f"{path} holds no {dialect.name} log, nor one of {', '.join(names())}. "
        "Fix: --dialect with the framework that wrote it"
    )


def passed_over(path: Path, logs: Sequence[Path], dialect: LogDialect) -> Iterator[tuple[Path, str]]:
    """Files below a folder that belong to none of its logs, and why each is no log. Lorien's own are not named."""
    if not path.is_dir():
        return
    taken = {file for log in logs for file in dialect.files(log)}
    for file in _files(path):
        if file not in taken:
            others = _others(file, dialect)
            looks = f"it looks like {' or '.join(others)}. Fix: ingest it with --dialect {others[0]}" if others else ""
            yield file, looks or why_not(file, dialect.name)


def _others(path: Path, dialect: LogDialect) -> list[str]:
    """Other dialects that find a log at a path."""
    finding = []
    for name in sorted(set(names()) - {dialect.name}):
        # A dialect that does not open here, for want of its framework, has nothing to say.
        with suppress(LorienError, ImportError):
            if any(True for _ in open_dialect(name).find(path)):
                finding.append(name)
    return finding


def _files(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in _OURS)
