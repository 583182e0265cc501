"""Ansor's logs: lines of the real form read, their steps replayed into loop nests without TVM."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize import open_extractor
from lorien.featurize.auto_scheduler_state import BLOCKS, KINDS, THREADS, VTHREAD, replay, skeleton
from lorien.records import Candidate, Outcome, TuningRecord
from lorien.target import Target

CUDA = "cuda -keys=cuda,gpu -arch=sm_70 -max_num_threads=1024 -thread_warp_size=32"
HARDWARE = [-1, 16, 64, 49152, 2147483647, 1024, 8, 32]
EXTRACTOR = open_extractor("auto_scheduler")


def gpu_matmul(m: list[int], n: list[int], k: list[int], size: int = 128, unroll: int = 512) -> list[Any]:
    """Ansor's sketch of a matrix product on a GPU: the steps, in the form and order of its logs."""
    return [
        ["CHW", 2, "local"],
        ["SP", 2, 0, size, m, 1],
        ["SP", 2, 5, size, n, 1],
        ["SP", 2, 10, size, k, 1],
        ["RE", 2, [0, 5, 1, 6, 2, 7, 10, 11, 3, 8, 12, 4, 9]],
        ["FSP", 3, 0, 1, 3],
        ["FSP", 3, 4, 2, 3],
        ["RE", 3, [0, 4, 1, 5, 2, 6, 3, 7]],
        ["CA", 2, 3, 5],
        ["CHR", 1, "shared", [2]],
        ["CA", 2, 3, 6],
        ["CHR", 0, "shared", [3]],
        ["CA", 1, 4, 6],
        ["FU", 5, [0, 1]],
        ["AN", 5, 0, 5],
        ["FU", 5, [1, 2]],
        ["AN", 5, 1, 4],
        ["FU", 5, [2, 3]],
        ["AN", 5, 2, 6],
        ["FU", 3, [0, 1]],
        ["SP", 3, 0, 96, [2], 1],
        ["AN", 3, 1, 2],
        ["FFSP", 3, 0, [2, 1], 1, 1],
        ["AN", 3, 1, 6],
        ["FU", 1, [0, 1]],
        ["SP", 1, 0, 48, [1], 1],
        ["AN", 1, 1, 2],
        ["FFSP", 1, 0, [2, 1], 1, 1],
        ["AN", 1, 1, 6],
        ["PR", 4, 0, f"auto_unroll_max_step${unroll}"],
    ]


def line(steps: Any, key: str = '["matmul_layer", 128, 128, 128]', result: Any = None, target: str = CUDA) -> str:
    given = [[key, target, HARDWARE, "", 0, []], [[], steps]]
    return json.dumps({"i": given, "r": result or [[1e-3], 0, 1.5, 1.6e9], "v": "v0.6"})


def read(path: Path, *lines: str) -> tuple[list[TuningRecord], ReadReport]:
    path.write_text("".join(f"{text}\n" for text in lines))
    report = ReadReport()
    return list(open_dialect("auto_scheduler").read(path, LogInfo(), report)), report


def features(steps: Any) -> dict[str, float]:
    workload = open_workload('["matmul_layer", 128, 128, 128]')
    row = EXTRACTOR.extract(workload, [Candidate(steps)], Target.parse("cuda"))[0]
    return dict(zip(EXTRACTOR.features.names, map(float, row), strict=True))


def open_workload(key: str) -> Any:
    from lorien.dialects.auto_scheduler import workload_of

    return workload_of(key, LogInfo())


