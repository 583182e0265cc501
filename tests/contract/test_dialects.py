"""The suites of ``lorien.testing`` on every dialect, with real MetaSchedule logs and lines of the others."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import legacy_metaschedule
import pytest

from lorien.dialects import open_dialect
from lorien.dialects.halide.logs import Writer
from lorien.dialects.halide.pipelines import parse
from lorien.records import Candidate, Measurement, Outcome
from lorien.target import Target
from lorien.testing.live_suite import *  # noqa: F403
from lorien.testing.log_suite import *  # noqa: F403

SAMPLE = Path(__file__).parents[2] / "datasets/plain/llvm_znver4_2/bvlc_alexnet"


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


@pytest.fixture
def model(dialect: str) -> str:
    if dialect != "halide":
        pytest.skip("no live dialect with a small model")
    return "matmul:16,32,16"


def test_it_finds_no_others(dialect: str, log: Path, tmp_path: Path) -> None:
    for other in set(LOGS) - {dialect}:
        assert list(open_dialect(other).find(tmp_path)) == []
