"""What a service holds while it runs: models, database, child processes; and the answers it gives from them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
import numpy as np
import orjson

from lorien.database import open_database
from lorien.database.base import ScheduleDatabase
from lorien.delivery import Deliverer, Delivery
from lorien.dialects import open_live_dialect
from lorien.errors import BadInput, LorienError, NotAllowed, SchemaMismatch, UnsupportedOperation
from lorien.featurize.base import Features
from lorien.machine import available_cores
from lorien.models import Ranker
from lorien.models.metrics import FloatArray
from lorien.records import Candidate, Json, TuningRecord, Workload
from lorien.serve import workers
from lorien.serve.config import ServeConfig
from lorien.serve.metrics import Metrics
from lorien.serve.rankers import Rankers
from lorien.serve.wire import FEATURES_DTYPE, record_to_json
from lorien.serve.workers import Workers
from lorien.target import Target

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

DELIVERIES_WAITING = 4
"""A search takes seconds, and one runs at a time: who would wait longer is told to come back."""
MIN_ROWS = 1024
"""Feature rows worth a thread of their own: some milliseconds of them."""
CHUNK = 64
"""Records of a query that are read and sent at a time."""


class Service:
    """The parts of a running service. Opened before the first request, closed after the last.

    Raises
    ------
    LorienError
        A store cannot be read.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.healthy = True
        with ExitStack() as stack:
            self._rankers = Rankers(config.models) if config.models is not None else None
            self._database: ScheduleDatabase | None = None
            if config.database is not None:
                self._database = stack.enter_context(open_database(config.database))
            self._cores = available_cores()
            self._extracting = Workers(self._cores, config.concurrency, config)
            stack.callback(self._extracting.close)
            self._delivering = Workers(1, DELIVERIES_WAITING, config)
            stack.callback(self._delivering.close)
            # More at a time than cores would make all of them late.
            self._scoring = anyio.CapacityLimiter(self._cores)
            self._told()
            self._stack = stack.pop_all()

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def ready(self) -> bool:
        """True when models are loaded, where there is a store of them, and the database answers."""
        return self.healthy and (self._rankers is None or bool(self._rankers.all()))

    def rankers(self) -> Rankers:
        """The loaded models. Raises ``UnsupportedOperation`` when the service has no store of them."""
        if self._rankers is None:
            raise UnsupportedOperation("this service has no models. Fix: start it with --models")
        return self._rankers

    def database(self) -> ScheduleDatabase:
        """The schedule database. Raises ``UnsupportedOperation`` when the service has none."""
        if self._database is None:
            raise UnsupportedOperation("this service has no schedule database. Fix: start it with --db")
        return self._database

    async def keep_fresh(self) -> None:
        """Look for newer models, and whether the database answers, for ever."""
        while True:
            await anyio.sleep(self.config.reload_s)
            try:
                await anyio.to_thread.run_sync(self._refresh)
            except Exception:  # whatever it is, the next look may go well
                logger.exception("could not look for newer models")

    def _refresh(self) -> None:
        if self._rankers is not None:
            self._rankers.refresh()
            self._told()
        try:
            if self._database is not None:
                self._database.best(Target("llvm"), "0" * 32)
            self.healthy = True
        except LorienError as error:
            self.healthy = False
            logger.warning("not ready: %s", error)

    def _told(self) -> None:
        if self._rankers is not None:
            self.metrics.loaded(self._rankers.all(), len(self._rankers.problems))

    async def rank(self, workload: Workload, candidates: list[Candidate], target: Target) -> tuple[Ranker, FloatArray]:
        """What ``Ranker.rank`` gives, the compiler being in a child process."""
        ranker = self.rankers().get(target, workload.dialect)
        features = await self._extracting.run(workers.extract, workload, candidates, target)
        return ranker, await self._scored(ranker, features)

    async def score(
        self, rows: bytes, feature_set: str, target: Target, dialect: str | None
    ) -> tuple[Ranker, FloatArray]:
        """What ``Ranker.score`` gives, of rows of a feature set as bytes."""
        ranker = self.rankers().get(target, dialect)
        features = ranker.model.features
        if features.id != feature_set:
            raise SchemaMismatch(
                f"rows of {feature_set!r} given to a model that reads {features.id}. Fix: extract them again, with the "
                "version of Lorien that the service runs"
            )
        columns = len(features.columns)
        if not rows or len(rows) % (4 * columns):
            raise BadInput(
                f"{len(rows)} bytes are no rows of {columns} columns of float32. Fix: send the rows one after another, "
                f"{4 * columns} bytes each"
            )
        return ranker, await self._scored(ranker, np.frombuffer(rows, FEATURES_DTYPE).reshape(-1, columns))

    async def _scored(self, ranker: Ranker, features: Features) -> FloatArray:
        self.metrics.candidates.inc(len(features))
        # Rows do not know of each other: while nobody else asks, every core takes some.
        parts = np.array_split(features, max(1, min(self._cores, len(features) // MIN_ROWS)))
        scored = (anyio.to_thread.run_sync(ranker.score, part, limiter=self._scoring) for part in parts)
        return np.concatenate(await asyncio.gather(*scored))

    async def deliver(self, workload: Workload, target: Target, top_k: int, verify: bool) -> Delivery:
        """A schedule: the database's, else ranked, verified where that is asked for and allowed, else the default."""
        device = self.config.device
        if verify and (device is None or device.key != target.key):
            allowed = "verifies nothing" if device is None else f"verifies for {device.key} only"
            raise NotAllowed(
                f"this service {allowed}. Fix: ask without verifying, or let its operator start it with --verify"
            )
        open_live_dialect(workload.dialect)
        found = None
        if self._database is not None:
            found = await blocking(Deliverer(target, database=self._database).hit, workload)
        if found is None:
            found = await self._delivering.run(workers.deliver, workload, target, top_k, verify)
        self.metrics.delivered.labels(found.source.value).inc()
        return found

    async def lines(self, records: Iterator[TuningRecord]) -> AsyncIterator[bytes]:
        """Records as JSON lines, some at a time."""
        while chunk := await blocking(lambda: list(itertools.islice(records, CHUNK))):
            yield b"".join(orjson.dumps(record_to_json(record)) + b"\n" for record in chunk)


async def blocking(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what waits for others in a thread; who gives up does not wait for it."""
    return await anyio.to_thread.run_sync(partial(function, *args, **kwargs), abandon_on_cancel=True)


def about(ranker: Ranker) -> dict[str, Json]:
    """A loaded model, as the service tells of it."""
    model = ranker.model
    return {
        "dialect": model.dialect,
        "target": model.target,
        "family": model.family,
        "version": ranker.version,
        "feature_set": model.features.id,
        "columns": len(model.features.columns),
        "rows": model.rows,
        "networks": model.networks,
        "holdout": model.holdout,
    }


def stats(database: ScheduleDatabase) -> dict[str, Json]:
    """Counts of a database."""
    return asdict(database.stats())
