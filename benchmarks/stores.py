"""How fast the stores are, and whether they keep what they were given while many write.

    python benchmarks/stores.py [--databases] [--listing] [--featurize --data DATASETS]

Starts the servers of the tests: dynalite and moto for DynamoDB, SeaweedFS for S3. All of them share this machine with
what is measured, so the figures say more about a change of Lorien than about AWS. ``DATASETS`` holds
``autotvm/<device>/<network>.log.gz``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import orjson
import psutil
from harness import machine, markdown, run

from lorien.database import open_database
from lorien.database.dynamodb import DynamoDatabase
from lorien.logs import open_logs
from lorien.logs.base import SIDECAR, StoredLog
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.s3 import S3Folder
from lorien.target import Target

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import servers

WRITERS, WORKLOADS, N_BEST = 8, 20, 8
BATCH_RECORDS = 10_000
TURNS = 2
TARGET = Target.parse("cuda -arch=sm_86")
PROCESSES = multiprocessing.get_context("spawn")


def record(number: int) -> TuningRecord:
    """The ``number``-th commit: latencies that every writer mixes over every workload."""
    workload = Workload("autotvm", f"dense{number % WORKLOADS}", ["dense", number % WORKLOADS])
    latency_s = 1e-3 * (1 + number * 7919 % 1009)
    return TuningRecord(workload, TARGET, Candidate([number]), Measurement(Outcome.OK, (latency_s,)), "tvm 0.10.0")


def write(url: str, writer: int, commits: int, ready: Barrier) -> None:
    """One of the writers: its share of the commits, one by one."""
    with open_database(url) as database:
        ready.wait()
        for index in range(commits):
            database.put(record(index * WRITERS + writer))


def databases(scratch: Path, commits: int) -> None:
    """Eight processes on the same workloads; then one workload asked for, again and again."""
    urls = {"SQLite": f"sqlite:///{scratch}/best.db"}
    with running("dynalite", scratch) as dynalite, running("moto", scratch) as moto:
        urls |= {
            "DynamoDB (dynalite)": f"dynamodb://best?endpoint_url={dynalite}",
            "DynamoDB (moto)": f"dynamodb://best?endpoint_url={moto}",
        }
        rows = [[name, WRITERS * commits, *contend(url, commits)] for name, url in urls.items()]
        batches = [[name, *batch(url.replace("best", "batch"))] for name, url in urls.items()]
    print(f"\n{WRITERS} processes x {commits} commits to {WORKLOADS} workloads, {machine()}\n")
    columns = ["database", "commits", "seconds", "commits/s", "the n best exactly right", "query p50 ms", "p99 ms"]
    print(markdown(columns, rows))
    print(f"\nOne commit of {BATCH_RECORDS} records of as many workloads, {machine()}\n")
    print(markdown(["database", "seconds", "records/s", "all there", "requests by query"], batches))


def batch(url: str) -> tuple[float, float, str, int | str]:
    """Seconds, records per second, whether all are there, and requests that one query sends to a service."""
    made = [
        replace(one, workload=Workload("autotvm", f"dense{number}", ["dense", number]))
        for number, one in enumerate(map(record, range(BATCH_RECORDS)))
    ]
    with open_database(url, create=True) as database:
        started_s = time.perf_counter()
        entered = database.put_many(made)
        seconds = time.perf_counter() - started_s
        there = "yes" if entered == database.stats().records == BATCH_RECORDS else "NO"
        requests: int | str = "-"
        if isinstance(database, DynamoDatabase):
            sent: list[str] = []
            events = database._service.client.meta.events
            events.register("before-send.dynamodb", lambda request, **_: sent.append(request.url))
            database.best(TARGET, made[0].workload.key)
            requests = len(sent)
    return seconds, BATCH_RECORDS / seconds, there, requests


def contend(url: str, commits: int) -> tuple[float, float, str, float, float]:
    """Seconds, commits per second, whether what is kept is right, and latencies of a query in milliseconds."""
    open_database(url, create=True, n_best=N_BEST).close()
    ready = PROCESSES.Barrier(WRITERS + 1)
    writers = [PROCESSES.Process(target=write, args=(url, writer, commits, ready)) for writer in range(WRITERS)]
    for writer in writers:
        writer.start()
    ready.wait()
    started_s = time.perf_counter()
    for writer in writers:
        writer.join()
    seconds = time.perf_counter() - started_s
    records = [record(number) for number in range(WRITERS * commits)]
    with open_database(url) as database:
        right = all(writer.exitcode == 0 for writer in writers)
        for number in range(WORKLOADS):
            key = record(number).workload.key
            mine = [one for one in records if one.workload.key == key]
            best = sorted(mine, key=lambda one: (one.measurement.latency_s or 0.0, one.key))[:N_BEST]
            right &= [one.key for one in database.best(TARGET, key, N_BEST)] == [one.key for one in best]
        asked = []
        for number in range(500):
            key = records[number % WORKLOADS].workload.key
            asked_s = time.perf_counter()
            database.best(TARGET, key)
            asked.append(1e3 * (time.perf_counter() - asked_s))
    cuts = statistics.quantiles(asked, n=100)
    return seconds, WRITERS * commits / seconds, "yes" if right else "NO", cuts[49], cuts[98]


def listing(scratch: Path, objects: int) -> None:
    """Many logs in a bucket, listed: seconds, and how the memory grows. Only their sidecars are there."""
    filer = servers.free_port()
    with running("seaweedfs", scratch, filer_port=filer) as endpoint:
        servers.make_bucket(endpoint)
        # In a process of its own: memory that it gave back would hide what listing takes.
        filling = PROCESSES.Process(target=fill, args=(filer, objects))
        filling.start()
        filling.join()
        listed(f"s3://{servers.BUCKET}/logs?endpoint_url={endpoint}", objects)


def fill(filer: int, objects: int) -> None:
    """Put sidecars through the door behind the S3 one: it signs nothing, and is ten times as fast."""
    log = StoredLog("autotvm", TARGET, None, (), False, "0" * 64, 1, 0, 0, 1)
    mine = threading.local()

    def put(number: int) -> None:
        if not hasattr(mine, "connection"):
            mine.connection = HTTPConnection("127.0.0.1", filer)
        one = replace(log, fingerprint=f"{number:012x}" + "0" * 52)
        sidecar = one.to_json() | {"content": {"folder": "none", "sha256": {}}}
        mine.connection.request("PUT", f"/buckets/{servers.BUCKET}/logs/{one.id}/{SIDECAR}", orjson.dumps(sidecar))
        answer = mine.connection.getresponse()
        if answer.status >= 300:
            raise RuntimeError(f"{answer.status}: {answer.read()!r}")
        answer.read()

    S3Folder.each(put, range(objects))


def listed(url: str, objects: int) -> None:
    """List them."""
    process = psutil.Process()
    logs = open_logs(url).list()
    next(logs)  # The first loads the libraries, and makes the connections.
    before, peak, count = process.memory_info().rss, 0, 1
    started_s = time.perf_counter()
    for count, _ in enumerate(logs, 2):
        if count % 100 == 0:
            peak = max(peak, process.memory_info().rss)
    seconds = time.perf_counter() - started_s
    print(f"\nLogs listed in S3 (SeaweedFS), {machine()}\n")
    rows = [[objects, count, seconds, count / seconds, max(peak - before, 0) / (1 << 20)]]
    print(markdown(["logs", "listed", "seconds", "logs/s", "memory grown by, MiB"], rows))


def featurize(scratch: Path, data: Path) -> None:
    """The AutoTVM logs of the devices, featurized from and to folders, and from and to S3, in turns."""
    with running("seaweedfs", scratch) as endpoint:
        servers.make_bucket(endpoint)
        places = {"folders": f"{scratch}/{{}}", "S3": f"s3://{servers.BUCKET}/{{}}?endpoint_url={endpoint}"}
        ingest_s, served_s, seconds, records = {}, {}, {name: [] for name in places}, {}
        for name, place in places.items():
            started_s = time.perf_counter()
            for device in sorted((data / "autotvm").iterdir()):
                logs = place.format("logs")
                run("lorien", "ingest", device, "--dialect", "autotvm", "--target", device.name, "--logs", logs)
            ingest_s[name] = time.perf_counter() - started_s
        for turn in range(TURNS):
            for name, place in places.items():
                before_s = server_cpu_s()
                done = run("lorien", "featurize", place.format("logs"), "-o", place.format(f"features{turn}"))
                served_s[name] = server_cpu_s() - before_s
                seconds[name].append(done.value["seconds"])
                records[name] = done.value["rows"]
    rates = {name: records[name] / min(seconds[name]) for name in places}
    print(f"\nAutoTVM logs featurized, the fastest of {TURNS} turns, {machine()}\n")
    rows = [
        [
            name,
            records[name],
            ingest_s[name],
            " ".join(f"{turn_s:.1f}" for turn_s in seconds[name]),
            rates[name],
            rates[name] / rates["folders"],
            served_s[name],
        ]
        for name in places
    ]
    columns = ["logs and features in", "records", "ingest s", "featurize s", "records/s", "of folders", "server CPU s"]
    print(markdown(columns, rows))


def server_cpu_s() -> float:
    """Processor time that the server took so far: it shares the cores with what is measured."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())


@contextmanager
def running(name: str, scratch: Path, **options: int) -> Iterator[str]:
    """A server of the tests; its URL."""
    folder = scratch / name
    folder.mkdir()
    server: servers.Server = getattr(servers, name)(folder, **options)
    try:
        yield server.url
    finally:
        server.kill()


def main() -> None:
    """Run what was asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", action="store_true")
    parser.add_argument("--listing", action="store_true")
    parser.add_argument("--featurize", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--commits", type=int, default=200, help="by each of the processes")
    parser.add_argument("--objects", type=int, default=100_000, help="logs to list")
    arguments = parser.parse_args()
    every = not (arguments.databases or arguments.listing or arguments.featurize)
    if (every or arguments.featurize) and arguments.data is None:
        parser.error("--featurize needs --data")
    os.environ |= servers.ENVIRONMENT
    for wanted, part, size in (
        (arguments.databases, databases, arguments.commits),
        (arguments.listing, listing, arguments.objects),
        (arguments.featurize, featurize, arguments.data),
    ):
        if every or wanted:
            with tempfile.TemporaryDirectory() as scratch:
                part(Path(scratch), size)


if __name__ == "__main__":
    main()
