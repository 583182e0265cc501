"""A model built with the best schedules known: from the database, else ranked and verified now, else the default."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lorien.database import open_database
from lorien.delivery import SEARCH_S, Deliverer, Source
from lorien.dialects import open_model_dialect, resolve_target
from lorien.dialects.base import UNKNOWN_BUILD
from lorien.dialects.metaschedule.onnx_reference import RUNTIME, evaluator
from lorien.errors import LorienError, UnknownTarget
from lorien.files import temporary_folder
from lorien.models import load_ranker
from lorien.records import Candidate, Json, Layout, Workload
from lorien.target import Target
from lorien.tune.measure import MeasureConfig, Measurer
from lorien.tune.model_run import ModelRun, ReferenceRun, run_beside, run_reference

if TYPE_CHECKING:
    from lorien.database.base import ScheduleDatabase
    from lorien.dialects.base import Model
    from lorien.models.predictor import Ranker

logger = logging.getLogger(__name__)

LIBRARY, REPORT, WORKLOADS = "library.so", "report.json", "workloads.jsonl"
OUTPUTS = "outputs.npz"
REPORT_VERSION = 1
BUDGET_S = 60.0
TOP_K = 8
SEARCH_SHARE = 0.4
"""Of a workload's seconds, what its search gets; the rest builds and runs the first ranked."""
VERIFY_S = 0.4
"""Seconds to build and run a candidate on two cores, about: how many of them fit a workload's share."""
EVEN_SHARE = 0.5
"""Of the budget, what is spread evenly; the rest goes by operations. A light workload left to its default schedule can
cost more than a heavy one made a little better."""
MIN_SEARCH_S = 0.3
OVERRUN, MIN_SHARE_S = 2.0, 3.0
"""A workload is ended after so many times its share, and not before so many seconds."""
BUILD_TIMEOUT_S = 10.0
RUN_TIMEOUT_S = 600.0
REPEAT, MIN_REPEAT_S = 5, 0.2
REFERENCE_S, REFERENCE_TIMEOUT_S = 5.0, 30.0
"""Seconds that a comparison with another implementation may be expected to take, and after which it is ended."""
REFERENCE_BYTES = 1 << 30
"""Largest file of a model that is read once more for it."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Choice:
    """The schedule of one workload of a built model.

    Parameters
    ----------
    workload : Workload
    source : Source
        ``DATABASE``, ``RANKED`` (and verified now) or ``DEFAULT``.
    candidate : Candidate
    latency_s : float, optional
        Of the workload alone in seconds, as it was measured for the database or now.
    why : str
        Why it is not from the database, or is the default; empty for a hit.
    disturbance : str
        What else used the cores while its candidates ran; empty for nothing.
    """

    workload: Workload
    source: Source
    candidate: Candidate
    latency_s: float | None
    why: str
    disturbance: str = ""


@dataclass(frozen=True)
class BuildReport:
    """A built model: what is in the folder, and how it came to be.

    Parameters
    ----------
    folder : Path
        Holds ``library.so``, ``report.json`` (this), and ``workloads.jsonl``.
    target : Target
    build : str
        Framework and version that built it and runs it.
    choices : tuple of Choice
        One for each workload, in the model's order.
    run : ModelRun, optional
        Outputs beside those of the naive kernels, and latencies; None when it was not run.
    seconds : dict of str to float
        Wall time by step.
    reference : ReferenceRun, optional
        Outputs beside those of another implementation of the model's format; None when it was not run.
    """

    folder: Path
    target: Target
    build: str
    choices: tuple[Choice, ...]
    run: ModelRun | None
    seconds: dict[str, float] = field(default_factory=dict)
    reference: ReferenceRun | None = None

    @property
    def library(self) -> Path:
        """The library for the framework's runtime."""
        return self.folder / LIBRARY

    @property
    def disturbance(self) -> str:
        """What else used the cores while the model, or candidates of its workloads, ran; empty for nothing."""
        of_run = self.run.disturbance if self.run is not None else ""
        verified = [choice.disturbance for choice in self.choices if choice.disturbance]
        of_workloads = f"of {len(verified)} workloads verified, the first: {verified[0]}" if verified else ""
        return "; ".join(filter(None, (of_run and f"of the model: {of_run}", of_workloads)))

    def count(self, source: Source) -> int:
        """Workloads whose schedule is of that source."""
        return sum(choice.source is source for choice in self.choices)

    def to_json(self) -> dict[str, Json]:
        """``report.json``, and what ``lorien build --json`` prints."""
        return {
            "version": REPORT_VERSION,
            "library": str(self.library),
            "target": self.target.key,
            "build": self.build,
            "sources": {source.value: self.count(source) for source in Source},
            "latency_s": self.run.latency_s if self.run else None,
            "default_latency_s": self.run.default_latency_s if self.run else None,
            "checked": self.run is not None,
            "reference": dataclasses.asdict(self.reference) if self.reference else None,
            "seconds": self.seconds,
            "disturbed": bool(self.disturbance),
            "disturbance": self.disturbance,
            "workloads": [
                {
                    "name": choice.workload.name,
                    "key": choice.workload.key,
                    "weight": choice.workload.weight,
                    "flop": choice.workload.flop,
                    "source": choice.source.value,
                    "latency_s": choice.latency_s,
                    "why": choice.why,
                    "schedule": choice.candidate.schedule,
                }
                for choice in self.choices
            ],
        }


