"""Logs to feature tables: one row per tuning record, float32 features, Parquet."""

from __future__ import annotations

import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from lorien.errors import UnsupportedOperation

if TYPE_CHECKING:
    from lorien.featurize.base import FeatureExtractor

ENTRY_POINT_GROUP = "lorien.featurize"
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

    Those of outsiders come by the entry point ``lorien.featurize`` that is named like the dialect.

    Raises ``UnsupportedOperation`` when the dialect has no features.
    """
    if dialect not in _EXTRACTORS:
        outsiders = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        if dialect not in outsiders:
            raise UnsupportedOperation(
                f"dialect {dialect!r} has no features; those that do: {', '.join((*_EXTRACTORS, *outsiders))}. "
                f"Fix: give it an entry point {ENTRY_POINT_GROUP}, docs/dialects.md shows one"
            )
        outsider: FeatureExtractor = outsiders[dialect].load()()
        return outsider
    where = _OTHERS.get((dialect, feature_set or ""), _EXTRACTORS[dialect])
    extractor: FeatureExtractor = pkgutil.resolve_name(where)()
    return extractor
