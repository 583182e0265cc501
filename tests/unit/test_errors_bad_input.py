"""Bad input at the stores: a clear error that says what to do, and nothing lost or half-written."""

from __future__ import annotations

import gzip
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorien.database import open_database
from lorien.dialects import open_dialect
from lorien.errors import BadInput, SchemaMismatch, UnreadableLog
from lorien.logs import open_logs
from lorien.logs.base import LogStore
from lorien.logs.ingest import ingest
from lorien.target import Target

AUTOTVM = open_dialect("autotvm")
DEVICE = Target.parse("x86_i7")
MakeLog = Callable[..., Path]
Line = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return open_logs(str(tmp_path / "store"))


def _empty(path: Path) -> None:
    path.mkdir()


def _binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def _metaschedule(path: Path) -> None:
    path.mkdir()
    (path / "database_workload.json").write_text('["hash", "module"]\n')
    (path / "database_tuning_record.json").write_text("[0, [[[], []], [0.1], {}, []]]\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (_empty, "holds no autotvm log"),
        (_binary, "holds no autotvm log"),
        (lambda path: path.write_text(""), "holds no autotvm log"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08junk"), "holds no autotvm log"),
        (_metaschedule, r"looks like metaschedule.*Fix: --dialect"),
    ],
    ids=["missing", "empty folder", "binary", "empty file", "junk gzip", "another dialect's"],
)
def test_what_is_no_log_is_told(store: LogStore, tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "x.log")
    with pytest.raises(UnreadableLog, match=message):
        ingest([tmp_path / "x.log"], store, dialect=AUTOTVM)
    assert list(store.list()) == []


def test_a_missing_path_among_others_stores_nothing(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("x.log", [line()])
    with pytest.raises(UnreadableLog, match="does not exist"):
        ingest([path, path.with_name("y.log")], store, dialect=AUTOTVM)
    assert list(store.list()) == []


def test_a_log_without_one_readable_record_is_refused(store: LogStore, autotvm_log: MakeLog, line: Line) -> None:
    path = autotvm_log("x.log", [line([float("nan")]), line([-1.0], tile=2), line([0.0], tile=4)])
    with pytest.raises(UnreadableLog, match="no readable record"):
        ingest([path], store, dialect=AUTOTVM, target=DEVICE)
    assert list(store.list()) == []


def test_a_log_cut_short_gives_its_whole_lines(
    store: LogStore, autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    whole = autotvm_log("x.log", [line(tile=tile) for tile in range(200)]).read_bytes()
    path = tmp_path / "cut.log.gz"
    path.write_bytes(gzip.compress(whole)[:-40])
    report = ingest([path], store, dialect=AUTOTVM, target=DEVICE)
    assert 100 < report.records < 200
    assert report.unreadable == 1
    # The whole one, once it is there, takes the place of the one cut short.
    path.write_bytes(gzip.compress(whole))
    assert ingest([path], store, dialect=AUTOTVM, target=DEVICE).new == 200 - report.records
    assert [log.records for log in store.list()] == [200]


def test_a_database_that_is_none_or_newer_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "best.db"
    path.write_text("notes, and no database" * 100)
    with pytest.raises(BadInput, match=r"no SQLite database\. Fix"):
        open_database(f"sqlite:///{path}")
    path.unlink()
    open_database(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaMismatch, match="Fix"):
        open_database(f"sqlite:///{path}")
    assert path.read_bytes() == before


# A limit on the size of files is what a full disk looks like to the process that writes; it cannot be raised again, so
# a child takes it on.
_WITHOUT_ROOM = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from lorien.database import open_database
from lorien.dialects import open_dialect
from lorien.errors import DatabaseUnavailable, StoreUnavailable
from lorien.logs import open_logs
from lorien.logs.commit import commit
from lorien.logs.ingest import ingest
from lorien.target import Target
log, store, full, database = sys.argv[1:]
try:
    ingest([Path(log)], open_logs(store), dialect=open_dialect("autotvm"), target=Target.parse("x86_i7"))
except StoreUnavailable as error:
    assert "Fix" in str(error) and not list(open_logs(store).list())
else:
    sys.exit("the log was stored")
try:
    with open_database(database) as opened:
        commit(open_logs(full), opened)
except DatabaseUnavailable as error:
    assert "What was put before stays" in str(error) and "run again" in str(error)
else:
    sys.exit("the schedules were committed")
"""


def test_a_full_disk_leaves_nothing_half_written(autotvm_log: MakeLog, line: Line, tmp_path: Path) -> None:
    path = autotvm_log("x.log", [line(tile=tile, size=size) for size in range(60) for tile in range(16)])
    assert path.stat().st_size > 200_000
    store, full, database = tmp_path / "store", tmp_path / "full", tmp_path / "best.db"
    ingest([path], open_logs(str(full)), dialect=AUTOTVM, target=DEVICE)
    child = subprocess.run(
        [sys.executable, "-c", _WITHOUT_ROOM, str(path), str(store), str(full), str(database)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    assert [file for file in store.rglob("*") if file.is_file()] == []
    with open_database(str(database)) as opened:
        assert opened.stats().records == 0


def test_a_disk_that_fills_up_during_a_commit_keeps_what_was_committed(
    autotvm_log: MakeLog, line: Line, tmp_path: Path
) -> None:
    logs, database = tmp_path / "logs", tmp_path / "best.db"
    for network in range(6):
        lines = [line([1e-3 * tile], tile=tile, size=20 * network + size) for size in range(20) for tile in range(1, 9)]
        ingest([autotvm_log(f"net{network}.log", lines)], open_logs(str(logs)), dialect=AUTOTVM, target=DEVICE)
    program = Path(sys.executable).with_name("lorien")
    command = [program, "commit", "--logs", str(logs), "--db", f"sqlite:///{database}", "--json"]
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 300 && exec "$@"', "bash", *command], capture_output=True, text=True
    )
    assert full.returncode == 1
    said = " ".join(full.stderr.split())
    assert "What was put before stays; this request changed nothing. Fix: see that the disk has room" in said
    assert said.endswith("run again")
    with open_database(str(database)) as opened:
        assert 0 < opened.stats().records < 6 * 20 * 8
        kept = list(opened.query())
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    with open_database(str(database)) as opened:
        found = list(opened.query())
    assert len(found) == 6 * 20 * 8
    assert {record.key for record in kept} < {record.key for record in found}
