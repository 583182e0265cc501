"""Lorien's warm measuring processes as MetaSchedule's builder and runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tvm
from tvm import te
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.workload import workload_of
from lorien.metaschedule.convert import as_target
from lorien.records import Measurement, Workload
from lorien.tune.measure import Measurer


@derived_object
class Builder(ms.builder.PyBuilder):  # type: ignore[misc]
    """Builds in warm child processes: a crash, a hang or an error is a result with its message.

    Stock ``LocalBuilder`` starts a new pool for every batch, and each of its processes reads the intrinsics of every
    device TVM knows.

    Parameters
    ----------
    measurer : Measurer
        Of dialect ``metaschedule``; the ``Runner`` takes the same one. Whoever opened it closes it.
    """

    def __init__(self, measurer: Measurer) -> None:
        super().__init__()
        register_intrinsics(measurer.target)
        self._measurer = measurer

    def build(self, build_inputs: Sequence[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        """One result for each input, in order. Every artifact is in a folder of its own."""
        results: dict[int, ms.builder.BuilderResult] = {}
        jobs: dict[int, tuple[Workload, Path]] = {}
        for index, given in enumerate(build_inputs):
            if as_target(given.target).key != self._measurer.target.key:
                results[index] = _refused(f"the target is {given.target}, the measurer's {self._measurer.target}")
            elif given.params:
                results[index] = _refused("parameters of a Relax module are not supported")
            else:
                jobs[index] = workload_of(given.mod, "main"), self._measurer.new_folder() / "main.so"
        for (index, (_, library)), failure in zip(jobs.items(), self._measurer.build(list(jobs.values())), strict=True):
            results[index] = (
                ms.builder.BuilderResult(str(library), None) if failure is None else _refused(_message(failure))
            )
        return [results[index] for index in range(len(build_inputs))]


@derived_object
class Runner(ms.runner.PyRunner):  # type: ignore[misc]
    """Runs one artifact after another in a warm child process, on inputs made by TVM's argument information.

    Parameters
    ----------
    measurer : Measurer
        See ``Builder``. Its configuration says how often and how long each artifact is run.
    """

    def __init__(self, measurer: Measurer) -> None:
        super().__init__()
        self._measurer = measurer

    def run(self, runner_inputs: Sequence[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        """One future for each input, in order, all of them done."""
        jobs = [(_stand_in(given.args_info), Path(str(given.artifact_path))) for given in runner_inputs]
        return [_Done(measurement) for measurement in self._measurer.run(jobs)]


@derived_object
class _Done(ms.runner.PyRunnerFuture):  # type: ignore[misc]
    def __init__(self, measurement: Measurement) -> None:
        super().__init__()
        self._measurement = measurement

    def done(self) -> bool:
        return True

    def result(self) -> ms.runner.RunnerResult:
        if self._measurement.ok:
            return ms.runner.RunnerResult(list(self._measurement.latencies_s), None)
        return ms.runner.RunnerResult(None, _message(self._measurement))


def _stand_in(args_info: Sequence[ms.arg_info.ArgInfo]) -> Workload:
    """A workload of the same arguments that does nothing: the child makes its inputs from it."""
    arguments = [te.placeholder(list(info.shape), str(info.dtype)) for info in args_info]
    return workload_of(tvm.IRModule({"main": te.create_prim_func(arguments)}), "main")


def _refused(message: str) -> ms.builder.BuilderResult:
    return ms.builder.BuilderResult(None, message)


def _message(failure: Measurement) -> str:
    return f"lorien: {failure.outcome.value}: {failure.detail}"
