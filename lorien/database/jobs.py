"""The contract of a job table, and the rules of what a job may become: every backend stores the same states.

A tuning run is a set of jobs. Who holds a job has a lease of it, with a fencing token that grows by one with every
claim: what comes under an older token is refused. Each rule is a function from a state to the next one; a backend
only has to replace a state by another if nobody else did so meanwhile.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Protocol

from lorien.errors import BadInput, LeaseLost, SchemaMismatch
from lorien.records import Json, Workload
from lorien.target import Target

RUN_VERSION = 1
DETAIL_CHARS = 500
GRACE_S = 5.0
"""What the clocks of two machines may differ: so long after its end a lease is not yet given to another."""

_SCHEMES = {
    "sqlite": "lorien.database.jobs_sqlite:SqliteJobs",
    "dynamodb": "lorien.database.jobs_dynamodb:DynamoJobs",
}


class Status(str, Enum):
    """Where a job is. ``WAITING`` and ``LEASED`` are open, the others are over until somebody retries them."""

    WAITING = "waiting"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SET_ASIDE = "set_aside"
    """Its workers died or were lost as often as the run allows, and it got no further."""


OPEN = (Status.WAITING, Status.LEASED)


class JobError(str, Enum):
    """Why a job failed."""

    BAD_INPUT = "bad_input"
    """It can be done nowhere."""
    UNAVAILABLE = "unavailable"
    """A store or a database could not be reached."""
    NOTHING_RAN = "nothing_ran"
    """Not one candidate could be measured; the log says how each failed."""
    WORKER_LOST = "worker_lost"
    """The lease lapsed: the worker died, hung, or lost its machine or its network."""
    UNEXPECTED = "unexpected"


@dataclass(frozen=True)
class Run:
    """What the jobs of a run have in common.

    Parameters
    ----------
    name : str
        Its identity.
    created_s : float
        Unix time.
    options : Json
        How each job is tuned; the tuner's to read.
    targets : tuple of str
        Keys of the targets of its jobs.
    lease_s : float
        Seconds that a lease lasts without a heartbeat.
    max_tries : int
        Claims of one job that gets no further, before it is given up.
    """

    name: str
    created_s: float
    options: Json = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    lease_s: float = 60.0
    max_tries: int = 3

    def to_json(self) -> dict[str, Json]:
        """Plain JSON object."""
        return {"version": RUN_VERSION} | asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Json]) -> Run:
        """Read what ``to_json`` wrote. Raises ``SchemaMismatch`` for a newer Lorien's."""
        if value["version"] != RUN_VERSION:
            raise SchemaMismatch(
                f"run {value['name']!r} has version {value['version']}, this Lorien reads {RUN_VERSION}. "
                "Fix: use the Lorien that started it"
            )
        return cls(**{name.name: value[name.name] for name in fields(cls)} | {"targets": tuple(value["targets"])})


@dataclass(frozen=True)
class Job:
    """What is to be done: one session of these workloads on this target. It never changes."""

    number: int
    target: Target
    workloads: tuple[Workload, ...]

    @property
    def name(self) -> str:
        """For people."""
        more = f" +{len(self.workloads) - 1}" if len(self.workloads) > 1 else ""
        return self.workloads[0].name + more

    def to_json(self) -> dict[str, Json]:
        """Plain JSON object."""
        workloads = [workload.to_json() for workload in self.workloads]
        return {"number": self.number, "target": self.target.to_json(), "workloads": workloads}

    @classmethod
    def from_json(cls, value: dict[str, Json]) -> Job:
        """Read what ``to_json`` wrote."""
        workloads = tuple(map(Workload.from_json, value["workloads"]))
        return cls(value["number"], Target.parse(value["target"]), workloads)


