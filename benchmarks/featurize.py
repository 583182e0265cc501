"""How fast logs become feature tables, and how much memory that takes.

    python benchmarks/featurize.py --data DATASETS [--autotvm] [--metaschedule]

``DATASETS`` holds ``autotvm/<device>/<network>.log.gz`` and ``metaschedule/<target>/<network>/``. The stock way to
features (load the record, replay it as a measure candidate, PerStoreFeature) is measured beside ours, in this run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from harness import GIB, machine, markdown, run

STOCK_RECORDS = 400


def autotvm(data: Path, scratch: Path) -> None:
    """Every AutoTVM log: records per second over all devices, and the peak memory at two sizes of the data."""
    logs, rows = scratch / "autotvm-logs", []
    ingested = 0
    started_s = time.perf_counter()
    for device in sorted((data / "autotvm").iterdir()):
        done = run("lorien", "ingest", device, "--dialect", "autotvm", "--target", device.name, "--logs", logs)
        ingested += done.value["records"]
        if len(rows) == 0:
            small = run("lorien", "featurize", logs, "-o", scratch / "autotvm-small")
            rows.append(["first device", small.value["rows"], small.value["seconds"], small.peak_bytes / GIB])
    ingest_s = time.perf_counter() - started_s
    full = run("lorien", "featurize", logs, "-o", scratch / "autotvm")
    rows.append(["all devices", full.value["rows"], full.value["seconds"], full.peak_bytes / GIB])
    again = run("lorien", "featurize", logs, "-o", scratch / "autotvm")
    print(f"\nAutoTVM, {machine()}. Ingest: {ingested:,} records in {ingest_s:.0f} s\n")
    table = [[name, n, s, n / s, gib] for name, n, s, gib in rows]
    print(markdown(["logs", "records", "seconds", "records/s", "peak GiB of any process"], table))
    print(f"\nNothing new to do: {again.seconds:.1f} s")


def metaschedule(data: Path, scratch: Path) -> None:
    """Every MetaSchedule log, beside the stock way on one core."""
    logs = scratch / "metaschedule-logs"
    run("lorien", "ingest", data / "metaschedule", "--dialect", "metaschedule", "--logs", logs)
    done = run("lorien", "featurize", logs, "-o", scratch / "metaschedule")
    n, seconds = done.value["rows"], done.value["seconds"]
    rows = [["lorien featurize, all cores", n, seconds, n / seconds], ["stock, one core", *stock(data)]]
    print(f"\nMetaSchedule, {machine()}\n")
    print(markdown(["way", "records", "seconds", "records/s"], rows))


def stock(data: Path) -> tuple[int, float, float]:
    """Features of the first records of squeezenet the way MetaSchedule's own training script gets them."""
    import gzip
    import json

    import tvm.s_tir.tensor_intrin  # noqa: F401  (paid before the clock starts)
    from tvm.s_tir import meta_schedule as ms

    folder = next((data / "metaschedule").glob("*/squeezenet"))
    with gzip.open(folder / "database_workload.json.gz", "rt") as file:
        workloads = [ms.database.Workload.from_json(json.loads(line)) for line in file]
    with gzip.open(folder / "database_tuning_record.json.gz", "rt") as file:
        lines = file.read().splitlines()[:STOCK_RECORDS]
    extractor = ms.feature_extractor.PerStoreFeature(extract_workload=True)
    target = {"kind": "llvm", "num-cores": 2}
    contexts = [ms.TuneContext(workload.mod, target=target, num_threads=1) for workload in workloads]
    started_s = time.perf_counter()
    for line in lines:
        index, record = json.loads(line)
        candidate = ms.database.TuningRecord.from_json(record, workloads[index]).as_measure_candidate()
        extractor.extract_from(contexts[index], [candidate])
    seconds = time.perf_counter() - started_s
    return len(lines), seconds, len(lines) / seconds


def main() -> None:
    """Run what was asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--autotvm", action="store_true")
    parser.add_argument("--metaschedule", action="store_true")
    arguments = parser.parse_args()
    both = arguments.autotvm == arguments.metaschedule
    with tempfile.TemporaryDirectory() as scratch:
        if both or arguments.autotvm:
            autotvm(arguments.data, Path(scratch))
        if both or arguments.metaschedule:
            metaschedule(arguments.data, Path(scratch))


if __name__ == "__main__":
    main()
