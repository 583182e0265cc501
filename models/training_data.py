"""What of a target's records is learned from, held out and fitted on, and in which folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorien.featurize.base import Features
from lorien.featurize.schema import parted
from lorien.featurize.splits import assign_folds, split_holdout
from lorien.models.calibration import Calibration, calibrate
from lorien.models.data import UNKNOWN, Rows, Tables, feature_batches, read_rows
from lorien.models.metrics import BoolArray, FloatArray, IntArray
from lorien.models.presets import Preset
from lorien.models.sampling import row_weights, sample_rows
from lorien.models.scorer import TreeEnsemble

SEED = 0
NO_FOLD = -1


@dataclass(frozen=True)
class TrainingData:
    """A target's records, and what becomes of each.

    Parameters
    ----------
    group : Tables
        Where the features are.
    rows : Rows
        All that is known of the rows but their features.
    value : array (rows,)
        What to predict: the workload's best latency over the row's, 0 for a failure.
    learn, test, chosen : arrays (rows,) of bool
        What may be learned from; what is held out; what of the first the models are fitted on.
    fold, apart : arrays (workloads,) of int
        Fold of each workload, ``NO_FOLD`` for those without a row to fit on. ``apart`` keeps networks whole, and is
        None where fewer than two are known.
    """

    group: Tables
    rows: Rows
    value: FloatArray
    learn: BoolArray
    test: BoolArray
    chosen: BoolArray
    fold: IntArray
    apart: IntArray | None

    @classmethod
    def read(cls, group: Tables, preset: Preset, holdout_network: str | None) -> TrainingData:
        """Read the rows of these tables and deal them out; where none is held out, all may be learned from."""
        rows = read_rows(group)
        value = rows.candidates(rows.all()).value()
        learn, test = _split(rows, value, holdout_network)
        chosen = np.zeros(len(rows), dtype=np.bool_)
        chosen[learn] = sample_rows(rows.workload[learn], value[learn], preset.max_rows, SEED)
        fold, apart = _folds(rows, chosen, preset.folds), network_folds(rows, chosen, preset.folds)
        return cls(group, rows, value, learn, test, chosen, fold, apart)

    @property
    def learned(self) -> IntArray:
        """Workloads with a row to fit on."""
        return np.flatnonzero(self.fold != NO_FOLD)

    @property
    def networks(self) -> list[str]:
        """Networks with a row to fit on."""
        known = np.unique(self.rows.network[self.chosen])
        return sorted({name for at in known if at != UNKNOWN for name in parted(self.rows.networks[at])})

    def calibrate(self, score: FloatArray) -> Calibration:
        """What scores (rows,) of boosters that have not seen the workloads mean."""
        workload = self.rows.workload[self.learn]
        return calibrate(score[self.learn], self.value[self.learn], row_weights(workload))

    def unseen_scores(
        self, whole: TreeEnsemble, by_fold: Sequence[TreeEnsemble], fold: IntArray, columns: Sequence[int] | None = None
    ) -> FloatArray:
        """Raw scores (rows,), each by boosters that never saw the row's workload.

        Rows of training workloads, sampled out or not, are scored by the boosters fitted without their fold; the
        others, by all of them. Where ``columns`` are given, by these alone.
        """
        row_fold = fold[self.rows.workload]
        parts = {NO_FOLD: whole, **dict(enumerate(by_fold))}
        scores = np.empty(len(self.rows))
        for here, batch in feature_batches(self.group):
            given = batch if columns is None else columns_only(batch, columns)
            for index, trees in parts.items():
                wanted = row_fold[here] == index
                scores[here][wanted] = trees(given[wanted])
        return scores


def _split(rows: Rows, value: FloatArray, holdout_network: str | None) -> tuple[BoolArray, BoolArray]:
    """Rows to learn from and rows held out."""
    learn, test = rows.all(), ~rows.all()
    if holdout_network is not None:
        learn, test = split_holdout(rows.workload_keys(), rows.network_names(), holdout_network)
    # A workload where nothing ran has no best to measure the others by.
    ran = np.bincount(rows.workload, weights=value, minlength=len(rows.keys)) > 0
    return learn & ran[rows.workload], test


def _folds(rows: Rows, chosen: BoolArray, folds: int) -> IntArray:
    """Fold of every workload in ``rows.keys``; ``NO_FOLD`` for those without a chosen row."""
    count = np.bincount(rows.workload[chosen], minlength=len(rows.keys))
    present = np.flatnonzero(count)
    fold = np.full(len(rows.keys), NO_FOLD, dtype=np.int64)
    fold[present] = assign_folds([rows.keys[index] for index in present], count[present], folds)
    return fold


def network_folds(rows: Rows, chosen: BoolArray, folds: int) -> IntArray | None:
    """Folds of whole networks, as ``_folds`` gives them; None where fewer than two networks are known.

    A workload of several networks goes with the one that most of its rows are of.
    """
    count = np.zeros((len(rows.keys), len(rows.networks) + 1), dtype=np.int64)
    np.add.at(count, (rows.workload[chosen], rows.network[chosen]), 1)
    home = count.argmax(axis=1)  # the last column is of UNKNOWN, -1
    present = count.sum(axis=1) > 0
    networks = np.unique(home[present])
    if len(networks) < 2:
        return None
    names = [(*rows.networks, "")[index] for index in networks]
    sizes = np.bincount(home, weights=count.sum(axis=1), minlength=count.shape[1])[networks].astype(np.int64)
    of_network = np.full(count.shape[1], NO_FOLD, dtype=np.int64)
    of_network[networks] = assign_folds(names, sizes, folds)
    return np.where(present, of_network[home], NO_FOLD)


def columns_only(matrix: Features, columns: Sequence[int]) -> Features:
    """A matrix with NaN in all other columns."""
    kept = np.full_like(matrix, np.nan)
    kept[:, columns] = matrix[:, columns]
    return kept
