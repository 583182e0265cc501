"""What a user installs: the wheel holds every module under its installed name, and nothing under a generic one."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
MAPPED = {"featurize": "lorien/featurize", "models": "lorien/models"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, and the wheel that is built from it and nothing else, with the setuptools that is here."""
    out = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return out


@pytest.fixture
def wheel(built: Path) -> Path:
    (found,) = built.glob("lorien-*.whl")
    return found


def test_the_source_distribution_holds_what_the_wheel_is_made_of(built: Path) -> None:
    (path,) = built.glob("lorien-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "featurize/table.py", "models/train.py"}
    assert not {name for name in names if name.endswith((".ipynb", ".gz", ".db")) or name.startswith("docs/")}


def modules_in_the_tree() -> set[str]:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "lorien").rglob("*.py")}
    for folder, installed in MAPPED.items():
        found |= {f"{installed}/{path.name}" for path in (ROOT / folder).glob("*.py")}
    return found


def test_the_wheel_holds_every_module_under_its_installed_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.endswith(".py")} == modules_in_the_tree()
    assert "lorien/py.typed" in names
    pages = ROOT / "lorien/report/static"
    assert {f"lorien/report/static/{path.name}" for path in pages.iterdir()} <= names


def test_the_mapped_folders_are_flat() -> None:
    for folder in MAPPED:
        assert not [path for path in (ROOT / folder).rglob("*.py") if path.parent.name != folder]


def test_the_listed_packages_are_those_of_the_tree() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["packages"].splitlines()
    listed = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert listed == {name.rpartition("/")[0].replace("/", ".") for name in modules_in_the_tree()}


def test_the_generic_names_do_not_reach_site_packages(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies into an empty environment, run outside the checkout."""
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, cwd=tmp_path)
    program = """
import importlib, importlib.util
import lorien
for name in ("featurize", "models", "tests", "datasets", "benchmarks", "notebooks"):
    assert importlib.util.find_spec(name) is None, name
for name in ("lorien.featurize", "lorien.models"):
    assert importlib.util.find_spec(name) is not None, name
print(lorien.__version__)
"""
    done = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # With the packages it needs, borrowed from here, what was installed works outside the checkout.
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(str(Path(typer.__file__).parents[1]))
    shutil.copytree(ROOT / "tests" / "golden" / "formats_v1", tmp_path / "given")
    for script, *arguments in (
        ("lorien", "--version"),
        ("lorien", "query", "--db", "given/schedules.db", "--json"),
        ("lorien-train", "--help"),
    ):
        command = [tmp_path / "env" / "bin" / script, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
