"""Weights that a file does not hold but fills with one value: published graphs without their training.

``ConstantOfShape`` in the place of each weight makes half a gigabyte of a file of 9 kB (VGG-19 in ONNX's own tests).
A convolution or a matrix product takes it, so it is a weight; any other use makes it a constant to compute.
"""

from __future__ import annotations

from typing import Any

from lorien.dialects.metaschedule.onnx_graph import filled, kind_of

FILLED = "lorien: filled"
"""Documentation of an input that was a filled weight: the one text that a copy of the graph keeps."""


def open_filled(model: Any) -> None:
    """Make, in place, filled weights inputs of the model: its kernels stay what they are, and nothing is computed."""
    import onnx

    for node, shape in list(filled(model)):
        name = node.output[0]
        users = [user for user in model.graph.node if name in user.input]
        flipped = [user for user in users if user.op_type == "Gemm" and _flag(user, "transB")]
        if flipped and len(flipped) < len(users):
            continue
        if flipped:
            # TVM transposes a constant once and for all, an input in a kernel of its own.
            shape = shape[::-1]
            for user in flipped:
                kept = [attribute for attribute in user.attribute if attribute.name != "transB"]
                del user.attribute[:]
                user.attribute.extend(kept)
        model.graph.node.remove(node)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind_of(node), shape, FILLED))


def opened(model: Any) -> list[int]:
    """Which of a model's inputs, those with initializers not counted, were filled weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return [index for index, value in enumerate(inputs) if value.doc_string == FILLED]


def _flag(node: Any, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)
