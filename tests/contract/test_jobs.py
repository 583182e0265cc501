"""One suite for every job table: claims, leases, fencing, and any interleaving of workers."""

from __future__ import annotations

import multiprocessing
import os
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from servers import DATABASES, RACED

from lorien.database import open_database
from lorien.database.jobs import GRACE_S, Counts, Job, JobError, JobState, JobTable, Run, Status, open_jobs
from lorien.database.queue import JobQueue, find_run
from lorien.errors import BadInput, LeaseLost
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

FORK = multiprocessing.get_context("fork")
TARGET, OTHER = Target.parse("cuda -arch=sm_86"), Target.parse("llvm -mcpu=znver4")
RUN = Run("nightly", 1.7e9, {"trials": 16}, (TARGET.key,), lease_s=60.0, max_tries=3)
LAPSE_S = RUN.lease_s + GRACE_S + 1

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def made(number: int, target: Target = TARGET, definition: str = "") -> Job:
    return Job(number, target, (Workload("autotvm", f"dense{number}", ["dense", number], definition),))


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/best.db"
    aws: Callable[[str], str] = request.getfixturevalue("aws")
    return f"dynamodb://jobs-{uuid.uuid4().hex}?endpoint_url={aws(request.param)}"


@pytest.fixture
def table(url: str) -> Iterator[JobTable]:
    with open_jobs(url, create=True) as opened:
        yield opened


def queue_of(table: JobTable, jobs: int = 1, run: Run = RUN) -> JobQueue:
    table.add_run(run, (made(number) for number in range(jobs)))
    return JobQueue(table, find_run(table, run.name))


def taken(queue: JobQueue, now_s: float = 0.0, worker: str = "w") -> JobState:
    state = queue.claim(worker, TARGET.key, now_s)
    assert state is not None
    return state


def test_a_run_comes_back_and_adding_it_again_changes_nothing(table: JobTable) -> None:
    assert table.run("nightly") is None
    queue = queue_of(table, 3)
    assert queue.run == RUN
    queue.finish(taken(queue))
    table.add_run(replace(RUN, max_tries=9), [made(0), made(1), made(2)])
    assert table.run("nightly") == RUN
    assert table.counts("nightly", 0.0) == Counts({Status.WAITING: 2, Status.DONE: 1}, 0, 0)
    assert table.job("nightly", 2) == made(2)
    table.add_run(replace(RUN, name="another"), [])
    assert [run.name for run in table.runs()] == ["another", "nightly"]
    with pytest.raises(BadInput, match="no job 7"):
        table.job("nightly", 7)
    with pytest.raises(BadInput, match="no run"):
        find_run(table, "never")


def test_jobs_and_schedules_share_a_database_and_do_not_meet(url: str, table: JobTable) -> None:
    queue_of(table, 3)
    record = TuningRecord(made(0).workloads[0], TARGET, Candidate([1]), Measurement(Outcome.OK, (1.0,)), "tvm 1")
    with open_database(url, create=True) as database:
        database.put(record)
        assert [found.key for found in database.query()] == [record.key]
        assert database.stats().records == 1
    assert len(list(table.states("nightly"))) == 3


def test_a_job_goes_to_one_worker_and_only_where_its_target_is(table: JobTable) -> None:
    table.add_run(RUN, [made(0), made(1, OTHER)])
    queue = JobQueue(table, RUN)
    job = taken(queue)
    assert (job.number, job.status, job.token, job.tries, job.worker) == (0, Status.LEASED, 1, 1, "w")
    assert queue.claim("v", TARGET.key, 1.0) is None
    other = queue.claim("v", OTHER.key, 1.0)
    assert other is not None
    assert other.number == 1


def test_a_lapsed_job_goes_to_another_and_the_first_is_fenced_off(table: JobTable) -> None:
    queue = queue_of(table)
    first = taken(queue, 0.0, "first")
    first = queue.heartbeat(first, 5, 50.0)
    assert queue.claim("second", TARGET.key, 50.0 + RUN.lease_s + GRACE_S) is None
    assert table.counts("nightly", 50.0 + LAPSE_S).lapsed == 1
    second = taken(queue, 50.0 + LAPSE_S, "second")
    assert (second.number, second.token, second.records) == (0, 2, 5)
    for refused in (
        lambda: queue.heartbeat(first, 6, 200.0),
        lambda: queue.seal(first, "0.1", 16),
        lambda: queue.finish(first),
        lambda: queue.fail(first, JobError.UNEXPECTED, "late", again=True),
        lambda: queue.give_back(first),
    ):
        with pytest.raises(LeaseLost, match="second"):
            refused()
    second = queue.seal(second, "0.2", 16)
    assert queue.finish(second).status is Status.DONE
    assert table.state("nightly", 0).sealed == "0.2"
    assert table.counts("nightly", 500.0) == Counts({Status.DONE: 1}, 0, 16)


