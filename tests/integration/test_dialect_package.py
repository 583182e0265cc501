"""A dialect of somebody else's: built as a wheel, installed, found by its entry point, held by ``lorien.testing``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/lorien-toy"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example is installed from its wheel."""
    out = tmp_path_factory.mktemp("toy")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(EXAMPLE)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = out.glob("lorien_toy-*.whl")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(out / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return {**os.environ, "PYTHONPATH": str(out / "site")}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = [f"matmul {64 * size} 64 | tile={2**tile} | {size * (7 - tile)}\n" for size in (1, 2) for tile in range(8)]
    path = tmp_path / "run.toy"
    path.write_text("".join(lines))
    return path


def test_the_contract_suite_runs_on_it(installed: dict[str, str], log: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "lorien.testing.plugin"]
    options = ["--pyargs", "lorien.testing", "--dialect", "toy", "--dialect-log", str(log)]
    done = subprocess.run([*command, *options], env=installed, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed, 6 skipped" in done.stdout


def test_its_logs_reach_features_and_the_database(installed: dict[str, str], log: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "lorien"

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], env=installed, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("ingest", str(log), "--dialect", "toy", "--target", "llvm -mcpu=haswell", "--logs", "logs")
    assert '"rows": 16' in run("featurize", "logs", "-o", "features", "--json")
    run("commit", "--logs", "logs", "--db", "sqlite:///toy.db")
    assert '"tile": 64' in run("query", "--db", "sqlite:///toy.db", "--workload", "matmul(64*", "--json")
