"""Modules and traces of MetaSchedule before TVM 0.20, made again with today's TVM.

The old JSON names every node of the module's graph with its fields; a module is rebuilt from it, node by node, with the
constructors of today. The old traces keep their meaning under the new names of instructions.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.workload import BUILD, require_tvm
from lorien.errors import BadInput
from lorien.records import Json

if TYPE_CHECKING:
    import tvm

RENAMED = {"GetBlock": "GetSBlock"}
_NEW_ATTRIBUTES = {"Split": [0]}
"""Attributes that an instruction has today and had not: a split keeps its predicates."""
_BINARY = ("Add", "Sub", "Mul", "Div", "FloorDiv", "FloorMod", "Min", "Max", "And", "Or")
_COMPARED = ("EQ", "NE", "LT", "LE", "GT", "GE")


def rename(trace: Json) -> Json:
    """An old trace as today's TVM takes it.

    Raises
    ------
    ValueError, TypeError
        It is no trace.
    """
    instructions, decisions = trace
    return [
        [
            [RENAMED.get(kind, kind), inputs, attributes + _NEW_ATTRIBUTES.get(kind, []), outputs]
            for kind, inputs, attributes, outputs in instructions
        ],
        decisions,
    ]


def rebuild(graph: Json) -> tvm.IRModule:
    """The module of an old graph.

    Raises
    ------
    BadInput
        It has a node that is not known here.
    """
    require_tvm()
    import tvm

    try:
        return tvm.IRModule({"main": _Graph(graph).function()})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BadInput(f"{BUILD} cannot take the old module: {type(error).__name__} {str(error)[:160]}") from None


class _Graph:
    """The nodes of an old JSON; each is made once, so that variables and buffers keep their identity."""

    def __init__(self, graph: Json) -> None:
        self._nodes: list[dict[str, Any]] = graph["nodes"]
        self._made: dict[int, Any] = {}

    def function(self) -> tvm.tirx.PrimFunc:
        """The one function, its parameters the buffers of today."""
        from tvm import tirx

        (fields,) = [node["attrs"] for node in self._nodes if node["type_key"] == "tir.PrimFunc"]
        pairs = self._pairs(int(fields["buffer_map"]))
        buffers = {parameter: self.make(buffer) for parameter, buffer in pairs}
        # Passes of the old TVM left marks of their own; these two are what MetaSchedule's modules carry.
        attributes = {"global_symbol": "main", "tirx.noalias": True, "s_tir": True}
        parameters = [buffers[index] for index in self._nodes[int(fields["params"])]["data"]]
        function = tirx.PrimFunc(parameters, self.make(int(fields["body"])))
        return function.with_attr(attributes)

    def make(self, index: int) -> Any:
        """The object of a node; None for the null node."""
        if index not in self._made:
            self._made[index] = self._new(self._nodes[index])
        return self._made[index]

    def _pairs(self, index: int) -> list[tuple[int, int]]:
        data = self._nodes[index].get("data", [])
        return list(zip(data[::2], data[1::2], strict=True))

    @cached_property
    def _functions(self) -> dict[str, Any]:
        from tvm import tirx

        return {name: getattr(tirx, name) for name in (*_BINARY, *_COMPARED)}

    def _new(self, node: dict[str, Any]) -> Any:
        kind = node["type_key"].removeprefix("tir.")
        if kind == "":
            return None
        if kind == "Array":
            return [self.make(index) for index in node.get("data", [])]
        if kind == "Map":
            return self._map(node)
        if kind in ("runtime.String", "Op"):
            return node["repr_str"]
        fields = node["attrs"]
        if kind in self._functions:
            return self._functions[kind](self.make(int(fields["a"])), self.make(int(fields["b"])))
        return getattr(self, f"_{kind}")(fields)

    def _map(self, node: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(node.get("keys", []), map(self.make, node.get("data", [])), strict=True))

    def _field(self, fields: dict[str, str], *names: str) -> list[Any]:
        return [self.make(int(fields[name])) for name in names]

    def _IntImm(self, fields: dict[str, str]) -> Any:  # noqa: N802 (named like the node)
        from tvm import tirx

        return tirx.IntImm(fields["dtype"], int(fields["value"]))

    def _FloatImm(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.FloatImm(fields["dtype"], float(fields["value"]))

    def _Var(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.Var(self.make(int(fields["name"])), fields["dtype"])

    def _Range(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm.ir import Range

        return Range.from_min_extent(*self._field(fields, "min", "extent"))

    def _IterVar(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.IterVar(*self._field(fields, "dom", "var"), int(fields["iter_type"]))

    def _Buffer(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        shape, name = self._field(fields, "shape", "name")
        scope = self._nodes[int(fields["data"])]["attrs"]["type_annotation"]
        (where,) = self._field(self._nodes[int(scope)]["attrs"], "storage_scope")
        return tirx.decl_buffer(shape, fields["dtype"], name, scope=where or "global")

    def _BufferLoad(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.BufferLoad(*self._field(fields, "buffer", "indices"))

    def _BufferStore(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.BufferStore(*self._field(fields, "buffer", "value", "indices"))

    def _BufferRegion(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.BufferRegion(*self._field(fields, "buffer", "region"))

    def _SeqStmt(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.SeqStmt(*self._field(fields, "seq"))

    def _For(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        loop, low, extent, body, annotations = self._field(fields, "loop_var", "min", "extent", "body", "annotations")
        return tirx.For(loop, low, extent, tirx.ForKind(int(fields["kind"])), body, annotations=annotations)

    def _Select(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.Select(*self._field(fields, "condition", "true_value", "false_value"))

    def _Cast(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        return tirx.Cast(fields["dtype"], *self._field(fields, "value"))

    def _Call(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm import tirx

        operator, arguments = self._field(fields, "op", "args")
        return getattr(tirx, operator.removeprefix("tir."))(*arguments)

    def _Block(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm.s_tir import SBlock

        names = ("iter_vars", "reads", "writes", "name_hint", "body", "init", "alloc_buffers")
        return SBlock(*self._field(fields, *names), annotations=self.make(int(fields["annotations"])))

    def _BlockRealize(self, fields: dict[str, str]) -> Any:  # noqa: N802
        from tvm.s_tir import SBlockRealize

        return SBlockRealize(*self._field(fields, "iter_values", "predicate", "block"))
