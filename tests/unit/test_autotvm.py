import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lorien.dialects import open_dialect
from lorien.dialects.autotvm import AutoTvmDialect, Operator
from lorien.dialects.base import LogInfo, ReadReport, Task
from lorien.errors import UnreadableLog
from lorien.records import Outcome, TuningRecord
from lorien.target import Target

CUDA = "cuda -keys=cuda,gpu -arch=sm_86 -max_num_threads=1024 -thread_warp_size=32"
CONV = [
    ["TENSOR", [1, 3, 224, 224], "float32"],
    ["TENSOR", [64, 3, 3, 3], "float32"],
    [1, 1],
    [1, 1, 1, 1],
    [1, 1],
    "float32",
]
ENTITY = [["tile_f", "sp", [-1, 2, 8, 4]], ["reorder_0", "re", [1, 0]], ["ann", "an", ["unroll"]], ["u", "ot", 512]]
ANSOR = '{"i": [["[\\"workload\\"]", "cuda"], [[], []]], "r": [[0.1], 0, 1, 2], "v": "v0.6"}'


def row(**changes: Any) -> dict[str, Any]:
    return {
        "input": [CUDA, "conv2d_nchw.cuda", CONV, {}],
        "config": {"index": 7, "code_hash": None, "entity": ENTITY},
        "result": [[0.002, 0.001, 0.003], 0, 1.5, 1679025762.7],
        "version": 0.2,
        "tvm_version": "0.10.0",
    } | changes


def old_row(template: str | None = "direct") -> dict[str, Any]:
    config = {"i": 7, "t": template, "c": None, "e": ENTITY}
    return {"i": [CUDA, "topi_nn_conv2d", CONV, {}, ["conv2d"], config], "r": [[0.002], 0, 1.5, 1.0], "v": 0.1}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [value if isinstance(value, str) else json.dumps(value) for value in rows]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(
    log: Path, info: LogInfo | None = None, shard: tuple[int, int] = (0, 1)
) -> tuple[list[TuningRecord], ReadReport]:
    report = ReadReport()
    return list(AutoTvmDialect().read(log, info or LogInfo(), report, shard)), report


def test_reads_a_record(tmp_path: Path) -> None:
    (record,), report = read(write(tmp_path / "a.log", row()))
    assert record.workload.dialect == "autotvm"
    assert record.workload.name == "conv2d_nchw.cuda(1x3x224x224, 64x3x3x3, s1, p1)"
    assert record.workload.identity == ["conv2d_nchw.cuda", CONV]
    assert record.workload.flop == 2 * 224 * 224 * 64 * 3 * 9
    assert record.candidate.schedule == ENTITY
    assert record.measurement.latencies_s == (0.002, 0.001, 0.003)
    assert record.measurement.latency_s == 0.002
    assert record.measurement.timestamp_s == 1679025762.7
    assert record.build == "tvm 0.10.0"
    assert record.target == Target.parse(CUDA)
    assert (report.records, report.failed, report.unreadable) == (1, 0, 0)


def test_what_the_user_says_of_the_log_overrides_it(tmp_path: Path) -> None:
    name = "conv2d_nchw.cuda(1x3x224x224, 64x3x3x3, s1, p1)"
    target = Target.parse("cuda_rtx3080")
    info = LogInfo(target, network="vgg-16", build="tvm 0.6", tasks=(Task(name, 3.0),))
    log = write(tmp_path / "a.log", row(), old_row(), row(input=["no target at all", "conv2d_nchw.cuda", CONV, {}]))
    records, report = read(log, info)
    assert report.unreadable == 0
    assert {record.target for record in records} == {target}
    assert {record.network for record in records} == {"vgg-16"}
    assert [record.build for record in records] == ["tvm 0.10.0", "tvm 0.6", "tvm 0.10.0"]
    assert records[0].workload.weight == 3.0
    assert records[0].workload.networks == ("vgg-16",)
    assert records[0].workload is records[2].workload  # parsed once