def build(
    model: Any,
    target: str | Target = "native",
    *,
    output: str | Path,
    database: str | None = None,
    models: str | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    budget_s: float = BUDGET_S,
    check: bool = True,
    run: bool = False,
    allow_code: bool = False,
    layout: Layout = "auto",
    progress: Progress | None = None,
) -> BuildReport:
    """Compile a model with the best schedules known.

    Parameters
    ----------
    model : str, Path or tvm.IRModule
        A file that ``lorien extract`` reads, or a Relax module that is not lowered yet.
    target : str or Target
        Any form ``Target.parse`` reads, or ``native``.
    output : str or Path
        Folder of ``library.so``, ``report.json`` and ``workloads.jsonl``; they are there when all went well.
    database : str, optional
        URL of the schedule database: asked first, and given what is verified now.
    models : str, optional
        URL of the performance models, for the workloads that are not in the database.
    shapes : dict of str to tuple of int, optional
        Shapes of the inputs that the model leaves open.
    budget_s : float
        Seconds to spend on those, the heaviest first; 0 leaves them to their default schedules. What takes longer is
        ended, a few seconds later where there is nothing to answer with yet.
    check : bool
        Run the library beside a build of the naive kernels, in the plain layout with loops as written, and compare the
        outputs; those of a small ONNX model also with ONNX Runtime's, or ONNX's reference evaluator's. Needs the target
        to be this machine.
    run : bool
        Time it too, beside a build of default schedules.
    allow_code : bool
        Load formats that run code.
    layout : str
        ``auto``, as suits the target, or ``plain``, as the file has it. Their workloads have different keys.
    progress : callable, optional
        Called with workloads done, workloads in all, and the name of the one at hand.

    Returns
    -------
    BuildReport

    Raises
    ------
    BadInput
        The model cannot be read, lowered or compiled.
    LorienError
        The outputs differ from the naive kernels' or from ONNX's, or a library crashed; or a store cannot be used.

    Examples
    --------
    >>> import lorien
    >>> report = lorien.build("model.onnx", database="best.db", output="built")  # doctest: +SKIP
    >>> report.library  # doctest: +SKIP
    PosixPath('built/library.so')
    """
    dialect = open_model_dialect("metaschedule")
    resolved = resolve_target(target) if isinstance(target, str) else target
    folder = Path(output)
    clock = _Clock()
    with clock("lower"):
        opened = dialect.open_model(model, resolved, shapes, allow_code=allow_code, layout=layout)
    with ExitStack() as stack:
        records = stack.enter_context(open_database(database)) if database else None
        with clock("database"):
            choices = {w.key: _known(w, opened, resolved, records, dialect.framework()) for w in opened.workloads}
        missing = [choice for choice in choices.values() if choice.source is Source.DEFAULT and choice.why]
        with clock("missing"):
            chosen = _choose(missing, resolved, records, models, budget_s, progress)
            choices.update((choice.workload.key, choice) for choice in chosen)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(stack.enter_context(temporary_folder(".building-", folder)))
        with clock("compile"):
            schedules = {key: choice.candidate for key, choice in choices.items()}
            _linked(partial(opened.build, schedules, scratch / LIBRARY))
        ran = reference = None
        if check or run:
            with clock("check"):
                _linked(partial(opened.build_naive, scratch / "naive.so"))
                default = None
                if run:
                    default = scratch / "default.so"
                    _linked(partial(opened.build, {}, default))
                ran = run_beside(
                    "metaschedule",
                    resolved,
                    scratch / LIBRARY,
                    scratch / "naive.so",
                    opened.inputs,
                    default=default,
                    repeat=REPEAT if run else 0,
                    min_repeat_s=MIN_REPEAT_S,
                    timeout_s=RUN_TIMEOUT_S,
                    outputs=scratch / OUTPUTS,
                )
            if ran.difference:
                raise LorienError(
                    f"the built model is wrong: {ran.difference}. Nothing was kept. "
                    "Fix: build it without --db, and tune its workloads again with lorien tune --check"
                )
            if check:
                with clock("reference"):
                    reference = _beside_reference(model, opened, scratch / OUTPUTS)
                if reference.difference:
                    raise LorienError(
                        f"TVM reads the model wrongly: {reference.difference}, with and without schedules. Nothing was "
                        "kept. Fix: export it with other operators, or give --no-check if this is right for you"
                    )
        built = tuple(choices.values())
        report = BuildReport(folder, resolved, dialect.framework(), built, ran, clock.seconds, reference)
        (scratch / REPORT).write_bytes(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2))
        lines = (orjson.dumps(workload.to_json()) + b"\n" for workload in opened.workloads)
        (scratch / WORKLOADS).write_bytes(b"".join(lines))
        for name in (WORKLOADS, LIBRARY, REPORT):
            os.replace(scratch / name, folder / name)
    return report


