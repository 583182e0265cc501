"""What is lost when processes are killed, race or read damaged files: tried, failed, lost.

    python benchmarks/reliability.py --work FOLDER [--rounds 30] [--fuzz 200] [--kills 10]

Makes a store, tables and a model of one small network of ``datasets/``, then damages copies of them, kills real
commands and lets real processes race. Writes ``benchmarks/results/reliability/<machine>.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import multiprocessing as mp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from harness import BIN, machine, markdown, run, write_result

from lorien.dialects.halide.pipelines import parse
from lorien.errors import LorienError
from lorien.featurize.store import open_tables
from lorien.logs import open_logs
from lorien.models.data import feature_batches, table_at
from lorien.models.store import StoredModel, open_models
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.tune.session import open_session

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / "datasets/plain/llvm_znver4_2/bvlc_alexnet"
READERS = (
    "autotvm",
    "auto_scheduler",
    "halide",
    "metaschedule",
    "metaschedule_legacy",
    "sidecar",
    "targets",
    "workloads",
)
TRIALS = 5
SPAWN = mp.get_context("spawn")


@dataclasses.dataclass
class Tried:
    """One line of the table: what was tried, how often it was refused with an error that says so, what went wrong."""

    what: str
    tried: int = 0
    refused: int = 0
    lost: int = 0


def prepare(work: Path) -> None:
    """A store, its tables, a model, and two workloads to tune."""
    if (work / "workloads.jsonl").exists():
        return
    run("lorien", "ingest", NETWORK, "--dialect", "metaschedule", "--logs", work / "logs")
    run("lorien", "featurize", work / "logs", "-o", work / "features")
    run("lorien-train", work / "features", "-o", work / "models", "--time-limit", "60")
    workloads = [parse(f"matmul:{size},{size},{size}") for size in (64, 96)]
    (work / "workloads.jsonl").write_text("".join(json.dumps(each.to_json()) + "\n" for each in workloads))


def acknowledge(root: str, line: str, barrier: Barrier, answers: Any) -> None:
    """Open the session with another process, and acknowledge trials in it."""
    from lorien.dialects import open_live_dialect

    workload = Workload.from_json(json.loads(line))
    target = open_live_dialect(workload.dialect).native_target()
    barrier.wait()
    try:
        with open_session(Path(root), [workload], target, resume=True) as session:
            for number in range(TRIALS):
                schedule = {
                    "autoscheduler": "Adams2019",
                    "parameters": {"random_dropout_seed": f"{os.getpid()}{number}"},
                }
                session.append(0, Candidate(schedule), Measurement(Outcome.OK, (1e-3,)))
            answers.put(TRIALS)
    except LorienError:
        answers.put(0)


def sessions(work: Path, rounds: int) -> Tried:
    """Two processes open one new session at the same time."""
    found = Tried("two processes open one new tuning session", rounds)
    line = (work / "workloads.jsonl").read_text().splitlines()[0]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as root:
            barrier, answers = SPAWN.Barrier(2), SPAWN.Queue()
            both = [SPAWN.Process(target=acknowledge, args=(root, line, barrier, answers)) for _ in range(2)]
            for process in both:
                process.start()
            told = [answers.get() for _ in both]
            for process in both:
                process.join()
            written = sum(path.read_bytes().count(b"\n") for path in Path(root).glob("*/halide_records.jsonl"))
            found.refused += told.count(0)
            found.lost += sum(told) - written
    return found


def only_model(url: str) -> StoredModel:
    """The one model of a store. Raises ``LookupError`` when there is none."""
    models = open_models(url)
    for dialect, target in models.list():
        stored = models.read(dialect, target)
        if stored is not None:
            return stored
    raise LookupError(url)


def publish(store: str, files: str, rows: int, source: str, barrier: Barrier) -> None:
    """Publish a model beside another process."""
    stored = only_model(source)
    barrier.wait()
    open_models(store).publish(dataclasses.replace(stored.model, rows=rows), Path(files))


def publishers(work: Path, rounds: int) -> Tried:
    """Two processes publish different models of one target at the same time."""
    found = Tried("two processes publish one model", rounds)
    stored = only_model(str(work / "models"))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            for name in stored.files:
                path = Path(folder, str(number), name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stored.read(name) + b"\n" * number)
        for turn in range(rounds):
            store = Path(folder, f"store{turn}")
            barrier = SPAWN.Barrier(2)
            both = [
                SPAWN.Process(target=publish, args=(str(store), f"{folder}/{n}", n, str(work / "models"), barrier))
                for n in range(2)
            ]
            for process in both:
                process.start()
            for process in both:
                process.join()
            found.refused += sum(process.exitcode != 0 for process in both)
            try:
                left = only_model(str(store))
                for name in left.files:
                    left.read(name)
            except (LorienError, LookupError):
                found.lost += 1
    return found


def flipped(path: Path, chance: random.Random) -> bytes:
    """The content of a file with a bit flipped, a part zeroed or its end cut off."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    what = chance.randrange(3)
    if what == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif what == 1:
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    else:
        del data[at:]
    return bytes(data)


