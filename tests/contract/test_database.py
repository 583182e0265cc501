"""One suite for every schedule database."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import DATABASES, RACED

from lorien.database import open_database
from lorien.database.base import (
    DatabaseStats,
    EditableDatabase,
    Removal,
    ScheduleDatabase,
    Selection,
    merge,
    new_items,
)
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


def test_best_finds_what_an_older_lorien_put_under_another_key(database: ScheduleDatabase) -> None:
    """It took TVM's ``-model=unknown`` for a model."""
    old = Target("cuda", (("arch", "sm_86"), ("model", "unknown")))
    assert old.key in TARGET.past_keys
    database.put_many([made(2e-3), made(1e-3, 1, target=old)])
    assert [record.measurement.latency_s for record in database.best(TARGET, made(1.0).workload.key, 2)] == [1e-3, 2e-3]


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


CPU = Target.parse("llvm -mcpu=znver4")


@pytest.mark.parametrize(
    ("latency_s", "flop", "target", "enters"),
    [
        (1e-300, None, TARGET, False),
        (9.9e-10, None, TARGET, False),
        (1e-9, None, TARGET, True),
        (1e-6, 1.01e12, TARGET, False),
        (1e-6, 0.99e12, TARGET, True),
        (1e-6, 1.01e10, CPU, False),
        (1e-6, 0.99e10, CPU, True),
    ],
)
def test_a_latency_that_cannot_be_true_does_not_enter(
    tmp_path: Path, latency_s: float, flop: float | None, target: Target, enters: bool, caplog: pytest.LogCaptureFixture
) -> None:
    record = made(latency_s, target=target)
    record = replace(record, workload=replace(record.workload, flop=flop))
    with open_database(str(tmp_path / "best.db")) as database:
        assert database.put(record) is enters
        assert len(list(database.query())) == enters
    assert ("is not stored" in caplog.text) is not enters


