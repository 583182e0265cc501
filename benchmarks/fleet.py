"""How a run of jobs fares under kills, and what handing out jobs costs.

    python benchmarks/fleet.py [--kills] [--jobs 200 --trials 16 --kill-every-s 20] [--overhead --count 10000]

``--kills`` tunes on a Ray cluster of two nodes on this machine, once in peace and once with a worker killed now and
then. ``--overhead`` does jobs of no work, in SQLite and, with a tenth of the jobs, in dynalite, whose processor time is
in the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
from harness import BIN, machine, markdown

from lorien.database.jobs import Job, JobTable, Run, Status, open_jobs
from lorien.database.queue import JobQueue, find_run
from lorien.dialects import open_dialect, resolve_target
from lorien.dialects.base import ReadReport
from lorien.logs import open_logs
from lorien.records import Workload
from lorien.target import Target

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import servers

LEASE_S = 5
CPU = Target.parse("llvm -num-cores=1")


def small_workloads(count: int) -> Iterator[Workload]:
    """Matrix products of distinct small shapes."""
    shapes = itertools.product(range(16, 88, 8), range(16, 88, 8), (16, 32, 48))
    return itertools.starmap(matmul, itertools.islice(shapes, count))


def matmul(m: int, n: int, k: int) -> Workload:
    """One of m x k by k x n."""
    import tvm
    from tvm import te

    from lorien.dialects.metaschedule.workload import workload_of

    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis((0, k))
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="C")
    module = tvm.IRModule({"main": te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")})
    return workload_of(module, f"matmul{m}x{n}x{k}", networks=("fleet",))


def kills(scratch: Path, jobs: int, trials: int, every_s: float) -> None:
    """A run in peace, and one under kills; every record that was in a session's log must be in the store at the end."""
    workloads = scratch / "workloads.jsonl"
    workloads.write_bytes(b"".join(orjson.dumps(w.to_json()) + b"\n" for w in small_workloads(jobs)))
    rows = []
    with nodes() as address:
        for name, interval_s in (("none", None), (f"a worker each {every_s:g} s", every_s)):
            rows.append([name, *tuned(scratch / name.replace(" ", "-"), workloads, jobs, trials, address, interval_s)])
    print(f"\n{jobs} jobs of {trials} trials, two Ray nodes of one worker each, lease {LEASE_S} s, {machine()}\n")
    columns = ["kills", "seconds", "jobs done", "killed", "records", "lost", "doubled", "claims beyond the first"]
    print(markdown(columns, rows))
    print(f"\noverhead of the kills: {rows[1][1] / rows[0][1] - 1:+.1%}")


