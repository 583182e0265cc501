"""Runs a built model in a child process, beside its naive build and beside the implementation of its format.

Either may crash or hang, and is killed when it takes too long.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from lorien.dialects import open_model_dialect
from lorien.dialects.base import ModelInput
from lorien.errors import BadInput, LorienError
from lorien.files import temporary_folder
from lorien.records import Json
from lorien.target import Target
from lorien.tune.compare import IMPORTED, NETWORK, QUANTISED, compare_outputs, load_outputs, save_outputs
from lorien.tune.contention import Watch

if TYPE_CHECKING:
    import numpy.typing as npt

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from lorien.tune.model_run import {0}; {0}(*sys.argv[1:3])"
_SAID_CHARS = 800
NAIVE = "the naive build"
"""Of the same kernels with their loops as written: it shares no schedule, and no rule for one, with any other."""


@dataclass(frozen=True)
class ModelRun:
    """What came of a built model beside its naive build, and beside one of default schedules where it was timed.

    Parameters
    ----------
    difference : str
        Where the outputs differ by more than rounding; empty when they agree.
    latency_s, default_latency_s : float, optional
        Median seconds of one inference, and of one with default schedules; None when they were not timed.
    disturbance : str
        What else used the cores or the device meanwhile; empty for nothing, or when they were not timed.
    """

    difference: str
    latency_s: float | None = None
    default_latency_s: float | None = None
    disturbance: str = ""


@dataclass(frozen=True)
class ReferenceRun:
    """What came of a built model beside another implementation of its format, which its importer cannot have misled.

    Parameters
    ----------
    name : str
        The implementation, with its version; empty where there is none.
    difference : str
        Where the outputs differ by more than another implementation's may; empty when they agree or were not compared.
    skipped : str
        Why they were not compared; empty when they were.
    """

    name: str = ""
    difference: str = ""
    skipped: str = ""


def run_beside(
    dialect: str,
    target: Target,
    library: Path,
    naive: Path,
    inputs: Sequence[ModelInput],
    *,
    default: Path | None = None,
    repeat: int,
    min_repeat_s: float,
    timeout_s: float,
    outputs: Path | None = None,
) -> ModelRun:
    """Run two libraries on the same inputs and compare the outputs; time the first and ``default``, ``repeat`` times.

    The outputs of ``library`` are written to the file ``outputs``, for ``run_reference``.

    Raises
    ------
    LorienError
        A library crashed, hung or raised; the message holds what was said last.
    """
    job = {
        "dialect": dialect,
        "target": target.to_json(),
        "libraries": [str(path.resolve()) if path is not None else None for path in (library, naive, default)],
        "inputs": [dataclasses.asdict(entry) for entry in inputs],
        "repeat": repeat,
        "min_repeat_s": min_repeat_s,
        "outputs": str(outputs.resolve()) if outputs is not None else None,
    }
    found, disturbance = _in_child("main", job, timeout_s, "the built model, or the naive one beside it,", target)
    return dataclasses.replace(ModelRun(**found), disturbance=disturbance if repeat else "")


def run_reference(model: Path, inputs: Sequence[ModelInput], outputs: Path, timeout_s: float) -> ReferenceRun:
    """Compare the outputs that ``run_beside`` wrote with those of the ONNX model's own semantics, in a child.

    Never raises for what the other implementation does: then nothing was compared, and ``skipped`` says why.
    """
    job = {
        "model": str(model.resolve()),
        "shapes": [entry.shape for entry in inputs],
        "outputs": str(outputs.resolve()),
    }
    try:
        return ReferenceRun(**_in_child("reference", job, timeout_s, "the implementation to compare with")[0])
    except LorienError as error:
        return ReferenceRun(skipped=str(error))


def _in_child(
    entry: str, job: Json, timeout_s: float, what: str, target: Target | None = None
) -> tuple[dict[str, Any], str]:
    """What the function ``entry`` of this module answers to a job, in a process of its own; what disturbed it.

    With a target it measures there, and other processes are told so.
    """
    with temporary_folder("lorien-run-") as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        asked.write_bytes(orjson.dumps(job))
        command = [sys.executable, "-c", _BOOT.format(entry), str(asked), str(answer), *sys.path]
        with (
            Path(folder, "said").open("wb+") as said,
            subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            ) as child,
        ):
            watch = Watch(target, lambda: [child.pid]) if target is not None else None
            try:
                with watch.measuring() if watch is not None else nullcontext("") as contention:
                    code = child.wait(timeout_s)
                    if watch is not None:
                        watch.ran()
            except BaseException as error:  # also an interrupt: nobody waits for the child any more
                os.killpg(child.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise LorienError(f"{what} did not end within {timeout_s:g} s, and was killed") from None
                raise
            said.seek(0)
            last = said.read().decode(errors="replace").strip()[-_SAID_CHARS:]
        if code or not answer.is_file():
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise LorienError(f"{what} ended with {cause}: {last}")
        return orjson.loads(answer.read_bytes()), str(contention)


def main(asked: str, answer: str) -> None:
    """The child's side of ``run_beside``."""
    job = orjson.loads(Path(asked).read_bytes())
    dialect = open_model_dialect(job["dialect"])
    target = Target.parse(job["target"])
    inputs = [ModelInput(i["name"], tuple(i["shape"]), i["dtype"]) for i in job["inputs"]]
    library, naive, default = job["libraries"]

    def run(path: str, repeat: int) -> tuple[list[npt.NDArray[Any]], list[float]]:
        return dialect.run_model(Path(path), inputs, target, repeat=repeat, min_repeat_s=job["min_repeat_s"])

    found, latencies_s = run(library, job["repeat"])
    expected, _ = run(naive, 0)
    default_latencies_s = run(default, job["repeat"])[1] if default is not None else []
    if job["outputs"] is not None:
        save_outputs(Path(job["outputs"]), found)
    result = ModelRun(difference(found, expected), _median(latencies_s), _median(default_latencies_s))
    Path(answer).write_bytes(orjson.dumps(result))


