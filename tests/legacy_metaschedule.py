"""Logs as TVM 0.16 wrote them: the JSON graph of a matrix product's module, and traces with the names of then."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

SIZE = 16


class _Graph:
    """Nodes of an old ``save_json``: fields are texts, references are the numbers of nodes."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = [{"type_key": ""}]

    def add(self, kind: str, /, **fields: object) -> int:
        self.nodes.append({"type_key": kind, "attrs": {name: str(value) for name, value in fields.items()}})
        return len(self.nodes) - 1

    def text(self, text: str) -> int:
        # Left out of a text that is empty, as TVM did.
        self.nodes.append({"type_key": "runtime.String"} | ({"repr_str": text} if text else {}))
        return len(self.nodes) - 1

    def array(self, *items: int) -> int:
        self.nodes.append({"type_key": "Array", **({"data": list(items)} if items else {})})
        return len(self.nodes) - 1

    def map(self, **items: int) -> int:
        self.nodes.append({"type_key": "Map", **({"keys": list(items), "data": list(items.values())} if items else {})})
        return len(self.nodes) - 1

    def number(self, value: int) -> int:
        return self.add("IntImm", dtype="int64", span=0, value=value)

    def var(self, name: str, dtype: str = "int64") -> int:
        kind = self.add("PrimType", dtype=dtype)
        return self.add("tir.Var", dtype=dtype, name=self.text(name), span=0, type_annotation=kind)

    def buffer(self, name: str, size: int) -> int:
        pointer = self.add(
            "PointerType", element_type=self.add("PrimType", dtype="float32"), storage_scope=self.text("")
        )
        data = self.add("tir.Var", dtype="handle", name=self.text(name), span=0, type_annotation=pointer)
        shape = self.array(self.number(size), self.number(size))
        return self.add("tir.Buffer", data=data, dtype="float32", name=self.text(name), shape=shape, span=0)

    def range(self, low: int, extent: int) -> int:
        return self.add("Range", extent=self.number(extent), min=low, span=0)


def module(size: int = SIZE) -> str:
    """``C = A @ B`` of squares, as the second part of a workload line."""
    graph = _Graph()
    a, b, c = (graph.buffer(name, size) for name in "ABC")
    loops = [graph.var(name) for name in "ijk"]
    variables = [graph.var(f"v{name}") for name in "ijk"]
    i, j, k = variables

    def load(buffer: int, *at: int) -> int:
        return graph.add("tir.BufferLoad", buffer=buffer, dtype="float32", indices=graph.array(*at), span=0)

    def store(value: int) -> int:
        return graph.add("tir.BufferStore", buffer=c, indices=graph.array(i, j), span=0, value=value)

    def region(buffer: int, *at: int) -> int:
        return graph.add("tir.BufferRegion", buffer=buffer, region=graph.array(*(graph.range(v, 1) for v in at)))

    product = graph.add("tir.Mul", a=load(a, i, k), b=load(b, k, j), dtype="float32", span=0)
    total = graph.add("tir.Add", a=load(c, i, j), b=product, dtype="float32", span=0)
    zero = graph.add("FloatImm", dtype="float32", span=0, value=0)
    axes = [
        graph.add("tir.IterVar", dom=graph.range(graph.number(0), size), iter_type=kind, span=0, thread_tag=0, var=var)
        for var, kind in zip(variables, (0, 0, 2), strict=True)
    ]
    true = graph.add("IntImm", dtype="bool", span=0, value=1)

    def block(
        name: str, axes: list[int], reads: list[int], writes: list[int], body: int, init: int, at: list[int]
    ) -> int:
        made = graph.add(
            "tir.Block",
            alloc_buffers=graph.array(),
            annotations=graph.map(),
            body=body,
            init=init,
            iter_vars=graph.array(*axes),
            match_buffers=graph.array(),
            name_hint=graph.text(name),
            reads=graph.array(*reads),
            writes=graph.array(*writes),
        )
        return graph.add("tir.BlockRealize", block=made, iter_values=graph.array(*at), predicate=true)

    reads = [region(a, i, k), region(b, k, j)]
    body = block("C", axes, reads, [region(c, i, j)], store(total), store(zero), loops)
    for loop in reversed(loops):
        zero_min, extent = graph.number(0), graph.number(size)
        fields = {"annotations": graph.map(), "kind": 0, "span": 0, "thread_binding": 0}
        body = graph.add("tir.For", body=body, extent=extent, loop_var=loop, min=zero_min, **fields)
    root = block("root", [], [], [], body, 0, [])
    parameters = [graph.var(f"var_{name}", "handle") for name in "ABC"]
    pairs = [part for pair in zip(parameters, (a, b, c), strict=True) for part in pair]
    graph.nodes.append({"type_key": "Map", "data": pairs})
    buffers = len(graph.nodes) - 1
    noalias = graph.map(**{"tir.noalias": true, "global_symbol": graph.text("main")})
    attributes = graph.add("DictAttrs", __dict__=noalias)
    graph.add(
        "tir.PrimFunc", attrs=attributes, body=root, buffer_map=buffers, params=graph.array(*parameters), ret_type=0
    )
    text = json.dumps({"root": 1, "nodes": graph.nodes, "b64ndarrays": [], "attrs": {"tvm_version": "0.16.dev0"}})
    text = text.replace('{"root": 1, ', '{\n  "root": 1, \n  ')
    return base64.b64encode(struct.pack("<Q", len(text)) + text.encode()).decode()


