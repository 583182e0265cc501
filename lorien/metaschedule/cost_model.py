"""A performance model as MetaSchedule's cost model: it starts trained, and follows the tuning as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from lorien.dialects.base import FloatArray
from lorien.dialects.metaschedule.describe import FEATURES, Describer
from lorien.dialects.metaschedule.workload import DIALECT, workload_of
from lorien.errors import BadInput, SchemaMismatch
from lorien.featurize import open_extractor
from lorien.machine import available_cores
from lorien.metaschedule.convert import AnyTarget, as_measurement, as_target
from lorien.models import load_ranker
from lorien.models.online import OnlineModel
from lorien.records import Workload


@derived_object
class CostModel(ms.cost_model.PyCostModel):  # type: ignore[misc]
    """Scores candidates by a target's trained model, corrected by what the tuning measures.

    Scores are expected fractions of the best latency, higher is better; 0 for a candidate that cannot be lowered. As
    with TVM's own model they are random while nothing is known: without ``models``, for the first measurements.

    Parameters
    ----------
    models : str or Path, optional
        Model store, written by ``lorien-train``. None learns from the tuning alone.
    target : str, Target or tvm.target.Target
    seed : int
        Of the random scores.

    Raises
    ------
    UnknownTarget, ChecksumMismatch, SchemaMismatch
        See ``lorien.load_ranker``.
    """

    def __init__(self, models: str | Path | None = None, target: AnyTarget = "native", *, seed: int = 0) -> None:
        super().__init__()
        resolved = as_target(target)
        self._describe = Describer(resolved, available_cores())
        self._prior = load_ranker(models, resolved, DIALECT).guide if models is not None else None
        self._model = OnlineModel(self._prior)
        self._learned: list[tuple[str, npt.NDArray[np.float32], FloatArray]] = []
        self._rng = np.random.default_rng(seed)

    def predict(self, context: ms.TuneContext, candidates: Sequence[ms.MeasureCandidate]) -> FloatArray:
        """Scores (candidates,) in the order given."""
        workload = _workload(context)
        if not self._model.ready(workload.key):
            return self._rng.random(len(candidates))
        rows = self._rows(workload, candidates)
        return np.where(np.isnan(rows[:, 0]), 0.0, np.maximum(self._model.score(rows), 0.0))

    def update(
        self,
        context: ms.TuneContext,
        candidates: Sequence[ms.MeasureCandidate],
        results: Sequence[ms.runner.RunnerResult],
    ) -> None:
        """Learn from measured candidates; a result with an error is a failure."""
        if len(candidates) != len(results):
            raise BadInput(f"{len(candidates)} candidates have {len(results)} results. Fix: give one for each")
        if not candidates:
            return
        workload = _workload(context)
        measured = [as_measurement(None if result.error_msg else result.run_secs).latency_s for result in results]
        latencies_s = np.array([np.inf if latency_s is None else latency_s for latency_s in measured])
        self._learn(workload.key, self._rows(workload, candidates), latencies_s)

    def save(self, path: str) -> None:
        """Write what was learned; the trained model stays in its store. Arrays only, nothing pickled."""
        keys = [key for key, rows, _ in self._learned for _ in rows]
        rows = np.concatenate([np.empty((0, len(FEATURES)), np.float32), *(rows for _, rows, _ in self._learned)])
        latencies_s = np.concatenate([np.empty(0), *(latencies for _, _, latencies in self._learned)])
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file, features=_feature_set(), workloads=np.array(keys, str), rows=rows, latencies_s=latencies_s
            )

    def load(self, path: str) -> None:
        """Take in what ``save`` wrote, in place of what this one learned.

        Raises
        ------
        BadInput
            The file was not written by ``save``.
        SchemaMismatch
            It was written over another feature set.
        """
        try:
            with np.load(path, allow_pickle=False) as saved:
                features, keys = str(saved["features"]), saved["workloads"]
                rows, latencies_s = saved["rows"], saved["latencies_s"]
        except (ValueError, KeyError, EOFError) as error:
            raise BadInput(f"{path} is no saved cost model: {error}. Fix: give a file that save wrote") from None
        if features != _feature_set():
            raise SchemaMismatch(f"{path} holds features {features}, this Lorien {_feature_set()}. Fix: tune again")
        self._model, self._learned = OnlineModel(self._prior), []
        for key in dict.fromkeys(keys):
            self._learn(str(key), rows[keys == key], latencies_s[keys == key])

    def _learn(self, key: str, rows: npt.NDArray[np.float32], latencies_s: FloatArray) -> None:
        self._learned.append((key, rows, latencies_s))
        self._model.learn(key, rows, latencies_s)

    def _rows(self, workload: Workload, candidates: Sequence[ms.MeasureCandidate]) -> npt.NDArray[np.float32]:
        return self._describe([candidate.sch for candidate in candidates], [workload] * len(candidates))


def _workload(context: ms.TuneContext) -> Workload:
    return workload_of(context.mod, str(context.task_name or "main"))


def _feature_set() -> str:
    return open_extractor(DIALECT).features.id
