"""One suite for every log dialect: what base.py promises, on real MetaSchedule logs and lines of the others."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import legacy_metaschedule
import pytest

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.halide.logs import Writer
from lorien.dialects.halide.pipelines import parse
from lorien.errors import UnreadableLog
from lorien.records import Candidate, Measurement, Outcome, TuningRecord
from lorien.target import Target

SAMPLE = Path(__file__).parents[2] / "datasets/metaschedule/llvm_znver4_2/bvlc_alexnet"


def autotvm_log(folder: Path) -> Path:
    lines = [
        {
            "input": [
                "llvm -keys=cpu",
                "dense_pack.x86",
                [["TENSOR", [1, size], "float32"], ["TENSOR", [64, size], "float32"], None, "float32"],
                {},
            ],
            "config": {
                "index": tile,
                "code_hash": None,
                "entity": [["tile_y", "sp", [-1, 1]], ["tile_x", "sp", [-1, tile]]],
            },
            "result": [[1e-3 / tile] if tile != 8 else [1e9], 0 if tile != 8 else 4, 0.1, 1.6e9],
            "version": 0.2,
            "tvm_version": "0.10.0",
        }
        for size, tile in itertools.product(range(128, 192), (1, 2, 4, 8, 16))
    ]
    path = folder / "net.log"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def metaschedule_log(folder: Path) -> Path:
    log = folder / "net"
    log.mkdir()
    for name in ("database_workload.json", "database_tuning_record.json"):
        lines = gzip.decompress((SAMPLE / f"{name}.gz").read_bytes()).splitlines(keepends=True)
        (log / name).write_bytes(b"".join(lines[:40]))
    return log


def auto_scheduler_log(folder: Path) -> Path:
    lines = [
        {
            "i": [
                [json.dumps(["matmul", size, 64, 64]), "cuda -keys=cuda,gpu", [-1, 16, 64], "", 0, []],
                [[], [["SP", 2, 0, size, [tile], 1], ["AN", 2, 1, 2], ["PR", 2, 0, "auto_unroll_max_step$16"]]],
            ],
            "r": [[1e-3 / tile] if tile != 8 else [1e10], 0 if tile != 8 else 4, 0.1, 1.6e9],
            "v": "v0.6",
        }
        for size, tile in itertools.product(range(128, 192), (1, 2, 4, 8, 16))
    ]
    path = folder / "net.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def halide_log(folder: Path) -> Path:
    log = folder / "net"
    log.mkdir()
    workloads = [parse("matmul:64,64,64"), parse("blur:64,64")]
    writer = Writer(workloads, Target.parse("llvm -mcpu=haswell -num-cores=2"))
    (log / writer.workload_file).write_bytes(writer.workload_lines())
    lines = []
    for index, seed in itertools.product(range(2), range(20)):
        candidate = Candidate({"autoscheduler": "Adams2019", "parameters": {"random_dropout_seed": str(seed)}})
        ran = Measurement(Outcome.OK, (1e-3 / (1 + seed),)) if seed else Measurement(Outcome.CRASH)
        lines.append(writer.record_line(index, candidate, ran))
    (log / writer.record_file).write_bytes(b"".join(lines))
    return log


def metaschedule_legacy_log(folder: Path) -> Path:
    return legacy_metaschedule.write(folder / "net", records=16)


LOGS: dict[str, Callable[[Path], Path]] = {
    "auto_scheduler": auto_scheduler_log,
    "autotvm": autotvm_log,
    "halide": halide_log,
    "metaschedule": metaschedule_log,
    "metaschedule_legacy": metaschedule_legacy_log,
}


@pytest.fixture(params=sorted(LOGS))
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(dialect: str, tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    return LOGS[dialect](folder)


def read(
    dialect: str, log: Path, shard: tuple[int, int] = (0, 1), **info: object
) -> tuple[list[TuningRecord], ReadReport]:
    report = ReadReport()
    records = list(open_dialect(dialect).read(log, LogInfo(**info), report, shard))  # type: ignore[arg-type]
    return records, report


def records_file(dialect: str, log: Path) -> Path:
    return open_dialect(dialect).files(log)[-1]


def test_it_finds_its_own_logs_and_no_others(dialect: str, log: Path, tmp_path: Path) -> None:
    assert list(open_dialect(dialect).find(tmp_path)) == [log]
    for other in set(LOGS) - {dialect}:
        assert list(open_dialect(other).find(tmp_path)) == []


def test_it_counts_what_it_read(dialect: str, log: Path) -> None:
    records, report = read(dialect, log)
    assert report.records == len(records) > 0
    assert report.failed == sum(not record.measurement.ok for record in records)
    assert report.unreadable == 0
    assert len({record.key for record in records}) == len(records)


def test_records_say_where_they_come_from(dialect: str, log: Path) -> None:
    target = Target.parse("llvm -mcpu=haswell")
    records, _ = read(dialect, log, target=target, network="net")
    assert {record.target.key for record in records} == {target.key}
    assert {record.network for record in records} == {"net"}
    assert {record.workload.dialect for record in records} == {dialect}
    assert all(record.build.startswith("tvm") or record.build == "unknown" for record in records)


def test_shards_share_out_every_record_once(dialect: str, log: Path) -> None:
    whole = [record.key for record in read(dialect, log)[0]]
    parts = [[record.key for record in read(dialect, log, (index, 3))[0]] for index in range(3)]
    assert sorted(itertools.chain(*parts)) == sorted(whole)


def test_gzip_reads_the_same(dialect: str, log: Path) -> None:
    before = [record.key for record in read(dialect, log)[0]]
    for file in open_dialect(dialect).files(log):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    zipped = log if log.is_dir() else log.with_name(log.name + ".gz")
    assert [record.key for record in read(dialect, zipped)[0]] == before


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_log_cut_short_reads_to_its_last_whole_line(dialect: str, log: Path, compressed: bool) -> None:
    whole = [record.key for record in read(dialect, log)[0]]
    file = records_file(dialect, log)
    data = gzip.compress(file.read_bytes()) if compressed else file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])
    records, report = read(dialect, log)
    assert 0 < len(records) < len(whole)
    assert [record.key for record in records] == whole[: len(records)]
    assert report.unreadable <= 1


def test_bad_lines_are_counted_and_skipped(dialect: str, log: Path) -> None:
    file = records_file(dialect, log)
    lines = file.read_text().splitlines()
    whole = len(lines)
    lines[2:2] = ["{not json", "[]", '{"a": 1}', "null", '"text"', "\ufffd\ufffd"]
    file.write_text("\n".join(lines) + "\n")
    records, report = read(dialect, log)
    assert len(records) == whole
    assert report.unreadable == 6
    assert len(report.reasons) == 6


def test_what_is_no_log_is_refused(dialect: str, log: Path) -> None:
    records_file(dialect, log).write_bytes(bytes(range(256)) * 64)
    with pytest.raises(UnreadableLog):
        read(dialect, log)


def test_a_folder_of_other_things_holds_no_log(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.log").write_bytes(b"\x00\x01\x02" * 100)
    (tmp_path / "c.log.gz").write_bytes(b"not gzip")
    (tmp_path / "empty.json").write_text("")
    assert list(open_dialect(dialect).find(tmp_path)) == []
    shutil.rmtree(tmp_path)
    assert list(open_dialect(dialect).find(tmp_path)) == []
