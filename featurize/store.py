"""Where feature tables are: below a folder, or below a prefix in S3. ``open_tables`` takes the URL.

A table is named by its path in the data set. It appears under that name only when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from lorien.errors import BadInput, LorienError, StoreUnavailable, again
from lorien.featurize.dataset import CONTENTS, TABLES, about_of, files_below
from lorien.featurize.parquet import tail_bytes
from lorien.featurize.schema import TableAbout
from lorien.files import TEMPORARY_PREFIX, atomic_file, remove_leftovers, temporary_beside, temporary_folder
from lorien.s3 import S3Folder

# Footers of 300 columns and a few row groups; a longer one takes a second request.
TAIL_BYTES = 256 * 1024
LISTINGS = 10
"""Times that a reader lists the tables anew when some have gone since it listed them."""


class TableStore(Protocol):
    """Feature tables. Safe across threads and processes; pickled into workers.

    All methods raise ``OSError`` (in S3, ``StoreUnavailable``) when the tables cannot be read or written.
    """

    url: str

    def abouts(self) -> dict[str, TableAbout]:
        """What every table says of itself, by its name, sorted; one that goes meanwhile is left out.

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
        """The tables as they are now below a local folder, as long as the context lasts, with their contents.

        Writers change nothing below it. Errors raised in the block name the tables where they really are.
        """


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
        """See ``TableStore.abouts``. What killed writers and readers left is removed."""
        self._sweep()
        found = {}
        for path in files_below(self._root, TABLES):
            with suppress(FileNotFoundError):
                found[path.relative_to(self._root).as_posix()] = about_of(path)
        return found

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """See ``TableStore.writing``."""
        return atomic_file(self._root / name)

    def drop(self, name: str) -> None:
        """See ``TableStore.drop``."""
        (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """See ``TableStore.local``: links beside the tables.

        Where there can be none (a folder that only others may write, a file system without them) it is the tables
        themselves.
        """
        folder = temporary_beside(self._root / "tables")
        try:
            for _ in range(LISTINGS):
                if self._link(folder):
                    break
                shutil.rmtree(folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            with _named(folder, self.url):
                yield folder if folder.is_dir() and any(folder.iterdir()) else self._root
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _link(self, folder: Path) -> bool:
        """Link all files into a folder; False when one has gone since it was listed. Raises ``OSError``."""
        folder.mkdir()
        for path in files_below(self._root, TABLES, CONTENTS):
            link = folder / path.relative_to(self._root)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), link)
            except FileNotFoundError:
                return False
        return True

    def _sweep(self) -> None:
        for where, folders, names in os.walk(self._root):
            if any(name.startswith(TEMPORARY_PREFIX) for name in (*folders, *names)):
                remove_leftovers(Path(where))
            folders[:] = [name for name in folders if not name.startswith(".")]


class S3Tables:
    """``TableStore`` below a prefix. Tables are written and read on the local disk, and sent and fetched whole."""

    def __init__(self, url: str) -> None:
        self._s3 = S3Folder(url)
        self.url = self._s3.url

    def abouts(self) -> dict[str, TableAbout]:
        """See ``TableStore.abouts``. Fetches footers alone."""
        names = self._names(TABLES)
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
            for _ in range(LISTINGS):
                with suppress(FileNotFoundError):
                    self._download(Path(folder) / "tables")
                    break
                shutil.rmtree(Path(folder) / "tables")
            else:
                raise StoreUnavailable(
                    f"the tables in {self.url} are replaced faster than they can be fetched. "
                    "Fix: run again when lorien featurize has ended"
                )
            with _named(Path(folder) / "tables", self.url):
                yield Path(folder) / "tables"

    def _download(self, folder: Path) -> None:
        """Fetch all files. Raises ``FileNotFoundError`` when one has gone since it was listed."""
        paths = {name: folder / name for name in self._names(TABLES, CONTENTS)}
        if not paths:
            raise BadInput(f"no feature tables in {self.url}. Fix: lorien featurize LOGS -o {self.url}")
        for parent in {path.parent for path in paths.values()}:
            parent.mkdir(parents=True, exist_ok=True)
        self._s3.download(paths)

    def _names(self, *patterns: str) -> list[str]:
        # A key may be any text; these become paths.
        names = (name for page in self._s3.pages() for name in page if not {"", ".."} & set(name.split("/")))
        return [name for name in names if any(fnmatch(name.rpartition("/")[2], pattern) for pattern in patterns)]

    def _about(self, name: str) -> TableAbout | None:
        """What a table says of itself; None when it has been dropped since it was listed."""
        footer_bytes = TAIL_BYTES
        while found := self._s3.read(name, footer_bytes):
            tail = found.content
            needed_bytes = tail_bytes(tail)
            if len(tail) < footer_bytes or needed_bytes <= footer_bytes:
                return about_of(tail, f"{self.url}/{name}")
            footer_bytes = needed_bytes
        return None


@contextmanager
def _named(folder: Path, url: str) -> Iterator[None]:
    """Errors about what lies below a folder name where it is from."""
    try:
        yield
    except LorienError as error:
        if str(folder) not in str(error):
            raise
        raise again(type(error), str(error).replace(str(folder), url)) from None
