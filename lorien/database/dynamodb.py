"""Schedule database in one DynamoDB table.

The partition key is the target, the sort key ``<workload key>#<build>``: the builds of a workload on a target are one
request, a target is one query in the order of the contract. A sparse index over ``<family>#<workload key>`` finds
related targets; it holds keys only, so a better schedule does not rewrite it. What an item says of a workload is JSON
text: numbers stay exact. The partition ``lorien`` (no target kind) tells the schema and lists the targets.
"""

from __future__ import annotations

import itertools
import random
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import Any

import orjson

from lorien.aws import MAX_CONNECTIONS, Service, code_of, explained
from lorien.database.base import (
    DEFAULT_N_BEST,
    SCHEMA_VERSION,
    DatabaseStats,
    Item,
    check_schema,
    fastest_of_all,
    fastest_of_each,
    merge,
    new_items,
)
from lorien.errors import BadInput, DatabaseUnavailable
from lorien.records import TuningRecord, Workload
from lorien.target import Target

BATCH_ITEMS = 100  # what BatchGetItem takes
MAX_TRIES = 60
"""Of an item that other writers change, or that throttling keeps back: half a minute of waiting, all in all."""

_TARGET, _ITEM, _RELATED = "target_key", "item_key", "family_workload"
_ABOUT = "lorien"
_KEY = re.compile(r"[0-9a-f]{32}")
_SCHEMA: dict[str, Any] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [{"AttributeName": n, "AttributeType": "S"} for n in (_TARGET, _ITEM, _RELATED)],
    "KeySchema": [{"AttributeName": _TARGET, "KeyType": "HASH"}, {"AttributeName": _ITEM, "KeyType": "RANGE"}],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": _RELATED,
            "KeySchema": [{"AttributeName": _RELATED, "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }
    ],
}

Row = dict[str, str]
"""An item as it is stored: every attribute is text."""
Key = tuple[str, str]


