"""Schedule database in one SQLite file. For the processes of one machine: WAL does not work on network file systems."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import orjson

from lorien.database.base import (
    DEFAULT_N_BEST,
    SCHEMA_VERSION,
    DatabaseStats,
    Item,
    Removal,
    Selection,
    check_schema,
    fastest_of_all,
    fastest_of_each,
    merge,
    new_items,
)
from lorien.database.definitions import (
    DamagedDefinition,
    digest_of,
    pack,
    unpack,
    with_definition,
    without_definition,
)
from lorien.errors import BadInput, DatabaseUnavailable, LorienError
from lorien.files import temporary_beside
from lorien.records import TuningRecord, Workload
from lorien.target import Target

URL_PREFIX = "sqlite:///"
APPLICATION_ID = 0x4C6F7269  # "Lori": tells our files from those of other programs
BUSY_TIMEOUT_S = 30.0
QUERY_PAGE = 64

# name, dialect and networks are there to filter by; workload, target and records hold the item, definition the digest
# of what its workload is built from. An item that an older Lorien wrote has that in its workload.
_DEFINITION = "CREATE TABLE definition (digest TEXT PRIMARY KEY, packed BLOB NOT NULL)"
_VERSION = f"PRAGMA user_version = {SCHEMA_VERSION}"
_SCHEMA = (
    "CREATE TABLE about (n_best INTEGER NOT NULL)",
    """CREATE TABLE item (
        target_key TEXT NOT NULL, workload_key TEXT NOT NULL, build TEXT NOT NULL,
        family TEXT NOT NULL, dialect TEXT NOT NULL, name TEXT NOT NULL, networks TEXT NOT NULL,
        target TEXT NOT NULL, workload TEXT NOT NULL, records TEXT NOT NULL, definition TEXT,
        PRIMARY KEY (target_key, workload_key, build))""",
    "CREATE INDEX item_workload ON item (workload_key, family)",
    _DEFINITION,
    f"PRAGMA application_id = {APPLICATION_ID}",
    _VERSION,
)
_SELECT = {
    1: "SELECT target, workload, build, records, NULL, NULL FROM item",
    2: "SELECT target, workload, build, records, definition, packed "
    "FROM item LEFT JOIN definition ON digest = definition",
}
"""By version of the file: an older one is read as it is."""
_SELECT_BARE = "SELECT target, workload, build, records, definition, NULL FROM item"
_BY_KEY = "WHERE target_key = ? AND workload_key = ? AND build = ?"
_DELETE = f"DELETE FROM item {_BY_KEY}"  # noqa: S608
_REPLACE = "INSERT OR REPLACE INTO item VALUES (?,?,?,?,?,?,?,?,?,?,?)"
_UNUSED = "DELETE FROM definition WHERE digest NOT IN (SELECT definition FROM item WHERE definition IS NOT NULL)"

_Row = tuple[str, str, str, str, str | None, bytes | None]


class SqliteDatabase:
    """``ScheduleDatabase`` in a SQLite file; ``open_database`` tells the parameters and the errors.

    The threads of a process share one connection under a lock.
    """

    def __init__(self, url: str, *, create: bool | None = None, n_best: int | None = None) -> None:
        path = url.removeprefix(URL_PREFIX)
        if path in ("", url):
            raise BadInput(f"database {url!r}: write sqlite:///relative.db or sqlite:////absolute.db")
        if n_best is not None and n_best < 1:
            raise BadInput(f"n_best is {n_best}: a database keeps at least one schedule")
        self._path = Path(path).absolute()
        if not self._path.parent.is_dir():
            raise BadInput(f"no folder {self._path.parent} for the database; an absolute path is sqlite:////path")
        if self._path.is_dir():
            raise BadInput(f"{self._path} is a folder. Fix: a database is a file, such as --db sqlite:///schedules.db")
        if not self._path.exists():
            if create is False:
                raise BadInput(f"no database at {self._path}. Fix: lorien commit --logs LOGS --db {url}")
            self._create(n_best or DEFAULT_N_BEST)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        _OPEN.add(self)
        try:
            self.n_best = self._check(n_best)
        except BaseException:
            self.close()
            raise

    def put(self, record: TuningRecord) -> bool:
        """See ``ScheduleDatabase.put``."""
        return self.put_many([record]) == 1

    def put_many(self, records: Iterable[TuningRecord]) -> int:
        """See ``ScheduleDatabase.put_many``."""
        entered = 0
        items = new_items(records)
        with self._writing() as connection:
            for item in items:
                row: _Row | None = connection.execute(f"{_SELECT_BARE} {_BY_KEY}", item.key).fetchone()
                stored = _bare(row) if row else None
                known = row[4] if row else None
                digest = known or _keep(connection, item.workload.definition)
                merged, count = merge(stored, without_definition(item), self.n_best)
                entered += count
                if merged != stored or digest != known:
                    connection.execute(_REPLACE, _row(merged, digest))
        return entered

    def remove(self, selection: Selection, *, dry_run: bool = False) -> Removal:
        """See ``EditableDatabase.remove``: one transaction."""
        removal = Removal()
        with self._reading() if dry_run else self._writing() as connection:
            for row in self._selected(connection, selection):
                item = _bare(row)
                rest, count = selection.split(item)
                if not count:
                    continue
                removal.schedules += count
                removal.items += 1
                if dry_run:
                    continue
                if rest:
                    connection.execute(_REPLACE, _row(replace(item, entries=rest), row[4]))
                else:
                    connection.execute(_DELETE, item.key)
            if removal.items and not dry_run:
                connection.execute(_UNUSED)
        return removal

    def best(self, target: Target, workload_key: str, n: int = 1, build: str | None = None) -> list[TuningRecord]:
        """See ``ScheduleDatabase.best``."""
        items = self._items(
            "WHERE target_key IN (?, ?) AND workload_key = ? AND build = coalesce(?, build)",
            (target.key, next(iter(target.past_keys), target.key), workload_key, build),
        )
        return fastest_of_all(items, n)

    def related(self, target: Target, workload_key: str, n: int = 1) -> list[TuningRecord]:
        """See ``ScheduleDatabase.related``."""
        items = self._items(
            "WHERE workload_key = ? AND family = ? AND target_key <> ?", (workload_key, target.family, target.key)
        )
        return fastest_of_each(items, n)

    def query(
        self,
        target: Target | None = None,
        workload: str | None = None,
        dialect: str | None = None,
        network: str | None = None,
    ) -> Iterator[TuningRecord]:
        """See ``ScheduleDatabase.query``."""
        key = target.key if target is not None else None
        values = {"target": key, "workload": workload, "dialect": dialect, "network": network}
        after = _FIRST
        # Pages instead of an open cursor: nothing is held between two of them, and a fork in between does no harm.
        while page := self._items(_PAGE, values | after):
            for item in page:
                yield from item.records()
            after = _after(page[-1])

    def stats(self) -> DatabaseStats:
        """See ``ScheduleDatabase.stats``."""
        counts = (
            "SELECT count(DISTINCT target_key), count(DISTINCT workload_key), "
            "coalesce(sum(json_array_length(records)), 0) FROM item"
        )
        with self._connected() as connection:
            return DatabaseStats(*connection.execute(counts).fetchone())

    def close(self) -> None:
        """See ``ScheduleDatabase.close``; a later call opens the file again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> SqliteDatabase:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _items(self, where: str, values: Sequence[str | None] | Mapping[str, str | None]) -> list[Item]:
        with self._reading() as connection:
            return [_item(row) for row in connection.execute(f"{_SELECT[self._version(connection)]} {where}", values)]

    def _selected(self, connection: sqlite3.Connection, selection: Selection) -> Iterator[_Row]:
        """Items of the target and workload meant, without their definitions, page by page."""
        select = _SELECT_BARE if self._version(connection) == SCHEMA_VERSION else _SELECT[1]
        target = selection.target
        key = target.key if target is not None else None
        values = {"target": key, "workload": selection.workload, "dialect": None, "network": None}
        after = _FIRST
        while page := connection.execute(f"{select} {_PAGE}", values | after).fetchall():
            yield from page
            after = _after(_bare(page[-1]))

    def _create(self, n_best: int) -> None:
        # Made beside and linked: the file is there whole or not at all. Connections that switch a file to WAL at the
        # same time would fail with "locked", whatever their timeout.
        temporary = temporary_beside(self._path)
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO about VALUES (?)", (n_best,))
            with suppress(FileExistsError):  # Another process made it meanwhile.
                os.link(temporary, self._path)
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _check(self, n_best: int | None) -> int:
        """See that the file is ours to use; the number of best it keeps."""
        with self._connected() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise BadInput(f"{self._path} is empty or of another program. Fix: give another path, or remove it")
            self._version(connection)
            (kept,) = connection.execute("SELECT n_best FROM about").fetchone()
        if n_best not in (None, kept):
            raise BadInput(f"{self._path} keeps the {kept} best, not {n_best}: that was fixed when it was made")
        return int(kept)

    def _version(self, connection: sqlite3.Connection) -> int:
        """Version of the file, which another process may have upgraded. Raises ``SchemaMismatch`` on one not read."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        check_schema(version, str(self._path))
        return int(version)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the tables of this version: the first one upgrades those of an older."""
        with self._transaction() as connection:
            if self._version(connection) != SCHEMA_VERSION:
                _upgrade(connection)
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """What is read in it is of one moment: another process may upgrade the file at any time."""
        with self._connected() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            # IMMEDIATE: what is read is what will be replaced, no writer comes in between.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = sqlite3.connect(
                        self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                    )
                yield self._connection
            except (sqlite3.Error, orjson.JSONDecodeError, DamagedDefinition) as error:
                raise self._explained(error) from error

    def _explained(self, error: Exception) -> LorienError:
        if "not a database" in str(error):
            return BadInput(f"{self._path} is no SQLite database. Fix: give another path")
        if isinstance(error, (orjson.JSONDecodeError, DamagedDefinition)) or "malformed" in str(error):
            fix = "the file is damaged: restore a copy, or commit the logs into a new one"
        else:
            fix = (
                "see that the disk has room, the file and its folder can be written and no process holds it; run again"
            )
        return DatabaseUnavailable(
            f"database {self._path}: {error}. What was put before stays; this request changed nothing. Fix: {fix}"
        )


