"""Quantized operators of ONNX and of ONNX Runtime written as dequantize, the float operator, quantize.

TVM's front end has no ``QLinearConv`` and its like. In this form the model's convolutions and matrix products are float
kernels, and the values between them are quantized as before. Weights become float constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"
FLOAT, INT32 = 1, 6
"""``onnx.TensorProto.FLOAT`` and ``INT32``; onnx is imported on use."""


def dequantize(model: Any) -> None:
    """Replace, in place, the quantized operators of a model that are understood. Others stay as they are.

    Parameters
    ----------
    model : onnx.ModelProto
        Functions are in the place of their calls. Branches of ``If`` are left alone.
    """
    rewriter = _Rewriter(model)
    nodes = []
    for node in model.graph.node:
        rewrite = _REWRITES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
        made = rewriter.run(rewrite, node) if rewrite is not None else None
        nodes.extend([node] if made is None else made)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _NotUnderstood(Exception):
    """The operator is left as it is."""


class _Rewriter:
    """Makes the nodes that stand for one quantized operator."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
                self._constants[node.output[0]] = node.attribute[0].t
        self._users: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._outputs = {value.name for value in model.graph.output}
        self._ranks = {name: len(tensor.dims) for name, tensor in self._constants.items()}
        self._made = 0
        self._prefix = "dequantized"
        names = {name for node in model.graph.node for name in node.output} | self._constants.keys()
        while any(name.startswith(self._prefix) for name in names):
            self._prefix += "_"
        self._nodes: list[Any] = []

    def run(self, rewrite: Callable[[_Rewriter, Any], None], node: Any) -> list[Any] | None:
        """The nodes in the place of ``node``, or None when it must stay."""
        self._nodes = []
        try:
            rewrite(self, node)
        except (_NotUnderstood, IndexError, TypeError, ValueError):  # inputs are missing, or of other shapes
            return None
        return self._nodes

    def emit(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """One more node, its outputs named or new; the name of the first."""
        import onnx

        names = outputs or (self.name(),)
        self._nodes.append(onnx.helper.make_node(op, list(inputs), names, name=f"{names[0]}_{op}", **attributes))
        return names[0]

    def becomes_float(self, name: str) -> bool:
        """Whether all that read a value cast it to float."""
        users = self._users.get(name, [])
        casts = all(user.op_type == "Cast" and _attributes(user).get("to") == FLOAT for user in users)
        return bool(users) and casts and name not in self._outputs

    def name(self) -> str:
        """A name that the model has not."""
        self._made += 1
        return f"{self._prefix}_{self._made}"

    def constant(self, value: Any) -> str:
        """A new initializer."""
        import onnx

        tensor = onnx.numpy_helper.from_array(np.asarray(value), self.name())
        self._graph.initializer.append(tensor)
        self._constants[tensor.name] = tensor
        return str(tensor.name)

    def scalar(self, name: str) -> str:
        """A scale or zero point of one value as a scalar: ONNX Runtime takes vectors of one, TVM does not."""
        import onnx

        tensor = self._constants.get(name)
        if tensor is None or not tensor.dims:
            return name
        value = onnx.numpy_helper.to_array(tensor)
        if value.size != 1:
            raise _NotUnderstood(name)
        return self.constant(value.reshape(()))

    def real(self, name: str, scale: str, zero: str) -> str:
        """The float value of a tensor with one scale."""
        return self.emit("DequantizeLinear", [name, self.scalar(scale), *([self.scalar(zero)] if zero else [])])

    def real_weight(self, name: str, scale: str, zero: str, *, axis: int | None) -> str:
        """The float value of a weight with a scale per entry of an axis, or one. Axis None: the last.

        Written as arithmetic, which TVM computes for constants: before opset 13 ``DequantizeLinear`` has no axis.
        """
        kind = self._constants[scale].data_type if scale in self._constants else FLOAT
        value = self.shifted(name, zero, axis=axis, kind=kind)
        return self.emit("Mul", [value, self.along(scale, name, axis)])

    def shifted(self, name: str, zero: str, *, axis: int | None = None, kind: int = FLOAT) -> str:
        """A quantized tensor less its zero point, as a float of this element type."""
        value = self.emit("Cast", [name], to=kind)
        if not zero:
            return value
        return self.emit("Sub", [value, self.along(self.emit("Cast", [zero], to=kind), name, axis, of=zero)])

    def along(self, vector: str, name: str, axis: int | None, of: str = "") -> str:
        """A vector, or a scalar, in the shape that broadcasts it along an axis of a tensor."""
        given = self._constants.get(of or vector)
        if axis is None or (given is not None and not given.dims):
            return vector
        if name not in self._ranks:
            raise _NotUnderstood(name)
        shape = [1] * self._ranks[name]
        shape[axis] = -1
        return self.emit("Reshape", [vector, self.constant(np.asarray(shape, np.int64))])

    def quantized(self, name: str, scale: str, zero: str, output: str) -> None:
        """``name`` quantized, under the name that the operator's output had."""
        self.emit("QuantizeLinear", [name, self.scalar(scale), *([self.scalar(zero)] if zero else [])], output)


def _attributes(node: Any, *without: str) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name not in without}