@pytest.mark.parametrize(
    ("key", "name", "identity"),
    [
        ('["matmul_layer", 128, 64, 32]', "matmul_layer(128, 64, 32)", ["matmul_layer", 128, 64, 32]),
        ('["pool", "avg", [1, 3], "SAME"]', "pool(avg, 1x3, SAME)", ["pool", "avg", [1, 3], "SAME"]),
        ('["d7b65649a4dd54becea0a52aabbc5af5", 1, 8]', "d7b65649(1, 8)", ["d7b65649a4dd54becea0a52aabbc5af5", 1, 8]),
        ("d7b65649a4dd54becea0a52aabbc5af5", "d7b65649()", ["d7b65649a4dd54becea0a52aabbc5af5"]),
    ],
)
def test_workloads_are_functions_or_hashes_with_arguments(
    key: str, name: str, identity: list[Any], tmp_path: Path
) -> None:
    ((record,), _) = read(tmp_path / "a.json", line([["FU", 1, [0, 1]]], key))
    assert (record.workload.name, record.workload.identity) == (name, identity)
    assert record.target.key == "cuda-arch_sm_70"


def test_a_line_of_the_first_version_reads(tmp_path: Path) -> None:
    old = json.dumps(
        {
            "i": [['["f", 8]', "llvm"], [[], [["PR", 1, 0, "auto_unroll_max_step$0"]]]],
            "r": [[0.5], 0, 1, 2],
            "v": "v0.1",
        }
    )
    ((record,), report) = read(tmp_path / "a.json", old)
    assert (record.target.kind, record.measurement.latency_s, report.unreadable) == ("llvm", 0.5, 0)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (1, Outcome.INSTANTIATION_ERROR),
        (2, Outcome.BUILD_ERROR),
        (4, Outcome.RUN_ERROR),
        (6, Outcome.BUILD_TIMEOUT),
        (7, Outcome.RUN_TIMEOUT),
    ],
)
def test_failures_are_records(error: int, outcome: Outcome, tmp_path: Path) -> None:
    ((record,), report) = read(tmp_path / "a.json", line([["CI", 1]], result=[[1e10], error, 10.4, 1.6e9]))
    assert (record.measurement.outcome, report.failed) == (outcome, 1)


@pytest.mark.parametrize(
    "bad",
    [
        line("steps"),
        line([["CI"]]),
        line([[3, 1]]),
        line([["CI", 1]], key='[7, "f"]'),
        line([["CI", 1]], key="{}"),
        line([["CI", 1]], result=[[], 0, 1, 2]),
        line([["CI", 1]], result=[[1e-3], 0]),
        line([["CI", 1]], target="abacus"),
        '{"i": [[1, 2], [[], []]], "r": [[1.0], 0, 1, 2]}',
        '{"i": 3}',
    ],
)
def test_a_dirty_line_is_counted_and_skipped(bad: str, tmp_path: Path) -> None:
    records, report = read(tmp_path / "a.json", bad, line([["CI", 1]]))
    assert (len(records), report.unreadable, len(report.reasons)) == (1, 1, 1)


def test_steps_make_the_loop_nest_that_tvm_made() -> None:
    form, numbers = skeleton(gpu_matmul([2, 8, 1, 4], [1, 16, 2, 1], [4, 2]))
    stages = replay(form, np.array([numbers]))
    assert [stage.scope for stage in stages] == ["", "shared", "", "shared", "local", ""]
    local, output = stages[4], stages[5]
    # Blocks, virtual threads, threads of both axes; then two levels of the reduction, inner tiles, and so on.
    assert [float(loop.extent[0]) for loop in local.loops] == [2, 4, 2, 1, 8, 16, 16, 4, 1, 2, 2, 4, 1]
    assert [float(loop.extent[0]) for loop in output.loops[:3]] == [8, 2, 128]
    bounds = {name: output.bound(kinds) for name, kinds in (("b", BLOCKS), ("v", (VTHREAD,)), ("t", THREADS))}
    assert {name: float(bound[0]) for name, bound in bounds.items() if bound is not None} == {"b": 8, "v": 2, "t": 128}
    assert local.at is output
    assert stages[3].at is local
    assert [float(loop.extent[0]) for loop in stages[3].loops] == [1, 128, 2]


