"""Best schedules per (target, workload). ``open_database`` takes the URL, ``base`` holds the contract."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lorien.errors import BadInput

if TYPE_CHECKING:
    from lorien.database.base import ScheduleDatabase

_SCHEMES = {"sqlite": "lorien.database.sqlite:SqliteDatabase"}


def open_database(url: str, *, create: bool = True, n_best: int | None = None) -> ScheduleDatabase:
    """Open a schedule database.

    Parameters
    ----------
    url : str
        ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or a plain path.
    create : bool
        Make it when it is not there; False raises ``BadInput`` instead.
    n_best : int, optional
        Schedules kept per (target, workload, framework build), fixed when the database is made; 8 when not given.

    Raises
    ------
    BadInput
        Unknown scheme, a file that is no schedule database, or another ``n_best`` than it was made with.
    SchemaMismatch
        It was written by a newer Lorien.
    DatabaseUnavailable
        It cannot be reached now.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        scheme, url = "sqlite", f"sqlite:///{url}"
    if scheme not in _SCHEMES:
        raise BadInput(f"database {url!r}: unknown scheme {scheme!r}; known: {', '.join(_SCHEMES)}, or a plain path")
    module, _, attribute = _SCHEMES[scheme].partition(":")
    database: ScheduleDatabase = getattr(importlib.import_module(module), attribute)(url, create=create, n_best=n_best)
    return database
