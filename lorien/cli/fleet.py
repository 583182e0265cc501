"""Commands about runs made of jobs: ``lorien worker`` and ``lorien jobs``, and ``lorien tune`` by an executor."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lorien.cli.console import INTERRUPTED, JsonFlag, command, emit, err, out, table
from lorien.errors import BadInput, MissingExtra, StoreUnavailable

if TYPE_CHECKING:
    from lorien.database.jobs import Counts
    from lorien.records import Workload
    from lorien.target import Target
    from lorien.tune.jobs import JobOptions

WATCH_S = 2.0
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")

RunOption = Annotated[str, typer.Option("--run", help="Name of the run.")]
DatabaseUrl = Annotated[str, typer.Option("--db", help="Database of the jobs and the schedules.")]


@command
def worker(
    run: RunOption,
    db: DatabaseUrl,
    logs: Annotated[str, typer.Option(help="Log store: in S3, or a folder that all workers of the run share.")],
    target: Annotated[str, typer.Option("--target", help="Takes jobs of this target; native is this machine.")],
    as_json: JsonFlag = False,
) -> None:
    """Take jobs of a run until none is left. Every executor starts these; more may be started by hand."""
    from lorien.dialects import resolve_target
    from lorien.tune.worker import WorkerConfig, run_worker

    # AWS Batch, and what ends containers before their machine is taken away, ask with this signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done: dict[str, int] = {}
    config = WorkerConfig(run, db, logs, resolve_target(target).key, os.environ.get("AWS_BATCH_JOB_ID", ""))
    for state in run_worker(config):
        done[state.status.value] = done.get(state.status.value, 0) + 1
        err.print(f"job {state.number}  {state.name}  {state.status.value}  {state.records} trials", soft_wrap=True)
    if as_json:
        emit({"run": run, "jobs": done})


def tune_by_jobs(
    *,
    name: str | None,
    executor: str,
    ray_address: str | None,
    batch_queue: str | None,
    batch_definition: str | None,
    workers: int,
    workloads: list[Workload],
    targets: list[Target],
    options: JobOptions,
    logs: str,
    db: str | None,
    lease_s: float,
    resume: bool,
    as_json: bool,
) -> None:
    """``lorien tune`` as a run: make its jobs, or find them, and keep workers alive until all are over."""
    from lorien.database.jobs import Run, Status, open_jobs
    from lorien.database.queue import JobQueue, find_run
    from lorien.tune.executors import open_executor
    from lorien.tune.executors.base import drive
    from lorien.tune.jobs import jobs_of, remove_left_sessions, run_name
    from lorien.tune.worker import WorkerConfig

    if db is None:
        raise BadInput("the jobs of a run are in a database. Fix: --db sqlite:///FILE or dynamodb://TABLE")
    name = checked_name(name) if name else run_name(workloads, targets)
    keys = tuple(target.key for target in targets)
    placing: dict[str, Any] = {}
    if executor == "ray":
        placing = {"targets": keys, "address": ray_address}
    elif executor == "batch":
        if not batch_queue or not batch_definition:
            raise BadInput("Batch needs to know where. Fix: --batch-queue batch://QUEUE --batch-definition NAME")
        placing = {"queue": batch_queue, "definition": batch_definition}
    with open_jobs(db) as opened:
        found = opened.run(name)
        if found is not None and not resume:
            raise BadInput(f"run {name!r} is there. Fix: --resume goes on with it, --run NAME gives another a name")
        if found is not None and (found.options, found.targets) != (asdict(options), keys):
            raise BadInput(f"run {name!r} has other options. Fix: those it was started with, or another --run NAME")
        if found is None:
            opened.add_run(Run(name, time.time(), asdict(options), keys, lease_s), jobs_of(workloads, targets))
        queue = JobQueue(opened, find_run(opened, name))
        before = opened.counts(name, time.time()).records
        started_s = time.monotonic()
        interrupted = False
        # The workers of this machine share its cores. On another, each sees and logs who measures beside it.
        together = executor == "local" and workers * len(targets) > 1
        if together:
            err.print(
                f"{workers * len(targets)} workers measure on the same cores: their latencies will be too long. "
                "Fix: --workers 1, or lorien worker under taskset, each with cores of its own",
                soft_wrap=True,
            )
        with open_executor(executor, WorkerConfig(name, db, logs, ""), **placing) as running:
            try:
                drive(opened, queue, running, workers, watch=Line())
            except KeyboardInterrupt:
                interrupted = True
        try:
            remove_left_sessions(logs, name, lambda number: opened.state(name, number).published)
        except (BadInput, StoreUnavailable) as error:
            err.print(f"what is left of sessions stays: {error}", soft_wrap=True)
        counts = opened.counts(name, time.time())
    seconds = time.monotonic() - started_s
    if as_json:
        emit(
            run_json(name, counts)
            | {
                "interrupted": interrupted,
                "measured": counts.records - before,
                "seconds": seconds,
                "disturbed": together,
            }
        )
    else:
        out.print(f"run {name}: {summary(counts)}")
    if interrupted:
        err.print("interrupted; the jobs are kept. Fix: the same command with --resume goes on", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if counts.by_status.get(Status.DONE, 0) < counts.total:
        err.print(f"not every job is done. Fix: lorien jobs {name} --db {db} says why", soft_wrap=True)
        raise typer.Exit(1)


@command
def show(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    db: DatabaseUrl,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing the counts until every job is over.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show it as a page on 127.0.0.1, until interrupted.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any that is free.")] = 8643,
    logs: Annotated[
        str | None, typer.Option(help="Log store: the page shows the best latency of jobs at work.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the jobs of a run: how many in each state, and what went wrong."""
    from lorien.database.jobs import Status, open_jobs
    from lorien.database.queue import find_run
    from lorien.tune.executors.base import COUNT_PAUSE

    if serve:
        _serve(run, db, logs, port, as_json)
        return
    with open_jobs(db, create=False) as opened:
        find_run(opened, run)
        line = Line(every_s=0.0)
        started_s = time.monotonic()
        while (counts := opened.counts(run, time.time())).open and watch:
            line(counts)
            time.sleep(max(WATCH_S, COUNT_PAUSE * (time.monotonic() - started_s)))
            started_s = time.monotonic()
        listed = [state for state in opened.states(run) if state.status is not Status.WAITING or state.error]
    if as_json:
        emit(run_json(run, counts) | {"listed": [state.to_json() for state in listed]})
        return
    rows = [
        [
            str(s.number),
            s.name[:60],
            s.status.value,
            s.records,
            s.tries,
            s.worker,
            s.error and f"{s.error.value}: {s.detail}",
        ]
        for s in listed
    ]
    table(f"run {run}: {summary(counts)}", ["job", "workload", "state", "trials", "tries", "worker", "error"], rows)


