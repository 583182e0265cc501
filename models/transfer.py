"""A target with few logs starts from another target's model: a blend of both, as much of each as ranks best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorien.errors import BadInput, ChecksumMismatch
from lorien.models.data import Rows, Tables, feature_batches
from lorien.models.grouped import workload_quality
from lorien.models.lower import lower
from lorien.models.metrics import FloatArray, IntArray
from lorien.models.predictor import nearest_model
from lorien.models.scorer import TreeEnsemble
from lorien.models.store import SCORER_FILE, Model, StoredModel, open_models, successor
from lorien.target import Target

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SEEN_BY_NONE = -1


@dataclass(frozen=True)
class Base:
    """A model of a related target.

    Parameters
    ----------
    stored : StoredModel
        What is known of it.
    text : bytes
        Its trees.
    """

    stored: StoredModel
    text: bytes

    @property
    def name(self) -> str:
        """Which model, and which training of it: part of what a model trained on it is."""
        return f"{self.stored.model.target}@{self.stored.files[SCORER_FILE][:16]}"

    def check_unseen(self, held_out: set[str]) -> None:
        """Raise ``BadInput`` when it was trained on a workload that is to be held out."""
        model = self.stored.model
        leaked = held_out & set(model.workload_keys)
        if leaked:
            raise BadInput(
                f"the base model of {model.target} was trained on {len(leaked)} of the workloads to be held out. "
                "Fix: train it with the same --holdout-network"
            )

    def unseen_scores(self, group: Tables, rows: Rows) -> FloatArray:
        """Raw scores (rows,), each by the trees that never saw the row's workload, on no target."""
        model = self.stored.model
        fold_of = dict(zip(model.workload_keys, model.workload_folds, strict=True))
        row_fold = np.array([fold_of.get(key, _SEEN_BY_NONE) for key in rows.keys])[rows.workload]
        trees, folds = TreeEnsemble(self.text), len(model.fold_trees)
        scores = np.empty(len(rows))
        for here, batch in feature_batches(group):
            parts = trees.parts(batch, model.fold_trees)
            fold = row_fold[here]
            # Each part is one fold's opinion over the number of folds: their sum is the model.
            alone = folds * parts[fold, np.arange(len(batch))]
            scores[here] = np.where(fold == _SEEN_BY_NONE, parts.sum(axis=0), alone)
        return scores


def load_base(url: str | Path, group: Tables) -> Base:
    """The model of a store that is nearest to the target of these tables.

    Raises
    ------
    BadInput
        There is none of the target's family; it reads other features; or it does not tell which of its folds saw which
        workload.
    ChecksumMismatch, SchemaMismatch
        It cannot be used.
    """
    store = open_models(url)
    stored = nearest_model(store, store.list(group.dialect), Target.from_key(group.target))
    if stored is None:
        raise BadInput(
            f"no model of {group.dialect} for the family of {group.target} in {url}. Fix: train without --base"
        )
    while True:
        _check_usable(stored.model, group)
        try:
            return Base(stored, stored.read(SCORER_FILE))
        except ChecksumMismatch:
            newer = successor(store, stored)
            if newer is None:
                raise
            stored = newer


def _check_usable(model: Model, group: Tables) -> None:
    """Raise ``BadInput`` when a model cannot be the base of one of these tables."""
    if model.features != group.features:
        raise BadInput(
            f"the base model of {model.target} reads features {model.features.id}, these tables hold "
            f"{group.features.id} with other columns. Fix: lorien featurize and train the base again"
        )
    if len(model.workload_folds) != len(model.workload_keys):
        raise BadInput(
            f"the model of {model.target} is itself a blend, or of an earlier Lorien, and cannot be a base. "
            "Fix: give one trained without --base by this version"
        )


def best_share(own: FloatArray, base: FloatArray, workload: IntArray, value: FloatArray) -> float:
    """The base model's share in the blend of both, by how it ranks rows (rows,) that both score unseen.

    The largest share that ranks within a standard error of the best one: few workloads say little, and the base knows
    many. 0 keeps the target's own model, 1 the base; of shares that rank alike on every workload, the smallest.
    Source: the one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984.
    """
    quality = [workload_quality(value, workload, (1 - share) * own + share * base) for share in SHARES]
    best = int(np.argmax([each.mean() for each in quality]))
    loss = [quality[best] - each for each in quality]
    close = [index for index, each in enumerate(loss) if index > best and each.mean() < _standard_error(each)]
    return SHARES[max(close, default=best)]


def _standard_error(values: FloatArray) -> float:
    """Of the mean; infinite for a single value, which tells nothing."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def blend(own: bytes, base: bytes, share: float, columns: int) -> bytes:
    """The trees of both models, the target's own first, each scaled by its share."""
    import lightgbm

    parts = [(1 - share, own), (share, base)]
    return lower([(weight, lightgbm.Booster(model_str=text.decode())) for weight, text in parts if weight > 0], columns)
