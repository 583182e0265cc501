"""Counts of what was measured, workload by workload, in one pass: memory grows with workloads, not with records.

``Tally.of_tables`` reads feature tables, ``Tally.take`` takes records of any source. What is asked of the counts
afterwards (``failures_by_kind``, ``convergence``, ``quantile_s``) are functions that notebooks use as well.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lorien.featurize.dataset import tables
from lorien.featurize.parquet import batches
from lorien.featurize.schema import parted
from lorien.records import Json, TuningRecord, Workload

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BATCH_ROWS = 16384
NO_LATENCY = "no_latency"
"""Kind of a failure whose record says neither an error nor a latency."""
BINS_PER_DECADE = 10
FASTEST_LOG10, DECADES = -9, 12
"""Latencies are counted in bins from a nanosecond to a thousand seconds."""
MAX_STEPS = 24
"""Points that stay of the way to the best of a workload; there are seldom more."""
_COLUMNS = ("workload_key", "workload", "network", "weight", "flop", "build", "latency_s", "error")

Key = tuple[str, str, str]
"""Dialect, target key, workload key."""


@dataclass
class WorkloadTally:
    """What is known of one workload on one target.

    Parameters
    ----------
    dialect, target, key, name : str
        Which it is: the dialect, the keys of target and workload, its name for people.
    flop : float, optional
        Operations of one run.
    weights : dict of str to float
        Calls in each network; the network is empty where none was named.
    builds : set of str
        Framework builds that measured it.
    trials : int
        Records.
    failures : Counter of str
        Failed records by kind.
    steps : list of (int, float)
        Trials, counted from 1, at which the best latency in seconds improved, and that latency.
    schedule : Json
        Of the best record, where the source has schedules.
    log : str, optional
        Where the best record is from, where the source says.
    """

    dialect: str
    target: str
    key: str
    name: str
    flop: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    builds: set[str] = field(default_factory=set)
    trials: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    steps: list[tuple[int, float]] = field(default_factory=list)
    schedule: Json = field(default=None, repr=False)
    log: str | None = None

    @property
    def best_s(self) -> float:
        """Lowest latency in seconds; infinite while nothing ran."""
        return self.steps[-1][1] if self.steps else math.inf

    @property
    def weight(self) -> float:
        """Calls in all of its networks."""
        return sum(self.weights.values()) or 1.0

    @property
    def networks(self) -> list[str]:
        """Their names, sorted."""
        return sorted(name for name in self.weights if name)

    @property
    def failed(self) -> int:
        """Records that did not run."""
        return self.failures.total()

    @property
    def flop_per_s(self) -> float | None:
        """Rate of the best record; None when it, or the operations, are not known."""
        return self.flop / self.best_s if self.flop and self.steps else None

    def best_after(self, trials: int) -> float:
        """Lowest latency in seconds among the first trials; infinite when none of them ran."""
        return next((latency_s for trial, latency_s in reversed(self.steps) if trial <= trials), math.inf)

    def add(self, latency_s: FloatArray) -> None:
        """Count trials: (trials,) in their order, not finite for a failure."""
        finite = np.where(np.isfinite(latency_s), latency_s, np.inf)
        so_far = np.minimum.accumulate(np.r_[self.best_s, finite])
        for place in np.flatnonzero(so_far[1:] < so_far[:-1]):
            self.steps.append((self.trials + int(place) + 1, float(finite[place])))
        self.trials += len(latency_s)
        if len(self.steps) > 2 * MAX_STEPS:
            self.steps = thinned(self.steps)


@dataclass
class TargetTally:
    """What is known of one target: records, failures, and how its latencies are spread."""

    dialect: str
    target: str
    records: int = 0
    latencies: IntArray = field(default_factory=lambda: np.zeros(DECADES * BINS_PER_DECADE, np.int64))

    def add(self, latency_s: FloatArray) -> None:
        """Count records: (records,), not finite for a failure."""
        self.records += len(latency_s)
        ran = latency_s[np.isfinite(latency_s)]
        places = np.floor((np.log10(ran) - FASTEST_LOG10) * BINS_PER_DECADE).astype(np.int64)
        self.latencies += np.bincount(np.clip(places, 0, len(self.latencies) - 1), minlength=len(self.latencies))

    @property
    def failed(self) -> int:
        """Records that did not run."""
        return self.records - int(self.latencies.sum())

    def quantile_s(self, fraction: float) -> float:
        """A quantile of the latencies in seconds, to the width of a bin (a quarter); NaN when nothing ran."""
        total = self.latencies.sum()
        if not total:
            return math.nan
        place = int(np.searchsorted(np.cumsum(self.latencies), fraction * total, side="left"))
        return float(10 ** (FASTEST_LOG10 + (place + 0.5) / BINS_PER_DECADE))


@dataclass
class Tally:
    """Workloads and targets, in the order in which they were first seen."""

    workloads: dict[Key, WorkloadTally] = field(default_factory=dict)
    targets: dict[tuple[str, str], TargetTally] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Of all workloads."""
        return sum(own.trials for own in self.workloads.values())

    @classmethod
    def of_tables(cls, folder: Path) -> Tally:
        """Count all feature tables below a folder.

        The shards of a log are read side by side, so that its trials come in their order.

        Raises
        ------
        BadInput
            There is none.
        SchemaMismatch
            One is damaged, or no feature table.
        """
        tally = cls()
        logs: dict[tuple[str, str, str], list[tuple[int, Path]]] = defaultdict(list)
        for path, about in tables(folder):
            log = about.source.get("fingerprint") or str(path)
            logs[about.dialect, about.target, log].append((about.shard[0], path))
        for (dialect, target, _), shards in sorted(logs.items()):
            for batch in _interleaved([path for _, path in sorted(shards)]):
                tally._take_batch(dialect, target, batch)
        return tally

    def take(self, records: Iterable[TuningRecord]) -> None:
        """Count records, and keep the schedule of the best of each workload."""
        stream = iter(records)
        while some := list(islice(stream, BATCH_ROWS // 16)):
            by_workload: dict[Key, list[TuningRecord]] = defaultdict(list)
            for record in some:
                by_workload[record.workload.dialect, record.target.key, record.workload.key].append(record)
            for key, own in by_workload.items():
                self._take_records(key, own)

    def _take_records(self, key: Key, records: Sequence[TuningRecord]) -> None:
        workload = records[0].workload
        known = self._workload(key, workload.name)
        latency_s = np.array([_latency(record.measurement.latency_s) for record in records])
        best_before_s = known.best_s
        self._count(known, latency_s)
        known.failures.update(
            NO_LATENCY if record.measurement.ok else record.measurement.outcome.value
            for record, ran in zip(records, np.isfinite(latency_s), strict=True)
            if not ran
        )
        known.flop = known.flop if known.flop is not None else workload.flop
        for record in records:
            known.builds.add(record.build)
            known.weights |= shared_out(record.workload, record.network)
        if known.best_s < best_before_s:
            best = records[int(np.nanargmin(latency_s))]
            known.schedule, known.log = best.candidate.schedule, best.log

    def _take_batch(self, dialect: str, target: str, batch: pa.Table) -> None:
        """Count rows of one target's tables, in the order of its trials."""
        latency_s = batch["latency_s"].to_numpy()
        latency_s = np.where(np.isfinite(latency_s) & (latency_s > 0), latency_s, np.nan)
        encoded = batch["workload_key"].combine_chunks().dictionary_encode()
        keys, code = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        about = batch.group_by(["workload_key", "workload", "network", "weight", "build"]).aggregate([("flop", "max")])
        for row in about.to_pylist():
            known = self._workload((dialect, target, row["workload_key"]), row["workload"] or row["workload_key"])
            names = parted(row["network"]) or ("",)
            weight = 1.0 if row["weight"] is None else row["weight"]
            known.weights |= dict.fromkeys(names, weight / len(names))
            known.builds.add(row["build"] or "unknown")
            known.flop = known.flop if known.flop is not None else row["flop_max"]
        order = np.argsort(code, kind="stable")
        starts = np.searchsorted(code[order], np.arange(len(keys)))
        for key, rows in zip(keys, np.split(order, starts[1:]), strict=True):
            self._count(self.workloads[dialect, target, key], latency_s[rows])
        failed = batch.select(["workload_key", "error"]).filter(pa.array(~np.isfinite(latency_s)))
        for row in failed.group_by(["workload_key", "error"]).aggregate([([], "count_all")]).to_pylist():
            known = self.workloads[dialect, target, row["workload_key"]]
            known.failures[row["error"] or NO_LATENCY] += row["count_all"]

    def _count(self, known: WorkloadTally, latency_s: FloatArray) -> None:
        known.add(latency_s)
        self.targets.setdefault((known.dialect, known.target), TargetTally(known.dialect, known.target)).add(latency_s)

    def _workload(self, key: Key, name: str) -> WorkloadTally:
        return self.workloads.setdefault(key, WorkloadTally(*key, name))


def shared_out(workload: Workload, network: str | None = None) -> dict[str, float]:
    """Calls of a workload by network: its weight is of all of its networks together."""
    names = workload.networks or (network or "",)
    return dict.fromkeys(names, workload.weight / len(names))


def failures_by_kind(workloads: Iterable[WorkloadTally]) -> Counter[str]:
    """Failed records of all workloads by kind."""
    return sum((own.failures for own in workloads), Counter())


def convergence(workloads: Iterable[WorkloadTally], at: Sequence[int]) -> FloatArray:
    """How near the best found so far is to the best found in the end, against trials.

    Parameters
    ----------
    workloads : iterable of WorkloadTally
        Those where nothing ran are left out.
    at : sequence of int
        Trials of each workload.

    Returns
    -------
    array (workloads that ran, len(at)) of float
        Best latency in the end over the best after so many trials; 0 before the first that ran.
    """
    ran = [own for own in workloads if own.steps]
    found = np.array([[own.best_after(trials) for trials in at] for own in ran]).reshape(len(ran), len(at))
    reached: FloatArray = np.array([own.best_s for own in ran])[:, None] / found
    return reached


def thinned(steps: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``MAX_STEPS`` steps: the first, the last, and between them those of the largest gains."""
    if len(steps) <= MAX_STEPS:
        return list(steps)
    gains = [before / after for (_, before), (_, after) in pairwise(steps)]
    inner = sorted(range(1, len(steps) - 1), key=lambda place: gains[place - 1], reverse=True)[: MAX_STEPS - 2]
    return [steps[place] for place in sorted({0, *inner, len(steps) - 1})]


def _latency(latency_s: float | None) -> float:
    return latency_s if latency_s is not None and 0 < latency_s < math.inf else math.nan


def _interleaved(shards: Sequence[Path]) -> Iterator[pa.Table]:
    """The rows of a log that was cut into shards (row r of shard i of n is its record r * n + i), in its order."""
    rows = max(256, BATCH_ROWS // len(shards))
    streams = [batches(path, rows, _COLUMNS) for path in shards]
    while parts := [(index, part) for index, stream in enumerate(streams) if (part := next(stream, None))]:
        place = np.concatenate([np.arange(part.num_rows) * len(shards) + index for index, part in parts])
        yield pa.Table.from_batches([part for _, part in parts]).take(np.argsort(place))
