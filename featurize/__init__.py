"""Logs to feature tables: one row per tuning record, float32 features, Parquet."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lorien.errors import UnsupportedOperation

if TYPE_CHECKING:
    from lorien.featurize.base import FeatureExtractor

_EXTRACTORS = {
    "auto_scheduler": "lorien.featurize.auto_scheduler:AutoSchedulerExtractor",
    "autotvm": "lorien.featurize.autotvm:AutoTvmExtractor",
    "metaschedule": "lorien.featurize.metaschedule:MetaScheduleExtractor",
}


def open_extractor(dialect: str) -> FeatureExtractor:
    """The feature extractor of a dialect. Raises ``UnsupportedOperation`` when it has none."""
    if dialect not in _EXTRACTORS:
        raise UnsupportedOperation(f"dialect {dialect!r} has no features; those that do: {', '.join(_EXTRACTORS)}")
    module, _, attribute = _EXTRACTORS[dialect].partition(":")
    extractor: FeatureExtractor = getattr(importlib.import_module(module), attribute)()
    return extractor
