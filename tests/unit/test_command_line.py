"""The command line as a newcomer meets it: every command answers in JSON, is completed, shows its use, and says what to
do when it is told something else than it wants."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doc_blocks
import networks
import pytest
import typer.main
from typer.testing import CliRunner

from lorien.cli.app import EXAMPLES, app, train_app

GOLDEN = Path(__file__).parents[1] / "golden" / "formats_v1"


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All commands below one, with their full names."""
    if hasattr(command, "commands"):
        for own, below in command.commands.items():
            yield from leaves(below, f"{name} {own}")
    else:
        yield name, command


COMMANDS = dict(
    (*leaves(typer.main.get_command(app), "lorien"), *leaves(typer.main.get_command(train_app), "lorien-train"))
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_in_json_and_explains_its_parameters(name: str) -> None:
    parameters = {parameter.name: parameter for parameter in COMMANDS[name].params}
    assert "--json" in parameters["as_json"].opts
    assert all(parameter.help for parameter in parameters.values()), name
    assert COMMANDS[name].help


@pytest.mark.parametrize("example", [*EXAMPLES.values()])
def test_the_examples_of_the_help_are_commands(example: str) -> None:
    doc_blocks.parse(doc_blocks.words(example))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", ["lorien", "lorien-train"])
def test_a_completion_script_is_produced(program: str, shell: str) -> None:
    script = run_with(program, f"source_{shell}")
    assert f"_{program.replace('-', '_').upper()}_COMPLETE" in script


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("lorien tu", {"tune"}), ("lorien da", {"database"}), ("lorien database c", {"create", "copy"})],
)
def test_words_are_completed(typed: str, completed: set[str]) -> None:
    answer = run_with("lorien", "complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(typed.split()) - 1))
    assert set(answer.split()) == completed


def test_options_are_completed() -> None:
    answer = run_with("lorien", "complete_bash", COMP_WORDS="lorien tune --tri", COMP_CWORD="2")
    assert set(answer.split()) == {"--trials", "--trials-per-workload"}


def run_with(program: str, asked: str, **words: str) -> str:
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    entry = {"lorien": "main", "lorien-train": "train_main"}[program]
    done = subprocess.run(
        [sys.executable, "-c", f"from lorien.cli import {entry}; {entry}()"],
        env={**os.environ, variable: asked, **words},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What somebody has after a day: logs, features, models, schedules, workloads, a model, a text file."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    networks.convolutions(tmp_path / "model.onnx")
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        # Not there.
        ("lorien extract gone.onnx -o w.jsonl", "give the path of an ONNX model"),
        ("lorien rank gone.jsonl", "lorien extract MODEL -o gone.jsonl"),
        ("lorien ingest gone --dialect autotvm --logs l", "give the path of a log"),
        ("lorien featurize gone -o f", "lorien ingest PATH"),
        ("lorien commit --logs gone --db s.db", "lorien ingest PATH"),
        ("lorien-train gone -o m", "lorien featurize LOGS -o gone"),
        ("lorien evaluate features --models gone", "lorien-train FEATURES -o MODELS"),
        ("lorien query --db gone.db", "lorien commit --logs LOGS --db sqlite:///gone.db"),
        ("lorien database stats gone.db", "lorien commit"),
        ("lorien jobs gone --db schedules.db", "lorien jobs runs"),
        ("lorien mutate workloads.jsonl --rules gone.yaml -o m.jsonl", "a YAML file of rules"),
        # Another thing than wanted.
        ("lorien rank model.onnx", "lorien extract model.onnx -o workloads.jsonl"),
        ("lorien tune model.onnx --trials 2 --logs logs", "lorien extract model.onnx -o workloads.jsonl"),
        ("lorien-train logs -o m", "lorien featurize logs -o FEATURES"),
        ("lorien featurize features -o f", "the store that lorien ingest or lorien tune wrote"),
        ("lorien ingest notes.txt --dialect autotvm --logs l", "--dialect with the framework"),
        ("lorien ingest logs --dialect tvm --logs l", "--dialect with one of these"),
        ("lorien query --db logs", "a database is a file"),
        ("lorien query --db notes.txt", "give another path"),
        ("lorien query --db mysql://x", "sqlite:///FILE"),
        ("lorien build notes.txt -o b", "*.onnx"),
        ("lorien extract workloads.jsonl -o w.jsonl", "*.onnx"),
        ("lorien tune workloads.jsonl --trials 2 --logs l", "use a live dialect"),
        ("lorien mutate workloads.jsonl --rules notes.txt -o m.jsonl", "version: 1"),
        ("lorien-train features -o m --preset turbo", "--preset fast or best"),
        ("lorien serve", "--models, --db or both"),
        ("lorien serve --db schedules.db --host 0.0.0.0", "--token-file"),
        ("lorien evaluate features --models models", "--holdout-network"),
    ],
)
def test_an_error_says_what_to_type_next(folder: Path, typed: str, told: str) -> None:
    program, *rest = typed.split()
    done = CliRunner().invoke(doc_blocks.PROGRAMS[program], rest, prog_name=program, catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (1, "")
    message = " ".join(done.stderr.split())
    assert "Fix: " in message
    assert told in message.partition("Fix: ")[2]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("lorien tun", "Did you mean 'tune'?"),
        ("lorien extract model.onnx", "Missing option '-o' / '--output'"),
        ("lorien rank w.jsonl --top-k many", "neither a number from 1 nor auto"),
        ("lorien extract m.onnx -o w.jsonl --shape x", "name=1,3,224,224"),
    ],
)
def test_a_wrong_use_points_to_the_help(typed: str, told: str) -> None:
    program, *rest = typed.split()
    done = CliRunner().invoke(doc_blocks.PROGRAMS[program], rest, prog_name=program)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert "--help' for help" in done.stderr


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o440, False), (0o644, True), (0o602, True)])
def test_a_token_that_every_user_can_read_is_told(tmp_path: Path, mode: int, warned: bool) -> None:
    """The service itself does not start here: another host is refused before its models are looked for."""
    path = tmp_path / "the token"
    path.write_text("0123456789abcdef\n")
    path.chmod(mode)
    command = ["serve", "--db", "gone/s.db", "--token-file", str(path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert (f"Fix: chmod 600 '{path}'" in done.stderr) is warned


def test_a_token_file_that_holds_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(bytes(range(128, 256)))
    done = CliRunner().invoke(app, ["serve", "--db", "s.db", "--token-file", str(path)], catch_exceptions=False)
    assert (done.exit_code, "holds no token" in done.stderr) == (1, True)


def test_a_query_that_finds_nothing_says_so(folder: Path) -> None:
    done = CliRunner().invoke(app, ["query", "--db", "schedules.db", "--workload", "softmax"])
    assert done.exit_code == 0
    assert "lorien database stats schedules.db" in done.stderr
