"""Best schedules per (target, workload). ``open_database`` takes the URL, ``base`` holds the contract."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from lorien.errors import BadInput

if TYPE_CHECKING:
    from lorien.database.base import EditableDatabase

_SCHEMES = {
    "sqlite": "lorien.database.sqlite:SqliteDatabase",
    "dynamodb": "lorien.database.dynamodb:DynamoDatabase",
}


def open_database(url: str, *, create: bool | None = None, n_best: int | None = None) -> EditableDatabase:
    """Open a schedule database.

    Parameters
    ----------
    url : str
        ``sqlite:///relative.db``, ``sqlite:////absolute.db``, a plain path, or
        ``dynamodb://table?region=...&endpoint_url=...``.
    create : bool, optional
        Make it when it is not there; False raises ``BadInput`` instead. When not given, a file is made and a table,
        which costs money and outlives a slip of the keyboard, is not.
    n_best : int, optional
        Schedules kept per (target, workload, framework build) and variant, fixed when the database is made; 8 when not
        given.

    Raises
    ------
    BadInput
        Unknown scheme, a file or table that is no schedule database, or another ``n_best`` than it was made with.
    SchemaMismatch
        It was written under a newer schema, or under none; the message says what to do. One of an older is read as it
        is, and upgraded by the first write.
    DatabaseUnavailable
        It cannot be reached now, or not with these credentials.
    MissingExtra
        boto3 is needed and not installed.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        scheme, url = "sqlite", f"sqlite:///{url}"
    if scheme not in _SCHEMES:
        known = ", ".join(_SCHEMES)
        raise BadInput(
            f"database {url!r}: unknown scheme {scheme!r}; known: {known}. "
            "Fix: sqlite:///FILE, dynamodb://TABLE or a path"
        )
    database: EditableDatabase = pkgutil.resolve_name(_SCHEMES[scheme])(url, create=create, n_best=n_best)
    return database
