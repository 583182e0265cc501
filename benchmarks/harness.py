"""What the benchmarks share: run the real commands, read their JSON, time them, write tables down."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorien.dialects import resolve_target

BIN = Path(sys.executable).parent
GIB = 1 << 30


@dataclass(frozen=True)
class Done:
    """A finished command: its JSON, its wall time, and the largest resident size of any process seen so far."""

    value: dict[str, Any]
    seconds: float
    peak_bytes: int


def run(*command: str | Path) -> Done:
    """Run ``lorien …`` or ``lorien-train …`` with ``--json``; its standard error goes through."""
    program, *arguments = map(str, command)
    started_s = time.perf_counter()
    done = subprocess.run([BIN / program, *arguments, "--json"], stdout=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - started_s
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} left with {done.returncode}")
    # Linux counts in KiB, and the maximum is over all descendants that were waited for.
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Done(json.loads(done.stdout), seconds, peak_bytes)


def machine() -> str:
    """One line on what this was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{len(os.sched_getaffinity(0))} cores of {model}, Python {platform.python_version()}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as it goes into docs/benchmarks.md."""

    def text(cell: Any) -> str:
        if cell is None:
            return "-"
        return f"{cell:.3f}" if isinstance(cell, float) else str(cell)

    lines = [list(columns), ["---"] * len(columns), *[[text(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def about(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What results are of: this machine and its load, the date, the command, and versions, also of these packages."""
    versions = {}
    for package in ("lorien", "numpy", "pyarrow", "apache-tvm", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "machine": machine(),
        "target": resolve_target("native").key,
        "load": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(sys.argv),
        "versions": versions,
    }


def result_path(name: str) -> Path:
    """Where the raw results of a benchmark on this machine are: ``benchmarks/results/<name>/<machine>.json``."""
    return Path(__file__).parent / "results" / name / f"{resolve_target('native').key}.json"


def write_result(name: str, value: Any, packages: Sequence[str] = (), *, keep: bool = False) -> Path:
    """Keep the raw results of a benchmark, with what they are of.

    With ``keep`` the value is a dict, and results of other keys that are in the file stay there.
    """
    path = result_path(name)
    if keep and path.exists():
        value = json.loads(path.read_text())["results"] | value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about(packages), "results": value}, indent=1) + "\n")
    return path
