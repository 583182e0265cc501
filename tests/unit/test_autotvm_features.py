import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorien.dialects.autotvm import workload_of
from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize import open_extractor
from lorien.featurize.autotvm import FEATURES, AutoTvmExtractor
from lorien.records import Candidate, Workload
from lorien.target import Target

CUDA = Target.parse("cuda_rtx3080")
CONV = [
    ["TENSOR", [1, 64, 56, 56], "float32"],
    ["TENSOR", [128, 64, 3, 3], "float32"],
    [1, 1],
    [1, 1, 1, 1],
    [1, 1],
    "float32",
]
DEPTHWISE = [["TENSOR", [1, 64, 56, 56], "float32"], ["TENSOR", [64, 1, 3, 3], "float32"], [2, 2], 1, 1, "float32"]
POINTWISE = [["TENSOR", [1, 64, 56, 56], "float32"], ["TENSOR", [128, 64, 1, 1], "float32"], 1, 0, 1, "float32"]
GPU_CONV = [
    ["tile_f", "sp", [-1, 2, 8, 4]],
    ["tile_y", "sp", [-1, 1, 7, 2]],
    ["tile_x", "sp", [-1, 2, 14, 1]],
    ["tile_rc", "sp", [-1, 8]],
    ["tile_ry", "sp", [-1, 3]],
    ["tile_rx", "sp", [-1, 1]],
    ["auto_unroll_max_step", "ot", 511],
    ["unroll_explicit", "ot", 1],
]


def features(template: str, args: list[Any], *schedules: Any) -> list[dict[str, float]]:
    rows = AutoTvmExtractor().extract(workload(template, args), [Candidate(s) for s in schedules], CUDA)
    assert rows.dtype == np.float32
    assert rows.shape == (len(schedules), len(FEATURES.columns))
    return [dict(zip(FEATURES.names, map(float, row), strict=True)) for row in rows]


def workload(template: str, args: list[Any]) -> Workload:
    return workload_of([template, args], LogInfo())


def check(found: dict[str, float], **expected: float) -> None:
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_columns_are_documented_and_unique() -> None:
    assert len(set(FEATURES.names)) == len(FEATURES.names)
    assert all(column.meaning for column in FEATURES.columns)
    assert FEATURES.id == "autotvm/1"


def test_gpu_convolution() -> None:
    (found,) = features("conv2d_nchw.cuda", CONV, GPU_CONV)
    in_tile = 8 * (14 + 2) * 28  # channels, rows of three kernel rows, columns of one kernel column
    weight_tile = 64 * 8 * 3
    check(found, is_gpu=1, is_winograd=0, is_depthwise=0, w_f=7, w_c=6, w_y_pow2=3, w_ry=3)
    check(found, f_0=2, f_1=3, f_2=1, f_out=1, f_tile=6, y_1=math.log2(7), y_out=2, x_out=1, c_0=3, c_out=3)
    check(found, threads=math.log2(8 * 7 * 14), vthreads=2, blocks=math.log2(2 * 4 * 2), warp_use=784 / 800)
    check(found, reg_tile=math.log2(8 * 2 * 2), red_chunk=math.log2(24), red_steps=math.log2(8 * 1 * 3))
    check(found, in_tile=math.log2(4 * in_tile), weight_tile=math.log2(4 * weight_tile))
    check(found, shared=math.log2(4 * (in_tile + weight_tile)), in_loads=math.log2(math.ceil(in_tile / 784)))
    check(found, unroll_step=9, unroll_explicit=1, body=math.log2(32 * 24), body_over_unroll=math.log2(32 * 24 / 512))
    check(found, waste=0, vec=math.nan, b_0=math.nan, other_0=math.nan)


