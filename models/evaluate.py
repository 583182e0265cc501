"""``lorien evaluate``: how well published models rank workloads they have not seen."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lorien.errors import BadInput
from lorien.featurize.dataset import missing_tables
from lorien.featurize.schema import is_of
from lorien.featurize.store import open_tables
from lorien.models.confidence import check_confidence
from lorien.models.data import feature_batches, group_tables, read_rows
from lorien.models.metrics import ranking_scores
from lorien.models.predictor import load_ranker
from lorien.target import Target

logger = logging.getLogger(__name__)


def evaluate(
    features: str | Path, models: str | Path, *, holdout_network: str | None = None, target: str | None = None
) -> dict[str, dict[str, Any]]:
    """Score the models of a store on feature tables, beside a random ranking.

    Workloads a model was trained on are never scored: their rows are dropped, and the workloads counted.

    Parameters
    ----------
    features : str or Path
        Folder or ``s3://`` URL of feature tables.
    models : str or Path
        Model store.
    holdout_network : str, optional
        Score only rows tuned for this network; targets that lack it are left out.
    target : str, optional
        Only this target (any form ``Target.parse`` reads).

    Returns
    -------
    dict of str to dict
        By target key (by ``dialect/target key`` where a target has tables of several dialects): what
        ``ranking_scores`` returns; ``dropped_workloads``, those the model was trained on; ``model``, the key of the
        target whose model ranked; ``missing``, the tables that the data set lacks of the target, log by log; what
        ``check_confidence`` returns, for a model that states its confidence.

    Raises
    ------
    BadInput
        Nothing is left to score.
    UnknownTarget
        A target has neither a model of its own nor one of its family.
    SchemaMismatch, ChecksumMismatch
        A table or a model cannot be used.
    """
    results: dict[str, dict[str, Any]] = {}
    dropped_in_all = 0
    with open_tables(features).local() as folder:
        key = Target.parse(target).key if target else None
        groups = group_tables(folder, target=key)
        missing = missing_tables(folder, features, target=key)
        for complaint in chain.from_iterable(missing.values()):
            logger.warning("%s", complaint)
        keys = [group.target for group in groups]
        for group in groups:
            rows = read_rows(group)
            wanted = rows.all()
            if holdout_network is not None:
                wanted = np.array([*(is_of(name, holdout_network) for name in rows.networks), False])[rows.network]
            ranker = load_ranker(models, Target.from_key(group.target), group.dialect)
            trained_on = set(ranker.model.workload_keys)
            seen = np.array([key in trained_on for key in rows.keys])[rows.workload]
            dropped = len(np.unique(rows.workload[wanted & seen]))
            dropped_in_all += dropped
            chosen = wanted & ~seen
            if not chosen.any():
                logger.warning("%s: nothing to score, %d workloads were trained on", group.target, dropped)
                continue
            ranker.check(group)
            score = np.empty(len(rows))
            for here, batch in feature_batches(group):
                score[here][chosen[here]] = ranker.score(batch[chosen[here]])
            name = group.target if keys.count(group.target) == 1 else f"{group.dialect}/{group.target}"
            candidates = rows.candidates(chosen)
            results[name] = {
                **ranking_scores(candidates, score[chosen]),
                "dropped_workloads": dropped,
                "model": ranker.model.target,
                "missing": missing.get((group.dialect, group.target), []),
            }
            if ranker.model.confidence:
                value = candidates.value()
                results[name] |= check_confidence(ranker.confidence, candidates.workload, value, score[chosen])
    if results:
        return results
    if dropped_in_all:
        name = holdout_network or "NAME"
        raise BadInput(
            f"the models were trained on all {dropped_in_all} workloads of these tables: nothing to score. "
            f"Fix: lorien-train FEATURES -o MODELS --holdout-network {name}, or give tables of other workloads"
        )
    raise BadInput(f"no rows of network {holdout_network!r} in {features}. Fix: name one that was featurized")
