"""How definitions of workloads are stored: compressed, under a digest of their text, once for all that share one."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace

from lorien.database.base import Item

MAX_BYTES = 1 << 30
"""Of a definition, unpacked: more is a damaged or a malicious one, and is not unpacked to the end."""


class DamagedDefinition(ValueError):
    """What is stored is no packed definition."""


def digest_of(definition: str) -> str:
    """Name of a definition: 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(definition.encode()).hexdigest()[:32]


def pack(text: str) -> bytes:
    """Compress: a module of TVM shrinks to a tenth."""
    return zlib.compress(text.encode())


def unpack(packed: bytes) -> str:
    """What was packed. Raises ``DamagedDefinition``."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed, MAX_BYTES).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise DamagedDefinition(f"a definition is damaged: {error}") from error
    if not unpacking.eof:
        raise DamagedDefinition("a definition is damaged: it has no end")
    return text


def without_definition(item: Item) -> Item:
    """The item, its definition left out."""
    return replace(item, workload=replace(item.workload, definition=None))


def with_definition(item: Item, definition: str | None) -> Item:
    """The item with a definition that was stored apart; one that it has itself stays."""
    if definition is None or item.workload.definition is not None:
        return item
    return replace(item, workload=replace(item.workload, definition=definition))