@pytest.mark.parametrize(("height", "size", "tiles"), [(56, 4, 196), (28, 2, 196)])
def test_gpu_winograd(height: int, size: int, tiles: int) -> None:
    args = [["TENSOR", [1, 64, height, height], "float32"], *CONV[1:]]
    schedule = [
        ["tile_b", "sp", [-1, 1, 1, 1]],
        ["tile_y", "sp", [-1, 1, 16, 4]],
        ["tile_x", "sp", [-1, 1, 14, 2]],
        ["tile_rc", "sp", [-1, 16]],
        ["auto_unroll_max_step", "ot", 0],
        ["unroll_explicit", "ot", 0],
    ]
    (found,) = features("conv2d_nchw_winograd.cuda", args, schedule)
    check(found, is_winograd=1, b_out=math.log2((size + 2) ** 2), f_tile=6, x_out=math.log2(tiles / 28), y_0=math.nan)
    check(found, shared=math.log2(4 * 16 * (64 + 28)), threads=math.log2(16 * 14), c_out=2, waste=0)


def test_gpu_depthwise() -> None:
    schedule = [[name, kind, value] for name, kind, value in GPU_CONV if not name.startswith("tile_r")]
    (found,) = features("depthwise_conv2d_nchw.cuda", DEPTHWISE, schedule)
    check(
        found, is_depthwise=1, w_stride=2, f_out=0, in_tile=math.log2(4 * 64 * 29 * 57), weight_tile=math.log2(4 * 576)
    )
    check(found, red_chunk=math.log2(9), red_steps=0)


def test_cpu_packed() -> None:
    splits = [["tile_ic", "sp", [-1, 16]], ["tile_oc", "sp", [-1, 12]], ["tile_ow", "sp", [-1, 16]]]
    wide, narrow = features(
        "conv2d_NCHWc.x86", CONV, [*splits, ["unroll_kw", "ot", True]], [*splits, ["unroll_kw", "ot", False]]
    )
    check(wide, is_packed=1, is_gpu=0, unroll_kw=1, vec=12, vec_use8=12 / 16, vec_use4=1, threads=math.nan)
    check(wide, c_0=4, x_out=2, waste=math.log2(64 / 56 * 132 / 128), parallel=math.log2(11 * 56))
    check(wide, vec_registers8=math.log2(16 * 2), c_over_f=math.log2(16 / 12), parallel_use4=1)
    assert narrow["unroll_kw"] == 0
    (pointwise,) = features("conv2d_NCHWc.x86", POINTWISE, [*splits, ["tile_oh", "ot", 2]])
    check(pointwise, y_0=1, y_out=math.log2(28), unroll_kw=math.nan, vec_registers8=math.log2(2 * 16 * 2))


def test_cpu_annotations() -> None:
    schedule = [
        ["tile_co", "sp", [-1, 8]],
        ["tile_oh", "sp", [-1, 2]],
        ["tile_ow", "sp", [-1, 4]],
        ["reorder_0", "re", [0, 1, 2, 3, 4, 5, 6, 9, 7, 8]],
        ["ann_reduce", "an", ["unroll", "none"]],
        ["ann_spatial", "an", ["none", "unroll", "vec"]],
    ]
    (found,) = features("conv2d_nchw_spatial_pack.arm_cpu", CONV, schedule)
    check(found, reorder_last=8, ann_reduce_0=1, ann_reduce_1=0, ann_0=0, ann_1=1, ann_2=2)
    check(found, vec=8, unrolled=2, vec_registers4=math.log2(16), parallel=4)


def test_an_unknown_template_falls_back_on_positions() -> None:
    (found,) = features(
        "my_op",
        [7],
        [["split_a", "sp", [-1, 8]], ["option", "ot", 5], ["mode", "ot", "fast"], ["tile_f", "sp", [-1, 4]]],
    )
    check(found, other_0=0, other_1=3, other_2=5, other_3=math.nan, f_0=2, f_out=math.nan, w_f=math.nan)
    many = [[f"knob_{index}", "ot", index] for index in range(40)]
    check(features("my_op", [7], many)[0], other_15=15)