@dataclass(frozen=True)
class JobState:
    """How far a job is.

    Parameters
    ----------
    run : str
    number : int
    target : str
        Key of its target.
    name : str
        For people.
    status : Status
    version : int
        Grows with every change.
    token : int
        The fencing token: grows with every claim.
    tries : int
        Claims since it was made or retried, or got on.
    worker : str
        Who holds it, or held it last.
    lease_until_s : float
        Unix time; 0 when nobody holds it.
    records : int
        Acknowledged in its log, as of the last heartbeat.
    sealed : str
        The log that is the job's, from when all of it is written; no other is ever published.
    error : JobError, optional
    detail : str
        What went wrong.
    """

    run: str
    number: int
    target: str
    name: str
    status: Status = Status.WAITING
    version: int = 0
    token: int = 0
    tries: int = 0
    worker: str = ""
    lease_until_s: float = 0.0
    records: int = 0
    sealed: str = ""
    error: JobError | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Json]:
        """Plain JSON object."""
        return asdict(self) | {"status": self.status.value, "error": self.error and self.error.value}

    @classmethod
    def from_json(cls, value: dict[str, Json]) -> JobState:
        """Read what ``to_json`` wrote."""
        error = JobError(value["error"]) if value["error"] else None
        return cls(**value | {"status": Status(value["status"]), "error": error})

    @property
    def published(self) -> bool:
        """Its log is in the log store, good or not, and nothing else of it is of use."""
        return self.status is Status.DONE or self.error is JobError.NOTHING_RAN

    def lapsed(self, now_s: float) -> bool:
        """Its worker has not been heard of for longer than its lease."""
        return self.status is Status.LEASED and self.lease_until_s + GRACE_S < now_s


@dataclass(frozen=True)
class Counts:
    """Jobs by status, and those of the leased ones whose lease has lapsed."""

    by_status: dict[Status, int]
    lapsed: int
    records: int

    @property
    def open(self) -> int:
        """Jobs that are not over."""
        return sum(self.by_status.get(status, 0) for status in OPEN)

    @property
    def claimable(self) -> int:
        """Jobs that a worker can have now."""
        return self.by_status.get(Status.WAITING, 0) + self.lapsed

    @property
    def total(self) -> int:
        """All jobs."""
        return sum(self.by_status.values())


class JobTable(Protocol):
    """Runs and their jobs, beside the schedules in the same database. Safe across threads and processes.

    All methods raise ``DatabaseUnavailable`` when the database cannot be read or written.
    """

    def add_run(self, run: Run, jobs: Iterable[Job]) -> None:
        """Make a run. It is there when all of its jobs are; what there is of it already stays as it is."""

    def run(self, name: str) -> Run | None:
        """A run by its name."""

    def runs(self) -> Iterator[Run]:
        """All runs, by name."""

    def job(self, run: str, number: int) -> Job:
        """What a job is. Raises ``BadInput`` when there is none of that number."""

    def state(self, run: str, number: int) -> JobState:
        """How far a job is, as of now. Raises ``BadInput`` when there is none of that number."""

    def replace(self, old: JobState, new: JobState) -> bool:
        """Store ``new`` if ``old`` is still of its version, atomically; False when it is not."""

    def waiting(self, run: str, target: str, limit: int) -> list[JobState]:
        """Some jobs of a target that wait, by index. May name ones that no longer do."""

    def lapsed(self, run: str, target: str, now_s: float, limit: int) -> list[JobState]:
        """Some jobs of a target whose lease has lapsed, by index."""

    def states(self, run: str, after: int = -1) -> Iterator[JobState]:
        """Stream the jobs of a higher number, by number. Memory does not grow with the run."""

    def counts(self, run: str, now_s: float) -> Counts:
        """Jobs by status, as of now."""

    def count_failure(self, device: str) -> int:
        """One more failure of a device without a success in between: how many that are."""

    def failures(self, device: str) -> int:
        """Failures of a device since its last success."""

    def forget_failures(self, device: str) -> None:
        """The device works."""

    def close(self) -> None:
        """Release connections. Closing twice is fine."""

    def __enter__(self) -> JobTable: ...

    def __exit__(self, *error: object) -> None: ...


