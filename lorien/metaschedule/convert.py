"""TVM's objects of a tuning run as Lorien's records, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import tvm
from tvm.s_tir import meta_schedule as ms

from lorien.dialects import resolve_target
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.logs import FAILED_S
from lorien.dialects.metaschedule.workload import replay, tvm_target
from lorien.records import Measurement, Outcome, TuningRecord
from lorien.target import Target

AnyTarget: TypeAlias = str | Target | tvm.target.Target


def as_target(target: AnyTarget) -> Target:
    """A target as TVM or the user writes it."""
    if isinstance(target, tvm.target.Target):
        return Target.parse(json.loads(json.dumps(dict(target.export()), default=list)))
    return resolve_target(target) if isinstance(target, str) else target


def as_measurement(run_secs: Sequence[Any] | None) -> Measurement:
    """What TVM measured: no latency, or its stub for one among them, is a failure."""
    latencies_s = tuple(float(getattr(second, "value", second)) for second in run_secs or ())
    if not latencies_s or any(second >= FAILED_S for second in latencies_s):
        return Measurement(Outcome.UNKNOWN_ERROR, detail="TVM recorded no latency", timestamp_s=time.time())
    return Measurement(Outcome.OK, latencies_s, timestamp_s=time.time())


def tuning_record(record: TuningRecord, workload: ms.database.Workload) -> ms.database.TuningRecord:
    """A record of the database as TVM's, its trace replayed on the workload's module.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        TVM's own, when the trace does not fit.
    """
    candidate, target = record.candidate, record.target
    default = candidate.schedule is None and target.kind == "llvm"
    schedule = cpu_schedule(workload.mod, target) if default else replay(workload.mod, candidate.schedule)
    return ms.database.TuningRecord(
        schedule.trace,
        workload,
        list(record.measurement.latencies_s),
        tvm_target(record.target),
        ms.arg_info.ArgInfo.from_entry_func(workload.mod, remove_preproc=True),
    )


def is_naive(record: TuningRecord) -> bool:
    """True for the module as it is: a trace without instructions, or no schedule where TVM has the default."""
    schedule = record.candidate.schedule
    return record.target.kind != "llvm" if schedule is None else not schedule[0]
