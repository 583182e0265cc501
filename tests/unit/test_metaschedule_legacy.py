"""Logs of an older MetaSchedule: read and featurized without its TVM, migrated where they replay on today's."""

from __future__ import annotations

import json
from pathlib import Path

import legacy_metaschedule as legacy
import numpy as np
import pytest
from typer.testing import CliRunner

from lorien.cli.app import app
from lorien.dialects import open_dialect, open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule.migrate import migrate, rebuild, rename
from lorien.dialects.metaschedule.workload import workload_of
from lorien.errors import BadInput
from lorien.featurize import open_extractor
from lorien.records import Candidate, TuningRecord
from lorien.target import Target


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return legacy.write(tmp_path / "old" / "net")


def read(log: Path) -> tuple[list[TuningRecord], ReadReport]:
    report = ReadReport()
    return list(open_dialect("metaschedule_legacy").read(log, LogInfo(), report)), report


def test_an_old_log_reads_as_records(log: Path) -> None:
    records, report = read(log)
    assert (report.records, report.failed, report.unreadable) == (8, 1, 0)
    assert records[0].workload.name == "C(16x16,16x16,16x16)"
    assert records[0].workload.identity == ["structural of 0.16.dev0", "74459984568761439"]
    assert records[0].measurement.latencies_s == (1e-4,)


def test_the_live_dialect_says_who_reads_it(log: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["ingest", str(log), "--dialect", "metaschedule", "--logs", str(tmp_path / "logs")])
    assert done.exit_code == 1
    assert "it looks like metaschedule_legacy" in " ".join(done.output.split())


def test_the_rebuilt_module_computes_what_the_old_one_did(tmp_path: Path) -> None:
    dialect = open_live_dialect("metaschedule")
    workload = workload_of(rebuild(legacy.module()), "product")
    assert workload.flop == 2 * legacy.SIZE**3
    target = dialect.native_target()
    schedule = rename(legacy.trace([1, 1, 2, 8], [2, 1, 1, 8], [4, 4]))
    dialect.build(workload, Candidate(schedule), target, tmp_path / "product.so")
    a, b, c = dialect.outputs(workload, tmp_path / "product.so", target)
    assert np.allclose(c, a @ b, rtol=1e-4)


def test_a_graph_with_an_unknown_node_is_refused() -> None:
    import base64

    raw = base64.b64decode(legacy.module())
    odd = base64.b64encode(raw.replace(b'"tir.Mul"', b'"tir.Odd"')).decode()
    with pytest.raises(BadInput, match="cannot take the old module"):
        rebuild(odd)


def test_what_replays_becomes_a_log_of_today(log: Path, tmp_path: Path) -> None:
    path = log / "database_tuning_record.json"
    index, (_, *rest) = json.loads(path.read_text().splitlines()[0])
    strange = [index, [legacy.trace([1, 1, 1, 16], [1, 1, 1, 16], [1, 16], block="gone"), *rest]]
    path.write_text(path.read_text() + json.dumps(strange) + "\n")
    out = tmp_path / "new"
    out.mkdir()
    report = migrate(log, out)
    assert (report.workloads, report.rebuilt, report.records, report.replayed) == (1, 1, 9, 8)
    assert sum(report.reasons.values()) == 1
    reading = ReadReport()
    info = LogInfo(build="tvm 0.16.dev0")
    records = list(open_dialect("metaschedule").read(out, info, reading))
    assert (len(records), reading.failed) == (8, 1)
    rows = open_extractor("metaschedule").extract(
        records[0].workload, [r.candidate for r in records], records[0].target
    )
    assert not np.isnan(rows[:, 0]).any()


def test_ingest_migrates_and_counts(log: Path, tmp_path: Path) -> None:
    arguments = ["--dialect", "metaschedule_legacy", "--logs", str(tmp_path / "logs"), "--json"]
    done = CliRunner().invoke(app, ["ingest", str(log), "--migrate", *arguments])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["records"], answer["migrated"]["rebuilt"], answer["migrated"]["replayed"]) == (8, 1, 8)
    (stored,) = answer["migrated"]["logs"]
    about = json.loads((tmp_path / "logs" / stored / "lorien.json").read_text())
    assert about["framework"] == "tvm 0.16.dev0"


def test_old_and_new_traces_have_the_same_features(log: Path) -> None:
    records, _ = read(log)
    old, new = open_extractor("metaschedule_legacy"), open_extractor("metaschedule", "metaschedule_trace")
    candidates = [record.candidate for record in records]
    today = [Candidate(rename(candidate.schedule)) for candidate in candidates]
    target = Target.parse("llvm -num-cores=2")
    rows = old.extract(records[0].workload, candidates, target)
    assert old.features == new.features
    assert np.array_equal(rows, new.extract(records[0].workload, today, target), equal_nan=True)
    # Alone or together: a row depends on its own trace only.
    alone = np.concatenate([old.extract(records[0].workload, [candidate], target) for candidate in candidates])
    assert np.array_equal(rows, alone, equal_nan=True)


def test_a_trace_tells_tiles_and_what_they_touch(log: Path) -> None:
    extractor = open_extractor("metaschedule_legacy")
    (workload,) = {record.workload.key: record.workload for record in read(log)[0]}.values()
    schedule = legacy.trace([1, 2, 1, 8], [4, 1, 1, 4], [4, 4])
    row = extractor.extract(workload, [Candidate(schedule)], Target.parse("llvm"))[0]
    found = dict(zip(extractor.features.names, row, strict=True))
    assert [found[f"s0_{level}"] for level in range(4)] == [3, 0, 1, 0]
    assert (found["s1"], found["s1_tile"], found["r0_0"], found["chunks"]) == (4, 2, 2, 2)
    # A tile of 16 x 4 over 4 steps touches 16 * 4 elements of A and 4 * 4 of B.
    assert found["loaded"] == pytest.approx(np.log2(64 + 16))
    assert found["macs"] == 12
    assert found["steps_Vectorize"] == 1
    assert found["vectorize_extent"] == 2


@pytest.mark.parametrize(
    "schedule",
    [
        [[["SamplePerfectTile", ["l1"], [2, 64], ["v1", "v2"]]], []],
        [[["SampleCategorical", [], [[1, 2], [0.5, 0.5]], ["v1"]]], [[0, 7]]],
        [[["Split", ["l1"]]], []],
        ["text"],
        7,
    ],
)
def test_what_is_no_trace_is_a_row_of_nan(schedule: object, log: Path) -> None:
    extractor = open_extractor("metaschedule_legacy")
    good = legacy.trace([1, 2, 1, 8], [4, 1, 1, 4], [4, 4])
    rows = extractor.extract(read(log)[0][0].workload, [Candidate(schedule), Candidate(good)], Target.parse("llvm"))
    assert np.isnan(rows[0]).all()
    assert not np.isnan(rows[1]).all()
