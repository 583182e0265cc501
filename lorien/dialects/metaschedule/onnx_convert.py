"""TVM's ONNX front end over a whole graph: every operator that it fails on is found in one pass, by its place."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.limits import FILLED_BYTES, FILLED_WEIGHTS
from lorien.dialects.metaschedule.onnx_graph import count_of, is_numeric, nodes_of, opset_of, packed, reads
from lorien.dialects.metaschedule.onnx_limits import filled_bytes
from lorien.dialects.metaschedule.onnx_prepare import has_converter
from lorien.dialects.metaschedule.onnx_shapes import Walk
from lorien.dialects.metaschedule.onnx_weights import opened
from lorien.errors import BadInput

if TYPE_CHECKING:
    import tvm

logger = logging.getLogger(__name__)

MAX_PASSES = 64
"""Passes over one graph. Each finds all operators that fail, but for those that stop the front end altogether."""

MAX_UNCOUNTED = 1 << 24
"""Elements, at most, of a constant whose shape ONNX does not infer: those in branches of an ``If``."""

_OPERATOR_DUMP = re.compile(r"In ir\.Op\(.*support_level=\d+\), ")
"""What TVM writes before its words on a wrong argument."""
_INTERNAL = (AssertionError, AttributeError, IndexError, KeyError, NameError, RecursionError, TypeError)
"""Errors whose text says nothing to who made the model."""


@dataclass(frozen=True)
class Failure:
    """An operator that cannot be converted: its place among the nodes, and why if TVM says so."""

    at: int
    op_type: str
    name: str
    reason: str = ""

    def __str__(self) -> str:
        named = f"{self.op_type} {self.name}".strip()
        return f"{named} ({self.reason})" if self.reason else named


class Unconvertible(Exception):
    """Operators that TVM's front end has no conversion for, or fails on."""

    def __init__(self, lacking: list[Failure], failing: list[Failure]) -> None:
        super().__init__(", ".join(map(str, [*lacking, *failing])))
        self.lacking = lacking
        self.failing = failing


def convert(model: Any, *, as_operators: bool = False) -> tvm.IRModule:
    """A prepared model as a Relax module.

    Parameters
    ----------
    model : onnx.ModelProto
    as_operators : bool
        Keep what TVM's converters make kernels of at once (``Clip``, ``Pad``) as operators, which can be rewritten.

    Raises
    ------
    Unconvertible
        With every operator that is in the way.
    BadInput
        TVM cannot take the graph, and no operator is to blame. The message lacks the path.
    """
    nodes = list(model.graph.node)
    lacking = [_failure(at, node) for at, node in enumerate(nodes) if not all(map(has_converter, nodes_of([node])))]
    if lacking or (failing := _unreadable(model)):
        raise Unconvertible(lacking, [] if lacking else failing)
    types = Walk(model)
    types.run()
    importer = _importer_class()(types, as_operators)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings_to_log():
            module = importer.convert(model)
    except Exception as error:  # a converter may raise anything on a graph it did not expect
        at = importer.at
        if at is None:
            reason = reason_of(error)
            raise BadInput(
                f"TVM cannot convert the ONNX graph{': ' * bool(reason)}{reason}. Fix: check it with onnx.checker"
            ) from error
        importer.failures[at] = error
    if importer.failures:
        raise Unconvertible([], [_failure(at, nodes[at], error) for at, error in sorted(importer.failures.items())])
    return module.with_attrs({FILLED_BYTES: filled_bytes(model), FILLED_WEIGHTS: opened(model)})


