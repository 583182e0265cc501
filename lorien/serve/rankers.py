"""The models of a store, kept loaded: a newer one takes the place of an older one in one step."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from lorien.errors import BadInput, LorienError, UnknownTarget
from lorien.models.predictor import Ranker, load, nearest
from lorien.models.store import open_models
from lorien.target import Target

logger = logging.getLogger(__name__)


class Rankers:
    """A loaded ranker for every model of a store. Safe across threads.

    Parameters
    ----------
    url : str
        Model store.

    Attributes
    ----------
    problems : dict of str to str
        Models that could not be loaded when last looked at, and why. The one loaded before goes on ranking.

    Raises
    ------
    LorienError
        The store cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._store = open_models(url)
        self._loading = threading.Lock()
        # Never changed, only replaced: who ranks holds on to the one it began with.
        self._loaded: dict[tuple[str, str], Ranker] = {}
        self.problems: dict[str, str] = {}
        self._looked_s = 0.0
        self._look(self._store.list())

    def refresh(self, older_than_s: float = 0.0) -> None:
        """Load what was published and drop what was removed since, unless that was done in the last seconds."""
        with self._loading:
            if time.monotonic() - self._looked_s < older_than_s:
                return
            try:
                self._look(self._store.list())
            except (LorienError, OSError) as error:
                self._problem("the store", error, self.problems)

    def _look(self, published: list[tuple[str, str]]) -> None:
        loaded: dict[tuple[str, str], Ranker] = {}
        problems: dict[str, str] = {}
        for dialect, key in published:
            known = self._loaded.get((dialect, key))
            try:
                stored = self._store.read(dialect, key)
                if stored is None:
                    continue
                if known is None or (known.folder, known.model) != (stored.folder, stored.model):
                    known = load(self._store, stored, Target.from_key(key))
                    # What a process does but once, when it first scores, no request is to wait for.
                    known.score(np.zeros((1, len(stored.model.features.columns)), np.float32))
                    logger.info("loaded the %s model of %s", dialect, key)
            except (LorienError, OSError) as error:
                self._problem(f"{dialect}/{key}", error, problems)
            if known is not None:
                loaded[dialect, key] = known
        self._loaded, self.problems = loaded, problems
        self._looked_s = time.monotonic()

    def _problem(self, name: str, error: Exception, problems: dict[str, str]) -> None:
        if self.problems.get(name) != str(error):  # said once, not at every look
            logger.warning("%s cannot be loaded, what was loaded before stays: %s", name, error)
        problems[name] = str(error)

    def all(self) -> list[Ranker]:
        """The rankers as they are now, by dialect and target."""
        return list(self._loaded.values())

    def get(self, target: Target, dialect: str | None = None) -> Ranker:
        """What ``load_ranker`` would load: of the target's own model, else of the nearest of its family.

        Raises
        ------
        UnknownTarget
            There is no such model.
        BadInput
            Several dialects have models, and none was named.
        """
        rankers = [ranker for ranker in self.all() if dialect in (None, ranker.model.dialect)]
        dialects = sorted({ranker.model.dialect for ranker in rankers})
        if len(dialects) > 1:
            raise BadInput(f"there are models of {', '.join(dialects)}. Fix: name one of these dialects")
        ranker = nearest(rankers, target)
        if ranker is None:
            raise UnknownTarget(target.key, [ranker.model.target for ranker in rankers])
        return ranker.on(target)
