"""MetaSchedule of TVM before 0.20, the log dialect: folders of ``JSONDatabase`` whose modules today's TVM cannot load.

Read without TVM; ``lorien ingest --migrate`` makes records of ``metaschedule`` of them, where today's TVM can. A
workload is named by the structural hash that its own TVM gave it, which is no hash of today's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule import logs
from lorien.dialects.metaschedule.graph import decoded
from lorien.errors import BadInput
from lorien.records import Json, TuningRecord, Workload

IDENTITY_KIND = "structural of"
"""With the version of TVM behind it, the first part of an identity."""


class MetaScheduleLegacyDialect:
    """Reads old MetaSchedule logs. Implements ``LogDialect``; a log is a folder of ``JSONDatabase``."""

    name = "metaschedule_legacy"
    shard_bytes = 1 << 20

    def find(self, path: Path) -> Iterator[Path]:
        """See ``LogDialect``."""
        return logs.folders(path, legacy=True)

    def files(self, log: Path) -> list[Path]:
        """See ``LogDialect``."""
        return logs.files(log)

    def read(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TuningRecord]:
        """See ``LogDialect``."""
        return logs.read(log, info, report, shard, read_workload)

    def reader(self, log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
        """See ``LineDialect``."""
        return logs.reader(log, info, read_workload)


def graph_of(definition: str) -> Json:
    """The graph of nodes in the second part of a workload line. Raises ``BadInput`` when it is none of an old TVM."""
    graph = decoded(definition)
    if "root" in graph and graph.get("nodes"):
        return graph
    raise BadInput("not a workload of an old JSONDatabase. Fix: --dialect metaschedule for one of today's TVM")


def version_of(graph: Json) -> str:
    """TVM that wrote a graph."""
    return str(graph.get("attrs", {}).get("tvm_version", "unknown"))


def text_of(node: dict[str, Json]) -> str:
    """The text of a node that is one: TVM leaves ``repr_str`` out of one that is empty."""
    return str(node.get("repr_str", ""))


def read_workload(line: bytes, info: LogInfo) -> Workload:
    """A line of the workload file. Raises ``BadInput``."""
    structural_hash, definition = logs.parts_of(line)
    graph = graph_of(definition)
    try:
        name = _name(graph["nodes"])
        version = version_of(graph)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise BadInput(f"the module of workload {structural_hash} is damaged: {error!r}") from None
    return Workload(
        dialect=MetaScheduleLegacyDialect.name,
        name=name,
        identity=[f"{IDENTITY_KIND} {version}", str(structural_hash)],
        definition=definition,
        networks=(info.network,) if info.network else (),
    )


def _name(nodes: list[Json]) -> str:
    """Blocks and argument shapes of a module: ``conv2d_nchw+T_add(1x3x8x8,4x3x3x3,1x4x6x6)``."""

    def fields(index: str | int) -> dict[str, Json]:
        found: dict[str, Json] = nodes[int(index)]["attrs"]
        return found

    def shape(buffer: int) -> str:
        extents = (nodes[extent] for extent in nodes[int(fields(buffer)["shape"])].get("data", ()))
        return "x".join(e["attrs"]["value"] if e["type_key"] == "IntImm" else "?" for e in extents)

    blocks = [text_of(nodes[int(n["attrs"]["name_hint"])]) for n in nodes if n["type_key"] == "tir.Block"]
    function = next(n["attrs"] for n in nodes if n["type_key"] == "tir.PrimFunc")
    pairs = nodes[int(function["buffer_map"])].get("data", ())
    buffers = dict(zip(pairs[::2], pairs[1::2], strict=True))
    shapes = [shape(buffers[parameter]) for parameter in nodes[int(function["params"])].get("data", ())]
    return f"{'+'.join(block for block in blocks if block != 'root')}({','.join(shapes)})"