@pytest.mark.parametrize(("template", "name"), [("direct", "topi_nn_conv2d"), ("winograd", "topi_nn_conv2d.winograd")])
def test_reads_version_0_1(tmp_path: Path, template: str, name: str) -> None:
    (record,), _ = read(write(tmp_path / "a.log", old_row(template)))
    assert record.workload.identity == [name, CONV]
    assert record.workload.flop == 2 * 224 * 224 * 64 * 3 * 9
    assert record.candidate.schedule == ENTITY
    assert record.build == "unknown"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (1, Outcome.INSTANTIATION_ERROR),
        (2, Outcome.BUILD_ERROR),
        (3, Outcome.BUILD_ERROR),
        (4, Outcome.RUN_ERROR),
        (5, Outcome.WRONG_RESULT),
        (6, Outcome.BUILD_TIMEOUT),
        (7, Outcome.RUN_TIMEOUT),
        (8, Outcome.UNKNOWN_ERROR),
        (99, Outcome.UNKNOWN_ERROR),
    ],
)
def test_failures_are_records(tmp_path: Path, code: int, outcome: Outcome) -> None:
    (record,), report = read(write(tmp_path / "a.log", row(result=[[1e9], code, 0.1, 1.0])))
    assert record.measurement.outcome is outcome
    assert record.measurement.latency_s is None
    assert (report.records, report.failed) == (1, 1)


