"""What ``LogDialect`` promises. Each test takes the name of a dialect and a log of it, alone in a folder."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import UnreadableLog
from lorien.records import TuningRecord
from lorien.target import Target

BAD_LINES = ("{not json", "[]", '{"a": 1}', "null", '"text"', "\ufffd\ufffd")


def read(
    dialect: str, log: Path, shard: tuple[int, int] = (0, 1), info: LogInfo | None = None
) -> tuple[list[TuningRecord], ReadReport]:
    """The records of a log, and the report."""
    report = ReadReport()
    return list(open_dialect(dialect).read(log, info or LogInfo(), report, shard)), report


def records_file(dialect: str, log: Path) -> Path:
    """The file that grows: the last of a log."""
    return open_dialect(dialect).files(log)[-1]


def test_it_finds_its_log(dialect: str, log: Path) -> None:
    assert list(open_dialect(dialect).find(log.parent)) == [log]
    assert list(open_dialect(dialect).find(log)) == [log]


def test_a_folder_of_other_things_holds_no_log(dialect: str, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    (folder / "b.log").write_bytes(b"\x00\x01\x02" * 100)
    (folder / "c.log.gz").write_bytes(b"not gzip")
    (folder / "empty.json").write_text("")
    assert list(open_dialect(dialect).find(folder)) == []
    assert list(open_dialect(dialect).find(tmp_path / "gone")) == []


def test_it_counts_what_it_read(dialect: str, log: Path) -> None:
    records, report = read(dialect, log)
    assert report.records == len(records) >= 10
    assert report.failed == sum(not record.measurement.ok for record in records)
    assert report.unreadable == 0
    assert len({record.key for record in records}) == len(records)


def test_records_say_where_they_come_from(dialect: str, log: Path) -> None:
    target = Target.parse("llvm -mcpu=haswell")
    records, _ = read(dialect, log, info=LogInfo(target, "net", "framework 1"))
    assert {record.target.key for record in records} == {target.key}
    assert {record.network for record in records} == {"net"}
    assert {record.workload.dialect for record in records} == {dialect}
    assert all(record.build for record in records)


def test_records_go_to_json_and_back(dialect: str, log: Path) -> None:
    for record in read(dialect, log)[0]:
        assert type(record.workload).from_json(record.workload.to_json()) == record.workload
        assert len(record.candidate.key) == 16


def test_reading_twice_is_the_same(dialect: str, log: Path) -> None:
    assert read(dialect, log) == read(dialect, log)


def test_shards_share_out_every_record_once(dialect: str, log: Path) -> None:
    whole = [record.key for record in read(dialect, log)[0]]
    parts = [[record.key for record in read(dialect, log, (index, 3))[0]] for index in range(3)]
    assert sorted(itertools.chain(*parts)) == sorted(whole)


def test_gzip_reads_the_same(dialect: str, log: Path) -> None:
    before = [record.key for record in read(dialect, log)[0]]
    for file in open_dialect(dialect).files(log):
        if not file.name.endswith(".gz"):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    (zipped,) = open_dialect(dialect).find(log.parent)
    assert [record.key for record in read(dialect, zipped)[0]] == before


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_log_cut_short_reads_to_its_last_whole_line(dialect: str, log: Path, compressed: bool) -> None:
    whole = [record.key for record in read(dialect, log)[0]]
    file = records_file(dialect, log)
    data = plain(file)
    data = gzip.compress(data) if compressed else data
    file.write_bytes(data[: len(data) * 2 // 3])
    records, report = read(dialect, log)
    assert 0 < len(records) < len(whole)
    assert [record.key for record in records] == whole[: len(records)]
    assert report.unreadable <= 1


def test_bad_lines_are_counted_and_skipped(dialect: str, log: Path) -> None:
    whole = len(read(dialect, log)[0])
    file = records_file(dialect, log)
    lines = plain(file).decode().splitlines()
    lines[2:2] = BAD_LINES
    file.write_text("\n".join(lines) + "\n")
    records, report = read(dialect, log)
    assert len(records) == whole
    assert (report.unreadable, len(report.reasons)) == (len(BAD_LINES), len(BAD_LINES))


def test_what_is_no_log_is_refused(dialect: str, log: Path) -> None:
    records_file(dialect, log).write_bytes(bytes(range(256)) * 64)
    with pytest.raises(UnreadableLog):
        read(dialect, log)


def plain(file: Path) -> bytes:
    """Content of a file, gzip or not."""
    data = file.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