def test_a_latency_that_an_older_lorien_let_in_is_not_served(
    database: ScheduleDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record, other = made(2.0, 1), replace(made(3.0, 2), target=Target.parse("cuda -arch=sm_90"))
    with monkeypatch.context() as older:
        older.setattr("lorien.database.base.doubt_of", lambda _: "")
        older.setattr("lorien.database.base.doubt", lambda *_: "")
        database.put_many([made(1e-300, 3), record, replace(made(1e-11, 4), target=other.target), other])
        assert len(list(database.query())) == 4
    assert database.best(TARGET, record.workload.key, 9) == [record]
    assert database.related(TARGET, record.workload.key, 9) == [other]
    assert list(database.query()) == [record, other]
    with open_database(f"sqlite:///{tmp_path}/copy.db") as clean:
        assert copy(database, clean) == CopyReport(2, 2)
    assert database.put(made(4.0, 5))  # and the next write takes it out
    assert [entry for entry, _ in kept(database)] == [record.key, made(4.0, 5).key]


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


def test_nothing_is_too_large(database: ScheduleDatabase) -> None:
    # DynamoDB takes 400 KB in an item. Random text, which does not shrink.
    large = [(4.0 - i, random.Random(i).randbytes(150_000).hex()) for i in range(3)]
    records = [replace(made(s), candidate=Candidate([text])) for s, text in large]
    assert database.put(made(9.0))
    assert [database.put(record) for record in records] == [True] * 3
    assert kept(database) == [(record.key, record.measurement.latency_s) for record in [*reversed(records), made(9.0)]]
    assert list(database.query()) == [*reversed(records), made(9.0)]
    assert database.stats().records == 4


def defined(latency_s: float, definition: str | None, candidate: int = 0, **other: Any) -> TuningRecord:
    record = made(latency_s, candidate, **other)
    return replace(record, workload=replace(record.workload, definition=definition))


@pytest.mark.parametrize("size", [20_000, 450_000, 1_500_000])
def test_a_definition_of_any_size_is_kept(database: ScheduleDatabase, size: int) -> None:
    text = random.Random(size).randbytes(size // 2).hex()
    assert database.put(defined(2.0, text))
    assert database.put(made(1.0, 1))  # of a reader that has no definition
    assert [record.workload.definition for record in database.best(TARGET, made(1).workload.key, 9)] == [text] * 2
    assert [record.workload.definition for record in database.query()] == [text] * 2
    assert not database.put(defined(2.0, text))
    assert not database.put(made(2.0))


def test_a_definition_is_learned_though_no_schedule_enters(database: ScheduleDatabase) -> None:
    database.put(made(1.0))
    assert not database.put(defined(1.0, "module"))
    (found,) = database.query()
    assert found.workload.definition == "module"


def test_builds_keep_definitions_of_their_own(database: ScheduleDatabase) -> None:
    database.put_many(defined(1.0, f"module of {build}", build=build) for build in ("old", "new"))
    found = {record.build: record.workload.definition for record in database.query()}
    assert found == {"old": "module of old", "new": "module of new"}


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


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of schema 1, in which each item held its definition."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((GOLDEN / "schedules_v1.sql").read_text())
    return path


def rows_of(path: Path, select: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(select).fetchall()


def test_a_file_of_schema_1_is_read_as_it_is_and_upgraded_by_the_first_write(old: Path) -> None:
    with open_database(str(old), create=False) as database:
        before = list(database.query())
        assert [record.workload.definition for record in before] == [None, None, "module"]
        assert database.best(before[2].target, before[2].workload.key) == before[2:]
        assert database.stats().records == 3
        assert rows_of(old, "PRAGMA user_version") == [(1,)]
        with closing(sqlite3.connect(old)) as connection:  # an older Lorien, which has it open
            assert database.put(made(1.0))
            assert rows_of(old, "PRAGMA user_version") == [(2,)]
            with pytest.raises(sqlite3.OperationalError, match="has 11 columns but 10 values"):
                connection.execute("INSERT OR REPLACE INTO item VALUES (?,?,?,?,?,?,?,?,?,?)", "0123456789")
        after = [record for record in database.query() if record.build != made(1).build or record.target != TARGET]
        assert after == before
        assert [record.workload.definition for record in after] == [None, None, "module"]
    assert "module" not in str(rows_of(old, "SELECT workload FROM item"))


def _put_in_old(path: str, worker: int) -> None:
    with open_database(path, create=False) as database:
        assert database.put(made(1.0, workload=worker))
        assert [record.workload.definition for record in database.query(dialect="metaschedule")] == ["module"]


def test_many_upgrade_the_same_file(old: Path) -> None:
    writers = [FORK.Process(target=_put_in_old, args=(str(old), worker)) for worker in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert rows_of(old, "SELECT count(*) FROM item") == [(10,)]


def test_an_open_reader_sees_the_upgrade_of_another(old: Path) -> None:
    with open_database(str(old), create=False) as reader, open_database(str(old)) as writer:
        before = list(reader.query())
        writer.put(made(1.0))
        assert [record.workload.definition for record in reader.query(dialect="metaschedule")] == ["module"]
        assert len(list(reader.query())) == len(before) + 1


def test_an_item_of_schema_1_that_is_damaged_stays_as_it_is(old: Path) -> None:
    _change(old, "UPDATE item SET workload = ? WHERE dialect = 'autotvm'", "{")
    with open_database(str(old), create=False) as database:
        assert database.put(made(1.0))
        with pytest.raises(DatabaseUnavailable, match="damaged"):
            list(database.query(dialect="autotvm", target=Target.parse("llvm -mcpu=core-avx2")))
        assert len(list(database.query(dialect="metaschedule"))) == 1
    assert rows_of(old, "SELECT workload FROM item WHERE build = 'tvm 0.10.0' AND target_key LIKE 'llvm%'") == [("{",)]


# A limit on the size of files is what a full disk looks like to the process that writes.
_UPGRADE_WITHOUT_ROOM = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from lorien.database import open_database
from lorien.errors import DatabaseUnavailable
with open_database(sys.argv[1]) as database:
    (record,) = database.query(dialect="metaschedule")
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    try:
        database.put(record)
    except DatabaseUnavailable as error:
        assert "this request changed nothing" in str(error), error
    else:
        sys.exit("it was written")
"""


def test_an_upgrade_on_a_full_disk_changes_nothing(old: Path) -> None:
    text = random.Random(0).randbytes(100_000).hex()
    workload = orjson.loads(rows_of(old, "SELECT workload FROM item WHERE dialect = 'metaschedule'")[0][0])
    changed = orjson.dumps(workload | {"definition": text}).decode()
    _change(old, "UPDATE item SET workload = ? WHERE dialect = 'metaschedule'", changed)
    done = subprocess.run([sys.executable, "-c", _UPGRADE_WITHOUT_ROOM, str(old)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rows_of(old, "PRAGMA user_version") == [(1,)]
    with open_database(str(old), create=False) as database:
        database.put(made(1.0))
        (record,) = database.query(dialect="metaschedule")
        assert record.workload.definition == text


def test_a_definition_is_stored_once_for_all_targets_and_builds(tmp_path: Path) -> None:
    path = tmp_path / "best.db"
    text = "def main(a: T.Buffer): ...\n" * 20_000
    with open_database(str(path)) as database:
        for target in (TARGET, Target.parse("cuda -arch=sm_90")):
            for build in ("old", "new"):
                database.put(defined(1.0, text, target=target, build=build))
        assert [record.workload.definition for record in database.query()] == [text] * 4
    assert rows_of(path, "SELECT count(*), max(length(packed)) < 20000 FROM definition") == [(1, 1)]


def test_a_damaged_definition_is_told_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "best.db"
    with open_database(str(path)) as database:
        database.put(defined(1.0, "module"))
        for value in (b"no zlib", b"x\x9c\xcbM"):
            _change(path, "UPDATE definition SET packed = ?", value)
            with pytest.raises(DatabaseUnavailable, match=r"damaged.*Fix: the file is damaged: restore a copy"):
                database.best(TARGET, made(1).workload.key)
        _change(path, "DELETE FROM definition")
        with pytest.raises(DatabaseUnavailable, match=r"definition .* is missing"):
            list(database.query())


# What only DynamoDB can meet.


@pytest.fixture(params=[name for name in DATABASES if name != "sqlite"])
def dynamo(request: pytest.FixtureRequest, aws: Callable[[str], str]) -> Iterator[tuple[str, Any, Any]]:
    """The URL of a table that keeps two, and what reads and writes its rows."""
    name, endpoint = f"schedules-{uuid.uuid4().hex}", aws(request.param)
    client = boto3.client("dynamodb", endpoint_url=endpoint)
    url = f"dynamodb://{name}?endpoint_url={endpoint}"
    open_database(url, create=True, n_best=2).close()
    yield url, partial(client.scan, TableName=name, ConsistentRead=True), partial(client.put_item, TableName=name)
    client.close()


def test_a_table_of_schema_1_is_read_as_it_is_and_upgraded_by_the_first_write(dynamo: tuple[str, Any, Any]) -> None:
    url, scan, put = dynamo
    record = defined(1.0, "module", 1)
    (item,) = new_items([record])
    values = {
        "target_key": item.target.key,
        "item_key": f"{item.workload.key}#{item.build}",
        "family_workload": f"{item.target.family}#{item.workload.key}",
        "version": "1",
        "target": orjson.dumps(item.target.to_json()).decode(),
        "workload": orjson.dumps(item.workload.to_json()).decode(),
        "records": orjson.dumps(item.entries).decode(),
    }
    about = {"target_key": "lorien", "item_key": "about", "schema": "1", "n_best": "2"}
    for row in (values, about, {"target_key": "lorien", "item_key": f"target#{TARGET.key}"}):
        put(Item={name: {"S": value} for name, value in row.items()})

    def stored(*key: str) -> dict[str, str]:
        rows = [{name: value["S"] for name, value in row.items()} for row in scan()["Items"]]
        return next(row for row in rows if (row["target_key"], row["item_key"]) == key)

    with open_database(url) as database:
        assert list(database.query()) == database.best(TARGET, record.workload.key) == [record]
        assert [found.workload.definition for found in database.query()] == ["module"]
        assert not database.put(record)
        assert database.put(made(2.0, 2))
        assert [found.workload.definition for found in database.query()] == ["module"] * 2
    assert stored("lorien", "about")["schema"] == "2"
    # An older Lorien that had the table open finds no workload, and refuses the item.
    assert "workload" not in stored(values["target_key"], values["item_key"])


def _replace_again_and_again(url: str, times: int) -> None:
    with open_database(url) as database:
        for number in range(times):
            text = random.Random(number).randbytes(250_000).hex()
            database.put(replace(defined(1.0 - number * 0.01, text), candidate=Candidate([text])))


@pytest.mark.parametrize("dynamo", [name for name in DATABASES if name not in ("sqlite", "moto")], indirect=True)
def test_a_large_item_is_seen_whole_while_it_is_replaced(dynamo: tuple[str, Any, Any]) -> None:
    url, scan, _ = dynamo
    writers = [FORK.Process(target=_replace_again_and_again, args=(url, 4)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = []
    with open_database(url) as database:
        while any(writer.is_alive() for writer in writers):
            seen += [
                (len(record.candidate.schedule[0]), len(record.workload.definition or ""))
                for record in database.best(TARGET, made(1).workload.key, 2)
            ]
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert set(seen) == {(500_000, 500_000)}
    rows, more = [], {"LastEvaluatedKey": None}
    while "LastEvaluatedKey" in more:
        more = scan(**({"ExclusiveStartKey": more["LastEvaluatedKey"]} if rows else {}))
        rows += more["Items"]
    parts = [row["target_key"]["S"] for row in rows if row["target_key"]["S"].startswith("lorien-parts#")]
    (item,) = (row for row in rows if row["target_key"]["S"] == TARGET.key)
    named = {item[name]["S"].partition("#")[0] for name in ("records_parts", "definition_parts")}
    assert {part.removeprefix("lorien-parts#") for part in parts} == named


# What only SQLite can meet.


def test_a_database_of_before_variants_reads_and_learns_them(old: Path) -> None:
    with open_database(str(old), create=False) as database:
        first, second, other = before = list(database.query())
        assert [record.key[:8] for record in before] == ["ca450410", "7259d19c", "2bdaf98f"]
        assert {record.variant for record in before} == {None}
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


def of_log(record: TuningRecord, log: str | None) -> TuningRecord:
    return replace(record, log=log)


def test_remove_takes_out_what_is_meant_and_nothing_else(database: EditableDatabase) -> None:
    wrong, right = "logs/autotvm/cuda/net-1", "logs/autotvm/cuda/net-2"
    records = [
        of_log(defined(1.0, "of the first", 1), wrong),
        of_log(defined(2.0, "of the first", 2), right),
        of_log(defined(1.0, "of the second", workload=1), wrong),
        of_log(defined(1.0, "of the first", build="new"), right),
        of_log(defined(1.0, "of the first", target=CPU), None),
    ]
    assert database.put_many(records) == 5
    for nothing in (
        Selection(log="net-3"), Selection(log="et-1"), Selection(build="old"), Selection(workload="conv*"),
        Selection(target=Target.parse("cuda -arch=sm_61")), Selection(target=CPU, log=wrong), Selection(workload=""),
    ):  # fmt: skip
        assert database.remove(nothing) == Removal(0, 0)
    before = list(database.query())
    for selection in (Selection(log=wrong), Selection(log="autotvm/cuda/net-1"), Selection(log="cuda/net-1/")):
        assert database.remove(selection, dry_run=True) == Removal(2, 2)
    assert list(database.query()) == before
    assert database.remove(Selection(log=wrong)) == Removal(2, 2)
    assert {record.key for record in database.query()} == {records[index].key for index in (1, 3, 4)}
    assert database.best(TARGET, records[0].workload.key) == [records[3]]
    assert [found.workload.definition for found in database.query()] == ["of the first"] * 3
    assert database.remove(Selection(target=TARGET, workload=records[0].workload.key, build="new")) == Removal(1, 1)
    assert database.remove(Selection(TARGET, "dense[0-9]")) == Removal(1, 1)
    assert list(database.query()) == [records[4]]
    assert database.remove(Selection()) == Removal(1, 1)
    assert list(database.query()) == []
    assert database.stats() == DatabaseStats(0, 0, 0)
    assert database.put_many(records) == 5  # and it can be put again


def test_remove_from_large_items(database: EditableDatabase) -> None:
    text = random.Random(0).randbytes(250_000).hex()
    large = replace(of_log(defined(1.0, text), "wrong"), candidate=Candidate([text]))
    assert database.put_many([large, of_log(made(2.0), "right"), *(made(1.0, workload=w) for w in range(1, 130))])
    assert database.remove(Selection(log="wrong")) == Removal(1, 1)
    (left,) = database.query(workload="dense0")
    assert (left.key, left.workload.definition) == (made(2.0).key, text)
    assert database.remove(Selection()) == Removal(130, 130)


def test_definitions_that_nothing_names_go_with_the_last_schedule(tmp_path: Path) -> None:
    with open_database(str(tmp_path / "best.db")) as database:
        database.put_many(
            [defined(1.0, "shared"), defined(1.0, "shared", build="new"), defined(1.0, "own", workload=1)]
        )
        counts = []
        for selection in (Selection(build="new"), Selection(workload="dense1"), Selection(workload="dense0")):
            database.remove(selection)
            counts += rows_of(tmp_path / "best.db", "SELECT count(*) FROM definition")
    assert counts == [(2,), (1,), (0,)]


def test_a_dry_run_does_not_upgrade_a_file(old: Path) -> None:
    with open_database(str(old), create=False) as database:
        assert database.remove(Selection(log="logs/x"), dry_run=True) == Removal(2, 1)
        assert rows_of(old, "PRAGMA user_version") == [(1,)]
        assert database.remove(Selection(log="logs/x")) == Removal(2, 1)
        (left,) = database.query()
        assert left.workload.definition == "module"


def _remove_again_and_again(url: str, times: int) -> None:
    with open_database(url) as database:
        for _ in range(times):
            database.remove(Selection(log="wrong"))


def _write_right_and_wrong(url: str, worker: int, count: int) -> None:
    with open_database(url) as database:
        for i in range(count):
            log = ("right", "wrong")[i % 2]
            database.put(of_log(made(1.0 + i, 100 * worker + i, workload=i % 3), log))


@RACED
def test_removing_beside_writers_takes_nothing_of_theirs(url: str) -> None:
    with open_database(url, create=True, n_best=100) as database:
        children = [FORK.Process(target=_write_right_and_wrong, args=(url, worker, 20)) for worker in range(3)]
        children += [FORK.Process(target=_remove_again_and_again, args=(url, 10)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * 5
        database.remove(Selection(log="wrong"))
        assert len(list(database.query())) == 30
        assert {record.log for record in database.query()} == {"right"}


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
    with pytest.raises(SchemaMismatch, match=rf"schema {schema}.*reads 1 to 2.*Fix: {fix}"):
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
        with pytest.raises(DatabaseUnavailable, match=r"locked\. .*this request changed nothing"):
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