_PAGE = f"""WHERE (target_key, workload_key, build) > (:target_key, :workload_key, :build)
    AND target_key = coalesce(:target, target_key)
    AND dialect = coalesce(:dialect, dialect)
    AND (:workload IS NULL OR :workload IN (workload_key, name) OR name GLOB :workload)
    AND (:network IS NULL OR :network IN (SELECT value FROM json_each(networks)))
    ORDER BY target_key, workload_key, build LIMIT {QUERY_PAGE}"""  # noqa: S608
_FIRST = {"target_key": "", "workload_key": "", "build": ""}


def _after(item: Item) -> dict[str, str]:
    """Where the page after an item begins."""
    return dict(zip(_FIRST, item.key, strict=True))


def _upgrade(connection: sqlite3.Connection) -> None:
    """Move the definitions of a file of version 1 out of its items. An item that cannot be read stays as it is."""
    connection.execute("ALTER TABLE item ADD COLUMN definition TEXT")
    connection.execute(_DEFINITION)
    for (number,) in connection.execute("SELECT rowid FROM item").fetchall():
        (text,) = connection.execute("SELECT workload FROM item WHERE rowid = ?", (number,)).fetchone()
        with suppress(orjson.JSONDecodeError, TypeError, AttributeError):
            workload = orjson.loads(text)
            if definition := workload.get("definition"):
                bare = orjson.dumps(workload | {"definition": None}).decode()
                values = (bare, _keep(connection, definition), number)
                connection.execute("UPDATE item SET workload = ?, definition = ? WHERE rowid = ?", values)
    connection.execute(_VERSION)


