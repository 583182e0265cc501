"""Tuning frameworks Lorien speaks. Built-in ones resolve on use; outsiders come by entry point ``lorien.dialects``."""

from __future__ import annotations

import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from lorien.errors import UnknownDialect, UnsupportedOperation

if TYPE_CHECKING:
    from lorien.dialects.base import LiveDialect, LogDialect, ModelDialect
    from lorien.target import Target

_BUILTIN = {
    "auto_scheduler": "lorien.dialects.auto_scheduler:AutoSchedulerDialect",
    "autotvm": "lorien.dialects.autotvm:AutoTvmDialect",
    "halide": "lorien.dialects.halide:HalideDialect",
    "metaschedule": "lorien.dialects.metaschedule:MetaScheduleDialect",
    "metaschedule_legacy": "lorien.dialects.metaschedule_legacy:MetaScheduleLegacyDialect",
}
ENTRY_POINT_GROUP = "lorien.dialects"


def names() -> list[str]:
    """Every dialect that can be opened, built in or installed."""
    return sorted({*_BUILTIN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def open_dialect(name: str) -> LogDialect:
    """The dialect of that name. Raises ``UnknownDialect``."""
    if name in _BUILTIN:
        dialect: LogDialect = pkgutil.resolve_name(_BUILTIN[name])()
        return dialect
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            outsider: LogDialect = point.load()()
            return outsider
    raise UnknownDialect(name, names())


def open_live_dialect(name: str) -> LiveDialect:
    """The dialect of that name, when it can search, build and run. Raises ``UnsupportedOperation`` when it cannot."""
    from lorien.dialects.base import LiveDialect

    dialect = open_dialect(name)
    if not isinstance(dialect, LiveDialect):
        raise UnsupportedOperation(
            f"dialect {name!r} reads logs only: its compiler is not here. Fix: use a live dialect, such as metaschedule"
        )
    return dialect


def open_model_dialect(name: str) -> ModelDialect:
    """The dialect of that name, when it can compile models. Raises ``UnsupportedOperation`` when it cannot."""
    from lorien.dialects.base import ModelDialect

    dialect = open_live_dialect(name)
    if not isinstance(dialect, ModelDialect):
        raise UnsupportedOperation(f"dialect {name!r} does not compile whole models. Fix: use metaschedule")
    return dialect


def resolve_target(text: str, dialect: str = "metaschedule") -> Target:
    """A target as the user writes it; ``native`` asks the dialect's compiler what this machine is.

    Raises ``BadInput`` when it is no target.
    """
    from lorien.target import Target

    return open_live_dialect(dialect).native_target() if text == "native" else Target.parse(text)
