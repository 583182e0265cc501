"""A schedule for a workload, now: the database's best, else ranked and verified on the device, else the default."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from lorien.database import open_database
from lorien.dialects import open_live_dialect, resolve_target
from lorien.errors import UnknownTarget
from lorien.models import load_ranker
from lorien.records import Candidate, Measurement, TuningRecord, Workload
from lorien.tune.deadline import GRACE_S
from lorien.tune.measure import MeasureConfig, Measurer
from lorien.tune.search_job import SPENT, Found, search_with

if TYPE_CHECKING:
    import numpy.typing as npt

    from lorien.database.base import ScheduleDatabase
    from lorien.dialects.remote import Tracker
    from lorien.models.predictor import Ranker
    from lorien.target import Target

    _Rows = dict[str, npt.NDArray[np.float32]]

logger = logging.getLogger(__name__)

SEARCH_S = 8.0
"""Seconds of search per workload: with loading, building and running, an answer takes under 20 s on two cores."""
TOP_K = 8
AUTO_MOST = 32
"""Most candidates to verify where the model's confidence says how many, and as many for the search to keep."""
MIN_SEARCH_S = 0.5
VERIFY_S = 0.5
"""Seconds to build and run a candidate on two cores, until this process has verified some."""
BATCH = 4
"""Candidates verified between two looks at the clock."""


class Source(str, Enum):
    """Where a delivered schedule comes from."""

    DATABASE = "database"
    RANKED = "ranked"
    DEFAULT = "default"


@dataclass(frozen=True)
class Trial:
    """One of the top k: its score is in the candidate; no measurement when nothing was verified."""

    candidate: Candidate
    measurement: Measurement | None = None


@dataclass(frozen=True)
class Delivery:
    """The answer to a request for a schedule.

    Parameters
    ----------
    workload, target
        What was asked for.
    source : Source
        ``DATABASE``, ``RANKED`` or ``DEFAULT``.
    candidate : Candidate
        The schedule to use.
    latency_s : float, optional
        Median latency of that schedule in seconds; None when it was not measured.
    default_latency_s : float, optional
        Median latency of the dialect's default schedule in seconds; None when it was not measured or failed.
    trials : tuple of Trial
        The top k in the order ranked; empty for a database hit.
    candidates : int
        How many candidates the top k were chosen from, as far as the search kept them.
    confident_k : int, optional
        How many of the first ranked must be tried to hold .95 of the best of ``candidates`` with 90 % probability, as
        the model judges its own ranking; None without a ranking, or where its model does not say.
    expected_fraction : float, optional
        Of that best, what the best of the trials is expected to reach.
    disturbance : str
        What else used the cores or the device while the trials ran; empty for nothing, or where nothing ran.
    note : str
        Why the answer is not better than it is; empty when there is nothing to say.
    seconds : float
        Wall time of the answer.
    """

    workload: Workload
    target: Target
    source: Source
    candidate: Candidate
    latency_s: float | None
    default_latency_s: float | None
    trials: tuple[Trial, ...]
    candidates: int
    note: str
    seconds: float
    confident_k: int | None = None
    expected_fraction: float | None = None
    disturbance: str = ""

    @property
    def rank1_latency_s(self) -> float | None:
        """Latency of the candidate ranked first; None when it failed or was not verified."""
        first = self.trials[0].measurement if self.trials else None
        return first.latency_s if first else None


