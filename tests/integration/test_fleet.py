"""Runs of jobs on this machine and on a Ray cluster, on a real tuner, with workers, nodes and drivers killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
import psutil
import pytest
import tvm
from tvm import te

from lorien.database import open_database
from lorien.database.jobs import Status, open_jobs
from lorien.dialects import open_dialect, resolve_target
from lorien.dialects.base import ReadReport
from lorien.dialects.metaschedule.workload import workload_of
from lorien.logs import open_logs

long = pytest.mark.skipif(
    "LORIEN_FLEET" not in os.environ, reason="minutes of runs with kills: set LORIEN_FLEET=1 to run them"
)

SIZES = (16, 32, 48)
TRIALS = 6
LORIEN = [sys.executable, "-c", "from lorien.cli import main; main()"]
GIVE_UP_S = 120.0


def workload(size):
    a, b = (te.placeholder((size, size), name=name) for name in "AB")
    k = te.reduce_axis((0, size))
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    module = tvm.IRModule({"main": te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")})
    return workload_of(module, f"matmul{size}", networks=("small",))


class Fleet:
    """A run, its database and its logs, and what happens to it."""

    def __init__(self, folder, *options, sizes=SIZES, lease_s=2):
        self.jobs = len(sizes)
        self.logs, self.db = folder / "logs", f"sqlite:///{folder}/fleet.db"
        workloads = folder / "workloads.jsonl"
        workloads.write_bytes(b"".join(orjson.dumps(workload(size).to_json()) + b"\n" for size in sizes))
        self.command = ["tune", workloads, "--logs", self.logs, "--db", self.db, "--run", "r", *options]
        self.command += ["--trials", TRIALS * self.jobs, "--strategy", "replay", "--batch", 2]
        self.command += ["--lease", lease_s, "--json"]
        self.acknowledged = set()

    @contextmanager
    def driver(self, *options):
        """A driver in the background, killed when the block ends."""
        command = [*LORIEN, *map(str, [*self.command, *options])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def wait_for(self, what, process):
        """Wait until something is true of the states of the jobs; the states. The driver lives meanwhile."""
        until_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < until_s:
            assert process.poll() is None, process.communicate()
            with suppress(Exception), open_jobs(self.db, create=False) as table:
                states = list(table.states("r"))
                if states and what(states):
                    self.remember()
                    return states
            time.sleep(0.05)
        raise AssertionError(f"never happened: {states}")

    def remember(self):
        """What is in the logs of sessions and of jobs done now, no kill may take away."""
        for records in (self.logs / "sessions" / "r").glob("*/database_tuning_record.json"):
            with suppress(FileNotFoundError):
                # The last may be a record that nobody was told of, by a worker that is fenced off by now.
                self.acknowledged.update(records.read_bytes().splitlines()[:-1])

    def worker(self, states):
        """Process id of a worker that has measured something."""
        return next(int(s.worker.split(":")[1]) for s in states if s.status is Status.LEASED and s.records)

    def check(self, answer):
        """Every job is done, nothing acknowledged is lost, nothing is there twice."""
        assert answer["jobs"] == {"done": self.jobs}
        store = open_logs(str(self.logs))
        stored = list(store.list())
        assert len(stored) == self.jobs
        lines = []
        for log in stored:
            with store.local(log) as path:
                lines += (path / "database_tuning_record.json").read_bytes().splitlines()
                records = list(open_dialect(log.dialect).read(path, log.info, ReadReport()))
                keys = [(record.workload.key, record.candidate.key) for record in records]
                assert len(set(keys)) == len(keys) == TRIALS
        assert len(set(lines)) == len(lines) == answer["trials"] == TRIALS * self.jobs
        assert self.acknowledged <= set(lines)
        assert not list((self.logs / "sessions" / "r").iterdir())
        with open_database(self.db) as database:
            assert database.stats().workloads == self.jobs


def running(states):
    return any(state.status is Status.LEASED and state.records for state in states)


def done(process):
    output, errors = process.communicate(timeout=GIVE_UP_S)
    assert process.returncode == 0, errors
    return json.loads(output)


def lorien(*arguments):
    return subprocess.run([*LORIEN, *map(str, arguments)], capture_output=True, text=True, timeout=GIVE_UP_S)


def test_a_worker_killed_on_this_machine(tmp_path):
    fleet = Fleet(tmp_path, sizes=SIZES[:2])
    with fleet.driver() as process:
        psutil.Process(fleet.worker(fleet.wait_for(running, process))).kill()
        fleet.check(done(process))


def test_a_worker_killed_on_a_ray_cluster_that_only_this_machine_reaches(tmp_path):
    fleet = Fleet(tmp_path, "--executor", "ray", sizes=SIZES[:2])
    with fleet.driver() as process:
        killed = fleet.worker(fleet.wait_for(running, process))
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        psutil.Process(killed).kill()
        listening = [wire.laddr.ip for own in family for wire in connections(own) if wire.status == psutil.CONN_LISTEN]
        assert len(listening) > 3
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
        raylet = next(own for own in family if own.name() == "raylet")
        assert raylet.environ()["RAY_AUTH_MODE"] == "token"
        assert len(raylet.environ()["RAY_AUTH_TOKEN"]) == 64
        fleet.check(done(process))


def connections(process):
    """Its sockets; none when it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.net_connections(kind="inet")
    return []


