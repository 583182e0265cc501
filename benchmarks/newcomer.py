"""A newcomer's path, timed: README and nothing else, from a fresh clone to a model of their own that is built.

    python benchmarks/newcomer.py --work FOLDER [--model model.onnx]

Clones this checkout's last commit, runs ``make demo`` (which installs everything from the package index), then README's
``extract``, ``rank`` and ``build`` as they stand, in the folder that the demo leaves. Without ``--model`` the model is
zfnet512, whose graph ships in the onnx package and which neither the logs nor the demo know. What is installed or
cached on the machine (pip's cache, the operating system's packages) is used: a first-time download takes longer.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harness import machine, markdown

ROOT = Path(__file__).parents[1]
STEPS = ("lorien extract ", "lorien rank ", "lorien build ")
ZFNET = (
    "import pathlib, onnx; print(pathlib.Path(onnx.__file__).parent / 'backend/test/data/light/light_zfnet512.onnx')"
)


def readme_commands() -> list[str]:
    """The lines of README's shell blocks that take a model from file to library, in its order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [next(line for line in lines if line.startswith(step)) for step in STEPS]
    return [line.partition(" # ")[0].strip() for line in found]


def timed(command: str, folder: Path, path: str) -> float:
    """Seconds that a shell command takes; its output goes through. Ends the program when it fails."""
    print(f"\n$ {command}", flush=True)
    started_s = time.perf_counter()
    done = subprocess.run(["sh", "-euc", command], cwd=folder, env={**os.environ, "PATH": path}, check=False)
    if done.returncode:
        sys.exit(f"{command} left with {done.returncode}")
    return time.perf_counter() - started_s


def main() -> None:
    """Clone, run, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="An empty folder: the clone goes there.")
    parser.add_argument("--model", type=Path, help="An ONNX model of your own.")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    clone = given.work.resolve() / "lorien"
    # A virtual environment that is active would be found before the clone's own.
    path = os.pathsep.join([str(clone / ".venv" / "bin"), *os.environ["PATH"].split(os.pathsep)])
    seconds = {"git clone": timed(f"git clone --quiet {ROOT} {clone}", given.work, os.environ["PATH"])}
    seconds["make demo"] = timed(f"make demo PYTHON={sys.executable}", clone, os.environ["PATH"])
    left = clone / "demo-out"
    python = clone / ".venv" / "bin" / "python"
    model = (
        given.model or subprocess.run([python, "-c", ZFNET], check=True, capture_output=True, text=True).stdout.strip()
    )
    shutil.copy(model, left / "model.onnx")
    for command in readme_commands():
        seconds[command] = timed(command, left, path)
    rows = [[step, f"{taken:.1f}"] for step, taken in seconds.items()]
    rows.append(["all", f"{sum(seconds.values()):.1f}"])
    print(f"\n{machine()}, model {Path(model).name}\n\n{markdown(['step', 'seconds'], rows)}")


if __name__ == "__main__":
    main()
