"""TVM's own MetaSchedule as it comes, but on all cores and with time to build, for benchmarks that compare with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lorien.dialects.metaschedule.workload import module_of, native_target, tvm_target
from lorien.machine import available_cores
from lorien.records import Workload

BUILD_TIMEOUT_S = 120
"""Not TVM's 30: each of its build processes imports the intrinsics of all devices first, which takes a Zen 1 44 s."""


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
        num_trials_per_iter=min(64, trials),
        builder=ms.builder.LocalBuilder(timeout_sec=BUILD_TIMEOUT_S),
    )
