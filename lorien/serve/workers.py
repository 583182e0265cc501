"""Compilers stay in child processes: what a stranger sent can crash or hang one, and takes nothing else with it."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import ParamSpec, TypeVar

from anyio import to_thread

from lorien.database import open_database
from lorien.database.base import ScheduleDatabase
from lorien.delivery import Deliverer, Delivery
from lorien.errors import BadInput, LorienError, ServiceUnavailable, UnknownTarget
from lorien.featurize import open_extractor
from lorien.featurize.base import Features
from lorien.records import Candidate, Workload
from lorien.serve.config import ServeConfig
from lorien.serve.rankers import Rankers
from lorien.target import Target
from lorien.tune.measure import Measurer

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

JOBS_PER_CHILD = 1000
"""After so many a child is replaced: compilers leak."""
EXIT_S = 5.0
ANSWER_SHARE = 0.75
"""Of the seconds an answer may take, when verifying is ended: an answer of less is better than none."""
_SEND = "see that the candidates are of this workload, and send fewer at a time"


class Workers:
    """Child processes that answer one request each at a time.

    Parameters
    ----------
    count : int
        Children.
    backlog : int
        Requests given to them and not answered; one more is refused.
    config : ServeConfig
    """

    def __init__(self, count: int, backlog: int, config: ServeConfig) -> None:
        setup = _Setup(
            config.models, config.database, config.device, config.search_s, config.reload_s, config.timeout_s
        )
        self._children = [_Child(setup) for _ in range(count)]
        self._idle = list(self._children)
        self._free = asyncio.Semaphore(count)
        self._backlog = backlog
        self._given = 0

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of this module in a child, which is killed when the caller is cancelled.

        Raises
        ------
        ServiceUnavailable
            The backlog is full.
        LorienError
            What the function raised; ``BadInput`` when the child died of it.
        """
        if self._given >= self._backlog:
            raise ServiceUnavailable(f"{self._given} requests of this kind are waiting. Fix: ask again in a while")
        self._given += 1
        try:
            async with self._free:
                child = self._idle.pop()
                try:
                    return await to_thread.run_sync(
                        partial(child.call, function, *args, **kwargs), abandon_on_cancel=True
                    )
                except asyncio.CancelledError:
                    child.kill()
                    raise
                finally:
                    self._idle.append(child)
        finally:
            self._given -= 1

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.close()


class _Child:
    """A process that is started again when it is needed and gone."""

    def __init__(self, setup: _Setup) -> None:
        self._setup = setup
        self._calling = threading.Lock()
        self._start()

    def _start(self) -> None:
        # Spawned: a forked child of a process with threads can deadlock.
        context = multiprocessing.get_context("spawn")
        self._wire, theirs = context.Pipe()
        with theirs:
            self._process = context.Process(target=_answer, args=(theirs, self._setup))
            self._process.start()
        self._jobs = 0

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function there. Raises what it raises, and ``BadInput`` when the process dies of it."""
        with self._calling:
            if self._jobs >= JOBS_PER_CHILD:
                self.kill()
            if not self._process.is_alive():
                self._wire.close()
                self._start()
            self._jobs += 1
            try:
                # Written whole before any of it is sent: what cannot be written leaves the wire as it was.
                request = ForkingPickler.dumps((function, args, kwargs))
            except (RecursionError, TypeError, ValueError) as problem:
                raise BadInput(f"it cannot be sent to a child process: {problem}. Fix: {_SEND}") from None
            try:
                self._wire.send_bytes(request)
                value, error = self._wire.recv()
            except (EOFError, OSError):
                self.kill()
                raise BadInput(
                    f"the process that worked on this died (exit code {self._process.exitcode}). Fix: {_SEND}"
                ) from None
        if error is not None:
            raise error
        result: R = value
        return result

    def close(self) -> None:
        """Let the process end, so that it can clear up."""
        self._wire.close()
        self._process.join(EXIT_S)
        self.kill()

    def kill(self) -> None:
        """End the process; a call that waits for it ends too."""
        self._process.kill()
        self._process.join()


def _answer(wire: Connection, setup: _Setup) -> None:
    """What a child does until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt in the terminal is for the parent
    _setups.append(setup)
    with suppress(EOFError, OSError):
        while True:
            function, args, kwargs = wire.recv()
            try:
                answer = ForkingPickler.dumps((_judged(partial(function, *args, **kwargs)), None))
            except LorienError as error:
                answer = ForkingPickler.dumps((None, error))
            wire.send_bytes(answer)


@dataclass(frozen=True)
class _Setup:
    models: str | None
    database: str | None
    device: Target | None
    search_s: float
    reload_s: float
    timeout_s: float


_setups: list[_Setup] = []
"""In a child: the one it was started with."""


def extract(workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
    """Feature rows of candidates, as ``FeatureExtractor.extract`` gives them. Runs in a child."""
    return open_extractor(workload.dialect).extract(workload, candidates, target)


def deliver(workload: Workload, target: Target, top_k: int, verify: bool) -> Delivery:
    """A schedule, as ``Deliverer.deliver`` finds it. Runs in a child, which keeps what it needs for the next."""
    (setup,) = _setups
    ranker = None
    if (rankers := _rankers(setup.models)) is not None:
        rankers.refresh(older_than_s=setup.reload_s)
        try:
            ranker = rankers.get(target, workload.dialect)
        except UnknownTarget as error:
            logger.warning("%s. Answering with the default schedule", error)
    deliverer = Deliverer(
        target,
        database=_database(setup.database),
        ranker=ranker,
        measurer=_measurer(workload.dialect, target) if verify else None,
        top_k=top_k,
        search_s=setup.search_s,
    )
    return deliverer.deliver(workload, until_s=time.monotonic() + ANSWER_SHARE * setup.timeout_s)


def _judged(work: Callable[[], R]) -> R:
    """Whatever is raised on a stranger's data is about the data; its type may not exist in the parent."""
    try:
        return work()
    except LorienError:
        raise
    except Exception as error:
        logger.info("this came of what was sent", exc_info=True)
        reason = (str(error).strip().splitlines() or [""])[-1][:200]
        raise BadInput(
            f"it cannot be worked on: {type(error).__name__} {reason}. Fix: write the workload with lorien extract"
        ) from None


@cache
def _rankers(url: str | None) -> Rankers | None:
    return Rankers(url) if url is not None else None


@cache
def _database(url: str | None) -> ScheduleDatabase | None:
    return open_database(url) if url is not None else None


@cache
def _measurer(dialect: str, target: Target) -> Measurer:
    return Measurer(dialect, target)
