"""The commands as a user and as a program meet them: exit codes, one JSON object, errors that say what to do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from lorien.cli.app import app

BIN = Path(sys.executable).parent


def lorien(*arguments: str | Path, program: str = "lorien") -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / program, *map(str, arguments)], capture_output=True, text=True, timeout=240)


def result(*arguments: str | Path, program: str = "lorien") -> dict[str, Any]:
    done = lorien(*arguments, "--json", program=program)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture
def log(autotvm_log: Callable[..., Path], line: Callable[..., str]) -> Path:
    """Eight dense layers, twelve tilings each: a tile of 4 is the fastest, the last one fails."""
    lines = [
        line([1e-6 * size * (1 + abs(tile - 4))], tile, size=size, error=6 if tile == 12 else 0)
        for size in range(32, 288, 32)
        for tile in range(1, 13)
    ]
    return autotvm_log("given/mlp.log", lines)


@pytest.fixture
def stores(
    s3_folder: Callable[[str], str], aws: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """Where logs, features, models and schedules go: AWS. The same in folders is the main job's test, and README's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    database = f"dynamodb://schedules-{uuid.uuid4().hex}?endpoint_url={aws('moto')}"
    assert lorien("commit", "--logs", s3_folder("seaweedfs"), "--db", database).returncode == 1
    assert result("database", "create", database) == {"database": database, "n_best": 8}
    return *(s3_folder("seaweedfs") for _ in range(3)), database


def test_logs_to_scores(log: Path, tmp_path: Path, stores: tuple[str, ...]) -> None:
    """The AutoTVM path, end to end: what each command prints is what the issue tracker's scripts read."""
    logs, features, models, database = stores
    taken = result("ingest", log, "--dialect", "autotvm", "--target", "x86_i7-3770", "--logs", logs)
    assert {name: taken[name] for name in ("records", "failed", "unreadable", "workloads", "new")} == {
        "records": 96,
        "failed": 8,
        "unreadable": 0,
        "workloads": 8,
        "new": 96,
    }
    assert result("ingest", log, "--dialect", "autotvm", "--target", "x86_i7-3770", "--logs", logs)["new"] == 0

    table = result("featurize", logs, "-o", features)
    assert (table["rows"], table["skipped"], len(table["tables"])) == (96, 0, 1)
    assert table["seconds"] > 0

    trained = result(features, "-o", models, "--time-limit", "20", program="lorien-train")
    ((key, report),) = trained["models"].items()
    assert key == "llvm-model_i7-3770"
    assert (report["rows"], report["workloads"]) == (96, 8)
    assert report["fit_seconds"] > 0
    assert 0 < report["holdout"]["top1_mean"] <= 1
    reused = result(features, "-o", models, "--time-limit", "20", "--reuse", program="lorien-train")
    assert reused["models"][key]["fit_seconds"] == report["fit_seconds"]

    leak = lorien("evaluate", features, "--models", models)
    assert leak.returncode == 1
    assert "--holdout-network" in leak.stderr

    other = tmp_path / "given" / "other.log"
    other.write_text(log.read_text().replace("[1, 64]", "[1, 48]").replace("[64, 64]", "[48, 48]"))
    result("ingest", other, "--dialect", "autotvm", "--target", "x86_i7-3770", "--logs", logs)
    result("featurize", logs, "-o", features)
    scores = result("evaluate", features, "--models", models, "--holdout-network", "other")["targets"][key]
    assert scores["workloads"] == 1
    assert scores["records"] == 12
    for name in ("top1_mean", "top5_mean", "top10_mean", "top1_weighted", "top5_weighted", "min_top10"):
        assert 0 < scores[name] <= 1
    assert {"spearman_mean", "random_top1_mean", "random_top5_mean"} <= set(scores)

    assert result("featurize", logs, "-o", features)["unchanged"] == 2

    committed = result("commit", "--logs", logs, "--db", database)
    assert committed["records"] == 192
    found = result("query", "--db", database, "--workload", "dense_nopack", "--network", "mlp")["records"]
    assert len(found) == 8
    assert all(record["schedule"][0] == ["tile_x", "sp", [-1, 4]] for record in found)

    backup = f"sqlite:///{tmp_path}/backup.db"
    assert result("database", "copy", database, backup) == {"records": 72, "entered": 72}
    assert result("database", "copy", backup, database) == {"records": 72, "entered": 0}
    assert result("database", "stats", database) == result("database", "stats", backup)


