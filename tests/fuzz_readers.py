"""Damage to good files, for the fuzzing of every reader: ``python tests/fuzz_readers.py SEED COUNT READER`` tries some.

The edits know JSON: they replace, remove, repeat, nest and mistype parts of records. Each reader is then run as a user
would run it. A ``LorienError`` or a counted line is right. Any other exception is printed; a crash ends the process.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorien.database import open_database
from lorien.dialects import open_dialect
from lorien.dialects.base import ReadReport
from lorien.errors import LorienError
from lorien.featurize import open_extractor
from lorien.logs import open_logs
from lorien.logs.commit import commit
from lorien.logs.ingest import ingest
from lorien.logs.walk import info_for
from lorien.records import Workload
from lorien.target import Target

RECORDS = 12
DEVICE = Target.parse("llvm -mcpu=haswell -num-cores=2")


def nested(depth: int, leaf: Any = 1) -> Any:
    """A list in a list, ``depth`` deep."""
    for _ in range(depth):
        leaf = [leaf]
    return leaf


ODD: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 1 << 62,
    lambda: 10**40,
    lambda: 1e308,
    lambda: -1e-308,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "\ud800",
    lambda: "x" * 10_000,
    lambda: "[" * 500,
    list,
    dict,
    lambda: {"kind": "llvm"},
    lambda: [[]],
    lambda: nested(100),
    lambda: nested(300),
    lambda: nested(1000),
    lambda: [1, "a", None, {}, []],
    lambda: {"a": {"b": []}},
    lambda: list(range(1000)),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every part of a JSON value."""
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value[:40]):
            yield from places(item, (*path, index))


def edited(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts damaged."""
    path = chance.choice(list(places(value)))
    if not path:
        return chance.choice(ODD)()
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    last = path[-1]
    what = chance.randrange(6)
    if what == 0:
        del parent[last]
    elif what == 1 and isinstance(parent, list):
        parent.insert(last, parent[last])
    elif what == 2:
        other = chance.choice(list(places(value)))
        found = value
        for step in other:
            found = found[step]
        parent[last] = json.loads(json.dumps(found))
    elif what == 3 and isinstance(parent[last], (int, float)) and not isinstance(parent[last], bool):
        parent[last] = chance.choice([-parent[last], parent[last] * 10**9, parent[last] + 0.5, parent[last] // 2])
    elif what == 4 and isinstance(parent[last], str) and parent[last]:
        text = parent[last]
        at = chance.randrange(len(text))
        parent[last] = text[:at] + chance.choice(["", "\0", "é", '"', "-", " ", "9" * 50]) + text[at + 1 :]
    else:
        parent[last] = chance.choice(ODD)()
    return value


def damaged_line(line: bytes, chance: random.Random) -> bytes:
    """A line of JSON, damaged in its structure or in its bytes."""
    if chance.random() < 0.15 and line:
        data = bytearray(line)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data).replace(b"\n", b" ")
    try:
        value = json.loads(line)
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str) and len(value[1]) > 200:
            return json.dumps(_edited_module(value, chance)).encode()
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            with suppress(KeyError, IndexError, TypeError, OverflowError):
                value = edited(value, chance)
        return json.dumps(value).encode()
    except (RecursionError, ValueError):  # Damaged before, or nested deeper than Python's JSON writes.
        return b"[" * 2000 + b"]" * 2000


def _edited_module(value: list[Any], chance: random.Random) -> list[Any]:
    """A workload of ``JSONDatabase`` with one node of its module's graph damaged."""
    graph = json.loads(base64.b64decode(value[1])[8:])
    nodes = graph["nodes"]
    for _ in range(chance.choice([1, 1, 3])):
        node = chance.choice(nodes)
        what = chance.randrange(5)
        data = node.get("data", node.get("attrs"))
        if what == 0:
            node["type" if "type" in node else "type_key"] = chance.choice(nodes).get("type", "tir.Var")
        elif what == 1 and isinstance(data, list) and data:
            data[chance.randrange(len(data))] = chance.randrange(len(nodes))
        elif what == 2 and isinstance(data, dict) and data:
            data[chance.choice(list(data))] = chance.randrange(len(nodes))
        elif what == 3 and "data" in node:
            node["data"] = chance.choice(ODD[:19])()
        else:
            with suppress(KeyError, IndexError, TypeError, OverflowError):
                edited(node, chance)
    text = json.dumps(graph).encode()
    length = len(text) if chance.random() < 0.9 else chance.randrange(1 << 62)
    return [value[0], base64.b64encode(length.to_bytes(8, "little") + text).decode()]


def damage_log(dialect: str, log: Path, chance: random.Random) -> None:
    """Damage some lines of one of a log's files."""
    file = chance.choice(open_dialect(dialect).files(log))
    lines = file.read_bytes().splitlines()
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(lines))
        lines[at] = damaged_line(lines[at], chance)
    if chance.random() < 0.1:
        chance.shuffle(lines)
    file.write_bytes(b"\n".join(lines) + b"\n" * (chance.random() < 0.9))


