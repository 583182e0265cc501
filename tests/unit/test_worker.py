"""A worker with candidates that do what they are told, real children and a real database."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from lorien.database import open_database
from lorien.database.jobs import Job, JobError, Run, Status, open_jobs
from lorien.database.queue import JobQueue
from lorien.errors import BadInput, StoreUnavailable
from lorien.logs import open_logs
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune import worker as module
from lorien.tune.jobs import open_job_session
from lorien.tune.worker import QUARANTINE_FAILURES, Worker

STUB = Path(__file__).parent / "stub_dialect"
TARGET, BROKEN = Target.parse("llvm -num-cores=2"), Target.parse("cuda -arch=sm_86")
RUN = Run("r", 0.0, {"trials": 3, "batch": 2}, (TARGET.key,))


class Listed:
    """Offers every workload the same candidates, in order."""

    schedules = ()

    def __init__(self):
        self.next = {}

    def prepare(self, workload, count):
        pass

    def ask(self, workload, count):
        numbers = self.next.setdefault(workload.key, itertools.count())
        chosen = [self.schedules[n] for n in itertools.islice(numbers, count) if n < len(self.schedules)]
        return [Candidate(schedule) for schedule in chosen]

    def tell(self, workload, candidates, measurements):
        pass


@pytest.fixture(autouse=True)
def _stub_dialect(monkeypatch):
    monkeypatch.syspath_prepend(STUB)
    monkeypatch.setattr(module, "open_strategy", lambda *_, **__: Listed())
    monkeypatch.setattr(Listed, "schedules", [{"run": 0.1}, {"run": "segfault"}, {"run": 0.2}, {"run": 0.3}])


@pytest.fixture
def worker(tmp_path):
    """A worker of a run of two jobs."""
    url = str(tmp_path / "fleet.db")
    with open_jobs(url) as table, open_database(url) as database:
        yield made(table, database, tmp_path, RUN, TARGET, 2)


def made(table, database, folder, run, target, jobs):
    workloads = [Workload("recording", f"w{number}", [number], networks=("net",)) for number in range(jobs)]
    table.add_run(run, [Job(number, target, (workload,)) for number, workload in enumerate(workloads)])
    logs = open_logs(str(folder / "logs"))
    return Worker(table, JobQueue(table, run), target.key, "w", "host/device", folder / "s", logs, database)


def test_jobs_are_done_and_published_and_leave_nothing(worker):
    states = list(worker.work())
    assert {state.number for state in states} == {0, 1}
    assert all((state.status, state.records, state.error) == (Status.DONE, 3, None) for state in states)
    assert [(log.records, log.failed) for log in worker.logs.list()] == [(3, 1)] * 2
    assert not list(worker.root.iterdir())
    stored = {f"{worker.logs.url}/{log.id}" for log in worker.logs.list()}
    assert {record.log for record in worker.database.query()} == stored
    assert worker.database.stats().records == 4
    assert worker.table.failures("host/device") == 0


def test_a_store_that_cannot_be_written_is_tried_again_and_then_the_sealed_log_is_published(worker, monkeypatch):
    publish, outage = module.publish, [1]

    def failing(*args, **kwargs):
        if outage:
            outage.pop()
            raise StoreUnavailable("disk full")
        return publish(*args, **kwargs)

    monkeypatch.setattr(module, "publish", failing)
    worker.sleep = lambda seconds: None
    states = list(worker.work())
    (failed,) = (state for state in states if state.error)
    assert (failed.status, failed.error, failed.sealed) == (Status.WAITING, JobError.UNAVAILABLE, f"{failed.number}.1")
    assert [state.number for state in states].count(failed.number) == 2
    assert worker.table.counts("r", 0.0).by_status == {Status.DONE: 2}
    assert [log.records for log in worker.logs.list()] == [3] * 2


def test_a_store_outage_is_waited_out_and_is_no_fault_of_the_device(worker, monkeypatch):
    def failing(*args, **kwargs):
        raise StoreUnavailable("no network")

    monkeypatch.setattr(module, "publish", failing)
    pauses_s = []
    worker.sleep = pauses_s.append
    states = list(worker.work())
    assert len(states) == 2 * RUN.max_tries > QUARANTINE_FAILURES
    assert pauses_s == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert worker.table.counts("r", 0.0).by_status == {Status.FAILED: 2}
    assert worker.table.failures("host/device") == 0
    monkeypatch.undo()
    monkeypatch.syspath_prepend(STUB)
    assert worker.queue.retry() == 2
    assert [state.status for state in worker.work()] == [Status.DONE] * 2  # what was sealed is published


def test_trials_that_a_lost_worker_did_not_tell_of_count_as_progress(worker):
    lost = worker.queue.claim("lost", TARGET.key, 0.0)
    with open_job_session(worker.root, worker.table.job("r", lost.number), lost) as session:
        session.append(0, Candidate({"run": 0.5}), Measurement(Outcome.OK, (0.5,)))
    states = {state.number: state for state in worker.work()}
    assert [states[number].tries for number in (0, 1)] == [1, 1]
    assert states[lost.number].token == 2
    assert states[lost.number].records == 3


def test_a_job_of_which_nothing_ran_fails_and_its_log_is_kept(worker, monkeypatch):
    monkeypatch.setattr(Listed, "schedules", [{"build": "raise"}, {"build": "segfault"}])
    states = list(itertools.islice(worker.work(), 1))
    assert (states[0].status, states[0].error) == (Status.FAILED, JobError.NOTHING_RAN)
    assert [(log.records, log.failed) for log in worker.logs.list()] == [(2, 2)]


def test_a_device_that_fails_every_job_is_quarantined_before_it_has_spoiled_all(tmp_path):
    url = str(tmp_path / "fleet.db")
    with open_jobs(url) as table, open_database(url) as database:
        worker = made(table, database, tmp_path, replace(RUN, targets=(BROKEN.key,)), BROKEN, 6)
        states = []
        with pytest.raises(BadInput, match="lorien jobs release host/device"):
            states.extend(worker.work())
        counts = table.counts("r", 0.0).by_status
        assert table.failures("host/device") == QUARANTINE_FAILURES
        assert counts == {Status.WAITING: 6}
        assert sum(state.tries for state in table.states("r")) == QUARANTINE_FAILURES
        assert any("did not start" in state.detail for state in table.states("r"))


def test_a_job_whose_lease_is_lost_is_left_to_its_new_owner(worker, monkeypatch):
    append, theft = module.Session.append, []

    def stolen(session, *args):
        append(session, *args)
        if not theft:
            theft.append(worker.queue.cancel())

    monkeypatch.setattr(module.Session, "append", stolen)
    monkeypatch.setattr(module, "HEARTBEATS_PER_LEASE", 1e5)
    until = module.Lease.check

    def checked(lease):
        if theft and lease._thread.ident and not lease._ended.is_set():
            lease._thread.join(10.0)  # the next heartbeat tells
        until(lease)

    monkeypatch.setattr(module.Lease, "check", checked)
    assert list(worker.work()) == []
    assert worker.table.counts("r", 0.0).by_status == {Status.CANCELLED: 2}
    assert list(worker.logs.list()) == []
    assert worker.queue.retry() == 2
