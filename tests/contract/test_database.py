"""One suite for every schedule database."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import DATABASES, RACED

from lorien.database import open_database
from lorien.database.base import MAX_ITEM_BYTES, ScheduleDatabase, merge, new_items
from lorien.database.copy import CopyReport, copy
from lorien.errors import BadInput, DatabaseUnavailable, SchemaMismatch
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

GOLDEN = Path(__file__).parents[1] / "golden"
FORK = multiprocessing.get_context("fork")
TARGET = Target.parse("cuda -arch=sm_86")

# The forked children touch nothing but the database, whatever threads other tests have left.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def made(
    latency_s: float | None,
    candidate: int = 0,
    *,
    workload: int = 0,
    target: Target = TARGET,
    build: str = "tvm 0.10.0",
    network: str | None = None,
    dialect: str = "autotvm",
    pad: int = 0,
    variant: str | None = None,
) -> TuningRecord:
    """A record that ran in ``latency_s``, or failed when that is None."""
    measurement = Measurement(Outcome.RUN_ERROR) if latency_s is None else Measurement(Outcome.OK, (latency_s,))
    operator = Workload(dialect, f"dense{workload}", ["dense", [workload]])
    schedule = Candidate([candidate, "x" * pad])
    return TuningRecord(operator, target, schedule, measurement, build, network, variant=variant)


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is not there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/best.db"
    aws: Callable[[str], str] = request.getfixturevalue("aws")
    return f"dynamodb://schedules-{uuid.uuid4().hex}?endpoint_url={aws(request.param)}"


@pytest.fixture
def database(url: str) -> Iterator[ScheduleDatabase]:
    with open_database(url, create=True) as opened:
        yield opened


def kept(database: ScheduleDatabase, workload: int = 0, build: str | None = None) -> list[tuple[str, float | None]]:
    """Keys and latencies stored for a workload, in the order of the database."""
    records = database.best(TARGET, made(1, workload=workload).workload.key, 10_000, build)
    return [(record.key, record.measurement.latency_s) for record in records]


def test_what_is_put_comes_back(database: ScheduleDatabase) -> None:
    workload = Workload("metaschedule", "conv", ["hash", "v1"], definition="module", flop=2e9, networks=("resnet50",))
    record = TuningRecord(
        workload,
        Target.parse({"kind": "llvm", "mcpu": "znver4", "num-cores": 2, "mattr": ["+avx2", "+fma"]}),
        Candidate({"trace": [1, [2.5, None]]}),
        Measurement(Outcome.OK, (3e-3, 1e-3, 2e-3), timestamp_s=1.7e9),
        "tvm 0.27.0.post1",
        "squeezenet",
        "logs/metaschedule/x",
    )
    assert database.put(record)
    (found,) = database.best(record.target, workload.key)
    assert found.key == record.key
    assert (found.measurement, found.candidate, found.target) == (record.measurement, record.candidate, record.target)
    assert (found.build, found.network, found.log) == (record.build, record.network, record.log)
    assert (found.workload.definition, found.workload.flop) == ("module", 2e9)
    assert found.workload.networks == ("resnet50", "squeezenet")


def test_unseen_is_empty(database: ScheduleDatabase) -> None:
    assert database.best(TARGET, "0" * 32) == database.related(TARGET, "0" * 32) == list(database.query()) == []


def test_fastest_first_and_only_the_best(url: str) -> None:
    with open_database(url, create=True, n_best=3) as database:
        entered = [database.put(made(latency_s, i)) for i, latency_s in enumerate((5.0, 3.0, 4.0, 6.0, 1.0))]
        assert entered == [True, True, True, False, True]
        assert [latency_s for _, latency_s in kept(database)] == [1.0, 3.0, 4.0]
        assert len(database.best(TARGET, made(1).workload.key, 2)) == 2


def test_put_is_idempotent_and_the_fastest_measurement_counts(database: ScheduleDatabase) -> None:
    assert [database.put(made(latency_s)) for latency_s in (2.0, 2.0, 3.0, 1.0)] == [True, False, False, True]
    assert kept(database) == [(made(1.0).key, 1.0)]


def test_failures_do_not_enter(database: ScheduleDatabase) -> None:
    assert not database.put(made(None))
    assert list(database.query()) == []


@pytest.mark.parametrize("latency_s", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_latency_is_refused_and_nothing_is_written(database: ScheduleDatabase, latency_s: float) -> None:
    with pytest.raises(BadInput, match="no latency"):
        database.put_many([made(1.0, 1), made(latency_s, 2)])
    assert list(database.query()) == []


def test_empty_build_is_refused(database: ScheduleDatabase) -> None:
    with pytest.raises(BadInput, match="build"):
        database.put(made(1.0, build=""))


def test_builds_are_kept_apart(url: str) -> None:
    with open_database(url, create=True, n_best=2) as database:
        database.put_many(made(float(i), i, build=build) for i in range(1, 5) for build in ("old", "new"))
        assert [latency_s for _, latency_s in kept(database)] == [1.0, 1.0, 2.0, 2.0]
        assert [record.build for record in database.best(TARGET, made(1).workload.key, 9, "new")] == ["new", "new"]


def test_related_targets_of_the_family_take_turns(database: ScheduleDatabase) -> None:
    fast, slow, far = (Target.parse(text) for text in ("cuda -arch=sm_90", "cuda -arch=sm_61", "llvm -mcpu=znver4"))
    for target, base in ((TARGET, 1.0), (fast, 2.0), (slow, 10.0), (far, 3.0)):
        database.put_many(made(base + i, i, target=target) for i in range(3))
    found = database.related(TARGET, made(1).workload.key, 3)
    assert [(record.target, record.measurement.latency_s) for record in found] == [
        (fast, 2.0),
        (slow, 10.0),
        (fast, 3.0),
    ]


def test_query_filters_and_streams_in_order(database: ScheduleDatabase) -> None:
    other = Target.parse("llvm -mcpu=znver4")
    networks = ("even", "odd")
    database.put_many(made(1.0, workload=workload, network=networks[workload % 2]) for workload in range(150))
    database.put(made(2.0, target=other, dialect="metaschedule"))
    assert len(list(database.query())) == 151
    assert len(list(database.query(target=other))) == len(list(database.query(dialect="metaschedule"))) == 1
    assert len(list(database.query(network="odd"))) == 75
    assert len(list(database.query(TARGET, workload="dense14*"))) == 11
    assert len(list(database.query(TARGET, workload="dense14[^2-9]"))) == 2
    assert len(list(database.query(workload="dense7"))) == 1
    assert len(list(database.query(workload=made(1, workload=7).workload.key))) == 1
    found = [(record.target.key, record.workload.key) for record in database.query()]
    assert found == sorted(found)


def test_writing_while_a_query_streams(database: ScheduleDatabase) -> None:
    database.put_many(made(1.0, workload=workload) for workload in range(100))
    for record in database.query():
        assert not database.put(record)


def test_a_network_is_remembered_though_its_record_is_too_slow(url: str) -> None:
    with open_database(url, create=True, n_best=1) as database:
        database.put(made(1.0, 1, network="resnet50"))
        assert not database.put(made(2.0, 2, network="vgg19"))
        (found,) = database.query(network="vgg19")
        assert found.workload.networks == ("resnet50", "vgg19")


def test_an_item_too_large_loses_its_slowest(database: ScheduleDatabase, caplog: pytest.LogCaptureFixture) -> None:
    third = MAX_ITEM_BYTES // 3
    assert database.put_many(made(float(i), i, pad=third) for i in range(1, 5)) == 2
    assert [latency_s for _, latency_s in kept(database)] == [1.0, 2.0]
    assert "do not fit" in caplog.text
    assert not database.put(made(0.5, 9, workload=1, pad=MAX_ITEM_BYTES))
    assert kept(database, workload=1) == []


def test_the_n_best_of_each_variant_stay(url: str) -> None:
    with open_database(url, create=True, n_best=2) as database:
        records = [made(1.0 + i, i, variant=f"NCHW{8 * (1 + i % 3)}c") for i in range(9)]
        assert [database.put(record) for record in reversed(records)] == [True] * 9
        stored = list(database.query())
        assert [(record.variant, record.measurement.latency_s) for record in stored] == [
            ("NCHW8c", 1.0), ("NCHW16c", 2.0), ("NCHW24c", 3.0), ("NCHW8c", 4.0), ("NCHW16c", 5.0), ("NCHW24c", 6.0),
        ]  # fmt: skip
        assert stored == records[:6]
        assert database.best(TARGET, records[0].workload.key) == records[:1]
        assert database.put_many(records) == 0


def test_an_item_too_large_keeps_the_best_of_every_variant(
    database: ScheduleDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    fifth = MAX_ITEM_BYTES // 5
    records = [made(1.0 + i, i, pad=fifth, variant="ab"[i >= 4]) for i in range(8)]
    database.put_many(records)
    assert [record.candidate.schedule[0] for record in database.query()] == [0, 1, 4, 5]
    assert "do not fit" in caplog.text


def test_a_database_of_before_variants_reads_and_learns_them(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.executescript((GOLDEN / "schedules_v1.sql").read_text())
    with open_database(f"sqlite:///{tmp_path}/old.db", create=False) as database:
        first, second, other = old = list(database.query())
        assert [record.key[:8] for record in old] == ["ca450410", "7259d19c", "2bdaf98f"]
        assert {record.variant for record in old} == {None}
        assert database.put_many([replace(first, variant="a"), replace(second, variant="a")]) == 0
        third = replace(first, candidate=Candidate([]), variant="b")
        assert database.put(third)
        found = database.query(workload=first.workload.key)
        assert sorted((r.key, r.variant) for r in found) == sorted(
            [(first.key, "a"), (second.key, "a"), (third.key, "b")]
        )
        assert list(database.query(workload=other.workload.key)) == [other]


def test_stats(database: ScheduleDatabase) -> None:
    database.put_many(made(1.0, i, workload=i % 2, target=TARGET) for i in range(6))
    stats = database.stats()
    assert (stats.targets, stats.workloads, stats.records) == (1, 2, 6)


def test_it_is_there_after_closing(url: str) -> None:
    with open_database(url, create=True, n_best=2) as database:
        database.put(made(1.0))
    with open_database(url, create=False) as database:
        assert database.n_best == 2
        assert kept(database) == [(made(1.0).key, 1.0)]
        database.close()
    with pytest.raises(BadInput, match="keeps the 2 best"):
        open_database(url, n_best=3)


Puts = st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1.0, 2.0, 3.0])), max_size=30)


@given(Puts, st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_rule_does_not_depend_on_the_order(puts: list[tuple[int, float]], random: object, n_best: int) -> None:
    def variant_of(candidate: int, latency_s: float) -> TuningRecord:
        return made(latency_s, candidate, variant=(None, "NCHW8c", "NCHW16c")[candidate % 3])

    def after(order: list[tuple[int, float]]) -> list[tuple[str, float]]:
        item = None
        for candidate, latency_s in order:
            (new,) = new_items([variant_of(candidate, latency_s)])
            item, _ = merge(item, new, n_best)
        return [(entry["key"], entry["latency_s"]) for entry in item.entries] if item else []

    shuffled = list(puts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    fastest = {candidate: min(s for c, s in puts if c == candidate) for candidate, _ in puts}
    of_each = [
        sorted((s, variant_of(candidate, s).key) for candidate, s in fastest.items() if candidate % 3 == variant)[
            :n_best
        ]
        for variant in range(3)
    ]
    exact = sorted(itertools.chain(*of_each))
    assert after(puts) == after(shuffled) == [(key, s) for s, key in exact]


def test_a_copy_is_the_same_and_a_merge_keeps_the_better(url: str, tmp_path: Path) -> None:
    def content(database: ScheduleDatabase) -> list[tuple[object, ...]]:
        # Whole records but for the workload's weight, which is of the logs.
        return [(record, record.workload.networks, record.measurement) for record in database.query()]

    with (
        open_database(url, create=True, n_best=2) as database,
        open_database(f"sqlite:///{tmp_path}/other.db", n_best=2) as other,
    ):
        for workload in range(30):
            database.put_many(made(2.0 + i, i, workload=workload, network=f"net{i}") for i in range(2))
        assert copy(database, other) == CopyReport(60, 60)
        assert content(other) == content(database)
        other.put(made(1.0, 5, workload=7))
        assert copy(other, database) == CopyReport(60, 1)
        assert content(database) == content(other)
        assert kept(database, 7) == [(made(1.0, 5, workload=7).key, 1.0), (made(2.0, 0, workload=7).key, 2.0)]


def _write(url: str, worker: int, count: int) -> None:
    with open_database(url, create=True, n_best=5) as database:
        for i in range(count):
            database.put(made(1.0 + (i * 8 + worker) % 97, i * 8 + worker, workload=i % 3))


def _expected(workload: int, count: int) -> list[tuple[str, float | None]]:
    ids = [i * 8 + worker for i in range(count) for worker in range(8) if i % 3 == workload]
    records = [made(1.0 + id_ % 97, id_, workload=workload) for id_ in ids]
    ranked = sorted((record.measurement.latency_s or 0.0, record.key) for record in records)
    return [(key, latency_s) for latency_s, key in ranked[:5]]


@RACED
def test_eight_processes_leave_exactly_the_best(url: str) -> None:
    # The file does not exist yet: they race for making it, too.
    writers = [FORK.Process(target=_write, args=(url, worker, 30)) for worker in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    with open_database(url) as database:
        for workload in range(3):
            assert kept(database, workload) == _expected(workload, 30)


@RACED
def test_threads_share_a_database(url: str) -> None:
    with open_database(url, create=True, n_best=5) as database:

        def write(worker: int) -> None:
            for i in range(30):
                database.put(made(1.0 + (i * 8 + worker) % 97, i * 8 + worker, workload=i % 3))
                kept(database)

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [kept(database, workload) for workload in range(3)] == [_expected(workload, 30) for workload in range(3)]


def _put_in_child(database: ScheduleDatabase, worker: int) -> None:
    for i in range(20):
        database.put(made(1.0 + i, 100 * worker + i, workload=worker))


def test_an_open_database_survives_forks(database: ScheduleDatabase) -> None:
    database.put(made(1.0, workload=99))
    children = [FORK.Process(target=_put_in_child, args=(database, worker)) for worker in range(4)]
    for child in children:
        child.start()
    _put_in_child(database, 4)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert [len(kept(database, worker)) for worker in (0, 1, 2, 3, 4, 99)] == [8, 8, 8, 8, 8, 1]


def _write_and_tell(url: str, worker: int, told: int) -> None:
    with open_database(url, create=True) as database:
        for i in range(1_000_000):
            database.put(made(1.0, i, workload=worker * 1_000_000 + i))
            os.write(told, bytes([worker]))


@RACED
def test_kill_9_loses_no_acknowledged_record(url: str) -> None:
    read, write = os.pipe()
    writers = [FORK.Process(target=_write_and_tell, args=(url, worker, write)) for worker in range(3)]
    for writer in writers:
        writer.start()
    os.close(write)
    heard = b""
    while any(heard.count(worker) < 20 for worker in range(3)):
        heard += os.read(read, 4096)
    for writer in writers:
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
    while rest := os.read(read, 4096):
        heard += rest
    os.close(read)
    with open_database(url) as database:
        for worker in range(3):
            for i in range(heard.count(worker)):
                assert len(kept(database, worker * 1_000_000 + i)) == 1


# What only SQLite can meet.


@pytest.mark.parametrize("text", ["redis://x", "dynamo:///x"])
def test_unknown_scheme_names_the_known(text: str) -> None:
    with pytest.raises(BadInput, match=r"known: .*sqlite"):
        open_database(text)


def test_a_plain_path_is_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("a.db", "sqlite:///b.db", f"sqlite:///{tmp_path}/c.db"):
        open_database(text).close()
    assert {path.name for path in tmp_path.glob("*.db")} == {"a.db", "b.db", "c.db"}
    with pytest.raises(BadInput, match="sqlite:///relative"):
        open_database("sqlite://d.db")
    with pytest.raises(BadInput, match="no folder"):
        open_database("missing/d.db")
    with pytest.raises(BadInput, match="lorien commit"):
        open_database("d.db", create=False)
    with pytest.raises(BadInput, match="at least one"):
        open_database("d.db", n_best=0)
    assert not (tmp_path / "d.db").exists()


def test_a_file_that_is_not_sqlite_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(BadInput, match="no SQLite database"):
        open_database(str(path))
    assert path.read_text() == "not a database " * 100


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(BadInput, match="of another program"):
        open_database(str(path))
    assert path.read_bytes() == before


def test_an_empty_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "best.db").touch()
    with pytest.raises(BadInput, match="is empty"):
        open_database(str(tmp_path / "best.db"))


def test_many_make_the_same_database(tmp_path: Path) -> None:
    url = str(tmp_path / "best.db")
    for _ in range(3):
        makers = [FORK.Process(target=_write, args=(url, worker, 1)) for worker in range(8)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        assert [maker.exitcode for maker in makers] == [0] * 8
        assert [path.name for path in tmp_path.iterdir()] == ["best.db"]
        (tmp_path / "best.db").unlink()


def _change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize(("schema", "fix"), [(0, "lorien commit --logs"), (9, "pip install --upgrade")])
def test_another_schema_is_refused(tmp_path: Path, schema: int, fix: str) -> None:
    path = tmp_path / "best.db"
    open_database(str(path)).close()
    _change(path, f"PRAGMA user_version = {schema}")
    with pytest.raises(SchemaMismatch, match=rf"schema {schema}.*reads 1.*Fix: {fix}"):
        open_database(str(path))


def test_a_failed_read_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "best.db"
    with open_database(str(path)) as database:
        database.put(made(1.0, 1))
        _change(path, "UPDATE item SET records = ?", "[{")
        with pytest.raises(DatabaseUnavailable, match="damaged"):
            database.put(made(2.0, 2))
        with pytest.raises(DatabaseUnavailable, match="damaged"):
            database.best(TARGET, made(1).workload.key)
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT records FROM item").fetchall() == [("[{",)]
        connection.close()


def test_a_lock_that_stays_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorien.database.sqlite.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "best.db"
    with open_database(str(path)) as database:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match=r"locked\. Nothing was changed"):
            database.put(made(1.0))
        assert database.best(TARGET, made(1).workload.key) == []
        other.close()
        assert database.put(made(1.0))


def test_what_is_stored_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "best.db"
    with open_database(str(path)) as database:
        database.put(made(1.0))
    connection = sqlite3.connect(path)
    ((records,),) = connection.execute("SELECT records FROM item").fetchall()
    connection.close()
    assert orjson.loads(records)[0]["latency_s"] == 1.0
