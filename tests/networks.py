"""Small models for tests of whole networks: real ONNX graphs, made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(path: Path, channels: int = 8, size: int = 14, seed: int = 0) -> Path:
    """Two convolutions with bias and ReLU, the second of them 1x1 as in squeezenet's fire modules, and a mean."""
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["mean"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, size, size))],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, (1, 2 * channels, 1, 1))],
        [
            weights("w1", channels, 3, 3, 3),
            weights("b1", channels),
            weights("w2", 2 * channels, channels, 1, 1),
            weights("b2", 2 * channels),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def sorting(path: Path) -> Path:
    """A convolution whose largest values are found and normalised, and sums along it: what is sorted and scanned."""
    weight = np.random.default_rng(0).normal(0, 0.1, (4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"]),
        helper.make_node("Reshape", ["conv", "flat"], ["row"]),
        helper.make_node("TopK", ["row", "k"], ["values", "indices"]),
        helper.make_node("Softmax", ["values"], ["share"]),
        helper.make_node("TopK", ["row", "k"], ["smallest", "last"], largest=0),
        helper.make_node("CumSum", ["row", "axis"], ["sums"], exclusive=1, reverse=1),
        helper.make_node("NonZero", ["x"], ["places"]),
    ]
    kinds = {"share": TensorProto.FLOAT, "indices": TensorProto.INT64, "smallest": TensorProto.FLOAT}
    kinds |= {"sums": TensorProto.FLOAT, "places": TensorProto.INT64}
    constants = {"flat": np.array([1, -1]), "k": np.array([5]), "axis": np.array(1), "w": weight}
    graph = helper.make_graph(
        nodes,
        "sorting",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def sequence(path: Path) -> Path:
    """An element of a sequence that TVM 0.27 takes from another place: it reads a negative position wrongly."""
    nodes = [
        helper.make_node("SequenceConstruct", ["a", "b"], ["two"]),
        helper.make_node("SequenceInsert", ["two", "c", "before_last"], ["three"]),
        helper.make_node("SequenceAt", ["three", "second"], ["out"]),
    ]
    constants = {"before_last": np.array(-1), "second": np.array(1)}
    graph = helper.make_graph(
        nodes,
        "sequence",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in "abc"],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (2, 3))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
