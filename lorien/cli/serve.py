"""The command that answers others: serve."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lorien.cli.console import JsonFlag, command, emit, err
from lorien.errors import BadInput, MissingExtra

TOKEN_VARIABLE = "LORIEN_TOKEN"  # noqa: S105
MIN_TOKEN = 16


def read_token(path: Path | None) -> str | None:
    """The token in a file, else in the environment; None where there is neither. Raises ``BadInput`` on a short one.

    A file that every user of the machine may read or change is taken, with a warning.
    """
    if path is not None:
        if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            fix = f"chmod 600 {shlex.quote(str(path))}"
            err.print(
                f"[yellow]warning:[/] every user of this machine can read or change {escape(str(path))}, and so use "
                f"the service. Fix: {escape(fix)}",
                soft_wrap=True,
            )
        token: str | None = path.read_bytes().decode(errors="replace").strip()
    else:
        token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        where = path or TOKEN_VARIABLE
        raise BadInput(
            f"{where} holds no token of {MIN_TOKEN} characters or more. "
            "Fix: (umask 077; openssl rand -hex 32 > TOKEN_FILE)"
        )
    return token


@command
def serve(
    models: Annotated[str | None, typer.Option(help="Model store, written by lorien-train.")] = None,
    db: Annotated[str | None, typer.Option(help="Schedule database to ask first and to commit to.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8642,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File of the token that requests must carry; else {TOKEN_VARIABLE} is read.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build and run what clients ask for on this machine, if they ask for it.")
    ] = False,
    search_s: Annotated[float, typer.Option(min=0.1, help="Seconds of search for a schedule not in the database.")] = 8,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 16,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds an answer may take.")] = 120,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests answered at a time.")] = 32,
    reload_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks for newer models.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Answer over HTTP: rank candidates, deliver schedules, query the database. Stops when it is interrupted."""
    try:
        from lorien.serve.config import ServeConfig
        from lorien.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "serve") from None
    from lorien.dialects import resolve_target

    if models is None and db is None:
        raise BadInput("there is nothing to serve. Fix: give --models, --db or both")
    config = ServeConfig(
        models=models,
        database=db,
        token=read_token(token_file),
        device=resolve_target("native") if verify else None,
        search_s=search_s,
        max_body_bytes=round(max_body_mb * 1e6),
        timeout_s=timeout_s,
        concurrency=concurrency,
        reload_s=reload_s,
    )

    def listening(url: str) -> None:
        if as_json:
            emit({"url": url})
        else:
            err.print(f"listening on {url}, documentation at {url}/docs")

    run(config, host, port, listening)
