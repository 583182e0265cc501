"""Feature set ``halide``: what Adams2019 says of a schedule's stages, decoded from the candidate without Halide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.halide import logs
from lorien.dialects.halide.features import FEATURES, describe
from lorien.dialects.halide.pipelines import DIALECT
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, TuningRecord, Workload
from lorien.target import Target


class HalideExtractor:
    """Implements ``FeatureExtractor``."""

    dialect = DIALECT
    features = FeatureSet("halide", 1, tuple(Column(*feature) for feature in FEATURES))

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """See ``FeatureExtractor``."""
        for batch in batched(logs.read(log, info, report, shard), batch_rows):
            rows = np.concatenate([self.extract(r.workload, [r.candidate], r.target) for r in batch])
            good = ~np.isnan(rows[:, 0])
            for record, is_good in zip(batch, good, strict=True):
                if not is_good:
                    report.bad(f"{log.name}: {record.workload.name}", "its schedule holds no features")
            yield [record for record, is_good in zip(batch, good, strict=True) if is_good], rows[good]

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """See ``FeatureExtractor``."""
        return describe([candidate.schedule for candidate in candidates], target)
