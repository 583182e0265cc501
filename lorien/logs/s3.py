"""Log store in S3: ``<dialect>/<target key>/<network>-<fingerprint>/`` with a sidecar and, one folder down, the files.

Each publication has a folder of its own, named by its sidecar, which is written last and only where there is none:
publishers and a remover of the same log at the same time never touch each other's files.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson

from lorien.errors import BadInput, ChecksumMismatch, LogGone
from lorien.files import sha256_of, temporary_folder
from lorien.logs.base import SIDECAR, StoredLog
from lorien.records import Json
from lorien.s3 import S3Folder
from lorien.target import Target


class S3LogStore:
    """``LogStore`` below a prefix of a bucket. A publisher that is killed leaves files that no sidecar names."""

    def __init__(self, url: str) -> None:
        self._s3 = S3Folder(url)
        self.url = self._s3.url

    def list(self, dialect: str | None = None, target: Target | None = None) -> Iterator[StoredLog]:
        """See ``LogStore.list``."""
        keys = (target.key, *target.past_keys) if target else ("",)
        below = [f"{dialect}/{key}/" if key else f"{dialect}/" for key in keys] if dialect else [""]
        seen: set[str] = set()
        gone = True
        while gone:  # Of a log that is replaced meanwhile, its successor may have been listed or not.
            gone = False
            for page in itertools.chain.from_iterable(map(self._s3.pages, below)):
                places = [name.rpartition("/")[0] for name in page if _is_sidecar(name)]
                wanted = [p for p in places if p not in seen and (target is None or p.split("/")[1] in keys)]
                seen |= set(wanted)
                for place, sidecar in zip(wanted, self._s3.each(self._sidecar, wanted), strict=True):
                    if sidecar is not None:
                        yield StoredLog.from_json(sidecar, f"{self.url}/{place}/{SIDECAR}", place)
                    gone = gone or sidecar is None

    @contextmanager
    def local(self, log: StoredLog) -> Iterator[Path]:
        """See ``LogStore.local``: a copy in the folder for temporary files, every byte of it checked."""
        sidecar = self._sidecar(log.id)
        if sidecar is None:
            raise self._gone(log)
        sums = sidecar["content"]["sha256"]
        with temporary_folder("lorien-log-") as temporary:
            path = Path(temporary)
            try:
                self._s3.download({f"{log.id}/{sidecar['content']['folder']}/{name}": path / name for name in sums})
            except FileNotFoundError:
                raise self._gone(log) from None
            for name, expected in sums.items():
                if sha256_of(path / name) != expected:
                    raise ChecksumMismatch(
                        f"{name} of {log.id} in {self.url} is not the file that was published. Fix: delete the log's "
                        f"{SIDECAR} and ingest it again"
                    )
            yield path if log.is_folder else path / log.files[0].name

    def publish(self, log: StoredLog, files: Sequence[Path]) -> bool:
        """See ``LogStore.publish``."""
        if self._sidecar(log.id) is not None:
            return False
        folder = uuid.uuid4().hex
        sources = {file.name: source for file, source in zip(log.files, files, strict=True)}
        content = {"folder": folder, "sha256": {name: sha256_of(source) for name, source in sources.items()}}
        objects = {f"{log.id}/{folder}/{name}": source for name, source in sources.items()}
        self._s3.upload(objects)
        for source, file in zip(files, log.files, strict=True):
            if source.stat().st_size != file.stored_bytes:
                self._s3.delete(objects)
                raise BadInput(f"{source} is being written to. Fix: ingest it when the run has ended")
        if not self._s3.write(f"{log.id}/{SIDECAR}", _with_content(log, content), None):
            self._s3.delete(objects)  # Another process published the same meanwhile.
            return False
        return True

    def describe(self, log: StoredLog) -> None:
        """See ``LogStore.describe``. Another publication of the log that comes in between is left as it is."""
        written, sidecar = self._s3.read(f"{log.id}/{SIDECAR}"), self._sidecar(log.id)
        if written is not None and sidecar is not None:
            self._s3.write(f"{log.id}/{SIDECAR}", _with_content(log, sidecar["content"]), written)

    def remove(self, log: StoredLog) -> None:
        """See ``LogStore.remove``."""
        sidecar = self._sidecar(log.id)
        if sidecar is not None:
            # The sidecar first: a log that is half removed is no log.
            self._s3.delete([f"{log.id}/{SIDECAR}"])
            content = sidecar["content"]
            self._s3.delete(f"{log.id}/{content['folder']}/{name}" for name in content["sha256"])

    def _sidecar(self, place: str) -> dict[str, Json] | None:
        """What the sidecar of a log says; None when it is not there."""
        found = self._s3.read(f"{place}/{SIDECAR}")
        if found is None:
            return None
        try:
            value = orjson.loads(found.content)
            names, folder = value["content"]["sha256"].keys(), value["content"]["folder"]
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{self.url}/{place}/{SIDECAR} is damaged ({error!r}). Fix: delete it and ingest the log again"
            ) from None
        if any("/" in part or part in ("", "..") for part in (folder, *names)):
            raise BadInput(f"{self.url}/{place}/{SIDECAR} names files of other folders. Fix: delete it")
        sidecar: dict[str, Json] = value
        return sidecar

    def _gone(self, log: StoredLog) -> LogGone:
        return LogGone(f"no log {log.id} in {self.url}: removed, or replaced by a longer one. Fix: run again")


def _is_sidecar(name: str) -> bool:
    return name.endswith(f"/{SIDECAR}") and name.count("/") == 3


def _with_content(log: StoredLog, content: dict[str, Json]) -> bytes:
    return orjson.dumps(log.to_json() | {"content": content}, option=orjson.OPT_INDENT_2)
