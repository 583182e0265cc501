"""The JSON graph of a module in ``database_workload.json``, and what of it must be right before TVM may read it.

TVM follows the references of a graph by recursion and without a limit: a node that refers to itself, or a long chain,
ends the process with a segmentation fault.
"""

from __future__ import annotations

import base64
from functools import lru_cache

import orjson

from lorien.errors import BadInput
from lorien.records import Json

MAX_DEPTH = 256
"""Longest chain of references. Modules of real networks have 30; TVM's recursion dies somewhere over 1,000."""
_LENGTH_BYTES = 8
_LITERALS = {"ffi.String", "ffi.SmallStr", "ffi.Bytes", "ffi.SmallBytes", "int", "float", "bool", "str", "None"}
"""Types whose data is a value; of all others it refers to nodes, by their numbers."""
NUMBERS = {
    "ir.Span": {"line", "column", "end_line", "end_column"},
    "ir.TupleGetItem": {"index"},
    "relax.ShapeType": {"ndim"},
    "relax.TensorType": {"ndim"},
    "relax.VDevice": {"vdevice_id"},
    "te.Reduce": {"value_index"},
    "te.Tensor": {"value_index"},
    "tirx.BufferType": {"data_alignment", "offset_factor"},
    "tirx.ComposeLayout": {"per_element", "swizzle_len", "atom_len", "inner_mask", "outer_mask"},
    "tirx.ExecScope": {"kind"},
    "tirx.For": {"kind"},
    "tirx.IterVar": {"iter_type"},
    "tirx.ScopeIdDef": {"scope"},
}
"""Fields that hold a number and no reference, by type. A test compares them with TVM's own description of its types."""


@lru_cache(maxsize=1)  # A reader of logs asks twice in a row: for a name, and before TVM loads the module.
def module_graph(definition: str) -> Json:
    """The graph of nodes in the second part of a workload line, safe for TVM to read.

    Raises
    ------
    BadInput
        It is no graph of TVM 0.20 and later, or a node refers to itself, to a later node or to none.
    """
    graph = decoded(definition)
    if "root_index" in graph:
        check_graph(graph)
    return graph


def decoded(definition: str) -> Json:
    """The JSON of a definition, of any TVM: base64 of eight bytes of length and the graph. Raises ``BadInput``."""
    try:
        graph = orjson.loads(base64.b64decode(definition, validate=True)[_LENGTH_BYTES:])
    except (ValueError, TypeError) as error:
        raise BadInput(f"not a workload of JSONDatabase: {error}") from None
    if not isinstance(graph, dict):
        raise BadInput("not a workload of JSONDatabase: it is not [hash, module]")
    return graph


def check_graph(graph: Json) -> None:
    """Raise ``BadInput`` where TVM's reader would not end well; for graphs of TVM 0.20 and later."""
    nodes, root = graph.get("nodes"), graph["root_index"]
    if not isinstance(nodes, list) or not isinstance(root, int) or not 0 <= root < len(nodes):
        raise BadInput("the module is damaged: its root is no node")
    depths: list[int] = []
    for position, node in enumerate(nodes):
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise BadInput(f"the module is damaged: node {position} has no type")
        depth = 0
        for reference in () if node["type"] in _LITERALS else _references(node):
            # Children come before their parents in what TVM writes: with that, there are no circles.
            if not 0 <= reference < position:
                raise BadInput(f"the module is damaged: node {position} refers to node {reference}")
            depth = max(depth, depths[reference] + 1)
        if depth > MAX_DEPTH:
            raise BadInput(f"the module is damaged: its nodes are nested over {MAX_DEPTH} deep")
        depths.append(depth)


def _references(node: dict[str, Json]) -> list[int]:
    data = node.get("data")
    if isinstance(data, dict):
        numbers = NUMBERS.get(node["type"], ())
        data = [value for name, value in data.items() if name not in numbers]
    if not isinstance(data, list):
        return []
    return [value for value in data if isinstance(value, int) and not isinstance(value, bool)]
