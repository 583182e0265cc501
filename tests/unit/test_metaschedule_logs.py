"""JSONDatabase folders, good and bad."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport, Task
from lorien.dialects.metaschedule import logs
from lorien.errors import MissingExtra, UnreadableLog
from lorien.records import Outcome, TuningRecord
from lorien.target import Target

SAMPLE = Path(__file__).parents[2] / "datasets/plain/llvm_znver4_2/bvlc_alexnet"
TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
OLD_MODULE = base64.b64encode(bytes(8) + b'{"root": 1, "nodes": []}').decode()

Edit = Callable[[list[Any]], None]


def lines_of(name: str, count: int) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress((SAMPLE / f"{name}.gz").read_bytes()).splitlines()[:count]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The first workload of alexnet and four records of it."""
    folder = tmp_path / "net"
    folder.mkdir()
    write(folder, logs.WORKLOADS, lines_of(logs.WORKLOADS, 1))
    write(folder, logs.RECORDS, [line for line in lines_of(logs.RECORDS, 400) if line[0] == 0][:4])
    return folder


def write(folder: Path, name: str, lines: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(folder: Path, change: Edit, name: str = logs.RECORDS) -> None:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    change(lines)
    write(folder, name, lines)


def read(log: Path, shard: tuple[int, int] = (0, 1), **info: Any) -> tuple[list[TuningRecord], ReadReport]:
    report = ReadReport()
    return list(open_dialect("metaschedule").read(log, LogInfo(**info), report, shard)), report


def test_a_record_says_what_ran_where_and_how_fast(log: Path) -> None:
    records, report = read(log, network="alexnet", build="tvm 0.27.0.post1", tasks=(Task("max_pool", 3.0),))
    raw = json.loads((log / logs.RECORDS).read_text().splitlines()[0])
    first = records[0]
    assert (len(records), report.records, report.failed, report.unreadable) == (4, 4, 0, 0)
    assert first.workload.name == "pad_temp+pool_max(1x256x12x12,1x256x6x6)"
    assert first.workload.identity == ["structural", lines_of(logs.WORKLOADS, 1)[0][0]]
    assert first.workload.weight == 3.0
    assert first.workload.networks == ("alexnet",)
    assert first.candidate.schedule == raw[1][0]
    assert first.measurement.latencies_s == tuple(raw[1][1])
    assert first.target.key == TARGET.key
    assert (first.build, first.network, first.log) == ("tvm 0.27.0.post1", "alexnet", str(log))


def test_workloads_of_several_networks_keep_theirs(log: Path) -> None:
    """A session of many networks: names repeat from one to the next, and the order tells them apart."""
    write(log, logs.WORKLOADS, lines_of(logs.WORKLOADS, 2))
    write(log, logs.RECORDS, [line for line in lines_of(logs.RECORDS, 400) if line[0] < 2])
    tasks = (Task("conv2d", 3.0, ("a", "b")), Task("conv2d", 1.0, ("b",)))
    records, _ = read(log, network="session-1", tasks=tasks)
    found = {(record.workload.weight, record.workload.networks, record.network) for record in records}
    assert found == {(3.0, ("a", "b"), None), (1.0, ("b",), "b")}


def test_the_target_given_overrides_the_log(log: Path) -> None:
    given = Target.parse("llvm -mcpu=skylake -num-cores=4")
    assert {record.target for record in read(log, target=given)[0]} == {given}


def test_a_record_without_target_needs_one(log: Path) -> None:
    edit(log, lambda lines: lines[0][1].__setitem__(2, None))
    assert read(log)[1].reasons == ["database_tuning_record.json:1: it names no target. Fix: --target"]
    assert len(read(log, target=TARGET)[0]) == 4


@pytest.mark.parametrize("run_secs", [[1e10], [0.1, 1e10], None, []])
def test_a_failed_measurement_is_a_record(log: Path, run_secs: Any) -> None:
    edit(log, lambda lines: lines[1][1].__setitem__(1, run_secs))
    records, report = read(log)
    assert records[1].measurement.outcome is Outcome.UNKNOWN_ERROR
    assert (report.records, report.failed, report.unreadable) == (4, 1, 0)


@pytest.mark.parametrize("run_secs", [[0.0], [-1e-3], [1e-3, 0], ["fast"], [[1e-3]], {"s": 1}, 1e-3, True])
def test_a_latency_that_cannot_be_is_not_read(log: Path, run_secs: Any) -> None:
    edit(log, lambda lines: lines[1][1].__setitem__(1, run_secs))
    records, report = read(log)
    assert (len(records), report.unreadable) == (3, 1)
    assert "its latencies are" in report.reasons[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[0, [[[", "not a record"),
        (b"[0,[[[],[]],[NaN],null,[]]]", "not a record"),
        (b"{}", "not a record"),
        (b"[]", "not a record"),
        (b"null", "not a record"),
        (b'[0, "text"]', "not a record"),
        (b"[0, [[[1], []], [1.0], null, []]]", "not a record"),
        (b"[7,[[[],[]],[1.0],null,[]]]", "its workload 7 is not in"),
        (b"[-1,[[[],[]],[1.0],null,[]]]", "its workload -1 is not in"),
        (b'["0",[[[],[]],[1.0],null,[]]]', "its workload '0' is not in"),
        (b"[true,[[[],[]],[1.0],null,[]]]", "its workload True is not in"),
        (b'[0,[[[["GetBlock",[],["c","main"],["b0"]]],[]],[1.0],{"kind":"llvm"},[]]]', "an older TVM"),
        (b'[0,[[[],[]],[1.0],{"kind":"abacus"},[]]]', "unknown target kind"),
    ],
)
def test_a_bad_line_is_reported_and_skipped(log: Path, line: bytes, reason: str) -> None:
    path = log / logs.RECORDS
    path.write_bytes(line + b"\n" + path.read_bytes())
    records, report = read(log)
    assert (len(records), report.unreadable) == (4, 1)
    assert report.reasons[0].startswith("database_tuning_record.json:1: ")
    assert reason in report.reasons[0]


def test_a_log_cut_short_reads_to_its_last_whole_line(log: Path) -> None:
    path = log / logs.RECORDS
    path.write_bytes(path.read_bytes()[:-200])
    records, report = read(log)
    assert (len(records), report.unreadable) == (3, 1)


def test_gzip_cut_short_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    for name in (logs.WORKLOADS, logs.RECORDS):
        data = (SAMPLE / f"{name}.gz").read_bytes()
        (tmp_path / f"{name}.gz").write_bytes(data if name == logs.WORKLOADS else data[: len(data) // 2])
    records, report = read(tmp_path)
    whole, _ = read(SAMPLE)
    assert 0 < len(records) < len(whole)
    assert [record.key for record in records] == [record.key for record in whole[: len(records)]]
    assert report.unreadable <= 1


def test_records_of_a_damaged_workload_are_reported(log: Path) -> None:
    edit(log, lambda lines: lines.insert(0, ["1", "%%%"]), logs.WORKLOADS)
    records, report = read(log)
    assert not records
    assert "its workload 0 cannot be read: not a workload of JSONDatabase" in report.reasons[0]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (logs.RECORDS, b"\x00\x01\x02\x03" * 50, "is binary"),
        (logs.WORKLOADS, b"\x00\x01\x02\x03" * 50, "holds no workload"),
        (logs.WORKLOADS, b"", "it is empty"),
        (logs.WORKLOADS, f'["1","{OLD_MODULE}"]\n'.encode(), "an older TVM"),
        (logs.WORKLOADS, b'["1","AAAAAAAAAAA="]\n', "holds no workload"),
    ],
)
def test_what_is_no_log_is_refused(log: Path, name: str, data: bytes, reason: str) -> None:
    (log / name).write_bytes(data)
    with pytest.raises(UnreadableLog, match=reason):
        read(log)


def test_a_folder_without_one_of_the_files_is_refused(log: Path) -> None:
    (log / logs.RECORDS).unlink()
    assert list(logs.find(log)) == []
    with pytest.raises(UnreadableLog, match="it needs database_workload"):
        read(log)


def test_find_knows_folders_and_files(log: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / logs.WORKLOADS).write_text("not json")
    (tmp_path / "other" / logs.RECORDS).write_text("")
    assert list(logs.find(tmp_path)) == [log]
    assert list(logs.find(log / logs.RECORDS)) == [log]
    assert list(logs.find(tmp_path / "nowhere")) == []


def test_shards_share_the_lines_good_and_bad(log: Path) -> None:
    edit(log, lambda lines: lines[2][1].__setitem__(1, [0.0]))
    parts = [read(log, (part, 3)) for part in range(3)]
    assert sorted(record.key for records, _ in parts for record in records) == sorted(r.key for r in read(log)[0])
    assert [report.unreadable for _, report in parts] == [0, 0, 1]


def test_logs_are_read_without_tvm(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingExtra("apache-tvm", "tvm")

    monkeypatch.setattr(logs, "load_module", missing)
    records, _ = read(log)
    assert len(records) == 4
    assert records[0].workload.flop is None
