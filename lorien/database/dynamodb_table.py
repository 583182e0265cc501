"""Rows of one DynamoDB table: read, written and removed on conditions."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from lorien.aws import Service, code_of, explained
from lorien.database.dynamodb_rows import ITEM, TARGET, Key, Row, key_of, row_of, stored
from lorien.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

BATCH_ITEMS = 100  # what BatchGetItem takes
MAX_TRIES = 60
"""Of an item that other writers change, or that throttling keeps back: half a minute of waiting, all in all."""


class DynamoTable:
    """A table that a URL names, which need not be there. Safe across threads, processes and forks."""

    def __init__(self, url: str) -> None:
        self._service = Service("dynamodb", url)
        self._table = self._service.name

    def close(self) -> None:
        """See ``ScheduleDatabase.close``; a later call connects again."""
        self._service.close()

    def _one(self, key: Key) -> Row | None:
        """The row of a key, as of now."""
        return self._read([key]).get(key)

    def _rows(self, target_key: str, begin: str = "") -> Iterator[Row]:
        """The rows of a target whose sort key begins so, in order, page by page."""
        condition, values = f"{TARGET} = :target", {":target": target_key}
        if begin:
            condition, values = f"{condition} AND begins_with({ITEM}, :begin)", values | {":begin": begin}
        pages = self._service.client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression=condition,
            ExpressionAttributeValues=stored(values),
            ConsistentRead=True,
        )
        for page in pages:
            yield from map(row_of, page["Items"])

    def _read(self, keys: Iterable[Key]) -> dict[Key, Row]:
        """The rows of these keys that are there, as of now."""
        asked = [stored({TARGET: target, ITEM: item}) for target, item in keys]
        found: dict[Key, Row] = {}
        fruitless = 0
        while asked:
            answer = self._service.client.batch_get_item(
                RequestItems={self._table: {"Keys": asked[:BATCH_ITEMS], "ConsistentRead": True}}
            )
            rows = [row_of(row) for row in answer["Responses"].get(self._table, ())]
            found |= {key_of(row): row for row in rows}
            # Over 16 MB, or throttled: the rest is named, and asked again.
            left = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            asked = left + asked[BATCH_ITEMS:]
            if left and not rows:
                if fruitless == MAX_TRIES:
                    raise DatabaseUnavailable(
                        f"table {self._table} is throttled. What was put before stays whole. "
                        "Fix: raise its capacity, run again"
                    )
                wait(fruitless)
                fruitless += 1
        return found

    def _write(self, row: Row, version: str | None) -> bool:
        """Write a row over the one of that version, or where there is none. False when it is another by now."""
        expected: dict[str, Any] = {"ConditionExpression": f"attribute_not_exists({TARGET})"}
        if version is not None:
            expected = {
                "ConditionExpression": "version = :version",
                "ExpressionAttributeValues": stored({":version": version}),
            }
        try:
            self._service.client.put_item(TableName=self._table, Item=stored(row), **expected)
        except Exception as error:
            if code_of(error) != "ConditionalCheckFailedException":
                raise
            return False
        return True

    def _discard(self, keys: Iterable[Key]) -> None:
        """Remove parts that no row names. Should it fail, they cost their storage and no more."""
        for target, item in keys:
            try:
                self._service.client.delete_item(TableName=self._table, Key=stored({TARGET: target, ITEM: item}))
            except Exception as error:  # what was asked for is done: of any kind
                logger.warning("table %s: parts of an item that was replaced stay: %s", self._table, error)
                return

    def _delete(self, row: Row) -> bool:
        """Remove a row of that version. False when it is another by now."""
        try:
            self._service.client.delete_item(
                TableName=self._table,
                Key=stored({TARGET: row[TARGET], ITEM: row[ITEM]}),
                ConditionExpression="version = :version",
                ExpressionAttributeValues=stored({":version": row["version"]}),
            )
        except Exception as error:
            if code_of(error) != "ConditionalCheckFailedException":
                raise
            return self._one(key_of(row)) is None
        return True

    def _explained(self) -> AbstractContextManager[None]:
        return explained(DatabaseUnavailable, f"DynamoDB table {self._table}", "What was put before stays whole.")


def wait(attempt: int) -> None:
    """Some time, longer with each attempt, and another for each writer: they would only meet again."""
    time.sleep(random.uniform(0, min(1.0, 0.005 * 2**attempt)))