def cut(model: Any, failures: list[Failure]) -> tuple[Any, list[Failure]] | None:
    """A model without these operators: what they gave becomes inputs, what they took becomes outputs.

    Returns
    -------
    onnx.ModelProto, list of Failure
        A copy, and the operators that went too, since they read what has no shape that ONNX can infer. None when
        nothing is left.
    """
    import onnx

    walk = Walk(model)
    walk.run()
    gone = {failure.at for failure in failures}
    open_values: set[str] = set()
    behind = []
    for at, node in enumerate(model.graph.node):
        if at not in gone and reads(node) & open_values:
            gone.add(at)
            behind.append(_failure(at, node))
        if at in gone:
            open_values.update(name for name in node.output if name and not _is_tensor(walk, name))
    nodes = list(model.graph.node)
    kept = [node for at, node in enumerate(nodes) if at not in gone]
    made = {name for node in kept for name in node.output}
    read = {name for node in kept for name in reads(node)}
    out = [nodes[at] for at in sorted(gone)]
    inputs = [name for node in out for name in node.output if name in read]
    wanted = {name for node in out for name in reads(node)} | {value.name for value in model.graph.output}
    outputs = [name for node in kept for name in node.output if name and name in wanted and name in made]
    if not outputs:
        return None
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.graph.node[:], rest.graph.output[:]
    rest.graph.node.extend(kept)
    numeric = [value for value in model.graph.input if is_numeric(value.type)]
    held = [tensor for tensor in model.graph.initializer if tensor.name not in packed(model)]
    del rest.graph.input[:], rest.graph.initializer[:]
    rest.graph.initializer.extend(held)
    rest.graph.input.extend(numeric)
    rest.graph.input.extend(onnx.ValueInfoProto(name=name, type=walk.types[name]) for name in dict.fromkeys(inputs))
    rest.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    return rest, behind


def reason_of(error: BaseException) -> str:
    """What an error says to people: its last line; nothing where that is about Python."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, _INTERNAL) or not lines or "<class '" in lines[-1]:
        return ""
    return _OPERATOR_DUMP.sub("", lines[-1])[:200].rstrip(".")


@contextlib.contextmanager
def warnings_to_log() -> Iterator[None]:
    """Python's warnings go to the log of this module."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        logger.debug("%s", warning.message)


def _unreadable(model: Any) -> list[Failure]:
    """Operators that read what TVM's importer cannot hold (texts, sequences, weights below a byte) or nothing."""
    version = opset_of(model)
    other = {value.name for value in model.graph.input if not is_numeric(value.type)}
    small = packed(model)
    failures = []
    for at, node in enumerate(model.graph.node):
        names = reads(node)
        if names & small:
            failures.append(Failure(at, node.op_type, node.name, "its weights are smaller than a byte"))
        elif names & other:
            failures.append(Failure(at, node.op_type, node.name, "it reads an input that is no tensor of numbers"))
        elif _lacks_input(node, version):
            failures.append(Failure(at, node.op_type, node.name, "an input is missing"))
    return failures


def _lacks_input(node: Any, version: int) -> bool:
    """Whether an input is left out that the operator must have. TVM's importer may crash on it."""
    import onnx

    try:
        formal = onnx.defs.get_schema(node.op_type, version, node.domain).inputs
    except onnx.defs.SchemaError:
        return False
    option = onnx.defs.OpSchema.FormalParameterOption
    needed = [at for at, parameter in enumerate(formal) if parameter.option == option.Single]
    if formal and formal[-1].option == option.Variadic:
        needed.extend(range(len(formal) - 1, max(len(node.input), len(formal))))
    return any(at >= len(node.input) or not node.input[at] for at in needed)


def _failure(at: int, node: Any, error: Exception | None = None) -> Failure:
    if error is not None:
        logger.debug("%s %s", node.op_type, node.name, exc_info=error)
    return Failure(at, node.op_type, node.name, "" if error is None else reason_of(error))


def _is_tensor(walk: Walk, name: str) -> bool:
    return walk.shape(name) is not None and is_numeric(walk.types[name])


def _dtype(walk: Walk, name: str) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(walk.types[name].tensor_type.elem_type))


class _Graph:
    """The parts of a ``GraphProto`` that TVM's importer reads, and the place of the node it reads now."""

    def __init__(self, graph: Any, importer: Any) -> None:
        self._importer = importer
        self._nodes = list(graph.node)
        self.initializer = graph.initializer
        self.input = graph.input
        self.output = graph.output

    @property
    def node(self) -> Iterator[Any]:
        for at, node in enumerate(self._nodes):
            self._importer.at, self._importer.node = at, node
            yield node
        self._importer.at = None


