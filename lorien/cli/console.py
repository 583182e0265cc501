"""What every command shares: standard output for the result, standard error for people, exit codes."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TypeVar

import orjson
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from lorien.errors import LorienError
from lorien.records import Json

P = ParamSpec("P")
R = TypeVar("R")

err = Console(stderr=True, highlight=False)
# Piped into a file or a pager, a table is as wide as it needs to be.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]

INTERRUPTED = 130


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn Lorien's errors into one line on standard error and exit code 1, and an interrupt into 130."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        logging.basicConfig(
            level=logging.WARNING,
            format="%(message)s",
            handlers=[RichHandler(console=err, show_path=False)],
            force=True,
        )
        try:
            return function(*args, **kwargs)
        except LorienError as error:
            fail(str(error))
        except OSError as error:
            # Disk full, no permission, a path that is a folder: the system's own words name the path.
            fail(f"{error}")
        except KeyboardInterrupt:
            err.print("interrupted; what was finished is kept, run the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        raise AssertionError("unreachable")

    return run


def fail(message: str) -> None:
    """Print an error and leave with exit code 1."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)


def warn(messages: Sequence[str], title: str) -> None:
    """Say what was skipped, and why, without stopping."""
    if messages:
        err.print(f"[yellow]{title}[/]")
        for message in messages:
            err.print(f"  {escape(message)}", soft_wrap=True)


def emit(value: dict[str, Json]) -> None:
    """The one JSON object of ``--json``."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard output: numbers to the right, text to the left."""
    drawn = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and not isinstance(rows[0][index], str)
        drawn.add_column(column, justify="right" if numeric or index else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(_text(cell)) for cell in row))
    out.print(drawn)


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def latency(seconds: float | None) -> str:
    """A latency for people: three digits and a fitting unit."""
    if seconds is None:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar on a terminal, silence elsewhere. The callable takes (done, total, note)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(description, total=None, note="")

        def update(done: int, total: int | None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update