def test_what_the_tiles_imply() -> None:
    found = features(gpu_matmul([2, 8, 1, 4], [1, 16, 2, 1], [4, 2]))
    assert found["macs"] == 21
    assert found["last_threads"] == math.log2(128)
    assert found["reg_tile"] == math.log2(2 * 4 * 2)
    assert found["block_tile"] == math.log2(64 * 32)
    assert (found["chunk"], found["chunks"], found["outer"]) == (3, 4, 3)
    # A block loads 64 rows of one input and 32 columns of the other, over a chunk of 8.
    assert (found["read0_block"], found["read1_block"]) == (math.log2(64 * 8), math.log2(32 * 8))
    assert found["read1_vector"] == 1
    assert found["read1"] == pytest.approx(math.log2(96))
    assert found["last_unroll"] != found["last_unroll"]  # the pragma is on the tiled stage, which is no kernel
    assert found["unroll_step"] == pytest.approx(math.log2(513))
    assert found["steps_FFSP"] == 2
    assert found["waste"] == 0


def test_a_row_depends_on_its_own_steps_only() -> None:
    workload = open_workload('["matmul_layer", 128, 128, 128]')
    tiles = [[1, 8, 1, 4], [2, 4, 2, 2], [4, 16, 1, 1]]
    candidates = [Candidate(gpu_matmul(m, n, [4, 2], unroll=u)) for m in tiles for n in tiles for u in (0, 64)]
    candidates.append(Candidate([["FU", 1, [0, 1]], ["SP", 1, 0, 4096, [32], 1], ["AN", 1, 0, 5], ["AN", 1, 1, 6]]))
    target = Target.parse("cuda")
    together = EXTRACTOR.extract(workload, candidates, target)
    alone = np.concatenate([EXTRACTOR.extract(workload, [candidate], target) for candidate in candidates])
    assert np.array_equal(together, alone, equal_nan=True)


def test_every_kind_of_step_is_known() -> None:
    steps = [
        *gpu_matmul([1, 8, 1, 4], [1, 8, 1, 4], [4, 2]),
        ["CI", 0],
        ["CR", 1],
        ["SA", 2, 0, 32, 1],
        ["SP", 6, 0, None, [None, 4], 0],
        ["RF", 6, 0, 0],
    ]
    assert {step[0] for step in steps} == set(KINDS)
    assert features(steps)["steps_RF"] == 1


@pytest.mark.parametrize(
    "steps",
    [
        [["SP", 1, 0, 8]],
        [["SP", 1, 0, 8, [0], 1]],
        [["SP", 1, 0, 8, ["x"], 1]],
        [["SP", 1, 0, 1e300, [2], 1]],
        [["FSP", 1, 0, 7, 2]],
        [["RE", 1, [9999]]],
        [["AN", 99999999, 0, 5]],
        [["XX", 1]],
        [["PR", 1, 0, None]],
        [["FU", 1, []]],
    ],
)
def test_steps_that_do_not_fit_are_a_row_of_nan_and_spoil_no_other(steps: Any) -> None:
    workload = open_workload('["f", 1]')
    good = Candidate(gpu_matmul([1, 8, 1, 4], [1, 8, 1, 4], [4, 2]))
    rows = EXTRACTOR.extract(workload, [good, Candidate(steps), good], Target.parse("cuda"))
    assert np.isnan(rows[1]).all()
    assert np.array_equal(rows[0], rows[2], equal_nan=True)
    assert not np.isnan(rows[0]).all()


def test_featurizing_a_log_reports_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"{line([['SP', 1, 0, 8, [0], 1]])}\n{line([['CI', 1]])}\n")
    report = ReadReport()
    ((records, rows),) = EXTRACTOR.extract_log(path, LogInfo(), report, (0, 1), 64)
    assert (len(records), len(rows), report.unreadable) == (1, 1, 1)
    assert "do not fit" in report.reasons[0]
