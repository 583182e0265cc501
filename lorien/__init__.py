"""Lorien: good schedules, in seconds, for deep-learning operators that nobody has tuned yet.

Whatever is measured is a record: a workload, a target, a candidate, and what came of it.

>>> import lorien
>>> target = lorien.Target.parse("llvm -mcpu=znver4 -num-cores=2")
>>> target.key, target.family
('llvm-mcpu_znver4-num-cores_2', 'llvm-x86')
>>> workload = lorien.Workload("autotvm", "dense", ["dense_nopack.x86", [1, 512], [1000, 512]], flop=1024e3)
>>> workload.key
'2cc5179aec6a7b2a77d39d84fb1b2ccd'
>>> measurement = lorien.Measurement(lorien.Outcome.OK, (2.0e-4, 2.2e-4, 2.1e-4))
>>> record = lorien.TuningRecord(workload, target, lorien.Candidate([["tile_x", 8]]), measurement, "tvm 0.10.0")

A database keeps the best of them, and a log store all:

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> with lorien.open_database(f"{folder.name}/best.db") as database:
...     database.put(record)
...     [best.measurement.latency_s for best in database.best(target, workload.key)]
True
[0.00021]
>>> logs = lorien.open_logs(f"{folder.name}/logs")
>>> [path.name for path in logs.list()]
[]
>>> lorien.open_models(f"{folder.name}/models").list()
[]
>>> folder.cleanup()

Errors say what to do:

>>> lorien.open_dialect("halyde")  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
lorien.errors.UnknownDialect: no dialect 'halyde'; known: ... Fix: --dialect with one of these
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorien.database import open_database
    from lorien.delivery import Delivery, deliver
    from lorien.dialects import open_dialect, resolve_target
    from lorien.logs import open_logs
    from lorien.logs.ingest import ingest
    from lorien.models import load_ranker
    from lorien.models.evaluate import evaluate
    from lorien.models.store import open_models
    from lorien.models.train import train
    from lorien.network import BuildReport, build
    from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
    from lorien.target import Target

__version__ = "0.1.0"

# Resolved on use: importing lorien loads nothing heavy.
_EXPORTS = {
    "BuildReport": "lorien.network",
    "Candidate": "lorien.records",
    "Delivery": "lorien.delivery",
    "Measurement": "lorien.records",
    "Outcome": "lorien.records",
    "Target": "lorien.target",
    "TuningRecord": "lorien.records",
    "Workload": "lorien.records",
    "build": "lorien.network",
    "deliver": "lorien.delivery",
    "evaluate": "lorien.models.evaluate",
    "ingest": "lorien.logs.ingest",
    "load_ranker": "lorien.models",
    "open_database": "lorien.database",
    "open_dialect": "lorien.dialects",
    "open_logs": "lorien.logs",
    "open_models": "lorien.models.store",
    "resolve_target": "lorien.dialects",
    "train": "lorien.models.train",
}
__all__ = [
    "BuildReport",
    "Candidate",
    "Delivery",
    "Measurement",
    "Outcome",
    "Target",
    "TuningRecord",
    "Workload",
    "build",
    "deliver",
    "evaluate",
    "ingest",
    "load_ranker",
    "open_database",
    "open_dialect",
    "open_logs",
    "open_models",
    "resolve_target",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lorien' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
