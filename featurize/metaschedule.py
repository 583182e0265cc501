"""Features of MetaSchedule candidates: traces replayed, each schedule described by a row of numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule import logs
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.describe import EARLY, FEATURES, Describer
from lorien.dialects.metaschedule.workload import DIALECT, module_of, schedule_of
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, TuningRecord, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.s_tir import Schedule

logger = logging.getLogger(__name__)

REPLAY_BATCH = 64
"""Schedules alive at a time: each holds its own copy of the module."""


class MetaScheduleExtractor:
    """Replays traces and describes what they lower to. Implements ``FeatureExtractor``."""

    dialect = DIALECT
    features = FeatureSet("metaschedule", 2, tuple(Column(*feature) for feature in FEATURES))
    early = EARLY

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """See ``FeatureExtractor``."""
        for batch in batched(logs.read(log, info, report, shard), batch_rows):
            rows = np.concatenate(
                [self._record_rows(batch[i : i + REPLAY_BATCH]) for i in range(0, len(batch), REPLAY_BATCH)]
            )
            good = ~np.isnan(rows[:, 0])
            for record, is_good in zip(batch, good, strict=True):
                if not is_good:
                    report.bad(f"{log.name}: {record.workload.name}", "its trace does not fit the module")
            yield [record for record, is_good in zip(batch, good, strict=True) if is_good], rows[good]

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """See ``FeatureExtractor``. Raises ``BadInput`` when the workload itself cannot be read."""
        module_of(workload)
        describe = _describer(target)
        parts = [np.empty((0, len(FEATURES)), np.float32)]
        for i in range(0, len(candidates), REPLAY_BATCH):
            chunk = candidates[i : i + REPLAY_BATCH]
            parts.append(describe([_try_replay(workload, c, target) for c in chunk], [workload] * len(chunk)))
        return np.concatenate(parts)

    def _record_rows(self, records: Sequence[TuningRecord]) -> Features:
        """Rows of a few records; those of one target together."""
        rows = np.empty((len(records), len(FEATURES)), np.float32)
        for target in dict.fromkeys(record.target for record in records):
            own = [i for i, record in enumerate(records) if record.target == target]
            describe = _describer(target)
            schedules = [_try_replay(records[i].workload, records[i].candidate, target) for i in own]
            rows[own] = describe(schedules, [records[i].workload for i in own])
        return rows


_describer = lru_cache(maxsize=8)(Describer)


def _try_replay(workload: Workload, candidate: Candidate, target: Target) -> Schedule | None:
    """The schedule, or None when its trace does not fit the workload."""
    try:
        if candidate.schedule is None:
            return cpu_schedule(module_of(workload), target)
        return schedule_of(workload, candidate)
    except Exception as error:  # a trace is foreign data, and TVM raises what it likes
        logger.debug("a trace does not fit %s: %s", workload.name, error)
        return None