def _beside_reference(model: Any, opened: Model, outputs: Path) -> ReferenceRun:
    """Compare a model's outputs once with its format's own implementation, where that takes seconds."""
    path = Path(model) if isinstance(model, (str, Path)) else None
    if path is None or path.suffix != ".onnx":
        return ReferenceRun(skipped="it is no ONNX model, and other formats have no second implementation here")
    flop, size_bytes = sum(map(work, opened.workloads)), path.stat().st_size
    name, flop_per_s = evaluator()
    if flop > REFERENCE_S * flop_per_s:
        faster = "" if name.startswith(RUNTIME) else ". Fix: pip install onnxruntime, which is faster"
        estimate = f"{flop / 1e9:.1f} GFLOP would take {name} about {flop / flop_per_s:.0f} s"
        return ReferenceRun(name, skipped=estimate + faster)
    if size_bytes > REFERENCE_BYTES:
        return ReferenceRun(name, skipped=f"the file is over {REFERENCE_BYTES >> 20} MiB")
    return run_reference(path, opened.inputs, outputs, REFERENCE_TIMEOUT_S)


def _linked(build: Callable[[], None]) -> None:
    """Build a library; what its linker raises has a fix."""
    try:
        build()
    except LorienError:
        raise
    except Exception as error:  # a linker raises anything
        reason = f"{type(error).__name__} {error}".strip().splitlines()[-1]
        raise LorienError(
            f"the library cannot be linked: {reason}. "
            "Fix: lorien doctor builds a kernel here; another machine's target needs its linker"
        ) from error


