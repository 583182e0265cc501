"""Models beside what was measured: every workload scored by trees that never saw it, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorien.errors import LorienError
from lorien.models.data import Tables, feature_batches, group_tables, read_rows
from lorien.models.metrics import FloatArray, random_top, top_curve
from lorien.models.predictor import Ranker, load_ranker
from lorien.target import Target

logger = logging.getLogger(__name__)

DEPTH = 32
"""Largest k of a top-k curve."""
SAMPLE = 1200
"""Rows of one target that are drawn as points."""
IN_SAMPLE = -2


@dataclass(frozen=True)
class Judgement:
    """What the model of one target makes of the workloads it has not seen.

    Parameters
    ----------
    dialect, target : str
        Whose tables were scored, by key.
    model : str
        Key of the target whose model ranked: this one, or of its family.
    keys : tuple of str
        Workloads scored, by key: those where anything ran, and that the scoring trees have not seen.
    top : array (workloads, DEPTH)
        Top-k score of each, k from 1.
    random : array (workloads, DEPTH)
        Expected top-k score of each under a random order, k from 1.
    in_sample : int
        Workloads left out: the whole model was trained on them.
    by_fold : int
        Workloads of ``keys`` that the model was trained on, scored by the folds that were fitted without them.
    predicted, measured : arrays (rows,)
        Some rows: the expected fraction of the best, and the measured one, 0 for a failure.
    """

    dialect: str
    target: str
    model: str
    keys: tuple[str, ...]
    top: FloatArray
    random: FloatArray
    in_sample: int
    by_fold: int
    predicted: FloatArray
    measured: FloatArray


def judge(features: Path, models: str | Path, problems: list[str]) -> Iterator[Judgement]:
    """Judge the models of a store on the feature tables below a folder, a target at a time.

    What is about the rows of one target is held, 36 bytes a row; features stream. A target that has no model, or one
    that reads other features, is told of in ``problems`` and left out.

    Raises
    ------
    BadInput
        There are no tables.
    SchemaMismatch
        A table is damaged, or no feature table.
    """
    for group in group_tables(features):
        try:
            ranker = load_ranker(models, Target.from_key(group.target), group.dialect)
            ranker.check(group)
            found = _judged(group, ranker)
        except LorienError as error:
            problems.append(f"{group.dialect} {group.target}: not judged, {error}")
            continue
        if found is None:
            problems.append(
                f"{group.dialect} {group.target}: the model was trained on all of these workloads, and its folds are "
                "not known: it is not judged. Fix: give tables of other workloads"
            )
        else:
            yield found


def _judged(group: Tables, ranker: Ranker) -> Judgement | None:
    model = ranker.model
    rows = read_rows(group)
    folds = dict(zip(model.workload_keys, model.workload_folds or [IN_SAMPLE] * len(model.workload_keys), strict=True))
    fold = np.array([folds.get(key, -1) for key in rows.keys], dtype=np.int64)
    score = np.full(len(rows), np.nan)
    for here, batch in feature_batches(group):
        of_rows = fold[rows.workload[here]]
        score[here] = ranker.score_unseen(batch, np.maximum(of_rows, -1))
    ran = np.zeros(len(rows.keys), dtype=np.bool_)
    ran[rows.workload[np.isfinite(rows.latency_s)]] = True
    chosen = (ran & (fold != IN_SAMPLE))[rows.workload]
    if not chosen.any():
        return None
    candidates = rows.candidates(chosen)
    value, scored = candidates.value(), score[chosen]
    present = np.unique(rows.workload[chosen])
    drawn = np.sort(np.random.default_rng(0).permutation(len(value))[:SAMPLE])
    return Judgement(
        dialect=group.dialect,
        target=group.target,
        model=model.target,
        keys=tuple(rows.keys[index] for index in present),
        top=top_curve(candidates, scored, DEPTH),
        random=np.stack([random_top(candidates.workload, value, k) for k in range(1, DEPTH + 1)], axis=1),
        in_sample=int((ran & (fold == IN_SAMPLE)).sum()),
        by_fold=int((fold[present] >= 0).sum()),
        predicted=scored[drawn],
        measured=value[drawn],
    )
