"""Whole networks: unscheduled, built by Lorien unseen, with stock tuning's schedules, and by ONNX Runtime.

    python benchmarks/deliver.py prepare --data DATASETS --work WORK --network squeezenet
    python benchmarks/deliver.py measure --data DATASETS --work WORK --network squeezenet

``prepare`` trains a model without the network. ``measure`` wants an idle machine and ``pip install onnxruntime``.

The stock schedules are the best of each workload in the network's log (32 to 64 trials each, on another machine of two
cores), built and run here: what stock tuning found there, and not quite what it would find here. The seconds it would
need are its trials over ``STOCK_PER_S``, stock MetaSchedule's rate on this machine in docs/tuning.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import transformer
from harness import machine, markdown, run
from zero_shot import onnx_model

STOCK_PER_S = 0.97
THREADS, REPEATS = 2, 50
NETWORKS = ("squeezenet", "resnet50", "inception_v1", "transformer")


def prepare(data: Path, work: Path, network: str) -> None:
    """Features of all logs once, a model without the network, and its stock schedules as a database."""
    logs, features = work / "logs", work / "features"
    if not features.exists():
        run("lorien", "ingest", data / "metaschedule", "--dialect", "metaschedule", "--logs", logs)
        run("lorien", "featurize", logs, "-o", features)
    held_out = ("--holdout-network", network) if network != "transformer" else ()
    run("lorien-train", features, "-o", work / f"models-{network}", *held_out)
    if network != "transformer":
        own = work / f"logs-{network}"
        # The logs name the machine they were made on; here they are schedules for this one.
        (log,) = (data / "metaschedule").glob(f"*/{network}")
        run("lorien", "ingest", log, "--dialect", "metaschedule", "--target", "native", "--logs", own)
        done = run("lorien", "commit", "--logs", own, "--db", f"sqlite:///{work / f'stock-{network}.db'}")
        print(done.value)


def measure(data: Path, work: Path, network: str, budget_s: float) -> None:
    """A row for each way to the first inference."""
    model = transformer.write(work / "transformer.onnx") if network == "transformer" else onnx_model(network)
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
    stock = work / f"stock-{network}.db"
    if stock.exists():
        done = run(*build, "--db", f"sqlite:///{stock}", "--budget", "0")
        tuning_s = trials(work / f"logs-{network}") / STOCK_PER_S
        rows.append(["stock log's best, rebuilt", done.value["latency_s"] * 1e3, tuning_s, sources(done.value)])
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


def trials(logs: Path) -> int:
    """Records in a log store, failures included."""
    from lorien.dialects import open_dialect
    from lorien.dialects.base import ReadReport
    from lorien.logs import open_logs

    store, report = open_logs(str(logs)), ReadReport()
    for log in store.list():
        with store.local(log) as folder:
            for _ in open_dialect(log.dialect).read(folder, log.info, report):
                pass
    return report.records


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
    """Prepare or measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "measure"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="squeezenet")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for the workloads not in the database")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.step == "prepare":
        shutil.rmtree(arguments.work / f"models-{arguments.network}", ignore_errors=True)
        prepare(arguments.data, arguments.work, arguments.network)
    else:
        measure(arguments.data, arguments.work, arguments.network, arguments.budget)


if __name__ == "__main__":
    main()