def reference(asked: str, answer: str) -> None:
    """The child's side of ``run_reference``."""
    from lorien.dialects.metaschedule.onnx_reference import evaluate, evaluator

    job = orjson.loads(Path(asked).read_bytes())
    name, _ = evaluator()
    try:
        expected, quantised = evaluate(Path(job["model"]), [tuple(shape) for shape in job["shapes"]])
    except BadInput as error:
        result = ReferenceRun(name, skipped=str(error))
    except Exception as error:  # an operator that it lacks, or that its authors did not expect like this
        reason = " ".join(f"{type(error).__name__} {error}".split())[:_SAID_CHARS]
        result = ReferenceRun(name, skipped=f"{name} cannot run the model: {reason}")
    else:
        found, tolerance = load_outputs(Path(job["outputs"])), IMPORTED
        if quantised:
            found, expected, tolerance = _widened(found), _widened(expected), QUANTISED
        result = ReferenceRun(name, compare_outputs(found, expected, tolerance, reference=name, what="output"))
    Path(answer).write_bytes(orjson.dumps(result))


def difference(found: Sequence[npt.NDArray[Any]], expected: Sequence[npt.NDArray[Any]]) -> str:
    """Where the outputs of two builds of a model differ by more than rounding; empty when they agree."""
    return compare_outputs(found, expected, NETWORK, reference=NAIVE, what="output")


def _widened(tensors: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Tensors with bytes as floats: an output that was quantised has a tolerance too."""
    return [t.astype(np.float32) if t.dtype.kind in "iu" and t.dtype.itemsize == 1 else t for t in tensors]


def _median(latencies_s: Sequence[float]) -> float | None:
    return statistics.median(latencies_s) if latencies_s else None
