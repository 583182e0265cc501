"""Networks as they are exported (open sizes, shapes computed in the graph) to workloads, and those to more of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import orjson
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

from lorien.cli.app import app
from lorien.dialects.metaschedule import winograd
from lorien.dialects.metaschedule.extract import extract_workloads
from lorien.dialects.metaschedule.frontends import load_model
from lorien.dialects.metaschedule.mutate import recognize
from lorien.dialects.metaschedule.onnx_shapes import fix_inputs, fold_shapes
from lorien.errors import BadInput
from lorien.records import Layout, Workload
from lorien.target import Target

TARGET = Target.parse("llvm -mcpu=x86-64-v3 -num-cores=2")
OPEN = ("batch", 3, "height", "width")


class Graph:
    """An ONNX graph under construction; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._rng = np.random.default_rng(0)

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, dtype=dtype)))

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.initializers)}"
        array = (self._rng.random(shape) - 0.5).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, outs: int, ins: int, size: int = 3, stride: int = 1) -> str:
        pads = [size // 2] * 4
        return self.op(
            "Conv", x, self.weight(outs, ins, size, size), self.weight(outs), pads=pads, strides=[stride] * 2
        )

    def size(self, x: str, axis: int) -> str:
        """What PyTorch exports for ``x.size(axis)``, as a vector."""
        return self.op("Unsqueeze", self.op("Gather", self.op("Shape", x), self.constant(axis)), self.constant([0]))

    def sizes(self, x: str, start: int, end: int) -> str:
        return self.op("Slice", self.op("Shape", x), self.constant([start]), self.constant([end]))

    def model(self, shape: Sequence[int | str], output: str, rank: int) -> Any:
        inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [f"out_{axis}" for axis in range(rank)])]
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def recognizer() -> Any:
    """OCR as in CRNN: columns of features become a sequence, by sizes read off the graph."""
    g = Graph()
    x = g.op("MaxPool", g.op("Relu", g.conv("image", 16, 3)), kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Relu", g.conv(x, 32, 16))
    features = g.op("Mul", g.size(x, 1), g.size(x, 2))
    x = g.op("Reshape", x, g.op("Concat", g.size(x, 0), features, g.size(x, 3), axis=0))
    x = g.op("Transpose", x, perm=[2, 0, 1])
    x = g.op("Add", g.op("MatMul", x, g.weight(32 * 16, 37)), g.weight(37))
    rows = g.op("Mul", g.size(x, 0), g.size(x, 1))
    x = g.op("Reshape", x, g.op("Concat", rows, g.constant([37]), axis=0))
    return g.model(("batch", 3, 32, "width"), g.op("Softmax", x, axis=-1), 2)


def detector() -> Any:
    """Two heads over a feature pyramid: the upper level is enlarged to the size of the lower."""
    g = Graph()
    low = g.op("Relu", g.conv("image", 8, 3, stride=2))
    high = g.op("Relu", g.conv(low, 16, 8, stride=2))
    sizes = g.op("Concat", g.op("Cast", g.sizes(high, 0, 2), to=TensorProto.INT64), g.sizes(low, 2, 4), axis=0)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    merged = g.op("Concat", g.op("Resize", high, "", "", sizes, **nearest), g.conv(low, 16, 8, size=1), axis=1)
    heads = []
    for level, channels in ((merged, 32), (high, 16)):
        head = g.op("Transpose", g.conv(level, 24, channels), perm=[0, 2, 3, 1])
        shape = g.op("Concat", g.size(head, 0), g.constant([-1]), g.constant([6]), axis=0)
        heads.append(g.op("Reshape", head, shape))
    return g.model(OPEN, g.op("Sigmoid", g.op("Concat", *heads, axis=1)), 3)


def upsampler() -> Any:
    """Scales from a quotient of sizes, a grid of positions, and a branch on a size."""
    g = Graph()
    x = g.conv("image", 8, 3, stride=2)
    sizes = [g.op("Cast", g.sizes(value, 2, 4), to=TensorProto.FLOAT) for value in ("image", x)]
    scales = g.op("Concat", g.constant([1, 1], np.float32), g.op("Div", *sizes), axis=0)
    x = g.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    x = g.op("Add", x, g.op("ConstantOfShape", g.op("Shape", x), value=helper.make_tensor("v", 1, [1], [0.5])))
    width = g.op("Squeeze", g.size(x, 3))
    grid = g.op("Cast", g.op("Range", g.constant(0), width, g.constant(1)), to=TensorProto.FLOAT)
    shape = g.op("Shape", x)
    no_size = g.op("Equal", shape, g.constant([-1]))
    x = g.op("Add", x, g.op("Expand", grid, g.op("Where", no_size, g.constant([1]), shape)))

    def branch(name: str, op: str) -> Any:
        value = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [x], [f"{name}_out"])], name, [], [value])

    wide = g.op("Greater", width, g.constant(8))
    x = g.op("If", wide, then_branch=branch("wide", "Relu"), else_branch=branch("narrow", "Neg"))
    return g.model(OPEN, x, 4)


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[int, ...]]] = {
    "recognizer": (recognizer, (1, 3, 32, 100), (4, 3, 32, 64)),
    "detector": (detector, (1, 3, 16, 24), (2, 3, 24, 24)),
    "upsampler": (upsampler, (1, 3, 8, 16), (2, 3, 8, 8)),
}
COMPUTED = {"Shape", "Gather", "Slice", "Unsqueeze", "Squeeze", "Cast", "Mul", "Div", "Where", "Equal", "Range", "If"}


