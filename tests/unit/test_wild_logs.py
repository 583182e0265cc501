"""Logs from the field that were once lost, misread or ended a command: what they are read as, with real inputs."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import legacy_metaschedule
import pyarrow as pa
import pytest
from conftest import autotvm_line

from lorien.database import open_database
from lorien.dialects import open_dialect
from lorien.dialects._lines import MAX_NESTING
from lorien.dialects.base import ReadReport
from lorien.errors import BadInput, ChecksumMismatch, UnreadableLog
from lorien.featurize import open_extractor
from lorien.featurize.table import featurize
from lorien.logs import open_logs
from lorien.logs.base import LogStore, StoredLog
from lorien.logs.commit import commit
from lorien.logs.content import content_of
from lorien.logs.ingest import IngestReport, ingest
from lorien.logs.walk import info_for
from lorien.records import TuningRecord
from lorien.report.sources import Report, gather, source_of
from lorien.target import Target

SAMPLE = Path(__file__).parents[2] / "datasets/plain/llvm_znver4_2/bvlc_alexnet"
MakeLog = Callable[..., Path]
Line = Callable[..., str]
OTHER_DEVICE = "ext_dev -keys=vta,cpu -device=vta"
"""A target of TVM that Lorien does not know: lines of it are refused."""


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return open_logs(str(tmp_path / "store"))


def take(store: LogStore, *paths: Path, dialect: str = "autotvm", **given: Any) -> IngestReport:
    return ingest(paths, store, dialect=open_dialect(dialect), **given)


def read(store: LogStore, log: StoredLog) -> list[TuningRecord]:
    with store.local(log) as path:
        return list(open_dialect(log.dialect).read(path, info_for(log, path), ReadReport()))


def rows(store: LogStore) -> int:
    """Rows that ``featurize`` makes of a store."""
    count = 0
    for log in store.list():
        with store.local(log) as path:
            info = info_for(log, path)
            for records, features in open_extractor(log.dialect).extract_log(path, info, ReadReport(), (0, 1), 64):
                assert len(records) == len(features)
                count += len(records)
    return count


def committed(store: LogStore, folder: Path) -> dict[str, float | None]:
    """The fastest latency that ``commit`` finds, by target key."""
    with open_database(str(folder / "best.db")) as database:
        commit(store, database)
        return {record.target.key: record.measurement.latency_s for record in reversed(list(database.query()))}


def ansor_line(latency_s: float, target: str, tile: int = 1) -> str:
    steps = [["SP", 2, 0, 64, [tile], 1]]
    key = json.dumps(["matmul", 64, 64, 64])
    return json.dumps({"i": [[key, target], [[], steps]], "r": [[latency_s], 0, 0.1, 1.6e9], "v": "v0.6"})


def metaschedule_log(folder: Path, targets: list[Any], latencies_s: list[float]) -> Path:
    """A record of the first workload for each of the targets."""
    folder.mkdir(parents=True)
    workload, *_ = gzip.decompress((SAMPLE / "database_workload.json.gz").read_bytes()).splitlines()
    records = gzip.decompress((SAMPLE / "database_tuning_record.json.gz").read_bytes()).splitlines()
    own = [json.loads(line) for line in records if json.loads(line)[0] == 0]
    lines = []
    for record, target, latency_s in zip(own, targets, latencies_s, strict=False):
        record[1][1:3] = [[latency_s], target]
        lines.append(json.dumps(record))
    (folder / "database_workload.json").write_bytes(workload + b"\n")
    (folder / "database_tuning_record.json").write_text("\n".join(lines) + "\n")
    return folder


def logs_with_a_refused_line(tmp_path: Path, autotvm_log: MakeLog, line: Line) -> dict[str, Path]:
    """A log of each kind: a slow record of a known device, and a fast one of a device that is not known."""
    known = {"kind": "llvm", "mcpu": "skylake"}
    ansor = tmp_path / "ansor.json"
    ansor.write_text(f"{ansor_line(2e-3, 'llvm -mcpu=skylake')}\n{ansor_line(1e-4, OTHER_DEVICE, 2)}\n")
    return {
        "autotvm": autotvm_log(
            "net.log", [line([2e-3], target="llvm -mcpu=skylake"), line([1e-4], tile=2, target=OTHER_DEVICE)]
        ),
        "auto_scheduler": ansor,
        "metaschedule": metaschedule_log(tmp_path / "net", [known, {"kind": "ext_dev"}], [2e-3, 1e-4]),
    }


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dialect", ["autotvm", "auto_scheduler", "metaschedule"])
def test_a_line_refused_for_its_target_stays_refused(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, dialect: str, split: bool
) -> None:
    path = logs_with_a_refused_line(tmp_path, autotvm_log, line)[dialect]
    report = take(store, path, dialect=dialect, split=split)
    assert (report.records, report.unreadable) == (1, 1)
    assert committed(store, tmp_path) == {"llvm-mcpu_skylake": 2e-3}
    assert rows(store) == 1


def test_a_line_of_another_target_is_refused_even_when_it_can_be_read(
    store: LogStore, autotvm_log: MakeLog, line: Line
) -> None:
    take(store, autotvm_log("net.log", [line(target="cuda -arch=sm_70")]))
    (log,) = store.list()
    path = autotvm_log("other.log", [line(target="cuda -arch=sm_70"), line(tile=2, target="cuda -arch=sm_75")])
    seen = ReadReport()
    records = list(open_dialect("autotvm").read(path, log.info, seen))
    assert [record.target.key for record in records] == ["cuda-arch_sm_70"]
    assert seen.reasons == ["other.log:2: its target is cuda-arch_sm_75, the target of the log is cuda-arch_sm_70"]


@pytest.mark.parametrize("given", [False, True])
def test_a_sidecar_of_before_is_read_as_it_was_ingested(
    store: LogStore, autotvm_log: MakeLog, line: Line, given: bool
) -> None:
    """It does not say who named the target: the counts of then tell."""
    path = autotvm_log("net.log", ["cut", line([2e-3], target="cuda"), line(tile=2, target=OTHER_DEVICE)])
    take(store, path, target=Target.parse("cuda") if given else None)
    (log,) = store.list()
    sidecar = Path(store.url, log.id, "lorien.json")
    value = json.loads(sidecar.read_text())
    assert value.pop("target_given") is given
    sidecar.write_text(json.dumps(value))
    (old,) = store.list()
    assert old.target_given is None
    assert len(read(store, old)) == old.records == (2 if given else 1)


def test_who_names_the_device_later_vouches_for_all_lines(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("net.log", [line(target="cuda"), line(tile=2, target=OTHER_DEVICE)])
    assert take(store, path).new == 1
    assert take(store, path, target=Target.parse("cuda")).new == 1
    (log,) = store.list()
    assert (log.records, log.unreadable, len(read(store, log))) == (2, 0, 2)


def test_reasons_of_parts_have_the_line_numbers_of_the_log(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    lines = [line(target="cuda -model=1080ti"), line(target=OTHER_DEVICE), line(target="opencl -device=mali"), "cut"]
    report = take(store, autotvm_log("vta.log", lines), split=True)
    assert [reason.split(": ")[0] for reason in report.reasons] == ["vta.log:2", "vta.log:4"]
    assert [(log.records, log.unreadable) for log in store.list()] == [(1, 1), (1, 1)]


def test_a_split_of_nothing_readable_is_refused(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("b.log", [line(target="nvidia/jetson-agx-xavier")] * 2)
    for split in (False, True):
        with pytest.raises(UnreadableLog, match=r"b.log has no readable record \(b.log:1: unknown target"):
            take(store, path, split=split)


@pytest.mark.parametrize("dialect", ["metaschedule", "metaschedule_legacy", "halide"])
def test_a_folder_of_two_targets_is_split(store: LogStore, tmp_path: Path, dialect: str) -> None:
    targets = [{"kind": "llvm", "mcpu": cpu, "num-cores": 2} for cpu in ("znver4", "znver3", "znver4")]
    if dialect == "metaschedule":
        log = metaschedule_log(tmp_path / "net", targets, [3e-3, 2e-3, 1e-3])
    elif dialect == "metaschedule_legacy":
        log = legacy_metaschedule.write(tmp_path / "net", records=3)
        records = log / "database_tuning_record.json"
        lines = [json.loads(text) for text in records.read_text().splitlines()]
        for record, target in zip(lines, targets, strict=True):
            record[1][2] = target
        records.write_text("".join(json.dumps(record) + "\n" for record in lines))
    else:
        from lorien.dialects.halide.logs import Writer
        from lorien.dialects.halide.pipelines import parse
        from lorien.records import Candidate, Measurement, Outcome

        log = tmp_path / "net"
        log.mkdir()
        for number, target in enumerate(targets):
            writer = Writer([parse("matmul:64,64,64")], Target.parse(target))
            (log / writer.workload_file).write_bytes(writer.workload_lines())
            candidate = Candidate({"autoscheduler": "Adams2019", "parameters": {"random_dropout_seed": str(number)}})
            with (log / writer.record_file).open("ab") as file:
                file.write(writer.record_line(0, candidate, Measurement(Outcome.OK, (1e-3,))))
    with pytest.raises(BadInput, match=r"2 targets: .*--split"):
        take(store, log, dialect=dialect)
    report = take(store, log, dialect=dialect, split=True)
    found = [(stored.target.key, stored.records, stored.network, len(read(store, stored))) for stored in store.list()]
    assert found == [("llvm-mcpu_znver3-num-cores_2", 1, "net", 1), ("llvm-mcpu_znver4-num-cores_2", 2, "net", 2)]
    assert (report.records, report.new, report.workloads) == (3, 3, 1)
    assert take(store, log, dialect=dialect, split=True).new == 0


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def test_a_folder_is_searched_whatever_its_files_are_called(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    names = ["a.log", "b.log.tmp", "c", "F.LOG", *(f"packed.log{suffix}" for suffix in COMPRESS)]
    for number, name in enumerate(names):
        data = (line(tile=number + 1) + "\n").encode()
        path = autotvm_log(f"runs/{name}", [])
        path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    for name, data in {
        "notes.md": b"# notes",
        "empty.log": b"",
        "old.zip": b"PK\x03\x04..",
        "x.bin": b"\x7fELF\0\1",
    }.items():
        (tmp_path / "runs" / name).write_bytes(data)
    (tmp_path / "runs" / "utf16.log").write_bytes(line().encode("utf-16"))
    report = take(store, tmp_path / "runs", target=Target.parse("cuda"))
    assert (report.records, len(report.logs)) == (8, 8)
    assert sorted(log.network or "" for log in store.list()) == ["F", "a", "b", "c", *["packed"] * 4]
    assert {Path(text.split(": ")[0]).name: text.split(": ")[1] for text in report.passed_over} == {
        "empty.log": "it is empty",
        "notes.md": "its first 20 lines hold no autotvm record",
        "old.zip": "it is a zip archive. Fix",
        "utf16.log": "it is UTF-16 text. Fix",
        "x.bin": "it is binary",
    }
    # What is stored reads like what was given.
    assert sum(len(read(store, log)) for log in store.list()) == 8


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_a_log_of_any_compression_is_known_again(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, suffix: str
) -> None:
    path = autotvm_log("net.log", [line(tile=tile) for tile in range(1, 200)])
    packed = tmp_path / f"net.log{suffix}"
    packed.write_bytes(COMPRESS[suffix](path.read_bytes()))
    assert [take(store, each).new for each in (path, packed)] == [199, 0]
    packed.write_bytes(packed.read_bytes()[:-20])
    if suffix in (".gz", ".xz"):  # The others are cut in blocks larger than this log.
        (log,) = store.list()
        cut = list(open_dialect("autotvm").read(packed, log.info, ReadReport()))
        assert cut
        assert [record.key for record in cut] == [record.key for record in read(store, log)[: len(cut)]]


def test_a_folder_goes_on_past_a_log_that_cannot_be_stored(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    autotvm_log("runs/a.log", [line(target="nvidia/jetson-agx-xavier")])
    autotvm_log("runs/b.log", [line(target="cuda -arch=sm_70"), line(target="cuda -arch=sm_75")])
    autotvm_log("runs/c.log", [line(target="cuda -arch=sm_70")])
    report = take(store, tmp_path / "runs")
    assert [log.network for log in store.list()] == ["c"]
    assert [Path(text.split(" ")[0]).name for text in report.failed_logs] == ["a.log", "b.log"]


def test_text_of_windows_is_read_or_named(store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path) -> None:
    lines = [line([1e-3]), line([2e-3], tile=2)]
    marked = autotvm_log("bom.log", [])
    marked.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert (take(store, marked).records, take(store, marked).unreadable) == (2, 0)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        wide = autotvm_log("utf16.log", [])
        wide.write_bytes("\n".join(lines).encode(encoding))
        with pytest.raises(UnreadableLog, match=r"is UTF-16 text\. Fix: convert it"):
            take(store, wide)
    folder = metaschedule_log(tmp_path / "net", [{"kind": "llvm"}] * 2, [1e-3, 2e-3])
    for file in folder.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert take(store, folder, dialect="metaschedule").records == 2
    (folder / "lorien.json").write_bytes(b'\xef\xbb\xbf{"network": "told"}')
    assert take(store, folder, dialect="metaschedule", target=Target.parse("cuda")).records == 2
    assert next(store.list("metaschedule", Target.parse("cuda"))).network == "told"


def test_pages_that_a_power_loss_left_unwritten_cost_their_line_alone(
    store: LogStore, autotvm_log: MakeLog, line: Line
) -> None:
    lines = [line(tile=tile, target="cuda").encode() for tile in (1, 2, 3)]
    path = autotvm_log("net.log", [])
    for tail in (b"\n" + b"\0" * 4096, lines[2][:50] + b"\0" * 4096 + b"\n", b"\0" * 4096 + b"\n"):
        path.write_bytes(lines[0] + b"\n" + lines[1] + b"\n" + tail)
        assert take(store, path).records == 2


@pytest.mark.parametrize("latency_s", [True, "1e-3", None, [1e-3], 0, -1.0])
def test_what_is_no_latency_costs_its_record_alone(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, latency_s: Any
) -> None:
    good, bad = line(target="cuda"), json.loads(line(tile=2, target="cuda"))
    bad["result"][0] = [latency_s]
    assert take(store, autotvm_log("net.log", [good, json.dumps(bad)])).unreadable == 1
    log = metaschedule_log(tmp_path / "net", [{"kind": "llvm"}] * 2, [1e-3, latency_s])
    assert take(store, log, dialect="metaschedule").unreadable == 1


def test_an_unknown_model_is_no_model(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    texts = ["cuda -keys=cuda,gpu -arch=sm_75 -model=unknown", "cuda -arch=sm_75"]
    assert {Target.parse(text).key for text in texts} == {"cuda-arch_sm_75"}
    assert Target.parse({"kind": "cuda", "arch": "sm_75", "model": "unknown"}).key == "cuda-arch_sm_75"
    assert take(store, autotvm_log("net.log", [line(target=text, tile=n) for n, text in enumerate(texts, 1)])).new == 2
    assert [log.target.key for log in store.list()] == ["cuda-arch_sm_75"]


def test_a_store_of_before_has_such_logs_under_their_old_key(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("net.log", [line(target="cuda -arch=sm_75")])
    take(store, path)
    (log,) = store.list()
    folder = Path(store.url, log.id)
    old = folder.parents[1] / "cuda-model_unknown-arch_sm_75"
    folder.parent.rename(old)
    for target in (None, Target.parse("cuda -arch=sm_75"), Target.parse("cuda -arch=sm_75 -model=unknown")):
        (found,) = store.list(target=target)
        assert found.id == f"autotvm/{old.name}/{folder.name}"
        assert len(read(store, found)) == 1
    assert take(store, path).new == 0
    store.remove(found)
    assert list(store.list()) == []


def test_an_empty_text_in_an_old_module_is_read(tmp_path: Path) -> None:
    """TVM's JSON leaves ``repr_str`` out of a text that is empty."""
    from lorien.dialects.metaschedule.migrate import migrate

    log = legacy_metaschedule.write(tmp_path / "net", records=4)
    line = json.loads((log / "database_workload.json").read_text().splitlines()[0])
    assert b'{"type_key": "runtime.String"}' in base64.b64decode(line[1])
    out = tmp_path / "new"
    out.mkdir()
    report = migrate(log, out)
    assert (report.workloads, report.rebuilt, report.records, report.replayed) == (1, 1, 4, 4), report.reasons


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


