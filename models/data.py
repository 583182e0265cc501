"""Feature tables as a trainer sees them: what each row is about, held whole; the features, streamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lorien.errors import BadInput, SchemaMismatch
from lorien.featurize.base import Features
from lorien.featurize.dataset import about_of, tables
from lorien.featurize.parquet import batches
from lorien.featurize.schema import FeatureSet
from lorien.models.metrics import BoolArray, Candidates, FloatArray, IntArray

BATCH_ROWS = 16384
UNKNOWN = -1


@dataclass(frozen=True)
class Tables:
    """The feature tables of one (dialect, target), all of one feature set."""

    dialect: str
    target: str
    features: FeatureSet
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Rows:
    """What the rows of ``Tables`` are about, in the order of the tables.

    Parameters
    ----------
    keys : tuple of str
        Distinct workload keys.
    networks : tuple of str
        Distinct networks.
    workload : array (rows,) of int
        Index into ``keys``.
    network : array (rows,) of int
        Index into ``networks``; ``UNKNOWN`` where the table does not say.
    latency_s : array (rows,) of float
        Seconds; NaN for a failure, and for what cannot be a latency (zero, negative, infinite).
    weight : array (rows,) of float
        Calls of the row's workload in the row's network.
    """

    keys: tuple[str, ...]
    networks: tuple[str, ...]
    workload: IntArray
    network: IntArray
    latency_s: FloatArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.workload)

    def all(self) -> BoolArray:
        """A choice of every row."""
        return np.ones(len(self), dtype=np.bool_)

    def workload_keys(self) -> list[str]:
        """Workload key of each row."""
        return [self.keys[index] for index in self.workload]

    def network_names(self) -> list[str | None]:
        """Network of each row."""
        return [None if index == UNKNOWN else self.networks[index] for index in self.network]

    def candidates(self, chosen: BoolArray) -> Candidates:
        """The chosen rows as candidates of their workloads, numbered without a gap."""
        present, workload = np.unique(self.workload[chosen], return_inverse=True)
        # A workload is called by each of its networks: its weight is the sum of theirs.
        pairs = np.stack([workload, self.network[chosen]])
        (first_workload, _), first = np.unique(pairs, axis=1, return_index=True)
        weight = np.bincount(first_workload, self.weight[chosen][first], len(present)).astype(np.float64)
        return Candidates(workload, self.latency_s[chosen], weight)


def group_tables(features: Path, *, dialect: str | None = None, target: str | None = None) -> list[Tables]:
    """Tables below a folder by (dialect, target key), in a stable order.

    Raises
    ------
    BadInput
        There is none (of that dialect and target).
    SchemaMismatch
        Tables of one target have different feature sets.
    """
    found = defaultdict(list)
    for path, about in tables(features, dialect=dialect, target=target):
        found[about.dialect, about.target].append((path, about.feature_set))
    groups = []
    for (name, key), members in sorted(found.items()):
        sets = {feature_set for _, feature_set in members}
        if len(sets) > 1:
            raise SchemaMismatch(
                f"tables of {name} {key} have different feature sets ({', '.join(sorted(s.id for s in sets))}). "
                "Fix: featurize the logs again into an empty folder"
            )
        groups.append(Tables(name, key, sets.pop(), tuple(path for path, _ in members)))
    return groups


def table_at(path: Path) -> Tables:
    """One table by itself. Raises ``BadInput`` when there is none, ``SchemaMismatch`` when it is damaged."""
    try:
        about = about_of(path)
    except FileNotFoundError:
        raise BadInput(f"no feature table at {path}. Fix: lorien featurize LOGS -o FEATURES") from None
    return Tables(about.dialect, about.target, about.feature_set, (path,))


def read_rows(group: Tables) -> Rows:
    """Read everything but the features. 28 bytes a row stay in memory."""
    keys: dict[str, int] = {}
    networks: dict[str, int] = {}
    parts: list[tuple[IntArray, IntArray, FloatArray, FloatArray]] = [
        (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    ]
    for batch in _batches(group, ["workload_key", "network", "latency_s", "weight"]):
        latency = batch["latency_s"].to_numpy(zero_copy_only=False)
        latency = np.where(np.isfinite(latency) & (latency > 0), latency, np.nan)
        weight = np.nan_to_num(batch["weight"].to_numpy(zero_copy_only=False), nan=1.0)
        parts.append((_codes(batch["workload_key"], keys), _codes(batch["network"], networks), latency, weight))
    workload, network, latency, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(workload):
        raise BadInput(f"the tables of {group.dialect} {group.target} are empty. Fix: lorien featurize LOGS again")
    return Rows(tuple(keys), tuple(networks), workload, network, latency, weight)


def feature_batches(group: Tables) -> Iterator[tuple[slice, Features]]:
    """The features of all rows in batches: which rows, and their features (at most ``BATCH_ROWS``, columns)."""
    row = 0
    for batch in _batches(group, list(group.features.names)):
        features = np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
        yield slice(row, row + len(features)), features
        row += len(features)


def read_features(group: Tables, chosen: BoolArray) -> Features:
    """The features of the chosen rows: (chosen, columns). What is not chosen is never held."""
    features = np.empty((int(chosen.sum()), len(group.features.names)), dtype=np.float32)
    filled = 0
    for here, batch in feature_batches(group):
        wanted = batch[chosen[here]]
        features[filled : filled + len(wanted)] = wanted
        filled += len(wanted)
    return features


def _batches(group: Tables, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in group.paths:
        yield from batches(path, BATCH_ROWS, columns)


def _codes(column: pa.Array, known: dict[str, int]) -> IntArray:
    """Numbers of the strings, new ones numbered on; ``UNKNOWN`` for a null."""
    encoded = column.dictionary_encode()
    numbers = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
    codes: IntArray = np.array([*numbers, UNKNOWN], dtype=np.int64)[indices]
    return codes
