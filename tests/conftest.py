"""What many tests need: tuning records, and small AutoTVM logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

MakeRecord = Callable[..., TuningRecord]
AutoTvmLine = Callable[..., str]


def make_record(
    latency_s: float | None = 1e-3,
    candidate: int = 0,
    *,
    workload: int = 0,
    target: str = "cuda -arch=sm_86",
    build: str = "tvm 0.10.0",
    network: str | None = None,
    name: str | None = None,
    dialect: str = "autotvm",
    schedule: object = None,
) -> TuningRecord:
    """A record that ran in ``latency_s``, or failed when that is None."""
    outcome = Measurement(Outcome.RUN_ERROR) if latency_s is None else Measurement(Outcome.OK, (latency_s,))
    return TuningRecord(
        workload=Workload(dialect, name or f"dense{workload}", ["dense", [workload]]),
        target=Target.parse(target),
        candidate=Candidate(schedule if schedule is not None else [["tile_x", "sp", [-1, candidate]]]),
        measurement=outcome,
        build=build,
        network=network,
    )


def autotvm_line(
    latencies_s: Sequence[float] = (1e-3,),
    tile: int = 1,
    *,
    size: int = 64,
    error: int = 0,
    target: str = "llvm -keys=cpu",
) -> str:
    """One line of an AutoTVM log: a dense layer of ``size``, tiled by ``tile``."""
    tensor = ["TENSOR", [1, size], "float32"]
    knobs = [["tile_x", "sp", [-1, tile]], ["tile_y", "sp", [-1, 1]], ["tile_k", "sp", [-1, 1]]]
    return json.dumps(
        {
            "input": [target, "dense_nopack.x86", [tensor, ["TENSOR", [size, size], "float32"], None, "float32"], {}],
            "config": {"index": tile, "code_hash": None, "entity": knobs},
            "result": [list(latencies_s), error, 1.0, 1680553635.0 + tile],
            "version": 0.2,
            "tvm_version": "0.10.0",
        }
    )


@pytest.fixture(name="record")
def record_factory() -> MakeRecord:
    return make_record


@pytest.fixture(name="line")
def line_factory() -> AutoTvmLine:
    return autotvm_line


@pytest.fixture
def autotvm_log(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to ``<tmp_path>/<name>``."""

    def write(name: str, lines: Sequence[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write
