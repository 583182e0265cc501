"""What can be told of an ONNX graph: its nodes, what they read, the sizes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

MAX_ELEMENTS = 1024
"""Larger constants are data, not sizes: they stay with the nodes that make them."""
PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}

STANDARD = ("", "ai.onnx")
"""Domain of ONNX's own operators, under its two names."""
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

_TAKES_WEIGHT = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1)}
_FLOAT = 1  # onnx.TensorProto.FLOAT


def nodes_of(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes, and those of the graphs inside them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting.extend(attribute.g.node)
            for graph in attribute.graphs:
                waiting.extend(graph.node)


def reads(node: Any) -> set[str]:
    """Names a node reads, in its branches too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= reads(inner)
        names |= {value.name for value in attribute.g.output}
    return names


def opset_of(model: Any) -> int:
    """Version of ONNX's own operators."""
    return next((int(opset.version) for opset in model.opset_import if opset.domain in STANDARD), 1)


def count_of(shape: Iterable[int]) -> int:
    """Number of elements; exact, however many."""
    count = 1
    for extent in shape:
        count *= max(int(extent), 0)
    return count


def element_bits(kind: int) -> int:
    """Bits of one element of an ONNX type; 64 for what has no fixed size."""
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    if name in PACKED_BITS:
        return PACKED_BITS[name]
    if name in ("STRING", "UNDEFINED"):
        return 64
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize) * 8


def filled(model: Any) -> Iterator[tuple[Any, list[int]]]:
    """Each ``ConstantOfShape`` that is nothing but a weight of convolutions or matrix products, and its shape."""
    import onnx

    graph = model.graph
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    elsewhere: set[str] = set(outputs)
    for node in graph.node:
        places = _TAKES_WEIGHT.get(node.op_type, ())
        elsewhere |= reads(node) - {node.input[place] for place in places if place < len(node.input)}
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.output[0] in elsewhere or node.input[0] not in sizes:
            continue
        shape = [int(extent) for extent in onnx.numpy_helper.to_array(sizes[node.input[0]]).ravel()]
        if count_of(shape) > MAX_ELEMENTS and min(shape) > 0:
            yield node, shape


def kind_of(node: Any) -> int:
    """Element type of what a ``ConstantOfShape`` makes."""
    return next((attribute.t.data_type for attribute in node.attribute if attribute.name == "value"), _FLOAT)


def is_numeric(kind: Any) -> bool:
    """Whether a ``TypeProto`` is a tensor of numbers: no text, sequence, map or optional."""
    import onnx

    return (
        kind.HasField("tensor_type")
        and kind.tensor_type.elem_type in onnx.TensorProto.DataType.values()
        and (
            onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type)
            not in ("UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128")
        )
    )


def packed(model: Any) -> set[str]:
    """Names of the initializers whose elements are smaller than a byte."""
    import onnx

    name_of = onnx.TensorProto.DataType.Name
    return {tensor.name for tensor in model.graph.initializer if name_of(tensor.data_type) in PACKED_BITS}
