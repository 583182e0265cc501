"""Builds and runs candidates in child processes that can be killed: a crash, a hang, a wrong build are Measurements.

The children are kept here and not by a pool library, for the sake of the timings: this knows that nothing of ours is
starting, importing or building while a candidate runs; and a child is not a copy of the caller's ``__main__``.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

import orjson

from lorien.dialects import open_live_dialect, resolve_target
from lorien.dialects.base import naive_of
from lorien.dialects.remote import Tracker
from lorien.files import temporary_folder
from lorien.machine import available_cores
from lorien.records import Candidate, Json, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune.contention import Contention, Watch
from lorien.tune.deadline import GRACE_S, Deadline
from lorien.tune.farm import Ending, Farm, Judge, OnceMore
from lorien.tune.nursery import Forked, Nursery, spawn
from lorien.tune.process import ProcessHandle
from lorien.tune.remeasure import Remeasurement
from lorien.tune.search_job import SPENT, Found, load_found

_BOOT = "import sys; sys.path[:] = sys.argv[1:-1]; from lorien.tune._child import {0}; {0}(int(sys.argv[-1]))"

Progress = Callable[[int, Measurement], None]


@dataclass(frozen=True)
class MeasureConfig:
    """How candidates are built and run.

    Parameters
    ----------
    builders : int
        Candidates built at a time.
    build_timeout_s, run_timeout_s : float
        Seconds after which a build or a run is killed.
    repeat : int
        Latencies per candidate.
    min_repeat_s : float
        Seconds that each of them is the mean over, at least.
    memory_bytes : int
        Data a child may allocate.
    jobs_per_child : int
        Builds or runs after which a child is replaced: compilers leak, and loaded libraries stay.
    check : bool
        Compare the outputs of each candidate with those of the naive kernel before it is timed.
    """

    builders: int = field(default_factory=available_cores)
    build_timeout_s: float = 30.0
    run_timeout_s: float = 30.0
    repeat: int = 3
    min_repeat_s: float = 0.03
    memory_bytes: int = 4 << 30
    jobs_per_child: int = 500
    check: bool = False


class Measurer:
    """Builds candidates in parallel, then runs them, in warm child processes. Safe across threads.

    On this machine they run one at a time, on a farm as many as it has devices.

    The children start to warm up here, in the background. ``close`` ends them, and so does the end of this process,
    however it comes.

    Parameters
    ----------
    dialect : str
        Name of a live dialect.
    target : Target or str
        This machine, or the device of it that is measured; with a tracker, the devices of that. A text is read by
        ``resolve_target`` while the children load the framework.
    config : MeasureConfig
    tracker : Tracker, optional
        Where candidates run.
    models : str, optional
        URL of the performance models to search with, in one more child.

    Raises
    ------
    UnknownDialect, UnsupportedOperation
        There is no such dialect, or it cannot build and run.
    DeviceUnavailable
        The tracker has no such device.
    """

    def __init__(
        self,
        dialect: str,
        target: Target | str,
        config: MeasureConfig | None = None,
        tracker: Tracker | None = None,
        models: str | None = None,
    ) -> None:
        forkable = getattr(open_live_dialect(dialect), "forkable", False) and sys.platform == "linux"
        self._farm = Farm(tracker, dialect) if tracker is not None else None
        runners = len(self._farm.devices) if self._farm is not None else 1
        self._config = config or MeasureConfig()
        self._lock = threading.Lock()
        self._folder = temporary_folder("lorien-measure-")
        self._dialect, self._models = dialect, models
        self._nursery = self._new_nursery() if forkable else None
        try:
            self.target = resolve_target(target, dialect) if isinstance(target, str) else target
        except BaseException:
            if self._nursery is not None:
                self._nursery.close()
            self._folder.cleanup()
            raise
        self._setup = orjson.dumps(
            {"dialect": dialect, "target": self.target.to_json(), "memory_bytes": self._config.memory_bytes}
        )
        if self._nursery is not None:
            self._nursery.warm_up(self._setup)
        count = runners + self._config.builders + (models is not None)
        self._children = [
            ProcessHandle(self._setup, Path(self._folder.name, f"child{index}.log"), self._launch)
            for index in range(count)
        ]
        self._runners = self._children[:runners]
        self._builders = self._children[runners:][: self._config.builders]
        self._searchers = self._children[runners + self._config.builders :]
        self._watch = Watch(self.target, self._processes, remote=tracker is not None)

    def measuring(self) -> AbstractContextManager[Contention]:
        """Tell other processes of the machine that this one measures until the block ends; find out what disturbs it.

        Every call below does so for as long as it lasts. This is for who measures again and again, and wants to know
        what disturbed all of it. Such blocks may lie within each other.
        """
        return self._watch.measuring()

    def measure(
        self,
        workload: Workload,
        candidates: Sequence[Candidate],
        progress: Progress | None = None,
        *,
        best_s: float | None = None,
        beside_builds: Callable[[], None] | None = None,
        until_s: float = math.inf,
    ) -> list[Measurement]:
        """Build all candidates, then run those that built; results in the order given.

        Parameters
        ----------
        workload : Workload
        candidates : sequence of Candidate
        progress : callable, optional
            Called in this thread with the index and the measurement of each candidate once it is believed.
        best_s : float, optional
            Best latency of the workload so far, infinity when there is none. A candidate that is clearly slower than
            this, or than another of this call, gets no full repeats; one that is much faster runs a second time before
            it is believed (``lorien.tune.remeasure``). Its ``detail`` says either. None runs all in full, once.
        beside_builds : callable, optional
            Called in another thread while candidates are built; none runs before it has returned.
        until_s : float
            Moment of ``time.monotonic`` at which what is under way is ended where a latency is known, ``best_s`` or
            one of this call; where none is, when there is one, ``GRACE_S`` later in any case. What did not end by
            itself is a ``BUILD_TIMEOUT`` or a ``RUN_TIMEOUT``, and ``detail`` says ``SPENT``.

        Raises
        ------
        LorienError
            A child could not start, twice. What a candidate does never raises here.
        DeviceUnavailable
            No device of the farm answers any more.
        """
        if not candidates:
            return []
        results: dict[int, Measurement] = {}
        build_s: dict[int, float] = {}

        def done(index: int, measurement: Measurement) -> None:
            results[index] = replace(measurement, timestamp_s=time.time(), build_s=build_s.get(index, 0.0))
            if progress is not None:
                progress(index, results[index])

        with self._lock, self.measuring(), tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            try:
                self._measure(workload, candidates, Path(folder), done, build_s, best_s, beside_builds, until_s)
            except BaseException:  # also an interrupt: what the children were doing is of no use any more
                self._kill()
                raise
        return [results[index] for index in range(len(candidates))]

    def build(self, jobs: Sequence[tuple[Workload, Path]]) -> list[Measurement | None]:
        """Build workloads as they are (any module may be one) to libraries; the failure of each, or None, in order."""
        return self._each("build", self._builders, jobs)

    def run(self, jobs: Sequence[tuple[Workload, Path]]) -> list[Measurement]:
        """Run libraries on inputs made for their workloads; results in order."""
        with self.measuring():
            results = self._each("run", self._runners, jobs)
        return [result or Measurement(Outcome.UNKNOWN_ERROR) for result in results]

    def search(self, workload: Workload, count: int, *, seed: int, budget_s: float | None, until_s: float) -> Found:
        """``LiveDialect.search`` with the model in a child, which is killed at ``until_s`` of ``time.monotonic``.

        Raises
        ------
        LorienError
            What the search raised. Its crash is told in ``Found.note``.
        """
        with self._lock, tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            job = {
                "workload": workload.to_json(),
                "count": count,
                "seed": seed,
                "budget_s": budget_s,
                "models": self._models,
                "answer": str(Path(folder, "answer.json")),
            }
            try:
                ended = list(self._work("search", self._searchers, {0: job}, Deadline(until_s, enough=True)))
            except BaseException:
                self._kill()
                raise
            if not ended:
                return Found(note=SPENT)
            failure = ended[0][1]
            if failure is not None:
                return Found(note=f"the search failed: {failure.outcome.value} {failure.detail}".strip())
            return load_found(Path(folder, "answer.json"))

    def new_folder(self) -> Path:
        """A folder for a library that outlives the call, until ``close``: no path may be used twice."""
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def _each(
        self, do: str, workers: Sequence[ProcessHandle], jobs: Sequence[tuple[Workload, Path]]
    ) -> list[Measurement | None]:
        common = {
            "schedule": None,
            "repeat": self._config.repeat,
            "min_repeat_s": self._config.min_repeat_s,
            "best_s": None,
            "expected": None,
        }
        given = {
            index: {**common, "workload": workload.to_json(), "library": str(library)}
            for index, (workload, library) in enumerate(jobs)
        }
        with self._lock:
            try:
                results = {index: result for index, result, _ in self._work(do, workers, given)}
            except BaseException:
                self._kill()
                raise
        return [results[index] for index in range(len(jobs))]

    def _measure(
        self,
        workload: Workload,
        candidates: Sequence[Candidate],
        folder: Path,
        done: Progress,
        build_s: dict[int, float],
        best_s: float | None,
        beside_builds: Callable[[], None] | None,
        until_s: float,
    ) -> None:
        common = {
            "workload": workload.to_json(),
            "repeat": self._config.repeat,
            "min_repeat_s": self._config.min_repeat_s,
            "best_s": None,
            "expected": str(folder / "expected.npz") if self._config.check else None,
        }
        # The folder is new in every call: the loader takes a path it has seen for the library it has loaded.
        jobs = {
            index: {**common, "schedule": candidate.schedule, "library": str(folder / f"{index}.so")}
            for index, candidate in enumerate(candidates)
        }
        if self._config.check:
            schedule = naive_of(open_live_dialect(self._dialect)).schedule
            naive = {-1: {**common, "schedule": schedule, "library": str(folder / "naive.so")}}
            for do, child in (("build", self._builders[0]), ("expect", self._runners[0])):
                for _, failure, _ in self._work(do, [child], naive):
                    if failure is not None:
                        detail = f"nothing to check against: the naive kernel: {failure.outcome.value} {failure.detail}"
                        for index in jobs:
                            done(index, Measurement(Outcome.UNKNOWN_ERROR, detail=detail))
                        return
        known = best_s is not None and math.isfinite(best_s)
        waiting, deadline = dict(jobs), Deadline(until_s, known)
        with ThreadPoolExecutor(1, "beside-builds") as thread:
            beside = thread.submit(beside_builds) if beside_builds is not None else None
            for index, failure, build_s[index] in self._work("build", self._builders, jobs, deadline):
                del waiting[index]
                if failure is not None:
                    done(index, failure)
                    del jobs[index]
                deadline.enough = deadline.enough or failure is None
        if beside is not None:
            beside.result()
        for index in waiting:
            done(index, Measurement(Outcome.BUILD_TIMEOUT, detail=SPENT))
            del jobs[index]
        self._run_built(jobs, done, best_s, Deadline(until_s, known))

    def _run_built(
        self, jobs: dict[int, dict[str, Json]], done: Progress, best_s: float | None, deadline: Deadline
    ) -> None:
        """Run what was built. With ``best_s``, what is much faster than all before runs again before it is believed."""
        remeasured = Remeasurement(best_s, jobs.keys())
        queue, waiting = deque(jobs), dict.fromkeys(jobs)

        def believe(results: Iterable[tuple[int, Measurement]]) -> None:
            for index, counts in results:
                del waiting[index]
                done(index, counts)
                deadline.enough = deadline.enough or counts.ok

        for job in jobs.values():
            job["best_s"] = best_s
        for index, result, _ in self._work("run", self._runners, jobs, deadline, queue):
            believe(remeasured.take(index, result or Measurement(Outcome.UNKNOWN_ERROR)))
            queue.extendleft(reversed(remeasured.again))
            remeasured.again.clear()
            for other, job in jobs.items():  # those that wait for their turn
                job["best_s"] = remeasured.limit_s(other)
        believe(remeasured.rest())
        for index in waiting:
            done(index, Measurement(Outcome.RUN_TIMEOUT, detail=SPENT))

    def _work(
        self,
        do: str,
        workers: Sequence[ProcessHandle],
        jobs: Mapping[int, Json],
        deadline: Deadline | None = None,
        queue: deque[int] | None = None,
    ) -> Iterator[tuple[int, Measurement | None, float]]:
        """Give the jobs to the workers; ends when all are done and every child, worker or not, is at rest.

        At the deadline it ends with the jobs that are done; the workers of the others are killed. Each comes with its
        CPU seconds; those of one that was killed or lost are how long it was waited for. A job that the caller puts
        into ``queue`` meanwhile is done again. What ran is marked where something disturbed it.
        """
        config, deadline = self._config, deadline or Deadline()
        # A search ends at its deadline, and that is no failure of its own.
        timeouts_s = {"build": config.build_timeout_s, "search": deadline.left_s + GRACE_S}
        timeout_s = timeouts_s.get(do, config.run_timeout_s)
        waiting = deque(jobs) if queue is None else queue
        judge: Judge = OnceMore() if do != "run" or self._farm is None else self._farm.judge()
        if do == "run":
            self._watch.begin()
        while True:
            if not deadline.left_s:
                for child in workers:
                    if child.working:
                        child.kill()
                return
            for child in workers:
                if waiting and child.idle and (child.exited or child.jobs >= config.jobs_per_child):
                    child.kill()
                if waiting and child.dead:
                    child.start()
                if waiting and child.idle:
                    index = waiting.popleft()
                    told = {**jobs[index], **judge.terms(index), "do": do, "session_s": timeout_s}
                    child.give(index, told, timeout_s + judge.grace_s, judge.wait_s)
            busy = [child for child in self._children if not child.idle and not child.dead]
            if not busy:
                return
            left_s = min(child.deadline_s for child in busy) - time.monotonic()
            wait([child.wire for child in busy], max(0.0, min(left_s, deadline.left_s)))
            for child in busy:
                for index, result in child.answers():
                    how = Ending(child.died, child.device, child.lost, child.broke)
                    if judge.again(index, result, how):
                        waiting.appendleft(index)
                    else:
                        yield index, self._marked(result) if do == "run" else result, child.spent_s

    def _marked(self, result: Measurement | None) -> Measurement | None:
        """What ran just now, with what disturbed it."""
        if result is None:
            return None
        disturbed, others_cores = self._watch.ran()
        return replace(result, disturbed=disturbed, others_cores=others_cores)

    def _processes(self) -> list[int]:
        """Numbers of the processes whose work is ours."""
        nursery = [self._nursery.pid] if self._nursery is not None else []
        # To ask whether a fork has ended tells its number.
        return nursery + [child.pid for child in self._children if not child.dead and not child.exited]

    def _new_nursery(self) -> Nursery:
        return Nursery(_command("prepare"), self._dialect, Path(self._folder.name, "nursery.log"))

    def _launch(self, wire: int, log: int) -> subprocess.Popen[bytes] | Forked:
        """Start a process that serves the jobs of the socket ``wire``."""
        if self._nursery is not None:
            if self._nursery.gone:
                self._nursery.close()
                self._nursery = self._new_nursery()
                self._nursery.warm_up(self._setup)
            return self._nursery.fork(wire, log)
        return spawn(_command("main"), wire, log, Path(self._folder.name))

    def _kill(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel()
        for child in self._children:
            child.kill()

    def close(self) -> None:
        """End the children."""
        self._kill()
        if self._nursery is not None:
            self._nursery.close()
        self._folder.cleanup()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _command(entry: str) -> list[str]:
    """What starts a process in ``lorien.tune._child``; the number of its socket follows."""
    return [sys.executable, "-c", _BOOT.format(entry), *sys.path]