def _serve(run: str, db: str, logs: str | None, port: int, as_json: bool) -> None:
    """The page of a run, until it is interrupted."""
    try:
        from lorien.report.live import serve_run
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "report") from None

    def listening(url: str) -> None:
        if as_json:
            emit({"run": run, "url": url})
        else:
            err.print(f"{url}\n  is the page of run {run}, for who has this address. Ctrl-C ends it.", soft_wrap=True)

    serve_run(db, run, logs, port, listening)


@command
def runs(db: DatabaseUrl, as_json: JsonFlag = False) -> None:
    """List the runs of a database."""
    from lorien.database.jobs import open_jobs

    with open_jobs(db, create=False) as opened:
        found = [(run.name, opened.counts(run.name, time.time())) for run in opened.runs()]
    if as_json:
        emit({"runs": [run_json(name, counts) for name, counts in found]})
    else:
        table(f"{len(found)} runs in {db}", ["run", "jobs"], [[name, summary(counts)] for name, counts in found])


@command
def retry(
    run: Annotated[str, typer.Argument(help="Name of the run.")], db: DatabaseUrl, as_json: JsonFlag = False
) -> None:
    """Let the jobs of a run that failed, were cancelled or set aside wait for a worker again."""
    _change(run, db, "retry", "wait for workers: lorien tune with --resume starts them, or lorien worker", as_json)


@command
def cancel(
    run: Annotated[str, typer.Argument(help="Name of the run.")], db: DatabaseUrl, as_json: JsonFlag = False
) -> None:
    """Cancel the jobs of a run that are open. Their workers stop at the next trial; what they measured is kept."""
    _change(run, db, "cancel", "are cancelled", as_json)


@command
def release(
    device: Annotated[str, typer.Argument(help="As the error of the worker names it: HOST/TARGET.")],
    db: DatabaseUrl,
    as_json: JsonFlag = False,
) -> None:
    """Give a device jobs again that failed too often in a row."""
    from lorien.database.jobs import open_jobs

    with open_jobs(db, create=False) as opened:
        if not (failures := opened.failures(device)):
            raise BadInput(f"no failures of a device {device!r} are known. Fix: its name as the worker's error has it")
        opened.forget_failures(device)
    if as_json:
        emit({"device": device, "failures": failures})
    else:
        out.print(f"{device}: {failures} failures in a row forgotten")


def _change(run: str, db: str, what: str, told: str, as_json: bool) -> None:
    from lorien.database.jobs import open_jobs
    from lorien.database.queue import JobQueue, find_run

    with open_jobs(db, create=False) as opened:
        queue = JobQueue(opened, find_run(opened, run))
        changed: int = getattr(queue, what)()
    if as_json:
        emit({"run": run, "changed": changed})
    else:
        out.print(f"run {run}: {changed} jobs {told}")


class Jobs(TyperGroup):
    """``lorien jobs RUN`` for ``lorien jobs show RUN``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What begins with no command of ours is a run to show."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=Jobs, no_args_is_help=True, help="Show the jobs of a run: lorien jobs RUN; retry or cancel them.")
for _function in (show, runs, retry, cancel, release):
    app.command()(_function)


def checked_name(name: str) -> str:
    """The name of a run, which is also a folder's. Raises ``BadInput``."""
    if not NAME.fullmatch(name) or name in ("show", "runs", "retry", "cancel", "release"):
        raise BadInput(
            f"{name!r} is no name for a run. Fix: letters, digits and . _ + -, and not a word of lorien jobs"
        )
    return name


class Line:
    """One line of counts on standard error when they changed, not too often."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s = every_s
        self._drawn_s = 0.0
        self._drawn: Counts | None = None

    def __call__(self, counts: Counts) -> None:
        """Print them."""
        now_s = time.monotonic()
        if counts != self._drawn and now_s - self._drawn_s >= self._every_s:
            self._drawn, self._drawn_s = counts, now_s
            err.print(summary(counts), soft_wrap=True)


def summary(counts: Counts) -> str:
    """Counts for people."""
    states = ", ".join(f"{count} {status.value.replace('_', ' ')}" for status, count in counts.by_status.items())
    lapsed = f" ({counts.lapsed} of them lapsed)" if counts.lapsed else ""
    return f"{states or 'no jobs'}{lapsed}; {counts.records} trials"


def run_json(name: str, counts: Counts) -> dict[str, Any]:
    """What ``--json`` says of a run."""
    return {
        "run": name,
        "jobs": {status.value: count for status, count in counts.by_status.items()},
        "lapsed": counts.lapsed,
        "trials": counts.records,
    }
