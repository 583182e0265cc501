"""Transformer encoders as ONNX files with random weights: BERT-tiny (2 layers), or one layer of BERT-base."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder; every layer has the same ones."""

    layers: int
    hidden: int
    heads: int
    inner: int
    tokens: int = 128


SIZES = {"transformer": Sizes(2, 128, 2, 512), "bert_base_layer": Sizes(1, 768, 12, 3072)}


class Graph:
    """Nodes and weights as they are written down; every call gives the name of its result."""

    def __init__(self, sizes: Sizes) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._sizes = sizes
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

    def weight(self, *shape: int, mean: float = 0.0) -> str:
        """A random tensor of the usual scale."""
        return self.constant(self._rng.normal(mean, 0.05, shape).astype(np.float32))

    def dense(self, x: str, size_in: int, size_out: int) -> str:
        """A product with a weight, and a bias."""
        return self.op("Add", self.op("MatMul", x, self.weight(size_in, size_out)), self.weight(size_out))

    def norm(self, x: str) -> str:
        """A layer norm with scale and bias over the last axis, as exporters of old opsets write it."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.constant(np.array(EPSILON, np.float32))))
        hidden = self._sizes.hidden
        scaled = self.op("Mul", self.op("Div", centred, root), self.weight(hidden, mean=1.0))
        return self.op("Add", scaled, self.weight(hidden))

    def heads(self, x: str, order: tuple[int, ...]) -> str:
        """(1, tokens, hidden) split into heads, axes in the order given."""
        sizes = self._sizes
        shape = self.constant(np.array([1, sizes.tokens, sizes.heads, sizes.hidden // sizes.heads]))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=order)

    def encoder(self, x: str) -> str:
        """Self-attention and a feed-forward network, each added to its input and normalised."""
        hidden, inner_size = self._sizes.hidden, self._sizes.inner
        query, value = (self.heads(self.dense(x, hidden, hidden), (0, 2, 1, 3)) for _ in range(2))
        key = self.heads(self.dense(x, hidden, hidden), (0, 2, 3, 1))
        scale = self.constant(np.array((hidden / self._sizes.heads) ** -0.5, np.float32))
        weights = self.op("Softmax", self.op("Mul", self.op("MatMul", query, key), scale), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, value), perm=(0, 2, 1, 3))
        joined = self.op("Reshape", mixed, self.constant(np.array([1, self._sizes.tokens, hidden])))
        x = self.norm(self.op("Add", x, self.dense(joined, hidden, hidden)))
        inner = self.dense(x, hidden, inner_size)
        half, one, root = (self.constant(np.array(value, np.float32)) for value in (0.5, 1.0, 2**-0.5))
        erf = self.op("Add", self.op("Erf", self.op("Mul", inner, root)), one)
        gelu = self.op("Mul", self.op("Mul", inner, erf), half)
        return self.norm(self.op("Add", x, self.dense(gelu, inner_size, hidden)))


def write(path: Path, name: str = "transformer") -> Path:
    """Write the encoder of these ``SIZES``, from embedded tokens to states, both (1, tokens, hidden)."""
    sizes = SIZES[name]
    graph = Graph(sizes)
    state = "tokens"
    for _ in range(sizes.layers):
        state = graph.encoder(state)
    shape = (1, sizes.tokens, sizes.hidden)
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, shape) for end in ("tokens", state)]
    proto = helper.make_graph(graph.nodes, name, ends[:1], ends[1:], graph.constants)
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sizes", choices=SIZES, default="transformer")
    arguments = parser.parse_args()
    write(arguments.output, arguments.sizes)
