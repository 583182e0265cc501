"""Sessions of jobs under leases: handed over whole, and closed to whoever lost the lease."""

import threading
import time
from pathlib import Path

import pytest

from lorien.database.jobs import GRACE_S, Job, JobError, Run, Status, open_jobs
from lorien.database.queue import JobQueue
from lorien.errors import BadInput, DatabaseUnavailable, LeaseLost
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune import worker as module
from lorien.tune.jobs import (
    jobs_of,
    open_job_session,
    remove_job_sessions,
    remove_left_sessions,
    run_folder,
    run_name,
)
from lorien.tune.session import Session
from lorien.tune.worker import Lease

STUB = Path(__file__).parent / "stub_dialect"
TARGET = Target.parse("llvm -num-cores=2")
WORKLOADS = [Workload("recording", f"w{number}", [number], networks=("net",)) for number in range(3)]
RUN = Run("r", 0.0, targets=(TARGET.key,), lease_s=60.0)
JOB = Job(0, TARGET, (WORKLOADS[0],))


@pytest.fixture(autouse=True)
def _stub_dialect(monkeypatch):
    monkeypatch.syspath_prepend(STUB)


@pytest.fixture
def queue(tmp_path):
    with open_jobs(str(tmp_path / "jobs.db")) as table:
        table.add_run(RUN, [JOB])
        yield JobQueue(table, RUN)


def append(session, number):
    session.append(0, Candidate({"n": number}), Measurement(Outcome.OK, (1.0,)))


def test_a_session_is_handed_on_whole_and_the_old_worker_writes_where_nobody_reads(tmp_path, queue):
    root = tmp_path / "sessions"
    first = queue.claim("first", TARGET.key, 0.0)
    with open_job_session(root, JOB, first) as old:
        append(old, 0)
        append(old, 1)
        late_s = RUN.lease_s + GRACE_S + 1
        second = queue.claim("second", TARGET.key, late_s)
        with open_job_session(root, JOB, second) as new:
            assert new.records == 2
            append(old, 2)  # woken up, it does not know yet
            append(new, 3)
    third = queue.claim("third", TARGET.key, 2 * late_s)
    with open_job_session(root, JOB, third) as last:
        assert sorted(c.schedule["n"] for c, _ in last.trials[0].top()) == [0, 1, 3]
    assert [folder.name for folder in root.iterdir()] == ["0.3"]
    remove_job_sessions(root, 0)
    assert not list(root.iterdir())


def test_what_another_run_of_the_same_name_left_is_not_gone_on_with(tmp_path, queue):
    with open_job_session(tmp_path, JOB, queue.claim("first", TARGET.key, 0.0)):
        pass
    second = queue.claim("second", TARGET.key, 99.0)
    with pytest.raises(BadInput, match="another run 'r'"):
        open_job_session(tmp_path, Job(0, TARGET, (WORKLOADS[1],)), second)


def test_a_torn_record_of_a_killed_worker_is_not_handed_on(tmp_path, queue):
    root = tmp_path / "sessions"
    with open_job_session(root, JOB, queue.claim("first", TARGET.key, 0.0)) as session:
        append(session, 0)
        with (session.folder / "records.jsonl").open("ab") as file:
            file.write(b'[0, {"n": 1}, [1.')
    with open_job_session(root, JOB, queue.claim("second", TARGET.key, 99.0)) as session:
        assert session.records == 1


def test_what_a_worker_could_not_remove_is_removed_once_its_log_is_in_the_store(tmp_path):
    root = tmp_path / "sessions" / "r"
    for name in ("3.1", "3.2", "4.1", "of somebody"):
        (root / name).mkdir(parents=True)
    remove_left_sessions(str(tmp_path), "r", lambda number: number == 3)
    assert {folder.name for folder in root.iterdir()} == {"4.1", "of somebody"}
    remove_left_sessions(str(tmp_path), "no such run", lambda number: True)


def test_jobs_of_a_run_and_its_name():
    jobs = list(jobs_of([*WORKLOADS, WORKLOADS[0]], [TARGET, Target.parse("llvm -mcpu=znver4")]))
    assert [(job.number, job.target.key, job.name) for job in jobs][::3] == [
        (0, TARGET.key, "w0"),
        (3, "llvm-mcpu_znver4", "w0"),
    ]
    assert run_name(WORKLOADS, [TARGET]) == run_name([*reversed(WORKLOADS), WORKLOADS[0]], [TARGET])
    assert run_name(WORKLOADS[:2], [TARGET]) != run_name(WORKLOADS, [TARGET])
    with run_folder("file:///logs", "r") as folder:
        assert folder == Path("/logs/sessions/r")
    with run_folder("s3://bucket/logs", "r") as own:
        assert own.is_dir()
    assert not own.exists()
    with pytest.raises(BadInput, match="folder"), run_folder("http://host/logs", "r"):
        pass


class Clock:
    """The worker's clock, by hand."""

    def __init__(self, monkeypatch):
        self.now_s = 1000.0
        monkeypatch.setattr(module, "_now_s", lambda: self.now_s)


def test_a_lease_that_lapsed_by_the_own_clock_counts_as_lost(queue, monkeypatch):
    clock = Clock(monkeypatch)
    lease = Lease(queue, queue.claim("w", TARGET.key, time.time()), clock.now_s)
    with lease:
        lease.check()
        clock.now_s += RUN.lease_s
        with pytest.raises(LeaseLost, match="lapsed"):
            lease.check()
        with pytest.raises(LeaseLost):
            lease.change(queue.finish)
    assert queue._table.state("r", 0).status is Status.LEASED


def test_heartbeats_go_on_past_a_database_that_fails_and_end_with_the_lease(queue, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEATS_PER_LEASE", 6000)
    outage, beaten = [3], threading.Event()
    heartbeat = queue.heartbeat

    def flaky(*asked):
        if outage[0]:
            outage[0] -= 1
            raise DatabaseUnavailable("cut off")
        state = heartbeat(*asked)
        beaten.set()
        return state

    monkeypatch.setattr(queue, "heartbeat", flaky)
    with Lease(queue, queue.claim("w", TARGET.key, time.time()), module._now_s()) as lease:
        lease.records = 7
        assert beaten.wait(10.0)
        assert queue._table.state("r", 0).records == 7
        lease.check()
        queue.cancel()
        lease._thread.join(10.0)
        with pytest.raises(LeaseLost, match="cancelled"):
            lease.check()


def test_a_failure_says_whether_another_try_may_help():
    from lorien.errors import MissingExtra, StoreUnavailable

    assert module._kind(StoreUnavailable("full")) == (JobError.UNAVAILABLE, True)
    assert module._kind(BadInput("no")) == (JobError.BAD_INPUT, False)
    assert module._kind(MissingExtra("tvm", "tvm")) == (JobError.UNEXPECTED, True)
    assert module._kind(RuntimeError()) == (JobError.UNEXPECTED, True)


def test_the_session_of_a_worker_is_locked_while_it_writes(tmp_path, queue):
    state = queue.claim("w", TARGET.key, 0.0)
    with open_job_session(tmp_path, JOB, state), pytest.raises(BadInput, match="another process"):
        Session(tmp_path / "0.1")