@contextmanager
def nodes() -> Iterator[str]:
    """The address of a cluster: a head without a device, and two nodes of one each. Only this machine reaches it."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    os.environ |= {"RAY_AUTH_TOKEN": secrets.token_hex(), "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={resolve_target("native", "metaschedule").key: 1})
        yield cluster.address
    finally:
        cluster.shutdown()


def tuned(folder: Path, workloads: Path, jobs: int, trials: int, address: str, every_s: float | None) -> list[Any]:
    """One run, and what is left of it."""
    folder.mkdir()
    logs, db = folder / "logs", f"sqlite:///{folder}/fleet.db"
    command = [BIN / "lorien", "tune", workloads, "--trials", jobs * trials, "--logs", logs, "--db", db, "--run", "r"]
    command += ["--executor", "ray", "--ray-address", address, "--workers", 2, "--lease", LEASE_S]
    command += ["--strategy", "replay", "--batch", 8, "--json"]
    started_s = time.perf_counter()
    killed = 0
    acknowledged: set[bytes] = set()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE) as process:
        next_s = started_s + (every_s or float("inf"))
        while process.poll() is None:
            if time.perf_counter() >= next_s and (worker := any_worker(db)):
                for records in (logs / "sessions" / "r").glob("*/database_tuning_record.json"):
                    # The last line may be one that nobody was told of.
                    acknowledged.update(records.read_bytes().splitlines()[:-1])
                worker.kill()
                killed += 1
                next_s += every_s or 0.0
            time.sleep(0.1)
        output, _ = process.communicate()
    seconds = time.perf_counter() - started_s
    with open_jobs(db) as table:
        claims = sum(state.token - 1 for state in table.states("r"))
    answer = json.loads(output)
    lines, keys = Counter(), Counter()
    store = open_logs(str(logs))
    for log in store.list():
        with store.local(log) as path:
            lines.update((path / "database_tuning_record.json").read_bytes().splitlines())
            records = open_dialect(log.dialect).read(path, log.info, ReadReport())
            keys.update((record.workload.key, record.candidate.key) for record in records)
    doubled = sum((lines - Counter(set(lines))).values()) + sum((keys - Counter(set(keys))).values())
    done = answer["jobs"].get("done", 0)
    return [seconds, done, killed, lines.total(), len(acknowledged - set(lines)), doubled, claims]


def any_worker(db: str) -> psutil.Process | None:
    """The process that holds some job, by lot."""
    with open_jobs(db) as table:
        held = [state for state in table.states("r") if state.status is Status.LEASED]
    for state in random.sample(held, len(held)):
        try:
            return psutil.Process(int(state.worker.split(":")[1]))
        except psutil.NoSuchProcess:
            continue
    return None


class Counted:
    """A job table that counts what is asked of it."""

    def __init__(self, table: JobTable) -> None:
        self._table = table
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls[name] += 1
            return getattr(self._table, name)(*args)

        return call


def overhead(scratch: Path, count: int) -> None:
    """Jobs of no work: what a worker does beside tuning, and the driver's look at the counts once for ten jobs."""
    log = scratch / "dynalite"
    log.mkdir()
    server = servers.dynalite(log)
    try:
        urls = {
            "SQLite": (f"sqlite:///{scratch}/jobs.db", count),
            "DynamoDB (dynalite)": (f"dynamodb://jobs?endpoint_url={server.url}", count // 10),
        }
        rows = [[name, jobs, *handed_out(url, jobs)] for name, (url, jobs) in urls.items()]
    finally:
        server.kill()
    print(f"\nJobs of no work, one worker, {machine()}\n")
    columns = ["database", "jobs", "made ms/job", "ms/job", "first 10 %", "last 10 %", "operations/job", "counts ms"]
    print(markdown([*columns, "memory grew MiB"], rows))


def handed_out(url: str, count: int) -> list[float]:
    """Make and do so many jobs."""
    run = Run("empty", time.time(), targets=(CPU.key,))
    with open_jobs(url, create=True) as opened:
        started_s = time.perf_counter()
        opened.add_run(run, (Job(n, CPU, (Workload("autotvm", f"dense{n}", ["dense", n]),)) for n in range(count)))
        made_s = time.perf_counter() - started_s
        table: Any = Counted(opened)
        queue = JobQueue(table, find_run(opened, run.name))
        process = psutil.Process()
        before_bytes = process.memory_info().rss
        times = [took(queue, table) for _ in range(count)]
        grew_bytes = process.memory_info().rss - before_bytes
        operations = table.calls.total() / count
        started_s = time.perf_counter()
        counts = opened.counts(run.name, time.time())
        counts_s = time.perf_counter() - started_s
        if counts.by_status != {Status.DONE: count}:
            sys.exit(f"not every job is done: {counts}")
    tenth = count // 10
    means_s = [sum(part) / len(part) for part in (times, times[:tenth], times[-tenth:])]
    figures_s = [made_s / count, *means_s]
    return [*(1e3 * s for s in figures_s), operations, 1e3 * counts_s, grew_bytes / 2**20]


def took(queue: JobQueue, table: JobTable) -> float:
    """Seconds of all that a worker asks of the database for one job that is short enough for one heartbeat."""
    started_s = time.perf_counter()
    table.failures("device")
    job = queue.claim("worker", CPU.key, time.time())
    if job is None:
        sys.exit("jobs are left, and none can be had")
    table.job(queue.run.name, job.number)
    job = queue.heartbeat(job, 8, time.time())
    queue.finish(queue.seal(job, f"{job.number}.{job.token}", 16))
    return time.perf_counter() - started_s


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", action="store_true")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--kill-every-s", type=float, default=20.0)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args()
    os.environ |= servers.ENVIRONMENT
    with tempfile.TemporaryDirectory() as scratch:
        if asked.overhead:
            overhead(Path(scratch), asked.count)
        if asked.kills:
            kills(Path(scratch), asked.jobs, asked.trials, asked.kill_every_s)


if __name__ == "__main__":
    main()
