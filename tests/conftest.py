"""What many tests need: small AutoTVM logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

AutoTvmLine = Callable[..., str]


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
