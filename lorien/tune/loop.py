"""The tuning loop: choose a workload, ask for candidates, measure them, log each as it comes, tell the search."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from lorien.database.base import ScheduleDatabase
from lorien.records import Candidate, Measurement, TuningRecord, Workload
from lorien.tune.measure import Measurer
from lorien.tune.scheduler import SCHEDULERS
from lorien.tune.session import Session, Trials

Measured = Sequence[tuple[Candidate, Measurement]]
Watch = Callable[[int, Measurement], None]
"""Told of each trial once it is acknowledged: number of the workload, and the measurement."""


class Strategy(Protocol):
    """Where candidates come from."""

    def ask(self, workload: Workload, count: int) -> Sequence[Candidate]:
        """At most ``count`` candidates neither asked for nor told of before; none when the space is exhausted."""

    def prepare(self, workload: Workload, count: int) -> None:
        """Do what of the next ``ask`` can be done before the measurements that are under way are known.

        Called in another thread than the others, never at the same time as they.
        """

    def tell(self, workload: Workload, candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> None:
        """Take in measurements, of candidates asked for or of the session before this one."""


@dataclass(frozen=True)
class TuneConfig:
    """What a session is to do.

    Parameters
    ----------
    trials : int
        Over all workloads, those that the session holds already included.
    trials_per_workload : int, optional
        At most so many for each.
    batch : int
        Candidates built and run between two decisions.
    scheduler : str
        One of ``SCHEDULERS``.
    """

    trials: int
    trials_per_workload: int | None = None
    batch: int = 16
    scheduler: str = "gradient"


@dataclass
class TuneReport:
    """What one call of ``tune`` did; what it found is in the session.

    Parameters
    ----------
    trials : int
        Measured and acknowledged.
    seconds : float
        In all.
    measure_s : float
        Of these, building and running candidates.
    exhausted : int
        Workloads whose spaces hold no more candidates.
    """

    trials: int = 0
    seconds: float = 0.0
    measure_s: float = 0.0
    exhausted: int = 0

    @property
    def overhead(self) -> float:
        """Share of the time in which nothing was built or run: search, features, model, log, database."""
        return 1 - self.measure_s / self.seconds if self.seconds else 0.0


def tune(
    session: Session,
    strategy: Strategy,
    measurer: Measurer,
    config: TuneConfig,
    *,
    database: ScheduleDatabase | None = None,
    watch: Watch | None = None,
) -> TuneReport:
    """Measure until the session holds ``config.trials``, or the spaces hold no more.

    While candidates are built, the search of the workloads that may be next goes on: builds end one after the other,
    and leave cores idle. Nothing else happens while one runs.

    No candidate in the session's log is measured again. Whatever ends this call, the log holds every trial that
    ``watch`` was told of, and the next call goes on from there.

    Raises
    ------
    StoreUnavailable, DatabaseUnavailable
        The log or the database cannot be written. What was acknowledged is in the log.
    """
    report = TuneReport()
    started_s = time.monotonic()
    open_ = list(range(len(session.trials)))
    met: set[int] = set()

    def meet(index: int) -> None:
        """Tell the search, once, what the session knew of a workload before."""
        own = session.trials[index]
        if index not in met and (known := own.top()):
            _commit(session, index, database, known)
            strategy.tell(own.workload, *zip(*known, strict=True))
        met.add(index)

    while open_ and config.trials > session.records:
        index = _choose(session, open_, config)
        own = session.trials[index]
        with interrupts_wait():
            meet(index)
            candidates = _ask(strategy, own, min(config.batch, config.trials - session.records, _left(own, config)))
        if not candidates:
            open_.remove(index)
            report.exhausted += _left(own, config) > 0
            continue

        pending = len(candidates)
        rooms: dict[int, int] = {}
        for following in _next(session, open_, config, index, pending):
            left = _left(session.trials[following], config) - (pending if following == index else 0)
            rooms[following] = min(config.batch, config.trials - session.records - pending, left)

        def search_ahead(rooms: dict[int, int] = rooms) -> None:
            for following, room in rooms.items():
                if room > 0:
                    meet(following)
                    strategy.prepare(session.trials[following].workload, room)

        measuring_s = time.monotonic()
        acknowledge = functools.partial(_acknowledge, session, index, candidates, watch)
        measurements = measurer.measure(
            own.workload,
            candidates,
            acknowledge,
            best_s=own.best_s,
            beside_builds=search_ahead,
        )
        report.trials += len(measurements)
        report.measure_s += time.monotonic() - measuring_s
        _commit(session, index, database, list(zip(candidates, measurements, strict=True)))
        with interrupts_wait():
            strategy.tell(own.workload, candidates, measurements)
    report.seconds = time.monotonic() - started_s
    return report


def _choose(
    session: Session, open_: Sequence[int], config: TuneConfig, measuring: tuple[int, int] | None = None
) -> int:
    """The workload to tune next; or, of one that is being measured, after that, if nothing better is found in it."""
    latencies_s: list[Sequence[float]] = [session.trials[index].latencies_s for index in open_]
    if measuring is not None:
        index, count = measuring
        own = session.trials[index]
        latencies_s[open_.index(index)] = [*own.latencies_s, *[own.best_s] * count]
    weights = [session.trials[index].workload.weight for index in open_]
    return open_[SCHEDULERS[config.scheduler](weights, latencies_s, config.batch)]


def _next(session: Session, open_: Sequence[int], config: TuneConfig, index: int, count: int) -> list[int]:
    """The workloads that may be next after ``count`` candidates of one, the likelier first."""
    following = _choose(session, open_, config, measuring=(index, count))
    others = [other for other in open_ if other != index]
    if following != index or not others:
        return [following]
    return [following, _choose(session, others, config)]  # should better be found in this one, its turn may be over


def _left(own: Trials, config: TuneConfig) -> int:
    """Trials that a workload may still have."""
    most = config.trials if config.trials_per_workload is None else config.trials_per_workload
    return most - len(own.latencies_s)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold an interrupt back until the block ends: TVM aborts the process when one unwinds through its native code."""
    if threading.current_thread() is not threading.main_thread():
        yield  # interrupts are the main thread's
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        raise KeyboardInterrupt


def _acknowledge(
    session: Session,
    index: int,
    candidates: Sequence[Candidate],
    watch: Watch | None,
    position: int,
    measurement: Measurement,
) -> None:
    session.append(index, candidates[position], measurement)
    if watch is not None:
        watch(index, measurement)


def _ask(strategy: Strategy, own: Trials, count: int) -> list[Candidate]:
    """New candidates only: a search that was told of the best of an old session does not know all that it measured."""
    while count > 0 and (asked := strategy.ask(own.workload, count)):
        if fresh := [candidate for candidate in asked if candidate.key not in own.keys]:
            return fresh
    return []


def _commit(session: Session, index: int, database: ScheduleDatabase | None, measured: Measured) -> None:
    if database is not None:
        database.put_many(
            TuningRecord(
                session.workloads[index], session.target, candidate, measurement, session.build, log=str(session.folder)
            )
            for candidate, measurement in measured
        )
