"""Limits on what a small ONNX file may become: computed constants, bodies of functions, weights cut short.

A model of 100 bytes can ask for an array of terabytes (``ConstantOfShape``, ``Range``, ``Expand``) or for billions of
nodes (functions that call functions). All is estimated from shapes and counts, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lorien.dialects.metaschedule.limits import check_bytes, readable
from lorien.dialects.metaschedule.onnx_graph import PACKED_BITS, count_of, element_bits, filled, kind_of, nodes_of
from lorien.errors import BadInput

MAX_NODES = 200_000
"""After its functions are put in the place of their calls. Language models have some 20,000."""
MAX_CALL_DEPTH = 64
MAX_FILLED_BYTES = 1 << 30
"""Twice VGG-19."""

_STACKED = ("Max", "Mean", "Min", "Sum")
"""TVM stacks the inputs of these, each at the size of the output."""


def check_weights(model: Any) -> None:
    """Raise ``BadInput`` for a tensor whose data is not of the size that its shape says."""
    for tensor in _tensors(model):
        wanted, found = _wanted_bytes(tensor), _found_bytes(tensor)
        if wanted is not None and found is not None and wanted != found:
            shape = "x".join(map(str, tensor.dims)) or "scalar"
            raise BadInput(
                f"the weight {tensor.name or '(unnamed)'} has {found} bytes of data where its shape {shape} takes "
                f"{wanted}: the file is not whole. Fix: export the model, or copy it with its data files, again"
            )


def check_order(model: Any) -> None:
    """Raise ``BadInput`` for an operator that reads what nothing before it makes."""
    made = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    for node in model.graph.node:
        if missing := [name for name in node.input if name not in made]:
            named = f"{node.op_type} {node.name}".strip()
            raise BadInput(
                f"its operator {named} reads {missing[0]}, which nothing before it makes. Fix: export it again"
            )
        made.update(node.output)


def weight_bytes(model: Any) -> int:
    """Bytes of all tensors that came with the model, by their shapes: see ``check_weights``."""
    return sum(_wanted_bytes(tensor) or 0 for tensor in _tensors(model))


def filled_bytes(model: Any) -> int:
    """Bytes of the weights that the file fills with one value."""
    return sum(count_of(shape) * element_bits(kind_of(node)) // 8 for node, shape in filled(model))


def check_calls(model: Any) -> None:
    """Raise ``BadInput`` when functions call themselves, or become too many nodes in the place of their calls."""
    functions = {_id(function): function for function in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Any, callers: tuple[tuple[str, str, str], ...]) -> int:
        total = 0
        for node in nodes_of(nodes):
            call = (node.domain, node.op_type, getattr(node, "overload", ""))
            if call not in functions:
                total += 1
                continue
            if call in callers or len(callers) >= MAX_CALL_DEPTH:
                what = "calls itself" if call in callers else f"is called through over {MAX_CALL_DEPTH} others"
                raise BadInput(f"its function {node.op_type} {what}. Fix: export the model again")
            if call not in sizes:
                sizes[call] = size(functions[call].node, (*callers, call))
            total += sizes[call]
        return total

    total = size(model.graph.node, ())
    if total > MAX_NODES:
        raise BadInput(
            f"it has {total} operators with its functions in the place of their calls; the limit is {MAX_NODES}. "
            "Fix: export a part of the model"
        )


class ConstantBudget:
    """Adds up what the nodes of a graph that depend on constants only will take, and refuses in time.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph, before its nodes are counted.

    Raises
    ------
    BadInput
        The weights that the file fills with one value are too large.
    """

    def __init__(self, model: Any) -> None:
        self._weights = weight_bytes(model)
        self._filled = filled_bytes(model)
        self._used = 0
        if self._filled > MAX_FILLED_BYTES:
            raise BadInput(
                f"its weights, which it does not hold but fills with one value, take {readable(self._filled)}; "
                f"the limit is {readable(MAX_FILLED_BYTES)}. Fix: export the model with its weights"
            )

    def spend(self, node: Any, values: Iterable[tuple[int, tuple[int, ...] | None]]) -> None:
        """Count the outputs of a node, given as element type and shape. Raises ``BadInput`` beyond the limit."""
        copies = 1 + (len(node.input) if node.op_type in _STACKED else 0)
        made = 0
        for kind, shape in values:
            if shape is not None:
                made += copies * count_of(shape) * element_bits(kind) // 8
        self._used += made
        check_bytes(self._used, self._weights, self._filled, f"{node.op_type} {node.output[0]} alone {readable(made)}")


def _id(function: Any) -> tuple[str, str, str]:
    return (function.domain, function.name, getattr(function, "overload", ""))


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes_of(nodes):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer


def _wanted_bytes(tensor: Any) -> int | None:
    """Bytes that the shape of a tensor takes; None where that is not fixed."""
    import onnx

    if any(extent < 0 for extent in tensor.dims):
        raise BadInput(f"the weight {tensor.name or '(unnamed)'} has a negative extent. Fix: export the model again")
    if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise BadInput(f"the weight {tensor.name or '(unnamed)'} has no element type. Fix: export the model again")
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    return -(-count_of(tensor.dims) * element_bits(tensor.data_type) // 8)


def _found_bytes(tensor: Any) -> int | None:
    """Bytes of the data that is there, as ``_wanted_bytes`` counts them; None where they cannot be told."""
    import onnx

    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    entries = len(getattr(tensor, field))
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if name in PACKED_BITS:
        return entries  # whose entries hold a byte each
    if name in ("COMPLEX64", "COMPLEX128"):
        entries //= 2
    return entries * element_bits(tensor.data_type) // 8
