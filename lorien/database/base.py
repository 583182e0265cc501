"""The contract of a schedule database, and the rule of which schedules stay: every backend stores the same items."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

from lorien.errors import BadInput, SchemaMismatch
from lorien.plausible import doubt, doubt_of
from lorien.records import Candidate, Json, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

logger = logging.getLogger(__name__)

DEFAULT_N_BEST = 8
SCHEMA_VERSION = 2
"""2: definitions are stored compressed, apart from the schedules. 1: in the workload of each item."""
READABLE_VERSIONS = (1, 2)
"""What is of an older version is read as it is, and upgraded by the first write."""


@dataclass(frozen=True)
class DatabaseStats:
    """What a database holds."""

    targets: int
    workloads: int
    records: int


class ScheduleDatabase(Protocol):
    """Best schedules per (target, workload), records of different framework builds kept apart.

    Safe across threads and processes, forked ones included. Returned records are snapshots. Of each (target, workload,
    build) and variant the ``n_best`` schedules of the lowest median latency stay, whatever their size, ties broken by
    record key, so what a database holds does not depend on the order of the writes. A candidate measured again counts
    with its fastest measurement. A record whose latency cannot be true (``lorien.plausible``) does not enter, with a
    warning, and is not served where an older Lorien let it in. Candidates' scores and workloads' weights belong to
    models and logs and are not kept; a workload comes back with every network it was put for.

    All methods raise ``DatabaseUnavailable`` when the database cannot be read or written. What was put before stays.
    """

    n_best: int

    def put(self, record: TuningRecord) -> bool:
        """Store one record, atomically. True if it entered the n best.

        False for a failed measurement, one that cannot be true, or a repeat.

        Raises
        ------
        BadInput
            It has no framework build, or an ``OK`` measurement with a latency that is no positive number.
        """

    def put_many(self, records: Iterable[TuningRecord]) -> int:
        """``put`` of all, in one transaction where the backend has them. How many of them entered the n best.

        Without transactions each (target, workload, build) is written whole, and an error leaves those written before
        it: putting all again ends in the same.
        """

    def best(self, target: Target, workload_key: str, n: int = 1, build: str | None = None) -> list[TuningRecord]:
        """At most ``n``, fastest first by median latency, of one build or of all; empty when unseen."""

    def related(self, target: Target, workload_key: str, n: int = 1) -> list[TuningRecord]:
        """At most ``n`` of the same workload on other targets of the family: the fastest of each first."""

    def query(
        self,
        target: Target | None = None,
        workload: str | None = None,
        dialect: str | None = None,
        network: str | None = None,
    ) -> Iterator[TuningRecord]:
        """Stream what fits all that is given, by target, workload and build, fastest first in each.

        ``workload`` is a name, a shell pattern over names (``conv2d*``) or a key. Memory does not grow with the
        database; records put meanwhile may or may not be seen.
        """

    def stats(self) -> DatabaseStats:
        """Count targets, workloads and records."""

    def close(self) -> None:
        """Release connections. Closing twice is fine."""

    def __enter__(self) -> ScheduleDatabase: ...

    def __exit__(self, *error: object) -> None: ...


@dataclass(frozen=True)
class Selection:
    """Which schedules are meant: those that fit all that is given.

    Parameters
    ----------
    target : Target, optional
    workload : str, optional
        A name, a shell pattern over names, or a key, as in ``ScheduleDatabase.query``.
    build : str, optional
        Framework and version, as records name it.
    log : str, optional
        Where records came from: what they name, or the end of it, such as the id of a log in its store.
    """

    target: Target | None = None
    workload: str | None = None
    build: str | None = None
    log: str | None = None

    def split(self, item: Item) -> tuple[tuple[Entry, ...], int]:
        """The schedules of an item of the target and workload that are not meant, and how many are."""
        if self.build not in (None, item.build):
            return item.entries, 0
        rest = tuple(entry for entry in item.entries if not self._came_from(entry["log"]))
        return rest, len(item.entries) - len(rest)

    def _came_from(self, log: str | None) -> bool:
        if self.log is None:
            return True
        wanted = self.log.rstrip("/")
        return log is not None and (log == wanted or log.endswith(f"/{wanted}"))


@dataclass
class Removal:
    """Schedules removed, or to be removed, and the (target, workload, build) that they are of."""

    schedules: int = 0
    items: int = 0


class EditableDatabase(ScheduleDatabase, Protocol):
    """A ``ScheduleDatabase`` that schedules can be taken out of."""

    def remove(self, selection: Selection, *, dry_run: bool = False) -> Removal:
        """Take out the schedules meant, and definitions that nothing names any more; ``dry_run`` only counts them.

        Of each (target, workload, build) it is atomic against other writers, and the schedules not meant stay. In one
        transaction where the backend has them; else an error leaves those removed before it gone, and removing again
        ends in the same.
        """

    def __enter__(self) -> EditableDatabase: ...


class _Entry(TypedDict):
    """One schedule in an item, as JSON."""

    key: str
    latency_s: float
    latencies_s: list[float]
    schedule: Json
    network: str | None
    log: str | None
    timestamp_s: float


class Entry(_Entry, total=False):
    """``variant`` is there where the record has one; databases of before there were any lack it."""

    variant: str


@dataclass(frozen=True)
class Item:
    """The unit of storage: one (target, workload, build), its best schedules fastest first."""

    target: Target
    workload: Workload
    build: str
    entries: tuple[Entry, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Target key, workload key, build."""
        return self.target.key, self.workload.key, self.build

    def records(self) -> list[TuningRecord]:
        """The schedules as tuning records, fastest first; those whose latency cannot be true left out."""
        flop, kind = self.workload.flop, self.target.kind
        return [
            TuningRecord(
                workload=self.workload,
                target=self.target,
                candidate=Candidate(entry["schedule"]),
                measurement=Measurement(Outcome.OK, tuple(entry["latencies_s"]), timestamp_s=entry["timestamp_s"]),
                build=self.build,
                network=entry["network"],
                log=entry["log"],
                variant=entry.get("variant"),
            )
            for entry in self.entries
            if not doubt(entry["latency_s"], flop, kind)
        ]