def open_jobs(url: str, *, create: bool | None = None) -> JobTable:
    """The job table of a database; parameters and errors as of ``open_database``."""
    scheme, found, _ = url.partition("://")
    if not found:
        scheme, url = "sqlite", f"sqlite:///{url}"
    if scheme not in _SCHEMES:
        raise BadInput(f"database {url!r}: unknown scheme {scheme!r}. Fix: sqlite:///FILE, dynamodb://TABLE or a path")
    table: JobTable = pkgutil.resolve_name(_SCHEMES[scheme])(url, create=create)
    return table


def initial(run: str, job: Job) -> JobState:
    """The state a job begins with."""
    return JobState(run, job.number, job.target.key, job.name)


def claimed(state: JobState, worker: str, max_tries: int, lease_s: float, now_s: float) -> JobState | None:
    """The state under a new lease, or given up; None when another has it."""
    if state.status is not Status.WAITING and not state.lapsed(now_s):
        return None
    if state.status is Status.LEASED and state.tries >= max_tries:
        lost = f"worker {state.worker} was lost, as the {state.tries - 1} before it"
        return _over(state, Status.SET_ASIDE, JobError.WORKER_LOST, lost)
    return replace(
        state,
        status=Status.LEASED,
        version=state.version + 1,
        token=state.token + 1,
        tries=state.tries + 1,
        worker=worker,
        lease_until_s=now_s + lease_s,
        error=None,
        detail="",
    )


def renewed(state: JobState, token: int, records: int, lease_s: float, now_s: float) -> JobState:
    """The state with its lease extended. A job that gets on has all its tries again. Raises ``LeaseLost``."""
    _held(state, token)
    tries = 1 if records > state.records else state.tries
    return replace(state, version=state.version + 1, tries=tries, records=records, lease_until_s=now_s + lease_s)


def sealed(state: JobState, token: int, log: str, records: int) -> JobState:
    """The state from when all of its log is written. Raises ``LeaseLost``."""
    _held(state, token)
    return replace(state, version=state.version + 1, sealed=log, records=records)


def done(state: JobState, token: int) -> JobState:
    """The state at its good end. Raises ``LeaseLost``."""
    _held(state, token)
    return _over(state, Status.DONE)


def failed(state: JobState, token: int, error: JobError, detail: str, *, again: bool, max_tries: int) -> JobState:
    """The state after a failure: ``again`` it waits, as long as tries are left. Raises ``LeaseLost``."""
    _held(state, token)
    status = Status.WAITING if again and state.tries < max_tries else Status.FAILED
    return _over(state, status, error, detail)


def given_back(state: JobState, token: int) -> JobState:
    """The state when its worker is asked to end: it waits, and the try does not count. Raises ``LeaseLost``."""
    _held(state, token)
    return replace(_over(state, Status.WAITING), tries=state.tries - 1)


def cancelled(state: JobState) -> JobState | None:
    """The state when nobody wants it any more; None when it is over."""
    return _over(state, Status.CANCELLED) if state.status in OPEN else None


def retried(state: JobState) -> JobState | None:
    """The state when it is to be tried afresh; None when it is open or done."""
    if state.status in (*OPEN, Status.DONE):
        return None
    # What is sealed is the job's log, and to be published; unless it was, and there was nothing good in it.
    log = "" if state.error is JobError.NOTHING_RAN else state.sealed
    return replace(_over(state, Status.WAITING), tries=0, sealed=log)


def _held(state: JobState, token: int) -> None:
    if state.status is not Status.LEASED or state.token != token:
        raise LeaseLost(state.run, state.number, state.status.value, state.worker)


def _over(state: JobState, status: Status, error: JobError | None = None, detail: str = "") -> JobState:
    return replace(
        state,
        status=status,
        version=state.version + 1,
        lease_until_s=0.0,
        error=error,
        detail=detail[:DETAIL_CHARS],
    )
