"""The contract of a feature extractor: one per dialect, records or candidates in, rows of float32 out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize.schema import FeatureSet
from lorien.records import Candidate, TuningRecord, Workload
from lorien.target import Target

Features = npt.NDArray[np.float32]


class FeatureExtractor(Protocol):
    """Turns measured or proposed schedules into feature rows. Deterministic; one instance per process."""

    dialect: str
    features: FeatureSet

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """Stream a log as batches of at most ``batch_rows`` records and their rows (records, columns), same order.

        Records that cannot be featurized are reported to ``report.bad`` and left out of both.
        """

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """Rows (candidates, columns) in the order given; a candidate that cannot be lowered is a row of NaN."""


def early_columns(extractor: FeatureExtractor) -> Sequence[int]:
    """Positions of the columns known before a schedule is made, by which a search can draft: ``extractor.early``.

    Most extractors have none, and need not say so.
    """
    return getattr(extractor, "early", ())


def batched(records: Iterable[TuningRecord], batch_rows: int) -> Iterator[list[TuningRecord]]:
    """Lists of at most ``batch_rows`` records."""
    batch: list[TuningRecord] = []
    for record in records:
        batch.append(record)
        if len(batch) == batch_rows:
            yield batch
            batch = []
    if batch:
        yield batch
