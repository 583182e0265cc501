"""A worker: takes jobs of a run until none is left, and tunes each in a session that another worker can go on with."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lorien.database import open_database
from lorien.database.base import ScheduleDatabase
from lorien.database.jobs import JobError, JobState, JobTable, open_jobs
from lorien.database.queue import JobQueue, find_run
from lorien.errors import (
    BadInput,
    DatabaseUnavailable,
    LeaseLost,
    StoreUnavailable,
    UnknownDialect,
    UnknownTarget,
    UnsupportedOperation,
)
from lorien.logs import open_logs
from lorien.logs.base import LogStore
from lorien.logs.ingest import publish
from lorien.models import load_ranker
from lorien.records import Measurement, TuningRecord
from lorien.target import Target
from lorien.tune.jobs import JobOptions, open_job_session, remove_job_sessions, run_folder
from lorien.tune.loop import TuneConfig, tune
from lorien.tune.measure import MeasureConfig, Measurer
from lorien.tune.remote import RemoteSession
from lorien.tune.session import Session
from lorien.tune.strategy import open_strategy

logger = logging.getLogger(__name__)

HEARTBEATS_PER_LEASE = 4
QUARANTINE_FAILURES = 3
"""Jobs in a row that fail on a device before it gets no more, until it is released."""
MAX_PAUSE_S = 60.0
"""The longest that a worker waits, after jobs in a row that failed because a store could not be reached."""


class Lease:
    """A job that is this worker's, kept so by heartbeats in the background.

    ``check`` after a write tells that the lease still held then: who takes the job over later reads what was written.
    """

    def __init__(self, queue: JobQueue, state: JobState, claimed_s: float) -> None:
        self.state = state
        self.records = state.records
        self._queue = queue
        self._lost: LeaseLost | None = None
        self._held_until_s = claimed_s + queue.run.lease_s
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of job {state.number}", daemon=True)

    def check(self) -> None:
        """Raises ``LeaseLost`` when another worker may have the job by now."""
        if self._lost is None and _now_s() >= self._held_until_s:
            self._lost = LeaseLost(self.state.run, self.state.number, "lapsed", self.state.worker)
        if self._lost is not None:
            raise self._lost

    def change(self, change: Callable[[JobState], JobState]) -> None:
        """Change the state of the job, between two heartbeats. Raises ``LeaseLost``."""
        with self._lock:
            self.check()
            self.state = change(self.state)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._queue.run.lease_s / HEARTBEATS_PER_LEASE):
            with self._lock:
                sent_s = _now_s()
                try:
                    self.state = self._queue.heartbeat(self.state, self.records, time.time())
                    self._held_until_s = sent_s + self._queue.run.lease_s
                except LeaseLost as lost:
                    self._lost = lost
                    return
                except DatabaseUnavailable as error:  # There are more heartbeats than a lease needs.
                    logger.warning("%s", error)
                except Exception as error:
                    logger.warning("heartbeat of job %d failed: %r", self.state.number, error)


def _now_s() -> float:
    """A clock that also goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told: all of it is text, so that any executor can pass it on.

    Parameters
    ----------
    run, db, logs, target : str
        Name of the run, URLs of the database and the log store, and the key of the target of the jobs it takes.
    place : str
        Where it runs, as its executor knows that place; else the name of the host. It is not passed on.
    """

    run: str
    db: str
    logs: str
    target: str
    place: str = ""

    @property
    def arguments(self) -> list[str]:
        """As the command line has them."""
        return ["--run", self.run, "--db", self.db, "--logs", self.logs, "--target", self.target]


def run_worker(config: WorkerConfig) -> Iterator[JobState]:
    """Do jobs, each told of when it is over, until there is none to be had; see ``Worker.work``.

    Raises
    ------
    BadInput
        There is no such run, or it has no jobs for this target.
    """
    with ExitStack() as stack:
        table = stack.enter_context(open_jobs(config.db, create=False))
        database = stack.enter_context(open_database(config.db, create=False))
        run = find_run(table, config.run)
        if config.target not in run.targets:
            raise BadInput(
                f"run {config.run!r} has no jobs for {config.target}. Fix: --target of {', '.join(run.targets)}"
            )
        queue = JobQueue(table, run)
        host = socket.gethostname()
        worker = Worker(
            table=table,
            queue=queue,
            target=config.target,
            name=f"{config.place or host}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
            device=f"{host}/{config.target}",
            root=stack.enter_context(run_folder(config.logs, config.run)),
            copies=config.logs if config.logs.startswith("s3://") else None,
            logs=open_logs(config.logs),
            database=database,
        )
        yield from worker.work()


@dataclass
class Worker:
    """Takes jobs of one run for one target. ``work`` returns when none can be had.

    Parameters
    ----------
    table : JobTable
    queue : JobQueue
    target : str
        Key of the target whose jobs it takes: this machine, or the device of it that is measured.
    name : str
        That no other process has.
    device : str
        What is quarantined when jobs in a row fail on it.
    root : Path
        Folder of the run's sessions, shared by all its workers.
    logs : LogStore
        Where the log of each job goes.
    database : ScheduleDatabase
        Where the best schedules of each job go.
    copies : str, optional
        URL of the log store in S3 that has copies of the sessions, when ``root`` is not shared.
    sleep : callable
        Waits for a store that cannot be reached.
    """

    table: JobTable
    queue: JobQueue
    target: str
    name: str
    device: str
    root: Path
    logs: LogStore
    database: ScheduleDatabase
    copies: str | None = None
    sleep: Callable[[float], None] = time.sleep
    _measurer: Measurer | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)

    def work(self) -> Iterator[JobState]:
        """Do jobs, each told of when it is over, until there is none to be had.

        Raises
        ------
        DatabaseUnavailable
            The jobs cannot be read or written. Nothing acknowledged is lost.
        BadInput
            The device is in quarantine.
        """
        options = JobOptions(**self.queue.run.options)
        outages = 0
        try:
            while True:
                self._failures = self.table.failures(self.device)
                if self._failures >= QUARANTINE_FAILURES:
                    raise BadInput(
                        f"device {self.device} failed too often in a row and gets no more jobs. "
                        f"Fix: mend it, then lorien jobs release {self.device} --db URL"
                    )
                claimed_s = _now_s()
                state = self.queue.claim(self.name, self.target, time.time())
                if state is None:
                    return
                try:
                    with Lease(self.queue, state, claimed_s) as lease:
                        self._do(lease, options)
                except LeaseLost as lost:
                    logger.warning("%s", lost)
                    continue
                yield lease.state
                # Else an outage of some seconds would use up the tries of every job there is.
                outages = outages + 1 if lease.state.error is JobError.UNAVAILABLE else 0
                if outages:
                    self.sleep(min(2.0**outages, MAX_PAUSE_S))
        finally:
            self._end_measurer()

    def _do(self, lease: Lease, options: JobOptions) -> None:
        try:
            ran = self._tuned(lease, options)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except KeyboardInterrupt:
            with suppress(LeaseLost):
                lease.change(self.queue.give_back)
            raise
        except Exception as error:
            kind, again = _kind(error)
            if kind is JobError.UNEXPECTED:
                self._end_measurer()
            logger.warning("job %d failed: %s", lease.state.number, error, exc_info=kind is JobError.UNEXPECTED)
            detail = str(error) or repr(error)
            lease.change(lambda state: self.queue.fail(state, kind, detail, again=again))
            if kind is JobError.UNEXPECTED:
                self.table.count_failure(self.device)
            return
        if ran:
            lease.change(self.queue.finish)
            self._remove(lease.state)
            if self._failures:
                self.table.forget_failures(self.device)
        else:
            detail = "no candidate could be measured; the log says how each failed"
            lease.change(lambda state: self.queue.fail(state, JobError.NOTHING_RAN, detail, again=False))
            self._remove(lease.state)
            self.table.count_failure(self.device)

    def _remove(self, state: JobState) -> None:
        """Remove what a job left whose log is in the store."""
        remove_job_sessions(self.root, state.number)
        if self.copies is not None:
            self._copy(self.copies, state).remove()

    def _copy(self, url: str, state: JobState) -> RemoteSession:
        folder = self.root / (state.sealed or f"{state.number}.{state.token}")
        return RemoteSession(url, folder, name=f"{state.run}/{state.number}", token=state.token)

    def _tuned(self, lease: Lease, options: JobOptions) -> bool:
        """Tune and publish; whether anything ran."""
        copy = self._copy(self.copies, lease.state) if self.copies is not None else None
        with copy.taken_over(resume=True) if copy is not None else nullcontext():
            if not lease.state.sealed:
                job = self.table.job(lease.state.run, lease.state.number)
                with open_job_session(self.root, job, lease.state) as session:
                    with copy.following() if copy is not None else nullcontext():
                        self._tune(session, lease, options, copy)
                    folder, records = session.folder, session.records
                lease.change(lambda state: self.queue.seal(state, folder.name, records))
            with Session(self.root / lease.state.sealed) as session:
                if session.records:
                    self._publish(session)
                return session.outcomes["ok"] > 0

    def _publish(self, session: Session) -> None:
        """The log to the log store, and its best schedules to the database: now it is known where their log is."""
        log = publish(session.folder, self.logs, dialect=session.dialect)
        self.database.put_many(
            TuningRecord(
                own.workload, session.target, candidate, measurement, session.build, log=f"{self.logs.url}/{log.id}"
            )
            for own in session.trials
            for candidate, measurement in own.top()
        )

    def _tune(self, session: Session, lease: Lease, options: JobOptions, copy: RemoteSession | None) -> None:
        lease.records = session.records
        if session.records > lease.state.records:  # the worker before did not get to tell: the job got on all the same
            lease.change(lambda state: self.queue.heartbeat(state, session.records, time.time()))
        if session.records >= options.trials:
            return
        dialect = session.dialect.name

        def watch(index: int, measurement: Measurement) -> None:
            lease.check()
            lease.records = session.records
            if copy is not None:
                copy.check()

        measurer = self._measuring(dialect, session.target, options)
        ranker = load_ranker(options.model, session.target, dialect) if options.model != "none" else None
        # As in lorien.cli.tune: a session that is gone on with needs samples that it has not seen.
        search = open_strategy(options.strategy, dialect, session.target, ranker, seed=options.seed + session.records)
        config = TuneConfig(options.trials, None, options.batch, options.scheduler)
        with measurer.measuring() as contention:
            tune(session, search, measurer, config, watch=watch)
        if contention.disturbed:
            logger.warning("job %d: %s", lease.state.number, contention)

    def _measuring(self, dialect: str, target: Target, options: JobOptions) -> Measurer:
        """Children that stay warm from job to job."""
        if self._measurer is None:
            config = MeasureConfig(build_timeout_s=options.build_timeout_s, check=options.check)
            self._measurer = Measurer(dialect, target, config)
        return self._measurer

    def _end_measurer(self) -> None:
        if self._measurer is not None:
            self._measurer.close()
            self._measurer = None


def _kind(error: Exception) -> tuple[JobError, bool]:
    """What an error says of a job, and whether another try may end better."""
    if isinstance(error, StoreUnavailable):
        return JobError.UNAVAILABLE, True
    if isinstance(error, (BadInput, UnknownDialect, UnknownTarget, UnsupportedOperation)):
        return JobError.BAD_INPUT, False
    return JobError.UNEXPECTED, True
