"""Where feature tables are: below a folder, or below a prefix in S3. ``open_tables`` takes the URL.

A table is named by its path in the data set. It appears under that name only when it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from lorien.errors import BadInput, SchemaMismatch
from lorien.featurize.schema import TableAbout, read_about
from lorien.files import TEMPORARY_PREFIX, atomic_file, remove_leftovers, temporary_folder
from lorien.s3 import S3Folder

# Footers of 300 columns and a few row groups; a longer one takes a second request.
TAIL_BYTES = 256 * 1024


class TableStore(Protocol):
    """Feature tables. Safe across threads and processes; pickled into workers.

    All methods raise ``OSError`` (in S3, ``StoreUnavailable``) when the tables cannot be read or written.
    """

    url: str

    def abouts(self) -> dict[str, TableAbout]:
        """What every table says of itself, by its name, sorted.

        Raises
        ------
        SchemaMismatch
            One is damaged, or no feature table.
        """

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A local path that becomes the table when the block ends well; one of that name is replaced."""

    def drop(self, name: str) -> None:
        """Take a table out; nothing when it is gone."""

    def local(self) -> AbstractContextManager[Path]:
        """The tables below a local folder, as long as the context lasts."""


def open_tables(url: str | Path) -> TableStore:
    """The feature tables at a path, a ``file://`` URL or ``s3://bucket/prefix?region=...&endpoint_url=...``.

    Raises
    ------
    BadInput
        Unknown scheme.
    MissingExtra
        boto3 is needed and not installed.
    """
    scheme, found, path = str(url).partition("://")
    if found and scheme == "s3":
        return S3Tables(str(url))
    if found and scheme != "file":
        raise BadInput(f"feature tables {url}: unknown scheme {scheme!r}. Fix: give a path, file:// or s3://")
    return LocalTables(Path(path if found else url))


class LocalTables:
    """``TableStore`` in a folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def abouts(self) -> dict[str, TableAbout]:
        """See ``TableStore.abouts``. What killed writers left is removed."""
        found = {}
        begun = set()
        for path in sorted(self._root.rglob("*.parquet")):
            if not path.name.startswith(TEMPORARY_PREFIX):
                found[path.relative_to(self._root).as_posix()] = about_of(path)
            else:
                begun.add(path.parent)
        for folder in begun:
            remove_leftovers(folder)
        return found

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """See ``TableStore.writing``."""
        return atomic_file(self._root / name)

    def drop(self, name: str) -> None:
        """See ``TableStore.drop``."""
        (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """See ``TableStore.local``."""
        yield self._root


class S3Tables:
    """``TableStore`` below a prefix. Tables are written and read on the local disk, and sent and fetched whole."""

    def __init__(self, url: str) -> None:
        self._s3 = S3Folder(url)
        self.url = self._s3.url

    def abouts(self) -> dict[str, TableAbout]:
        """See ``TableStore.abouts``. Fetches footers alone."""
        names = self._names()
        abouts = zip(names, self._s3.each(self._about, names), strict=True)
        return {name: about for name, about in abouts if about is not None}

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See ``TableStore.writing``."""
        with temporary_folder("lorien-table-") as folder:
            path = Path(folder) / "table.parquet"
            yield path
            self._s3.upload({name: path})

    def drop(self, name: str) -> None:
        """See ``TableStore.drop``."""
        self._s3.delete([name])

    @contextmanager
    def local(self) -> Iterator[Path]:
        """See ``TableStore.local``."""
        with temporary_folder("lorien-features-") as folder:
            paths = {name: Path(folder) / name for name in self._names()}
            if not paths:
                raise BadInput(f"no feature tables in {self.url}. Fix: lorien featurize LOGS -o {self.url}")
            for parent in {path.parent for path in paths.values()}:
                parent.mkdir(parents=True, exist_ok=True)
            self._s3.download(paths)
            yield Path(folder)

    def _names(self) -> list[str]:
        # A key may be any text; these become paths.
        names = (name for page in self._s3.pages() for name in page if not {"", ".."} & set(name.split("/")))
        return [name for name in names if name.endswith(".parquet")]

    def _about(self, name: str) -> TableAbout | None:
        """What a table says of itself; None when it has been dropped since it was listed."""
        footer_bytes = TAIL_BYTES
        while found := self._s3.read(name, footer_bytes):
            tail = found.content
            needed_bytes = int.from_bytes(tail[-8:-4], "little") + 8
            if len(tail) < footer_bytes or needed_bytes <= footer_bytes:
                return about_of(pa.BufferReader(tail), f"{self.url}/{name}")
            footer_bytes = needed_bytes
        return None


def about_of(table: Path | pa.BufferReader, where: str | None = None) -> TableAbout:
    """What a table, or the end of one, says of itself. Raises ``SchemaMismatch`` when it is damaged, or none."""
    where = where or str(table)
    try:
        return read_about(pq.read_schema(table), where)
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaMismatch(
            f"{where} is no readable Parquet file ({error}). Fix: delete it and featurize again"
        ) from None
