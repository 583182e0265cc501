"""Log store in a folder: ``<dialect>/<target key>/<network>-<fingerprint>/`` with the native files and a sidecar."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from lorien.errors import BadInput, ChecksumMismatch, LogGone, LorienError, StoreUnavailable, UnreadableLog
from lorien.files import TEMPORARY_PREFIX, atomic_file, atomic_folder, temporary_beside
from lorien.logs.base import SESSIONS, SIDECAR, StoredLog, read_sidecar
from lorien.logs.content import content_of
from lorien.records import Json
from lorien.target import Target

URL_PREFIX = "file://"


class LocalLogStore:
    """``LogStore`` in a folder of this machine, or one that it shares."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix(URL_PREFIX)
        if not path:
            raise BadInput("the log store has no path; give a folder or file:///absolute/folder")
        self._root = Path(path).absolute()
        self.url = str(self._root)
        if self._root.exists() and not self._root.is_dir():
            raise BadInput(f"log store {self._root} is no folder. Fix: give a folder, which need not exist yet")

    def list(self, dialect: str | None = None, target: Target | None = None) -> Iterator[StoredLog]:
        """See ``LogStore.list``."""
        with self._explained("read"):
            for group in [self._root / dialect] if dialect else _folders(self._root):
                if group.name == SESSIONS:
                    continue
                for device in _folders(group):
                    if target is not None and device.name not in (target.key, *target.past_keys):
                        continue
                    for folder, sidecar in _logs_of(device):
                        place = folder.relative_to(self._root).as_posix()
                        yield StoredLog.from_json(sidecar, folder / SIDECAR, place)

    @contextmanager
    def local(self, log: StoredLog) -> Iterator[Path]:
        """See ``LogStore.local``."""
        folder = self._root / log.id
        try:
            self._check(log, folder)
            yield folder if log.is_folder else folder / log.files[0].name
        except (UnreadableLog, OSError) as error:
            if folder.is_dir():
                raise
            raise LogGone(
                f"no log {log.id} in {self.url}: removed, or replaced by a longer one. Fix: run again"
            ) from error

    def _check(self, log: StoredLog, folder: Path) -> None:
        """Raise ``ChecksumMismatch`` when a file is not the one that was published."""
        for file in log.files:
            with self._explained("read", let=FileNotFoundError):
                found = content_of(folder / file.name) if (folder / file.name).is_file() else None
            if found is None and not folder.is_dir():
                raise FileNotFoundError(folder)
            if found is None or (found.stored_bytes, found.sha256) != (file.stored_bytes, file.sha256):
                raise ChecksumMismatch(
                    f"{file.name} of {log.id} in {self.url} is not the file that was ingested: "
                    f"{'it is missing' if found is None else 'it was damaged or edited since'}. "
                    "Fix: lorien ingest the log again, which replaces it"
                )

    def publish(self, log: StoredLog, files: Sequence[Path]) -> bool:
        """See ``LogStore.publish``."""
        path = self._root / log.id
        if path.exists():
            return False
        with self._explained("write"):
            try:
                with atomic_folder(path, replace=False) as folder:
                    for source, file in zip(files, log.files, strict=True):
                        shutil.copyfile(source, folder / file.name)
                        if (folder / file.name).stat().st_size != file.stored_bytes:
                            raise BadInput(f"{source} is being written to. Fix: ingest it when the run has ended")
                    (folder / SIDECAR).write_bytes(_sidecar(log))
            except OSError:
                if path.exists():  # Another process stored the same meanwhile.
                    return False
                raise
        return True

    def describe(self, log: StoredLog) -> None:
        """See ``LogStore.describe``."""
        sidecar = self._root / log.id / SIDECAR
        if sidecar.exists():
            with self._explained("write"), atomic_file(sidecar) as temporary:
                temporary.write_bytes(_sidecar(log))

    def remove(self, log: StoredLog) -> None:
        """See ``LogStore.remove``."""
        path = self._root / log.id
        with self._explained("write"), suppress(FileNotFoundError):
            # Out of sight first: a log that is half removed is no log.
            aside = temporary_beside(path)
            path.rename(aside)
            shutil.rmtree(aside)

    @contextmanager
    def _explained(self, verb: str, let: type[OSError] | tuple[()] = ()) -> Iterator[None]:
        try:
            yield
        except LorienError:
            raise
        except let:
            raise
        except OSError as error:
            raise StoreUnavailable(
                f"cannot {verb} log store {self.url}: {error.strerror or error}. Nothing half-written counts as a log. "
                "Fix: see that the disk has room and the folder can be written, then run again"
            ) from error


def _logs_of(device: Path) -> Iterator[tuple[Path, dict[str, Json]]]:
    """The logs of a device with their sidecars: of one that is replaced meanwhile, its successor."""
    seen: set[Path] = set()
    gone = True
    while gone:
        gone = False
        for folder in _folders(device):
            if folder in seen:
                continue
            seen.add(folder)
            sidecar = read_sidecar(folder)
            if sidecar:
                yield folder, sidecar
            gone = gone or not (sidecar or folder.is_dir())


def _folders(parent: Path) -> list[Path]:
    """Sorted folders of a folder; none when it has gone."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(TEMPORARY_PREFIX)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [parent / name for name in sorted(names)]


def _sidecar(log: StoredLog) -> bytes:
    return orjson.dumps(log.to_json(), option=orjson.OPT_INDENT_2)
