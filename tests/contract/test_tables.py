"""One suite for every store of feature tables."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorien.errors import BadInput, SchemaMismatch
from lorien.featurize.dataset import tables
from lorien.featurize.schema import ROW_FIELDS, Column, FeatureSet
from lorien.featurize.store import TAIL_BYTES, TableStore, open_tables
from lorien.s3 import S3Folder

BACKENDS = ("local", "moto", "seaweedfs")
NAME = "dialect=toy/target=llvm/net-0of1.parquet"


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TableStore:
    if request.param == "local":
        return open_tables(tmp_path / "features")
    s3_folder: Callable[[str], str] = request.getfixturevalue("s3_folder")
    return open_tables(s3_folder(request.param))


def write(store: TableStore, log: str, name: str = NAME, meaning: str = "a column") -> pa.Table:
    schema = FeatureSet("toy", 1, (Column("c", "1", meaning),)).arrow_schema("toy", "llvm", {"log": log})
    table = pa.table([pa.nulls(3, kind) for _, kind, *_ in ROW_FIELDS] + [pa.array([1.0] * 3, pa.float32())], schema)
    with store.writing(name) as path:
        pq.write_table(table, path)
    return table


def sources(store: TableStore) -> dict[str, str]:
    return {name: about.source["log"] for name, about in store.abouts().items()}


def test_nothing_is_there_at_first(store: TableStore) -> None:
    assert store.abouts() == {}
    store.drop(NAME)


def test_what_is_written_comes_back(store: TableStore) -> None:
    other = NAME.replace("llvm", "cuda")
    written = {name: write(store, name, name) for name in (NAME, other)}
    assert list(sources(store).items()) == [(name, name) for name in sorted(written)]
    with store.local() as folder:
        for name, table in written.items():
            assert pq.read_table(folder / name, partitioning=None).equals(table)
    store.drop(NAME)
    assert sources(store) == {other: other}


def test_a_table_is_replaced_whole(store: TableStore) -> None:
    write(store, "old")
    with pytest.raises(FileNotFoundError), store.writing(NAME) as path:
        path.with_name("full disk").rename(path)
    assert sources(store) == {NAME: "old"}
    write(store, "new")
    assert sources(store) == {NAME: "new"}


def test_a_footer_of_any_length_is_read(store: TableStore) -> None:
    write(store, "long", meaning="m" * TAIL_BYTES)
    assert sources(store) == {NAME: "long"}


def test_what_is_no_table_is_refused(store: TableStore) -> None:
    with store.writing(NAME) as path:
        path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SchemaMismatch, match="no readable Parquet"):
        store.abouts()


def test_readers_beside_writers(store: TableStore) -> None:
    """Tables are replaced, and others come and go, while they are listed and read."""
    write(store, "log")
    stop = threading.Event()

    def replace(number: int) -> None:
        other = NAME.replace("net", f"other{number}")
        while not stop.is_set():
            write(store, "log")
            write(store, "log", other)
            store.drop(other)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(replace, number) for number in range(2)]
        try:
            for _ in range(12):
                assert set(sources(store).values()) == {"log"}
                with store.local() as folder:
                    found = tables(folder)
                    assert {pq.read_metadata(path).num_rows for path, _ in found} == {3}
                    assert NAME in {path.relative_to(folder).as_posix() for path, _ in found}
        finally:
            stop.set()
    assert [writer.result() for writer in writers] == [None, None]
    assert list(sources(store)) == [NAME]


def test_keys_that_lead_elsewhere_are_no_tables(s3_folder: Callable[[str], str]) -> None:
    url = s3_folder("moto")
    objects, store = S3Folder(url), open_tables(url)
    write(store, "log")
    for name in ("../../escaped.parquet", "/absolute.parquet"):
        assert objects.write(name, b"", None)
    assert list(store.abouts()) == [NAME]
    with store.local() as folder:
        assert [path.name for path in folder.rglob("*.parquet")] == [Path(NAME).name]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(BadInput, match="s3://"):
        open_tables("hdfs://features")
