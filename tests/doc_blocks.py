"""The code blocks of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from lorien.cli.app import app, train_app

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",  # first: the others begin with what it leaves
    ROOT / "CONTRIBUTING.md",
    ROOT / "datasets" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
PROGRAMS = {"lorien": app, "lorien-train": train_app}

_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_SPAN = re.compile(r"`(lorien(?:-train)?(?: [^`\n]+(?:\n[^`\n]+)?)?)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, where it is not."""

    where: str
    language: str
    text: str
    not_run: str


def blocks(document: Path) -> Iterator[Block]:
    """All fenced blocks in order. What is indented to be code is an error: it would escape the tests."""
    lines = document.read_text(encoding="utf-8").split("\n")
    inside: Block | None = None
    body: list[str] = []
    for number, line in enumerate(lines, 1):
        where = f"{document.relative_to(ROOT)}:{number}"
        if inside is None and line.startswith("```"):
            reason = _NOT_RUN.fullmatch(lines[number - 2])
            inside, body = Block(where, line[3:].strip(), "", reason[1] if reason else ""), []
        elif inside is not None and line == "```":
            yield Block(inside.where, inside.language, "\n".join(body), inside.not_run)
            inside = None
        elif inside is not None:
            body.append(line)
        else:
            assert not (line.startswith("    ") and not lines[number - 2].strip()), (
                f"{where}: fence code, do not indent it"
            )


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block: continued lines joined, comments dropped."""
    for line in text.replace("\\\n", " ").split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def words(command: str) -> list[str]:
    """Its words, as a shell makes them of a plain command."""
    return shlex.split(command, comments=True)


def find(argv: list[str]) -> tuple[Any, list[str]]:
    """The command object that is named, and its arguments."""
    command, rest = typer.main.get_command(PROGRAMS[argv[0]]), argv[1:]
    while hasattr(command, "commands"):
        # As lorien.cli.fleet.Jobs has it: what is no command is a run to show.
        if rest and rest[0] not in command.commands and "show" in command.commands:
            rest = ["show", *rest]
        if not rest:
            return command, rest  # a group by itself
        assert rest[0] in command.commands, f"there is no command {' '.join(argv)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def parse(argv: list[str]) -> None:
    """Have the command's own parser read its arguments, without running it. Raises its usage errors."""
    command, rest = find(argv)
    command.make_context(argv[0], rest)


def spans(document: Path) -> Iterator[list[str]]:
    """Commands named in the running text: ``lorien NAME --option``, values left out."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for span in _SPAN.finditer(prose):
        yield span[1].split()
