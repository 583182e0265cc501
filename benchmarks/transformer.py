"""A small transformer encoder as an ONNX file: BERT-tiny's sizes (2 layers, hidden 128, 2 heads), random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HIDDEN, HEADS, INNER, TOKENS = 2, 128, 2, 512, 128
EPSILON = 1e-5


class Graph:
    """Nodes and weights as they are written down; every call gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """One operator with one output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        """A constant tensor."""
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int) -> str:
        """A random tensor of the usual scale."""
        return self.constant(self._rng.normal(0, 0.05, shape).astype(np.float32))

    def dense(self, x: str, size_in: int, size_out: int) -> str:
        """A product with a weight, and a bias."""
        return self.op("Add", self.op("MatMul", x, self.weight(size_in, size_out)), self.weight(size_out))

    def norm(self, x: str) -> str:
        """A layer norm with scale and bias over the last axis, as exporters of old opsets write it."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.constant(np.array(EPSILON, np.float32))))
        return self.op("Add", self.op("Mul", self.op("Div", centred, root), self.weight(HIDDEN)), self.weight(HIDDEN))

    def heads(self, x: str, order: tuple[int, ...]) -> str:
        """(1, tokens, hidden) split into heads, axes in the order given."""
        shape = self.constant(np.array([1, TOKENS, HEADS, HIDDEN // HEADS]))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=order)

    def encoder(self, x: str) -> str:
        """Self-attention and a feed-forward network, each added to its input and normalised."""
        query, value = (self.heads(self.dense(x, HIDDEN, HIDDEN), (0, 2, 1, 3)) for _ in range(2))
        key = self.heads(self.dense(x, HIDDEN, HIDDEN), (0, 2, 3, 1))
        scale = self.constant(np.array((HIDDEN / HEADS) ** -0.5, np.float32))
        weights = self.op("Softmax", self.op("Mul", self.op("MatMul", query, key), scale), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, value), perm=(0, 2, 1, 3))
        joined = self.op("Reshape", mixed, self.constant(np.array([1, TOKENS, HIDDEN])))
        x = self.norm(self.op("Add", x, self.dense(joined, HIDDEN, HIDDEN)))
        inner = self.dense(x, HIDDEN, INNER)
        half, one, root = (self.constant(np.array(value, np.float32)) for value in (0.5, 1.0, 2**-0.5))
        erf = self.op("Add", self.op("Erf", self.op("Mul", inner, root)), one)
        gelu = self.op("Mul", self.op("Mul", inner, erf), half)
        return self.norm(self.op("Add", x, self.dense(gelu, INNER, HIDDEN)))


def write(path: Path) -> Path:
    """Write the encoder, from embedded tokens to states, both (1, TOKENS, HIDDEN)."""
    graph = Graph()
    state = "tokens"
    for _ in range(LAYERS):
        state = graph.encoder(state)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, TOKENS, HIDDEN)) for name in ("tokens", state)]
    proto = helper.make_graph(graph.nodes, "transformer", ends[:1], ends[1:], graph.constants)
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    write(parser.parse_args().output)
