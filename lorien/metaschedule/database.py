"""A schedule database as MetaSchedule's: for ``with database:``, ``compile_relax``, ``tune_tir``, ``tune_relax``."""

from __future__ import annotations

import logging
import statistics

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from lorien.database import open_database
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.workload import BUILD, candidate_of_trace, workload_of
from lorien.metaschedule.convert import AnyTarget, as_measurement, as_target, is_naive, tuning_record
from lorien.records import TuningRecord, Workload

logger = logging.getLogger(__name__)


@derived_object
class Database(ms.database.PyDatabase):  # type: ignore[misc]
    """The best schedules of a Lorien database, as TVM's tools ask for them.

    It holds what a schedule database holds: of each workload and target the ``n_best`` that ran, of this TVM. So
    ``len`` and ``get_all_tuning_records`` do not count failures, which belong to logs. Two modules are one workload
    when they are structurally equal. ``query`` answers for the target it is asked for; where the module as it
    is was the fastest it answers None.

    Parameters
    ----------
    url : str
        As ``lorien.open_database`` takes it.
    target : str, Target or tvm.target.Target, optional
        Limits ``get_top_k``, ``get_all_tuning_records`` and ``len``, which are not told a target; None for all.
    create, n_best
        See ``lorien.open_database``.

    Raises
    ------
    BadInput, DatabaseUnavailable, SchemaMismatch
        See ``lorien.open_database`` and ``ScheduleDatabase``.
    """

    def __init__(
        self, url: str, target: AnyTarget | None = None, *, create: bool | None = None, n_best: int | None = None
    ) -> None:
        super().__init__()
        self._database = open_database(url, create=create, n_best=n_best)
        self._target = as_target(target) if target is not None else None
        if self._target is not None:
            register_intrinsics(self._target)
        self._committed: dict[str, tuple[Workload, ms.database.Workload]] = {}

    def has_workload(self, mod: tvm.IRModule) -> bool:
        """True when it was committed here, or a schedule of it is stored."""
        workload = workload_of(mod, "main")
        if workload.key in self._committed:
            return True
        return next(self._database.query(self._target, workload.key), None) is not None

    def commit_workload(self, mod: tvm.IRModule) -> ms.database.Workload:
        """The token of a module, the same for every module equal to it."""
        workload = workload_of(mod, "main")
        return self._committed.setdefault(workload.key, (workload, ms.database.Workload(mod)))[1]

    def commit_tuning_record(self, record: ms.database.TuningRecord) -> None:
        """Store a record, if it is one of the best. One without a target raises ``ValueError``."""
        target = as_target(record.target) if record.target is not None else self._target
        if target is None:
            raise ValueError("the record names no target. Fix: Database(url, target) gives one to all records")
        self.commit_workload(record.workload.mod)
        known = workload_of(record.workload.mod, "main")
        measurement = as_measurement(record.run_secs)
        self._database.put(TuningRecord(known, target, candidate_of_trace(record.trace), measurement, BUILD))

    def get_top_k(self, workload: ms.database.Workload, top_k: int) -> list[ms.database.TuningRecord]:
        """At most ``top_k`` schedules that replay, by mean latency."""
        key = workload_of(workload.mod, "main").key
        return self._records(workload, list(self._database.query(self._target, key)), top_k)

    def get_all_tuning_records(self) -> list[ms.database.TuningRecord]:
        """All that is stored and replays, workload by workload."""
        found: list[ms.database.TuningRecord] = []
        for record in self._database.query(self._target, dialect="metaschedule"):
            found += self._records(self._token(record.workload), [record], 1)
        return found

    def __len__(self) -> int:
        return sum(record.build == BUILD for record in self._database.query(self._target, dialect="metaschedule"))

    def query_tuning_record(
        self, mod: tvm.IRModule, target: tvm.target.Target, workload_name: str | None = None
    ) -> ms.database.TuningRecord | None:
        """The best schedule for the target; None when there is none, or when no schedule beat the module as it is."""
        asked = as_target(target)
        register_intrinsics(asked)
        workload = workload_of(mod, workload_name or "main")
        for record in self._database.best(asked, workload.key, self._database.n_best, build=BUILD):
            if is_naive(record):
                return None
            if found := self._records(self.commit_workload(mod), [record], 1):
                return found[0]
        return None

    def close(self) -> None:
        """Release the connection. Closing twice is fine."""
        self._database.close()

    def _token(self, workload: Workload) -> ms.database.Workload:
        if workload.key not in self._committed:
            token = ms.database.Workload.from_json([workload.identity[1], workload.definition])
            self._committed[workload.key] = (workload, token)
        return self._committed[workload.key][1]

    def _records(
        self, token: ms.database.Workload, stored: list[TuningRecord], count: int
    ) -> list[ms.database.TuningRecord]:
        found: list[ms.database.TuningRecord] = []
        for record in sorted(stored, key=_mean_s):
            if len(found) == count:
                break
            if record.build != BUILD or is_naive(record):
                continue
            try:
                found.append(tuning_record(record, token))
            except (RuntimeError, ValueError, TypeError) as error:
                logger.warning("a stored schedule of %s does not replay: %s", record.workload.name, error)
        return found


def _mean_s(record: TuningRecord) -> float:
    return statistics.fmean(record.measurement.latencies_s)
