"""Tuning, side by side with TVM's own `tune_tasks`: candidates per second, best latency, time to the first candidate.

    python benchmarks/tune.py prepare --work FOLDER [--data DATASETS]
    python benchmarks/tune.py stock   --work FOLDER [--trials 64] [--workloads 8]
    python benchmarks/tune.py lorien  --work FOLDER [--trials 64] [--workloads 8] [--guided]
    python benchmarks/tune.py compare --work FOLDER [--trials 64] [--workloads 8]
    python benchmarks/tune.py resume  --work FOLDER
    python benchmarks/tune.py beside  --work FOLDER

Each is a part of its own, so that each is short; run them on an idle machine, one after the other. `prepare` takes four
convolutions of squeezenet and four of resnet50 and, given the logs of other networks, trains the model of `--guided` on
them without any workload of these two. `compare` builds and runs the best of each side again, in turns, in one process.
`beside` runs the best of each workload alone, and while another process builds: what doing both at once would do to the
latencies.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

import orjson
from harness import machine, markdown, run
from stock import tune_tasks

from lorien.cli.workloads import read_workloads
from lorien.dialects import open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule.workload import native_target
from lorien.records import Candidate, Workload
from lorien.tune.measure import MeasureConfig, Measurer

NETWORKS = ("squeezenet", "resnet50")
RECORDS = 10_000
TURNS = 3
CAREFUL = MeasureConfig(repeat=7, min_repeat_s=0.1)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--work", type=Path, required=True, help="folder of what the parts hand on")
    parser.add_argument("--data", type=Path, help="data sets; its metaschedule/ holds logs of other networks")
    parser.add_argument("--trials", type=int, default=64, help="per workload")
    parser.add_argument("--workloads", type=int, default=8, help="the first N of those prepared")
    parser.add_argument("--guided", action="store_true", help="with --model")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    PARTS[arguments.part](arguments)


def prepare(arguments: argparse.Namespace) -> None:
    """Choose the workloads; train the model."""
    import onnx

    light = Path(onnx.__file__).parent / "backend/test/data/light"
    chosen: list[list[Workload]] = []
    keys: set[str] = set()
    for network in NETWORKS:
        path = arguments.work / f"{network}.jsonl"
        run("lorien", "extract", light / f"light_{network}.onnx", "-o", path)
        found = sorted(read_workloads(path), key=lambda workload: -(workload.flop or 0) * workload.weight)
        keys |= {workload.key for workload in found}
        # Every third of the heaviest, so that they are not all alike.
        chosen.append([workload for workload in found if "conv2d" in workload.name][0:12:3])
    in_turns = [workload for pair in zip(*chosen, strict=True) for workload in pair]
    (arguments.work / "workloads.jsonl").write_bytes(b"".join(orjson.dumps(w.to_json()) + b"\n" for w in in_turns))
    if arguments.data is None:
        return
    logs, features, native = (arguments.work / name for name in ("logs", "features", "native"))
    for log in open_live_dialect("metaschedule").find(arguments.data / "metaschedule"):
        if log.name not in NETWORKS:
            without(log, keys, native / log.name)
    run("lorien", "ingest", native, "--dialect", "metaschedule", "--logs", logs)
    run("lorien", "featurize", logs, "-o", features)
    run("lorien-train", features, "-o", arguments.work / "models")


def without(log: Path, keys: set[str], out: Path) -> None:
    """Copy a log but for the records of some workloads."""
    dialect = open_live_dialect("metaschedule")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(log, out)
    workload_file, record_file = dialect.files(out)
    drop = {record.workload.key for record in dialect.read(out, LogInfo(), ReadReport())} & keys
    if drop:
        records = [r for r in dialect.read(out, LogInfo(), ReadReport()) if r.workload.key not in drop]
        workloads = list({record.workload.key: record.workload for record in records}.values())
        index = {workload.key: number for number, workload in enumerate(workloads)}
        writer = dialect.log_writer(workloads, records[0].target)
        workload_file.unlink()
        record_file.unlink()
        (out / writer.workload_file).write_bytes(writer.workload_lines())
        lines = (writer.record_line(index[r.workload.key], r.candidate, r.measurement) for r in records)
        (out / writer.record_file).write_bytes(b"".join(lines))


def chosen_workloads(arguments: argparse.Namespace) -> list[Workload]:
    """The first of those prepared."""
    return read_workloads(arguments.work / "workloads.jsonl")[: arguments.workloads]


def stock(arguments: argparse.Namespace) -> None:
    """TVM's `tune_tasks` as it comes: evolutionary search, XGBoost, gradient scheduler, local builder and runner."""
    started_s = time.perf_counter()
    folder = side(arguments, "stock")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    workloads = chosen_workloads(arguments)
    first: list[float] = []
    threading.Thread(target=watch, args=(folder / "database_tuning_record.json", started_s, first), daemon=True).start()
    tune_tasks(workloads, folder, arguments.trials)
    report(folder, time.perf_counter() - started_s, first[0], None)


