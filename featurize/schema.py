"""The feature schema is a value: name, version and the meaning of every column, kept in each Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa

from lorien.errors import BadInput, SchemaMismatch
from lorien.target import Target

METADATA_KEY = b"lorien.features"
TABLE_VERSION = 1

# What every row has beside its features.
ROW_FIELDS = (
    ("workload_key", pa.string(), "", "identity of the workload"),
    ("workload", pa.string(), "", "name of the workload, for people"),
    ("network", pa.string(), "", "network it was tuned for, or several with + between; null when unknown"),
    ("weight", pa.float64(), "calls", "calls of the workload in these networks"),
    ("flop", pa.float64(), "flop", "floating-point operations of one run; null when unknown"),
    ("candidate", pa.string(), "", "identity of the schedule within its workload"),
    ("build", pa.string(), "", "framework build that measured it"),
    ("latency_s", pa.float64(), "s", "median latency; null when the measurement failed"),
    ("error", pa.string(), "", "error kind of a failed measurement; null when it ran"),
)
ROW_COLUMNS = tuple(name for name, *_ in ROW_FIELDS)
_AND = "+"


def joined(networks: Sequence[str]) -> str | None:
    """Networks as the column ``network`` has them; None for none."""
    return _AND.join(sorted(networks)) or None


def parted(network: str | None) -> tuple[str, ...]:
    """The networks in a value of the column ``network``."""
    return tuple(network.split(_AND)) if network else ()


def is_of(value: str | None, network: str) -> bool:
    """Whether a row with that value in the column ``network`` was tuned for a network."""
    return value == network or network in parted(value)


@dataclass(frozen=True)
class Column:
    """One feature: float32, with its unit and where the value comes from."""

    name: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class FeatureSet:
    """A named, versioned list of feature columns. Two feature sets fit when name, version and columns are equal."""

    name: str
    version: int
    columns: tuple[Column, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def id(self) -> str:
        """``name/version``."""
        return f"{self.name}/{self.version}"

    def arrow_schema(self, dialect: str, target: str, source: dict[str, str]) -> pa.Schema:
        """Schema of a table with these features; ``source`` tells which log its rows came from."""
        about = {
            "table_version": TABLE_VERSION,
            "feature_set": self.name,
            "feature_version": self.version,
            "dialect": dialect,
            "target": target,
            "source": source,
            "columns": [[c.name, c.unit, c.meaning] for c in self.columns],
            "row_fields": [[name, unit, meaning] for name, _, unit, meaning in ROW_FIELDS],
        }
        fields = [pa.field(name, kind) for name, kind, *_ in ROW_FIELDS]
        fields += [pa.field(name, pa.float32()) for name in self.names]
        return pa.schema(fields, metadata={METADATA_KEY: orjson.dumps(about)})


@dataclass(frozen=True)
class TableAbout:
    """What a feature table says of itself."""

    feature_set: FeatureSet
    dialect: str
    target: str
    source: dict[str, str]
    rows: int

    @property
    def shard(self) -> tuple[int, int]:
        """Which part of its log it holds, of how many; (0, 1) where it does not say."""
        index, _, count = self.source.get("shard", "0/1").partition("/")
        return int(index), int(count)


def read_about(schema: pa.Schema, where: str, rows: int) -> TableAbout:
    """The metadata of a feature table of so many rows.

    Raises ``SchemaMismatch`` when it is none, is damaged, or is of another table version.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise SchemaMismatch(f"{where} is no feature table. Fix: write it with lorien featurize")
    try:
        about = orjson.loads(raw)
        version = about["table_version"]
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise _damaged(where, error) from None
    if version != TABLE_VERSION:
        raise SchemaMismatch(
            f"{where} is a feature table of version {version}, this Lorien reads {TABLE_VERSION}. "
            "Fix: run lorien featurize again"
        )
    try:
        found = _parsed(about, rows)
        columns = (*ROW_COLUMNS, *found.feature_set.names)
        kinds = [*(kind for _, kind, *_ in ROW_FIELDS), *(pa.float32() for _ in found.feature_set.names)]
        missing = [name for name in columns if name not in schema.names]
        if not missing:
            for name, kind in zip(columns, kinds, strict=True):
                _check_kind(name, schema.field(name).type, kind)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _damaged(where, error) from None
    if missing:
        raise SchemaMismatch(
            f"{where} lacks the columns {', '.join(missing[:5])} that its metadata names. Fix: lorien featurize again"
        )
    return found


def _parsed(about: dict[str, Any], rows: int) -> TableAbout:
    """What the metadata says. Raises one of Python's own errors where it says something else than a table's does."""
    columns = tuple(Column(*column) for column in about["columns"])
    features = FeatureSet(about["feature_set"], about["feature_version"], columns)
    found = TableAbout(features, about["dialect"], about["target"], about["source"], rows)
    texts = [features.name, found.dialect, found.target, *features.names, *found.source, *found.source.values()]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name in its metadata is no text")
    with suppress(BadInput):  # A kind of device that this Lorien does not know is the business of who ranks for it.
        Target.from_key(found.target)
    index, count = found.shard
    if not 0 <= index < count:
        raise ValueError(f"its metadata names shard {index} of {count}")
    return found


def _check_kind(name: str, present: pa.DataType, wanted: pa.DataType) -> None:
    """Texts where texts are to be, numbers where numbers: their width is the writer's business."""
    kind = present.value_type if pa.types.is_dictionary(present) else present
    number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (pa.types.is_null(kind) or (text if wanted == pa.string() else number)):
        raise TypeError(f"its column {name} is of {present}, not {wanted}")


def _damaged(where: str, error: Exception) -> SchemaMismatch:
    return SchemaMismatch(
        f"{where} is damaged ({type(error).__name__}: {error}). Fix: delete it and run lorien featurize again"
    )
