"""Write the files of TVM's ``JSONDatabase``, a line at a time; ``logs`` and TVM's own tools read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from lorien.dialects.metaschedule.logs import FAILED_S, RECORDS, WORKLOADS
from lorien.dialects.metaschedule.workload import module_of, require_tvm, tvm_target
from lorien.records import Candidate, Measurement, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from lorien.records import Json


class JsonDatabaseWriter:
    """The lines of one log. Implements ``LogWriter``."""

    workload_file = WORKLOADS
    record_file = RECORDS

    def __init__(self, workloads: Sequence[Workload], target: Target) -> None:
        self._workloads = list(workloads)
        # As TVM writes a target: its dictionary with the keys that TVM derives.
        target_json = json.dumps(dict(tvm_target(target).export()), default=list)
        self._target = orjson.Fragment(target_json)
        self._arguments = [_arguments(workload) for workload in workloads]

    def workload_lines(self) -> bytes:
        """Content of the workload file."""
        return b"".join(orjson.dumps([w.identity[1], w.definition]) + b"\n" for w in self._workloads)

    def record_line(self, index: int, candidate: Candidate, measurement: Measurement) -> bytes:
        """The line of one measured candidate of workload number ``index``."""
        latencies_s = measurement.latencies_s if measurement.ok else (FAILED_S,)
        record = [candidate.schedule, latencies_s, self._target, self._arguments[index]]
        return orjson.dumps([index, record]) + b"\n"


def _arguments(workload: Workload) -> Json:
    require_tvm()
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    return [argument.as_json() for argument in ArgInfo.from_entry_func(module_of(workload), remove_preproc=True)]
