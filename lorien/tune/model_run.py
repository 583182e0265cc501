"""Runs a built model beside its unscheduled build in a child process: it may crash or hang with either of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lorien.dialects import open_model_dialect
from lorien.dialects.base import ModelInput
from lorien.errors import LorienError
from lorien.files import temporary_folder
from lorien.target import Target
from lorien.tune.contention import Watch

if TYPE_CHECKING:
    import numpy.typing as npt

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from lorien.tune.model_run import main; main(*sys.argv[1:3])"
_SAID_CHARS = 800
_TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 5e-2, 1: 0.3}
"""Largest difference allowed, in parts of the largest value, by bytes of a float: a network adds up what its workloads'
schedules reorder, so this is looser than for one workload."""


@dataclass(frozen=True)
class ModelRun:
    """What came of a built model beside its unscheduled build.

    Parameters
    ----------
    difference : str
        Where the outputs differ by more than rounding; empty when they agree.
    latency_s, default_latency_s : float, optional
        Median seconds of one inference of each; None when they were not timed.
    disturbance : str
        What else used the cores or the device meanwhile; empty for nothing, or when they were not timed.
    """

    difference: str
    latency_s: float | None = None
    default_latency_s: float | None = None
    disturbance: str = ""


def run_beside(
    dialect: str,
    target: Target,
    library: Path,
    default: Path,
    inputs: Sequence[ModelInput],
    *,
    repeat: int,
    min_repeat_s: float,
    timeout_s: float,
) -> ModelRun:
    """Run both libraries on the same inputs, compare the outputs, and time ``repeat`` times each if asked to.

    Raises
    ------
    LorienError
        A library crashed, hung or raised; the message holds what was said last.
    """
    job = {
        "dialect": dialect,
        "target": target.to_json(),
        "libraries": [str(library.resolve()), str(default.resolve())],
        "inputs": [dataclasses.asdict(entry) for entry in inputs],
        "repeat": repeat,
        "min_repeat_s": min_repeat_s,
    }
    with temporary_folder("lorien-run-") as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        asked.write_bytes(orjson.dumps(job))
        command = [sys.executable, "-c", _BOOT, str(asked), str(answer), *sys.path]
        with (
            Path(folder, "said").open("wb+") as said,
            subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            ) as child,
        ):
            watch = Watch(target, lambda: [child.pid])
            try:
                with watch.measuring() as contention:
                    code = child.wait(timeout_s)
                    watch.ran()
            except BaseException as error:  # also an interrupt: nobody waits for the child any more
                os.killpg(child.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise LorienError(f"the built model did not end within {timeout_s:g} s, and was killed") from None
                raise
            said.seek(0)
            last = said.read().decode(errors="replace").strip()[-_SAID_CHARS:]
        if code or not answer.is_file():
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise LorienError(f"the built model, or the unscheduled one beside it, ended with {cause}: {last}")
        ran = ModelRun(**orjson.loads(answer.read_bytes()))
        return replace(ran, disturbance=str(contention)) if repeat else ran


def main(asked: str, answer: str) -> None:
    """The child's side."""
    job = orjson.loads(Path(asked).read_bytes())
    dialect = open_model_dialect(job["dialect"])
    target = Target.parse(job["target"])
    inputs = [ModelInput(i["name"], tuple(i["shape"]), i["dtype"]) for i in job["inputs"]]
    runs = [
        dialect.run_model(Path(library), inputs, target, repeat=job["repeat"], min_repeat_s=job["min_repeat_s"])
        for library in job["libraries"]
    ]
    (found, latencies_s), (expected, default_latencies_s) = runs
    result = ModelRun(difference(found, expected), _median(latencies_s), _median(default_latencies_s))
    Path(answer).write_bytes(orjson.dumps(result))


def difference(found: Sequence[npt.NDArray[Any]], expected: Sequence[npt.NDArray[Any]]) -> str:
    """Where outputs differ by more than rounding; empty when they agree. Where one is not finite, both must be so."""
    import numpy as np

    if len(found) != len(expected):
        return f"{len(found)} outputs where the unscheduled build has {len(expected)}"
    for index, (tensor, right) in enumerate(zip(found, expected, strict=True)):
        tolerance = 0.0 if tensor.dtype.kind in "iub" else _TOLERANCE[tensor.dtype.itemsize]
        value, wanted = tensor.astype(np.float64), right.astype(np.float64)
        finite = np.abs(wanted[np.isfinite(wanted)])
        scale = float(finite.max(initial=0.0))
        if value.shape != wanted.shape or not np.allclose(value, wanted, 0.0, tolerance * scale, equal_nan=True):
            worst = float(np.nanmax(np.abs(value - wanted))) if value.shape == wanted.shape else float("nan")
            return f"output {index} is off by {worst:.3g} where the unscheduled build's largest value is {scale:.3g}"
    return ""


def _median(latencies_s: Sequence[float]) -> float | None:
    return statistics.median(latencies_s) if latencies_s else None