POISON: dict[str, Callable[[dict[str, Any]], None]] = {
    "a knob's value nested": lambda row: row["config"]["entity"][0].__setitem__(2, nested(300)),
    "arguments nested": lambda row: row["input"].__setitem__(2, nested(300)),
    "a knob's name no text": lambda row: row["config"]["entity"][0].__setitem__(0, [1]),
    "a number of 400 digits": lambda row: row["result"].__setitem__(3, 10**400),
    "an empty input": lambda row: row.__setitem__("input", []),
    "an input of objects": lambda row: row.__setitem__("input", [{}, {}, {}, {}]),
    "a template that is a list": lambda row: row["input"].__setitem__(1, ["dense"]),
    "a negative extent": lambda row: row["input"][2][0].__setitem__(1, [-1, 10**30]),
    "latencies that are objects": lambda row: row["result"].__setitem__(0, [{}]),
}


@pytest.mark.parametrize("edit", POISON.values(), ids=list(POISON))
def test_a_poisoned_line_costs_itself_alone(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    row = json.loads(line(tile=99, target="cuda"))
    row["input"][1] = "conv2d_NCHWc.x86" if "knob" in str(edit) else row["input"][1]
    edit(row)
    lines = [line([1e-3 * tile], tile=tile, target="cuda") for tile in range(1, 13)]
    path = autotvm_log("net.log", [*lines, json.dumps(row)])
    report = take(store, path)
    assert report.records + report.unreadable == 13
    assert report.records >= 12
    assert committed(store, tmp_path) == {"cuda": 1e-3}
    assert rows(store) >= 12


@pytest.mark.parametrize(
    "said", [{"kind": "llvm", "mattr": [1, "a"]}, {"kind": "llvm", "mcpu": nested(300)}, {"kind": []}]
)
def test_a_poisoned_target_costs_its_line_alone(
    store: LogStore, autotvm_log: MakeLog, line: Line, said: dict[str, Any]
) -> None:
    lines = [line(tile=1, target="cuda"), line(tile=2, target=json.dumps(said))]
    report = take(store, autotvm_log("net.log", lines), split=True)
    assert (report.records, report.unreadable) == (1, 1)


def test_brackets_in_texts_are_no_nesting(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    row = json.loads(line())
    row["config"]["entity"][0][2] = "[" * 10 * MAX_NESTING
    wide = json.loads(line(tile=2))
    wide["config"]["entity"][0][2] = [[1]] * 10 * MAX_NESTING
    deep = json.loads(line(tile=3))
    deep["config"]["entity"][0][2] = nested(MAX_NESTING)
    report = take(store, autotvm_log("net.log", [json.dumps(each) for each in (row, wide, deep)]))
    assert (report.records, report.unreadable) == (2, 1)


def test_digests_take_linear_time(tmp_path: Path) -> None:
    """Once they joined the pieces of a line: 20 s for 200 MB, of 199 KB of gzip."""
    first = autotvm_line().encode() + b"\n"
    seconds = []
    for size in (16 << 20, 128 << 20):
        path = tmp_path / "long.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(first)
            for _ in range(size >> 20):
                file.write(b"a" * (1 << 20))
        started_s = time.process_time()
        content = content_of(path)
        seconds.append(time.process_time() - started_s)
        assert (content.bytes, content.lines_bytes) == (len(first) + size, len(first))
    assert seconds[1] < 24 * seconds[0]  # Quadratic, it is 64 times.
    with pytest.raises(UnreadableLog, match=r"line 2 is longer than 64 MiB, this is no text log\. Fix"):
        take(open_logs(str(tmp_path / "store")), path)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "flip":
        data[len(data) // 2] ^= 4
    elif how == "grown":
        data += data[-200:]
    elif how == "emptied":
        data = bytearray()
    file.write_bytes(data)
    if how == "gone":
        file.unlink()


@pytest.mark.parametrize("how", ["cut", "flip", "grown", "emptied", "gone"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_log_that_was_damaged_in_the_store_is_not_read(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, how: str, suffix: str
) -> None:
    whole = autotvm_log("whole.log", [line(tile=tile, target="cuda") for tile in range(1, 40)])
    path = autotvm_log(f"net.log{suffix}", [])
    data = "".join(line([2e-3], tile=tile, size=32, target="cuda") + "\n" for tile in range(1, 400)).encode()
    path.write_bytes(gzip.compress(data) if suffix else data)
    take(store, whole, path)
    log = next(log for log in store.list() if log.network == "net")
    damage(Path(store.url, log.id, path.name), how)
    with pytest.raises(ChecksumMismatch, match=r"is not the file that was ingested.*Fix"), store.local(log):
        pass
    with open_database(str(tmp_path / "best.db")) as database:
        report = commit(store, database)
        assert (report.logs, report.records, len(report.failed_logs)) == (1, 39, 1)
    features = tmp_path / "features"
    if (how, suffix) == ("cut", ".gz"):
        tables = featurize(store, features, processes=1)
        assert (tables.rows, len(tables.failed_logs)) == (39, 1)
    # To ingest it again mends it, and what was made of it is whole.
    assert take(store, path).new == 0
    assert len(read(store, next(log for log in store.list() if log.network == "net"))) == 399
    if (how, suffix) == ("cut", ".gz"):
        assert featurize(store, features, processes=1).rows == 399


def test_readers_beside_logs_that_grow_see_each_of_them_once(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    """A log that is replaced while it is read is passed over, and its successor is read."""
    lines = {
        name: [line(tile=tile, size=size, target="cuda") for tile in range(1, 40)]
        for size, name in enumerate("abcd", 8)
    }
    for name, own in lines.items():
        take(store, autotvm_log(f"{name}.log", own[:1]))
    errors: list[BaseException] = []
    done = threading.Event()

    def grow() -> None:
        try:
            for length in range(2, 40, 2):
                for name, own in lines.items():
                    take(open_logs(store.url), autotvm_log(f"{name}.log", own[:length]))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=grow)
    writer.start()
    reads = 0
    with open_database(str(tmp_path / "best.db")) as database:
        while not done.is_set() or not reads:
            report = commit(store, database)
            assert report.logs >= 4
            assert report.failed_logs == []
            reads += 1
        writer.join()
        assert errors == []
        assert commit(store, database).records == 4 * 38
    assert len(list(store.list())) == 4


GRAPH_DAMAGE: dict[str, Callable[[Any], None]] = {
    "itself": lambda graph: graph["nodes"][_array(graph)]["data"].append(_array(graph)),
    "a later node": lambda graph: graph["nodes"][_array(graph)]["data"].append(len(graph["nodes"]) - 1),
    "none": lambda graph: graph["nodes"][_array(graph)]["data"].append(10**9),
    "a negative number": lambda graph: graph["nodes"][_array(graph)]["data"].append(-1),
    "a long chain": lambda graph: _chain(graph, 5000),
    "no root": lambda graph: graph.__setitem__("root_index", None),
    "no nodes": lambda graph: graph.__setitem__("nodes", {}),
}


def _array(graph: Any) -> int:
    return next(n for n, node in enumerate(graph["nodes"]) if node["type"] == "ffi.Array" and node.get("data"))


def _chain(graph: Any, length: int) -> None:
    nodes, root = graph["nodes"], graph["root_index"]
    module = nodes[root]
    for _ in range(length):
        nodes.append({"type": "ffi.Array", "data": [len(nodes) - 1]})
    nodes.append(module | {"data": module["data"] | {"global_infos": len(nodes) - 1}})
    graph["root_index"] = len(nodes) - 1


@pytest.mark.parametrize("edit", GRAPH_DAMAGE.values(), ids=list(GRAPH_DAMAGE))
def test_a_module_that_would_bring_tvm_down_costs_its_records_alone(
    store: LogStore, tmp_path: Path, edit: Callable[[Any], None]
) -> None:
    log = metaschedule_log(tmp_path / "net", [{"kind": "llvm"}] * 4, [1e-3] * 4)
    workloads = log / "database_workload.json"
    first = workloads.read_text()
    structural_hash, definition = json.loads(first)
    raw = base64.b64decode(definition)
    graph = json.loads(raw[8:])
    edit(graph)
    text = json.dumps(graph).encode()
    poison = base64.b64encode(len(text).to_bytes(8, "little") + text).decode()
    workloads.write_text(first + json.dumps([structural_hash, poison]) + "\n")
    records = log / "database_tuning_record.json"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[-1][0] = 1
    records.write_text("".join(json.dumps(each) + "\n" for each in lines))
    report = take(store, log, dialect="metaschedule")
    assert (report.records, report.unreadable) == (3, 1)
    assert "the module is damaged" in report.reasons[0]


def test_a_store_that_is_read_only_can_be_read(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    take(store, autotvm_log("net.log", [line()]))
    copy = Path(store.url).with_name("copy")
    shutil.copytree(store.url, copy)
    for path in copy.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    other = open_logs(str(copy))
    assert [len(read(other, log)) for log in other.list()] == [1]


def test_a_latency_that_cannot_be_true_is_in_no_table_and_no_report(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    take(store, autotvm_log("net.log", [line([1e-3], target="cuda"), line([1e-300], tile=2, target="cuda")]))
    report = featurize(store, tmp_path / "features", processes=1)
    assert (report.rows, report.skipped) == (1, 1)
    assert "less than a clock can see" in report.reasons[0]
    page = Report("a page", 0.0, sources=[source_of(store.url, None)])
    gather(page)
    assert [own.best_s for own in page.tally.workloads.values()] == [1e-3]
    assert "less than a clock can see" in page.problems[0]


def test_a_long_name_of_a_network_fits_a_folder(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("net.log", [line(target="cuda")])
    assert take(store, path, network="n" * 1000).new == 1
    (log,) = store.list()
    assert (log.network, len(read(store, log))) == ("n" * 1000, 1)
