"""What a native file holds, as sizes and digests: how a store knows a log again, and a damaged one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from lorien.dialects._compressed import chunks
from lorien.logs.base import LogFile


def content_of(path: Path) -> LogFile:
    """Sizes and digests of a file. Memory does not grow with it, nor with its lines. Raises ``OSError``."""
    whole = hashlib.sha256()
    lines, lines_size = whole, 0
    size = 0
    for chunk in chunks(path):
        end = chunk.rfind(b"\n") + 1
        if end:
            lines, lines_size = whole.copy(), size + end
            lines.update(memoryview(chunk)[:end])
        whole.update(chunk)
        size += len(chunk)
    if not lines_size:  # A file without a newline is one line: all of it stays.
        lines, lines_size = whole, size
    return LogFile(path.name, path.stat().st_size, size, whole.hexdigest(), lines_size, lines.hexdigest())


def prefix_digests(path: Path, sizes: Iterable[int]) -> dict[int, str]:
    """SHA-256 of the first bytes of a file's content, for each of the sizes it has, in one pass."""
    found = {}
    digest = hashlib.sha256()
    at = 0
    wanted = sorted(set(sizes))
    for chunk in chunks(path) if wanted else ():
        while wanted and wanted[0] <= at + len(chunk):
            prefix = digest.copy()
            prefix.update(chunk[: wanted[0] - at])
            found[wanted.pop(0)] = prefix.hexdigest()
        if not wanted:
            break
        digest.update(chunk)
        at += len(chunk)
    return found
