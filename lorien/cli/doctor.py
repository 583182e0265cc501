"""``lorien doctor``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.markup import escape

from lorien.cli.console import JsonFlag, command, emit, out

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@command
def doctor(
    logs: Annotated[str | None, typer.Option(help="Log store to try.")] = None,
    db: Annotated[str | None, typer.Option(help="Schedule database to try.")] = None,
    models: Annotated[str | None, typer.Option(help="Model store to try.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check packages, this machine, measuring on it, and the stores given. Exit code 1 when something fails."""
    from lorien.doctor import Status, examine

    found = []
    for finding in examine(logs=logs, database=db, models=models):
        found.append(finding)
        if not as_json:
            status, told = finding.status.value, escape(f"{finding.check}: {finding.found}")
            out.print(f"[{_COLOURS[status]}]{status:8}[/] {told}", soft_wrap=True)
            if finding.fix:
                out.print(f"         Fix: {escape(finding.fix)}", soft_wrap=True)
    healthy = all(finding.status is not Status.FAILED for finding in found)
    if as_json:
        emit({"healthy": healthy, "findings": [dataclasses.asdict(finding) for finding in found]})
    if not healthy:
        raise typer.Exit(1)
