"""A run made of jobs: what ``lorien tune`` asks for, cut into sessions that any worker can take and go on with."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorien.database.jobs import Job, JobState
from lorien.errors import BadInput, StoreUnavailable
from lorien.files import atomic_folder, temporary_folder
from lorien.records import Workload, canonical_json
from lorien.s3 import S3Folder
from lorien.target import Target
from lorien.tune.session import Session

_FOLDER = re.compile(r"(\d+)\.(\d+)")
_NAME_CHARS = 40


@dataclass(frozen=True)
class JobOptions:
    """How each job of a run is tuned.

    Parameters
    ----------
    trials : int
        Of each job.
    batch : int
        Candidates built and run between two decisions.
    scheduler, strategy : str
        See ``SCHEDULERS`` and ``STRATEGIES``.
    model : str
        Model store that guides, or ``none``.
    check : bool
        Compare the outputs of each candidate with the naive kernel's.
    seed : int
        Of the search.
    build_timeout_s : float
        Seconds after which a build is killed.
    """

    trials: int
    batch: int = 16
    scheduler: str = "gradient"
    strategy: str = "evolutionary"
    model: str = "none"
    check: bool = False
    seed: int = 0
    build_timeout_s: float = 30.0


def jobs_of(workloads: Sequence[Workload], targets: Sequence[Target]) -> Iterator[Job]:
    """A job for each distinct workload on each target."""
    distinct = list({workload.key: workload for workload in workloads}.values())
    for place, target in enumerate(targets):
        for number, workload in enumerate(distinct):
            yield Job(place * len(distinct) + number, target, (workload,))


def run_name(workloads: Sequence[Workload], targets: Sequence[Target]) -> str:
    """The name of a run nobody named: the same for the same workloads and targets, in any order."""
    keys = sorted({workload.key for workload in workloads})
    identity = canonical_json([sorted(target.key for target in targets), keys])
    networks = "+".join(sorted({network for workload in workloads for network in workload.networks})) or "tune"
    readable = re.sub(r"[^A-Za-z0-9._+]+", "-", networks)[:_NAME_CHARS]
    return f"{readable}-{hashlib.sha256(identity).hexdigest()[:8]}"


@contextmanager
def run_folder(logs: str, run: str) -> Iterator[Path]:
    """Where the sessions of a run are while they grow: in the folder of the log store, for all of its workers.

    For a log store in S3, a folder of this worker's own, removed at the end: what is in it is copied to S3.

    Raises
    ------
    BadInput
        The log store is neither.
    """
    scheme, found, path = logs.partition("://")
    if scheme == "s3":
        with temporary_folder("lorien-sessions-") as own:
            yield Path(own)
    elif found and scheme != "file":
        raise BadInput(f"sessions cannot be kept in {logs}. Fix: --logs with s3://... or a folder all workers share")
    else:
        yield Path(path if found else logs) / "sessions" / run


def open_job_session(root: Path, job: Job, state: JobState) -> Session:
    """The session of a job under this lease, with every record acknowledged under the leases before it.

    Each lease writes to a folder of its own, ``<number>.<token>``, that begins as a copy of the last one. So a worker
    that lost its lease without knowing, because it or its machine was suspended, writes where nobody will read. It
    must see that its lease still held after each write, before it counts the record as acknowledged.

    Parameters
    ----------
    root : Path
        The folder of the run, shared by all that work on it; or of this machine, where the session may have come
        from its copy already.

    Raises
    ------
    StoreUnavailable
        The folder cannot be written.
    BadInput
        See ``Session``; or what is there is of another run of the same name.
    """
    own = root / f"{state.number}.{state.token}"
    try:
        before = [(token, folder) for token, folder in _folders(root, state.number) if token < state.token]
        if before and not own.exists():
            with atomic_folder(own, replace=False) as copy:
                shutil.copytree(before[-1][1], copy, dirs_exist_ok=True)
        session = Session(own) if own.exists() else Session.create(own, job.workloads, job.target)
        for _, folder in before:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot create {own}: {error}. Fix: free space, or other --logs") from error
    if session.target.key != job.target.key or {w.key for w in session.workloads} != {w.key for w in job.workloads}:
        session.close()
        raise BadInput(f"{own} is of another run {state.run!r}. Fix: remove it, or another --run NAME")
    return session


def remove_job_sessions(root: Path, number: int) -> None:
    """Remove what a job whose log is in the store left."""
    for _, folder in _folders(root, number):
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_sessions(logs: str, run: str, over: Callable[[int], bool]) -> None:
    """Remove what is left of the jobs of a run whose log is in the store: their worker ended before it could.

    Parameters
    ----------
    logs : str
        The log store.
    run : str
    over : callable
        Whether the log of the job of a number is in the store. Asked only for jobs of which something is left.

    Raises
    ------
    StoreUnavailable
        S3 cannot be read or written.
    """
    over = functools.cache(over)
    if logs.startswith("s3://"):
        s3, below = S3Folder(logs), f"sessions/{run}/"
        for page in s3.pages(below):
            numbers = ((name, name.removeprefix(below).partition("/")[0]) for name in page)
            s3.delete(name for name, number in numbers if number.isdecimal() and over(int(number)))
        return
    with run_folder(logs, run) as root, suppress(FileNotFoundError):
        for folder in list(root.iterdir()):
            if (match := _FOLDER.fullmatch(folder.name)) and over(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _folders(root: Path, number: int) -> list[tuple[int, Path]]:
    """Tokens and folders of a job, the last one last."""
    found = []
    with suppress(FileNotFoundError):
        for folder in root.iterdir():
            match = _FOLDER.fullmatch(folder.name)
            if match and int(match[1]) == number:
                found.append((int(match[2]), folder))
    return sorted(found)