def test_best_only_logs_of_many_devices(tmp_path: Path) -> None:
    """As TopHub has them: the best record of each workload, many devices in a file, lines of two versions."""
    conv = [["TENSOR", [1, 64, 56, 56], "float32"], ["TENSOR", [64, 64, 3, 3], "float32"], [1, 1], [1, 1, 1, 1], [1, 1]]

    def line(target: str, template: str, args: list[Any], entity: list[Any], version: str | None) -> str:
        config = {"index": 12, "code_hash": None, "entity": entity}
        row = {
            "input": [target, template, args, {}],
            "config": config,
            "result": [[2e-3], 0, 3.1, 1.6e9],
            "version": 0.2,
        }
        return json.dumps(row | ({"tvm_version": version} if version else {}))

    def old_line(target: str, task: str, args: list[Any], entity: list[Any]) -> str:
        config = {"i": 12, "t": "direct", "c": None, "e": entity}
        return json.dumps({"i": [target, task, args, {}, [task, *args], config], "r": [[1e-3], 0, 0, 0], "v": 0.1})

    tile = ["tile_f", "sp", [-1, 2, 8, 4]]
    blocks = [["tile_ic", "sp", [-1, 16]], ["tile_oc", "sp", [-1, 32]], ["tile_ow", "sp", [-1, 8]]]
    ti = "cuda -keys=cuda,gpu -max_num_threads=1024 -model=1080ti"
    rock, titan = "llvm -device=arm_cpu -model=rk3399 -target=aarch64-linux-gnu", "cuda -model=titanx"
    log = tmp_path / "tophub_v0.10.log"
    lines = [
        line(ti, "conv2d_nchw.cuda", [*conv, "float32"], [tile], "0.7.dev1"),
        line(ti, "conv2d_nchw_winograd.cuda", [*conv, "float32"], [tile], None),
        old_line(titan, "topi_nn_conv2d", [*conv, "NCHW", "float32"], [tile]),
        line("llvm -keys=cpu -mcpu=core-avx2", "conv2d_NCHWc.x86", [*conv, "NCHW", "NCHW", "float32"], blocks, "0.8.0"),
        old_line(rock, "topi_nn_conv2d", [*conv, "NCHW", "float32"], [["tile_co", "sp", [8, 8]]]),
    ]  # fmt: skip
    log.write_text("\n".join(lines) + "\n")
    logs, database = tmp_path / "logs", f"sqlite:///{tmp_path}/best.db"
    refused = lorien("ingest", log, "--dialect", "autotvm", "--logs", logs)
    assert refused.returncode == 1
    assert "--split" in refused.stderr
    taken = result("ingest", log, "--dialect", "autotvm", "--logs", logs, "--split")
    assert (taken["records"], taken["workloads"], taken["unreadable"], len(taken["logs"])) == (5, 4, 0, 4)
    committed = result("commit", "--logs", logs, "--db", database)
    nothing_wrong = {"unreadable": 0, "implausible": 0, "failed_logs": []}
    assert committed == {"records": 5, "committed": 5, **nothing_wrong}
    found = result("query", "--db", database, "--variants")["records"]
    assert {(record["target"], record["build"], record["variant"]) for record in found} == {
        ("cuda-model_1080ti", "tvm 0.7.dev1", None),
        ("cuda-model_1080ti", "unknown", None),
        ("cuda-model_titanx", "unknown", None),
        ("llvm-mcpu_core-avx2", "tvm 0.8.0", "NCHW16c OIHW16i32o NCHW32c"),
        ("llvm-device_arm_cpu-model_rk3399-mtriple_aarch64-linux-gnu", "unknown", None),
    }
    (only,) = result("query", "--db", database, "--target", titan)["records"]
    assert (only["latency_s"], only["schedule"]) == (1e-3, [tile])


