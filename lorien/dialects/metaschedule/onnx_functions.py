"""Functions of ONNX in the place of their calls: those of the model, and the bodies that ONNX gives some operators."""

from __future__ import annotations

import logging
from typing import Any

from lorien.dialects.metaschedule.onnx_graph import STANDARD, opset_of
from lorien.dialects.metaschedule.onnx_shapes import Walk
from lorien.errors import BadInput

logger = logging.getLogger(__name__)

_DOMAIN = "lorien.bodies"


def inline_functions(model: Any) -> Any:
    """A model with the functions of its own in the place of their calls.

    Raises
    ------
    BadInput
        ONNX cannot inline them. The message lacks the path.
    """
    import onnx.inliner

    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # the inliner raises what it likes
        raise BadInput(
            f"its functions cannot be put in the place of their calls: {error}. Fix: export the model without functions"
        ) from error


def inline_operators(model: Any, operators: set[str]) -> Any:
    """A model with the bodies that ONNX gives these operators in their place, where it has one.

    ONNX's inliner could do it alone, but for operators that leave out an input before others: attention with a cache
    and no mask.
    """
    import onnx.inliner

    calls = [node for node in model.graph.node if node.domain in STANDARD and node.op_type in operators]
    if not calls:
        return model
    inlined = onnx.ModelProto()
    inlined.CopyFrom(model)
    walk = Walk(inlined)
    walk.run()
    version = opset_of(model)
    bodies: list[Any] = []
    for node in inlined.graph.node:
        if node.domain in STANDARD and node.op_type in operators:
            body = _body(node, version, walk)
            if body is not None:
                body.name, body.domain = f"{node.op_type}_{len(bodies)}", _DOMAIN
                node.op_type, node.domain = body.name, _DOMAIN
                bodies.append(body)
    if not bodies:
        return model
    inlined.functions.extend(bodies)
    inlined.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    try:
        inlined = onnx.inliner.inline_local_functions(inlined)
    except Exception as error:  # the inliner raises what it likes
        logger.debug("%s not inlined: %s", ", ".join(sorted(operators)), error)
        return model
    kept = [opset for opset in inlined.opset_import if opset.domain != _DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def _body(node: Any, version: int, walk: Walk) -> Any:
    """What ONNX defines an operator to be, as a function of its inputs; None where it has no such definition."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
        if schema.has_context_dependent_function:
            since = max(opset for opset in schema.context_dependent_function_opset_versions if opset <= version)
            types = [(walk.types[name] if name else onnx.TypeProto()).SerializeToString() for name in node.input]
            text = schema.get_context_dependent_function_with_opset_version(since, node.SerializeToString(), types)
        elif schema.has_function:
            since = max(opset for opset in schema.function_opset_versions if opset <= version)
            text = schema.get_function_with_opset_version(since)
        else:
            return None
    except Exception as error:  # an input of unknown type, an opset before the first body
        logger.debug("%s %s has no body: %s", node.op_type, node.name, error)
        return None
    body = onnx.FunctionProto()
    body.ParseFromString(text)
    del body.opset_import[:]
    body.opset_import.append(onnx.helper.make_opsetid("", version))
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)
    return body
