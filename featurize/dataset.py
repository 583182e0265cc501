"""A data set of feature tables below a folder: the tables that belong to it, and those that are missing.

Tables appear one by one, and a log that grew has other tables than before. Beside a ``lorien featurize`` at work, and
after one that was killed, a folder can therefore lack tables, or hold those of a log and those of what it grew to.
``lorien featurize`` writes down first which tables there are to be (``Contents``), and drops the replaced ones last;
readers compare, and never count a record twice.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import orjson

from lorien.errors import BadInput, SchemaMismatch
from lorien.featurize.parquet import reading
from lorien.featurize.schema import TableAbout, read_about
from lorien.files import kind_of_folder

CONTENTS_VERSION = 1
TABLES, CONTENTS = "*.parquet", "_tables-*.json"
"""Names of the files of a data set."""
MAX_MISSING = 20
"""Logs of a target that are named one by one when their tables are missing."""

Table = tuple[Path, TableAbout]


@dataclass(frozen=True)
class Contents:
    """Which tables the logs of one store are to have in a data set, those of one dialect.

    Parameters
    ----------
    store : str
        URL of the log store.
    shards : dict of str to int
        Tables of each log, by its id.
    """

    store: str
    shards: dict[str, int]

    def name(self, dialect: str) -> str:
        """Its place in the data set. Readers of Parquet pass over names with a leading underscore."""
        digest = hashlib.sha256(self.store.encode()).hexdigest()
        return f"dialect={dialect}/{CONTENTS.replace('*', digest[:12])}"

    def to_bytes(self) -> bytes:
        """The content of its file."""
        value = {"version": CONTENTS_VERSION, "store": self.store, "shards": self.shards}
        return orjson.dumps(value, option=orjson.OPT_INDENT_2)

    @classmethod
    def read(cls, path: Path) -> Contents:
        """Read what ``to_bytes`` gave.

        Raises
        ------
        SchemaMismatch
            It is damaged, or of another version.
        FileNotFoundError
            It is not there.
        """
        try:
            value = orjson.loads(path.read_bytes())
            version, store, shards = value["version"], str(value["store"]), dict(value["shards"])
            if version == CONTENTS_VERSION and not all(isinstance(count, int) for count in shards.values()):
                raise TypeError("a number of shards is none")
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise SchemaMismatch(
                f"{path} is damaged ({error}). Fix: delete it and run lorien featurize again"
            ) from None
        if version != CONTENTS_VERSION:
            raise SchemaMismatch(
                f"{path} is of version {version}, this Lorien reads {CONTENTS_VERSION}. "
                "Fix: use the Lorien that wrote it, or featurize the logs into another folder"
            )
        return cls(store, shards)

    def of(self, dialect: str | None, target: str | None) -> Contents:
        """Those of the logs of a dialect and a target, where one is given."""

        def wanted(log: str) -> bool:
            parts = log.split("/")
            return dialect in (None, parts[0]) and target in (None, *parts[1:2])

        return Contents(self.store, {log: count for log, count in self.shards.items() if wanted(log)})


def files_below(folder: Path, *patterns: str) -> list[Path]:
    """Files below a folder by their names, sorted; those whose name, or folder, begins with a dot are left out.

    What goes while it is looked for is left out as well, where ``Path.rglob`` fails.
    """
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (name for name in names if not name.startswith("."))
        found += [Path(where, name) for name in shown if any(fnmatch(name, pattern) for pattern in patterns)]
    return sorted(found)


def about_of(table: Path | bytes, where: str | None = None) -> TableAbout:
    """What a table, or the end of one, says of itself.

    Raises
    ------
    SchemaMismatch
        It is damaged, or no feature table.
    FileNotFoundError
        It is not there.
    """
    where = where or str(table)
    with reading(table, where) as file:
        return read_about(file.schema_arrow, where, file.metadata.num_rows)


def tables(features: Path, *, dialect: str | None = None, target: str | None = None) -> list[Table]:
    """Tables of a data set with what they say of themselves, in a stable order.

    Those of a log that grew are left out where the tables of what it grew to are all there, and these where they are
    not.

    Raises
    ------
    BadInput
        The folder is missing or holds no table.
    SchemaMismatch
        A table is damaged, or no feature table.
    """
    found = _found(features, dialect, target)
    left_out = {path for part in _parts(features, found, dialect, target) for path in part.left_out}
    chosen = [table for table in found if table[0] not in left_out]
    if not chosen:
        which = "".join(f" for {name}" for name in (dialect, target) if name)
        if kind_of_folder(features) == "tuning logs":
            raise BadInput(f"{features} holds logs, not features. Fix: lorien featurize {features} -o FEATURES first")
        raise BadInput(f"no feature tables{which} in {features}. Fix: lorien featurize LOGS -o {features}")
    return chosen


def missing_tables(
    features: Path, url: str | Path, *, dialect: str | None = None, target: str | None = None
) -> dict[tuple[str, str], list[str]]:
    """What to say of the tables that a data set lacks, log by log, by dialect and target; nothing where it is whole.

    Parameters
    ----------
    features : Path
        Folder of the tables.
    url : str or Path
        What its user calls the data set.
    """
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    parts = _parts(features, _found(features, dialect, target), dialect, target)
    for part in sorted(parts, key=lambda part: part.log):
        if part.missing:
            of_dialect, _, rest = part.log.partition("/")
            said[of_dialect, rest.partition("/")[0]].append(part.complaint(str(url)))
    for complaints in said.values():
        if (more := len(complaints) - MAX_MISSING) > 0:
            complaints[MAX_MISSING:] = [f"tables of {more} more logs are missing"]
    return dict(said)


@dataclass
class _Part:
    """The tables of one log, as it was cut into so many shards."""

    store: str
    log: str
    count: int
    tables: dict[int, list[Path]]
    expected: bool | None
    """Whether the contents name it; None where there are none."""
    replaced: bool = False
    stands_in: bool = False

    @property
    def network(self) -> str:
        """Its log's place without the digest: the same for a log and what it grew to."""
        return self.log.rpartition("-")[0]

    @property
    def missing(self) -> list[int]:
        """Shards that should be there and are not."""
        return [] if self.expected is False else [index for index in range(self.count) if index not in self.tables]

    @property
    def left_out(self) -> list[Path]:
        """Tables that are not to be read."""
        return [path for paths in self.tables.values() for path in paths] if self.replaced else []

    def complaint(self, url: str) -> str:
        """What to say of the missing ones."""
        shards = ", ".join(f"{index}/{self.count}" for index in self.missing)
        instead = "; what it grew from is read in its place" if self.stands_in else ""
        return (
            f"{url} lacks tables of log {self.log}: shards {shards} are missing{instead}. lorien featurize is at work, "
            f"or was stopped. Fix: lorien featurize {self.store or 'LOGS'} -o {url}"
        )


