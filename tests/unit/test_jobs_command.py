"""``lorien jobs`` and ``lorien worker``, as one who looks after a run uses them."""

import json

import pytest
from typer.testing import CliRunner

from lorien.cli.app import app
from lorien.database.jobs import Job, JobError, Run, Status, open_jobs
from lorien.database.queue import JobQueue
from lorien.records import Workload
from lorien.target import Target

TARGET = Target.parse("llvm -num-cores=1")
DEVICE = f"host/{TARGET.key}"


@pytest.fixture
def db(tmp_path):
    """A run with a job that is done, one that failed, one whose worker was lost, and two that wait."""
    path = str(tmp_path / "fleet.db")
    with open_jobs(path, create=True) as table:
        run = Run("nightly", 0.0, {"trials": 3}, (TARGET.key,), lease_s=60.0)
        jobs = [Job(n, TARGET, (Workload("autotvm", f"dense{n}", ["dense", n]),)) for n in range(5)]
        table.add_run(run, jobs)
        queue = JobQueue(table, run)
        queue.finish(queue.seal(queue.claim("w1", TARGET.key, 1.0), "0.1", 3))
        queue.fail(queue.claim("w1", TARGET.key, 1.0), JobError.UNEXPECTED, "no [g++]", again=False)
        queue.claim("w2", TARGET.key, 1.0)
        for _ in range(3):
            table.count_failure(DEVICE)
    return path


def lorien(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def told(*words):
    answer = lorien(*words, "--json")
    assert answer.exit_code == 0, answer.stderr
    return json.loads(answer.stdout)


def test_what_a_run_is_doing_and_what_went_wrong(db):
    shown = lorien("jobs", "nightly", "--db", db)
    assert "1 done, 1 failed, 1 leased, 2 waiting (1 of them lapsed)" in shown.stdout
    assert "unexpected: no [g++]" in shown.stdout
    answer = told("jobs", "nightly", "--db", db)
    assert (answer["jobs"], answer["lapsed"]) == ({"done": 1, "failed": 1, "leased": 1, "waiting": 2}, 1)
    assert len(answer["listed"]) == 3
    assert told("jobs", "runs", "--db", db)["runs"][0]["run"] == "nightly"


def test_cancel_retry_and_release(db):
    assert told("jobs", "cancel", "nightly", "--db", db)["changed"] == 3
    assert told("jobs", "cancel", "nightly", "--db", db)["changed"] == 0
    retried = lorien("jobs", "retry", "nightly", "--db", db)
    assert "4 jobs wait for workers: lorien tune with --resume" in retried.stdout
    assert told("jobs", "nightly", "--db", db)["jobs"] == {"done": 1, "waiting": 4}
    assert told("jobs", "release", DEVICE, "--db", db) == {"device": DEVICE, "failures": 3}


def test_watch_follows_until_every_job_is_over(db, monkeypatch):
    def meanwhile(seconds):
        with open_jobs(db) as table:
            JobQueue(table, table.run("nightly")).cancel()

    monkeypatch.setattr("lorien.cli.fleet.time.sleep", meanwhile)
    watched = lorien("jobs", "nightly", "--db", db, "--watch")
    assert "2 waiting (1 of them lapsed)" in watched.stderr
    assert "3 cancelled" in watched.stdout
    with open_jobs(db) as table:
        assert table.counts("nightly", 0.0).by_status[Status.CANCELLED] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("jobs", "weekly"), "lorien jobs runs"),
        (("jobs", "cancel", "weekly"), "lorien jobs runs"),
        (("jobs", "release", "host/typo"), "as the worker's error has it"),
        (("worker", "--run", "weekly", "--logs", "x", "--target", "llvm -num-cores=1"), "lorien jobs runs"),
        (("worker", "--run", "nightly", "--logs", "x", "--target", "cuda -arch=sm_86"), f"--target of {TARGET.key}"),
    ],
)
def test_mistakes_are_told_with_what_to_do(db, words, said):
    answer = lorien(*words, "--db", db)
    assert answer.exit_code == 1
    assert said in answer.stderr


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    answer = lorien("jobs", "nightly", "--db", tmp_path / "none.db")
    assert answer.exit_code == 1
    assert not (tmp_path / "none.db").exists()