@pytest.fixture(params=["folder and SQLite", "S3 and DynamoDB"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A log store and a schedule database."""
    if request.param == "folder and SQLite":
        return str(tmp_path / "logs"), f"sqlite:///{tmp_path}/best.db"
    logs, *_, database = request.getfixturevalue("stores")
    return logs, database


def here(*arguments: str | Path) -> Result:
    """A command in this process: many short ones would spend their time on starting."""
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def told(*arguments: str | Path) -> dict[str, Any]:
    done = here(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def test_what_was_taken_in_wrongly_is_taken_back(places: tuple[str, str], log: Path, tmp_path: Path) -> None:
    logs, database = places
    other = tmp_path / "other.log"
    other.write_text("".join(log.read_text().splitlines(keepends=True)[:20]))
    (wrong,) = told("ingest", log, "--dialect", "autotvm", "--target", "x86_i7-3770", "--logs", logs)["logs"]
    (right,) = told("ingest", other, "--dialect", "autotvm", "--target", "x86_3700X", "--logs", logs)["logs"]
    told("commit", "--logs", logs, "--db", database)
    listed = told("logs", "list", logs)["logs"]
    assert listed == sorted(listed, key=lambda one: one["id"])
    assert {one["id"]: (one["target"], one["network"], one["records"], one["failed"]) for one in listed} == {
        wrong: ("llvm-model_i7-3770", "mlp", 96, 8),
        right: ("llvm-model_3700X", "other", 20, 1),
    }
    assert {one["size_bytes"] for one in listed} == {log.stat().st_size, other.stat().st_size}
    assert wrong in here("logs", "list", logs, "--network", "mlp").stdout
    for command, says in (
        (("logs", "remove", logs), "say which"),
        (("logs", "remove", logs, wrong, "--all"), "say which"),
        (("database", "remove", database), "say which"),
        (("database", "remove", database, "--all", "--log", wrong), "say which"),
    ):
        refused = here(*command)
        assert (refused.exit_code, says in refused.stderr) == (2, True)
    unknown = here("logs", "remove", logs, wrong, "autotvm/none")
    assert (unknown.exit_code, "no log 'autotvm/none'" in unknown.stderr) == (1, True)
    assert told("logs", "remove", logs, "--dialect", "")["removed"] == []  # a variable that is not set
    dry = told("logs", "remove", logs, "--target", "x86_i7-3770", "--dry-run")
    assert [one["id"] for one in dry["removed"]] == [wrong]
    assert len(told("logs", "list", logs)["logs"]) == 2
    removed = here("logs", "remove", logs, wrong)
    assert removed.exit_code == 0
    assert f"lorien database remove DATABASE --log {wrong}" in removed.stderr
    assert [one["id"] for one in told("logs", "list", logs)["logs"]] == [right]
    before = told("database", "stats", database)
    assert before["targets"] == 2
    counted = told("database", "remove", database, "--log", wrong, "--dry-run")
    assert counted == {"schedules": 64, "items": 8, "dry_run": True}
    assert told("database", "stats", database) == before
    assert told("database", "remove", database, "--log", wrong) == counted | {"dry_run": False}
    left = told("query", "--db", database)["records"]
    assert {record["log"].endswith(right) for record in left} == {True}
    assert told("logs", "remove", logs, "--all")["removed"][0]["id"] == right
    assert told("logs", "list", logs) == {"logs": []}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("ingest", "{tmp}/missing.log", "--dialect", "autotvm", "--logs", "{tmp}/l"), 1, "does not exist"),
        (("ingest", "{tmp}/empty", "--dialect", "autotvm", "--logs", "{tmp}/l"), 1, "--dialect"),
        (("ingest", "{tmp}/binary.log", "--dialect", "autotvm", "--logs", "{tmp}/l"), 1, "--dialect"),
        (("ingest", "{log}", "--dialect", "metaschedule", "--logs", "{tmp}/l"), 1, "looks like autotvm"),
        (("ingest", "{log}", "--dialect", "tvmm", "--logs", "{tmp}/l"), 1, "known: auto_scheduler, autotvm"),
        (("ingest", "{log}", "--dialect", "autotvm", "--target", "gpu9", "--logs", "{tmp}/l"), 1, "unknown target"),
        (("ingest", "{log}", "--dialect", "autotvm"), 2, "--logs"),
        (("featurize", "{tmp}/empty", "-o", "{tmp}/f"), 1, "lorien ingest"),
        (("commit", "--logs", "{tmp}/empty", "--db", "{tmp}/s.db"), 1, "lorien ingest"),
        (("query", "--db", "{tmp}/binary.log"), 1, "binary.log"),
        (("query", "--db", "{tmp}/none.db"), 1, "none.db"),
        (("query", "--db", "mysql://here"), 1, "sqlite"),
        (("evaluate", "{tmp}/empty", "--models", "{tmp}/m"), 1, "lorien"),
        (("rank", "{tmp}/none.jsonl", "--target", "llvm"), 1, "lorien extract"),
        (("rank", "{log}", "--target", "llvm"), 1, "not a workload"),
        (("extract", "{log}", "-o", "{tmp}/w.jsonl", "--target", "llvm"), 1, "{log}"),
        (("extract", "{tmp}/a.onnx", "-o", "{tmp}/w.jsonl", "--shape", "x=1,a"), 2, "name=1,3,224,224"),
        (("tell-me",), 2, "No such command"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_bad_input_says_what_to_do(arguments: tuple[str, ...], code: int, says: str, log: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.log").write_bytes(bytes(range(256)) * 50)
    done = lorien(*(text.format(tmp=tmp_path, log=log) for text in arguments))
    assert done.returncode == code, done.stderr
    assert says.format(log=log) in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "l").exists() or not list((tmp_path / "l").rglob("*.log"))


def test_an_interrupt_leaves_whole_tables_and_the_next_run_goes_on(
    tmp_path: Path, autotvm_log: Callable[..., Path], line: Callable[..., str]
) -> None:
    for name in range(6):
        lines = [line([1e-3], tile, size=16 + name) for tile in range(1, 4000)]
        autotvm_log(f"given/net{name}.log", lines)
    logs, features = tmp_path / "logs", tmp_path / "features"
    result("ingest", tmp_path / "given", "--dialect", "autotvm", "--logs", logs)
    command = [str(BIN / "lorien"), "featurize", str(logs), "-o", str(features), "--processes", "1"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # As soon as the first table is there: the others are still to come.
    deadline = time.monotonic() + 60
    while not list(features.rglob("[!.]*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "interrupted" in said
    before = len(list(features.rglob("[!.]*.parquet")))
    after = result("featurize", logs, "-o", features)
    assert after["unchanged"] == before >= 1
    assert after["tables"]
    assert sum(pq.read_metadata(path).num_rows for path in features.rglob("[!.]*.parquet")) == 6 * 3999
