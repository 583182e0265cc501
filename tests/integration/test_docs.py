"""The documentation builds without a warning, holds what follows from the code, and its blocks do what they say.

README's commands are run from nothing but the logs that ship, cut short; every other page begins with what they leave,
in a folder of its own. A block that cannot run here says so in a comment before it, ``<!-- not run: WHY -->``; its
commands are read by their own parsers all the same. Budgets are cut to seconds by options added at the end (``SHORT``).
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doc_blocks
import networks
import numpy as np
import pytest
import sample
from doc_blocks import DOCUMENTS, ROOT, Block
from typer.testing import CliRunner

import lorien
from lorien.cli.workloads import read_workloads

BIN = Path(sys.executable).parent
TUNED = {"bvlc_alexnet": 6, "resnet50": 6}
"""Networks that the logs of these tests are of, and how many workloads of each."""
SIZE = 8
"""Of the model's image: what is unrolled from a large one takes seconds to build."""
LANGUAGES = {"sh", "python", "yaml", "text", "nginx", "ini"}
SHORT = {
    "lorien featurize": ["--processes", "1"],
    "lorien-train": ["--time-limit", "60", "--reuse"],
    "lorien rank": ["--top-k", "2", "--search-s", "0.5"],
    "lorien build": ["--budget", "4"],
    "lorien tune": ["--trials", "4", "--batch", "2"],
}


def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # it writes pages into docs/, which the checkout is to be spared
    for name in ("docs", "datasets"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("reference", "*.gz"))
    for path in [*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "CITATION.cff"]:
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_named_is_one(document: Path) -> None:
    """Blocks are read by the parsers; of commands in the running text, names and options."""
    for block in doc_blocks.blocks(document):
        assert block.language in LANGUAGES or block.language.startswith("{"), f"{block.where}: {block.language!r}"
        if block.language == "sh":
            for command in doc_blocks.commands(block.text):
                check(command, block.where)
        elif block.language == "python":
            compile(block.text, block.where, "exec")
    for name, *rest in doc_blocks.spans(document):
        if not rest or rest[0].startswith("-"):
            continue
        command, given = doc_blocks.find([name, *rest])
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        unknown = {word for word in given if word.startswith("-")} - known - {"--help", "-name=value"}
        assert not unknown, f"{document.name}: {name} {' '.join(rest)} names options that are none"


def check(command: str, where: str) -> None:
    """Raise when a command is none, or takes other arguments."""
    program, *rest = doc_blocks.words(command)
    if program in doc_blocks.PROGRAMS:
        try:
            doc_blocks.parse([program, *rest])
        except Exception as error:
            raise AssertionError(f"{where}: {command}: {error}") from error
    elif program == "pip":
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        for extra in re.findall(r"lorien\[([^]]*)\]", command):
            assert set(extra.split(",")) <= set(config["options.extras_require"]), f"{where}: {command}"
    elif program == "make":
        assert subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, check=False).returncode == 0, where
    elif program == "python" and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), f"{where}: {command}"


class Reader:
    """Somebody who types what a document says, block after block, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Any] = {}
        self._services = contextlib.ExitStack()
        self._url = ""

    def read(self, document: Path) -> None:
        with self._services:
            for block in doc_blocks.blocks(document):
                if not block.not_run:
                    self.follow(block)

    def follow(self, block: Block) -> None:
        if block.language == "sh":
            for command in doc_blocks.commands(block.text):
                self.type(command, block.where)
        elif block.language == "python":
            self.run_python(block)
        elif block.language == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", block.text)):
            (self.folder / name[1]).write_text(block.text)

    def type(self, command: str, where: str) -> None:
        program, *rest = doc_blocks.words(command)
        if program in ("make", "pip"):  # checked above; an environment is not installed anew for each page
            return
        if program not in doc_blocks.PROGRAMS:
            subprocess.run(["sh", "-euc", command], cwd=self.folder, check=True, capture_output=True)
            return
        name = program if program == "lorien-train" else f"{program} {rest[0]}"
        if name == "lorien serve":
            self._url = self._services.enter_context(served([program, *rest], self.folder))
            return
        done = CliRunner().invoke(
            doc_blocks.PROGRAMS[program], [*rest, *SHORT.get(name, [])], prog_name=program, catch_exceptions=False
        )
        assert done.exit_code == 0, f"{where}: {command}\n{done.output}"

    def run_python(self, block: Block) -> None:
        """With the names that the text takes for granted."""
        if not self._known:
            workload = read_workloads(self.folder / "workloads.jsonl")[0]
            with lorien.open_database(f"sqlite:///{self.folder / 'schedules.db'}") as database:
                records = list(database.query(workload=workload.key))
            self._known = {
                "workload": workload,
                "target": lorien.resolve_target("native"),
                "candidates": [record.candidate for record in records],
                "image": np.zeros((1, 3, SIZE, SIZE), np.float32),
            }
        text = block.text.replace("http://127.0.0.1:8642", self._url)
        exec(compile(text, block.where, "exec"), self._known)


@contextlib.contextmanager
def served(command: list[str], folder: Path) -> Iterator[str]:
    """``lorien serve`` as it is written, on a port that is free; the URL it tells."""
    with subprocess.Popen(
        [BIN / command[0], *command[1:], "--port", "0", "--json"], cwd=folder, stdout=subprocess.PIPE
    ) as service:
        assert service.stdout is not None
        try:
            yield json.loads(b"".join(iter(service.stdout.readline, b"}\n")) + b"}")["url"]
        finally:
            service.terminate()


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who followed README."""
    folder = tmp_path_factory.mktemp("readme")
    sample.cut_short(folder / "datasets" / "metaschedule", TUNED, records=12)
    networks.convolutions(folder / "model.onnx", channels=4, size=SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Reader(folder).read(ROOT / "README.md")
    return folder


def test_readme(after_readme: Path) -> None:
    left = {path.name for path in after_readme.iterdir()}
    assert left >= {"logs", "features", "models", "workloads.jsonl", "schedules.db", "built"}


def runs(document: Path) -> bool:
    return any(not block.not_run and block.language in ("sh", "python") for block in doc_blocks.blocks(document))


@pytest.mark.parametrize("document", [path for path in DOCUMENTS[1:] if runs(path)], ids=lambda path: path.stem)
def test_the_blocks_of(document: Path, after_readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(after_readme, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("sessions"))
    shutil.copytree(tmp_path / "models", tmp_path / "other-models")
    networks.convolutions(tmp_path / "detector.onnx", channels=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    Reader(tmp_path).read(document)
