"""The ways to choose candidates, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorien.dialects import open_live_dialect
from lorien.errors import UnsupportedOperation
from lorien.featurize import open_extractor
from lorien.machine import available_cores
from lorien.models.online import OnlineModel
from lorien.records import Candidate, Measurement, Workload
from lorien.target import Target
from lorien.tune.loop import Strategy

if TYPE_CHECKING:
    from lorien.models.predictor import Ranker

STRATEGIES = ("evolutionary", "replay", "ranked")
_SPARE = 2
"""Times the candidates needed that a fresh search is asked for: some were measured before."""


def open_strategy(name: str, dialect: str, target: Target, ranker: Ranker | None, *, seed: int = 0) -> Strategy:
    """A strategy of ``STRATEGIES`` for a session.

    Parameters
    ----------
    name : str
        ``evolutionary``: MetaSchedule's mutations over the whole session, chosen by a model that learns as it goes.
        ``replay``: random samples of its space. ``ranked``: a search of its own for each batch, for every live dialect.
    dialect : str
    target : Target
    ranker : Ranker, optional
        A trained model to start from; without, the session's model starts from nothing.
    seed : int

    Raises
    ------
    UnsupportedOperation
        The dialect has no such strategy.
    """
    model = OnlineModel(ranker.guide if ranker else None)
    hints = ranker.hints if ranker else {}
    if name == "ranked":
        return RankedSearch(dialect, target, model, seed, hints)
    if dialect != "metaschedule":
        raise UnsupportedOperation(f"dialect {dialect!r} has no {name} search. Fix: --strategy ranked")
    from lorien.dialects.metaschedule.tuner import MetaScheduleSearch

    guided: dict[str, Any] = {"model": model, **hints} if name == "evolutionary" else {"model": None}
    return MetaScheduleSearch(target, threads=available_cores(), seed=seed, **guided)


class RankedSearch:
    """The dialect's own ``search``, afresh for each batch, under the model as it is by then."""

    def __init__(self, dialect: str, target: Target, model: OnlineModel, seed: int, hints: Mapping[str, Any]) -> None:
        self._dialect = open_live_dialect(dialect)
        self._extractor = open_extractor(dialect)
        self._target = target
        self._model = model
        self._seed = seed
        self._hints = hints
        self._seen: dict[str, set[str]] = {}
        self._found: dict[str, Sequence[Candidate]] = {}

    def prepare(self, workload: Workload, count: int) -> None:
        """See ``Strategy``."""
        self._model.warm_up()
        if workload.key not in self._found:
            score = self._model.score if self._model.ready(workload.key) else None
            self._seed += 1
            hints = self._hints if score else {}
            found = self._dialect.search(workload, self._target, _SPARE * count, score, seed=self._seed, **hints)
            self._found[workload.key] = found

    def ask(self, workload: Workload, count: int) -> list[Candidate]:
        """See ``Strategy``."""
        seen = self._seen.setdefault(workload.key, set())
        self.prepare(workload, count)
        found = self._found.pop(workload.key)
        fresh = [candidate for candidate in found if candidate.key not in seen][:count]
        seen.update(candidate.key for candidate in fresh)
        return fresh

    def tell(self, workload: Workload, candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> None:
        """See ``Strategy``."""
        self._seen.setdefault(workload.key, set()).update(candidate.key for candidate in candidates)
        latencies_s = [math.inf if m.latency_s is None else m.latency_s for m in measurements]
        rows = self._extractor.extract(workload, candidates, self._target)
        self._model.learn(workload.key, rows, np.array(latencies_s))
