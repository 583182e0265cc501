"""The contracts of a dialect: a tuning framework, its logs, and (when live) its search space and its compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lorien.records import Candidate, Layout, Measurement, TuningRecord, Workload
from lorien.target import Target

FloatArray = npt.NDArray[np.float64]
ScoreFn = Callable[[npt.NDArray[np.float32]], FloatArray]
"""Features (candidates, columns) to scores (candidates,), higher is better."""

MAX_REASONS = 20
UNKNOWN_BUILD = "unknown"
"""Of records whose log does not tell, and nobody told, which framework made them."""


@dataclass(frozen=True)
class Task:
    """A workload as the tuner that wrote a log knows it.

    Parameters
    ----------
    name : str
        Distinct within a network; two networks may give different workloads the same one.
    weight : float
        Calls in its networks together.
    networks : tuple of str
        Networks it is of, where a log is of several.
    """

    name: str
    weight: float = 1.0
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogInfo:
    """What a log does not say about itself; kept beside it in ``lorien.json``.

    Parameters
    ----------
    target : Target, optional
        The device; None takes the log's word.
    target_given : bool
        The user, or the tuner that wrote the log, gave the target: it overrides what lines say. Else the log named it
        when it was ingested, and a line that names another, or none that can be read, is no record.
    network : str, optional
        Network the log was tuned for.
    build : str
        Framework and version, where the log does not say.
    tasks : tuple of Task
        The workloads as their tuner knows them, in its order; it need not name all.
    """

    target: Target | None = None
    network: str | None = None
    build: str = UNKNOWN_BUILD
    tasks: tuple[Task, ...] = ()
    target_given: bool = True

    @cached_property
    def named(self) -> dict[str, Task]:
        """The tasks by name, without those of names that several have."""
        counts = Counter(task.name for task in self.tasks)
        return {task.name: task for task in self.tasks if counts[task.name] == 1}

    @cached_property
    def weights(self) -> dict[str, float]:
        """Calls of a workload, by a name that tells; 1 for those not named."""
        return {name: task.weight for name, task in self.named.items()}


@dataclass
class ReadReport:
    """Counts what a reader met. ``unreadable`` lines were skipped; the first reasons are kept by line number."""

    records: int = 0
    failed: int = 0
    unreadable: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)

    def saw(self, record: TuningRecord) -> None:
        """Count one readable record."""
        self.records += 1
        if not record.measurement.ok:
            self.failed += 1
            self.outcomes[record.measurement.outcome.value] += 1

    def bad(self, where: str, reason: str) -> None:
        """Count one line that was skipped."""
        self.unreadable += 1
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(f"{where}: {reason}")


@runtime_checkable
class LogDialect(Protocol):
    """Reads a framework's native logs. Stateless; safe across threads and processes."""

    name: str
    shard_bytes: int
    """A log file larger than this is worth reading by several processes, each its own shard."""

    def find(self, path: Path) -> Iterator[Path]:
        """Logs of this dialect at or below ``path``, in a stable order, told by name and first bytes.

        A log is a file, or the folder that holds the framework's files. Nothing is found: nothing is yielded.
        """

    def files(self, log: Path) -> list[Path]:
        """The native files a log is made of, in a stable order."""

    def read(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TuningRecord]:
        """Stream the records of a log, in its order; of ``shard=(i, n)`` only records whose index mod n is i.

        Memory does not grow with the log. Lines that cannot be read are reported and skipped; a log cut short by
        an interrupted writer (gzip included) reads to its last whole line. Failed measurements are records.

        Raises
        ------
        UnreadableLog
            The file as a whole is no log of this dialect (binary, another framework's, empty).
        """


