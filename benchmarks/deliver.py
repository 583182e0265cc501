"""Whole networks: unscheduled, built by Lorien unseen, with stock tuning's schedules, and by ONNX Runtime.

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
    taken = run("lorien", "ingest", log, "--dialect", "metaschedule", "--target", "native", "--logs", logs)
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


def measure(work: Path, network: str, budget_s: float) -> None:
    """A row for each way to the first inference."""
    model = model_file(work, network)
    build = ("lorien", "build", model, "--run", "-o", work / f"built-{network}")
    database = work / f"delivered-{network}.db"
    database.unlink(missing_ok=True)
    models = ("--models", work / f"models-{network}", "--db", f"sqlite:///{database}")
    rows: list[list[Any]] = []
    cold = run(*build, *models, "--budget", str(budget_s))
    rows.append(["unscheduled", cold.value["default_latency_s"] * 1e3, compile_s(cold.value), None])
    rows.append(["lorien build", cold.value["latency_s"] * 1e3, cold.seconds, sources(cold.value)])
    warm = run(*build, *models, "--budget", "0")
    rows.append(["lorien build, warm database", warm.value["latency_s"] * 1e3, warm.seconds, sources(warm.value)])
    names = {"stock": "stock MetaSchedule", "log": "stock log's best, rebuilt", "tune": "lorien tune"}
    for side, name in names.items():
        known = work / f"{side}-{network}.db"
        if known.exists():
            done = run(*build, "--db", f"sqlite:///{known}", "--budget", "0")
            cost = json.loads(known.with_suffix(".json").read_text())
            label = f"{name}, {cost['trials']} trials"
            rows.append([label, done.value["latency_s"] * 1e3, cost["seconds"] + done.seconds, sources(done.value)])
    latency_s, started_s = onnx_runtime(model)
    rows.append([f"ONNX Runtime, {THREADS} threads", latency_s * 1e3, started_s, None])
    columns = [network, "ms an inference", "seconds before the first", "workloads"]
    print(
        f"{markdown(columns, rows)}\n\nsteps, cold: {steps(cold.value)}\nsteps, warm: {steps(warm.value)}\n{machine()}"
    )


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
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for the workloads not in the database")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    work, network = arguments.work, arguments.network
    if arguments.step == "measure":
        measure(work, network, arguments.budget)
    elif arguments.step != "prepare":
        {"stock": stock, "tune": tune}[arguments.step](work, network)
    elif arguments.data is None:
        parser.error("prepare needs --data")
    else:
        prepare(arguments.data, work, network)


if __name__ == "__main__":
    main()