def _known(workload: Workload, model: Model, target: Target, database: ScheduleDatabase | None, build: str) -> Choice:
    """The fastest schedule of this framework build in the database that applies; else the default and why."""
    if database is None:
        return _default(workload, "no database was given")
    refused = ""
    for record in database.best(target, workload.key, database.n_best, build=build):
        refusal = model.refusal(workload, record.candidate) if record.candidate.schedule is not None else ""
        if not refusal:
            return Choice(workload, Source.DATABASE, record.candidate, record.measurement.latency_s, "")
        refused = refused or f"the record does not replay: {refusal}"
    if refused:
        return _default(workload, refused)
    other = sorted({record.build for record in database.best(target, workload.key, database.n_best)})
    if other == [UNKNOWN_BUILD]:
        return _default(workload, f"measured with who knows what: lorien ingest --build '{build}' says so of logs")
    return _default(workload, f"only measured with {', '.join(other)}" if other else "not in the database")


def _default(workload: Workload, why: str) -> Choice:
    return Choice(workload, Source.DEFAULT, Candidate(None), None, why)


def _choose(
    missing: Sequence[Choice],
    target: Target,
    database: ScheduleDatabase | None,
    models: str | None,
    budget_s: float,
    progress: Progress | None,
) -> list[Choice]:
    """Rank and verify what is missing, heaviest first, within the budget; else the default and one more reason."""
    if not missing or models is None or budget_s <= 0:
        reason = "no models were given" if models is None else "no budget was given"
        return [_because(choice, reason) for choice in missing]
    started_s = time.monotonic()
    # First, so that the children warm up while the model loads.
    config = MeasureConfig(build_timeout_s=BUILD_TIMEOUT_S)
    with Measurer("metaschedule", target, config, models=models) as measurer, measurer.measuring():
        try:
            ranker = load_ranker(models, target, "metaschedule")
        except UnknownTarget as error:
            logger.warning("%s. Building with default schedules", error)
            return [_because(choice, f"no model for {target}") for choice in missing]
        return list(_rank(missing, Budget(started_s + budget_s), target, database, ranker, measurer, progress))


def _rank(
    missing: Sequence[Choice],
    budget: Budget,
    target: Target,
    database: ScheduleDatabase | None,
    ranker: Ranker,
    measurer: Measurer,
    progress: Progress | None,
) -> Iterator[Choice]:
    waiting = sorted(missing, key=lambda choice: -work(choice.workload))
    for index, choice in enumerate(waiting):
        if progress is not None:
            progress(index, len(waiting), choice.workload.name)
        share_s = budget.share([work(other.workload) for other in waiting[index:]])
        if share_s <= 0:
            yield _because(choice, "the budget was spent")
            continue
        search_s = min(SEARCH_S, max(MIN_SEARCH_S, SEARCH_SHARE * share_s))
        top_k = max(1, min(TOP_K, int((share_s - search_s) / VERIFY_S)))
        deliverer = Deliverer(
            target,
            database=database,
            ranker=ranker,
            measurer=measurer,
            top_k=top_k,
            search_s=search_s,
            searcher=measurer,
        )
        # One that takes longer than its share is ended before it has that of all others.
        until_s = min(budget.deadline_s, time.monotonic() + max(OVERRUN * share_s, MIN_SHARE_S))
        answer = deliverer.deliver(choice.workload, fresh=True, until_s=until_s)
        why = "; ".join(filter(None, (choice.why, answer.note)))
        yield Choice(choice.workload, answer.source, answer.candidate, answer.latency_s, why, answer.disturbance)


def work(workload: Workload) -> float:
    """Operations of all calls of a workload in its model."""
    return (workload.flop or 0.0) * workload.weight


@dataclass(frozen=True)
class Budget:
    """Seconds until a moment of ``time.monotonic``, shared among what is left to do."""

    deadline_s: float

    def share(self, works: Sequence[float], now_s: float | None = None) -> float:
        """Seconds for the first of the workloads left, by their operations; 0 when the time is up."""
        left_s = self.deadline_s - (time.monotonic() if now_s is None else now_s)
        total = sum(works)
        heavy = works[0] / total if total else 1 / len(works)
        return max(0.0, left_s * (EVEN_SHARE / len(works) + (1 - EVEN_SHARE) * heavy))


def _because(choice: Choice, reason: str) -> Choice:
    return _default(choice.workload, f"{choice.why}; {reason}")


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - started_s