def test_a_heartbeat_of_an_old_state_still_counts(table: JobTable) -> None:
    """The answer to a request may be lost: the token tells whose it is, not the version."""
    queue = queue_of(table)
    job = taken(queue)
    queue.heartbeat(job, 1, 10.0)
    assert queue.heartbeat(job, 2, 20.0).lease_until_s == 20.0 + RUN.lease_s


def test_a_job_that_keeps_losing_its_workers_is_set_aside(table: JobTable) -> None:
    queue = queue_of(table)
    for attempt in range(RUN.max_tries):
        assert taken(queue, attempt * LAPSE_S, f"w{attempt}").tries == attempt + 1
    assert queue.claim("w9", TARGET.key, 9 * LAPSE_S) is None
    state = table.state("nightly", 0)
    assert (state.status, state.error) == (Status.SET_ASIDE, JobError.WORKER_LOST)
    assert "w2" in state.detail
    assert queue.retry() == 1
    assert taken(queue, 10 * LAPSE_S).token == RUN.max_tries + 1


def test_a_job_that_gets_on_may_lose_any_number_of_workers(table: JobTable) -> None:
    queue = queue_of(table)
    for attempt in range(3 * RUN.max_tries):
        queue.heartbeat(taken(queue, attempt * LAPSE_S), attempt + 1, attempt * LAPSE_S)
    for attempt in range(3 * RUN.max_tries, 4 * RUN.max_tries - 1):
        queue.heartbeat(taken(queue, attempt * LAPSE_S), 3 * RUN.max_tries, attempt * LAPSE_S)
    assert queue.claim("w9", TARGET.key, 4 * RUN.max_tries * LAPSE_S) is None
    assert table.state("nightly", 0).status is Status.SET_ASIDE


def test_failures_are_tried_again_as_often_as_the_run_allows(table: JobTable) -> None:
    queue = queue_of(table, 2)
    for attempt in range(RUN.max_tries):
        states = [taken(queue, attempt), taken(queue, attempt)]
        states.sort(key=lambda state: state.number)
        ends = [queue.fail(state, JobError.UNAVAILABLE, "no S3", again=True) for state in states]
        expected = Status.WAITING if attempt + 1 < RUN.max_tries else Status.FAILED
        assert [end.status for end in ends] == [expected] * 2
    assert queue.claim("w", TARGET.key, 10.0) is None
    assert table.state("nightly", 0).detail == "no S3"
    queue.retry()
    assert queue.fail(taken(queue), JobError.BAD_INPUT, "x" * 9999, again=False).status is Status.FAILED
    given = queue.give_back(taken(queue))
    assert (given.status, given.tries) == (Status.WAITING, 0)


def test_what_failed_waits_behind_what_nobody_tried(table: JobTable) -> None:
    queue = queue_of(table, 4)
    for tries in (1, 2):
        for _ in range(4):
            job = taken(queue)
            assert job.tries == tries
            queue.fail(job, JobError.UNEXPECTED, "no such device", again=True)


def test_cancel_ends_what_is_open_and_retry_brings_it_back(table: JobTable) -> None:
    queue = queue_of(table, 4)
    queue.finish(taken(queue))
    running = taken(queue)
    assert queue.cancel() == 3
    with pytest.raises(LeaseLost, match="cancelled"):
        queue.heartbeat(running, 1, 1.0)
    assert queue.claim("w", TARGET.key, 1.0) is None
    assert queue.cancel() == 0
    assert queue.retry() == 3
    assert table.counts("nightly", 0.0).by_status == {Status.WAITING: 3, Status.DONE: 1}


def test_what_is_sealed_is_published_by_whoever_takes_over(table: JobTable) -> None:
    queue = queue_of(table)
    queue.seal(taken(queue), "0.1", 16)
    again = taken(queue, LAPSE_S)
    assert again.sealed == "0.1"
    queue.fail(again, JobError.NOTHING_RAN, "all failed", again=False)
    queue.retry()
    assert taken(queue).sealed == ""  # it is published, and there was nothing good in it: tuned anew


