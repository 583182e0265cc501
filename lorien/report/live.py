"""The page of a run of jobs while it goes on: on this machine alone, with a token, and whatever the database does."""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lorien.database import open_database
from lorien.database.base import ScheduleDatabase
from lorien.database.jobs import Counts, JobState, JobTable, Run, Status, open_jobs
from lorien.database.queue import find_run
from lorien.errors import LorienError
from lorien.logs.base import DETAILS, SESSIONS
from lorien.records import Json
from lorien.report import charts
from lorien.report.page import render
from lorien.serve.guard import digest, of_this_machine
from lorien.serve.server import answer, listener

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
EVERY_S = 2.0
SHARE = 20
"""A look waits so many times as long as the one before took: watching must not disturb what is measured."""
HISTORY = 600
RATE_S = 300.0
"""Trials a minute are those of so many seconds."""
SUMMING_UP_S = 1.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class _Tail:
    """How far a growing ``details.jsonl`` was read, and the lowest latency in seconds so far."""

    path: Path
    read_bytes: int = 0
    best_s: float = math.inf

    def read(self) -> float:
        """Read what it grew by, to its last whole line."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self.read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.read_bytes += len(line)
                with suppress(ValueError, KeyError, TypeError):
                    latencies_s = sorted(orjson.loads(line)["latencies_s"])
                    if latencies_s:
                        self.best_s = min(self.best_s, latencies_s[len(latencies_s) // 2])
        return self.best_s


@dataclass
class Watcher:
    """Looks at a run again and again in a thread; ``progress`` tells what was seen last, whatever the database does.

    Parameters
    ----------
    db, run : str
        Database of the jobs, and the run's name.
    logs : str, optional
        Log store: a folder shows the best latency of jobs that are tuned now.
    """

    db: str
    run: str
    logs: str | None = None
    _found: Run | None = field(default=None, init=False)
    _counts: Counts | None = field(default=None, init=False)
    _jobs: dict[int, dict[str, Json]] = field(default_factory=dict, init=False)
    _changed: dict[int, int] = field(default_factory=dict, init=False)
    _looks: int = field(default=0, init=False)
    _seen_s: float = field(default=0.0, init=False)
    _away: dict[str, Json] | None = field(default=None, init=False)
    _best: dict[int, tuple[float, float | None]] = field(default_factory=dict, init=False)
    _tails: dict[str, _Tail] = field(default_factory=dict, init=False)
    _history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=HISTORY), init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _opened: ExitStack = field(default_factory=ExitStack, init=False)
    _stores: tuple[JobTable, ScheduleDatabase] | None = field(default=None, init=False)

    def __enter__(self) -> Watcher:
        """Look once, so that a wrong name or database is told at once, then go on in a thread.

        Raises
        ------
        BadInput
            There is no such database or run.
        DatabaseUnavailable
            The database cannot be read.
        """
        self._look(time.time())
        # Not waited for at the end: it may be in the middle of a request that takes long to fail.
        threading.Thread(target=self._watch, name=f"watching {self.run}", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def progress(self, since: int) -> dict[str, Json]:
        """What a page shows: all but ``jobs``, which are those that changed after look number ``since``.

        ``away`` is null, or since when and why the database cannot be read; the rest is then of ``seen_s``.
        """
        with self._lock:
            assert self._found is not None and self._counts is not None  # noqa: S101, PT018 (seen when entered)
            counts, history = self._counts, list(self._history)
            trials = int(self._found.options.get("trials", 0)) * counts.total
            recent = [point for point in history if history[-1][0] - point[0] <= RATE_S]
            seconds = recent[-1][0] - recent[0][0]
            return {
                "run": self.run,
                "look": self._looks,
                "created_s": self._found.created_s,
                "seen_s": self._seen_s,
                "targets": list(self._found.targets),
                "counts": {status.value: counts.by_status.get(status, 0) for status in Status},
                "total": counts.total,
                "lapsed": counts.lapsed,
                "over": counts.open == 0,
                "trials": counts.records,
                "trials_wanted": trials,
                "trials_per_min": 60 * (recent[-1][1] - recent[0][1]) / seconds if seconds else None,
                "history": history,
                "away": self._away,
                "jobs": [job for number, job in self._jobs.items() if self._changed[number] > since],
            }

    def _watch(self) -> None:
        took_s = 0.0
        while not self._ended.wait(max(EVERY_S, SHARE * took_s)):
            started_s = time.monotonic()
            try:
                self._look(time.time())
                took_s = time.monotonic() - started_s
            except (LorienError, OSError) as error:
                self._lost(error)
            except Exception as error:
                logger.exception("looking at run %s failed", self.run)
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        # Whatever state the connection is in: the next look makes another.
        with suppress(Exception):
            self._opened.close()
        self._stores = None
        with self._lock:
            since_s = self._away["since_s"] if self._away else time.time()
            self._away = {"since_s": since_s, "message": str(error) or repr(error)}

    def _look(self, now_s: float) -> None:
        if self._stores is None:
            self._opened = ExitStack()
            table = self._opened.enter_context(open_jobs(self.db, create=False))
            self._stores = table, self._opened.enter_context(open_database(self.db, create=False))
        table, database = self._stores
        found, counts = find_run(table, self.run), table.counts(self.run, now_s)
        jobs = {state.number: self._job(state, table, database, now_s) for state in table.states(self.run)}
        with self._lock:
            self._looks += 1
            self._found, self._counts, self._seen_s, self._away = found, counts, now_s, None
            for number, job in jobs.items():
                if job != self._jobs.get(number):
                    self._jobs[number], self._changed[number] = job, self._looks
            self._history.append((now_s, counts.records))

    def _job(self, state: JobState, table: JobTable, database: ScheduleDatabase, now_s: float) -> dict[str, Json]:
        best_s, flop = self._best.get(state.number, (math.inf, None))
        if state.status is Status.DONE and state.number not in self._best:
            job = table.job(self.run, state.number)
            found = [record for workload in job.workloads for record in database.best(job.target, workload.key)]
            best_s = min((record.measurement.latency_s or math.inf for record in found), default=math.inf)
            flop = job.workloads[0].flop if len(job.workloads) == 1 else None
            self._best[state.number] = best_s, flop
        elif state.status is Status.LEASED and self.logs is not None and "://" not in self.logs:
            folder = f"{state.number}.{state.token}"
            tail = self._tails.setdefault(folder, _Tail(Path(self.logs, SESSIONS, self.run, folder, DETAILS)))
            best_s = tail.read()
        return {
            "number": state.number,
            "name": state.name,
            "target": state.target,
            "status": "lapsed" if state.lapsed(now_s) else state.status.value,
            "trials": state.records,
            "tries": state.tries,
            "worker": state.worker,
            "best_s": best_s if math.isfinite(best_s) else None,
            "gflops": flop / best_s / 1e9 if flop and math.isfinite(best_s) else None,
            "error": state.error and f"{state.error.value.replace('_', ' ')}: {state.detail}",
        }


def create_app(watcher: Watcher, token: str) -> Starlette:
    """The application: a page without a word of the run in it, and the run's progress for who has the token."""
    expected = digest(token.encode())
    page = render(
        "live.html.j2", scripts=["page.js", "live.js"], data={"charts": {"trials": charts.trials_over_time()}}
    )

    def refused(request: Request) -> Response | None:
        # A page from elsewhere could reach this one under a name that it gave to 127.0.0.1.
        if not of_this_machine(request.headers.get("host", "")):
            return Response("this name is not of this machine. Fix: use 127.0.0.1", 403, _HEADERS)
        return None

    async def shown(request: Request) -> Response:
        return refused(request) or HTMLResponse(page, headers=_HEADERS)

    async def progress(request: Request) -> Response:
        if (refusal := refused(request)) is not None:
            return refusal
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest(given.encode()), expected):
            return Response("no token, or not this page's. Fix: open the address as it was printed", 401, _HEADERS)
        since = request.query_params.get("since", "0")
        value: dict[str, Any] = watcher.progress(int(since) if since.isdecimal() and len(since) < 16 else 0)
        return Response(orjson.dumps(value), media_type="application/json", headers=_HEADERS)

    return Starlette(routes=[Route("/", shown), Route("/progress", progress)])


def serve_run(db: str, run: str, logs: str | None, port: int, listening: Callable[[str], None]) -> None:
    """Serve the page of a run on 127.0.0.1 until SIGINT or SIGTERM.

    Parameters
    ----------
    db, run, logs
        See ``Watcher``.
    port : int
        0 for any that is free.
    listening : callable
        Told the address with its token once it answers. The token is in the fragment, which no browser sends anywhere.

    Raises
    ------
    BadInput, DatabaseUnavailable
        See ``Watcher``.
    OSError
        The port cannot be had.
    """
    token = secrets.token_urlsafe(32)
    with listener(HOST, port) as sock, Watcher(db, run, logs) as watcher:

        def told(url: str) -> None:
            listening(f"{url}/#{token}")

        answer(create_app(watcher, token), HOST, sock, told, graceful_s=SUMMING_UP_S)
