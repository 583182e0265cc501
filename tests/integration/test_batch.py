"""A run on AWS Batch that really runs its jobs, with DynamoDB and S3, and workers that die and hang."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing

import boto3
import orjson
import pytest

from lorien.database.jobs import Status, open_jobs
from lorien.dialects import open_dialect
from lorien.dialects.base import ReadReport
from lorien.logs import open_logs
from lorien.s3 import S3Folder
from lorien.tune.remote import COPY

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

from tvm import IRModule, te

from lorien.dialects.metaschedule.workload import workload_of

LORIEN = [sys.executable, "-c", "from lorien.cli import main; main()"]
SIZES = (16, 24)
TRIALS = 10  # enough for workers to be caught at it
GIVE_UP_S = 150.0


@pytest.fixture
def queue(aws):
    """URL of a queue with a job definition of the name ``lorien``."""
    client = boto3.client("batch", endpoint_url=aws("batch"))
    name = f"queue-{uuid.uuid4().hex[:8]}"
    iam = boto3.client("iam", endpoint_url=aws("batch"))
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    iam.close()
    environment = client.create_compute_environment(
        computeEnvironmentName=name,
        type="UNMANAGED",
        state="ENABLED",
        serviceRole=role,
    )
    order = [{"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]}]
    client.create_job_queue(jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order)
    container = {"image": "lorien", "vcpus": 1, "memory": 4096, "command": ["true"]}
    client.register_job_definition(jobDefinitionName="lorien", type="container", containerProperties=container)
    yield f"batch://{name}?endpoint_url={aws('batch')}"
    client.close()


@pytest.fixture
def command(tmp_path, aws, s3_folder, queue):
    """A run of small jobs, not yet started."""
    workloads = tmp_path / "workloads.jsonl"
    workloads.write_bytes(b"".join(orjson.dumps(workload(size).to_json()) + b"\n" for size in SIZES))
    db, logs = f"dynamodb://run-{uuid.uuid4().hex}?endpoint_url={aws('dynalite')}", s3_folder("seaweedfs")
    subprocess.run([*LORIEN, "database", "create", db], check=True, capture_output=True)
    where = ["--db", db, "--logs", logs, "--run", "r", "--lease", "3", "--workers", "2"]
    how = ["--trials", str(TRIALS * len(SIZES)), "--strategy", "replay", "--batch", "2", "--json"]
    batch = ["--executor", "batch", "--batch-queue", queue, "--batch-definition", "lorien"]
    return [*LORIEN, "tune", str(workloads), *where, *how, *batch], db, logs


def workload(size):
    a, b = (te.placeholder((size, size), name=name) for name in "AB")
    k = te.reduce_axis((0, size))
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    return workload_of(IRModule({"main": te.create_prim_func([a, b, c])}), f"matmul{size}")


def wait_for(what, db, driver):
    until_s = time.monotonic() + GIVE_UP_S
    with open_jobs(db, create=False) as table:
        while time.monotonic() < until_s:
            assert driver.poll() is None, driver.communicate()
            states = list(table.states("r")) if table.run("r") is not None else []
            if found := [state for state in states if what(state)]:
                return found[0]
            time.sleep(0.1)
    raise AssertionError(states)


def measuring(state):
    return state.status is Status.LEASED and state.records > 0


def pid_of(state):
    return int(state.worker.rsplit(":", 2)[1])


def wait_for_batch(what, aws, queue_url):
    """Wait until something is true of the jobs of a queue, by their names."""
    name = queue_url.removeprefix("batch://").partition("?")[0]
    until_s = time.monotonic() + GIVE_UP_S
    with closing(boto3.client("batch", endpoint_url=aws("batch"))) as client:
        while True:
            jobs = {
                job["jobId"]: job
                for status in ("RUNNING", "SUCCEEDED", "FAILED")
                for job in client.list_jobs(jobQueue=name, jobStatus=status)["jobSummaryList"]
            }
            if what(jobs):
                return jobs
            assert time.monotonic() < until_s, jobs
            time.sleep(0.1)


def check(logs):
    """Every job has its log in the store, each with its trials once; the lines of all."""
    store, lines = open_logs(logs), set()
    stored = list(store.list())
    assert len(stored) == len(SIZES)
    for log in stored:
        with store.local(log) as path:
            keys = [record.candidate.key for record in open_dialect(log.dialect).read(path, log.info, ReadReport())]
            lines.update((path / "database_tuning_record.json").read_bytes().splitlines())
        assert len(set(keys)) == len(keys) == TRIALS
    assert not any(S3Folder(logs).pages("sessions/r/"))
    return lines


def copied(logs):
    """Records in the copies of sessions."""
    s3, lines = S3Folder(logs), set()
    for name in (name for page in s3.pages("sessions/r/") for name in page if name.endswith(f"/{COPY}")):
        pieces = orjson.loads(s3.read(name).content)["files"].get("database_tuning_record.json", ())
        for piece in pieces:
            lines.update(s3.read(name.replace(COPY, piece["name"])).content.splitlines())
    return lines


def test_workers_that_die_and_hang_lose_nothing(command, aws, queue):
    arguments, db, logs = command
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        try:
            hung = wait_for(measuring, db, driver)
            os.kill(pid_of(hung), signal.SIGSTOP)
            other = wait_for(lambda state: measuring(state) and state.worker != hung.worker, db, driver)
            os.kill(pid_of(other), signal.SIGKILL)
            output, errors = driver.communicate(timeout=GIVE_UP_S)
        finally:
            driver.kill()
    assert driver.returncode == 0, errors
    assert json.loads(output)["jobs"] == {"done": len(SIZES)}
    assert "its lease has lapsed" in errors
    name = hung.worker.rsplit(":", 2)[0]
    # A stopped process ends when Batch kills it, seconds after it was asked: the run may be over by then.
    ended = wait_for_batch(lambda jobs: jobs.get(name, {}).get("status") == "FAILED", aws, queue)[name]
    assert ended["statusReason"] == "lorien: its lease has lapsed"
    check(logs)


def test_an_interrupt_ends_the_workers_and_the_next_run_goes_on(command, aws, queue):
    arguments, db, logs = command
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        try:
            wait_for(measuring, db, driver)
            driver.send_signal(signal.SIGINT)
            output, errors = driver.communicate(timeout=GIVE_UP_S)
        finally:
            driver.kill()
    assert driver.returncode == 130, errors
    answer = json.loads(output)
    assert answer["interrupted"]
    wait_for_batch(lambda jobs: all(job["status"] != "RUNNING" for job in jobs.values()), aws, queue)
    kept = copied(logs)
    store = open_logs(logs)
    for log in store.list():  # of jobs that were done by then
        with store.local(log) as path:
            kept.update((path / "database_tuning_record.json").read_bytes().splitlines())
    assert len(kept) >= answer["trials"] > 0
    done = subprocess.run([*arguments, "--resume"], capture_output=True, text=True, timeout=GIVE_UP_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == {"done": len(SIZES)}
    assert kept <= check(logs)
