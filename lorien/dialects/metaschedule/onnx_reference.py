"""What an ONNX model computes by another implementation than TVM's: ONNX Runtime, or ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.compile import INPUT_SEED, random_tensor
from lorien.dialects.metaschedule.onnx_graph import RANDOM
from lorien.errors import BadInput

Tensor = npt.NDArray[Any]

RUNTIME = "ONNX Runtime"
_TRAINING = "Dropout of training"
_DRAWING = {*RANDOM, _TRAINING}
_QUANTISING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinear", "ConvInteger", "MatMulInteger")
"""Operators (or how their names begin) that round floats to integers."""
_RUNTIME_FLOP_PER_S = 10e9
_REFERENCE_FLOP_PER_S = 0.3e9
"""Of squeezenet on a core, about; NumPy does the work of the reference evaluator."""


def evaluator() -> tuple[str, float]:
    """The implementation at hand with its version, and the operations it does in a second, about."""
    if find_spec("onnxruntime") is not None:
        return f"{RUNTIME} {version('onnxruntime')}", _RUNTIME_FLOP_PER_S
    return f"ONNX's reference evaluator {version('onnx')}", _REFERENCE_FLOP_PER_S


def evaluate(model: Path, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Tensor], bool]:
    """Outputs of a model on the inputs that ``run_model`` gives it, and whether it rounds to integers inside.

    Parameters
    ----------
    model : Path
    shapes : sequence of tuple of int
        Of the inputs, in their order.

    Raises
    ------
    BadInput
        It draws random numbers, or its inputs are others.
    Exception
        Whatever the implementation raises on an operator that it lacks.
    """
    import onnx

    proto = onnx.load(str(model))
    operators = set(_operators(proto.graph))
    if drawn := operators & _DRAWING:
        raise BadInput(f"it draws random numbers ({', '.join(sorted(drawn))})")
    for value in proto.graph.output:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT)
        if kind.isbuiltin != 1:
            raise BadInput(f"its output {value.name} is of {kind}, which NumPy lacks")
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != len(shapes):
        raise BadInput(f"it has {len(inputs)} inputs, TVM's program {len(shapes)}")
    rng = np.random.default_rng(INPUT_SEED)
    feeds = {}
    for value, shape in zip(inputs, shapes, strict=True):
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.asarray(random_tensor(rng, list(shape), str(kind)))
    quantised = any(name.startswith(_QUANTISING) for name in operators)
    return list(_tensors(_run(model, proto, feeds))), quantised


def _run(model: Path, proto: Any, feeds: dict[str, Tensor]) -> Any:
    if find_spec("onnxruntime") is None:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(proto).run(None, feeds)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # As the file says it: an optimised graph would be a third program.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _operators(graph: Any) -> Iterator[str]:
    for node in graph.node:
        # Dropout that is told whether it trains may do so.
        yield _TRAINING if node.op_type == "Dropout" and len(node.input) > 2 else node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _operators(inner)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of outputs, which may be sequences of them."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif value is None:
        raise BadInput("an output of it is optional, and not there")
    else:
        yield np.asarray(value)
