"""Model files that cannot be read, formats that run code, and sizes given for open inputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper

from lorien.dialects.metaschedule.extract import extract_workloads
from lorien.dialects.metaschedule.frontends import load_model
from lorien.errors import BadInput, MissingExtra
from lorien.target import Target

TARGET = Target("llvm")
DENSE = """
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T


@I.ir_module
class Module:
    @R.function
    def main(
        x: R.Tensor(("n", 8), "float32"), y: R.Tensor(("n", 4), "float32"), w: R.Tensor((8, 4), "float32")
    ) -> R.Tensor(("n", 4), "float32"):
        n = T.int64()
        with R.dataflow():
            product: R.Tensor((n, 4), "float32") = R.matmul(x, w)
            result: R.Tensor((n, 4), "float32") = R.add(product, y)
            R.output(result)
        return result
"""
OPEN = {"x": (3, 8), "y": (3, 4)}


def write_onnx(path: Path, op: str = "Relu", shape: Any = (1, 8), domain: str = "") -> Path:
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=opsets, ir_version=8
    )
    onnx.save(model, str(path))
    return path


def write_python(path: Path, text: str = DENSE) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.onnx", None, r"No such file. Fix: give the path of an ONNX model"),
        ("none.json", None, r"No such file"),
        ("model.pb", b"", r"no model format that can be read. Fix: give one of \*.onnx"),
        ("empty.onnx", b"", "holds no ONNX graph: it is empty or cut short"),
        ("binary.onnx", b"\x00\xff\x17" * 99, "is not an ONNX model, or not whole"),
        ("binary.json", b"\x00\xff\x17" * 99, "is no module that tvm .* reads"),
        ("text.json", b'{"nodes": []}', "is no module that tvm .* reads"),
        ("other.json", tvm.ir.save_json(tvm.ir.IRModule({})).encode(), "holds no Relax module with a function main"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        load_model(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_an_onnx_file_cut_short(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match="is not an ONNX model, or not whole"):
        load_model(path)


def test_a_graph_that_is_not_valid(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    model = onnx.load(str(path))
    model.graph.node.append(onnx.NodeProto(op_type="Shape", output=["shape"]))
    onnx.save(model, str(path))
    with pytest.raises(BadInput, match=r"is not a valid ONNX graph: .*Fix: export it again"):
        load_model(path)


def test_onnx_weights_in_a_file_that_is_missing(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    model = onnx.load(str(path))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "x"))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    load_model(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BadInput, match=r"not whole: .*weights\.bin.*copy it with its data files"):
        load_model(path)


def test_operators_that_tvm_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no conversion for the ONNX operators Det\. Fix"):
        load_model(write_onnx(tmp_path / "det.onnx", "Det", (4, 4)))
    with pytest.raises(BadInput, match=r"no conversion for the ONNX operators MadeUp\. Fix"):
        load_model(write_onnx(tmp_path / "custom.onnx", "MadeUp", domain="org.example"))


def test_an_open_input_needs_a_shape(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_onnx(tmp_path / "model.onnx", shape=("batch", 8))
    with pytest.raises(BadInput, match=r"input x has the open shape batch,8. Fix: --shape x=N,8 with numbers for N"):
        load_model(path)
    with pytest.raises(BadInput, match=r"input x has 2 dimensions \(batch,8\), --shape gives 3"):
        load_model(path, {"x": (1, 8, 1)})
    with caplog.at_level(logging.WARNING):
        (workload,) = extract_workloads(path, TARGET, {"x": (2, 8), "z": (1,)})
    assert "has no input z; its inputs: x" in caplog.text
    assert (workload.networks, workload.weight) == (("model",), 1.0)
    with pytest.raises(BadInput, match=r"input x has the open shape \?"):
        load_model(write_onnx(tmp_path / "rank.onnx", shape=None))


@pytest.mark.parametrize("name", ["model.py", "model.pt2"])
def test_formats_that_run_code_need_leave(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    write_python(tmp_path / name, f"open({str(ran)!r}, 'w')")
    with pytest.raises(BadInput, match=r"can run any code on this machine.*Fix: give --allow-code if you trust"):
        load_model(tmp_path / name)
    assert not ran.exists()


def test_relax_from_python_and_from_json(tmp_path: Path) -> None:
    path = write_python(tmp_path / "dense.py")
    with pytest.raises(BadInput, match=r"input x has the open shape n,8. Fix: --shape x=N,8"):
        load_model(path, allow_code=True)
    with pytest.raises(BadInput, match=r"--shape y gives 5 where the model has 3"):
        load_model(path, {**OPEN, "y": (5, 4)}, allow_code=True)
    with pytest.raises(BadInput, match=r"--shape w gives 9 where the model has 8"):
        load_model(path, {**OPEN, "w": (9, 4)}, allow_code=True)
    (from_python,) = extract_workloads(path, TARGET, OPEN, allow_code=True)
    saved = tmp_path / "dense.json"
    saved.write_text(tvm.ir.save_json(load_model(path, OPEN, allow_code=True)))
    (from_json,) = extract_workloads(saved, TARGET)
    assert from_python == from_json
    assert from_python.flop == 3 * 4 * (2 * 8 + 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "does not run: ZeroDivisionError"),
        ("x = (", "does not run: SyntaxError"),
        ("raise SystemExit(0)", "does not run: SystemExit 0"),
        ("x = 1", r"has 0 Relax modules with a function main \(none\)"),
        (DENSE + "\nOther = Module\n", r"has 2 Relax modules with a function main \(Module, Other\)"),
    ],
)
def test_python_without_a_model(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_model(write_python(tmp_path / "model.py", text), allow_code=True)


def test_exported_programs_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(MissingExtra, match=r"torch is not installed. Fix: pip install 'lorien\[pytorch\]'"):
        load_model(tmp_path / "model.pt2", allow_code=True)


@pytest.mark.filterwarnings("ignore")  # torch deprecates what it uses itself
def test_exported_programs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'lorien[pytorch]'")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            self.dense = torch.nn.Linear(8, 10)

        def forward(self, x: Any) -> Any:
            return self.dense(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    class Rare(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.special.i0(x)

    batch = torch.export.Dim("batch")
    program = torch.export.export(Net().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    with pytest.raises(BadInput, match=r"input x has the open shape \w+,3,8,8. Fix: --shape x=N,3,8,8"):
        load_model(path, allow_code=True)
    names = [w.name for w in extract_workloads(path, TARGET, {"x": (4, 3, 8, 8)}, allow_code=True)]
    assert any("conv2d" in name for name in names)
    assert any("matmul" in name for name in names)

    torch.export.save(torch.export.export(Rare(), (torch.rand(4),)), tmp_path / "rare.pt2")
    with pytest.raises(BadInput, match=r"no conversion for the PyTorch operators 'i0.default'\. Fix"):
        load_model(tmp_path / "rare.pt2", allow_code=True)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(BadInput, match=r"is no exported program that torch .* reads"):
        load_model(path, allow_code=True)