NAN = json.dumps(row(result=[[float("nan")], 0, 0.1, 1.0]))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(result=[[0.0], 0, 0.1, 1.0]), "latency 0.0 s"),
        (row(result=[[0.1, -1], 0, 0.1, 1.0]), "latency -1 s"),
        (row(result=[[1e9], 0, 0.1, 1.0]), "latency 1000000000.0 s"),
        (NAN, "not JSON"),
        (NAN.replace("NaN", "1e999"), "not JSON"),
        (row(result=[["fast"], 0, 0.1, 1.0]), "latency 'fast' s"),
        (row(result=[[], 0, 0.1, 1.0]), "no latency"),
        (row(result=[[0.1], 0]), "not an AutoTVM record"),
        (row(result=[[0.1], "0", 0.1, 1.0]), "error number '0'"),
        (row(input=[CUDA, "conv2d_nchw.cuda", CONV]), "not an AutoTVM record"),
        (row(input=[CUDA, None, CONV, {}]), "template None"),
        (row(input=[CUDA, "conv2d_nchw.cuda", None, {}]), "template 'conv2d_nchw.cuda' or its arguments"),
        (row(input=["warp9 -x=1", "conv2d_nchw.cuda", CONV, {}]), "unknown target"),
        (row(input=[{"kind": "cuda"}, "conv2d_nchw.cuda", CONV, {}]), "is not a string"),
        (row(config={"index": 7}), "entity"),
        (row(config={"entity": [["tile_f", "sp"]]}), r"not a list of \[name, kind, value\]"),
        (row(config={"entity": None}), r"not a list of \[name, kind, value\]"),
        ({key: value for key, value in row().items() if key != "config"}, "config"),
        (ANSOR, "not an AutoTVM record"),
        ("[1, 2]", "not an AutoTVM record"),
        (json.dumps(row())[:200], "cut short"),
        ("\0\1\2", "binary"),
    ],
)
def test_a_bad_line_is_reported_and_the_rest_is_read(tmp_path: Path, bad: Any, reason: str) -> None:
    records, report = read(write(tmp_path / "a.log", bad, row(), bad))
    assert (len(records), report.records, report.unreadable) == (1, 1, 2)
    assert report.reasons[0].startswith("a.log:1: ")
    assert report.reasons[1].startswith("a.log:3: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.reasons[0])


def test_a_truncated_gzip_reads_to_its_last_whole_line(tmp_path: Path) -> None:
    rows = [row(result=[[0.001 + 1e-6 * index], 0, 1.0, float(index)]) for index in range(500)]
    log = write(tmp_path / "a.log.gz", *rows)
    log.write_bytes(log.read_bytes()[: log.stat().st_size * 2 // 3])
    records, report = read(log)
    assert 100 < len(records) < 500
    assert [record.measurement.timestamp_s for record in records] == list(range(len(records)))
    assert report.unreadable <= 1


def test_shards_split_the_log(tmp_path: Path) -> None:
    rows = [row(result=[[0.001], 0, 1.0, float(index)]) for index in range(10)]
    log = write(tmp_path / "a.log", *rows[:5], "bad", *rows[5:])
    parts = [read(log, shard=(index, 3)) for index in range(3)]
    assert sorted(record.measurement.timestamp_s for records, _ in parts for record in records) == list(range(10))
    assert [record.measurement.timestamp_s for record in parts[1][0]] == [1, 4, 6, 9]
    assert sum(report.unreadable for _, report in parts) == 1


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x7fELF\0\0\0", b"hello\n", ANSOR.encode(), b'["", [1]]\n', b"{}"])
def test_what_is_no_autotvm_log_is_refused(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(content)
    assert list(AutoTvmDialect().find(log)) == []
    with pytest.raises(UnreadableLog, match="no AutoTVM record"):
        read(log)


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableLog, match="cannot be read"):
        read(tmp_path / "none.log")


def test_finds_logs(tmp_path: Path) -> None:
    write(tmp_path / "b.log.gz", row())
    write(tmp_path / "a.json", old_row())
    write(tmp_path / "ansor.json", ANSOR)
    write(tmp_path / "database_workload.json", '["123", "e30="]')
    write(tmp_path / "late.log", "cut sh", row())
    (tmp_path / "noise.log").write_bytes(bytes(range(256)) * 50)
    dialect = open_dialect("autotvm")
    found = list(dialect.find(tmp_path))
    assert [path.name for path in found] == ["a.json", "b.log.gz", "late.log"]
    assert dialect.files(found[0]) == [found[0]]


def tensor(*shape: int) -> list[Any]:
    return ["TENSOR", list(shape), "float32"]


@pytest.mark.parametrize(
    ("identity", "flop"),
    [
        (["conv2d_nchw_winograd.cuda", CONV], 2 * 224 * 224 * 64 * 3 * 9),
        (["conv2d_nchw.cuda", [tensor(2, 8, 9, 9), tensor(16, 8, 3, 3), 2, 0, 1]], 2 * 2 * 16 * 4 * 4 * 8 * 9),
        (["topi_nn_conv2d", [tensor(1, 8, 9, 9), tensor(16, 8, 3, 3), [1, 1], [1, 1], [2, 2]]], 2 * 16 * 49 * 72),
        (["conv2d_NCHWc.x86", [tensor(1, 2, 9, 9, 4), tensor(4, 2, 3, 3, 4, 4), [1, 1], 0, 1]], 2 * 16 * 49 * 72),
        (["conv2d_nhwc.cuda", [tensor(1, 9, 9, 8), tensor(3, 3, 8, 16), [1, 1], 0, 1]], 2 * 16 * 49 * 72),
        (["group_conv2d_nchw.cuda", [tensor(1, 8, 9, 9), tensor(16, 4, 3, 3), 1, 0, 1, 2]], 2 * 16 * 49 * 36),
        (["depthwise_conv2d_nchw.cuda", [tensor(1, 8, 9, 9), tensor(8, 2, 3, 3), 1, 0, 1]], 2 * 16 * 49 * 9),
        (["depthwise_conv2d_nhwc.x", [tensor(1, 9, 9, 8), tensor(3, 3, 8, 2), 1, 0, 1]], 2 * 16 * 49 * 9),
        (["depthwise_conv2d_NCHWc.x86", [tensor(1, 2, 9, 9, 4), tensor(2, 1, 3, 3, 1, 4), 1, 0, 1]], 2 * 8 * 49 * 9),
        (["dense_nopack.x86", [tensor(4, 512), tensor(1000, 512), None, "float32"]], 2 * 4 * 512 * 1000),
        (["dense_pack.x86", [tensor(4, 512), tensor(125, 512, 8), None, "float32"]], 2 * 4 * 512 * 1000),
        (["batch_matmul.cuda", [tensor(12, 64, 32), tensor(12, 128, 32)]], 2 * 12 * 64 * 32 * 128),
    ],
)
def test_flop_of_known_templates(identity: list[Any], flop: float) -> None:
    operator = Operator.of(identity)
    assert operator is not None
    assert operator.flop == flop


@pytest.mark.parametrize(
    "identity",
    [
        ["my_template", [tensor(4, 4)]],
        ["conv2d_transpose_nchw.cuda", CONV],
        ["conv2d_nchw.cuda", [tensor(1, 3, 8, 8)]],
        ["conv2d_nchw.cuda", [tensor(1, 3), tensor(8, 3, 3, 3), 1, 0, 1]],
        ["conv2d_nchw.cuda", [tensor(1, 3, 2, 2), tensor(8, 3, 3, 3), 1, 0, 1]],
        ["conv2d_nchw.cuda", [tensor(1, 3, 8, 8), tensor(8, 3, 3, 3), 0, 0, 1]],
        ["conv2d_nchw.cuda", [tensor(1, 3, 8, 8), tensor(8, 3, 3, 3), "VALID", 0, 1]],
        ["dense.cuda", [tensor(1, 0), tensor(8, 0)]],
        ["conv2d_nchw.cuda", [["TENSOR", ["n", 3, 8, 8], "float32"], tensor(8, 3, 3, 3), 1, 0, 1]],
    ],
)
def test_unknown_arguments_have_no_flop_but_are_read(tmp_path: Path, identity: list[Any]) -> None:
    (record,), _ = read(write(tmp_path / "a.log", row(input=[CUDA, *identity, {}])))
    assert record.workload.flop is None
    assert record.workload.name.startswith(f"{identity[0]}(")


def test_names_tell_workloads_apart() -> None:
    def name(identity: list[Any]) -> str:
        from lorien.dialects.autotvm import workload_of

        return workload_of(identity, LogInfo()).name

    data, kernel = tensor(1, 8, 9, 9), tensor(16, 8, 3, 3)
    assert name(["c.x", [tensor(2, 2), 5, None]]) == "c.x(2x2, 5, null)"
    assert name(["conv2d_nchw.cuda", [data, kernel, 2, [1, 0], 2]]) == (
        "conv2d_nchw.cuda(1x8x9x9, 16x8x3x3, s2, p1x0, d2)"
    )
    assert name(["conv2d_nchw.cuda", [data, kernel, [1, 2], [1, 0, 2, 0], 1]]) == (
        "conv2d_nchw.cuda(1x8x9x9, 16x8x3x3, s1x2, p1x0x2x0)"
    )
    assert name(["dense.x86", [tensor(1, 8), tensor(4, 8), None]]) == "dense.x86(1x8, 4x8)"


def test_kwargs_are_part_of_the_identity(tmp_path: Path) -> None:
    (plain, keyed), _ = read(
        write(tmp_path / "a.log", row(), row(input=[CUDA, "conv2d_nchw.cuda", CONV, {"layout": "NHWC"}]))
    )
    assert keyed.workload.identity == ["conv2d_nchw.cuda", CONV, {"layout": "NHWC"}]
    assert plain.workload.key != keyed.workload.key


@pytest.mark.parametrize(
    ("template", "knobs", "layout"),
    [
        ("conv2d_NCHWc.x86", {"tile_ic": [-1, 16], "tile_oc": [-1, 32]}, "NCHW16c OIHW16i32o NCHW32c"),
        ("topi_x86_conv2d_NCHWc", {"tile_ic": [4, 16], "tile_oc": [1, 32]}, "NCHW16c OIHW16i32o NCHW32c"),
        ("depthwise_conv2d_NCHWc.x86", {"tile_ic": [-1, 8], "tile_oc": [-1, 16]}, "NCHW8c OIHW1i16o NCHW16c"),
        ("conv2d_NCHWc_int8.x86", {"tile_ic": [-1, 16], "tile_oc": [-1, 32]}, "NCHW16c OIHW4i32o4i NCHW32c"),
        ("conv2d_nchw.cuda", {"tile_ic": [-1, 16], "tile_oc": [-1, 32]}, None),
        ("conv2d_NCHWc.x86", {"tile_ic": [-1, 16]}, None),
        ("conv2d_NCHWc.x86", {"tile_ic": [-1, "a"], "tile_oc": []}, None),
    ],
)
def test_knobs_that_choose_a_layout_tell_it(tmp_path: Path, template: str, knobs: Any, layout: str | None) -> None:
    config = {"index": 7, "code_hash": None, "entity": [[name, "sp", value] for name, value in knobs.items()]}
    (record,), _ = read(write(tmp_path / "a.log", row(input=[CUDA, template, CONV, {}], config=config)))
    assert record.variant == layout


def test_the_key_of_a_workload_does_not_change() -> None:
    from lorien.dialects.autotvm import workload_of

    assert workload_of(["conv2d_nchw.cuda", CONV], LogInfo()).key == "2da79fa52ed42f68ea8a815a864b19c8"
