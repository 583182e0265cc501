"""Whole networks: with default schedules, built by Lorien unseen, with stock tuning's schedules, and by ONNX Runtime.

    python benchmarks/deliver.py prepare --data DATASETS --work WORK --network squeezenet
    python benchmarks/deliver.py stock   --work WORK --network squeezenet
    python benchmarks/deliver.py tune    --work WORK --network squeezenet
    python benchmarks/deliver.py measure --work WORK --network squeezenet

``prepare`` trains a model without the network. ``stock`` and ``tune`` tune it here, 64 trials for each workload, by
TVM's MetaSchedule as it comes and by ``lorien tune`` without a model. ``measure`` builds and runs them all. The last
three want an idle machine; ONNX Runtime is there with ``pip install onnxruntime``.

Where ``stock`` was not run, its schedules are the best of each workload in the network's log (32 to 64 trials each, on
another machine of two cores), built and run here: what stock tuning found there, and not quite what it would find here.
The seconds it would need are its trials over ``STOCK_PER_S``, its rate on this machine in docs/tuning.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformer
from harness import machine, markdown, run
from zero_shot import onnx_model

STOCK_PER_S = 1.37
TRIALS = 64
THREADS, REPEATS = 2, 50
NETWORKS = ("squeezenet", "resnet50", "inception_v1", "transformer")


def model_file(work: Path, network: str) -> Path:
    """The ONNX file of a network."""
    return transformer.write(work / "transformer.onnx") if network == "transformer" else onnx_model(network)


def prepare(data: Path, work: Path, network: str) -> None:
    """Features of all logs once, a model without the network, its workloads, and its log's schedules as a database."""
    logs, features = work / "logs", work / "features"
    if not features.exists():
        run("lorien", "ingest", data / "metaschedule", "--dialect", "metaschedule", "--logs", logs)
        run("lorien", "featurize", logs, "-o", features)
    held_out = ("--holdout-network", network) if network != "transformer" else ()
    shutil.rmtree(work / f"models-{network}", ignore_errors=True)
    run("lorien-train", features, "-o", work / f"models-{network}", *held_out)
    run("lorien", "extract", model_file(work, network), "--target", "native", "-o", work / f"{network}.jsonl")
    if network != "transformer":
        # The logs name the machine they were made on; here they are schedules for this one.
        (log,) = (data / "metaschedule").glob(f"*/{network}")
        tuned(work, network, "log", log, None)


def tuned(work: Path, network: str, side: str, log: Path, seconds: float | None) -> None:
    """Make a database of a log of this machine, or taken for one, and write down what it cost."""
    logs, database = work / f"logs-{side}-{network}", work / f"{side}-{network}.db"
    shutil.rmtree(logs, ignore_errors=True)
    database.unlink(missing_ok=True)
    from lorien.dialects import open_live_dialect

    told = ("--target", "native", "--build", open_live_dialect("metaschedule").framework())
    taken = run("lorien", "ingest", log, "--dialect", "metaschedule", *told, "--logs", logs)
    run("lorien", "commit", "--logs", logs, "--db", f"sqlite:///{database}")
    trials = taken.value["records"]
    cost = {"trials": trials, "seconds": trials / STOCK_PER_S if seconds is None else seconds}
    database.with_suffix(".json").write_text(json.dumps(cost))
    print(side, network, cost, flush=True)


def stock(work: Path, network: str) -> None:
    """Tune with TVM's MetaSchedule."""
    from stock import tune_tasks

    from lorien.cli.workloads import read_workloads

    folder = work / f"tuning-stock-{network}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    workloads = read_workloads(work / f"{network}.jsonl")
    started_s = time.perf_counter()
    tune_tasks(workloads, folder, TRIALS)
    tuned(work, network, "stock", folder, time.perf_counter() - started_s)


def tune(work: Path, network: str) -> None:
    """Tune with Lorien, from nothing."""
    folder, workloads = work / f"tuning-tune-{network}", work / f"{network}.jsonl"
    shutil.rmtree(folder, ignore_errors=True)
    trials = TRIALS * len(workloads.read_text().splitlines())
    limits = ("--trials", str(trials), "--trials-per-workload", str(TRIALS))
    done = run("lorien", "tune", workloads, *limits, "--logs", folder)
    tuned(work, network, "tune", Path(done.value["session"]), done.seconds)


