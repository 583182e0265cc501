"""Logs to feature tables: one row per tuning record, float32 features, Parquet."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from lorien.errors import UnsupportedOperation

if TYPE_CHECKING:
    from lorien.featurize.base import FeatureExtractor

_EXTRACTORS = {
    "auto_scheduler": "lorien.featurize.auto_scheduler:AutoSchedulerExtractor",
    "autotvm": "lorien.featurize.autotvm:AutoTvmExtractor",
    "halide": "lorien.featurize.halide:HalideExtractor",
    "metaschedule": "lorien.featurize.metaschedule:MetaScheduleExtractor",
    "metaschedule_legacy": "lorien.featurize.metaschedule_trace:LegacyExtractor",
}
# Other feature sets of a dialect, by the name of the set.
_OTHERS = {
    ("metaschedule", "metaschedule_trace"): "lorien.featurize.metaschedule_trace:MetaScheduleTraceExtractor",
}


def open_extractor(dialect: str, feature_set: str | None = None) -> FeatureExtractor:
    """The feature extractor of a dialect: of the feature set it is searched with, or of another by its name.

    Raises ``UnsupportedOperation`` when the dialect has no features.
    """
    if dialect not in _EXTRACTORS:
        raise UnsupportedOperation(f"dialect {dialect!r} has no features; those that do: {', '.join(_EXTRACTORS)}")
    where = _OTHERS.get((dialect, feature_set or ""), _EXTRACTORS[dialect])
    extractor: FeatureExtractor = pkgutil.resolve_name(where)()
    return extractor