@long
def test_workers_and_the_driver_killed_on_this_machine(tmp_path):
    fleet = Fleet(tmp_path)
    with fleet.driver() as process:
        killed = fleet.worker(fleet.wait_for(running, process))
        psutil.Process(killed).kill()
        states = fleet.wait_for(lambda states: running(states) and fleet.worker(states) != killed, process)
        process.kill()  # its worker goes on
        process.wait()
    assert lorien(*fleet.command).returncode == 1  # a run is not started twice by mistake
    other = lorien(*fleet.command, "--resume", "--batch", 3)
    assert (other.returncode, "other options" in other.stderr) == (1, True)
    with fleet.driver("--resume") as process:
        fleet.wait_for(lambda states: sum(s.status is Status.DONE for s in states) >= 2, process)
        answer = done(process)
    fleet.check(answer)
    assert max(state.tries for state in states) <= 3
    shown = json.loads(lorien("jobs", "r", "--db", fleet.db, "--json").stdout)
    assert (shown["jobs"], shown["trials"]) == (answer["jobs"], answer["trials"])
    assert len(shown["listed"]) == len(SIZES)
    (run,) = json.loads(lorien("jobs", "runs", "--db", fleet.db, "--json").stdout)["runs"]
    assert run["run"] == "r"


@long
def test_a_worker_stopped_longer_than_its_lease_writes_nothing_when_it_wakes(tmp_path):
    fleet = Fleet(tmp_path, "--workers", 2)
    with fleet.driver() as process:
        states = fleet.wait_for(running, process)
        stopped = fleet.worker(states)
        os.kill(stopped, signal.SIGSTOP)
        try:
            fleet.wait_for(lambda states: all(str(stopped) not in s.worker for s in states), process)
        finally:
            os.kill(stopped, signal.SIGCONT)
        fleet.check(done(process))


@long
def test_cancel_and_retry(tmp_path):
    fleet = Fleet(tmp_path)
    with fleet.driver() as process:
        fleet.wait_for(running, process)
        cancelled = json.loads(lorien("jobs", "cancel", "r", "--db", fleet.db, "--json").stdout)
        _, errors = process.communicate(timeout=GIVE_UP_S)
        assert process.returncode == 1
        assert "lorien jobs r" in errors
    retried = json.loads(lorien("jobs", "retry", "r", "--db", fleet.db, "--json").stdout)
    assert retried == cancelled
    with fleet.driver("--resume") as process:
        fleet.check(done(process))


@long
def test_an_interrupt_gives_the_jobs_back(tmp_path):
    fleet = Fleet(tmp_path, lease_s=600)
    with fleet.driver() as process:
        fleet.wait_for(running, process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=GIVE_UP_S)
        assert process.returncode == 130
    answer = json.loads(output)
    assert answer["interrupted"]
    assert "leased" not in answer["jobs"]
    with fleet.driver("--resume") as process:
        fleet.check(done(process))


@pytest.fixture(scope="module")
def cluster():
    """A head that has no device, and nodes to be added, each of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield made
        made.shutdown()


@long
def test_workers_nodes_and_the_driver_killed_on_a_ray_cluster(tmp_path, cluster):
    device = {resolve_target("native", "metaschedule").key: 1}
    nodes = [cluster.add_node(num_cpus=1, resources=device) for _ in range(2)]
    options = ("--executor", "ray", "--ray-address", cluster.address, "--workers", 2)
    fleet = Fleet(tmp_path, *options)
    with fleet.driver() as process:
        killed = fleet.worker(fleet.wait_for(running, process))
        psutil.Process(killed).kill()
        fleet.wait_for(lambda states: running(states) and fleet.worker(states) != killed, process)
        cluster.remove_node(nodes[0], allow_graceful=False)
        fleet.wait_for(lambda states: any(s.status is Status.DONE for s in states), process)
        process.kill()
        process.wait()
    with fleet.driver("--resume") as process:
        fleet.check(done(process))

    local, spread = tmp_path / "local", tmp_path / "spread"
    answers = [lorien("featurize", fleet.logs, "-o", local, "--json")]
    answers += [
        lorien("featurize", fleet.logs, "-o", spread, "--executor", "ray", "--ray-address", cluster.address, "--json")
    ]
    rows = [json.loads(answer.stdout)["rows"] for answer in answers]
    assert rows == [TRIALS * len(SIZES)] * 2
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.parquet")) for folder in (local, spread)]
    assert names[0] == names[1]
    cluster.remove_node(nodes[1])


def test_a_cluster_that_is_not_there_is_said_so(tmp_path):
    answer = lorien(*Fleet(tmp_path, "--executor", "ray", "--ray-address", "127.0.0.1:1").command)
    assert answer.returncode == 1
    assert "--ray-address" in answer.stderr
    assert Path(tmp_path / "fleet.db").exists()  # the jobs are there: the same command goes on with --resume
