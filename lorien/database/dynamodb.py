"""Schedule database in one DynamoDB table.

The partition key is the target, the sort key ``<workload key>#<build>``: the builds of a workload on a target are one
request, a target is one query in the order of the contract. A sparse index over ``<family>#<workload key>`` finds
related targets; it holds keys only, so a better schedule does not rewrite it. What an item says of a workload is JSON
text: numbers stay exact. What does not fit an item is in further ones (``dynamodb_rows``). The partition ``lorien`` (no
target kind) tells the schema and lists the targets.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from lorien.aws import MAX_CONNECTIONS, code_of
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
from lorien.database.definitions import with_definition, without_definition
from lorien.database.dynamodb_rows import (
    ABOUT,
    ITEM,
    RELATED,
    TARGET,
    Key,
    PartsGone,
    Row,
    all_part_keys,
    changed,
    damaged,
    entries_of,
    has_definition,
    head_of,
    key_of,
    part_keys,
    related_key,
    row_of,
    stored,
    value_of,
)
from lorien.database.dynamodb_table import BATCH_ITEMS, MAX_TRIES, DynamoTable, wait
from lorien.errors import BadInput, DatabaseUnavailable
from lorien.records import TuningRecord
from lorien.target import Target

_KEY = re.compile(r"[0-9a-f]{32}")
_SCHEMA: dict[str, Any] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [{"AttributeName": n, "AttributeType": "S"} for n in (TARGET, ITEM, RELATED)],
    "KeySchema": [{"AttributeName": TARGET, "KeyType": "HASH"}, {"AttributeName": ITEM, "KeyType": "RANGE"}],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": RELATED,
            "KeySchema": [{"AttributeName": RELATED, "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }
    ],
}


class DynamoDatabase(DynamoTable):
    """``ScheduleDatabase`` in a DynamoDB table; ``open_database`` tells the parameters and the errors.

    There are no transactions: ``put`` of one record is atomic, ``put_many`` is so for each (target, workload, build).
    Writers see each other by a version in each item; the one that comes late reads and merges again.
    """

    def __init__(self, url: str, *, create: bool | None = None, n_best: int | None = None) -> None:
        if n_best is not None and n_best < 1:
            raise BadInput(f"n_best is {n_best}: a database keeps at least one schedule")
        super().__init__(url)
        self._targets: set[str] = set()
        try:
            self.n_best = self._open(url, create, n_best)
        except BaseException:
            self.close()
            raise

    def put(self, record: TuningRecord) -> bool:
        """See ``ScheduleDatabase.put``."""
        return self.put_many([record]) == 1

    def put_many(self, records: Iterable[TuningRecord]) -> int:
        """See ``ScheduleDatabase.put_many``."""
        items = iter(new_items(records))
        entered = 0
        with self._explained():
            self._upgrade()
            while page := list(itertools.islice(items, BATCH_ITEMS)):
                self._list_targets(page)
                found = self._read(map(key_of, page))
                with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
                    try:
                        entered += sum(pool.map(self._merge, page, [found.get(key_of(item)) for item in page]))
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
        return entered

    def best(self, target: Target, workload_key: str, n: int = 1, build: str | None = None) -> list[TuningRecord]:
        """See ``ScheduleDatabase.best``."""
        with self._explained():
            keys = (target.key, *target.past_keys)
            items = [item for key in keys for item in self._items(self._rows(key, f"{workload_key}#"))]
        return fastest_of_all((item for item in items if build in (None, item.build)), n)

    def related(self, target: Target, workload_key: str, n: int = 1) -> list[TuningRecord]:
        """See ``ScheduleDatabase.related``."""
        with self._explained():
            pages = self._service.client.get_paginator("query").paginate(
                TableName=self._table,
                IndexName=RELATED,
                KeyConditionExpression=f"{RELATED} = :related",
                ExpressionAttributeValues=stored({":related": related_key(target, workload_key)}),
            )
            keys = [key_of(row_of(row)) for page in pages for row in page["Items"]]
            items = list(self._items(self._read(key for key in keys if key[0] != target.key).values()))
        return fastest_of_each(items, n)

    def query(
        self,
        target: Target | None = None,
        workload: str | None = None,
        dialect: str | None = None,
        network: str | None = None,
    ) -> Iterator[TuningRecord]:
        """See ``ScheduleDatabase.query``. A key is found by the table's own; all else is read and sorted out here."""
        with self._explained():
            for row in self._found(target, workload):
                head = head_of(row).workload
                if dialect in (None, head.dialect) and (network is None or network in head.networks):
                    for item in self._items([row]):
                        yield from item.records()

    def remove(self, selection: Selection, *, dry_run: bool = False) -> Removal:
        """See ``EditableDatabase.remove``: atomic for each (target, workload, build)."""
        removal = Removal()

        def without(item: Item | None) -> tuple[Item | None, int]:
            rest, count = selection.split(item) if item is not None else ((), 0)
            return (replace(item, entries=rest) if item is not None and rest else None), count

        with self._explained():
            if not dry_run:
                self._upgrade()
            for row in self._found(selection.target, selection.workload):
                if selection.build not in (None, head_of(row).build):
                    continue
                count = self._change(key_of(row), row, without, dry_run=dry_run)
                removal.schedules += count
                removal.items += bool(count)
        return removal

    def stats(self) -> DatabaseStats:
        """See ``ScheduleDatabase.stats``. Reads the whole table."""
        targets, workloads, records = set(), set(), 0
        with self._explained():
            for key in self._known_targets():
                for item in self._items(self._rows(key), definitions=False):
                    targets.add(key)
                    workloads.add(item.workload.key)
                    records += len(item.entries)
        return DatabaseStats(len(targets), len(workloads), records)

    def __enter__(self) -> DynamoDatabase:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, url: str, create: bool | None, n_best: int | None) -> int:
        """See that the table is ours to use; the number of best it keeps."""
        with self._explained():
            about = self._about()
            if about is None and create:
                self._create(n_best or DEFAULT_N_BEST)
                about = self._about()
        if about is None:
            raise BadInput(f"no schedule database at {url}. Fix: lorien database create {url}")
        check_schema(about.get("schema"), f"table {self._table}")
        self._schema = int(about["schema"])
        kept = int(about["n_best"])
        if n_best not in (None, kept):
            raise BadInput(f"table {self._table} keeps the {kept} best, not {n_best}: that was fixed when it was made")
        return kept

    def _about(self) -> Row | None:
        """What the table says of itself; None where there is none, or nothing in it."""
        try:
            answer = self._service.client.get_item(
                TableName=self._table, Key=stored({TARGET: ABOUT, ITEM: "about"}), ConsistentRead=True
            )
        except Exception as error:
            if code_of(error) == "ResourceNotFoundException":
                return None
            if code_of(error) == "ValidationException":
                raise BadInput(f"{self._table} is no table of schedules: {error}. Fix: give another table") from None
            raise
        return row_of(answer["Item"]) if "Item" in answer else None

    def _create(self, n_best: int) -> None:
        client = self._service.client
        try:
            client.create_table(TableName=self._table, **_SCHEMA)
        except Exception as error:
            if code_of(error) != "ResourceInUseException":  # It is there, or another process makes it.
                raise
        client.get_waiter("table_exists").wait(TableName=self._table, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
        # Whoever comes second leaves what the first wrote.
        row = {TARGET: ABOUT, ITEM: "about", "schema": str(SCHEMA_VERSION), "n_best": str(n_best)}
        self._write(row, None)

    def _known_targets(self) -> Iterator[str]:
        return (row[ITEM].partition("#")[2] for row in self._rows(ABOUT, "target#"))

    def _list_targets(self, items: Iterable[Item]) -> None:
        """List targets before their first item, so that a writer that dies in between leaves nothing unseen."""
        for key in sorted({item.target.key for item in items} - self._targets):
            self._write({TARGET: ABOUT, ITEM: f"target#{key}"}, None)
            self._targets.add(key)

    def _found(self, target: Target | None, workload: str | None) -> Iterator[Row]:
        """Rows of a target, or of all, whose workload has that key, that name, or a name of that pattern."""
        begin = f"{workload}#" if workload and _KEY.fullmatch(workload) else ""
        name = None if begin else workload
        pattern = (name or "").replace("[^", "[!")  # As SQLite has it, and as Python has it.
        for key in [target.key] if target else self._known_targets():
            for row in self._rows(key, begin):
                if name is not None:
                    found = head_of(row).workload.name
                    if name != found and not fnmatchcase(found, pattern):
                        continue
                yield row

    def _items(self, rows: Iterable[Row], *, definitions: bool = True) -> Iterator[Item]:
        """The items of rows, with what is in their parts. One that is removed meanwhile is left out."""
        for row in rows:
            current: Row | None = row
            while current is not None:
                try:
                    item = self._item(current, definitions=definitions)
                except PartsGone as gone:
                    current = self._newer(current, gone)
                    continue
                yield item
                break

    def _item(self, row: Row, *, definitions: bool) -> Item:
        """The item of a row. Raises ``PartsGone`` when the row has been replaced since it was read."""
        names = ("definition", "records") if definitions else ("records",)
        keys = [key for name in names for key in part_keys(row, name)]
        parts = self._read(keys) if keys else {}
        item = replace(head_of(row), entries=entries_of(row, value_of(row, "records", parts)))
        return with_definition(item, value_of(row, "definition", parts)) if definitions else item

    def _newer(self, row: Row, gone: PartsGone) -> Row | None:
        """What is in the place of a row whose parts have gone; None for nothing."""
        newer = self._one(key_of(row))
        if newer is not None and newer["version"] == row["version"]:
            raise damaged(row, gone)
        return newer

    def _merge(self, new: Item, row: Row | None) -> int:
        """Merge into what is stored; how many schedules entered."""
        bare = without_definition(new)
        return self._change(key_of(new), row, lambda item: merge(item, bare, self.n_best), new.workload.definition)

    def _change(
        self,
        key: Key,
        row: Row | None,
        rule: Callable[[Item | None], tuple[Item | None, int]],
        definition: str | None = None,
        *,
        dry_run: bool = False,
    ) -> int:
        """Put what a rule makes of a stored item in its place, read again as long as others come in between.

        The rule is given the item without its definition, or None, and gives an item, or None to remove it, and a
        count: the answer of this.
        """
        for attempt in range(MAX_TRIES):
            if attempt > 1:
                wait(attempt)
            try:
                whole = self._item(row, definitions=False) if row is not None else None
            except PartsGone as gone:
                row = self._newer(row, gone) if row is not None else None
                continue
            before = without_definition(whole) if whole is not None else None
            after, count = rule(before)
            # A definition that an older Lorien wrote into the workload moves out of it with the first change.
            inline = whole.workload.definition if whole is not None else None
            learns = definition is not None and inline is None and not (row is not None and has_definition(row))
            if dry_run or (after == before and not learns):
                return count
            if self._replace(row, after, inline or definition):
                return count
            row = self._one(key)
        raise DatabaseUnavailable(
            f"table {self._table}: others changed the workload {key[1]!r} of {key[0]} {MAX_TRIES} times. Nothing of it "
            "was changed. Fix: run again with fewer writers"
        )

    def _replace(self, row: Row | None, after: Item | None, definition: str | None) -> bool:
        """Put an item, or nothing, in the place of a row, with all its parts; False when the row is another by now."""
        if after is None:
            if row is None or not self._delete(row):
                return row is None
            self._discard(all_part_keys(row))
            return True
        new, parts = changed(after, row, definition)
        for part in parts:
            self._write(part, None)
        written = self._write(new, row["version"] if row is not None else None)
        if not written:
            # It may have been written, only the answer was lost and the request sent twice.
            there = self._one(key_of(new))
            written = there is not None and there["version"] == new["version"]
        named = set(all_part_keys(new))
        mine = set(map(key_of, parts))
        before = set(all_part_keys(row)) if row is not None else set()
        self._discard(sorted(before - named if written else mine))
        return written

    def _upgrade(self) -> None:
        """Say of a table of an older version that items of this one are to come: an older Lorien then refuses it."""
        if self._schema == SCHEMA_VERSION:
            return
        row = {TARGET: ABOUT, ITEM: "about", "schema": str(SCHEMA_VERSION), "n_best": str(self.n_best)}
        try:
            self._service.client.put_item(
                TableName=self._table,
                Item=stored(row),
                ConditionExpression="#schema = :schema",
                ExpressionAttributeNames={"#schema": "schema"},
                ExpressionAttributeValues=stored({":schema": str(self._schema)}),
            )
        except Exception as error:
            if code_of(error) != "ConditionalCheckFailedException":
                raise
            check_schema((self._about() or {}).get("schema"), f"table {self._table}")  # another process did it
        self._schema = SCHEMA_VERSION
