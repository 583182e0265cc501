"""``lorien tune``, and what is seen of it while it runs."""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorien.cli.console import INTERRUPTED, JsonFlag, command, emit, err, latency, out, table
from lorien.cli.fleet import tune_by_jobs
from lorien.cli.workloads import RunnerOption, TrustOption, read_runner, read_workloads
from lorien.errors import BadInput
from lorien.files import cache_folder

if TYPE_CHECKING:
    from lorien.records import Measurement
    from lorien.tune.loop import TuneReport
    from lorien.tune.session import Session, Trials

LINE_EVERY_S = 5.0
BUILD_TIMEOUT_S = 10.0
"""What takes longer to build is unrolled beyond reason: random samples lost most of their time to a few such."""
ROWS = 20
"""Workloads in the live view: those tuned last."""


@command
def tune(
    workloads: Annotated[Path, typer.Argument(help="File of workloads, written by lorien extract.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials over all workloads, those of --resume included.")],
    logs: Annotated[str, typer.Option(help="Log store: a folder or s3:// URL. The session is in sessions/ of it.")],
    per_workload: Annotated[
        int | None, typer.Option("--trials-per-workload", min=1, help="At most so many for each.")
    ] = None,
    db: Annotated[str | None, typer.Option(help="Schedule database to commit to as schedules improve.")] = None,
    model: Annotated[str, typer.Option(help="Model store that guides from the first batch on; or none.")] = "none",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the session of these workloads.")] = False,
    scheduler: Annotated[Literal["gradient", "round-robin"], typer.Option(help="Which workload is next.")] = "gradient",
    strategy: Annotated[
        Literal["evolutionary", "replay", "ranked"], typer.Option(help="How candidates are chosen.")
    ] = "evolutionary",
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="TVM's form, KIND_MODEL, or native; several make a run of jobs."),
    ] = None,
    runner: RunnerOption = None,
    trust_network: TrustOption = False,
    batch: Annotated[int, typer.Option(min=1, help="Candidates between two decisions.")] = 16,
    check: Annotated[bool, typer.Option("--check", help="Compare results with the naive kernel's.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    executor: Annotated[str, typer.Option(help="Where jobs are done; all but local make a run of jobs.")] = "local",
    run_name: Annotated[str | None, typer.Option("--run", help="Make a run of jobs of this name.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers of a run, for each target.")] = 1,
    batch_queue: Annotated[str | None, typer.Option(help="Queue of AWS Batch: batch://QUEUE?region=...")] = None,
    batch_definition: Annotated[str | None, typer.Option(help="Job definition of AWS Batch: NAME[:REVISION].")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, or auto; without, one is started here.")
    ] = None,
    lease_s: Annotated[
        float, typer.Option("--lease", min=1, help="Seconds until a job of a worker not heard of goes to another.")
    ] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Tune workloads on this machine, or by jobs. Whatever stops it, --resume goes on from the last trial."""
    from lorien.database import open_database
    from lorien.dialects import resolve_target
    from lorien.logs import open_logs
    from lorien.logs.ingest import ingest
    from lorien.models import load_ranker
    from lorien.tune.jobs import JobOptions
    from lorien.tune.loop import TuneConfig
    from lorien.tune.loop import tune as run
    from lorien.tune.measure import MeasureConfig, Measurer
    from lorien.tune.remote import RemoteSession
    from lorien.tune.session import open_session, session_name
    from lorien.tune.strategy import open_strategy

    asked = read_workloads(workloads)
    tracker = read_runner(runner, trust_network)
    resolved, *others = (resolve_target(text, asked[0].dialect) for text in target or ["native"])
    if executor != "local" or run_name is not None or others:
        share = max(1, trials // (len({workload.key for workload in asked}) * (1 + len(others))))
        options = JobOptions(
            min(share, per_workload or share), batch, scheduler, strategy, model, check, seed, BUILD_TIMEOUT_S
        )
        if tracker is not None:
            raise BadInput("the jobs of a run are measured where their workers are. Fix: leave --runner out, or --run")
        tune_by_jobs(
            name=run_name,
            executor=executor,
            ray_address=ray_address,
            batch_queue=batch_queue,
            batch_definition=batch_definition,
            workers=workers,
            workloads=asked,
            targets=[resolved, *others],
            options=options,
            logs=logs,
            db=db,
            lease_s=lease_s,
            resume=resume,
            as_json=as_json,
        )
        return
    store = open_logs(logs)
    config = TuneConfig(trials, per_workload, batch, scheduler)
    root = session_root(logs)
    copy = RemoteSession(logs, root / session_name(asked, resolved)) if logs.startswith("s3://") else None
    with ExitStack() as stack:
        if copy is not None:
            stack.enter_context(copy.taken_over(resume=resume))
        session = stack.enter_context(open_session(root, asked, resolved, resume=resume))
        # First, so that the children warm up while the rest is loaded and the first search runs.
        measurer = stack.enter_context(
            Measurer(asked[0].dialect, resolved, MeasureConfig(build_timeout_s=BUILD_TIMEOUT_S, check=check), tracker)
        )
        contention = stack.enter_context(measurer.measuring())
        database = stack.enter_context(open_database(db)) if db else None
        ranker = load_ranker(model, resolved, asked[0].dialect) if model != "none" else None
        # A seed of its own each time: samples of the sessions before would come again, as if the space were exhausted.
        search = open_strategy(strategy, asked[0].dialect, resolved, ranker, seed=seed + session.records)
        view = stack.enter_context(View(session, trials))

        def watch(index: int, measurement: Measurement) -> None:
            view.watch(index, measurement)
            if copy is not None:
                copy.check()

        interrupted = False
        with copy.following() if copy is not None else nullcontext():
            try:
                report = run(session, search, measurer, config, database=database, watch=watch)
            except KeyboardInterrupt:
                interrupted, report = True, None
        measurer.close()
        log = ingest([session.folder], store, dialect=session.dialect).logs if session.records else []
    if as_json:
        emit(answer_json(session, view, report, log) | contention.to_json())
    else:
        print_session(session)
        print_contention(str(contention))
    if interrupted:
        kept = f"interrupted after {session.records} trials, all kept. Fix: the same command with --resume goes on"
        err.print(kept, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)


def session_root(logs: str) -> Path:
    """Where sessions of a log store are: their logs grow, so they are local files. A store in S3 has copies."""
    if logs.startswith("s3://"):
        return cache_folder() / "sessions" / hashlib.sha256(logs.encode()).hexdigest()[:12]
    return Path(logs.removeprefix("file://")) / "sessions"


class View:
    """Progress for people on standard error: a table that changes on a terminal, else a line now and then.

    It draws when a trial has been acknowledged, between two measurements and never during one.
    """

    def __init__(self, session: Session, total: int) -> None:
        self._session = session
        self._total = total
        self._before = session.records
        self._started_s = self._drawn_s = time.monotonic()
        self._latest: list[int] = []
        self._live = Live(console=err, auto_refresh=False, transient=True) if err.is_terminal else None
        self.first_trial_s: float | None = None

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, index: int, measurement: Measurement) -> None:
        """Called with each trial acknowledged."""
        if self.first_trial_s is None:
            from lorien.machine import process_age_s

            self.first_trial_s = process_age_s()
        if not self._latest or self._latest[-1] != index:
            self._latest = [*(other for other in self._latest if other != index), index]
        now_s = time.monotonic()
        if self._live is not None:
            self._live.update(Group(Text(self.line()), self.rows()), refresh=True)
        elif now_s - self._drawn_s >= LINE_EVERY_S or self._session.records == self._total:
            self._drawn_s = now_s
            err.print(self.line(), soft_wrap=True)

    def line(self) -> str:
        """Trials, rate, time left, errors by kind, and the workload at hand."""
        done = self._session.records
        rate = (done - self._before) / max(time.monotonic() - self._started_s, 1e-9)
        left_s = (self._total - done) / rate if rate else 0.0
        parts = [f"{done}/{self._total} trials", f"{rate:.2f}/s", f"{int(left_s // 60)}:{int(left_s % 60):02d} left"]
        parts += [f"{count} {outcome}" for outcome, count in self._session.outcomes.most_common() if outcome != "ok"]
        own = self._session.trials[self._latest[-1]]
        return "  ".join([*parts, f"{own.workload.name}: {best(own)}"])

    def rows(self) -> Table:
        """The workloads tuned last, the latest of them below."""
        drawn = Table("workload", "calls", "trials", "best", box=None)
        for index in self._latest[-ROWS:]:
            own = self._session.trials[index]
            drawn.add_row(own.workload.name[:60], f"{own.workload.weight:g}", str(len(own.latencies_s)), best(own))
        return drawn


def best(own: Trials) -> str:
    """Best latency of a workload, with its speed."""
    if math.isinf(own.best_s):
        return "-"
    speed = f" {gflops(own):.1f} GFLOPS" if own.workload.flop else ""
    return f"{latency(own.best_s)}{speed}"


def gflops(own: Trials) -> float | None:
    """Speed of the best candidate."""
    return own.workload.flop / own.best_s / 1e9 if own.workload.flop and math.isfinite(own.best_s) else None


def answer_json(session: Session, view: View, report: TuneReport | None, log: list[str]) -> dict[str, Any]:
    """What ``lorien tune --json`` prints; without a report when it was interrupted."""
    answer: dict[str, Any] = {
        "session": str(session.folder),
        "log": log[0] if log else None,
        "trials": session.records,
        "outcomes": dict(session.outcomes),
        "first_trial_s": view.first_trial_s,
        "interrupted": report is None,
        "workloads": [
            {
                "name": own.workload.name,
                "key": own.workload.key,
                "weight": own.workload.weight,
                "trials": len(own.latencies_s),
                "best_latency_s": own.best_s if math.isfinite(own.best_s) else None,
                "best_gflops": gflops(own),
            }
            for own in session.trials
        ],
    }
    if report is not None:
        answer |= {
            "measured": report.trials,
            "seconds": report.seconds,
            "trials_per_s": report.trials / report.seconds if report.seconds else 0.0,
            "overhead": report.overhead,
            "exhausted": report.exhausted,
        }
    return answer


def print_contention(disturbance: str) -> None:
    """What disturbed the results, below them; nothing where nothing did."""
    if disturbance:
        out.print(f"latencies may be too long: {disturbance}", soft_wrap=True, markup=False)


def print_session(session: Session) -> None:
    """The table at the end."""
    rows = [[own.workload.name, own.workload.weight, len(own.latencies_s), best(own)] for own in session.trials]
    table(f"{session.records} trials in {session.folder}", ["workload", "calls", "trials", "best"], rows)
    failed = {outcome: count for outcome, count in session.outcomes.items() if outcome != "ok"}
    if failed:
        out.print("failed: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(failed.items())))