def _operator(compute: Any, arguments: Sequence[Any]) -> Any:
    """The Relax operator that a tensor expression of TVM's library is the kernel of; None where there is none."""
    from tvm import relax, topi

    data, *others = arguments
    if compute in (topi.maximum, topi.minimum) and len(others) == 1:
        (other,) = others
        operator = relax.op.maximum if compute is topi.maximum else relax.op.minimum
        return operator(data, relax.const(other, data.ty.dtype) if isinstance(other, float) else other)
    if compute is topi.nn.pad and len(others) == 3 and data.ty.ndim == len(others[0]):
        before, after, value = others
        widths = [int(width) for pair in zip(before, after, strict=True) for width in pair]
        return relax.op.nn.pad(data, widths, "constant", float(value)) if min(widths) >= 0 else None
    return None


def _importer_class() -> Any:
    from tvm import ir, relax
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    class Builder(relax.BlockBuilder):  # type: ignore[misc]
        """Emits an operator where a converter asks for a kernel of it."""

        def emit_te(self, compute: Any, *arguments: Any, **options: Any) -> Any:
            operator = _operator(compute, arguments) if not options else None
            return super().emit_te(compute, *arguments, **options) if operator is None else self.emit(operator)

    class Importer(ONNXGraphImporter):  # type: ignore[misc]
        """Goes on behind an operator that fails, with zeros of its shape: what it makes then is no model."""

        def __init__(self, types: Walk, as_operators: bool) -> None:
            super().__init__({}, "float32")
            if as_operators:
                self.bb = Builder()
            self._types = types
            self._inside = 0
            self._open: set[str] = set()
            self.at: int | None = None
            self.node: Any = None
            self.failures: dict[int, Exception] = {}

        def convert(self, model: Any) -> tvm.IRModule:
            return self.from_onnx(_Graph(model.graph, self), opset_of(model))

        def _convert_operator(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
            if not self._inside and self._open & reads(self.node):
                return self._placeholder()  # behind one that failed, and cut out with it
            try:
                self._check_size(op_name, [i for i in inputs if i is not None])
                return super()._convert_operator(op_name, inputs, attrs, opset)
            except Exception as error:
                if self._inside or self.at is None:
                    raise
                self.failures[self.at] = error
                return self._placeholder()

        def _placeholder(self) -> Any:
            """Zeros for the outputs of this node, in their shapes where these are known."""
            zeros = []
            for name in self.node.output:
                known = bool(name) and _is_tensor(self._types, name)
                if not known:
                    self._open.add(name)
                shape, dtype = (self._types.shape(name), _dtype(self._types, name)) if known else ((1,), "float32")
                zeros.append(self.bb.emit(relax.op.zeros(shape, dtype)))
            return zeros[0] if len(zeros) == 1 else relax.Tuple(zeros)

        def _convert_subgraph(self, bb: Any, graph: Any) -> Any:
            self._inside += 1
            try:
                return super()._convert_subgraph(bb, graph)
            finally:
                self._inside -= 1

        def _check_size(self, op_name: str, inputs: list[Any]) -> None:
            """Refuse to compute a constant that was not counted when the model was prepared, and may be large."""
            counted = not self._inside and self._types.shape(self.node.output[0]) is not None
            if counted or not inputs or not all(isinstance(value, ir.GenericConst) for value in inputs):
                return
            values = [value.value.numpy() for value in inputs]
            if op_name == "ConstantOfShape":
                elements = count_of(values[0].ravel())
            elif op_name == "Range":
                elements = int(abs((values[1] - values[0]) / values[2]).max())
            else:
                elements = count_of(value.size for value in values)
            if elements > MAX_UNCOUNTED:
                raise ValueError(f"a constant of up to {elements} elements that depends on no input")

    return Importer
