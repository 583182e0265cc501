"""Parquet files whose damage is noticed: checksums in their pages, and one of their footer.

Parquet has checksums for pages alone. A flipped bit in the footer can rename a column or a target, or have values read
as others. A table therefore has a digest between its last page and its footer, where other readers do not look: eight
bytes that mark it, and the SHA-256 of all that follows. Tables without a digest, or without checksums, are read as
well: an earlier Lorien wrote them, or another program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lorien.errors import LorienError, SchemaMismatch, StoreUnavailable

_MARK = b"LORIEN01"
_DIGEST_BYTES = len(_MARK) + hashlib.sha256().digest_size
_LENGTH_BYTES = 8
"""At the end of a Parquet file: the length of its footer, and four bytes that tell Parquet."""
# All that Arrow, and Python on what Arrow gives, was seen to raise on damaged files; others are errors of ours.
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError)


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of a table; the digest of its footer is added when the block ends well."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        yield writer
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size - _LENGTH_BYTES)
        file.seek(size - tail_bytes(file.read()) + _DIGEST_BYTES)
        footer = file.read()
        file.seek(-len(footer), 2)
        file.write(_MARK + hashlib.sha256(footer).digest() + footer)


def tail_bytes(end: bytes) -> int:
    """Bytes of a file, from its last ones, that hold its footer and the digest."""
    return int.from_bytes(end[-_LENGTH_BYTES:-4], "little") + _LENGTH_BYTES + _DIGEST_BYTES


@contextmanager
def reading(table: Path | bytes, where: str) -> Iterator[pq.ParquetFile]:
    """A table, or its end as far as ``tail_bytes`` tells, to be read; checksums are compared where it has them.

    Raises
    ------
    SchemaMismatch
        It is damaged, or no Parquet file: at once, or where a damaged page is read.
    FileNotFoundError
        It is not there.
    """
    try:
        _check_footer(table)
        with pq.ParquetFile(
            pa.BufferReader(table) if isinstance(table, bytes) else table, page_checksum_verification=True
        ) as file:
            yield file
    except (LorienError, FileNotFoundError):
        raise
    except _DAMAGE as error:
        raise damaged(where, f"{error}") from None


def batches(table: Path, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a table, at most ``rows`` rows at a time.

    Raises
    ------
    SchemaMismatch
        It is damaged.
    StoreUnavailable
        It is no longer there.
    """
    try:
        with reading(table, str(table)) as file:
            for batch in file.iter_batches(rows, columns=list(columns)):
                # Arrow takes any bytes for text: in a page without a checksum they may be none.
                batch.validate(full=True)
                yield batch
    except FileNotFoundError:
        raise StoreUnavailable(f"{table} was removed before it was read. Fix: run again") from None


def damaged(where: str, reason: str) -> SchemaMismatch:
    """The error of a table that cannot be read."""
    return SchemaMismatch(
        f"{where} is damaged, or no readable Parquet file ({reason.strip()[:200]}). "
        "Fix: delete it and run lorien featurize again"
    )


def _check_footer(table: Path | bytes) -> None:
    if isinstance(table, bytes):
        tail = table[-tail_bytes(table) :]
    else:
        with table.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LENGTH_BYTES))
            file.seek(max(0, size - tail_bytes(file.read())))
            tail = file.read()
    digest, footer = tail[:_DIGEST_BYTES], tail[_DIGEST_BYTES:]
    if digest.startswith(_MARK) and digest != _MARK + hashlib.sha256(footer).digest():
        raise OSError("its footer is not the one that was written")