def damages(what: str, path: Path, read: Callable[[], Any], tries: int) -> Tried:
    """Damage a file anywhere, and read it as commands do: refused, or the same as before."""
    found = Tried(what, tries)
    whole, right = path.read_bytes(), read()
    try:
        for number in range(tries):
            path.write_bytes(flipped(path, random.Random(number)))
            try:
                found.lost += read() != right
            except LorienError:
                found.refused += 1
            path.write_bytes(whole)
    finally:
        path.write_bytes(whole)
    return found


def logs_read(work: Path) -> list[str]:
    """The keys of all records of the store."""
    from lorien.dialects.base import ReadReport
    from lorien.logs.walk import LogWalk

    walk = LogWalk(open_logs(str(work / "logs")))
    return [record.key for log in walk for record in walk.read(log, ReadReport())]


def tables_read(work: Path) -> list[bytes]:
    """All features of the tables."""
    with open_tables(work / "features").local() as folder:
        paths = sorted(folder.rglob("*.parquet"))
        return [batch[1].tobytes() for path in paths for batch in feature_batches(table_at(path))]


def records(folder: str) -> bytes:
    """What a session below a folder has acknowledged."""
    return b"".join(path.read_bytes() for path in Path(folder, "logs").rglob("halide_records.jsonl"))


def kills(work: Path, count: int) -> tuple[Tried, Tried]:
    """Kill ``lorien tune`` again and again; what was acknowledged before each kill has to be there to the end."""
    lost = Tried("kill -9 of lorien tune: acknowledged trials lost", count)
    left = Tried("kill -9 of lorien tune: folders left after the next run", count)
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder}
        words = [BIN / "lorien", "tune", work / "workloads.jsonl", "--batch", "4", "--resume", "--model", "none"]
        words += ["--strategy", "ranked", "--logs", Path(folder, "logs"), "--trials"]
        before = b""
        for number in range(count):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running = subprocess.Popen([*words, "10000"], env=environment, start_new_session=True, **quiet)
            # Half of the kills come while it starts, half between trials.
            until_s = time.monotonic() + (chance.uniform(0.5, 6) if number % 2 else 120)
            while time.monotonic() < until_s and len(records(folder)) <= len(before):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            now = records(folder)
            lost.lost += not now.startswith(before)
            before = now[: now.rfind(b"\n") + 1]
        trials = str(before.count(b"\n") + 4)
        subprocess.run([*words, trials], env=environment, stdout=subprocess.DEVNULL, check=True)
        after = records(folder)
        lost.lost += not after.startswith(before)
        trials = before.count(b"\n")
        lost.what = f"kill -9 of lorien tune ({trials} acknowledged trials before the last): kills that lost trials"
        left.lost = len([path for path in Path(folder).iterdir() if path.name.startswith("lorien-")])
    return lost, left


def fuzzed(reader: str, count: int) -> Tried:
    """Damaged inputs of a reader, as the tests make them, by other seeds."""
    command = [sys.executable, ROOT / "tests/fuzz_readers.py", "100000", str(count), reader]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    failed = int(done.stdout.splitlines()[-1].split()[0]) if done.returncode == 0 else count
    return Tried(f"damaged input: {reader}", count, 0, failed)


def main() -> None:
    """Run all experiments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Folder for what is made first.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # Each damage is told of.
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    found = [sessions(work, given.rounds), publishers(work, given.rounds)]
    (stored,) = (work / "logs").rglob("database_tuning_record.json*")
    found.append(damages("a stored log, damaged anywhere", stored, lambda: logs_read(work), given.damages))
    table = min((work / "features").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    found.append(damages("a feature table, damaged anywhere", table, lambda: tables_read(work), given.damages))
    found += kills(work, given.kills)
    found += [fuzzed(reader, given.fuzz) for reader in READERS]
    write_result("reliability", [dataclasses.asdict(one) for one in found])
    print(machine())
    rows = [[one.what, one.tried, one.refused or None, one.lost] for one in found]
    print(markdown(["what", "tried", "refused with an error that says so", "failed or lost"], rows))
    shutil.rmtree(work / "store", ignore_errors=True)


if __name__ == "__main__":
    main()
