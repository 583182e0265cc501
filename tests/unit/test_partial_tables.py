"""Data sets that are not whole, or not now: beside a featurize at work, after one that was killed, of damaged logs."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from held import featurizing

from lorien.dialects import open_dialect
from lorien.featurize import dataset
from lorien.featurize.dataset import CONTENTS, tables
from lorien.featurize.schema import METADATA_KEY
from lorien.featurize.store import open_tables
from lorien.featurize.table import featurize
from lorien.files import TEMPORARY_PREFIX
from lorien.logs import open_logs
from lorien.logs.ingest import ingest
from lorien.report.tally import Tally
from lorien.target import Target

TARGET = Target.parse("x86_i7")
Write = Callable[[str, int], Path]


@pytest.fixture
def given(tmp_path: Path, line: Callable[..., str]) -> Write:
    """Write a log of so many tilings, and ingest it."""

    def write(name: str, count: int) -> Path:
        path = tmp_path / "given" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line([1e-3 / tile], tile, size=len(name) * 16)}\n" for tile in range(1, count + 1)))
        take(tmp_path, path)
        return path

    return write


def take(tmp_path: Path, path: Path) -> None:
    ingest([path], open_logs(str(tmp_path / "logs")), dialect=open_dialect("autotvm"), target=TARGET)


def run(tmp_path: Path) -> int:
    """Rows that a featurize writes."""
    return featurize(open_logs(str(tmp_path / "logs")), tmp_path / "F", processes=1).rows


def rows(features: Path) -> int:
    return Tally.of_tables(features).records


def command(*words: object) -> list[str]:
    return [sys.executable, "-B", "-c", "from lorien.cli import main; main()", *map(str, words)]


def missing_tables(features: Path, url: str) -> list[str]:
    """What is said of all targets."""
    return [text for said in dataset.missing_tables(features, url).values() for text in said]


@contextmanager
def at_work(tmp_path: Path, name: str) -> Iterator[None]:
    """A ``lorien featurize`` that is at a log, and is killed in the end."""
    (stored,) = (tmp_path / "logs").rglob(f"{name}.log")
    with featurizing(["featurize", tmp_path / "logs", "-o", tmp_path / "F", "--processes", "1"], stored):
        yield


def test_a_featurize_that_was_killed_is_told_of(tmp_path: Path, given: Write) -> None:
    given("net", 20)
    run(tmp_path)
    given("other", 7)
    given("third", 5)
    with at_work(tmp_path, "other"):
        pass
    (said,) = [text for text in missing_tables(tmp_path / "F", "F") if "/other-" in text]
    assert "shards 0/1 are missing" in said
    assert said.endswith(f"Fix: lorien featurize {tmp_path / 'logs'} -o F")
    words = command("report", tmp_path / "F", "-o", tmp_path / "r.html", "--json")
    told = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    assert [problem for problem in told["problems"] if "/other-" in problem and "0/1" in problem]
    run(tmp_path)
    assert (rows(tmp_path / "F"), missing_tables(tmp_path / "F", "F")) == (32, [])


def test_a_shard_that_is_missing_is_told_of(tmp_path: Path, given: Write) -> None:
    given("big", 7000)
    assert run(tmp_path) == 7000
    found = sorted((tmp_path / "F").rglob("*of*.parquet"))
    assert len(found) == 3
    found[1].unlink()
    for contents in (True, False):  # Data sets of an earlier Lorien have none, their tables know of each other.
        (said,) = missing_tables(tmp_path / "F", "F")
        assert "/big-" in said
        assert "shards 1/3 are missing" in said
        if contents:
            next((tmp_path / "F").rglob(CONTENTS)).unlink()
    assert rows(tmp_path / "F") == sum(pq.read_metadata(path).num_rows for path in (found[0], found[2]))
    assert run(tmp_path) == 7000 - rows(tmp_path / "F") or rows(tmp_path / "F") == 7000
    assert missing_tables(tmp_path / "F", "F") == []


def test_the_tables_of_a_log_that_grew_are_read_until_the_new_ones_are_there(tmp_path: Path, given: Write) -> None:
    given("net", 20)
    given("other", 7)
    run(tmp_path)
    (old,) = (tmp_path / "F").rglob("net-*.parquet")
    kept = old.read_bytes()
    given("net", 25)
    with at_work(tmp_path, "net"):
        assert rows(tmp_path / "F") == 27
        (said,) = missing_tables(tmp_path / "F", "F")
        assert "0/1 are missing; what it grew from is read in its place" in said
    with open_tables(tmp_path / "F").local() as folder:
        assert run(tmp_path) == 25
        assert rows(folder) == 27  # Who began to read before goes on with what there was.
    assert not folder.exists()
    assert (rows(tmp_path / "F"), old.exists()) == (32, False)
    old.write_bytes(kept)  # As of a featurize that was killed before it dropped it.
    assert (rows(tmp_path / "F"), missing_tables(tmp_path / "F", "F")) == (32, [])
    run(tmp_path)
    assert not old.exists()


def test_a_reader_never_sees_half_of_a_change(tmp_path: Path, given: Write) -> None:
    """A log grows and is featurized, again and again: a reader has its records of before, or of after, and no other."""
    given("net", 20)
    run(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from lorien.dialects import open_dialect\nfrom lorien.featurize.table import featurize\n"
        "from lorien.logs import open_logs\nfrom lorien.logs.ingest import ingest\nfrom lorien.target import Target\n"
        "if __name__ == '__main__':\n"
        "    log, logs, out = map(Path, sys.argv[1:])\n"
        "    lines = log.read_text().splitlines(True)\n"
        "    for count in (30, 40):\n"
        "        log.write_text(''.join(lines[:count]))\n"
        "        store = open_logs(str(logs))\n"
        "        ingest([log], store, dialect=open_dialect('autotvm'), target=Target.parse('x86_i7'))\n"
        "        featurize(store, out, processes=1)\n"
    )
    (tmp_path / "writer.py").write_text(program)
    grown = given("net", 20)
    whole = tmp_path / "whole" / "net.log"
    whole.parent.mkdir()
    first = grown.read_text().splitlines(True)
    more = [text.replace('"tile_x", "sp", [-1, ', '"tile_x", "sp", [-1, 1') for text in first]
    whole.write_text("".join(first + more))
    seen: list[int] = []
    with subprocess.Popen([sys.executable, tmp_path / "writer.py", whole, tmp_path / "logs", tmp_path / "F"]) as writer:
        while writer.poll() is None:
            with open_tables(tmp_path / "F").local() as folder:
                seen.append(rows(folder))
    assert writer.returncode == 0
    assert set(seen) <= {20, 30, 40}
    assert seen == sorted(seen)
    assert rows(tmp_path / "F") == 40
    assert not list((tmp_path / "F").rglob(f"{TEMPORARY_PREFIX}*"))


def test_a_log_that_is_damaged_has_no_table_until_it_is_whole(tmp_path: Path, given: Write) -> None:
    path = given("net", 400)
    next((tmp_path / "logs").rglob("net.log")).unlink()
    for folder in (tmp_path / "logs" / "autotvm" / TARGET.key).iterdir():
        (folder / "lorien.json").unlink()
        folder.rmdir()
    compressed = path.with_name("net.log.gz")
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    take(tmp_path, compressed)
    (stored,) = (tmp_path / "logs").rglob("net.log.gz")
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2])
    report = featurize(open_logs(str(tmp_path / "logs")), tmp_path / "F", processes=1)
    assert (report.rows, report.tables) == (0, [])
    assert "Fix: " in report.failed_logs[0]
    stored.write_bytes(whole)
    assert run(tmp_path) == 400


def test_a_short_table_of_an_earlier_lorien_is_made_anew(tmp_path: Path, line: Callable[..., str]) -> None:
    """It took what it could read of a damaged log for the whole. What could never be read is not looked for again."""
    (tmp_path / "net.log").write_text("".join(f"{line([1e-3], tile)}\n" for tile in range(1, 9)) + "nonsense\n")
    take(tmp_path, tmp_path / "net.log")
    assert [run(tmp_path), run(tmp_path)] == [8, 0]
    ((path, _),) = tables(tmp_path / "F")
    table = pq.read_table(path, partitioning=None)
    about = json.loads(table.schema.metadata[METADATA_KEY])
    del about["source"]["log_records"]
    pq.write_table(table.slice(0, 4).replace_schema_metadata({METADATA_KEY: json.dumps(about)}), path)
    assert [run(tmp_path), run(tmp_path)] == [8, 0]
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as elsewhere:
        elsewhere.write(path.read_bytes())
        elsewhere.flush()
        path.unlink()
        path.symlink_to(elsewhere.name)
        with open_tables(tmp_path / "F").local() as folder:  # Nothing can be linked to another device.
            assert (folder, rows(folder)) == (tmp_path / "F", 8)
