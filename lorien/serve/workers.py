"""Compilers stay in child processes: what a stranger sent can crash or hang one, and takes nothing else with it."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

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
        self._count = count
        self._backlog = backlog
        self._setup = _Setup(config.models, config.database, config.device, config.search_s, config.reload_s)
        self._given = 0
        self._pool = self._open()

    def _open(self) -> ProcessPool:
        # Spawned: a forked child of a process with threads can deadlock.
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self._count, JOBS_PER_CHILD, initializer=_remember, initargs=(self._setup,), context=context)

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
        if not self._pool.active:  # a child that dies while it has nothing to do breaks the pool
            self.close()
            self._pool = self._open()
        self._given += 1
        try:
            return await asyncio.wrap_future(self._pool.schedule(function, args=args, kwargs=kwargs))
        except ProcessExpired as error:
            raise BadInput(
                f"the process that worked on this died ({error}). Fix: see that the candidates are of this workload, "
                "and send fewer at a time"
            ) from None
        finally:
            self._given -= 1

    def close(self) -> None:
        """End the children, whatever they do."""
        self._pool.stop()
        self._pool.join()


@dataclass(frozen=True)
class _Setup:
    models: str | None
    database: str | None
    device: Target | None
    search_s: float
    reload_s: float


_setups: list[_Setup] = []


def _remember(setup: _Setup) -> None:
    _setups[:] = [setup]


def extract(workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
    """Feature rows of candidates, as ``FeatureExtractor.extract`` gives them. Runs in a child."""
    return _judged(lambda: open_extractor(workload.dialect).extract(workload, candidates, target))


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
    return _judged(lambda: deliverer.deliver(workload))


def _judged(work: Callable[[], R]) -> R:
    """Whatever is raised on a stranger's data is about the data; its type may not exist in the parent."""
    try:
        return work()
    except LorienError:
        raise
    except Exception as error:
        logger.exception("this came of what was sent")
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
