"""What is done to an ONNX model before TVM's front end sees it. Everything that rewrites the graph is called here.

In this order: functions are put in the place of their calls, operators of old opsets become those of a later one,
quantized operators become float ones, computed sizes become constants. The model's other operators stay as they are, so
that the workloads are the model's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lorien.dialects.metaschedule.onnx_functions import inline_functions, inline_operators
from lorien.dialects.metaschedule.onnx_graph import MAX_ELEMENTS, STANDARD, count_of, is_numeric, opset_of, reads
from lorien.dialects.metaschedule.onnx_limits import check_calls, check_order, check_weights
from lorien.dialects.metaschedule.onnx_quantized import MICROSOFT, dequantize
from lorien.dialects.metaschedule.onnx_shapes import fix_inputs, fold_shapes
from lorien.dialects.metaschedule.onnx_weights import open_filled

logger = logging.getLogger(__name__)

_UPGRADED = 11
"""Opset that older ones are converted to where TVM misreads them: it has Resize as all later ones have it."""
_BROADCAST_BY_NUMPY = 7
"""Opset from which element-wise operators broadcast without attributes."""
_ROUNDS = 4
"""Bodies of functions hold functions; ONNX's own are two deep."""


def prepare(model: Any, shapes: Mapping[str, tuple[int, ...]], *, runs: bool = True) -> Any:
    """A model that TVM's front end can take, as far as that can be had.

    Parameters
    ----------
    model : onnx.ModelProto
        As it was read, its weights loaded.
    shapes : mapping of str to tuple of int
        Static shapes by input name; they take the place of what the model declares.
    runs : bool
        The model is to be run. Else only its kernels are wanted, and filled weights become inputs.

    Returns
    -------
    onnx.ModelProto
        Another model; the one given stays as it is.

    Raises
    ------
    BadInput
        Weights are not whole, operators read what is not there, functions call themselves, or constants take too much
        memory. The message lacks the path.
    Exception
        ONNX's own, on a graph that is none.
    """
    check_weights(model)
    check_calls(model)
    check_order(model)
    light, weights = _without_weights(model)
    fix_inputs(light, shapes)
    light = _upgraded(inline_functions(light))
    for _ in range(_ROUNDS):
        light = inline_operators(light, {node.op_type for node in light.graph.node if not has_converter(node)})
    dequantize(light)
    if not runs:
        open_filled(light)
    light = fold_shapes(light)
    for tensor in light.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(weights[tensor.name])
    _drop_unread(light)
    return light


def has_converter(node: Any) -> bool:
    """Whether TVM's front end converts this operator, and not another of the same name."""
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    if node.op_type not in (*_get_convert_map(), "If", "Constant"):
        return False
    if node.domain in STANDARD:
        return bool(node.op_type != "Attention")  # TVM's is ONNX Runtime's
    return bool(node.domain == MICROSOFT and (node.op_type == "Attention" or not _is_standard(node.op_type)))


def _is_standard(op_type: str) -> bool:
    import onnx

    # Gelu is the same in both.
    return op_type != "Gelu" and bool(onnx.defs.has(op_type))


def _without_weights(model: Any) -> tuple[Any, dict[str, Any]]:
    """A copy in which large initializers have no data, and those with it.

    Graphs are copied often, and ONNX's C++ parts take no more than 2 GB.
    """
    import onnx

    light, weights = onnx.ModelProto(ir_version=model.ir_version), {}
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if count_of(tensor.dims) > MAX_ELEMENTS:
            weights[tensor.name] = tensor
            tensor = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        light.graph.initializer.add().CopyFrom(tensor)
    return light, weights


def _drop_unread(model: Any) -> None:
    """Without the weights, and the inputs that are no tensors, that no node reads: TVM may not be able to hold them."""
    graph = model.graph
    read = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    unread = {tensor.name for tensor in graph.initializer} - read
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    inputs = [
        value for value in graph.input if value.name in read or (value.name not in unread and is_numeric(value.type))
    ]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(weights)
    graph.input.extend(inputs)


def _upgraded(model: Any) -> Any:
    """In a later opset, where TVM's converters take what this one says for something else."""
    import onnx

    version = opset_of(model)
    misread = version < _BROADCAST_BY_NUMPY or any(node.op_type in ("Upsample", "Resize") for node in model.graph.node)
    if version >= _UPGRADED or not misread:
        return model
    try:
        upgraded = onnx.version_converter.convert_version(model, _UPGRADED)
    except Exception as error:  # it knows not every operator, and raises what it likes
        logger.debug("opset %d not upgraded: %s", version, error)
        return model
    return upgraded
