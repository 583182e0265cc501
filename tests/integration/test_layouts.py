"""Networks in blocked layouts: what they compute is what ONNX's reference computes, and what leaves the blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lorien.dialects.metaschedule.extract import lower, workloads_in
from lorien.dialects.metaschedule.frontends import load_model
from lorien.dialects.metaschedule.workload import native_target, require_tvm
from lorien.target import Target
from tests.onnx_models import FLOAT, model

require_tvm()

Array = npt.NDArray[np.float32]


class Graph:
    """Nodes and random weights as they are written down; every call gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, low: float = -0.5) -> str:
        return self.constant(self._rng.uniform(low, 0.5, shape).astype(np.float32))

    def conv(self, x: str, channels: int, into: int, size: int = 3, *, bias: bool = False, **attributes: Any) -> str:
        weight = self.weight(into, channels // attributes.get("group", 1), size, size)
        pads = attributes.pop("pads", [size // 2] * 4)
        biases = (self.weight(into),) if bias else ()
        return str(self.op("Conv", x, weight, *biases, pads=pads, **attributes))

    def norm(self, x: str, channels: int) -> str:
        statistics = [self.weight(channels) for _ in range(3)]
        variance = self.constant(self._rng.uniform(0.5, 2, channels).astype(np.float32))
        return str(self.op("BatchNormalization", x, *statistics, variance, epsilon=1e-3))

    def model(self, outputs: list[str], size: int) -> Any:
        return model(self.nodes, {"x": (FLOAT, (1, 3, size, size))}, outputs, self.weights)


def blocks_alone() -> tuple[Any, int]:
    """All that stays in blocks, from the picture to the classes; nothing is left to transform."""
    g = Graph()
    x = g.op("Relu", g.norm(g.conv("x", 3, 16, strides=[2, 2]), 16))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    deep = g.op("Clip", g.norm(g.conv(x, 16, 16, group=16), 16), g.constant(np.float32(0)), g.constant(np.float32(6)))
    wide = g.conv(deep, 16, 24, 1, bias=True)
    both = g.op("Concat", wide, g.op("Identity", x), axis=1)
    x = g.op("Relu", g.norm(both, 40))
    x = g.conv(x, 40, 32, group=4, dilations=[2, 2], pads=[2] * 4)
    y = g.conv(x, 32, 32, 1)
    x = g.op("Sum", x, y, g.op("Dropout", g.op("Mul", y, g.weight(1, 32, 1, 1))))
    gate = g.op("Relu", g.conv(g.op("GlobalAveragePool", x), 32, 8, 1))
    x = g.op("Mul", x, g.op("Sigmoid", g.conv(gate, 8, 32, 1)))
    x = g.op("Add", x, g.weight(1, 1, 5, 5))
    x = g.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
    x = g.op("Resize", x, "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    x = g.op("Pad", x, g.constant(np.array([0, 0, 1, 0, 0, 0, 0, 1])))
    one, two = g.op("Split", x, g.constant(np.array([16, 16])), outputs=2, axis=1)
    x = g.op("Concat", two, g.op("LeakyRelu", one, alpha=0.1), axis=1)
    sliced = g.op("Slice", x, g.constant([8]), g.constant([24]), g.constant([1]))
    x = g.op("Concat", sliced, x, axis=1)
    x = g.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    logits = g.op("Gemm", x, g.weight(24, 48), g.weight(24), transB=1)
    return g.model([g.op("Softmax", logits, axis=1)], 21), 0


def blocks_left() -> tuple[Any, int]:
    """What leaves the blocks, and comes back: each passage is one transformation."""
    g = Graph()
    x = g.conv("x", 3, 16, bias=True)
    shape, back = g.constant([1, 4, 4, 12, 12]), g.constant([1, 16, 12, 12])
    x = g.op("Reshape", g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 1, 3, 4]), back)  # a shuffle stays
    few = g.conv(x, 16, 5)  # too few channels for a block: it reads blocks and writes none
    up = g.op("ConvTranspose", x, g.weight(16, 16, 2, 2), strides=[2, 2])  # leaves: 1
    x = g.conv(up, 16, 16)
    x = g.op("Add", x, up)  # comes back: 2
    turned = g.op("Transpose", x, perm=[0, 2, 3, 1])  # leaves: 3
    shares = g.op("Softmax", x, axis=1)  # the same
    products = g.op("MatMul", turned, g.weight(16, 20))
    return g.model([few, products, shares], 12), 3


def normalised_in_steps() -> tuple[Any, int]:
    """A normalisation as PyTorch's decomposition writes it, and scales that no convolution stands before."""
    g = Graph()
    x = g.conv("x", 3, 8)
    x = g.op("Sub", x, g.weight(1, 8, 1, 1))
    root = g.op("Sqrt", g.op("Add", g.weight(8, low=0.1), g.constant(np.float32(1e-5))))
    x = g.op("Div", x, g.op("Unsqueeze", root, g.constant([0, 2, 3])))
    x = g.op("Add", g.op("Mul", x, g.weight(1, 8, 1, 1)), g.weight(1, 8, 1, 1))
    y = g.op("Relu", x)
    y = g.op("Sub", g.constant(np.float32(1)), g.op("Mul", y, g.weight(8, 1, 1)))
    y = g.conv(y, 8, 8)
    twice = g.op("Add", y, g.op("Mul", y, g.weight(1, 8, 1, 1)))  # read twice: it is no part of the weights
    return g.model([g.op("GlobalAveragePool", twice)], 9), 0


def heads() -> tuple[Any, int]:
    """Heads whose channels do not fill a block: they are filled up, unless something reads or counts them."""
    g = Graph()
    x = g.op("Relu", g.conv("x", 3, 16))
    scores = g.op("Sigmoid", g.conv(x, 16, 30, bias=True))  # leaves: 1
    classes = g.op("Div", g.op("Log", g.op("Exp", g.conv(x, 16, 30, 1))), g.weight(1, 30, 1, 1, low=0.3))
    classes = g.op("Flatten", g.op("GlobalAveragePool", classes))
    maps = g.op("MaxPool", g.op("Add", g.conv(x, 16, 30), g.weight(1, 30, 1, 1)), kernel_shape=[2, 2])  # leaves: 2
    broadcast = g.op("Add", g.conv(x, 16, 30, 1), g.op("Slice", "x", *map(g.constant, ([0], [1], [1]))))  # leaves: 3
    counted = g.op("Concat", g.conv(x, 16, 30, 1), g.conv(x, 16, 30, 1), axis=1)  # two such would not join
    read = g.conv(g.op("Relu", g.conv(x, 16, 30)), 30, 16)  # what another convolution reads is not filled up
    return g.model([scores, classes, maps, broadcast, counted, g.op("GlobalMaxPool", read)], 8), 3


CASES = [blocks_alone, blocks_left, normalised_in_steps, heads]


@pytest.mark.parametrize("lanes", [16, 8])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_reference(case: Any, lanes: int, tmp_path: Path) -> None:
    from tvm import relax, runtime
    from tvm.ir.transform import Sequential
    from tvm.runtime import cpu

    from lorien.dialects.metaschedule.blocks import block_channels, transformations
    from lorien.dialects.metaschedule.simplify import simplify

    proto, left = case()
    onnx.save(proto, str(tmp_path / "m.onnx"))
    blocked = block_channels(simplify(load_model(tmp_path / "m.onnx")), lanes)
    assert transformations(blocked) == left
    x = np.random.default_rng(1).random([d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim])
    x = x.astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {"x": x})
    module = Sequential([relax.transform.LegalizeOps(), relax.get_pipeline("zero")])(blocked)
    machine = relax.VirtualMachine(relax.build(module, target="llvm"), cpu())
    made = machine["main"](runtime.tensor(x))
    for want, have in zip(expected, [made] if len(expected) == 1 else made, strict=True):
        np.testing.assert_allclose(have.numpy(), want, rtol=2e-4, atol=2e-5)


def test_steps_are_folded(tmp_path: Path) -> None:
    from lorien.dialects.metaschedule.rewriter import bindings, name_of
    from lorien.dialects.metaschedule.simplify import simplify

    proto, _ = normalised_in_steps()
    onnx.save(proto, str(tmp_path / "m.onnx"))
    module = simplify(load_model(tmp_path / "m.onnx"))
    found = [name for _, value in bindings(module["main"]) if (name := name_of(value))]
    assert found[:3] == ["nn.conv2d", "add", "nn.relu"], "a normalisation is weights and one addition"
    assert found[3:6] == ["multiply", "add", "nn.conv2d"], "and without a convolution before it one of each"


@pytest.mark.parametrize("case", CASES)
def test_plain_is_what_the_file_has_and_auto_is_made_twice_the_same(case: Any, tmp_path: Path) -> None:
    proto, _ = case()
    onnx.save(proto, str(tmp_path / "m.onnx"))
    target = native_target()

    def keys(layout: Any) -> list[str]:
        return [w.key for w in workloads_in(lower(load_model(tmp_path / "m.onnx"), target, layout), target, "m")]

    assert keys("auto") == keys("auto")
    assert not set(keys("auto")) >= set(keys("plain"))


def test_heads_run_in_whole_vectors(tmp_path: Path) -> None:
    import tvm

    onnx.save(heads()[0], str(tmp_path / "m.onnx"))
    target = Target.parse({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 2})
    lowered = lower(load_model(tmp_path / "m.onnx"), target)
    written = [
        [int(extent) for extent in function.params[-1].ty.shape]
        for name, function in lowered.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc) and re.search("conv2d_N|winograd_from_tiles", name.name_hint)
    ]
    filled, plain = [1, 2, 8, 8, 16], [1, 30, 8, 8]
    assert written.count(filled) == 4, "a few channels fill the second vector"
    assert written.count(plain) == 2, "what is read by a convolution, or joined to others, is left alone"


def test_numbers_of_64_bits_keep_their_width(tmp_path: Path) -> None:
    from tvm import relax, runtime
    from tvm.runtime import cpu

    rng = np.random.default_rng(0)
    weights = {"w": rng.random((6, 4, 3, 3)), "b": rng.random(6), "shape": np.array([1, 96])}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["y"]),
    ]
    proto = model(nodes, {"x": (onnx.TensorProto.DOUBLE, (1, 4, 6, 6))}, ["y"], weights)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    lowered = lower(load_model(tmp_path / "m.onnx"), native_target())
    machine = relax.VirtualMachine(relax.build(lowered, target="llvm"), cpu())
    x = rng.random((1, 4, 6, 6))
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(machine["main"](runtime.tensor(x)).numpy(), expected, rtol=1e-12)
