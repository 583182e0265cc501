"""Objects below a prefix in S3: the few operations that the stores there are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lorien.aws import MAX_CONNECTIONS, Service, code_of, explained
from lorien.errors import StoreUnavailable

PAGE_OBJECTS = 1000  # the most that S3 lists at once

T = TypeVar("T")
U = TypeVar("U")


class Object(NamedTuple):
    """A small object as it was read."""

    content: bytes
    etag: str


class S3Folder:
    """What is below ``s3://bucket/prefix?region=...&endpoint_url=...``; names are relative to it.

    Safe across threads, forks and pickling. An object is seen whole or not at all.

    All methods raise ``StoreUnavailable`` when S3 cannot be reached, or refuses; throttled requests are sent again.
    """

    def __init__(self, url: str) -> None:
        self._service = Service("s3", url)
        self._prefix = f"{self._service.path}/" if self._service.path else ""
        self.url = f"s3://{self._service.name}/{self._service.path}".rstrip("/")

    def pages(self, below: str = "") -> Iterator[list[str]]:
        """Names that begin with ``below``, sorted, as they come: ``PAGE_OBJECTS`` at a time."""
        with self._explained("list"):
            pages = self._service.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._service.name,
                Prefix=self._prefix + below,
                PaginationConfig={"PageSize": PAGE_OBJECTS},
            )
            for page in pages:
                yield [item["Key"].removeprefix(self._prefix) for item in page.get("Contents", ())]

    def read(self, name: str, last_bytes: int | None = None) -> Object | None:
        """A small object, or at most its last bytes; None when it is not there."""
        part = {} if last_bytes is None else {"Range": f"bytes=-{last_bytes}"}
        with self._explained(f"read {name} of"):
            try:
                answer, content = self._service.with_body(
                    lambda: self._service.client.get_object(**self._at(name), **part)
                )
            except Exception as error:
                if code_of(error) == "NoSuchKey":
                    return None
                raise
            return Object(content, answer["ETag"])

    def write(self, name: str, content: bytes, replacing: Object | None) -> bool:
        """Write a small object over the one that was read, or where there was none.

        False when another writer came first; of writers at the same time, one gets True.
        """
        condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing.etag}
        with self._explained(f"write {name} of"):
            try:
                self._service.client.put_object(Body=content, **self._at(name), **condition)
            except Exception as error:
                if code_of(error) not in ("PreconditionFailed", "NoSuchKey"):
                    raise
                # Ours, when only the answer was lost and the request sent twice.
                present = self.read(name)
                return present is not None and present.content == content
        return True

    def upload(self, files: Mapping[str, Path]) -> None:
        """Copy local files in, by name; large ones in parts."""
        with self._explained("write"), self._transfers() as transfers:
            sent = [transfers.upload(str(path), *self._at(name).values()) for name, path in files.items()]
            for future in sent:
                future.result()

    def download(self, files: Mapping[str, Path]) -> None:
        """Copy objects, by name, to local paths. Raises ``FileNotFoundError`` when one is not there."""
        with self._explained("read"), self._transfers() as transfers:
            fetched = {name: transfers.download(*self._at(name).values(), str(path)) for name, path in files.items()}
            for name, future in fetched.items():
                try:
                    future.result()
                except Exception as error:
                    if code_of(error) in ("404", "NoSuchKey"):
                        raise FileNotFoundError(f"{self.url}/{name} is not there, or no longer") from None
                    raise

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is not there counts as deleted."""
        with self._explained("delete in"):
            self.each(lambda name: self._service.client.delete_object(**self._at(name)), names)

    @staticmethod
    def each(function: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """``function`` of each item, several at a time, in their order; the first error stops the rest."""
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            try:
                return list(pool.map(function, items))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _transfers(self) -> Any:
        """What sends and fetches files, their parts side by side; left with an error, it cancels the rest."""
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        return create_transfer_manager(self._service.client, TransferConfig(max_concurrency=MAX_CONNECTIONS))

    def _at(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._service.name, "Key": self._prefix + name}

    def _explained(self, verb: str) -> AbstractContextManager[None]:
        return explained(StoreUnavailable, f"cannot {verb} {self.url}", "Nothing half-written is taken for whole.")
