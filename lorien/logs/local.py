"""Log store in a folder: ``<dialect>/<target key>/<network>-<fingerprint>/`` with the native files and a sidecar."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from lorien.errors import BadInput, LorienError, StoreUnavailable
from lorien.files import TEMPORARY_PREFIX, atomic_file, atomic_folder, temporary_beside
from lorien.logs.base import SESSIONS, SIDECAR, StoredLog, read_sidecar
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
        pattern = f"{dialect or '*'}/{target.key if target else '*'}/*/{SIDECAR}"
        with self._explained("read"):
            for sidecar in sorted(self._root.glob(pattern)):
                below = sidecar.relative_to(self._root).parts[0]
                if below != SESSIONS and not sidecar.parent.name.startswith(TEMPORARY_PREFIX):
                    yield StoredLog.from_json(read_sidecar(sidecar.parent), sidecar)

    @contextmanager
    def local(self, log: StoredLog) -> Iterator[Path]:
        """See ``LogStore.local``."""
        path = self._root / log.id
        if not path.is_dir():
            raise BadInput(f"no log {log.id} in {self.url}: removed, or replaced by a longer one. Fix: run again")
        yield path if log.is_folder else path / log.files[0].name

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
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except LorienError:
            raise
        except OSError as error:
            raise StoreUnavailable(
                f"cannot {verb} log store {self.url}: {error.strerror or error}. Nothing half-written counts as a log. "
                "Fix: see that the disk has room and the folder can be written, then run again"
            ) from error


def _sidecar(log: StoredLog) -> bytes:
    return orjson.dumps(log.to_json(), option=orjson.OPT_INDENT_2)
