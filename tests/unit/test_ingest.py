"""Logs into the store and schedules into the database, with real AutoTVM logs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorien.database import open_database
from lorien.dialects import open_dialect
from lorien.errors import BadInput, UnreadableLog
from lorien.logs import open_logs
from lorien.logs.base import LogStore
from lorien.logs.commit import commit
from lorien.logs.ingest import IngestReport, ingest
from lorien.target import Target

AUTOTVM = open_dialect("autotvm")
DEVICE = Target.parse("x86_i7")
MakeLog = Callable[..., Path]
Line = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return open_logs(str(tmp_path / "store"))


def take(store: LogStore, *paths: Path, target: Target | None = DEVICE, network: str | None = None) -> IngestReport:
    return ingest(paths, store, dialect=AUTOTVM, target=target, network=network)


def test_counts(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    lines = [
        line(tile=1),
        line(tile=2),
        line(tile=4, size=128),
        line([1e9], tile=8, error=4),
        "{",
        line([0.0], tile=16),
    ]
    report = take(store, autotvm_log("vgg.log", lines))
    assert (report.records, report.failed, report.unreadable, report.workloads, report.new) == (4, 1, 2, 2, 4)
    assert len(report.reasons) == 2
    (log,) = store.list()
    assert report.logs == [log.id]
    assert (log.dialect, log.target, log.network) == ("autotvm", DEVICE, "vgg")
    assert (log.records, log.failed, log.unreadable, log.workloads) == (4, 1, 2, 2)
    assert (log.started_s, log.ended_s) == (1680553636.0, 1680553643.0)


def test_the_stored_log_reads_like_the_first(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("vgg.log", [line(tile=tile) for tile in range(1, 9)])
    take(store, path)
    path.unlink()
    (log,) = store.list()
    with store.local(log) as local:
        again = ingest([local], store, dialect=AUTOTVM)
    assert (again.records, again.new, again.logs) == (8, 0, [log.id])


def test_twice_adds_nothing_whatever_the_name_or_compression(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    path = autotvm_log("vgg.log", [line(tile=1), line(tile=2)])
    copy = tmp_path / "copy.log.gz"
    copy.write_bytes(gzip.compress(path.read_bytes()))
    assert [take(store, each).new for each in (path, path, copy)] == [2, 0, 0]
    assert take(store, path, path).records == 2
    assert len(list(store.list())) == 1


def test_the_build_is_told_later(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("vgg.log", [line(tile=1), line(tile=2)])
    take(store, path)
    for build in ("tvm 0.9.0", "tvm 0.10.0", None):
        assert ingest([path], store, dialect=AUTOTVM, target=DEVICE, build=build).new == 0
        # What was told first stays: only the unknown is filled in.
        (log,) = store.list()
        assert (log.build, log.records) == ("tvm 0.9.0", 2)


def test_the_build_of_the_store_s_own_copy_is_told(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("vgg.log", [line(tile=1), line(tile=2)])
    take(store, path)
    path.unlink()
    (log,) = store.list()
    with store.local(log) as local:
        again = ingest([local], store, dialect=AUTOTVM, build="tvm 0.9.0")
        assert (again.records, again.new, local.exists()) == (2, 0, True)
    assert [log.build for log in store.list()] == ["tvm 0.9.0"]


def test_the_same_log_of_another_device_is_another_log(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("vgg.log", [line()])
    assert [take(store, path, target=target).new for target in (DEVICE, Target.parse("x86_i5"))] == [1, 1]


@pytest.mark.parametrize("half", ["", '{"input": ["llvm'])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_log_that_grew_replaces_what_it_was(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, half: str, compressed: bool
) -> None:
    lines = [line(tile=tile) for tile in range(1, 6)]
    path = autotvm_log("vgg.log", lines[:3])
    with path.open("a") as file:
        file.write(half)
    assert take(store, path).new == 3
    other = autotvm_log("resnet.log", [line(tile=9)])
    take(store, other)
    path = autotvm_log("vgg.log", lines)
    if compressed:
        path = tmp_path / "vgg.log.gz"
        path.write_bytes(gzip.compress((tmp_path / "vgg.log").read_bytes()))
    assert take(store, path).new == 2
    assert sorted(log.records for log in store.list()) == [1, 5]


def test_a_log_that_was_cut_by_a_crash_of_the_store_is_tidied(
    store: LogStore, autotvm_log: MakeLog, line: Line
) -> None:
    """Killed between publishing the longer log and removing the shorter: the next time removes it."""
    lines = [line(tile=tile) for tile in range(1, 6)]
    short = autotvm_log("vgg.log", lines[:3])
    take(store, short)
    (old,) = store.list()
    with store.local(old) as path:
        native = path.read_bytes()
    long = autotvm_log("vgg.log", lines)
    take(store, long)
    short.write_bytes(native)
    assert store.publish(old, [short])
    assert take(store, autotvm_log("vgg.log", lines)).new == 0
    assert [log.records for log in store.list()] == [5]


def test_a_sidecar_tells_what_the_log_does_not(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("run/x.log", [line()])
    sidecar = {
        "target": {"kind": "llvm", "model": "i7"},
        "network": "resnet50",
        "framework": "tvm 0.9",
        "host": "a PC",
        "tasks": [{"task": "dense", "weight": 3, "records": 64}],
    }
    (path.parent / "lorien.json").write_text(json.dumps(sidecar))
    take(store, path.parent, target=None)
    (log,) = store.list()
    assert (log.target.key, log.network, log.build, log.host) == ("llvm-model_i7", "resnet50", "tvm 0.9", "a PC")
    assert log.info.weights == {"dense": 3.0}
    # What the user says goes first.
    take(store, path, target=Target.parse("x86_i5"), network="mine")
    assert next((log.target.key, log.network) for log in store.list()) == ("llvm-model_i5", "mine")


@pytest.mark.parametrize("text", ["{", "[1]", '{"target": {"kind": "toaster"}}', '{"tasks": [{"weight": 1}]}'])
def test_a_damaged_sidecar_is_refused(store: LogStore, autotvm_log: MakeLog, line: Line, text: str) -> None:
    path = autotvm_log("run/x.log", [line()])
    (path.parent / "lorien.json").write_text(text)
    with pytest.raises(BadInput, match=r"lorien\.json.*Fix"):
        take(store, path)
    assert list(store.list()) == []


def test_the_log_tells_its_target_when_nobody_else_does(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    take(store, autotvm_log("vgg.log", [line(target="llvm -mcpu=core-avx2")]), target=None)
    assert [log.target.key for log in store.list()] == ["llvm-mcpu_core-avx2"]


def test_a_log_of_several_targets_needs_one_named(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("v100.log", [line(target="cuda -arch=sm_70"), line(target="cuda -arch=sm_75", tile=2)])
    with pytest.raises(BadInput, match=r"2 targets: cuda-arch_sm_70, cuda-arch_sm_75\. Fix.*--target"):
        take(store, path, target=None)
    assert list(store.list()) == []
    assert take(store, path, target=Target.parse("cuda -arch=sm_70")).new == 2


def test_a_log_of_several_targets_is_split(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    old, new = "cuda -arch=sm_70", "cuda -arch=sm_75"
    lines = ["cut", line(target=new), line(target=old), "cut", line(target=old, tile=2)]
    path = autotvm_log("v100.log", lines)
    report = ingest([path], store, dialect=AUTOTVM, split=True)
    assert (report.records, report.new, report.unreadable) == (3, 3, 2)
    logs = list(store.list())
    assert [(log.target.key, log.records, log.network) for log in logs] == [
        ("cuda-arch_sm_70", 2, "v100"),
        ("cuda-arch_sm_75", 1, "v100"),
    ]
    with store.local(logs[0]) as stored:
        assert stored.read_text().splitlines() == lines[2:]
    assert ingest([path], store, dialect=AUTOTVM, split=True).new == 0
    with pytest.raises(BadInput, match=r"--split.*Fix: leave out one"):
        ingest([path], store, dialect=AUTOTVM, split=True, target=DEVICE)


def test_folders_are_searched_and_progress_is_told(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    autotvm_log("runs/a/one.log", [line(tile=1)])
    autotvm_log("runs/b/two.json", [line(tile=2)])
    folder = autotvm_log("runs/c/notes.txt", ["no log at all"]).parents[1]
    told: list[tuple[int, int, int]] = []
    report = ingest([folder], store, dialect=AUTOTVM, target=DEVICE, progress=lambda *numbers: told.append(numbers))
    assert (report.new, len(report.logs)) == (2, 2)
    assert told == [(0, 2, 0), (1, 2, 1)]
    assert sorted(str(log.network) for log in store.list()) == ["one", "two"]


def test_commit_keeps_the_best_and_says_where_from(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    lines = [line([1e-3 * (1 + tile * 37 % 50)], tile=tile) for tile in range(1, 50)]
    lines += [line([1e9], tile=64, error=4), line([1e-3], tile=10)]
    take(store, autotvm_log("vgg.log", lines))
    with open_database(str(tmp_path / "best.db"), n_best=3) as database:
        report = commit(store, database)
        assert (report.logs, report.records, report.committed, report.unreadable) == (1, 51, 3, 0)
        (log,) = store.list()
        found = list(database.query(network="vgg"))
        assert [record.measurement.latency_s for record in found] == [1e-3, 2e-3, 3e-3]
        assert {record.log for record in found} == {f"{store.url}/{log.id}"}
        assert commit(store, database, dialect="autotvm", target=DEVICE).committed == 0


@pytest.mark.parametrize("latency_s", [1e-300, 5e-324, 1e-12, 9e-10])
def test_commit_leaves_out_what_cannot_be_true_and_says_so(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path, latency_s: float
) -> None:
    lines = [line([1e-3 * tile], tile=tile) for tile in (1, 2, 4, 8)]
    take(store, autotvm_log("vgg.log", [*lines, line([latency_s], tile=64), line([latency_s], tile=32)]))
    with open_database(str(tmp_path / "best.db"), n_best=3) as database:
        report = commit(store, database)
        assert (report.records, report.committed, report.implausible) == (6, 3, 2)
        assert [record.measurement.latency_s for record in database.query()] == [1e-3, 2e-3, 4e-3]
    (log,) = store.list()
    assert all(why.startswith(f"{log.id}: ") and "less than a clock can see" in why for why in report.doubts)


def test_commit_leaves_out_a_rate_that_no_device_reaches(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    # 2 * 1 * 200,000^2 operations in 1 us are 8e16 in a second.
    take(store, autotvm_log("vgg.log", [line([1e-6], size=200_000), line([1e-3], tile=2, size=200_000)]))
    with open_database(str(tmp_path / "best.db")) as database:
        report = commit(store, database)
        assert (report.committed, report.implausible) == (1, 1)
        assert "more than any llvm device computes" in report.doubts[0]


def test_commit_of_nothing_is_an_error(store: LogStore, tmp_path: Path) -> None:
    with open_database(str(tmp_path / "best.db")) as database, pytest.raises(BadInput, match="lorien ingest"):
        commit(store, database)


def test_what_holds_no_log_is_refused(store: LogStore, tmp_path: Path) -> None:
    with pytest.raises(UnreadableLog, match="does not exist"):
        take(store, tmp_path / "missing")
