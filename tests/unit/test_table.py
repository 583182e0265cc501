"""Feature tables: whole or not there, incremental, and refused when they are another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from held import featurizing

from lorien.dialects import open_dialect
from lorien.errors import BadInput, SchemaMismatch
from lorien.featurize.schema import METADATA_KEY, ROW_COLUMNS
from lorien.featurize.table import featurize, tables
from lorien.files import TEMPORARY_PREFIX
from lorien.logs import open_logs
from lorien.logs.ingest import ingest
from lorien.target import Target

TARGET = Target.parse("x86_i7")


@pytest.fixture
def lines(line: Callable[..., str]) -> Callable[..., str]:
    """``count`` tilings of a dense layer, the last of them failed."""

    def text(count: int, size: int = 128) -> str:
        ran = [line([1e-3 / tile], tile, size=size) for tile in range(1, count)]
        return "\n".join([*ran, line([1e9], count, size=size, error=6)]) + "\n"

    return text


@pytest.fixture
def store(tmp_path: Path, lines: Callable[..., str]) -> Path:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "net.log").write_text(lines(20))
    take(tmp_path)
    return tmp_path / "logs"


def take(tmp_path: Path) -> None:
    ingest([tmp_path / "given"], open_logs(str(tmp_path / "logs")), dialect=open_dialect("autotvm"), target=TARGET)


def rows(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path, partitioning=None) for path, _ in tables(out)])


def test_one_row_per_record_with_its_outcome(store: Path, tmp_path: Path) -> None:
    report = featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    table = rows(tmp_path / "out")
    assert report.rows == table.num_rows == 20
    assert report.tables == [str(path) for path, _ in tables(tmp_path / "out")]
    assert table.column_names[: len(ROW_COLUMNS)] == list(ROW_COLUMNS)
    assert set(table["network"].to_pylist()) == {"net"}
    failed = [error for error in table["error"].to_pylist() if error]
    assert failed == ["build_timeout"]
    latencies = table["latency_s"].to_pylist()
    assert latencies[-1] is None
    assert latencies[1] == pytest.approx(5e-4)
    assert all(table.schema.field(name).type == pa.float32() for name in table.column_names[len(ROW_COLUMNS) :])


def test_the_metadata_tells_every_column(store: Path, tmp_path: Path) -> None:
    featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    ((path, about),) = tables(tmp_path / "out")
    assert (about.dialect, about.target) == ("autotvm", TARGET.key)
    assert path.parts[-3:-1] == ("dialect=autotvm", f"target={TARGET.key}")
    assert all(column.meaning for column in about.feature_set.columns)


def test_a_second_run_does_nothing(store: Path, tmp_path: Path) -> None:
    featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    again = featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    assert (again.rows, again.tables, again.unchanged) == (0, [], 1)


def test_only_new_logs_are_read(store: Path, tmp_path: Path, lines: Callable[..., str]) -> None:
    featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    (tmp_path / "given" / "other.log").write_text(lines(5, size=64))
    take(tmp_path)
    report = featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    assert (report.rows, report.unchanged) == (5, 1)
    assert rows(tmp_path / "out").num_rows == 25


def test_a_log_that_grew_is_not_counted_twice(store: Path, tmp_path: Path, lines: Callable[..., str]) -> None:
    featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    with (tmp_path / "given" / "net.log").open("a") as file:
        file.write(lines(5, size=64))
    take(tmp_path)
    featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    assert rows(tmp_path / "out").num_rows == 25


def test_two_processes_write_what_one_does(store: Path, tmp_path: Path, lines: Callable[..., str]) -> None:
    (tmp_path / "given" / "other.log").write_text(lines(7, size=64))
    take(tmp_path)
    featurize(open_logs(str(store)), tmp_path / "one", processes=1)
    featurize(open_logs(str(store)), tmp_path / "two", processes=2)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    # As text: a feature that does not apply is NaN, which equals nothing.
    assert str(one.to_pydict()) == str(two.to_pydict())


def test_a_full_disk_leaves_no_table(store: Path, tmp_path: Path) -> None:
    """A file size limit stands in for the disk: nothing half-written is taken for whole, and the next run mends it."""
    program = (
        "import pathlib, resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from lorien.cli import main\n"
        f"sys.argv = ['lorien', 'featurize', {str(store)!r}, '-o', {str(tmp_path / 'out')!r}, '--json']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert json.loads(done.stdout)["tables"] == []
    with pytest.raises(BadInput, match="lorien featurize"):
        tables(tmp_path / "out")
    assert featurize(open_logs(str(store)), tmp_path / "out", processes=1).rows == 20


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_interrupted(store: Path, tmp_path: Path, lines: Callable[..., str], sign: signal.Signals) -> None:
    """A worker that is killed costs its log, Ctrl-C ends all; the next run does the rest."""
    (tmp_path / "given" / "other.log").write_text(lines(7, size=64))
    take(tmp_path)
    (stored,) = store.rglob("net.log")
    out = tmp_path / "out"
    with featurizing(["featurize", store, "-o", out, "--processes", "1", "--json"], stored) as (run, worker):
        children = psutil.Process(run.pid).children(recursive=True)
        if sign == signal.SIGKILL:
            worker.kill()
        else:
            os.killpg(run.pid, sign)
        said, complained = run.communicate()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    if sign == signal.SIGKILL:
        assert run.returncode == 1
        assert "the worker died" in complained
        assert json.loads(said)["rows"] == 7
    else:
        assert run.returncode == 130, complained
        assert said == ""
    assert not [path for path in out.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]
    featurize(open_logs(str(store)), out, processes=1)
    assert rows(out).num_rows == 27


def test_a_table_of_another_version_is_refused(store: Path, tmp_path: Path) -> None:
    featurize(open_logs(str(store)), tmp_path / "out", processes=1)
    ((path, _),) = tables(tmp_path / "out")
    table = pq.read_table(path, partitioning=None)
    about = json.loads(table.schema.metadata[METADATA_KEY])
    about["table_version"] = 99
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about)}), path)
    with pytest.raises(SchemaMismatch, match="version 99"):
        tables(tmp_path / "out")


def test_what_is_no_feature_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaMismatch, match="no feature table"):
        tables(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SchemaMismatch, match="no readable Parquet"):
        tables(tmp_path)


def test_a_store_without_logs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lorien ingest"):
        featurize(open_logs(str(tmp_path)), tmp_path / "out")
