"""Sizes that an ONNX graph computes become constants, once its inputs are static.

TVM's front end wants these sizes as constants. Simplifiers give them, and rewrite the operators as well (onnxslim makes
Gemm of MatMul and Add): the workloads would not be those of the model. Here operators stay as they are.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.onnx_graph import MAX_ELEMENTS, RANDOM, STANDARD, count_of, reads
from lorien.dialects.metaschedule.onnx_limits import ConstantBudget

logger = logging.getLogger(__name__)

_WITH_BRANCHES = ("If", "Loop", "Scan")
_STRING = 8  # onnx.TensorProto.STRING
_Array = npt.NDArray[Any]


def fold_shapes(model: Any) -> Any:
    """An ONNX model with constants in the place of the sizes that it computes from its inputs, which are static.

    Parameters
    ----------
    model : onnx.ModelProto
        Its initializers may lack their data where they are larger than ``MAX_ELEMENTS``.

    Returns
    -------
    onnx.ModelProto
        A copy. Branches of an ``If`` whose condition is constant are put in its place.

    Raises
    ------
    BadInput
        What depends on constants only would take too much memory; nothing of it has been computed.
    """
    import onnx

    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    walk = Walk(folded)
    nodes = walk.run()
    del graph.node[:], graph.value_info[:]  # declared for the open shapes
    graph.node.extend(nodes)
    used = {name for node in nodes for name in reads(node)} | {value.name for value in graph.output}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in walk.made.items() if name in used
    )
    return folded


def fix_inputs(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give, in place, inputs of a model these shapes."""
    import onnx

    for value in model.graph.input:
        if value.name in shapes:
            fixed = onnx.helper.make_tensor_type_proto(0, shapes[value.name]).tensor_type.shape
            value.type.tensor_type.shape.CopyFrom(fixed)


class Walk:
    """One pass over the nodes in order, with the type of every value and the constants among them."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._budget = ConstantBudget(model)
        self._model = model
        self._versions = {opset.domain: opset.version for opset in model.opset_import}
        self.types: dict[str, Any] = {value.name: value.type for value in model.graph.input}
        self._constants: dict[str, _Array] = {}
        self.made: dict[str, _Array] = {}
        """Constants that are outputs of nodes now left out."""
        self._fixed = {tensor.name for tensor in model.graph.initializer}
        """Names of values that depend on constants only, whatever their size."""
        self._pending = deque(model.graph.node)
        for tensor in model.graph.initializer:
            self.types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if count_of(tensor.dims) <= MAX_ELEMENTS:
                self._constants[tensor.name] = onnx.numpy_helper.to_array(tensor)

    def run(self) -> list[Any]:
        """The nodes that remain."""
        kept = []
        while self._pending:
            node = self._pending.popleft()
            if node.op_type == "If" and node.input[0] in self._constants:
                self._inline(node)
                continue
            self._infer(node)
            values = self._evaluate(node)
            if values is None:
                kept.append(node)
                self._count(node)
            else:
                self._constants.update(values)
                self.made.update(values)
                self._fixed.update(values)
        return kept

    def _count(self, node: Any) -> None:
        """Charge what TVM will compute of a node that is kept."""
        if node.op_type in (*RANDOM, *_WITH_BRANCHES) or not all(name in self._fixed for name in node.input if name):
            return
        names = [name for name in node.output if name]
        self._fixed.update(names)
        if node.op_type != "Constant":  # which is in the file
            known = [name for name in names if name in self.types]
            self._budget.spend(node, [(self.types[name].tensor_type.elem_type, self.shape(name)) for name in known])

    def _inline(self, node: Any) -> None:
        import onnx

        name = "then_branch" if self._constants[node.input[0]].item() else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
        # Names of a branch are not those of the graph around it: ONNX requires it.
        constants = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in branch.initializer]
        outputs = [
            onnx.helper.make_node("Identity", [inner.name], [outer])
            for inner, outer in zip(branch.output, node.output, strict=True)
        ]
        self._pending.extendleft(reversed([*constants, *branch.node, *outputs]))

    def _infer(self, node: Any) -> None:
        import onnx

        around = reads(node) & self.types.keys()  # branches read values of the graph around them
        try:
            self.types.update(
                onnx.shape_inference.infer_node_outputs(
                    onnx.defs.get_schema(node.op_type, self._versions[node.domain], node.domain),
                    node,
                    {name: self.types[name] for name in (*node.input, *around) if name},
                    {
                        n: onnx.numpy_helper.from_array(self._constants[n], n)
                        for n in node.input
                        if n in self._constants
                    },
                    opset_imports=list(self._model.opset_import),
                    ir_version=self._model.ir_version,
                )
            )
        except (KeyError, RuntimeError, onnx.defs.SchemaError, onnx.shape_inference.InferenceError) as error:
            logger.debug("no shape for %s %s: %s", node.op_type, node.name, error)

    def _evaluate(self, node: Any) -> dict[str, _Array] | None:
        if node.domain not in STANDARD or node.op_type in (*RANDOM, *_WITH_BRANCHES):
            return None
        if node.op_type in ("Shape", "Size"):
            shape = self.shape(node.input[0])
            if shape is None:
                return None
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            value = part if node.op_type == "Shape" else count_of(shape)
            return {node.output[0]: np.asarray(value, dtype=np.int64)}
        sizes = [self.shape(name) for name in node.output if name]
        if any(size is None or count_of(size) > MAX_ELEMENTS for size in sizes):
            return None
        if any(name and name not in self._constants for name in node.input):
            return None
        if any(self.types[name].tensor_type.elem_type == _STRING for name in (*node.input, *node.output) if name):
            return None  # one element of text may be of any length
        return self._run(node)

    def _run(self, node: Any) -> dict[str, _Array] | None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        inputs = {name: self._constants[name] for name in node.input if name}
        graph = onnx.helper.make_graph(
            [node],
            "node",
            [onnx.ValueInfoProto(name=name, type=self.types[name]) for name in inputs],
            [onnx.ValueInfoProto(name=name, type=self.types[name]) for name in node.output if name],
        )
        single = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        try:
            values = ReferenceEvaluator(single).run(None, inputs)
        except Exception as error:  # the evaluator lacks some operators and attributes, and raises what it likes
            logger.debug("%s %s is not folded: %s", node.op_type, node.name, error)
            return None
        names = [name for name in node.output if name]
        if not all(isinstance(value, (np.ndarray, np.generic)) for value in values):
            return None  # a sequence or an optional
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a value; None where any of it is open."""
        tensor = self.types[name].tensor_type if name in self.types else None
        if tensor is None or not tensor.HasField("shape"):
            return None
        dims = tensor.shape.dim
        return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None