def test_version_0_1_writes_the_outermost_factor() -> None:
    knobs = [["tile_f", "sp", [2, 2, 8, 4]], *GPU_CONV[1:]]
    (old,), (new,) = features("topi_nn_conv2d", CONV, knobs), features("topi_nn_conv2d", CONV, GPU_CONV)
    assert old == pytest.approx(new, nan_ok=True)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        [["tile_f", "sp"]],
        [["tile_f", "sp", [-1, "x", 1, 1]]],
        [["tile_f", "sp", [-1, 0, 1, 1]]],
        [["tile_f", "sp", [-1, None, 1, 1]]],
        [["tile_f", "sp", 4]],
        [["tile_f", "sp", []]],
        [["tile_f", "sp", [-1]]],
        [[["tile_f"], "sp", [-1, 1, 1, 1]]],
        [["ann", "an", "vec"]],
        [["ann", "an", 3]],
        [["ann", "an", [["vec"]]]],
        [["order", "re", [[1], [2]]]],
        [["step", "ot", 10**400]],
        [["auto_unroll_max_step", "ot", -5]],
        [["tile_f", "sp", [-1, 10**400, 1, 1]]],
        [["tile_oh", "ot", "wide"]],
    ],
)
def test_a_bad_schedule_is_a_row_of_nan_and_spoils_no_other(bad: Any) -> None:
    good = features("conv2d_nchw.cuda", CONV, GPU_CONV)[0]
    first, second, third = features("conv2d_nchw.cuda", CONV, GPU_CONV, bad, GPU_CONV)
    assert [first, third] == [pytest.approx(good, nan_ok=True)] * 2
    assert not any(math.isinf(value) for value in second.values())


def lines(path: Path, *rows: tuple[str, list[Any], Any]) -> Path:
    target = "cuda -keys=cuda,gpu -arch=sm_86"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "input": [target, template, args, {}],
                    "config": {"entity": schedule},
                    "result": [[0.1], 0, 1, 2],
                    "tvm_version": "0.10.0",
                }
            )
            + "\n"
            for template, args, schedule in rows
        )
    )
    return path


def test_a_log_and_its_candidates_have_the_same_rows(tmp_path: Path) -> None:
    other = [["tile_f", "sp", [-1, 4, 4, 4]], *GPU_CONV[1:]]
    depthwise = [knob for knob in GPU_CONV if not knob[0].startswith("tile_r")]
    rows = [
        ("conv2d_nchw.cuda", CONV, GPU_CONV),
        ("depthwise_conv2d_nchw.cuda", DEPTHWISE, depthwise),
        ("conv2d_nchw.cuda", CONV, other),
        ("conv2d_nchw.cuda", POINTWISE, other),
        ("conv2d_nchw.cuda", CONV, [["tile_f", "sp", [-1, 0, 4, 4]], *GPU_CONV[1:]]),
        ("conv2d_nchw.cuda", CONV, GPU_CONV),
    ]
    extractor, report = open_extractor("autotvm"), ReadReport()
    batches = list(extractor.extract_log(lines(tmp_path / "a.log", *rows), LogInfo(), report, (0, 1), 4))
    assert [len(records) for records, _ in batches] == [4, 1]
    assert report.unreadable == 1
    assert "sp is out of range" in report.reasons[0]
    for records, matrix in batches:
        for record, row in zip(records, matrix, strict=True):
            alone = extractor.extract(record.workload, [record.candidate], CUDA)
            np.testing.assert_array_equal(alone[0], row)


def test_a_row_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    strange = [["TENSOR", [1, 64, "n", 56], "float32"], *CONV[1:]]
    log = lines(tmp_path / "a.log", ("conv2d_nchw.cuda", CONV, GPU_CONV), ("conv2d_nchw.cuda", strange, GPU_CONV))
    ((_, matrix),) = AutoTvmExtractor().extract_log(log, LogInfo(), ReadReport(), (0, 1), 10)
    check(dict(zip(FEATURES.names, matrix[0], strict=True)), w_f=7, f_0=2, f_out=1)
    check(dict(zip(FEATURES.names, matrix[1], strict=True)), w_f=math.nan, f_0=2, f_out=math.nan)


def test_no_candidates_no_rows() -> None:
    rows = AutoTvmExtractor().extract(workload("conv2d_nchw.cuda", CONV), [], CUDA)
    assert rows.shape == (0, len(FEATURES.columns))