class DynamoDatabase:
    """``ScheduleDatabase`` in a DynamoDB table; ``open_database`` tells the parameters and the errors.

    There are no transactions: ``put`` of one record is atomic, ``put_many`` is so for each (target, workload, build).
    Writers see each other by a version in each item; the one that comes late reads and merges again.
    """

    def __init__(self, url: str, *, create: bool | None = None, n_best: int | None = None) -> None:
        if n_best is not None and n_best < 1:
            raise BadInput(f"n_best is {n_best}: a database keeps at least one schedule")
        self._service = Service("dynamodb", url)
        self._table = self._service.name
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
            while page := list(itertools.islice(items, BATCH_ITEMS)):
                self._list_targets(page)
                stored = self._read(map(_key, page))
                with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
                    try:
                        entered += sum(pool.map(self._merge, page, [stored.get(_key(item)) for item in page]))
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
        return entered

    def best(self, target: Target, workload_key: str, n: int = 1, build: str | None = None) -> list[TuningRecord]:
        """See ``ScheduleDatabase.best``."""
        with self._explained():
            items = [_item(row) for row in self._rows(target.key, f"{workload_key}#")]
        return fastest_of_all((item for item in items if build in (None, item.build)), n)

    def related(self, target: Target, workload_key: str, n: int = 1) -> list[TuningRecord]:
        """See ``ScheduleDatabase.related``."""
        with self._explained():
            pages = self._service.client.get_paginator("query").paginate(
                TableName=self._table,
                IndexName=_RELATED,
                KeyConditionExpression=f"{_RELATED} = :related",
                ExpressionAttributeValues=_stored({":related": _related(target, workload_key)}),
            )
            keys = [_key(_row(row)) for page in pages for row in page["Items"]]
            items = [_item(row) for row in self._read(key for key in keys if key[0] != target.key).values()]
        return fastest_of_each(items, n)

    def query(
        self,
        target: Target | None = None,
        workload: str | None = None,
        dialect: str | None = None,
        network: str | None = None,
    ) -> Iterator[TuningRecord]:
        """See ``ScheduleDatabase.query``. A key is found by the table's own; all else is read and sorted out here."""
        begin = f"{workload}#" if workload and _KEY.fullmatch(workload) else ""
        name = None if begin else workload
        pattern = (name or "").replace("[^", "[!")  # As SQLite has it, and as Python has it.
        with self._explained():
            for key in [target.key] if target else self._known_targets():
                for row in self._rows(key, begin):
                    item = _item(row)
                    found = item.workload
                    if (
                        dialect in (None, found.dialect)
                        and (network is None or network in found.networks)
                        and (name is None or name == found.name or fnmatchcase(found.name, pattern))
                    ):
                        yield from item.records()

    def stats(self) -> DatabaseStats:
        """See ``ScheduleDatabase.stats``. Reads the whole table."""
        targets, workloads, records = set(), set(), 0
        with self._explained():
            for key in self._known_targets():
                for item in map(_item, self._rows(key)):
                    targets.add(key)
                    workloads.add(item.workload.key)
                    records += len(item.entries)
        return DatabaseStats(len(targets), len(workloads), records)

    def close(self) -> None:
        """See ``ScheduleDatabase.close``; a later call connects again."""
        self._service.close()

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
        kept = int(about["n_best"])
        if n_best not in (None, kept):
            raise BadInput(f"table {self._table} keeps the {kept} best, not {n_best}: that was fixed when it was made")
        return kept

    def _about(self) -> Row | None:
        """What the table says of itself; None where there is none, or nothing in it."""
        try:
            answer = self._service.client.get_item(
                TableName=self._table, Key=_stored({_TARGET: _ABOUT, _ITEM: "about"}), ConsistentRead=True
            )
        except Exception as error:
            if code_of(error) == "ResourceNotFoundException":
                return None
            if code_of(error) == "ValidationException":
                raise BadInput(f"{self._table} is no table of schedules: {error}. Fix: give another table") from None
            raise
        return _row(answer["Item"]) if "Item" in answer else None

    def _create(self, n_best: int) -> None:
        client = self._service.client
        try:
            client.create_table(TableName=self._table, **_SCHEMA)
        except Exception as error:
            if code_of(error) != "ResourceInUseException":  # It is there, or another process makes it.
                raise
        client.get_waiter("table_exists").wait(TableName=self._table, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
        # Whoever comes second leaves what the first wrote.
        row = {_TARGET: _ABOUT, _ITEM: "about", "schema": str(SCHEMA_VERSION), "n_best": str(n_best)}
        self._write(row, None)

    def _known_targets(self) -> Iterator[str]:
        return (row[_ITEM].partition("#")[2] for row in self._rows(_ABOUT, "target#"))

    def _list_targets(self, items: Iterable[Item]) -> None:
        """List targets before their first item, so that a writer that dies in between leaves nothing unseen."""
        for key in sorted({item.target.key for item in items} - self._targets):
            self._write({_TARGET: _ABOUT, _ITEM: f"target#{key}"}, None)
            self._targets.add(key)

    def _rows(self, target_key: str, begin: str = "") -> Iterator[Row]:
        """The rows of a target whose sort key begins so, in order, page by page."""
        condition, values = f"{_TARGET} = :target", {":target": target_key}
        if begin:
            condition, values = f"{condition} AND begins_with({_ITEM}, :begin)", values | {":begin": begin}
        pages = self._service.client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression=condition,
            ExpressionAttributeValues=_stored(values),
            ConsistentRead=True,
        )
        for page in pages:
            yield from map(_row, page["Items"])

    def _read(self, keys: Iterable[Key]) -> dict[Key, Row]:
        """The rows of these keys that are there, as of now."""
        asked = [_stored({_TARGET: target, _ITEM: item}) for target, item in keys]
        found: dict[Key, Row] = {}
        fruitless = 0
        while asked:
            answer = self._service.client.batch_get_item(
                RequestItems={self._table: {"Keys": asked[:BATCH_ITEMS], "ConsistentRead": True}}
            )
            rows = [_row(row) for row in answer["Responses"].get(self._table, ())]
            found |= {_key(row): row for row in rows}
            # Over 16 MB, or throttled: the rest is named, and asked again.
            left = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            asked = left + asked[BATCH_ITEMS:]
            if left and not rows:
                if fruitless == MAX_TRIES:
                    raise DatabaseUnavailable(f"table {self._table} is throttled. Fix: raise its capacity, run again")
                _wait(fruitless)
                fruitless += 1
        return found

    def _merge(self, new: Item, row: Row | None) -> int:
        """Merge into what is stored, read again as long as others come in between; how many schedules entered."""
        for attempt in range(MAX_TRIES):
            stored = _item(row) if row else None
            merged, entered = merge(stored, new, self.n_best)
            if merged == stored:
                return 0
            changed = _changed(merged)
            if self._write(changed, row["version"] if row else None):
                return entered
            if attempt:
                _wait(attempt)
            row = self._read([_key(new)]).get(_key(new))
            if row and row["version"] == changed["version"]:
                return entered  # It was written, only the answer was lost and the request sent twice.
        raise DatabaseUnavailable(
            f"table {self._table}: others changed workload {new.workload.name!r} {MAX_TRIES} times. Nothing of it was "
            "changed. Fix: run again with fewer writers"
        )

    def _write(self, row: Row, version: str | None) -> bool:
        """Write a row over the one of that version, or where there is none. False when it is another by now."""
        expected: dict[str, Any] = {"ConditionExpression": f"attribute_not_exists({_TARGET})"}
        if version is not None:
            expected = {
                "ConditionExpression": "version = :version",
                "ExpressionAttributeValues": _stored({":version": version}),
            }
        try:
            self._service.client.put_item(TableName=self._table, Item=_stored(row), **expected)
        except Exception as error:
            if code_of(error) != "ConditionalCheckFailedException":
                raise
            return False
        return True

    def _explained(self) -> AbstractContextManager[None]:
        return explained(DatabaseUnavailable, f"DynamoDB table {self._table}", "What was put before stays whole.")