def measure(work: Path, network: str, budgets_s: Sequence[float]) -> None:
    """A row for each way to the first inference.

    Seconds are those of building and checking; every library is timed afterwards, by another build from what is known.
    """
    model = model_file(work, network)
    build = ("lorien", "build", model, "-o", work / f"built-{network}")
    timed = (*build, "--run", "--budget", "0")
    rows: list[list[Any]] = []
    for budget_s in budgets_s:
        database = work / f"delivered-{network}-{budget_s:g}.db"
        database.unlink(missing_ok=True)
        known = ("--db", f"sqlite:///{database}")
        cold = run(*build, *known, "--models", work / f"models-{network}", "--budget", str(budget_s))
        warm, done = run(*build, *known, "--budget", "0"), run(*timed, *known)
        if not rows:
            rows.append(["default schedules", done.value["default_latency_s"] * 1e3, compile_s(done.value), None])
        latency_ms = done.value["latency_s"] * 1e3
        rows.append([f"lorien build, budget {budget_s:g} s", latency_ms, cold.seconds, sources(cold.value)])
        rows.append(["the same once more, from the database", latency_ms, warm.seconds, sources(warm.value)])
        print(f"budget {budget_s:g} s: {steps(cold.value)}", flush=True)
    names = {"stock": "stock MetaSchedule", "log": "stock log's best, rebuilt", "tune": "lorien tune"}
    for side, name in names.items():
        database = work / f"{side}-{network}.db"
        if database.exists():
            known = ("--db", f"sqlite:///{database}")
            built, done = run(*build, *known, "--budget", "0"), run(*timed, *known)
            cost = json.loads(database.with_suffix(".json").read_text())
            label, seconds = f"{name}, {cost['trials']} trials", cost["seconds"] + built.seconds
            rows.append([label, done.value["latency_s"] * 1e3, seconds, sources(built.value)])
    latency_s, started_s = onnx_runtime(model)
    rows.append([f"ONNX Runtime, {THREADS} threads", latency_s * 1e3, started_s, None])
    print(f"{markdown([network, 'ms an inference', 'seconds before the first', 'workloads'], rows)}\n{machine()}")


def compile_s(value: dict[str, Any]) -> float:
    """Seconds of reading, lowering and compiling, without schedules."""
    return float(value["seconds"]["lower"] + value["seconds"]["compile"])


def sources(value: dict[str, Any]) -> str:
    """``30 ranked, 2 default``."""
    return ", ".join(f"{count} {source}" for source, count in value["sources"].items() if count)


def steps(value: dict[str, Any]) -> str:
    """Where a build's seconds went."""
    return ", ".join(f"{step} {seconds:.1f} s" for step, seconds in value["seconds"].items())


def onnx_runtime(model: Path) -> tuple[float, float]:
    """Median seconds of one inference, and seconds to make the session."""
    import numpy as np
    import onnxruntime

    started_s = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    ready_s = time.perf_counter() - started_s
    rng = np.random.default_rng(0)
    inputs = {i.name: (rng.random(i.shape, np.float32) * 0.9 + 0.1) for i in session.get_inputs()}
    latencies_s = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        session.run(None, inputs)
        latencies_s.append(time.perf_counter() - started_s)
    return statistics.median(latencies_s), ready_s


def main() -> None:
    """One step of one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "stock", "tune", "measure"))
    parser.add_argument("--data", type=Path, help="prepare's: data sets")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="squeezenet")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[20.0, 60.0], help="seconds for the workloads not in the database"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    work, network = arguments.work, arguments.network
    if arguments.step == "measure":
        measure(work, network, arguments.budgets)
    elif arguments.step != "prepare":
        {"stock": stock, "tune": tune}[arguments.step](work, network)
    elif arguments.data is None:
        parser.error("prepare needs --data")
    else:
        prepare(arguments.data, work, network)


if __name__ == "__main__":
    main()
