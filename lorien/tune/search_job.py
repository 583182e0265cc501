"""A search in a child process, which can be ended at any time: what the child does, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import orjson

from lorien.errors import LorienError, error_named
from lorien.records import Candidate, Json, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from lorien.dialects.base import LiveDialect
    from lorien.models.predictor import Ranker

SPENT = "the budget was spent"


@dataclass(frozen=True)
class Found:
    """What a search found.

    Parameters
    ----------
    candidates : sequence of Candidate
        Best first.
    rows : dict of str to array (columns,) of float32
        Features by key of candidate, of those that the search tells.
    note : str
        Why there are none; empty when the search ended by itself.
    """

    candidates: Sequence[Candidate] = ()
    rows: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    note: str = ""


def search_with(
    dialect: LiveDialect,
    workload: Workload,
    target: Target,
    ranker: Ranker,
    count: int,
    seed: int,
    budget_s: float | None,
) -> Found:
    """Search the space of a workload with a model: ``LiveDialect.search``, given what the model has for it."""
    rows: dict[str, npt.NDArray[np.float32]] = {}
    hints = ranker.hints
    more = hints | {"rows": rows} if hints else {}
    candidates = dialect.search(workload, target, count, ranker.guide, seed=seed, budget_s=budget_s, **more)
    return Found(candidates, rows)


def search(dialect: LiveDialect, target: Target, job: dict[str, Json]) -> None:
    """Search as ``job`` says, and write what was found, or the error of Lorien that was met, to ``job["answer"]``."""
    answer: dict[str, Json]
    try:
        workload = Workload.from_json(job["workload"])
        ranker = _ranker(job["models"], target, workload.dialect)
        found = search_with(dialect, workload, target, ranker, job["count"], job["seed"], job["budget_s"])
        answer = {"candidates": [[one.schedule, one.score] for one in found.candidates], "rows": found.rows}
    except LorienError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    Path(job["answer"]).write_bytes(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))


def load_found(answer: Path) -> Found:
    """Read what ``search`` wrote. Raises the error of Lorien that it met."""
    value = orjson.loads(answer.read_bytes())
    if "error" in value:
        raise error_named(value["error"], value["message"]) or LorienError(value["message"])
    rows = {key: np.array(row, np.float32) for key, row in value["rows"].items()}
    return Found([Candidate(schedule, score) for schedule, score in value["candidates"]], rows)


@cache
def _ranker(models: str, target: Target, dialect: str) -> Ranker:
    """Loaded once in a child, which searches for many workloads."""
    from lorien.models import load_ranker

    return load_ranker(models, target, dialect)