def fastest_of_all(items: Iterable[Item], n: int) -> list[TuningRecord]:
    """At most ``n`` records of the items, fastest first."""
    return sorted((record for item in items for record in item.records()), key=latency_of)[:n]


def fastest_of_each(items: Iterable[Item], n: int) -> list[TuningRecord]:
    """At most ``n`` records of the items: the fastest of each, fastest first, then the second of each, and so on."""
    ranked = [(rank, record) for item in items for rank, record in enumerate(item.records())]
    return [record for _, record in sorted(ranked, key=lambda pair: (pair[0], latency_of(pair[1])))][:n]


def latency_of(record: TuningRecord) -> float:
    """Sort key: median latency in seconds of a record that ran."""
    return record.measurement.latency_s or math.inf


def check_schema(found: object, where: str) -> None:
    """Raise ``SchemaMismatch`` unless a database is of a version that is read; nothing of it is changed."""
    version = int(str(found)) if str(found).isdecimal() else 0  # no number: nothing of ours that is newer
    if version in READABLE_VERSIONS:
        return
    if version > SCHEMA_VERSION:
        fix = "pip install --upgrade lorien"
    else:
        fix = "lorien commit --logs LOGS --db URL, with the logs it came from and the URL of a new database"
    raise SchemaMismatch(f"{where} has schema {found}, this Lorien reads 1 to {SCHEMA_VERSION}. Fix: {fix}")


def new_items(records: Iterable[TuningRecord]) -> list[Item]:
    """Group the successful records by item, in the order of the keys so that concurrent writers cannot deadlock.

    Those whose latency cannot be true are left out, with a warning.

    Raises
    ------
    BadInput
        See ``ScheduleDatabase.put``.
    """
    items: dict[tuple[str, str, str], Item] = {}
    entries: dict[tuple[str, str, str], list[Entry]] = {}
    for record in records:
        latency_s = record.measurement.latency_s
        if latency_s is None:
            continue
        if not (math.isfinite(latency_s) and latency_s > 0):
            raise BadInput(f"record {record.key} of {record.workload.name!r} ran in {latency_s} s: no latency")
        if not record.build:
            raise BadInput(f"record {record.key} of {record.workload.name!r} names no framework build")
        if why := doubt_of(record):
            logger.warning("a schedule of %s is not stored: %s", record.workload.name, why)
            continue
        networks = {*record.workload.networks, *([record.network] if record.network else ())}
        item = Item(record.target, replace(record.workload, weight=1.0, networks=tuple(sorted(networks))), record.build)
        known = items.get(item.key)
        items[item.key] = replace(item, workload=_join(known.workload, item.workload)) if known else item
        entry = Entry(
            key=record.key,
            latency_s=latency_s,
            latencies_s=list(record.measurement.latencies_s),
            schedule=record.candidate.schedule,
            network=record.network,
            log=record.log,
            timestamp_s=record.measurement.timestamp_s,
        )
        if record.variant is not None:
            entry["variant"] = record.variant
        entries.setdefault(item.key, []).append(entry)
    return [replace(items[key], entries=tuple(entries[key])) for key in sorted(items)]


def merge(stored: Item | None, new: Item, n_best: int) -> tuple[Item, int]:
    """The item that holds the best of both, and how many of the new schedules entered it."""
    before = {entry["key"]: entry for entry in _true(stored)} if stored else {}
    fastest = dict(before)
    for entry in new.entries:
        known = fastest.get(entry["key"])
        if known is None or entry["latency_s"] < known["latency_s"]:
            fastest[entry["key"]] = entry
        elif "variant" in entry and "variant" not in known:
            fastest[entry["key"]] = {**known, "variant": entry["variant"]}
    workload = _join(stored.workload, new.workload) if stored else new.workload
    kept = _best_of_each(fastest.values(), n_best)
    entered = sum(
        entry["key"] not in before or entry["latency_s"] < before[entry["key"]]["latency_s"] for entry in kept
    )
    return Item(stored.target if stored else new.target, workload, new.build, tuple(kept)), entered


def _true(item: Item) -> list[Entry]:
    """The entries that a database of today would take: an older one also has others."""
    return [entry for entry in item.entries if not doubt(entry["latency_s"], item.workload.flop, item.target.kind)]


def _best_of_each(entries: Iterable[Entry], n_best: int) -> list[Entry]:
    """The n best of each variant."""
    places: Counter[str | None] = Counter()
    kept: list[Entry] = []
    for entry in sorted(entries, key=_by_latency):
        variant = entry.get("variant")
        if places[variant] < n_best:
            kept.append(entry)
        places[variant] += 1
    return kept


def _by_latency(entry: Entry) -> tuple[float, str]:
    return entry["latency_s"], entry["key"]


def _join(known: Workload, other: Workload) -> Workload:
    """What is known of a workload: a reader without its framework leaves out what another gives."""
    return replace(
        known,
        definition=known.definition if known.definition is not None else other.definition,
        flop=known.flop if known.flop is not None else other.flop,
        networks=tuple(sorted({*known.networks, *other.networks})),
    )