def use_log(dialect: str, log: Path, folder: Path, chance: random.Random) -> None:
    """Ingest a log as a user may, then commit and featurize what was stored."""
    reader = open_dialect(dialect)
    split = chance.random() < 0.4
    target = DEVICE if not split and chance.random() < 0.5 else None
    store = open_logs(str(folder / "store"))
    with suppress(LorienError):
        ingest([log], store, dialect=reader, target=target, split=split)
    stored = list(store.list())
    if not stored:
        return
    with open_database(str(folder / "best.db")) as database:
        commit(store, database)
        for record in database.query():
            assert record.measurement.latency_s is not None
            record.workload.to_json()
    for one in stored:
        with store.local(one) as path:
            seen = ReadReport()
            info = info_for(one, path)
            assert sum(1 for _ in reader.read(path, info, seen)) == one.records
            for records, rows in open_extractor(dialect).extract_log(path, info, ReadReport(), (0, 1), 64):
                assert len(records) == len(rows)


def use_sidecar(log: Path, folder: Path, chance: random.Random) -> None:
    """Ingest a log beside a damaged ``lorien.json``, then list a store whose own sidecar is damaged."""
    whole = {"target": DEVICE.to_json(), "network": "net", "framework": "tvm 0.9", "host": "here"}
    whole |= {"tasks": [{"task": "dense", "weight": 3, "networks": ["net"]}]}
    beside = log.parent / "lorien.json"
    beside.write_bytes(damaged_line(json.dumps(whole).encode(), chance))
    store = open_logs(str(folder / "store"))
    with suppress(LorienError):
        ingest([log], store, dialect=open_dialect("autotvm"))
    for sidecar in (folder / "store").rglob("lorien.json"):
        sidecar.write_bytes(damaged_line(sidecar.read_bytes(), chance))
        with suppress(LorienError), open_database(str(folder / "best.db")) as database:
            commit(store, database)


def use_workloads(folder: Path, chance: random.Random) -> None:
    """Read a damaged file of workloads."""
    from lorien.cli.workloads import read_workloads

    line = json.dumps(Workload("halide", "m", ["matmul:64,64,64"], flop=1e6, weight=2.0, networks=("a",)).to_json())
    path = folder / "workloads.jsonl"
    path.write_bytes(damaged_line(line.encode(), chance) + b"\n")
    with suppress(LorienError):
        for workload in read_workloads(path):
            Workload.from_json(workload.to_json())


def use_target(chance: random.Random) -> None:
    """Parse a damaged target."""
    said = chance.choice(
        ["llvm -mcpu=znver4 -num-cores=2 -mattr=+a,+b", "cuda_rtx3080", {"kind": "llvm", "mattr": ["+a"], "mcpu": "x"}]
    )
    with suppress(LorienError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        target = Target.parse(json.loads(damaged_line(json.dumps(said).encode(), chance)))
        assert target.key == Target.parse(target.to_json()).key
        assert target.family


def try_log(dialect: str, log_of: Callable[[Path], Path], folder: Path, chance: random.Random) -> None:
    """Damage and use one log; a short one, for to lower a schedule takes long."""
    log = log_of(folder)
    records = open_dialect(dialect).files(log)[-1]
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:RECORDS]))
    damage_log(dialect, log, chance)
    use_log(dialect, log, folder, chance)


def main(reader: str, seed: int, count: int) -> list[str]:
    """Try so many damaged inputs of a reader; what failed, as texts."""
    sys.path.insert(0, str(Path(__file__).parent / "contract"))
    from test_dialects import LOGS

    failures = []
    for number in range(seed, seed + count):
        chance = random.Random(f"{reader} {number}")
        print(f"{reader} {number}", file=sys.stderr, flush=True)  # The last of these names what brought a process down.
        with tempfile.TemporaryDirectory(prefix="lorien-fuzz-") as temporary:
            folder = Path(temporary)
            try:
                if reader in LOGS:
                    try_log(reader, LOGS[reader], folder, chance)
                elif reader == "sidecar":
                    use_sidecar(LOGS["autotvm"](folder), folder, chance)
                elif reader == "workloads":
                    use_workloads(folder, chance)
                else:
                    use_target(chance)
            except Exception:
                failures.append(f"{reader} {number}:\n{traceback.format_exc()}")
    return failures


if __name__ == "__main__":
    found = [text for name in sys.argv[3:] for text in main(name, int(sys.argv[1]), int(sys.argv[2]))]
    print("\n".join(found))
    print(f"{len(found)} failures")