def _wait(attempt: int) -> None:
    """Some time, longer with each attempt, and another for each writer: they would only meet again."""
    time.sleep(random.uniform(0, min(1.0, 0.005 * 2**attempt)))


def _key(what: Item | Row) -> Key:
    if isinstance(what, Item):
        return what.target.key, f"{what.workload.key}#{what.build}"
    return what[_TARGET], what[_ITEM]


def _related(target: Target, workload_key: str) -> str:
    return f"{target.family}#{workload_key}"


def _stored(row: Row) -> dict[str, dict[str, str]]:
    return {name: {"S": value} for name, value in row.items()}


def _row(stored: dict[str, dict[str, str]]) -> Row:
    return {name: value["S"] for name, value in stored.items() if "S" in value}


def _changed(item: Item) -> Row:
    """The item as it is to be stored, under a version of its own."""
    target, workload, records = (
        orjson.dumps(value).decode() for value in (item.target.to_json(), item.workload.to_json(), item.entries)
    )
    target_key, item_key = _key(item)
    return {
        _TARGET: target_key,
        _ITEM: item_key,
        _RELATED: _related(item.target, item.workload.key),
        "version": uuid.uuid4().hex,
        "target": target,
        "workload": workload,
        "records": records,
    }


def _item(row: Row) -> Item:
    try:
        if not row["version"]:
            raise ValueError("no version")
        workload = Workload.from_json(orjson.loads(row["workload"]))
        build = row[_ITEM].partition("#")[2]
        return Item(Target.parse(row["target"]), workload, build, tuple(orjson.loads(row["records"])))
    except (KeyError, TypeError, ValueError) as error:
        raise DatabaseUnavailable(
            f"item {_key(row)} is damaged: {error!r}. Nothing was changed. Fix: delete it and commit the logs again"
        ) from error
