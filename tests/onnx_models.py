"""Small ONNX models for tests, made of nodes and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
MICROSOFT = "com.microsoft"
node = helper.make_node


def weight(*shape: int) -> npt.NDArray[np.float32]:
    """The same small floats each time."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[int] | None]],
    outputs: Sequence[str],
    weights: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    functions: Sequence[Any] = (),
    extra: Sequence[Any] = (),
) -> Any:
    """A model of these nodes; inputs by name as element type and shape."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()] + list(extra),
    )
    domains = {n.domain for n in [*nodes, *(n for f in functions for n in f.node)]} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def between_convolutions(middle: Sequence[Any], inputs: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Two convolutions (4 and 8 channels) and what stands between ``a`` and ``b``."""
    return model(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
            *middle,
            node("Conv", ["b", "v"], ["y"], pads=[1] * 4),
        ],
        {"x": (FLOAT, (1, 3, 8, 8)), **(inputs or {})},
        ["y"],
        {"w": weight(4, 3, 3, 3), "v": weight(8, 4, 3, 3), **options.pop("weights", {})},
        **options,
    )
