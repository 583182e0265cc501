"""Damage to feature tables and models: it is noticed, and said, wherever a bit flips."""

from __future__ import annotations

import random
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorien.errors import ChecksumMismatch, LorienError, SchemaMismatch
from lorien.featurize.dataset import CONTENTS, about_of, missing_tables
from lorien.featurize.parquet import writing
from lorien.featurize.schema import METADATA_KEY, ROW_FIELDS, Column, FeatureSet
from lorien.featurize.store import open_tables
from lorien.models.data import feature_batches, group_tables, read_rows, table_at
from lorien.models.store import open_models
from lorien.report.tally import Tally

GOLDEN = Path(__file__).parents[1] / "golden" / "formats_v1"
FEATURES = FeatureSet("toy", 1, tuple(Column(f"c{index}", "1", f"column {index}") for index in range(6)))
ROWS = 200
SOURCE = {"log": "toy/llvm/net-0123456789ab", "fingerprint": "0", "shard": "0/1"}


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    columns = {
        "workload_key": [f"w{index % 7}" for index in range(ROWS)],
        "workload": [f"conv2d {index % 7}" for index in range(ROWS)],
        "network": ["vgg"] * ROWS,
        "weight": [2.0] * ROWS,
        "flop": [1e9] * ROWS,
        "candidate": [f"{index:04}" for index in range(ROWS)],
        "build": ["toy 1"] * ROWS,
        "latency_s": [None if index % 9 == 0 else 1e-3 + index for index in range(ROWS)],
        "error": ["run_error" if index % 9 == 0 else None for index in range(ROWS)],
    }
    columns |= {name: rng.normal(size=ROWS).astype(np.float32) for name in FEATURES.names}
    return pa.Table.from_pydict(columns, schema=FEATURES.arrow_schema("toy", "llvm", SOURCE))


@pytest.fixture(params=["with a digest", "an earlier Lorien's"])
def path(request: pytest.FixtureRequest, tmp_path: Path, table: pa.Table) -> Path:
    path = tmp_path / "features" / "dialect=toy" / "target=llvm" / "net-0of1.parquet"
    path.parent.mkdir(parents=True)
    if request.param == "with a digest":
        with writing(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path, compression="zstd")
    return path


def read(path: Path) -> list[object]:
    """All that Lorien ever reads of a table, in a form that can be compared."""
    about = about_of(path)
    rows = read_rows(table_at(path))
    features = np.concatenate([batch for _, batch in feature_batches(table_at(path))])
    tally = Tally.of_tables(path.parents[2])
    candidates = rows.candidates(rows.all())
    return [about, rows.keys, rows.network_names(), candidates.value().tolist(), features.tobytes(), str(tally)]


