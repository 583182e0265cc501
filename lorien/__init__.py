"""Lorien: good schedules, in seconds, for deep-learning operators that nobody has tuned yet."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorien.database import open_database
    from lorien.delivery import Delivery, deliver
    from lorien.dialects import resolve_target
    from lorien.logs import open_logs
    from lorien.models import load_ranker
    from lorien.records import Candidate, Measurement, TuningRecord, Workload
    from lorien.target import Target

__version__ = "0.1.0"

# Resolved on use: importing lorien loads nothing heavy.
_EXPORTS = {
    "Candidate": "lorien.records",
    "Delivery": "lorien.delivery",
    "Measurement": "lorien.records",
    "Target": "lorien.target",
    "TuningRecord": "lorien.records",
    "Workload": "lorien.records",
    "deliver": "lorien.delivery",
    "load_ranker": "lorien.models",
    "open_database": "lorien.database",
    "open_logs": "lorien.logs",
    "resolve_target": "lorien.dialects",
}
__all__ = [
    "Candidate",
    "Delivery",
    "Measurement",
    "Target",
    "TuningRecord",
    "Workload",
    "deliver",
    "load_ranker",
    "open_database",
    "open_logs",
    "resolve_target",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lorien' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
