"""``lorien extract`` over several models: what one lacks costs the others nothing, and each has its own name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import orjson
import pytest
from onnx_models import FLOAT, between_convolutions, model, node, weight
from typer.testing import CliRunner

from lorien.cli.app import app
from lorien.dialects import networks
from lorien.dialects.apart import workloads_and_log
from lorien.dialects.metaschedule import MetaScheduleDialect
from lorien.featurize.schema import joined, parted
from lorien.featurize.splits import split_holdout
from lorien.logs.base import LogFile, StoredLog
from lorien.records import Workload
from lorien.target import Target


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def extract(folder: Path, *arguments: Any) -> tuple[int, str, list[Workload]]:
    output = folder / "w.jsonl"
    output.unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["extract", *map(str, arguments), "--target", "llvm", "-o", str(output)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    lines = output.read_bytes().splitlines() if output.exists() else []
    return done.exit_code, " ".join(done.stderr.split()), [Workload.from_json(orjson.loads(line)) for line in lines]


def dense(path: Path, units: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {"w": weight(8, units)}
    path.write_bytes(
        model([node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, (1, 8))}, ["y"], weights).SerializeToString()
    )
    return path


def test_a_model_whose_weights_are_short_costs_the_others_nothing(tmp_path: Path) -> None:
    good = dense(tmp_path / "good.onnx", 4)
    cut = between_convolutions([node("Relu", ["a"], ["b"])])
    onnx.save(cut, str(tmp_path / "cut.onnx"), save_as_external_data=True, location="cut.bin", size_threshold=0)
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:100])
    code, said, workloads = extract(tmp_path, tmp_path / "cut.onnx", good)
    assert code == 1
    assert "cut.onnx is not whole: External data length" in said
    assert "Fix: copy it with its data files again" in said
    assert [w.networks for w in workloads] == [("good",)]


def test_a_model_that_surprises_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprised(*arguments: Any, **options: Any) -> list[Workload]:
        logging.getLogger("lorien.dialects").warning("%s is %s", "it", tmp_path)
        raise KeyError("num_heads")

    monkeypatch.setattr(MetaScheduleDialect, "extract", surprised)
    workloads, error, records = workloads_and_log(
        "metaschedule", Path("odd.onnx"), "odd", Target("llvm"), {}, {"allow_code": False}
    )
    assert "odd.onnx cannot be read, and Lorien did not expect why (KeyError)" in str(error)
    assert (workloads, [record.getMessage() for record in records]) == ([], [f"it is {tmp_path}"])


def test_a_model_that_the_compiler_crashes_on_costs_the_others_nothing(tmp_path: Path) -> None:
    # LayerNormalization of TVM 0.27 does not look at its axis.
    names = ["x", "w", "b"]
    normal = node("LayerNormalization", names, ["y", "mean", "deviation"], axis=1 << 31)
    crash = model([normal], dict.fromkeys(names, (FLOAT, (3, 4))), ["y", "mean", "deviation"])
    (tmp_path / "crash.onnx").write_bytes(crash.SerializeToString())
    code, said, workloads = extract(tmp_path, tmp_path / "crash.onnx", dense(tmp_path / "good.onnx", 4))
    assert (code, [w.networks for w in workloads]) == (1, [("good",)])
    assert "crash.onnx: the compiler crashed on it (SIGSEGV); the other models are kept. Fix: export" in said


def test_a_model_without_a_workload_is_said_so(tmp_path: Path) -> None:
    empty = model([node("Identity", ["x"], ["y"])], {"x": (FLOAT, (1, 8))}, ["y"])
    (tmp_path / "empty.onnx").write_bytes(empty.SerializeToString())
    code, said, workloads = extract(tmp_path, tmp_path / "empty.onnx", dense(tmp_path / "good.onnx", 4))
    assert (code, len(workloads)) == (1, 1)
    assert "empty.onnx has no workload that can be tuned" in said


def test_models_of_one_stem_are_networks_of_their_own(tmp_path: Path) -> None:
    first, second = dense(tmp_path / "a" / "model.onnx", 4), dense(tmp_path / "b" / "model.onnx", 5)
    code, _, workloads = extract(tmp_path, first, second, dense(tmp_path / "other.onnx", 5), first)
    assert code == 0
    assert [(w.networks, w.weight) for w in workloads] == [(("a/model",), 1.0), (("b/model", "other"), 2.0)]


def test_a_network_is_named_by_who_knows_better(tmp_path: Path) -> None:
    path = dense(tmp_path / "model.onnx", 4)
    _, _, workloads = extract(tmp_path, path, "--network", "bert/base")
    assert [w.networks for w in workloads] == [("bert/base",)]
    code, said, workloads = extract(tmp_path, path, dense(tmp_path / "other.onnx", 5), "--network", "bert")
    assert (code, workloads) == (2, [])
    assert "give one model, and a name without +" in said
    assert extract(tmp_path, path, "--network", "a+b")[0] == 2


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["a/model.onnx", "b/model.onnx"], ["a/model", "b/model"]),
        (["x/a/model.onnx", "y/a/model.onnx", "z.onnx"], ["x/a/model", "y/a/model", "z"]),
        (["a/model.onnx", "a/model.pt2"], ["a/model.onnx", "a/model.pt2"]),
        (["a/model.onnx", "./a/model.onnx"], ["model", "model"]),
        (["/model.onnx", "/a/model.onnx"], ["model", "a/model"]),
        (["ocr+v4.onnx"], ["ocr-v4"]),
        (["a+b.onnx", "a-b.onnx"], ["a-b-1", "a-b-2"]),
        (["bad\udcff.onnx"], ["bad?"]),
        (["matmul:512,512,512", "conv2d:28,28"], ["matmul:512,512,512", "conv2d:28,28"]),
    ],
)
def test_names_of_networks(models: list[str], names: list[str]) -> None:
    found = networks.network_names([Path(name) for name in models])
    assert found == names
    assert parted(joined(sorted(set(found)))) == tuple(sorted(set(found)))
    orjson.dumps(found)


def test_a_name_with_a_folder_is_legal_where_networks_are_named() -> None:
    files = (LogFile("net.log", 1, 1, "0" * 64, 1, "0" * 64),)
    log = StoredLog(
        "metaschedule", Target("llvm"), "a/model", files, True, "0" * 64, records=1, failed=0, unreadable=0, workloads=1
    )
    assert log.id == "metaschedule/llvm/a-model-000000000000"
    assert StoredLog.from_json(log.to_json(), "here") == log
    train, test = split_holdout(["w1", "w2", "w3"], ["a/model", "b/model", "b/model+c"], "b/model")
    assert (list(train), list(test)) == ([True, False, False], [False, True, True])
