"""Modules and traces of MetaSchedule before TVM 0.20, made again with today's TVM.

The old JSON names every node of the module's graph with its fields; a module is rebuilt from it, node by node, with the
constructors of today. The old traces keep their meaning under the new names of instructions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pebble import ProcessExpired, ProcessPool

from lorien.dialects._lines import iter_lines
from lorien.dialects.base import LogInfo
from lorien.dialects.metaschedule import logs
from lorien.dialects.metaschedule.workload import BUILD, replay, require_tvm, workload_of
from lorien.dialects.metaschedule_legacy import graph_of, read_workload, text_of, version_of
from lorien.errors import BadInput
from lorien.machine import available_cores
from lorien.records import Json

if TYPE_CHECKING:
    import tvm

CHUNK_RECORDS = 200
RENAMED = {"GetBlock": "GetSBlock"}
_NEW_ATTRIBUTES = {"Split": [0]}
"""Attributes that an instruction has today and had not: a split keeps its predicates."""
_BINARY = ("Add", "Sub", "Mul", "Div", "FloorDiv", "FloorMod", "Min", "Max", "And", "Or")
_COMPARED = ("EQ", "NE", "LT", "LE", "GT", "GE")


@dataclass
class MigrateReport:
    """What ``migrate`` made of a log: workloads and records of it, how many of them today's TVM takes, why not more."""

    workloads: int = 0
    rebuilt: int = 0
    records: int = 0
    replayed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: MigrateReport) -> None:
        """Count another log's too."""
        self.workloads += other.workloads
        self.rebuilt += other.rebuilt
        self.records += other.records
        self.replayed += other.replayed
        self.reasons.update(other.reasons)


def migrate(log: Path, out: Path) -> MigrateReport:
    """Write to the folder ``out`` what of an old log replays on today's TVM, as a log of today.

    The latencies stay those of the old TVM, and ``lorien.json`` says so: its build tells them from today's.

    Raises
    ------
    UnreadableLog
        It is no log of ``JSONDatabase``.
    MissingExtra, VersionClash
        TVM is not installed.
    """
    require_tvm()
    report = MigrateReport()
    workload_file, record_file = logs.files(log)
    definitions: dict[int, str] = {}
    version = "unknown"
    with (out / logs.WORKLOADS).open("wb") as file:
        for index, (_, line) in enumerate(iter_lines(workload_file)):
            report.workloads += 1
            try:
                old = read_workload(line, LogInfo())
                module = rebuild(str(old.definition))
            except BadInput as error:
                report.reasons[str(error)] += 1
                continue
            version = version_of(graph_of(str(old.definition)))
            new = workload_of(module, old.name)
            definitions[index] = str(old.definition)
            file.write(orjson.dumps([new.identity[1], new.definition]) + b"\n")
    report.rebuilt = len(definitions)
    place = {index: number for number, index in enumerate(definitions)}
    with (out / logs.RECORDS).open("wb") as file:
        for line in _replayed(_records(record_file, place, report), list(definitions.values()), report):
            report.replayed += 1
            file.write(line + b"\n")
    (out / "lorien.json").write_bytes(orjson.dumps({"framework": f"tvm {version}"}))
    return report


def _records(path: Path, place: dict[int, int], report: MigrateReport) -> Iterator[bytes]:
    """The records of rebuilt workloads, with today's number of the workload and names of the instructions."""
    for _, line in iter_lines(path):
        report.records += 1
        try:
            index, (trace, *rest) = orjson.loads(line)
            if index in place:
                yield orjson.dumps([place[index], [rename(trace), *rest]])
            else:
                report.reasons["its workload cannot be rebuilt"] += 1
        except (ValueError, TypeError) as error:
            report.reasons[f"not a record of JSONDatabase: {error}"] += 1


def _replayed(lines: Iterator[bytes], definitions: Sequence[str], report: MigrateReport) -> Iterator[bytes]:
    """Those that replay, in their order. In processes of their own: a foreign trace may bring TVM down."""
    import multiprocessing

    chunks = list(iter(lambda: list(islice(lines, CHUNK_RECORDS)), []))
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=available_cores(), context=context) as pool:
        futures = [pool.schedule(_try_all, args=(chunk, definitions)) for chunk in chunks]
        for future, chunk in zip(futures, chunks, strict=True):
            try:
                replays, reasons = future.result()
            except ProcessExpired:
                report.reasons["a trace near it brought TVM down"] += len(chunk)
                continue
            yield from replays
            report.reasons.update(reasons)


def _try_all(lines: Sequence[bytes], definitions: Sequence[str]) -> tuple[list[bytes], Counter[str]]:
    replays: list[bytes] = []
    reasons: Counter[str] = Counter()
    for line in lines:
        index, (trace, *_) = orjson.loads(line)
        try:
            replay(rebuild(definitions[index]), trace)
        except Exception as error:  # a trace is foreign data, and TVM raises what it likes
            said = str(error).strip().splitlines()
            reasons[f"{type(error).__name__}: {said[-1][:160] if said else ''}"] += 1
        else:
            replays.append(line)
    return replays, reasons


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


@lru_cache(maxsize=64)
def rebuild(definition: str) -> tvm.IRModule:
    """The module of an old definition.

    Raises
    ------
    BadInput
        It is none, or has a node that is not known here.
    """
    require_tvm()
    import tvm

    graph = graph_of(definition)
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
        pairs = self._nodes[int(fields["buffer_map"])]["data"]
        buffers = {parameter: self.make(buffer) for parameter, buffer in zip(pairs[::2], pairs[1::2], strict=True)}
        # Numbers that TVM boxed then and takes plain now: ``tirx.noalias`` must be True, not an expression of it.
        attributes = {
            name.replace("tir.", "tirx."): getattr(value, "value", value)
            for name, value in self._attributes(fields).items()
        }
        attributes |= {"global_symbol": "main", "s_tir": True}
        parameters = [buffers[index] for index in self._nodes[int(fields["params"])]["data"]]
        function = tirx.PrimFunc(parameters, self.make(int(fields["body"])))
        return function.with_attr(attributes)

    def make(self, index: int) -> Any:
        """The object of a node; None for the null node."""
        if index not in self._made:
            self._made[index] = self._new(self._nodes[index])
        return self._made[index]

    def _attributes(self, fields: dict[str, str]) -> dict[str, Any]:
        attributes = self._nodes[int(fields["attrs"])].get("attrs", {})
        return self.make(int(attributes["__dict__"])) if attributes else {}

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
            return text_of(node)
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
