"""Full tuning logs, in their native formats. ``open_logs`` takes the URL, ``base`` holds the contract."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from lorien.errors import BadInput

if TYPE_CHECKING:
    from lorien.logs.base import LogStore

_SCHEMES = {"file": "lorien.logs.local:LocalLogStore", "s3": "lorien.logs.s3:S3LogStore"}


def open_logs(url: str | Path) -> LogStore:
    """Open a log store: a folder, a ``file://`` URL or ``s3://bucket/prefix?region=...&endpoint_url=...``.

    A folder or prefix that is not there is made by the first log put in; a bucket is not.

    Raises
    ------
    BadInput
        Unknown scheme, or something is there that is no folder.
    MissingExtra
        boto3 is needed and not installed.
    """
    text = str(url)
    scheme, found, _ = text.partition("://")
    if not found:
        scheme, text = "file", f"file://{text}"
    if scheme not in _SCHEMES:
        known = ", ".join(_SCHEMES)
        raise BadInput(
            f"log store {text!r}: unknown scheme {scheme!r}; known: {known}. Fix: a path, file:// or s3://BUCKET/PREFIX"
        )
    store: LogStore = pkgutil.resolve_name(_SCHEMES[scheme])(text)
    return store
