"""Halide: samples schedules with its Adams2019 autoscheduler, builds and runs them. Halide is imported on use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import LogInfo, LogWriter, ReadReport, ScoreFn
from lorien.dialects.halide import logs
from lorien.dialects.halide.pipelines import DIALECT, Pipeline, parse, require_halide
from lorien.records import Candidate, Layout, TuningRecord, Workload
from lorien.target import Target

__all__ = ["HalideDialect", "Pipeline"]


class HalideDialect:
    """Implements ``LiveDialect``. A workload is a named pipeline with sizes; its default, Adams2019's choice."""

    name = DIALECT
    shard_bytes = 1 << 20

    def find(self, path: Path) -> Iterator[Path]:
        """See ``LogDialect``."""
        return logs.find(path)

    def files(self, log: Path) -> list[Path]:
        """See ``LogDialect``."""
        return logs.files(log)

    def read(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TuningRecord]:
        """See ``LogDialect``."""
        return logs.read(log, info, report, shard)

    def reader(self, log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
        """See ``LineDialect``."""
        return logs.reader(log, info)

    def framework(self) -> str:
        """See ``LiveDialect``."""
        from lorien.dialects.halide.space import build_name

        return build_name()

    def native_target(self) -> Target:
        """See ``LiveDialect``: LLVM's name for the CPU, and the physical cores this process may run on."""
        from lorien.dialects.halide.space import native_target

        return native_target()

    def extract(
        self,
        model: Path,
        target: Target,
        shapes: dict[str, tuple[int, ...]] | None = None,
        *,
        allow_code: bool = False,
        layout: Layout = "auto",
    ) -> list[Workload]:
        """The workload that a pipeline's name and sizes are: ``matmul:512,512,512``. See ``LiveDialect``."""
        workload = parse(str(model))
        if ":" not in workload.identity[0]:
            require_halide()
            return [_counted(workload)]
        return [workload]

    def search(
        self,
        workload: Workload,
        target: Target,
        count: int,
        score: ScoreFn | None,
        *,
        seed: int = 0,
        budget_s: float | None = None,
    ) -> Sequence[Candidate]:
        """See ``LiveDialect``. The space is what Adams2019 makes under random dropout; every sample is scored."""
        from lorien.dialects.halide import space
        from lorien.dialects.halide.features import describe

        found = space.distinct(workload, target, count if score is None else space.SAMPLES, seed, budget_s)
        if score is None or not found:
            return found[:count]
        scores = score(describe([candidate.schedule for candidate in found], target))
        order = np.argsort(-scores, kind="stable")[:count]
        return [Candidate(found[index].schedule, float(scores[index])) for index in order]

    def warm_up(self, target: Target) -> None:
        """See ``LiveDialect``."""
        from lorien.dialects.halide.compile import warm_up

        warm_up(target)

    def build(self, workload: Workload, candidate: Candidate, target: Target, out: Path) -> None:
        """See ``LiveDialect``."""
        from lorien.dialects.halide.compile import build

        build(workload, candidate, target, out)

    def run(
        self, workload: Workload, library: Path, target: Target, *, repeat: int, min_repeat_s: float
    ) -> list[float]:
        """See ``LiveDialect``."""
        from lorien.dialects.halide.compile import run

        return run(workload, library, target, repeat=repeat, min_repeat_s=min_repeat_s)

    def outputs(self, workload: Workload, library: Path, target: Target) -> list[npt.NDArray[Any]]:
        """See ``LiveDialect``."""
        from lorien.dialects.halide.compile import outputs

        return outputs(workload, library, target)

    def log_writer(self, workloads: Sequence[Workload], target: Target) -> LogWriter:
        """See ``LiveDialect``."""
        return logs.Writer(workloads, target)


def _counted(workload: Workload) -> Workload:
    """With its operations counted, as its pipeline tells them."""
    from dataclasses import replace

    from lorien.dialects.halide.pipelines import pipeline_of

    return replace(workload, flop=pipeline_of(workload).flop)