def _found(features: Path, dialect: str | None, target: str | None) -> list[Table]:
    """All tables below a folder; one that goes after it was listed is left out."""
    found = []
    for path in files_below(features, TABLES):
        try:
            about = about_of(path)
        except FileNotFoundError:
            continue
        if dialect in (None, about.dialect) and target in (None, about.target):
            found.append((path, about))
    return found


def _parts(features: Path, found: Iterable[Table], dialect: str | None, target: str | None) -> list[_Part]:
    """What there is of each log, and should be."""
    present: dict[tuple[Path, str, str, int], dict[int, list[Path]]] = {}
    for path, about in found:
        # Tables of an earlier Lorien, and those written elsewhere, need not say it.
        if "log" in about.source and "shard" in about.source:
            index, count = about.shard
            key = (path.parent.parent, about.source.get("store", ""), about.source["log"], count)
            present.setdefault(key, {}).setdefault(index, []).append(path)
    parts: dict[Path, list[_Part]] = defaultdict(list)
    for (folder, store, log, count), shards in present.items():
        parts[folder].append(_Part(store, log, count, shards, None))
    contents: dict[Path, list[Contents]] = defaultdict(list)
    for path in files_below(features, CONTENTS):
        contents[path.parent].append(Contents.read(path).of(dialect, target))
    for folder, written in contents.items():
        stores = {one.store for one in written}
        named = {log: (one.store, count) for one in written for log, count in one.shards.items()}
        for part in parts[folder]:
            # By the log, not by its store as well: a store can be moved, its logs keep their names.
            if part.log in named:
                part.expected = named[part.log][1] == part.count
            elif part.store in stores:
                part.expected = False
        whole = {part.log for part in parts[folder] if part.expected}
        absent = [_Part(store, log, count, {}, True) for log, (store, count) in named.items() if log not in whole]
        parts[folder] += absent
    for own in parts.values():
        _sort_out(own)
    return [part for own in parts.values() for part in own]


def _sort_out(parts: list[_Part]) -> None:
    """Mark those that are not to be read beside others of their network."""
    networks = defaultdict(list)
    for part in parts:
        networks[part.network if part.expected is not None else part.log].append(part)
    for own in networks.values():
        if own[0].expected is None:
            # One log, cut in several ways: the first that is whole holds all its records.
            whole = next((part for part in own if not part.missing), None)
            old = [part for part in own if whole not in (None, part)]
        else:
            short, old = [part for part in own if part.missing], [part for part in own if not part.expected]
            if short and old:
                for part in short:
                    part.replaced = part.stands_in = True
                continue
        for part in old:
            part.replaced, part.expected = True, False
