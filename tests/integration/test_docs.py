"""The documentation builds without a warning, and holds what follows from the code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import lorien

ROOT = Path(__file__).parents[2]


def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # it writes pages into docs/, which the checkout is to be spared
    for name in ("docs", "datasets"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("reference", "*.gz"))
    for path in [*ROOT.glob("*.md"), ROOT / "LICENSE"]:
        shutil.copy(path, tree)
    for name in ("lorien", "featurize", "models", "benchmarks", "tests", "examples"):
        (tree / name).symlink_to(ROOT / name)  # what pages link to
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", tree / "docs", site]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert 'id="lorien-rank"' in commands
    assert 'id="lorien-train"' in commands
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert all(name in python for name in lorien.__all__)
