"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


_MARKS = (("*.parquet", "feature tables"), ("model.json", "models"), ("lorien.json", "tuning logs"))


def kind_of_folder(folder: Path) -> str | None:
    """What of ours a folder holds, in words for an error that wanted something else; None for nothing of it."""
    return next((kind for mark, kind in _MARKS if next(folder.rglob(mark), None) is not None), None)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    Readers see the old file or the new one; a full disk or a crash leaves the old one. The leading dot keeps
    directory readers (Arrow among them) from taking a leftover for data.
    """
    temporary = _beside(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well.

    A folder that was there is replaced; with ``replace=False`` it stays, whoever made it meanwhile, and ``OSError`` is
    raised.
    """
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        if replace and path.exists():
            # A folder cannot be renamed over a full one: the old one steps aside first, and goes last.
            aside = _beside(path)
            path.replace(aside)
            temporary.replace(path)
            shutil.rmtree(aside)
        else:
            temporary.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where a user keeps what can be made or fetched again. It need not exist."""
    return Path("~/.cache/lorien").expanduser()


def keep(path: Path, content: bytes) -> None:
    """Write a file of the cache. One that cannot be written costs time, no more."""
    with suppress(OSError), atomic_file(path) as temporary:
        temporary.write_bytes(content)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    # Not of the tempfile module: its files are for their owner only, and these are to be what the umask says.
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{path.suffix}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