def watch(path: Path, started_s: float, first: list[float]) -> None:
    """Note when the first record is written."""
    while not (path.exists() and path.stat().st_size):
        time.sleep(0.1)
    first.append(time.perf_counter() - started_s)


def lorien(arguments: argparse.Namespace) -> None:
    """`lorien tune`, round robin or gradient making no difference when every workload gets its trials."""
    folder = side(arguments, "guided" if arguments.guided else "lorien")
    shutil.rmtree(folder, ignore_errors=True)
    workloads = chosen_workloads(arguments)
    folder.mkdir(parents=True)
    asked = folder / "workloads.jsonl"
    asked.write_bytes(b"".join(orjson.dumps(workload.to_json()) + b"\n" for workload in workloads))
    total = str(arguments.trials * len(workloads))
    command = ["lorien", "tune", asked, "--trials", total, "--trials-per-workload", str(arguments.trials)]
    command += ["--logs", folder / "logs", "--model", arguments.work / "models" if arguments.guided else "none"]
    done = run(*command)
    report(folder, done.seconds, done.value["first_trial_s"], done.value["overhead"], Path(done.value["session"]))


def side(arguments: argparse.Namespace, name: str) -> Path:
    """Folder of one side's run."""
    return Path(arguments.work, f"{name}-{arguments.workloads}x{arguments.trials}")


def report(folder: Path, seconds: float, first_s: float, overhead: float | None, log: Path | None = None) -> None:
    """Write down what a run did, and say it."""
    log = log or folder
    counted = count(log)
    value = {
        "log": str(log),
        "candidates": counted.records,
        "failed": counted.failed,
        "seconds": seconds,
        "candidates_per_s": counted.records / seconds,
        "first_candidate_s": first_s,
        "overhead": overhead,
    }
    (folder / "report.json").write_text(json.dumps(value, indent=1))
    print(json.dumps(value))


def count(log: Path) -> ReadReport:
    """Read a log for its counts."""
    counted = ReadReport()
    for _ in open_live_dialect("metaschedule").read(log, LogInfo(), counted):
        pass
    return counted


def compare(arguments: argparse.Namespace) -> None:
    """Build and run the best of each side again, and print both tables."""
    reports = {path.name: json.loads((path / "report.json").read_text()) for path in sides(arguments)}
    print(f"{machine()}, {arguments.trials} trials for each of {arguments.workloads} workloads\n")
    columns = ["candidates_per_s", "first_candidate_s", "overhead", "failed"]
    print(markdown(["run", *columns], [[n.partition("-")[0], *(r[c] for c in columns)] for n, r in reports.items()]))
    best = {name: bests(Path(value["log"])) for name, value in reports.items()}
    rows: list[list[object]] = []
    times_first: list[list[float]] = []
    with Measurer("metaschedule", native_target(), CAREFUL) as measurer:
        for workload in chosen_workloads(arguments):
            own_s = in_turns(measurer, workload, [found[workload.key] for found in best.values()])
            times_first.append([own_s[0] / latency_s for latency_s in own_s])
            rows.append([re.sub(r"\W+", " ", workload.name)[:40], *(latency_s * 1e3 for latency_s in own_s)])
    means = [statistics.geometric_mean(column) for column in zip(*times_first, strict=True)]
    rows.append(["times the first, geometric mean", *means])
    print("\n" + markdown(["best, ms", *(name.partition("-")[0] for name in reports)], rows))


def in_turns(measurer: Measurer, workload: Workload, candidates: list[Candidate]) -> list[float]:
    """Median latency in seconds of each candidate; all run once, then all once more, and again."""
    again = measurer.measure(workload, candidates * TURNS)
    turns_of = (again[i :: len(candidates)] for i in range(len(candidates)))
    return [statistics.median(m.latency_s or math.nan for m in turns) for turns in turns_of]


