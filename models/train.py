"""``lorien-train``: one performance model per (dialect, target), fitted with AutoGluon and published whole."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import lorien
from lorien.errors import BadInput, LorienError, UnsupportedOperation
from lorien.featurize import open_extractor
from lorien.featurize.base import Features, early_columns
from lorien.featurize.schema import parted
from lorien.featurize.splits import assign_folds, split_holdout
from lorien.featurize.store import open_tables
from lorien.files import sha256_of
from lorien.models.calibration import calibrate
from lorien.models.confidence import check_confidence, learn_confidence
from lorien.models.data import UNKNOWN, Rows, Tables, feature_batches, group_tables, read_features, read_rows
from lorien.models.ensemble import Ensemble, fit_ensemble, library_versions
from lorien.models.metrics import BoolArray, FloatArray, IntArray, ranking_scores
from lorien.models.presets import preset_named
from lorien.models.sampling import row_weights, sample_rows
from lorien.models.scorer import TreeEnsemble
from lorien.models.store import AUTOGLUON_FOLDER, DRAFT_FILE, SCORER_FILE, Model, ModelStore, StoredModel, open_models
from lorien.models.transfer import Base, best_share, blend, load_base
from lorien.target import Target

logger = logging.getLogger(__name__)

SEED = 0
# What the lowered trees may differ from AutoGluon's own prediction: XGBoost sums in float32.
EXPORT_TOLERANCE = 1e-5
NO_FOLD = -1

Progress = Callable[[int, int, str], None]
"""Called with (models done, models to do, target key now trained)."""


@dataclass(frozen=True)
class TrainReport:
    """One trained model.

    Parameters
    ----------
    path : str
        Folder of the model.
    rows, workloads : int
        What it was fitted on.
    fit_seconds : float
        From reading the tables to the last score.
    holdout : dict
        Scores on workloads that the scoring model had not seen; ``held_out`` says which: a network, or by folds, whole
        networks where two are known. Those by folds are a little high: each fold has also told its model when to stop,
        and the ensemble how much to trust it.
    """

    path: str
    rows: int
    workloads: int
    fit_seconds: float
    holdout: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class _Options:
    preset: str
    time_limit_s: float
    holdout_network: str | None
    base: str | None


def train(
    features: str | Path,
    out: str | Path,
    *,
    target: str | None = None,
    dialect: str | None = None,
    preset: str = "fast",
    time_limit_s: float | None = None,
    holdout_network: str | None = None,
    base: str | Path | None = None,
    reuse: bool = False,
    progress: Progress | None = None,
) -> dict[str, TrainReport]:
    """Train a model for every (dialect, target) that has feature tables, and publish each when it is done.

    Parameters
    ----------
    features : str or Path
        Folder or ``s3://`` URL of feature tables, written by ``lorien featurize``.
    out : str or Path
        Model store.
    target, dialect : str, optional
        Only this target (any form ``Target.parse`` reads), only this dialect.
    preset : str
        ``fast`` or ``best``.
    time_limit_s : float, optional
        Seconds of fitting for each model; the preset's by default.
    holdout_network : str, optional
        Keep this network, and every workload it shares with others, out of training, and report on it.
    base : str or Path, optional
        Model store. The model there that is nearest to a target is blended with the target's own, as far as that ranks
        unseen workloads better.
    reuse : bool
        Keep a model that was trained on the same tables with the same options.
    progress : Progress, optional
        Called before each model and at the end.

    Returns
    -------
    dict of str to TrainReport
        By target key; by ``dialect/target key`` where a target has tables of several dialects.

    Raises
    ------
    StoreUnavailable
        Tables cannot be read, or a model cannot be published, or another process has just published it.
    BadInput
        No tables; no model in the base to start from; or no target could be trained, for want of the network or of
        workloads. Where only some targets cannot, a warning is logged and the others are trained.
    SchemaMismatch
        A table is damaged or of another feature set than its neighbours.
    MissingExtra
        AutoGluon is not installed.
    """
    limit_s = preset_named(preset).time_limit_s if time_limit_s is None else time_limit_s
    asked = _Options(preset, limit_s, holdout_network, None)
    store = open_models(out)
    reports: dict[str, TrainReport] = {}
    refused: list[BadInput] = []
    with open_tables(features).local() as folder:
        groups = group_tables(folder, dialect=dialect, target=Target.parse(target).key if target else None)
        keys = [group.target for group in groups]
        for index, group in enumerate(groups):
            if progress is not None:
                progress(index, len(groups), group.target)
            tables = {path.relative_to(folder).as_posix(): sha256_of(path) for path in group.paths}
            stored = store.read(group.dialect, group.target) if reuse else None
            try:
                start = None if base is None else load_base(base, group)
                options = replace(asked, base=start.name if start else None)
                if stored is None or not _is_current(stored.model, group, options, tables):
                    stored = _train_one(group, options, tables, store, start)
            except BadInput as error:
                # One target too small, or without the network held out, does not cost the others their models.
                logger.warning("%s %s: no model: %s", group.dialect, group.target, error)
                refused.append(error)
                continue
            name = group.target if keys.count(group.target) == 1 else f"{group.dialect}/{group.target}"
            model = stored.model
            reports[name] = TrainReport(
                stored.home, model.rows, len(model.workload_keys), model.fit_seconds, model.holdout
            )
    if progress is not None:
        progress(len(groups), len(groups), "")
    if not reports:
        raise refused[0]
    return reports


def _is_current(model: Model, group: Tables, options: _Options, tables: dict[str, str]) -> bool:
    return (
        model.lorien == lorien.__version__
        and model.features == group.features
        and model.options == asdict(options)
        and model.tables == tables
        and bool(model.draft) == bool(_early_columns(group))  # one of before drafts has none
    )


def _train_one(
    group: Tables, options: _Options, tables: dict[str, str], store: ModelStore, base: Base | None
) -> StoredModel:
    started_s = time.monotonic()
    preset = preset_named(options.preset)
    rows = read_rows(group)
    value = rows.candidates(rows.all()).value()
    learn, test = _split(rows, value, options.holdout_network)
    if base is not None:
        base.check_unseen({rows.keys[index] for index in np.unique(rows.workload[test])})
    chosen = np.zeros(len(rows), dtype=np.bool_)
    chosen[learn] = sample_rows(rows.workload[learn], value[learn], preset.max_rows, SEED)
    fold = _folds(rows, chosen, preset.folds)
    learned = np.flatnonzero(fold != NO_FOLD)
    logger.info(
        "%s %s: fitting %s on %d of %d rows, %d workloads",
        *(group.dialect, group.target, options.preset, chosen.sum(), len(rows), len(learned)),
    )
    matrix = read_features(group, chosen)
    with tempfile.TemporaryDirectory(prefix="lorien-train-") as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        apart = _network_folds(rows, chosen, preset.folds)
        early = _early_columns(group)
        fits = 1 + (apart is not None) + (len(early) > 0)

        def fit(folds: IntArray, name: str, features: Features = matrix) -> Ensemble:
            return fit_ensemble(
                features,
                value[chosen],
                rows.workload[chosen],
                row_weights(rows.workload[chosen]),
                folds[rows.workload[chosen]],
                preset=preset,
                time_limit_s=options.time_limit_s / fits,
                folder=Path(temporary) / name,
            )

        ensemble = fit(fold, "fit")
        text = ensemble.lowered()
        whole = TreeEnsemble(text)
        _check_export(ensemble, whole, matrix[:: 1 + len(matrix) // 512])
        by_fold = _by_fold(ensemble, fold)
        unseen = _unseen_scores(group, rows, whole, by_fold, fold)
        # What the scores mean, and how far to trust them, is learned on networks that the boosters have not seen: a
        # network is not like the others, and folds that mix networks promise too much.
        strange = unseen
        if apart is not None:
            judges = fit(apart, "judges")
            strange = _unseen_scores(group, rows, whole, _by_fold(judges, apart), apart)
        fold_trees = [trees.trees for trees in by_fold]
        workload_keys, workload_folds = [rows.keys[index] for index in learned], fold[learned].tolist()
        draft: dict[str, Any] = {}
        if len(early):
            drafts = fit(fold, "draft", _only(matrix, early))
            draft_text = drafts.lowered()
            draft_by_fold = _by_fold(drafts, fold)
            drafted = _unseen_scores(group, rows, TreeEnsemble(draft_text), draft_by_fold, fold, early)
            knots = calibrate(drafted[learn], value[learn], row_weights(rows.workload[learn]))
            draft = {"fold_trees": [trees.trees for trees in draft_by_fold], "calibration": asdict(knots)}
            (files / DRAFT_FILE).write_bytes(draft_text)
        share = 0.0
        if base is not None:
            theirs = base.unseen_scores(group, rows)
            share = best_share(unseen[learn], theirs[learn], rows.workload[learn], value[learn])
            logger.info("%s: %.0f %% of the model of %s", group.target, 100 * share, base.stored.model.target)
        if base is not None and share > 0:
            unseen = (1 - share) * unseen + share * theirs
            strange = (1 - share) * strange + share * theirs
            text = blend(text, base.text, share, matrix.shape[1])
            # A blend of nothing but the base has its folds; in any other they are the target's own.
            fold_trees = base.stored.model.fold_trees if share == 1 else fold_trees
            workload_keys, workload_folds = sorted({*workload_keys, *base.stored.model.workload_keys}), []
        calibration = calibrate(strange[learn], value[learn], row_weights(rows.workload[learn]))
        confidence = learn_confidence(rows.workload[learn], value[learn], calibration(strange[learn]))
        holdout: dict[str, Any]
        if options.holdout_network is None:
            holdout = dict(ranking_scores(rows.candidates(learn), strange[learn]))
            what, folds = ("workload", fold) if apart is None else ("network", apart)
            holdout["held_out"] = f"each {what} once, in {folds.max() + 1} folds"
        else:
            holdout = dict(ranking_scores(rows.candidates(test), unseen[test]))
            fraction = calibration(unseen[test])
            holdout |= check_confidence(confidence, rows.workload[test], value[test], fraction)
            holdout["held_out"] = options.holdout_network
            if draft:
                found = ranking_scores(rows.candidates(test), drafted[test])
                holdout |= {f"draft_{name}": found[name] for name in ("top1_mean", "top5_mean")}
        if base is not None:
            holdout |= {"base": base.stored.model.target, "base_share": share}
        (files / SCORER_FILE).write_bytes(text)
        ensemble.save(files / AUTOGLUON_FOLDER)
        target = Target.from_key(group.target)
        model = Model(
            lorien=lorien.__version__,
            dialect=group.dialect,
            target=group.target,
            family=target.family,
            target_attrs=target.to_json(),
            feature_set={
                "name": group.features.name,
                "version": group.features.version,
                "columns": [[column.name, column.unit, column.meaning] for column in group.features.columns],
            },
            options=asdict(options),
            tables=tables,
            rows=int(chosen.sum()),
            workload_keys=workload_keys,
            workload_folds=workload_folds,
            networks=sorted(
                {name for at in np.unique(rows.network[chosen]) if at != UNKNOWN for name in parted(rows.networks[at])}
            ),
            holdout=holdout,
            fit_seconds=round(time.monotonic() - started_s, 2),
            calibration=asdict(calibration),
            draft=draft,
            confidence=confidence.to_json(),
            fold_trees=fold_trees,
            members=[{"name": member.name, "share": member.share} for member in ensemble.members],
            libraries=library_versions(),
        )
        return store.publish(model, files)


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


def _network_folds(rows: Rows, chosen: BoolArray, folds: int) -> IntArray | None:
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


def _by_fold(ensemble: Ensemble, fold: IntArray) -> list[TreeEnsemble]:
    """The parts of an ensemble, each without the workloads of a fold."""
    return [TreeEnsemble(ensemble.lowered(index)) for index in range(fold.max() + 1)]


def _check_export(ensemble: Ensemble, trees: TreeEnsemble, features: Features) -> None:
    """Refuse to publish trees that do not say what AutoGluon says."""
    error = np.abs(trees(features) - ensemble.predict(features)).max()
    if not error <= EXPORT_TOLERANCE:
        raise LorienError(f"the exported trees differ from AutoGluon's prediction by {error:.2g}: please report this")


def _early_columns(group: Tables) -> Sequence[int]:
    """Columns that are known before a schedule is made; none where nobody here searches by this feature set."""
    try:
        extractor = open_extractor(group.dialect, group.features.name)
    except UnsupportedOperation:
        return ()
    return early_columns(extractor) if extractor.features == group.features else ()


def _only(matrix: Features, columns: Sequence[int]) -> Features:
    """A matrix with NaN in all other columns."""
    kept = np.full_like(matrix, np.nan)
    kept[:, columns] = matrix[:, columns]
    return kept


def _unseen_scores(
    group: Tables,
    rows: Rows,
    whole: TreeEnsemble,
    by_fold: Sequence[TreeEnsemble],
    fold: IntArray,
    columns: Sequence[int] | None = None,
) -> FloatArray:
    """Raw scores (rows,), each by boosters that never saw the row's workload.

    Rows of training workloads, sampled out or not, are scored by the boosters fitted without their fold; the others,
    by all of them. Where ``columns`` are given, by these alone.
    """
    row_fold = fold[rows.workload]
    parts = {NO_FOLD: whole, **dict(enumerate(by_fold))}
    scores = np.empty(len(rows))
    for here, batch in feature_batches(group):
        given = batch if columns is None else _only(batch, columns)
        for index, trees in parts.items():
            wanted = row_fold[here] == index
            scores[here][wanted] = trees(given[wanted])
    return scores
