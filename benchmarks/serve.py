"""How fast the service ranks, and whether its memory grows.

    python benchmarks/serve.py [--latency] [--replay] [--seconds 30] [--replay-s 600]
                               [--models MODELS --features TABLES]

Trains on the logs in datasets/ unless MODELS and the tables they are of are given. Clients, service and its child
processes share this machine.

Latency: 512 feature rows a request, asked for without pause by 1 and by 8 clients, and by 8 clients once a second each.
Replay: two hours of traffic (one request a second on average, of five kinds) at twelve times its pace; ``--replay-s``
below 600 replays the beginning of it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from harness import BIN, machine, markdown, run

from lorien.database import open_database
from lorien.featurize.table import tables
from lorien.models import load_ranker
from lorien.models.data import feature_batches, table_at
from lorien.models.store import open_models
from lorien.serve.client import Client
from lorien.target import Target

DATASETS = Path(__file__).parents[1] / "datasets"
ROWS = 512
CLIENTS = 8
TRAFFIC_S, REQUESTS, PACE = 7200, 7200, 12
MIX = {"score": 0.6, "best": 0.2, "query": 0.1, "rank": 0.05, "deliver": 0.05}
"""512 feature rows; a workload's best; a network's; 16 candidates; a schedule that the database has."""


def prepare(scratch: Path) -> tuple[str, str]:
    """The logs that ship: (feature tables, models)."""
    features, models = str(scratch / "features"), str(scratch / "models")
    run("lorien", "ingest", DATASETS / "metaschedule", "--dialect", "metaschedule", "--logs", scratch / "logs")
    run("lorien", "featurize", scratch / "logs", "-o", features)
    run("lorien-train", features, "-o", models)
    return features, models


def scored_rows(features: str, models: str) -> tuple[Target, np.ndarray]:
    """The target of the one model there, and all feature rows of it."""
    ((dialect, key),) = open_models(models).list()
    paths = [path for path, _ in tables(Path(features), dialect=dialect, target=key)]
    return Target.from_key(key), np.concatenate([b for path in paths for _, b in feature_batches(table_at(path))])


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A service: its URL and its process."""
    command = [BIN / "lorien", "serve", "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101
        said = b""
        while not said.endswith(b"}\n"):
            said += process.stdout.readline()
        try:
            yield json.loads(said)["url"], psutil.Process(process.pid)
        finally:
            process.terminate()


def timed(ask: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    started_s = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - started_s)


def crowd(url: str, clients: int, seconds: float, every_s: float, target: Target, rows: np.ndarray) -> list[float]:
    """Milliseconds of each request of some clients, who wait ``every_s`` between the beginnings of two."""
    found: list[float] = []
    until_s = time.perf_counter() + seconds

    def ask(number: int) -> None:
        with Client(url) as client:
            ranker = client.load_ranker(target)
            ranker.score(rows)
            time.sleep(every_s * number / clients)
            while time.perf_counter() < until_s:
                took_ms = timed(lambda: ranker.score(rows))
                found.append(took_ms)
                time.sleep(max(0.0, every_s - took_ms / 1e3))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def latency(models: str, target: Target, rows: np.ndarray, seconds: float) -> None:
    """The table of latencies."""
    ranker = load_ranker(models, target)
    ranker.score(rows)  # a warm one
    table = [["in this process", "-", *row([timed(lambda: ranker.score(rows)) for _ in range(50)], None)]]
    with serving("--models", models) as (url, _):
        for clients, every_s in ((1, 0.0), (CLIENTS, 0.0), (CLIENTS, 1.0)):
            name = f"{clients} clients" if clients > 1 else "1 client"
            pace = "without pause" if not every_s else "once a second each"
            table.append([name, pace, *row(crowd(url, clients, seconds, every_s, target, rows), seconds)])
    trees = sum(ranker.model.fold_trees)
    print(f"\n{ROWS} candidates from features ({rows.shape[1]} columns, {trees} trees), {machine()}\n")
    print(markdown(["who asks", "pace", "requests", "requests/s", "p50 ms", "p99 ms"], table), flush=True)


def row(took_ms: list[float], seconds: float | None) -> list[float | int | None]:
    """Requests, rate, p50 and p99."""
    cuts = statistics.quantiles(took_ms, n=100)
    return [len(took_ms), len(took_ms) / seconds if seconds else None, cuts[49], cuts[98]]


def replay(models: str, logs_db: str, target: Target, rows: np.ndarray, replay_s: float) -> None:
    """Requests at their times, by as many threads as are needed; the memory of all processes every second."""
    with open_database(logs_db) as database:
        records = list(database.query(target))
    networks = sorted({network for record in records for network in record.workload.networks})
    rng = random.Random(0)
    times = sorted(rng.uniform(0, TRAFFIC_S) / PACE for _ in range(REQUESTS))
    plan = [(at_s, rng.choices(list(MIX), list(MIX.values()))[0], rng.choice(records)) for at_s in times]
    plan = [one for one in plan if one[0] < replay_s]
    took_ms: dict[str, list[float]] = {kind: [] for kind in MIX}
    errors: Counter[str] = Counter()
    sizes: list[tuple[float, int, int]] = []
    with serving("--models", models, "--db", logs_db) as (url, process), Client(url) as client:
        ranker = client.load_ranker(target)
        ask = {
            "score": lambda record: ranker.score(rows),
            "best": lambda record: client.best(target, record.workload.key, 8),
            "query": lambda record: list(client.query(network=rng.choice(networks))),
            "rank": lambda record: ranker.rank(record.workload, [record.candidate] * 16),
            "deliver": lambda record: client.deliver(record.workload, target, verify=False),
        }
        waiting = iter(plan)
        lock = threading.Lock()
        started_s = time.perf_counter()

        def work() -> None:
            while True:
                with lock:
                    one = next(waiting, None)
                if one is None:
                    return
                at_s, kind, record = one
                time.sleep(max(0.0, started_s + at_s - time.perf_counter()))
                try:
                    took_ms[kind].append(timed(partial(ask[kind], record)))
                except Exception as error:  # counted and told
                    errors[f"{kind}: {type(error).__name__} {error}"[:100]] += 1

        threads = [threading.Thread(target=work) for _ in range(4 * CLIENTS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            children = sum(child.memory_info().rss for child in process.children(recursive=True))
            sizes.append((time.perf_counter() - started_s, process.memory_info().rss, children))
        seconds = time.perf_counter() - started_s
    hours = seconds * PACE / 3600
    print(f"\n{hours:.1f} hours of traffic in {seconds / 60:.1f} minutes, {machine()}\n")
    table = [[kind, *row(found, seconds)] for kind, found in took_ms.items()]
    print(markdown(["request", "requests", "requests/s", "p50 ms", "p99 ms"], table))
    print(f"\nerrors: {dict(errors) or 'none'}\n")
    told = [sizes[int(share * len(sizes)) - 1] for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    table = [[f"{at_s / 60:.1f}", round(own / 2**20), round(children / 2**20)] for at_s, own, children in told]
    print(markdown(["after minutes", "service MiB", "its children MiB"], table), flush=True)


def main() -> None:
    """Run what was asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--seconds", type=float, default=30, help="of each row of the table of latencies")
    parser.add_argument("--replay-s", type=float, default=TRAFFIC_S / PACE)
    parser.add_argument("--models")
    parser.add_argument("--features")
    arguments = parser.parse_args()
    both = arguments.latency == arguments.replay
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        given = arguments.features, arguments.models
        features, models = given if all(given) else prepare(scratch)
        target, rows = scored_rows(features, models)
        rows = rows[:ROWS]
        if both or arguments.latency:
            latency(models, target, rows, arguments.seconds)
        if both or arguments.replay:
            run("lorien", "ingest", DATASETS / "metaschedule", "--dialect", "metaschedule", "--logs", scratch / "logs")
            database = f"sqlite:///{scratch}/best.db"
            run("lorien", "commit", "--logs", scratch / "logs", "--db", database)
            replay(models, database, target, rows, arguments.replay_s)


if __name__ == "__main__":
    main()