def sides(arguments: argparse.Namespace) -> list[Path]:
    """Runs of this size, stock's first."""
    found = [side(arguments, name) for name in ("stock", "lorien", "guided")]
    return [path for path in found if (path / "report.json").exists()]


def bests(log: Path, trials: float = math.inf) -> dict[str, Candidate]:
    """Fastest candidate of each workload in a log, or of the first so many trials of each."""
    best: dict[str, tuple[float, Candidate]] = {}
    seen: Counter[str] = Counter()
    for record in open_live_dialect("metaschedule").read(log, LogInfo(), ReadReport()):
        key, latency_s = record.workload.key, record.measurement.latency_s
        seen[key] += 1
        if seen[key] <= trials and latency_s is not None and latency_s < best.get(key, (math.inf,))[0]:
            best[key] = (latency_s, record.candidate)
    return {key: candidate for key, (_, candidate) in best.items()}


def resume(arguments: argparse.Namespace) -> None:
    """Time opening a session of 10,000 trials, from the records of a run made distinct."""
    from lorien.tune.session import Session

    (log, *_) = (Path(json.loads((path / "report.json").read_text())["log"]) for path in sides(arguments))
    records = list(open_live_dialect("metaschedule").read(log, LogInfo(), ReadReport()))
    workloads = list({record.workload.key: record.workload for record in records}.values())
    index = {workload.key: number for number, workload in enumerate(workloads)}
    folder = arguments.work / "resumed"
    shutil.rmtree(folder, ignore_errors=True)
    Session.create(folder, workloads, native_target()).close()
    writer = open_live_dialect("metaschedule").log_writer(workloads, native_target())
    with (folder / writer.record_file).open("wb") as file:
        for number in range(RECORDS):
            record = records[number % len(records)]
            instructions, decisions = record.candidate.schedule
            distinct = Candidate([instructions, [*decisions, [-1, number]]])
            file.write(writer.record_line(index[record.workload.key], distinct, record.measurement))
        os.fsync(file.fileno())
    started_s = time.perf_counter()
    with Session(folder) as session:
        seconds = time.perf_counter() - started_s
        print(json.dumps({"records": session.records, "seconds": seconds}))


def beside(arguments: argparse.Namespace) -> None:
    """Latencies while another process builds, on any core or pinned to the last, as multiples of those alone."""
    (log, *_) = (Path(json.loads((path / "report.json").read_text())["log"]) for path in sides(arguments))
    best = bests(log)
    times: dict[str, list[float]] = {"alone, again": [], "beside a build": [], "beside a build pinned to a core": []}
    spawn = multiprocessing.get_context("spawn")
    with Measurer("metaschedule", native_target(), MeasureConfig(builders=1)) as measurer:
        for workload in chosen_workloads(arguments):
            candidate = best[workload.key]

            def latency_s(workload: Workload = workload, candidate: Candidate = candidate) -> float:
                return statistics.median(measurer.measure(workload, [candidate])[0].latencies_s)

            alone_s = latency_s()
            ratios = [latency_s() / alone_s]
            for core in (None, max(os.sched_getaffinity(0))):
                building = spawn.Event()
                builder = spawn.Process(target=keep_building, args=(workload, candidate, core, building))
                builder.start()
                building.wait()
                ratios.append(latency_s() / alone_s)
                builder.kill()
                builder.join()
            for column, ratio in zip(times.values(), ratios, strict=True):
                column.append(ratio)
    columns = ["measured", "times alone, geometric mean", "least", "most"]
    print(markdown(columns, [[name, *spread(ratios)] for name, ratios in times.items()]))


def keep_building(workload: Workload, candidate: Candidate, core: int | None, building: Event) -> None:
    """Build a candidate again and again, until killed."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    dialect = open_live_dialect("metaschedule")
    with tempfile.TemporaryDirectory() as folder:
        while True:
            dialect.build(workload, candidate, native_target(), Path(folder, "candidate.so"))
            building.set()


def spread(times: list[float]) -> tuple[float, float, float]:
    """Geometric mean, least and most."""
    return statistics.geometric_mean(times), min(times), max(times)


PARTS = {"prepare": prepare, "stock": stock, "lorien": lorien, "compare": compare, "resume": resume, "beside": beside}

if __name__ == "__main__":
    main()
