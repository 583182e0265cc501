"""Every file format: what an earlier Lorien wrote is read, and what a later one will write is refused with what to do.

``tests/golden/formats_v1`` was written once, by 0.1.0 (``make_formats.py`` beside it). A version that is raised gets a
folder of its own: ``formats_v2`` has databases of schema 2.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import lorien
from lorien.cli.workloads import read_workloads
from lorien.database.jobs import open_jobs
from lorien.dialects.base import ReadReport
from lorien.errors import BadInput, LorienError, SchemaMismatch
from lorien.featurize.schema import METADATA_KEY
from lorien.models.data import group_tables, read_features, read_rows
from lorien.mutate import load_rules

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(GOLDEN.glob("formats_v*"))
TARGET = "llvm-model_i7-3770"


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy: SQLite writes beside its file even when it only reads."""
    folder = tmp_path / "written"
    shutil.copytree(request.param, folder)
    return folder


def test_logs_are_read(written: Path) -> None:
    logs = lorien.open_logs(f"{written}/logs")
    (log,) = logs.list()
    assert (log.target.key, log.network, log.records, log.workloads) == (TARGET, "mlp", 12, 2)
    with logs.local(log) as path:
        records = list(lorien.open_dialect("autotvm").read(path, log.info, ReadReport()))
    assert min(record.measurement.latency_s or 1 for record in records) == pytest.approx(32e-6)


def test_features_are_read_and_ranked_by_the_model(written: Path) -> None:
    (group,) = group_tables(written / "features")
    rows = read_rows(group)
    score = lorien.load_ranker(written / "models", TARGET).score(read_features(group, rows.all()))
    assert len(score) == len(rows) == 12
    best = {rows.workload[index]: rows.latency_s[index] for index in sorted(range(12), key=lambda i: score[i])}
    for workload, latency_s in best.items():
        assert latency_s <= 2 * rows.latency_s[rows.workload == workload].min()


def test_the_database_and_its_run_of_jobs_are_read(written: Path) -> None:
    with lorien.open_database(f"{written}/schedules.db", create=False) as database:
        assert (database.stats().workloads, database.n_best) == (2, 8)
        best = [next(iter(database.best(lorien.Target.from_key(TARGET), own.key))) for own in workloads(written)]
    assert sorted(record.measurement.latency_s or 0 for record in best) == pytest.approx([32e-6, 64e-6])
    with open_jobs(f"{written}/schedules.db", create=False) as jobs:
        (run,) = jobs.runs()
        assert (run.name, run.targets, jobs.counts("nightly", 0.0).total) == ("nightly", (TARGET,), 2)


def workloads(folder: Path) -> list[lorien.Workload]:
    return read_workloads(folder / "workloads.jsonl")


def test_workloads_are_read(written: Path) -> None:
    assert [(own.dialect, own.networks) for own in workloads(written)] == [("autotvm", ("mlp",))] * 2


def newer_sidecar(folder: Path) -> Callable[[], object]:
    (path,) = (folder / "logs").rglob("lorien.json")
    rewrite(path, version=9)
    return lambda: list(lorien.open_logs(f"{folder}/logs").list())


def newer_table(folder: Path) -> Callable[[], object]:
    (path,) = (folder / "features").rglob("*.parquet")
    table = pq.read_table(path, partitioning=None)
    about = json.loads(table.schema.metadata[METADATA_KEY]) | {"table_version": 9}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about)}), path)
    return lambda: group_tables(folder / "features")


def newer_model(folder: Path) -> Callable[[], object]:
    (path,) = (folder / "models").rglob("model.json")
    rewrite(path, format_version=9)
    return lambda: lorien.load_ranker(folder / "models", TARGET)


def newer_database(folder: Path) -> Callable[[], object]:
    change(folder / "schedules.db", "PRAGMA user_version = 9")
    return lambda: lorien.open_database(f"{folder}/schedules.db")


def newer_run(folder: Path) -> Callable[[], object]:
    change(folder / "schedules.db", "UPDATE run SET body = replace(body, '\"version\":1', '\"version\":9')")

    def read() -> object:
        with open_jobs(f"{folder}/schedules.db", create=False) as jobs:
            return jobs.run("nightly")

    return read


def newer_workloads(folder: Path) -> Callable[[], object]:
    """A key of another version is another key."""
    path = folder / "workloads.jsonl"
    path.write_text(path.read_text().replace(workloads(folder)[0].key, "0" * 32))
    return lambda: workloads(folder)


def newer_rules(folder: Path) -> Callable[[], object]:
    path = folder / "rules.yaml"
    path.write_text("version: 9\nrules: [{batch: 8}]\n")
    return lambda: load_rules(path)


def rewrite(path: Path, **changed: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("newer", "error"),
    [
        (newer_sidecar, SchemaMismatch),
        (newer_table, SchemaMismatch),
        (newer_model, SchemaMismatch),
        (newer_database, SchemaMismatch),
        (newer_run, SchemaMismatch),
        (newer_workloads, BadInput),
        (newer_rules, BadInput),
    ],
    ids=lambda value: value.__name__,
)
def test_a_later_version_is_refused(
    tmp_path: Path, newer: Callable[[Path], Callable[[], object]], error: type[LorienError]
) -> None:
    shutil.copytree(FOLDERS[-1], tmp_path / "written")
    read = newer(tmp_path / "written")
    with pytest.raises(error, match=r"(version|schema|another).*Fix: "):
        read()
