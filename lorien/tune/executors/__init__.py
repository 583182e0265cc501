"""Where the workers of a run are: each executor starts them and tells which live. What is done is in the job table."""

from __future__ import annotations

import pkgutil
from typing import Any

from lorien.errors import BadInput
from lorien.tune.executors.base import Executor
from lorien.tune.worker import WorkerConfig

EXECUTORS = {
    "local": "lorien.tune.executors.local:LocalExecutor",
    "batch": "lorien.tune.executors.batch:BatchExecutor",
    "ray": "lorien.tune.executors.ray:RayExecutor",
}


def open_executor(name: str, worker: WorkerConfig, **options: Any) -> Executor:
    """An executor of ``EXECUTORS``.

    Parameters
    ----------
    name : str
    worker : WorkerConfig
        What its workers are told, but for the target.
    **options
        Of this executor.

    Raises
    ------
    BadInput
        There is no such executor.
    MissingExtra
        What it needs is not installed.
    """
    if name not in EXECUTORS:
        raise BadInput(f"no executor {name!r}; known: {', '.join(EXECUTORS)}. Fix: --executor with one of these")
    executor: Executor = pkgutil.resolve_name(EXECUTORS[name])(worker, **options)
    return executor