def trace(i: list[int], j: list[int], k: list[int], block: str = "C") -> list[Any]:
    """Tiles of the three loops, the inner ones of ``j`` vectorised, as the schedule of a record."""
    instructions: list[Any] = [
        ["GetBlock", [], [block, "main"], ["b0"]],
        ["GetLoops", ["b0"], [], ["l1", "l2", "l3"]],
    ]
    decisions, names = [], {}
    for loop, tile in zip(("l1", "l2", "l3"), (i, j, k), strict=True):
        factors = [f"v{loop[1]}{n}" for n in range(len(tile))]
        names[loop] = [f"l{loop[1]}{n}" for n in range(len(tile))]
        decisions.append([len(instructions), tile])
        instructions.append(["SamplePerfectTile", [loop], [len(tile), 64], factors])
        instructions.append(["Split", [loop, *factors], [1], names[loop]])
    order = [names[loop][n] for n in range(2) for loop in ("l1", "l2")] + names["l3"]
    order += [names[loop][n] for n in range(2, 4) for loop in ("l1", "l2")]
    instructions.append(["Reorder", order, [], []])
    instructions.append(["Vectorize", [names["l2"][-1]], [], []])
    return [instructions, decisions]


def write(folder: Path, records: int = 8) -> Path:
    """A log of one workload; its last record failed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "database_workload.json").write_text(json.dumps(["74459984568761439", module()]) + "\n")
    target = {"kind": "llvm", "mcpu": "haswell", "num-cores": 2}
    tiles = [
        [1, 1, 1, 16],
        [1, 1, 2, 8],
        [1, 2, 1, 8],
        [2, 1, 1, 8],
        [1, 1, 4, 4],
        [1, 4, 1, 4],
        [4, 1, 1, 4],
        [2, 2, 2, 2],
    ]
    lines = []
    for number in range(records):
        tile = tiles[number % len(tiles)]
        tiled = trace(tile, tile[::-1], [1, 16] if number < len(tiles) else [2, 8])
        latencies_s = [1e10] if number == records - 1 else [1e-4 * (1 + number)]
        lines.append(json.dumps([0, [tiled, latencies_s, target, []]]) + "\n")
    (folder / "database_tuning_record.json").write_text("".join(lines))
    return folder
