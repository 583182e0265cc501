"""TVM's own MetaSchedule as it comes, but on all cores and with time to build, for benchmarks that compare with it.

    python benchmarks/stock.py MODEL.onnx -o FOLDER [--trials 64] [--prepack]

As a program it tunes a whole network by TVM's ``static_shape_tuning_pipeline`` and leaves FOLDER/library.so; with 0
trials that is the network without schedules, as naive loops.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorien.dialects.metaschedule.compile import warm_up
from lorien.dialects.metaschedule.workload import module_of, native_target, tvm_target
from lorien.machine import available_cores
from lorien.records import Workload

BUILD_TIMEOUT_S = 120
"""Not TVM's 30: each of its build processes imports the intrinsics of all devices first, which takes a Zen 1 44 s."""
BATCH = 64
RECORDS, LIBRARY, ANSWER = "database_tuning_record.json", "library.so", "answer.json"


def tune_tasks(workloads: Sequence[Workload], folder: Path, trials: int) -> None:
    """Evolutionary search, XGBoost, gradient scheduler, local builder and runner: ``trials`` for each workload.

    The log is left in ``folder``, which exists.
    """
    # TVM takes every second core for a sibling thread of another, and would measure with half of those there are.
    os.environ["TVM_NUM_THREADS"] = str(available_cores())
    from tvm.s_tir import meta_schedule as ms

    tasks = [
        ms.TuneContext(
            module_of(workload),
            target=tvm_target(native_target()),
            space_generator="post-order-apply",
            search_strategy="evolutionary",
            task_name=workload.name,
            rand_state=1,
        )
        for workload in workloads
    ]
    ms.tune.tune_tasks(
        tasks=tasks,
        task_weights=[float(workload.weight) for workload in workloads],
        work_dir=str(folder),
        max_trials_global=len(tasks) * trials,
        max_trials_per_task=trials,
        num_trials_per_iter=min(BATCH, trials),
        builder=ms.builder.LocalBuilder(timeout_sec=BUILD_TIMEOUT_S),
    )


def tune_network(model: Path, folder: Path, trials: int, *, prepack: bool) -> int:
    """Tune and build an ONNX model: ``trials`` for each of its tasks, how many there are is returned.

    The log and the library are left in ``folder``, which exists. With ``prepack`` weights are rewritten into the layout
    that the schedules want; TVM folds that into the library, as the weights are constants.
    """
    target = native_target()
    # Before TVM is imported, for its threads, and before constants are folded, which imports all intrinsics otherwise.
    warm_up(target)
    import onnx
    import tvm
    import tvm_ffi
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.meta_schedule import relax_integration

    device = tvm_target(target)
    tasks = 0

    def tune(module: Any, params: Any, target: Any, work_dir: str, *_: Any, **__: Any) -> Any:
        nonlocal tasks
        tasks = len(relax_integration.extract_tasks(module, target, dict(params)))
        relax_integration.tune_relax(
            module,
            dict(params),
            target,
            work_dir,
            max_trials_global=tasks * trials,
            max_trials_per_task=trials,
            num_trials_per_iter=min(BATCH, trials),
            builder=ms.builder.LocalBuilder(timeout_sec=BUILD_TIMEOUT_S),
            seed=1,
        )
        return module

    # The pipeline's own call has no argument for the builder.
    tvm_ffi.register_global_func("tvm.s_tir.meta_schedule.tune_relax", tune, override=True)
    pipeline = relax.get_pipeline(
        "static_shape_tuning", total_trials=trials, target=device, work_dir=str(folder), cpu_weight_prepack=prepack
    )
    executable = tvm.compile(pipeline(from_onnx(onnx.load(str(model)))), target=device)
    executable.export_library(str(folder / LIBRARY))
    return tasks


def trials_in(folder: Path) -> int:
    """Trials in a log so far."""
    records = folder / RECORDS
    return len(records.read_text().splitlines()) if records.exists() else 0


def main() -> None:
    """Tune and build one network; the answer is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=64, help="for each task")
    parser.add_argument("--prepack", action="store_true", help="with TVM's cpu_weight_prepack")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    started_s = time.perf_counter()
    tasks = tune_network(arguments.model, folder, arguments.trials, prepack=arguments.prepack)
    answer = {"workloads": tasks, "trials": trials_in(folder), "seconds": time.perf_counter() - started_s}
    (folder / ANSWER).write_text(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
