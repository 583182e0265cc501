"""The decompressed bytes of a file: plain, gzip, xz, bzip2 or zstd, whole or cut short."""

from __future__ import annotations

import bz2
import logging
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
_ZSTD_CHUNK_BYTES = 64 << 10
"""Less, for Arrow's stream drops the whole read in which the data ends early."""
SUFFIXES = (".gz", ".xz", ".bz2", ".zst")
"""What a compressed file's name ends with. The format is told by the first bytes, not by the name."""

_MEMORY_BYTES = 256 << 20
"""The most that an xz decoder may take: the dictionary of the strongest preset is 64 MiB."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ARCHIVES = ((b"PK\x03\x04", "a zip archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!", "a rar archive"))


class _Gzip:
    """zlib's decoder with the interface of those of ``bz2`` and ``lzma``."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflater.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, max_length)


_DECODERS: tuple[tuple[bytes, str, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"\xfd7zXZ\x00", "xz", lambda: lzma.LZMADecompressor(memlimit=_MEMORY_BYTES)),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
)


def chunks(path: Path) -> Iterator[bytes]:
    """Stream the decompressed bytes of a file, compressed or not, whole or cut short. Raises ``OSError``.

    Members appended to one another are read on. Where a compressed file is damaged or ends early, what came before is
    read, and a warning is logged.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
        stream.seek(0)
        for magic, name, decoder in _DECODERS:
            if head.startswith(magic):
                yield from _decoded(stream, path, name, decoder)
                return
        if head.startswith(_ZSTD_MAGIC):
            yield from _zstd(stream, path)
        else:
            yield from iter(lambda: stream.read(CHUNK_BYTES), b"")


def plain_name(name: str) -> str:
    """A file's name without the suffix of its compression."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name, plain or compressed, that is there."""
    return next((path for suffix in ("", *SUFFIXES) if (path := folder / f"{name}{suffix}").is_file()), None)


def archive_kind(path: Path) -> str | None:
    """What kind of archive a file is, in words; None when it is none. Raises ``OSError``."""
    with path.open("rb") as stream:
        head = stream.read(512)
    found = next((kind for magic, kind in _ARCHIVES if head.startswith(magic)), None)
    return found or ("a tar archive" if head[257:262] == b"ustar" else None)


def _decoded(stream: BinaryIO, path: Path, name: str, new_decoder: Callable[[], Any]) -> Iterator[bytes]:
    # The file objects of these modules throw away what they had decoded when the file ends early.
    data = stream.read(CHUNK_BYTES)
    while data:
        decoder = new_decoder()
        while not decoder.eof:
            try:
                text = decoder.decompress(data, CHUNK_BYTES)
            except (zlib.error, lzma.LZMAError, OSError, MemoryError) as error:
                logger.warning("%s: %s data is damaged (%s); what follows is lost", path, name, error)
                return
            if text:
                yield text
            data = b""
            if decoder.needs_input and not decoder.eof:
                data = stream.read(CHUNK_BYTES)
                if not data and not text:  # While there is text, the decoder may hold more.
                    logger.warning("%s: %s data ends early; what came before is read", path, name)
                    return
        data = (decoder.unused_data or stream.read(CHUNK_BYTES)).lstrip(b"\0")  # some writers pad between members


def _zstd(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    # Arrow is installed with Lorien; Python has zstd of its own from 3.14 on.
    import pyarrow as pa

    with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd") as text:
        while True:
            try:
                chunk = text.read(_ZSTD_CHUNK_BYTES)
            except OSError as error:
                logger.warning("%s: zstd data is damaged or ends early (%s); what came before is read", path, error)
                return
            if not chunk:
                return
            yield chunk