def _input(node: Any, index: int) -> str:
    return str(node.input[index]) if index < len(node.input) else ""


def _channels_first(node: Any) -> None:
    if _attributes(node).get("channels_last"):
        raise _NotUnderstood(node.name)


def _qlinear_conv(make: _Rewriter, node: Any) -> None:
    data, data_scale, data_zero, weight, weight_scale, weight_zero, scale, zero = node.input[:8]
    _channels_first(node)
    inputs = [make.real(data, data_scale, data_zero), make.real_weight(weight, weight_scale, weight_zero, axis=0)]
    if bias := _input(node, 8):
        # Of 32 bits, its scale the product of the other two.
        bias_scale = make.emit("Mul", [make.scalar(data_scale), weight_scale])
        inputs.append(make.emit("Mul", [make.emit("Cast", [bias], to=FLOAT), bias_scale]))
    made = make.emit("Conv", inputs, **_attributes(node, "channels_last"))
    make.quantized(made, scale, zero, node.output[0])


def _conv_integer(make: _Rewriter, node: Any) -> None:
    # Sums of 8-bit products are exact in float32 up to 2^24, and good to 24 bits beyond.
    data = make.shifted(node.input[0], _input(node, 2))
    weight = make.shifted(node.input[1], _input(node, 3), axis=0)
    if make.becomes_float(node.output[0]):
        make.emit("Conv", [data, weight], node.output[0], **_attributes(node))
    else:
        make.emit("Cast", [make.emit("Conv", [data, weight], **_attributes(node))], node.output[0], to=INT32)


def _qlinear_matmul(make: _Rewriter, node: Any) -> None:
    first, first_scale, first_zero, second, second_scale, second_zero, scale, zero = node.input[:8]
    inputs = [
        make.real(first, first_scale, first_zero),
        make.real_weight(second, second_scale, second_zero, axis=None),
    ]
    make.quantized(make.emit("MatMul", inputs), scale, zero, node.output[0])


def _qgemm(make: _Rewriter, node: Any) -> None:
    first, first_scale, first_zero, second, second_scale, second_zero = node.input[:6]
    attributes = _attributes(node)
    axis = 0 if attributes.get("transB") else 1
    inputs = [
        make.real(first, first_scale, first_zero),
        make.real_weight(second, second_scale, second_zero, axis=axis),
    ]
    if bias := _input(node, 6):
        alpha = make.constant(np.float32(attributes.get("alpha", 1.0)))
        bias_scale = make.emit("Mul", [make.emit("Mul", [make.scalar(first_scale), second_scale]), alpha])
        inputs.append(make.emit("Mul", [make.emit("Cast", [bias], to=FLOAT), bias_scale]))
    _quantized_or_real(make, node, "Gemm", inputs, 7, attributes)