def run(model: Any, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    (result,) = ReferenceEvaluator(model).run(None, {"image": image})
    return np.asarray(result)


@pytest.mark.parametrize("name", MODELS)
def test_folding_keeps_what_the_model_computes(name: str) -> None:
    make, *shapes = MODELS[name]
    model = make()
    before = model.SerializeToString()
    for shape in shapes:
        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        fix_inputs(fixed, {"image": shape})
        folded = fold_shapes(fixed)
        onnx.checker.check_model(folded, full_check=True)
        assert not COMPUTED & {node.op_type for node in folded.graph.node}
        image = np.random.default_rng(1).random(shape, dtype=np.float32)
        np.testing.assert_array_equal(run(folded, image), run(model, image))
    assert model.SerializeToString() == before


def test_folding_leaves_what_depends_on_data() -> None:
    g = Graph()
    kept = g.op("NonZero", g.op("Relu", "image"))
    x = g.op("Reshape", g.op("Cast", kept, to=TensorProto.FLOAT), g.op("Shape", g.op("Transpose", kept)))
    folded = fold_shapes(g.model((1, 3, 4, 4), x, 2))
    assert [node.op_type for node in folded.graph.node] == ["Relu", "NonZero", "Cast", "Transpose", "Shape", "Reshape"]


@pytest.mark.parametrize("layout", ["plain", "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_mutated_workloads_are_those_of_the_model_at_the_other_size(
    name: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch and spatial sizes of the convolutions and pools of one export, changed to those of the other."""
    # The three kernels of Winograd's computation are not mutated.
    monkeypatch.setattr(winograd, "tile_side", lambda *_: None)
    make, *shapes = MODELS[name]
    path = tmp_path / f"{name}.onnx"
    onnx.save(make(), str(path))
    first, second = (
        [
            w
            for w in extract_workloads(path, TARGET, {"image": shape}, layout=layout)
            if re.match("fused_conv2d|conv2d|max_pool", w.name)
        ]
        for shape in shapes
    )
    sizes = [recognize(workload).axes for workload in second]
    wanted = {workload.key for workload in second}
    assert len(first) == len(second) > 0
    for workload in first:
        operator = recognize(workload)
        made = {operator.at(axes, "made").key for axes in sizes if axes.keys() == operator.axes.keys()}
        assert workload.key not in wanted
        wanted -= made
    assert not wanted


def test_operators_that_tvm_lacks_are_named_and_the_rest_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A recurrent recognizer, as OCR networks are exported: TVM's front end has no LSTM."""
    g = Graph()
    x = g.op("Relu", g.conv("image", 16, 3))
    x = g.op("Reshape", x, g.op("Concat", g.size(x, 0), g.constant([-1]), g.size(x, 3), axis=0))
    x = g.op("Transpose", x, perm=[2, 0, 1])
    x = g.op("LSTM", x, g.weight(1, 96, 16 * 8), g.weight(1, 96, 24), hidden_size=24)
    x = g.op("Reshape", x, g.op("Concat", g.size(x, 0), g.size(x, 2), g.constant([24]), axis=0))
    path = tmp_path / "ocr.onnx"
    onnx.save(g.model(("batch", 3, 8, "width"), g.op("MatMul", x, g.weight(24, 37)), 3), str(path))
    workloads = extract_workloads(path, TARGET, {"image": (2, 3, 8, 32)})
    assert "ocr.onnx: TVM has no conversion for the ONNX operators LSTM; left out" in caplog.text
    axes = {w.name: recognize(w).axes for w in workloads if "conv" in w.name or "matmul" in w.name}
    assert [sizes["batch"] for name, sizes in axes.items() if "conv" in name] == [2]
    assert [(sizes["batch"], sizes["length"]) for name, sizes in axes.items() if "matmul" in name] == [(32, 2)]
    with pytest.raises(BadInput, match=r"no conversion for the ONNX operators LSTM\. Fix"):
        load_model(path, {"image": (2, 3, 8, 32)})


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def read(path: Path) -> list[Workload]:
    return [Workload.from_json(orjson.loads(line)) for line in path.read_bytes().splitlines()]


def test_commands(tmp_path: Path) -> None:
    """Two networks that share workloads, one that has no shape; then rules over what was extracted."""
    for name in ("one", "two"):
        onnx.save(detector(), str(tmp_path / f"{name}.onnx"))
    refused = tmp_path / "refused.onnx"
    refused.write_bytes(b"no model")
    given = tmp_path / "workloads.jsonl"
    models = [tmp_path / "one.onnx", tmp_path / "two.onnx", refused]
    shape = "image=1,3,64,96"
    done = invoke("extract", *models, "--target", "llvm", "--shape", shape, "-o", given, "--json")
    assert done.exit_code == 1  # one was refused, the others are kept
    answer = json.loads(done.stdout)
    assert list(answer["refused"]) == [str(refused)]
    workloads = read(given)
    assert len(workloads) == answer["workloads"] == answer["found"] == 11
    assert {(workload.networks, workload.weight) for workload in workloads} == {(("one", "two"), 2.0)}

    done = invoke("extract", models[0], "--target", "llvm", "-o", tmp_path / "none.jsonl")
    assert done.exit_code == 1
    assert "--shape image=N,3,N,N" in done.stderr
    assert not (tmp_path / "none.jsonl").exists()

    for wrong in ("image", "image=", "image=1,0,64,96", "image=1,N", "=1"):
        assert invoke("extract", models[0], "--shape", wrong, "-o", tmp_path / "none.jsonl").exit_code == 2

    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules:\n  - match: conv2d\n    batch: [1, 8]\n    channels: [x1, x0.5]\n")
    more = tmp_path / "more.jsonl"
    done = invoke("mutate", given, "--rules", rules, "-o", more, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    made = read(more)
    # Three convolutions: as they are, at batch 8, and (but for the one of three channels) with half the channels.
    assert (answer["workloads"], answer["duplicates"], len(answer["invalid"])) == (len(made), 3, 2)
    assert len({workload.key for workload in made}) == len(made) == 3 + 2 * 2
    # The other two are three kernels each.
    assert len(answer["unsupported"]) == 6
    assert all("Fix: mutate the workloads of --layout plain" in reason for reason in answer["unsupported"])
    rules.write_text("version: 1\nrules:\n  - batch: 1\n")
    done = invoke("mutate", given, "--rules", rules, "-o", more)
    assert done.exit_code == 1
    assert "no new workload to write" in done.stderr
    assert read(more) == made