@runtime_checkable
class LineDialect(LogDialect, Protocol):
    """A log dialect with a record a line, in the last of a log's ``files``: its logs can be split by target."""

    def reader(self, log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
        """What makes a record of a line of the log, as ``read`` does. It raises ``BadInput`` on a line that is none."""


class LogWriter(Protocol):
    """Writes a framework's native log as lines, for a session that appends them. Stateless once made."""

    workload_file: str
    record_file: str

    def workload_lines(self) -> bytes:
        """Content of ``workload_file``: all workloads of the log."""

    def record_line(self, index: int, candidate: Candidate, measurement: Measurement) -> bytes:
        """A line of ``record_file``, its newline included: a candidate of workload number ``index``, measured."""


@runtime_checkable
class LiveDialect(LogDialect, Protocol):
    """A log dialect whose framework is here to extract, sample, build and run."""

    def framework(self) -> str:
        """Framework and version at hand, as ``TuningRecord.build`` names it: ``tvm 0.27.0.post1``."""

    def native_target(self) -> Target:
        """This machine, as the framework sees it."""

    def extract(
        self,
        model: Path,
        target: Target,
        shapes: dict[str, tuple[int, ...]] | None = None,
        *,
        allow_code: bool = False,
        layout: Layout = "auto",
    ) -> list[Workload]:
        """Distinct workloads of a model with their weights; formats that run code on loading need ``allow_code``.

        A dialect that lowers models gives the kernels of ``layout``. A dialect that does not may lack the keyword: it
        is told of no other layout than ``auto``.
        Raises ``BadInput`` naming what the front end lacks.
        """

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
        """At most ``count`` distinct candidates from the search space, best score first.

        With ``score`` an evolutionary search is guided by it (over the dialect's feature set); without, the
        candidates are random samples and carry no score. A dialect whose extractor names ``early`` columns takes two
        keywords more: ``draft``, another ``ScoreFn``, of rows in which all other columns are NaN; and ``rows``, a dict
        that is filled with the features (columns,) of each candidate scored and returned, by its key.
        Where an answer has a budget it is called in a child process, which is killed when that is spent.
        """

    def warm_up(self, target: Target) -> None:
        """Import the framework, so that the first build does not pay for it. The first thing a measuring child does.

        A dialect of which this starts no thread and touches no device may say so by ``forkable = True``: then one
        process does it, and measuring children are forks of that.
        """

    def build(self, workload: Workload, candidate: Candidate, target: Target, out: Path) -> None:
        """Compile a candidate to the shared library ``out``. Runs in a child; may raise, crash or hang.

        Raises ``BadInput`` when the schedule does not fit the workload; anything else raised is a build error.
        """

    def run(
        self, workload: Workload, library: Path, target: Target, *, repeat: int, min_repeat_s: float
    ) -> list[float]:
        """Latencies in seconds, one per repeat. Runs in a child; may raise, crash or hang."""

    def outputs(self, workload: Workload, library: Path, target: Target) -> list[npt.NDArray[Any]]:
        """All tensors after one run on inputs that depend on the workload only. Runs in a child.

        Candidates are checked against the default schedule's. A dialect whose default is made by rules of its own may
        name the loops as written instead, by ``naive = Candidate(...)``: a reference that shares nothing with them.
        """

    def log_writer(self, workloads: Sequence[Workload], target: Target) -> LogWriter:
        """What writes a log of these workloads that ``read`` and the framework's own tools read back."""


def naive_of(dialect: LiveDialect) -> Candidate:
    """The candidate that others are checked against: the dialect's ``naive``, or else its default schedule."""
    return getattr(dialect, "naive", Candidate(None))


@dataclass(frozen=True)
class ModelInput:
    """An input of a built model: its name, shape and element type (numpy's name, or ``bfloat16`` and its like)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Model(Protocol):
    """A model read and lowered for a target, whose workloads wait for their schedules."""

    workloads: list[Workload]
    """Distinct, with their calls as weights, as ``LiveDialect.extract`` gives them."""
    inputs: tuple[ModelInput, ...]

    def refusal(self, workload: Workload, candidate: Candidate) -> str:
        """Why a schedule cannot be applied to a workload of the model, and where it fails; empty when it can."""

    def build(self, schedules: Mapping[str, Candidate], library: Path) -> None:
        """Write a shared library with the schedules given by workload key, and the default for the others.

        The framework's own runtime loads it. Raises what the compiler raises.
        """

    def build_naive(self, library: Path) -> None:
        """Write a shared library of the model in the plain layout, with all loops as written.

        It shares as little as possible with what ``build`` makes, whose outputs are compared with it.
        """


@runtime_checkable
class ModelDialect(LiveDialect, Protocol):
    """A live dialect that compiles whole models."""

    def open_model(
        self,
        model: Any,
        target: Target,
        shapes: dict[str, tuple[int, ...]] | None = None,
        *,
        allow_code: bool = False,
        layout: Layout = "auto",
    ) -> Model:
        """Read and lower a model: a file, as in ``extract``, or the framework's own object.

        Raises ``BadInput`` naming what the front end lacks. Nothing is left out.
        """

    def run_model(
        self, library: Path, inputs: Sequence[ModelInput], target: Target, *, repeat: int, min_repeat_s: float
    ) -> tuple[list[npt.NDArray[Any]], list[float]]:
        """Outputs on inputs that depend on their shapes only, and ``repeat`` latencies in seconds.

        Runs in a child; may raise, crash or hang.
        """
