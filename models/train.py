"""``lorien-train``: one performance model per (dialect, target), fitted with AutoGluon and published whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import lorien
from lorien.errors import BadInput, LorienError, UnsupportedOperation
from lorien.featurize import open_extractor
from lorien.featurize.base import Features, early_columns
from lorien.featurize.dataset import missing_tables
from lorien.featurize.store import open_tables
from lorien.files import sha256_of, temporary_folder
from lorien.models.confidence import check_confidence, learn_confidence
from lorien.models.data import Tables, group_tables, read_features
from lorien.models.ensemble import Ensemble, fit_ensemble, library_versions
from lorien.models.metrics import FloatArray, IntArray, ranking_scores
from lorien.models.presets import Preset, preset_named
from lorien.models.sampling import row_weights
from lorien.models.scorer import TreeEnsemble
from lorien.models.store import AUTOGLUON_FOLDER, DRAFT_FILE, SCORER_FILE, Model, ModelStore, StoredModel, open_models
from lorien.models.training_data import TrainingData, columns_only
from lorien.models.transfer import Base, best_share, blend, load_base
from lorien.target import Target

logger = logging.getLogger(__name__)

# What the lowered trees may differ from AutoGluon's own prediction: XGBoost sums in float32.
EXPORT_TOLERANCE = 1e-5

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
    missing : list of str
        Tables that the data set lacks of this target, log by log.
    """

    path: str
    rows: int
    workloads: int
    fit_seconds: float
    holdout: dict[str, Any]
    missing: list[str] = field(default_factory=list)

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
        key = Target.parse(target).key if target else None
        groups = group_tables(folder, dialect=dialect, target=key)
        missing = missing_tables(folder, features, dialect=dialect, target=key)
        for complaint in chain.from_iterable(missing.values()):
            logger.warning("%s", complaint)
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
                *(stored.home, model.rows, len(model.workload_keys), model.fit_seconds, model.holdout),
                missing.get((group.dialect, group.target), []),
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


class _Fits:
    """The preset's models, fitted to the same rows for one purpose after the other.

    Parameters
    ----------
    time_limit_s : float
        Seconds for each purpose.
    folder : Path
        Where AutoGluon keeps its predictors.
    """

    def __init__(self, data: TrainingData, preset: Preset, time_limit_s: float, folder: Path) -> None:
        self.matrix = read_features(data.group, data.chosen)
        self._data, self._preset, self._time_limit_s, self._folder = data, preset, time_limit_s, folder
        self._short: list[str] = []

    def fit(self, purpose: str, fold: IntArray, columns: Sequence[int] | None = None) -> Ensemble:
        """Fit with the folds of the workloads given; where ``columns`` are, to these alone."""
        data, chosen = self._data, self._data.chosen
        workload = data.rows.workload[chosen]
        ensemble = fit_ensemble(
            self.matrix if columns is None else columns_only(self.matrix, columns),
            data.value[chosen],
            workload,
            row_weights(workload),
            fold[workload],
            preset=self._preset,
            time_limit_s=self._time_limit_s,
            folder=self._folder / purpose,
        )
        if len(ensemble.members) < self._preset.models:
            self._short.append(f"{len(ensemble.members)} for {purpose}")
        return ensemble

    def warn_of_missing(self) -> None:
        """Say what could not be fitted, and for which purpose."""
        if self._short:
            logger.warning(
                "%s %s: of the preset's %d models only these could be fitted: %s. Fix, where time was short: "
                "a longer --time-limit",
                *(self._data.group.dialect, self._data.group.target, self._preset.models, ", ".join(self._short)),
            )


def _train_one(
    group: Tables, options: _Options, tables: dict[str, str], store: ModelStore, base: Base | None
) -> StoredModel:
    started_s = time.monotonic()
    preset = preset_named(options.preset)
    data = TrainingData.read(group, preset, options.holdout_network)
    rows, value, learn, test = data.rows, data.value, data.learn, data.test
    if base is not None:
        base.check_unseen({rows.keys[index] for index in np.unique(rows.workload[test])})
    logger.info(
        "%s %s: fitting %s on %d of %d rows, %d workloads",
        *(group.dialect, group.target, options.preset, data.chosen.sum(), len(rows), len(data.learned)),
    )
    early = _early_columns(group)
    purposes = 1 + (data.apart is not None) + (len(early) > 0)
    with temporary_folder("lorien-train-") as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        fits = _Fits(data, preset, options.time_limit_s / purposes, Path(temporary))
        ensemble = fits.fit("the scores", data.fold)
        text = ensemble.lowered()
        whole = TreeEnsemble(text)
        _check_export(ensemble, whole, fits.matrix[:: 1 + len(fits.matrix) // 512])
        by_fold = _by_fold(ensemble, data.fold)
        unseen = data.unseen_scores(whole, by_fold, data.fold)
        # What the scores mean, and how far to trust them, is learned on networks that the boosters have not seen: a
        # network is not like the others, and folds that mix networks promise too much.
        strange = unseen
        if data.apart is not None:
            judges = fits.fit("their confidence", data.apart)
            strange = data.unseen_scores(whole, _by_fold(judges, data.apart), data.apart)
        fold_trees = [trees.trees for trees in by_fold]
        workload_keys, workload_folds = [rows.keys[index] for index in data.learned], data.fold[data.learned].tolist()
        draft: dict[str, Any] = {}
        if len(early):
            draft_text, draft, drafted = _fit_drafts(fits, data, early)
            (files / DRAFT_FILE).write_bytes(draft_text)
        fits.warn_of_missing()
        share = 0.0
        if base is not None:
            theirs = base.unseen_scores(group, rows)
            share = best_share(unseen[learn], theirs[learn], rows.workload[learn], value[learn])
            logger.info("%s: %.0f %% of the model of %s", group.target, 100 * share, base.stored.model.target)
        if base is not None and share > 0:
            unseen = (1 - share) * unseen + share * theirs
            strange = (1 - share) * strange + share * theirs
            text = blend(text, base.text, share, fits.matrix.shape[1])
            # A blend of nothing but the base has its folds; in any other they are the target's own.
            fold_trees = base.stored.model.fold_trees if share == 1 else fold_trees
            workload_keys, workload_folds = sorted({*workload_keys, *base.stored.model.workload_keys}), []
        calibration = data.calibrate(strange)
        confidence = learn_confidence(rows.workload[learn], value[learn], calibration(strange[learn]))
        holdout: dict[str, Any]
        if options.holdout_network is None:
            holdout = dict(ranking_scores(rows.candidates(learn), strange[learn]))
            what, folds = ("workload", data.fold) if data.apart is None else ("network", data.apart)
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
            rows=int(data.chosen.sum()),
            workload_keys=workload_keys,
            workload_folds=workload_folds,
            networks=data.networks,
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


def _fit_drafts(fits: _Fits, data: TrainingData, columns: Sequence[int]) -> tuple[bytes, dict[str, Any], FloatArray]:
    """A model of what is known before a schedule is made: its trees, what the store keeps of it, its scores (rows,)."""
    ensemble = fits.fit("drafts", data.fold, columns)
    text, by_fold = ensemble.lowered(), _by_fold(ensemble, data.fold)
    scores = data.unseen_scores(TreeEnsemble(text), by_fold, data.fold, columns)
    about = {"fold_trees": [trees.trees for trees in by_fold], "calibration": asdict(data.calibrate(scores))}
    return text, about, scores


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
