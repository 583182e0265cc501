"""Files that are there whole or not at all, and temporary ones that the next process removes when their owner died.

The name of what is temporary tells its owner: ``<prefix><place>-<process>-<start>-<random>``. The place is a boot of a
machine and a namespace of processes in it; the start of a process tells it from a later one of the same number. Whoever
makes something temporary removes, in the same folder, what belongs to processes that no longer live. What belongs to
another place may be on a shared disk: it is removed when nothing in it changed for a week.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorien.machine import place_of_processes, started

TEMPORARY_PREFIX = ".tmp-"
FOREIGN_AFTER_S = 7 * 24 * 3600.0
"""What another machine or container left is removed when nothing in it changed for so long."""

_OWNED = re.compile(
    r"(?:\.tmp-|\.building-|lorien-[a-z]+-)(?P<place>[0-9a-f]{12})-(?P<pid>\d+)-(?P<start>\d+)-[a-z0-9_]{8}"
    r"(?:-was-(?P<was>.+)|\..*)?"
)
_OWNER_UNKNOWN = re.compile(r"\.tmp-[0-9a-f]{32}(?:\..*)?")  # of a Lorien that did not name owners

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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        if replace and path.exists():
            # A folder cannot be renamed over a full one: the old one steps aside first, and goes last. Its name tells
            # where it was: should this process be killed now, the next one moves it back.
            aside = temporary.with_name(f"{_owned(TEMPORARY_PREFIX)}{uuid.uuid4().hex[:8]}-was-{path.name}")
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


def temporary_folder(name: str, beside: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder that vanishes when it is closed; if this process is killed, the next one that makes one removes it.

    Parameters
    ----------
    name : str
        What it begins with: ``lorien-<word>-``, or ``.building-``.
    beside : Path, optional
        The folder that it is made in, which is there; else the system's for temporary files.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside
    _remove_leftovers_once(parent)
    return tempfile.TemporaryDirectory(prefix=_owned(name), dir=parent)


def temporary_beside(path: Path) -> Path:
    """A name for a temporary file or folder beside ``path``; whoever makes it removes it."""
    # Not of the tempfile module: its files are for their owner only, and these are to be what the umask says.
    _remove_leftovers_once(path.parent)
    return path.with_name(f"{_owned(TEMPORARY_PREFIX)}{uuid.uuid4().hex[:8]}{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Remove what is temporary in a folder and belongs to no living process. What cannot be removed stays."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner = _OWNED.fullmatch(entry.name)
            if owner is None and _OWNER_UNKNOWN.fullmatch(entry.name) is None:
                continue
            with suppress(OSError):  # another process removes it too, or it is of another user
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid() and _ended(owner, Path(entry.path)):
                    _remove(Path(entry.path), owner and owner["was"])


@functools.lru_cache(maxsize=1024)
def _remove_leftovers_once(folder: Path) -> None:
    """Of long-lived processes, one look at each folder is enough: what they leave themselves they remove."""
    remove_leftovers(folder)


def _owned(prefix: str) -> str:
    pid = os.getpid()  # not kept: a fork has another
    return f"{prefix}{place_of_processes()}-{pid}-{started(pid) or 0}-"


def _ended(owner: re.Match[str] | None, path: Path) -> bool:
    """Whether the owner of something temporary does not live any more, or has not touched it for very long."""
    if owner is None or owner["place"] != place_of_processes():
        return time.time() - _changed_s(path) > FOREIGN_AFTER_S
    return started(int(owner["pid"])) != int(owner["start"])


def _changed_s(path: Path) -> float:
    """When a file, or anything in a folder, changed last."""
    return max(found.lstat().st_mtime for found in (path, *path.rglob("*")))


def _remove(path: Path, was: str | None) -> None:
    if was is not None and not os.path.lexists(path.with_name(was)):
        path.rename(path.with_name(was))  # its owner was killed between two renames: this may be the only copy
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
