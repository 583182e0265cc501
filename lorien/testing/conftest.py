"""What the suites are given, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def dialect(pytestconfig: pytest.Config) -> str:
    """Name of the dialect."""
    name = pytestconfig.getoption("--dialect")
    if not name:
        pytest.skip("no --dialect given")
    return str(name)


@pytest.fixture
def log(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    """A copy of the log, alone in a folder."""
    given = pytestconfig.getoption("--dialect-log")
    if given is None:
        pytest.skip("no --dialect-log given")
    copy: Path = tmp_path / "given" / given.name
    copy.parent.mkdir()
    (shutil.copytree if given.is_dir() else shutil.copy)(given, copy)
    return copy


@pytest.fixture
def model(pytestconfig: pytest.Config) -> str:
    """What ``extract`` takes."""
    given = pytestconfig.getoption("--dialect-model")
    if given is None:
        pytest.skip("no --dialect-model given: it is for live dialects")
    return str(given)