def test_failures_of_a_device_are_counted_until_it_works(table: JobTable) -> None:
    assert [table.count_failure("host/cuda") for _ in range(3)] == [1, 2, 3]
    assert (table.failures("host/cuda"), table.failures("other/cuda")) == (3, 0)
    table.forget_failures("host/cuda")
    assert table.failures("host/cuda") == 0


def test_no_job_is_too_large(table: JobTable) -> None:
    definition = random.Random(0).randbytes(700_000).hex()  # does not shrink to what DynamoDB takes
    for _ in range(2):  # adding it again changes nothing
        table.add_run(RUN, [made(0, definition=definition)])
        assert table.job("nightly", 0) == made(0, definition=definition)


def test_jobs_stream_in_order(table: JobTable) -> None:
    queue_of(table, 150)
    assert [state.number for state in table.states("nightly")] == list(range(150))
    assert [state.number for state in table.states("nightly", after=147)] == [148, 149]


def _take_all(url: str, worker: str, told: int) -> None:
    with open_jobs(url) as table:
        queue = JobQueue(table, find_run(table, "nightly"))
        while state := queue.claim(worker, TARGET.key, 1.0):
            queue.finish(state)
            os.write(told, f"{state.number}\n".encode())


@RACED
def test_eight_workers_do_each_job_once(url: str, table: JobTable) -> None:
    queue_of(table, 60)
    read, write = os.pipe()
    workers = [FORK.Process(target=_take_all, args=(url, f"w{worker}", write)) for worker in range(8)]
    for worker in workers:
        worker.start()
    os.close(write)
    for worker in workers:
        worker.join()
    with os.fdopen(read) as told:
        numbers = sorted(map(int, told.read().split()))
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert numbers == list(range(60))


class Workers(RuleBasedStateMachine):
    """Workers that claim, beat, die and wake up again in any order, and what every observer may rely on."""

    names = count()

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.held: list[JobState] = []
        self.winners: Counter[int] = Counter()
        self.latest_token: Counter[int] = Counter()

    table: JobTable

    @initialize(jobs=st.integers(1, 3), tries=st.integers(1, 3))
    def begin(self, jobs: int, tries: int) -> None:
        run = replace(RUN, name=f"run{next(self.names)}", max_tries=tries)
        self.queue = queue_of(self.table, jobs, run)

    @rule(seconds=st.sampled_from([1.0, RUN.lease_s, LAPSE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def claim(self) -> None:
        state = self.queue.claim(f"w{next(self.names)}", TARGET.key, self.now_s)
        if state is not None:
            assert state.token == self.latest_token[state.number] + 1
            self.latest_token[state.number] = state.token
            self.held.append(state)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), act=st.sampled_from(["heartbeat", "finish", "fail", "seal", "give_back"]))
    def act(self, data: st.DataObject, act: str) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        held = self.held[index]
        acts = {
            "heartbeat": lambda: self.queue.heartbeat(held, 1, self.now_s),
            "seal": lambda: self.queue.seal(held, f"{held.number}.{held.token}", 1),
            "finish": lambda: self.queue.finish(held),
            "fail": lambda: self.queue.fail(held, JobError.UNEXPECTED, "", again=True),
            "give_back": lambda: self.queue.give_back(held),
        }
        before = self.table.state(self.queue.run.name, held.number)
        holds = before.status is Status.LEASED and before.token == held.token
        try:
            self.held[index] = acts[act]()
        except LeaseLost:
            assert not holds or act == "unreachable"
        else:
            assert holds, "a stale token was taken"
            self.winners[held.number] += act == "finish"

    @rule()
    def retry(self) -> None:
        self.queue.retry()

    @rule()
    def cancel(self) -> None:
        self.queue.cancel()

    @invariant()
    def one_winner(self) -> None:
        if not hasattr(self, "queue"):
            return
        states = list(self.table.states(self.queue.run.name))
        for state in states:
            assert self.winners[state.number] == (state.status is Status.DONE)
            assert state.token == self.latest_token[state.number]
            assert state.tries <= self.queue.run.max_tries
        counts = self.table.counts(self.queue.run.name, self.now_s)
        assert counts.by_status == Counter(state.status for state in states)
        assert counts.lapsed == sum(state.lapsed(self.now_s) for state in states)


def test_any_interleaving_has_one_winner_per_job(tmp_path: Path) -> None:
    with open_jobs(f"sqlite:///{tmp_path}/jobs.db", create=True) as table:
        machine = type("Machine", (Workers,), {"table": table})
        settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
        hypothesis.stateful.run_state_machine_as_test(machine, settings=settings)