class Deliverer:
    """Answers many requests for one target with one warm model and one warm set of measuring processes.

    Parameters
    ----------
    target : Target
        The device. Verifying runs on this machine, which must be one.
    database : ScheduleDatabase, optional
        Asked first, and given every verified schedule.
    ranker : Ranker, optional
        The performance model; without one every miss is answered with the default schedule.
    measurer : Measurer, optional
        Builds and runs; without one nothing is verified.
    searcher : Measurer, optional
        Searches where there is a moment to end at, in a child of its own: a search here ends by itself alone.
    top_k : int, optional
        Candidates to verify; None for as many as the model's confidence asks for, ``AUTO_MOST`` at most.
    search_s : float, optional
        Seconds to search per workload; None for the dialect's own effort, the same candidates for the same seed.
    budget_s : float, optional
        Seconds for a whole answer: the search gets what verifying is expected to leave, whatever ``search_s`` says, and
        verifying ends early when time runs out.
    """

    def __init__(
        self,
        target: Target,
        *,
        database: ScheduleDatabase | None = None,
        ranker: Ranker | None = None,
        measurer: Measurer | None = None,
        top_k: int | None = TOP_K,
        search_s: float | None = SEARCH_S,
        budget_s: float | None = None,
        seed: int = 0,
        searcher: Measurer | None = None,
    ) -> None:
        self.target = target
        self._database = database
        self._ranker = ranker
        self._measurer = measurer
        self._searcher = searcher
        self._top_k = top_k
        self._search_s = search_s
        self._budget_s = budget_s
        self._verify_s = VERIFY_S
        self._seed = seed

    def deliver(
        self, workload: Workload, *, fresh: bool = False, spent_s: float = 0.0, until_s: float = math.inf
    ) -> Delivery:
        """The best schedule that can be had for a workload.

        Parameters
        ----------
        workload : Workload
            What to run.
        fresh : bool
            Whether to leave the database unasked.
        spent_s : float
            Seconds of ``budget_s`` that are spent already.
        until_s : float
            Moment of ``time.monotonic`` at which search and verifying are ended, where the budget ends no earlier. What
            has nothing to answer with gets a few seconds more.

        Raises
        ------
        UnsupportedOperation
            The workload's dialect reads logs only: ``ScheduleDatabase.best`` answers for those.
        DatabaseUnavailable
            The database could not be read or written.
        """
        started_s = time.monotonic()
        hit = None if fresh else self.hit(workload)
        if hit is not None:
            return hit
        deadline_s = None if self._budget_s is None else started_s - spent_s + self._budget_s
        until_s = min(until_s, math.inf if deadline_s is None else deadline_s)
        found = self._search(workload, deadline_s, until_s)
        candidates, default = found.candidates, Candidate(None)
        ranked, confident_k = self._first(workload, candidates, found.rows)
        by_default: Measurement | None = None
        measured: Sequence[Measurement | None] = [None] * len(ranked)
        disturbance = ""
        if self._measurer is not None:
            with self._measurer.measuring() as contention:
                by_default, measured = self._verify(self._measurer, workload, default, ranked, deadline_s, until_s)
            disturbance = str(contention)
        default_s = by_default.latency_s if by_default else None
        # What the budget had no time for was not tried.
        pairs = zip(ranked, measured, strict=False)
        trials = tuple(Trial(*pair) for pair in pairs if pair[1] is None or pair[1].detail != SPENT)
        why = found.note or (SPENT if ranked and not trials else "")
        source, chosen, latency_s, note = self._choose(trials, default, default_s, why)
        if 0 < len(trials) < len(ranked):
            note = "; ".join(filter(None, [note, f"the budget ended after {len(trials)} of {len(ranked)} candidates"]))
        # The default is worth an entry only where it won: as one of the n best it would take the place of a schedule.
        self._commit(workload, ([Trial(default, by_default)] if source is Source.DEFAULT else []) + list(trials))
        return Delivery(
            workload,
            self.target,
            source,
            chosen,
            latency_s,
            default_s,
            trials,
            len(candidates),
            note,
            time.monotonic() - started_s,
            confident_k,
            self._expected(confident_k, len(trials)),
            disturbance,
        )

    def hit(self, workload: Workload) -> Delivery | None:
        """The answer, where the database has it. Raises as ``deliver`` does."""
        started_s = time.monotonic()
        if self._database is None:
            return None
        # A schedule of another build may not replay, or may replay to other code.
        build = open_live_dialect(workload.dialect).framework()
        best = self._database.best(self.target, workload.key, build=build)
        if not best:
            return None
        return Delivery(
            workload,
            self.target,
            Source.DATABASE,
            best[0].candidate,
            best[0].measurement.latency_s,
            None,
            (),
            0,
            "",
            time.monotonic() - started_s,
        )

    def _search(self, workload: Workload, deadline_s: float | None, until_s: float) -> Found:
        """Candidates, best first, and the features of those that the search tells."""
        if self._ranker is None:
            return Found()
        search_s = self._search_s
        tried = 0 if self._measurer is None else 1 + (self._top_k or TOP_K)
        if deadline_s is not None:
            search_s = max(MIN_SEARCH_S, deadline_s - time.monotonic() - tried * self._verify_s)
        count = AUTO_MOST if self._top_k is None else 4 * self._top_k
        if self._searcher is not None and until_s < math.inf:
            # The default is still to be verified then.
            end_s = max(until_s - (self._verify_s if tried else 0.0), time.monotonic() + GRACE_S)
            return self._searcher.search(workload, count, seed=self._seed, budget_s=search_s, until_s=end_s)
        dialect = open_live_dialect(workload.dialect)
        return search_with(dialect, workload, self.target, self._ranker, count, self._seed, search_s)

    def _first(
        self, workload: Workload, candidates: Sequence[Candidate], rows: _Rows
    ) -> tuple[Sequence[Candidate], int | None]:
        """The candidates to verify, best first, and how many the model's confidence asks for."""
        if self._ranker is None or not candidates:
            return candidates, None
        if self._top_k is not None and not self._ranker.model.confidence:
            return candidates[: self._top_k], None
        # The search was guided by cautious scores; the confidence was learned on plain ones.
        known = [rows[candidate.key] for candidate in candidates if candidate.key in rows]
        told = len(known) == len(candidates)  # else they are to be lowered again
        scores = self._ranker.score(np.stack(known)) if told else self._ranker.rank(workload, candidates)
        needed = self._ranker.confidence.needed(scores)
        if self._top_k is not None:
            return candidates[: self._top_k], needed
        order = sorted(range(len(candidates)), key=lambda index: -scores[index])
        return [candidates[index] for index in order[: min(needed, AUTO_MOST)]], needed

    def _expected(self, confident_k: int | None, tried: int) -> float | None:
        if confident_k is None or self._ranker is None or not tried:
            return None
        return self._ranker.confidence.expected_fraction(tried)

    def _verify(
        self,
        measurer: Measurer,
        workload: Workload,
        default: Candidate,
        ranked: Sequence[Candidate],
        deadline_s: float | None,
        until_s: float = math.inf,
    ) -> tuple[Measurement, Sequence[Measurement]]:
        """Measurements of the default and of the ranked in order; of the first few alone when time is up after them.

        What is clearly slower than another gets no full repeats. The default, often a hundred times slower, runs last.
        """
        by_default: Measurement | None = None
        measured: list[Measurement] = []
        best_s = math.inf
        while by_default is None or len(measured) < len(ranked):
            started_s = time.monotonic()
            count = len(ranked)
            if deadline_s is not None:
                first = by_default is None  # the default is of this batch
                left, room = len(ranked) - len(measured), (deadline_s - started_s) / self._verify_s - first
                # An answer of nothing verified would be in time, and of no use.
                fewest = BATCH // 2 if first else 0
                count = next((some for some in (BATCH, BATCH // 2) if min(some, left) <= room), fewest)
                if not count:
                    break
            batch = [*ranked[len(measured) :][:count], *([default] if by_default is None else [])]
            results = measurer.measure(workload, batch, best_s=best_s, until_s=until_s)
            if by_default is None:
                *results, by_default = results
            measured += results
            best_s = min([best_s, *(result.latency_s for result in results if result.latency_s)])
            # Slower than thought counts at once, faster by halves: what is told to be done in time had better be.
            each_s = (time.monotonic() - started_s) / len(batch)
            self._verify_s = max(each_s, (self._verify_s + each_s) / 2)
        assert by_default is not None  # noqa: S101 (the first batch has it)
        return by_default, measured

    def _choose(
        self, trials: Sequence[Trial], default: Candidate, default_s: float | None, why: str
    ) -> tuple[Source, Candidate, float | None, str]:
        if self._ranker is None:
            return Source.DEFAULT, default, default_s, f"no model for {self.target}"
        if why:
            return Source.DEFAULT, default, default_s, why
        if not trials:
            return Source.DEFAULT, default, default_s, "the search space has no candidate"
        if self._measurer is None:
            return Source.RANKED, trials[0].candidate, None, "not verified"
        timed = [(t.measurement.latency_s, t.candidate) for t in trials if t.measurement and t.measurement.latency_s]
        if not timed:
            return Source.DEFAULT, default, default_s, f"all {len(trials)} candidates verified failed"
        best_s, best = min(timed, key=lambda pair: pair[0])
        if default_s is not None and default_s < best_s:
            return Source.DEFAULT, default, default_s, f"faster than the {len(timed)} candidates verified"
        return Source.RANKED, best, best_s, ""

    def _commit(self, workload: Workload, trials: Sequence[Trial]) -> None:
        ran = [(trial.candidate, trial.measurement) for trial in trials if trial.measurement and trial.measurement.ok]
        if self._database is None or not ran:
            return
        build = open_live_dialect(workload.dialect).framework()
        self._database.put_many(TuningRecord(workload, self.target, *pair, build) for pair in ran)


@contextmanager
def open_deliverer(
    target: Target | str,
    dialect: str,
    *,
    database: str | None = None,
    models: str | None = None,
    top_k: int | None = TOP_K,
    verify: bool = True,
    search_s: float | None = SEARCH_S,
    budget_s: float | None = None,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> Iterator[Deliverer]:
    """A ``Deliverer`` from URLs. A target that no model was trained for is answered by default schedules.

    The child processes start first: they warm up while a target given as text is read (by ``resolve_target``), the
    model loads and the first search runs. With a budget one of them searches.
    """
    with ExitStack() as stack:
        searching = models if budget_s is not None else None
        children: Measurer | None = None
        if verify or searching:
            # None but one that searches is needed where nothing is verified; to fork two more takes no time.
            config = None if verify else MeasureConfig(builders=1)
            children = stack.enter_context(Measurer(dialect, target, config, tracker, searching))
        if isinstance(target, str):
            target = children.target if children is not None else resolve_target(target, dialect)
        measurer = children if verify else None
        if measurer is not None:
            stack.enter_context(measurer.measuring())
        opened = stack.enter_context(open_database(database)) if database else None
        ranker = None
        if models is not None:
            try:
                ranker = load_ranker(models, target, dialect)
            except UnknownTarget as error:
                logger.warning("%s. Answering with default schedules", error)
        yield Deliverer(
            target,
            database=opened,
            ranker=ranker,
            measurer=measurer,
            top_k=top_k,
            search_s=search_s,
            budget_s=budget_s,
            seed=seed,
            searcher=children if searching else None,
        )


def deliver(
    workload: Workload,
    target: Target,
    *,
    database: str | None = None,
    models: str | None = None,
    top_k: int = 8,
    verify: bool = True,
    budget_s: float | None = None,
) -> Delivery:
    """A schedule for one workload: the database's best, else ranked and verified, else the default.

    Parameters
    ----------
    workload : Workload
        What to run.
    target : Target
        Where; this machine when ``verify`` is on.
    database, models : str, optional
        URLs of the schedule database and of the performance models.
    top_k : int
        Candidates to verify.
    verify : bool
        Build and run the top k here; without it the candidate ranked first is the answer.
    budget_s : float, optional
        Seconds for the whole answer: a search or a build that takes longer is ended.

    Raises
    ------
    LorienError
        A store cannot be read, or a model does not fit.
    """
    started_s = time.monotonic()
    with open_deliverer(
        target, workload.dialect, database=database, models=models, top_k=top_k, verify=verify, budget_s=budget_s
    ) as deliverer:
        return deliverer.deliver(workload, spent_s=time.monotonic() - started_s)
