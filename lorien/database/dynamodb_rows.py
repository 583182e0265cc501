"""Items of a DynamoDB table as rows of text: what is in which attribute, and in which further items what does not fit.

DynamoDB takes 400 KB in one item. A value that is too large is packed and cut into parts, which are rows under a name
that is never used again. Parts are written before the row that names them and removed after it has been replaced: a
reader that misses one reads the row again, and finds the next version of it whole.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Mapping, Sequence

import orjson

from lorien.database.base import Item
from lorien.database.definitions import DamagedDefinition, pack, unpack
from lorien.errors import DatabaseUnavailable
from lorien.records import Json, Workload
from lorien.target import Target

TARGET, ITEM, RELATED = "target_key", "item_key", "family_workload"
"""Partition key, sort key, and key of the index."""
ABOUT = "lorien"
"""Partition that tells of the table itself."""
MAX_ROW_BYTES = 380_000
"""Of names and values: less than the 409,600 that DynamoDB takes, and than the servers that stand in for it."""
PART_BYTES = 320_000
_PARTS = "lorien-parts#"
_CONTENT = "content"
_SPILLING = ("definition", "records")
"""Attributes that may be in parts, the one that changes least first."""

Row = dict[str, str]
"""An item as it is stored: every attribute is text."""
Key = tuple[str, str]


class PartsGone(Exception):
    """Parts are not there: the row that names them has been replaced since it was read."""


def key_of(what: Item | Row) -> Key:
    """Partition key and sort key."""
    if isinstance(what, Item):
        return what.target.key, f"{what.workload.key}#{what.build}"
    return what[TARGET], what[ITEM]


def related_key(target: Target, workload_key: str) -> str:
    """Key in the index of what is known of a workload on targets of a family."""
    return f"{target.family}#{workload_key}"


def stored(row: Row) -> dict[str, dict[str, str]]:
    """A row as boto3 takes it."""
    return {name: {"S": value} for name, value in row.items()}


def row_of(answer: dict[str, dict[str, str]]) -> Row:
    """A row as boto3 gives it."""
    return {name: value["S"] for name, value in answer.items() if "S" in value}


def head_of(row: Row) -> Item:
    """Target, workload and build of a row; the definition where an older Lorien wrote it into the workload.

    Raises
    ------
    DatabaseUnavailable
        It is damaged.
    """
    try:
        if not row["version"]:
            raise ValueError("no version")
        workload = Workload.from_json(orjson.loads(row["about" if "about" in row else "workload"]))
        return Item(Target.parse(row["target"]), workload, row[ITEM].partition("#")[2])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(row, error) from error


def part_keys(row: Row, name: str) -> list[Key]:
    """Keys of the parts that an attribute of a row is in; none where it is in the row."""
    place, _, count = row.get(f"{name}_parts", "").partition("#")
    return [(_PARTS + place, f"{number:04}") for number in range(int(count))] if count else []


def all_part_keys(row: Row) -> list[Key]:
    """Keys of all parts that a row names."""
    return [key for name in _SPILLING for key in part_keys(row, name)]


def value_of(row: Row, name: str, parts: Mapping[Key, Row]) -> str | None:
    """Text of an attribute, put together from its parts where it is in some; None where there is none.

    Raises
    ------
    PartsGone
        One of them is not among ``parts``.
    DatabaseUnavailable
        It is damaged.
    """
    keys = part_keys(row, name)
    if missing := [key for key in keys if key not in parts]:
        raise PartsGone(missing[0])
    try:
        if keys:
            return _unpacked("".join(parts[key][_CONTENT] for key in keys))
        value = row.get(name)
        return _unpacked(value) if value is not None and name == "definition" else value
    except (KeyError, DamagedDefinition) as error:
        raise damaged(row, error) from error


def entries_of(row: Row, text: str | None) -> tuple[Json, ...]:
    """Schedules of a row from the text of its ``records``. Raises ``DatabaseUnavailable`` when it is damaged."""
    try:
        return tuple(orjson.loads(text or ""))
    except (TypeError, ValueError) as error:
        raise damaged(row, error) from error


def has_definition(row: Row) -> bool:
    """True where a definition is stored apart from the workload."""
    return any(f"definition{end}" in row for end in ("", "_parts"))


def changed(item: Item, before: Row | None, definition: str | None) -> tuple[Row, list[Row]]:
    """An item as it is to be stored, under a version of its own, and the parts to be written before.

    What the row before has for a definition stays; else ``definition`` becomes it.
    """
    target, workload, records = (
        orjson.dumps(value).decode() for value in (item.target.to_json(), item.workload.to_json(), item.entries)
    )
    target_key, item_key = key_of(item)
    row = {
        TARGET: target_key,
        ITEM: item_key,
        RELATED: related_key(item.target, item.workload.key),
        "version": uuid.uuid4().hex,
        "target": target,
        # Under another name than before: an older Lorien that had the table open refuses it, instead of losing half.
        "about": workload,
        "records": records,
    }
    if before is not None and has_definition(before):
        row |= {name: before[name] for name in ("definition", "definition_parts") if name in before}
    elif definition is not None:
        row["definition"] = _packed(definition)
    return spilled(row, _SPILLING)


def spilled(row: Row, names: Sequence[str]) -> tuple[Row, list[Row]]:
    """The row, with attributes of these names in parts, as many of them as it takes to fit an item; and the parts."""
    row, parts = dict(row), []
    for name in names:
        if _size(row) <= MAX_ROW_BYTES:
            break
        if name in row:
            text = row.pop(name)
            packed = text if name == "definition" else _packed(text)
            place = uuid.uuid4().hex
            pieces = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
            keys = [(_PARTS + place, f"{number:04}") for number in range(len(pieces))]
            parts += [{TARGET: key[0], ITEM: key[1], _CONTENT: c} for key, c in zip(keys, pieces, strict=True)]
            row[f"{name}_parts"] = f"{place}#{len(pieces)}"
    return row, parts


def damaged(row: Row, error: Exception) -> DatabaseUnavailable:
    """The error of a row that cannot be read."""
    return DatabaseUnavailable(
        f"item {key_of(row)} is damaged: {error!r}. Nothing of it was changed. Fix: delete it and commit the logs again"
    )


def _size(row: Row) -> int:
    return sum(len(name) + len(value.encode()) for name, value in row.items())


def _packed(text: str) -> str:
    return base64.b64encode(pack(text)).decode()


def _unpacked(text: str) -> str:
    try:
        return unpack(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise DamagedDefinition(f"a packed value is damaged: {error}") from error