def damages(data: bytes, count: int) -> Iterator[bytes]:
    """One bit flipped anywhere, in the footer, or at the end; a part zeroed, of noise, or cut out; the end missing."""
    rng = random.Random(22)
    (footer,) = struct.unpack("<I", data[-8:-4])
    for number in range(count):
        damaged = bytearray(data)
        size = (len(data), footer + 48, 48)[number % 3]
        at = len(data) - 1 - rng.randrange(size)
        damaged[at] ^= 1 << rng.randrange(8)
        yield bytes(damaged)
    for _ in range(count // 6):
        at, length = rng.randrange(len(data)), rng.choice((4, 64, 512))
        for part in (bytes(length), rng.randbytes(length), b""):
            yield data[:at] + part[: len(data) - at] + data[at + length :]
        yield data[:at]


def test_no_damage_is_read_as_something_else(path: Path) -> None:
    """Without checksums some of it cannot be told; but nothing ends in another error than Lorien's, in any reader."""
    data, whole = path.read_bytes(), read(path)
    has_digest = b"LORIEN01" in data
    outcomes: Counter[str] = Counter()
    for damaged in damages(data, 240):
        path.write_bytes(damaged)
        try:
            found = read(path)
        except SchemaMismatch:
            outcomes["refused"] += 1
        else:
            outcomes["same" if found == whole else "other"] += 1
    assert sum(outcomes.values()) == 400
    assert outcomes["refused"] > 150
    assert not (has_digest and outcomes["other"]), outcomes


def test_text_in_the_footer_that_is_none(tmp_path: Path, table: pa.Table) -> None:
    """The high bit of a letter, flipped, leaves bytes that are no UTF-8."""
    said = bytearray(table.schema.metadata[METADATA_KEY])
    said[40] ^= 0x80
    path = tmp_path / "dialect=toy" / "target=llvm" / "net-0of1.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: bytes(said)}), path)
    for reader in (
        about_of,
        table_at,
        lambda path: group_tables(path.parents[2]),
        lambda path: Tally.of_tables(tmp_path),
    ):
        with pytest.raises(SchemaMismatch, match=r"is damaged.*Fix: delete it and run lorien featurize again"):
            reader(path)
    with pytest.raises(SchemaMismatch, match="is damaged"):
        open_tables(tmp_path).abouts()


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"\xff", "damaged"),
        (b"[]", "damaged"),
        (b"3", "damaged"),
        (b"{}", "damaged"),
        (b'{"table_version": 2}', "version 2"),
        (b'{"table_version": 1}', "damaged"),
        (b'{"table_version": 1, "columns": [[]]}', "damaged"),
        (b'{"table_version": 1, "columns": [["c0", "", ""]], "feature_set": "toy", "feature_version": 1, '
         b'"dialect": 3, "target": "llvm", "source": {}}', "damaged"),
        (b'{"table_version": 1, "columns": [["c0", "", ""]], "feature_set": "toy", "feature_version": 1, '
         b'"dialect": "toy", "target": "llvm", "source": {"shard": "2/2"}}', "damaged"),
        (b'{"table_version": 1, "columns": [["c9", "", ""]], "feature_set": "toy", "feature_version": 1, '
         b'"dialect": "toy", "target": "llvm", "source": {}}', "lacks the columns c9"),
    ],
)  # fmt: skip
def test_metadata_that_says_something_else(tmp_path: Path, table: pa.Table, said: bytes, what: str) -> None:
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: said}), tmp_path / "t.parquet")
    with pytest.raises(SchemaMismatch, match=what):
        about_of(tmp_path / "t.parquet")


def test_columns_of_another_kind(tmp_path: Path, table: pa.Table) -> None:
    index = table.column_names.index("latency_s")
    texts = table.set_column(index, "latency_s", pa.array(["fast"] * ROWS))
    pq.write_table(texts, tmp_path / "t.parquet")
    with pytest.raises(SchemaMismatch, match="latency_s"):
        about_of(tmp_path / "t.parquet")


def test_the_digest_of_the_footer_is_nothing_to_other_readers(tmp_path: Path, table: pa.Table) -> None:
    assert {name for name, *_ in ROW_FIELDS} < set(table.column_names)
    with writing(tmp_path / "t.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    assert pq.read_table(tmp_path / "t.parquet", partitioning=None).equals(pa.concat_tables([table, table]))


def test_errors_name_the_table_and_not_its_copy(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with (
        pytest.raises(SchemaMismatch, match=f"^{path} is damaged"),
        open_tables(path.parents[2]).local() as folder,
    ):
        group_tables(folder)


def test_contents_that_are_damaged(path: Path) -> None:
    place = path.parents[1] / CONTENTS.replace("*", "0")
    for said in (b"", b"[]", b"{}", b'{"version": 1, "store": "", "shards": {"a": "b"}}', b"\xff"):
        place.write_bytes(said)
        with pytest.raises(SchemaMismatch, match="damaged"):
            missing_tables(path.parents[2], "F")
    place.write_bytes(b'{"version": 2, "store": "", "shards": {}}')
    with pytest.raises(SchemaMismatch, match="version 2"):
        missing_tables(path.parents[2], "F")


def test_every_bit_of_a_model(tmp_path: Path) -> None:
    """What a model says of itself is changed in one bit: it is refused."""
    folder = Path(shutil.copytree(GOLDEN / "models", tmp_path / "models"))
    (about,) = folder.rglob("model.json")
    data, rng = about.read_bytes(), random.Random(22)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        about.write_bytes(damaged)
        with pytest.raises((ChecksumMismatch, SchemaMismatch), match="Fix: lorien-train again"):
            open_models(folder).read("autotvm", about.parent.name)
        refused += 1
    assert refused == 600
    for said in (b"", b"[]", b"3", b"{}", b'{"format_version": 1}', data[:500], b"[" * 5000):
        about.write_bytes(said)
        with pytest.raises(LorienError):
            open_models(folder).read("autotvm", about.parent.name)
