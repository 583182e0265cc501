"""TVM MetaSchedule: reads its logs, searches its space, builds and runs its schedules. TVM is imported on use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import LiveDialect, LogInfo, LogWriter, Model, ModelInput, ReadReport, ScoreFn
from lorien.dialects.metaschedule import logs
from lorien.dialects.metaschedule.workload import BUILD, DIALECT, NAIVE, native_target, require_tvm
from lorien.dialects.remote import Device, Tracker
from lorien.records import Candidate, Layout, TuningRecord, Workload
from lorien.target import Target


class MetaScheduleDialect:
    """MetaSchedule of TVM 0.27: a ``ModelDialect`` and a ``RemoteDialect``. A log is a folder of ``JSONDatabase``."""

    name = DIALECT
    forkable = True  # to load TVM starts no thread and touches no device
    naive = NAIVE
    shard_bytes = 64 << 10  # replaying traces takes 10 ms a record, and 64 KiB of gzip hold some 600 of them

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
        require_tvm()
        return BUILD

    def native_target(self) -> Target:
        """See ``LiveDialect``."""
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
        """See ``LiveDialect``. Models are ONNX files, PyTorch exported programs and Relax modules."""
        from lorien.dialects.metaschedule.extract import extract_workloads

        return extract_workloads(model, target, shapes, allow_code=allow_code, layout=layout)

    def search(
        self,
        workload: Workload,
        target: Target,
        count: int,
        score: ScoreFn | None,
        *,
        seed: int = 0,
        budget_s: float | None = None,
        draft: ScoreFn | None = None,
        rows: dict[str, npt.NDArray[np.float32]] | None = None,
    ) -> Sequence[Candidate]:
        """See ``LiveDialect``."""
        from lorien.dialects.metaschedule.search import search

        return search(workload, target, count, score, seed=seed, budget_s=budget_s, draft=draft, rows=rows)

    def warm_up(self, target: Target) -> None:
        """See ``LiveDialect``."""
        from lorien.dialects.metaschedule.compile import warm_up

        warm_up(target)

    def build(self, workload: Workload, candidate: Candidate, target: Target, out: Path) -> None:
        """See ``LiveDialect``."""
        from lorien.dialects.metaschedule.compile import build

        build(workload, candidate, target, out)

    def run(
        self, workload: Workload, library: Path, target: Target, *, repeat: int, min_repeat_s: float
    ) -> list[float]:
        """See ``LiveDialect``."""
        from lorien.dialects.metaschedule.compile import run

        return run(workload, library, target, repeat=repeat, min_repeat_s=min_repeat_s)

    def outputs(self, workload: Workload, library: Path, target: Target) -> list[npt.NDArray[Any]]:
        """See ``LiveDialect``."""
        from lorien.dialects.metaschedule.compile import outputs

        return outputs(workload, library, target)

    def devices(self, tracker: Tracker) -> list[str]:
        """See ``RemoteDialect``."""
        from lorien.dialects.metaschedule.rpc import devices

        return devices(tracker)

    def take(self, tracker: Tracker, avoid: Collection[str], banned: Collection[str]) -> Device:
        """See ``RemoteDialect``."""
        from lorien.dialects.metaschedule.rpc import take

        return take(tracker, avoid, banned)

    def at(self, device: Device, timeout_s: float) -> AbstractContextManager[LiveDialect]:
        """See ``RemoteDialect``."""
        from lorien.dialects.metaschedule.rpc import at

        return at(device, timeout_s)

    def log_writer(self, workloads: Sequence[Workload], target: Target) -> LogWriter:
        """See ``LiveDialect``."""
        from lorien.dialects.metaschedule.writer import JsonDatabaseWriter

        return JsonDatabaseWriter(workloads, target)

    def open_model(
        self,
        model: Any,
        target: Target,
        shapes: dict[str, tuple[int, ...]] | None = None,
        *,
        allow_code: bool = False,
        layout: Layout = "auto",
    ) -> Model:
        """See ``ModelDialect``. Models are those of ``extract``, and Relax modules in memory."""
        from lorien.dialects.metaschedule.frontends import load_model
        from lorien.dialects.metaschedule.network import Network

        if isinstance(model, (str, Path)):
            path = Path(model)
            return Network(load_model(path, shapes, allow_code=allow_code, layout=layout), target, path.stem, layout)
        return Network(model, target, "model", layout)

    def run_model(
        self, library: Path, inputs: Sequence[ModelInput], target: Target, *, repeat: int, min_repeat_s: float
    ) -> tuple[list[npt.NDArray[Any]], list[float]]:
        """See ``ModelDialect``."""
        from lorien.dialects.metaschedule.network import run

        return run(library, inputs, target, repeat=repeat, min_repeat_s=min_repeat_s)
