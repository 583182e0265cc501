"""Lorien inside TVM's own tuning: a database, a cost model, a builder and a runner that MetaSchedule takes for its own.

>>> import lorien.metaschedule as lms
>>> with lms.Measurer("metaschedule", target) as measurer:  # doctest: +SKIP
...     tvm.s_tir.meta_schedule.tune_tir(
...         module,
...         native,
...         work_dir,
...         max_trials_global=64,
...         builder=lms.Builder(measurer),
...         runner=lms.Runner(measurer),
...         cost_model=lms.CostModel("models", target),
...         database=lms.Database("sqlite:///best.db"),
...     )

TVM is checked here, and imported when one of the names is used.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.workload import require_tvm

if TYPE_CHECKING:
    from lorien.dialects.metaschedule.extract import lower
    from lorien.metaschedule.cost_model import CostModel
    from lorien.metaschedule.database import Database
    from lorien.metaschedule.measure import Builder, Runner
    from lorien.tune.measure import MeasureConfig, Measurer

_EXPORTS = {
    "Builder": "lorien.metaschedule.measure",
    "CostModel": "lorien.metaschedule.cost_model",
    "Database": "lorien.metaschedule.database",
    "MeasureConfig": "lorien.tune.measure",
    "Measurer": "lorien.tune.measure",
    "Runner": "lorien.metaschedule.measure",
    "lower": "lorien.dialects.metaschedule.extract",
}
__all__ = ["Builder", "CostModel", "Database", "MeasureConfig", "Measurer", "Runner", "lower"]

require_tvm()  # another pair of TVM's packages would crash when it is imported


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lorien.metaschedule' has no attribute {name!r}")
    return pkgutil.resolve_name(f"{_EXPORTS[name]}:{name}")