def _quantized_or_real(
    make: _Rewriter, node: Any, op: str, inputs: list[str], scale: int, attributes: dict[str, Any]
) -> None:
    if _input(node, scale):
        made = make.emit(op, inputs, **attributes)
        make.quantized(made, node.input[scale], _input(node, scale + 1), node.output[0])
    else:
        make.emit(op, inputs, node.output[0], **attributes)


def _binary(op: str) -> Callable[[_Rewriter, Any], None]:
    def rewrite(make: _Rewriter, node: Any) -> None:
        inputs = [make.real(*node.input[0:3]), make.real(*node.input[3:6])]
        make.quantized(make.emit(op, inputs), node.input[6], _input(node, 7), node.output[0])

    return rewrite


def _unary(op: str, *without: str) -> Callable[[_Rewriter, Any], None]:
    def rewrite(make: _Rewriter, node: Any) -> None:
        _channels_first(node)
        made = make.emit(op, [make.real(*node.input[0:3])], **_attributes(node, "channels_last", *without))
        make.quantized(made, node.input[3], _input(node, 4), node.output[0])

    return rewrite


def _qlinear_concat(make: _Rewriter, node: Any) -> None:
    inputs = [make.real(*node.input[at : at + 3]) for at in range(2, len(node.input), 3)]
    made = make.emit("Concat", inputs, **_attributes(node))
    make.quantized(made, node.input[0], node.input[1], node.output[0])


def _qlinear_where(make: _Rewriter, node: Any) -> None:
    inputs = [node.input[0], make.real(*node.input[1:4]), make.real(*node.input[4:7])]
    make.quantized(make.emit("Where", inputs), node.input[7], _input(node, 8), node.output[0])


def _matmul_integer_to_float(make: _Rewriter, node: Any) -> None:
    first, second, first_scale, second_scale = node.input[:4]
    inputs = [
        make.real(first, first_scale, _input(node, 4)),
        make.real_weight(second, second_scale, _input(node, 5), axis=None),
    ]
    _with_bias(make, node, inputs, _input(node, 6))


def _dynamic_quantize_matmul(make: _Rewriter, node: Any) -> None:
    first, second, second_scale = node.input[:3]
    names = [make.name(), make.name(), make.name()]
    make.emit("DynamicQuantizeLinear", [first], *names)
    inputs = [make.real(*names), make.real_weight(second, second_scale, _input(node, 3), axis=None)]
    _with_bias(make, node, inputs, _input(node, 4))


def _with_bias(make: _Rewriter, node: Any, inputs: list[str], bias: str) -> None:
    if bias:
        make.emit("Add", [make.emit("MatMul", inputs), bias], node.output[0])
    else:
        make.emit("MatMul", inputs, node.output[0])


def _standard(make: _Rewriter, node: Any) -> None:
    # ONNX Runtime's own QuantizeLinear and DequantizeLinear say what ONNX's of later opsets say.
    inputs = [node.input[0], *(make.scalar(n) if "axis" not in _attributes(node) else n for n in node.input[1:] if n)]
    make.emit(node.op_type, inputs, node.output[0], **_attributes(node))


_REWRITES: dict[tuple[str, str], Callable[[_Rewriter, Any], None]] = {
    ("", "QLinearConv"): _qlinear_conv,
    (MICROSOFT, "QLinearConv"): _qlinear_conv,
    ("", "ConvInteger"): _conv_integer,
    ("", "QLinearMatMul"): _qlinear_matmul,
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (MICROSOFT, "QLinearAveragePool"): _unary("AveragePool"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (MICROSOFT, "QLinearReduceMean"): _unary("ReduceMean"),
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearSoftmax"): _unary("Softmax", "opset"),
    (MICROSOFT, "QLinearConcat"): _qlinear_concat,
    (MICROSOFT, "QLinearWhere"): _qlinear_where,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul_integer_to_float,
    (MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_quantize_matmul,
    (MICROSOFT, "QuantizeLinear"): _standard,
    (MICROSOFT, "DequantizeLinear"): _standard,
}