def _keep(connection: sqlite3.Connection, definition: str | None) -> str | None:
    """Store a definition, if it is not there yet; its digest."""
    if definition is None:
        return None
    digest = digest_of(definition)
    if connection.execute("SELECT 1 FROM definition WHERE digest = ?", (digest,)).fetchone() is None:
        connection.execute("INSERT INTO definition VALUES (?, ?)", (digest, pack(definition)))
    return digest


def _bare(row: _Row) -> Item:
    """The item of a row, its definition left out where that is stored apart."""
    target, workload, build, records, *_ = row
    return Item(Target.parse(target), Workload.from_json(orjson.loads(workload)), build, tuple(orjson.loads(records)))


def _item(row: _Row) -> Item:
    *_, digest, packed = row
    if digest is not None and packed is None:
        raise DamagedDefinition(f"the definition {digest} is missing")
    return with_definition(_bare(row), unpack(packed) if packed is not None else None)


def _row(item: Item, digest: str | None) -> tuple[str | None, ...]:
    values = (list(item.workload.networks), item.target.to_json(), item.workload.to_json(), item.entries)
    names = (item.target.family, item.workload.dialect, item.workload.name)
    return (*item.key, *names, *(orjson.dumps(value).decode() for value in values), digest)


# SQLite must not be taken across a fork: a child that inherits an open connection believes that it holds the parent's
# file locks, even on a connection of its own. So every connection is closed before a fork and opened again on use.
_OPEN: weakref.WeakSet[SqliteDatabase] = weakref.WeakSet()
_forking = threading.Lock()
_paused: list[SqliteDatabase] = []


def _before_fork() -> None:
    _forking.acquire()
    _paused.extend(_OPEN)
    for database in _paused:
        database._lock.acquire()
        database.close()


def _after_fork() -> None:
    while _paused:
        _paused.pop()._lock.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
