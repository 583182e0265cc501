"""The room AutoGluon lives in: fit a bagged ensemble with workload folds, and take its boosters out."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lorien.errors import LorienError, MissingExtra
from lorien.featurize.base import Features
from lorien.machine import available_cores
from lorien.models.grouped import encode, ranking_metric
from lorien.models.lower import lower
from lorien.models.metrics import FloatArray, IntArray
from lorien.models.presets import Preset

logger = logging.getLogger(__name__)

MEMORY_GB = 4.0
# How far the weights that greedy selection finds are moved towards equal shares. On the few dozen workloads of a device
# it may leave a single model, by chance; held-out networks inside the training data rank no worse for the half.
EQUAL_SHARE = 0.5
# On fewer rows the threads of a booster mostly wait for one another, and on a busy machine they wait long.
PARALLEL_ROWS = 50_000
# Unless told so, AutoGluon hands XGBoost a sparse matrix, in which a zero is a missing value: not what the trees say.
_AS_THEY_ARE = {"XGB": {"enable_categorical": True}}
_LIBRARIES = ("autogluon.tabular", "lightgbm", "xgboost", "xgboost-cpu", "catboost", "numpy")


@dataclass(frozen=True)
class Member:
    """One bagged model of the ensemble, with its share in it and a booster for each fold."""

    name: str
    share: float
    boosters: tuple[Any, ...]


@dataclass(frozen=True)
class Ensemble:
    """A fitted weighted ensemble of bagged boosters.

    Parameters
    ----------
    members : tuple of Member
        Booster ``i`` of each was fitted without the rows of fold ``i``.
    columns : int
        Feature columns.
    predictor : autogluon.tabular.TabularPredictor
        The same ensemble as AutoGluon keeps it.
    """

    members: tuple[Member, ...]
    columns: int
    predictor: Any

    def lowered(self, fold: int | None = None) -> bytes:
        """LightGBM text of the ensemble, fold after fold, or of the part that has not seen the rows of ``fold``."""
        folds = range(len(self.members[0].boosters)) if fold is None else (fold,)
        return lower(
            [(member.share / len(folds), member.boosters[index]) for index in folds for member in self.members],
            self.columns,
        )

    def predict(self, features: Features) -> FloatArray:
        """What AutoGluon itself predicts: (rows,)."""
        import pandas as pd

        with _quiet():
            data = pd.DataFrame(features, columns=_column_names(self.columns))
            return np.asarray(self.predictor.predict(data), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write AutoGluon's predictor, with no more than prediction needs."""
        with _quiet():
            self.predictor.clone_for_deployment(str(folder))


def fit_ensemble(
    features: Features,
    value: FloatArray,
    workload: IntArray,
    weight: FloatArray,
    fold: IntArray,
    *,
    preset: Preset,
    time_limit_s: float,
    folder: Path,
) -> Ensemble:
    """Fit the preset's models with AutoGluon, one fit per fold, and weight them.

    The weights lie halfway between equal shares and those by which AutoGluon's greedy selection ranks unseen folds
    best.

    Parameters
    ----------
    features : array (rows, columns) of float32
        NaN where a feature does not apply.
    value, workload, weight, fold : arrays (rows,)
        What to predict, in [0, 1]; the number of the row's workload; how much a row counts; the workload's fold.
    preset : Preset
        The models.
    time_limit_s : float
        Seconds for all of them.
    folder : Path
        Where AutoGluon keeps its predictor.

    Raises
    ------
    MissingExtra
        AutoGluon is not installed.
    LorienError
        AutoGluon could fit no model in the time.
    """
    try:
        import pandas as pd
        from autogluon.features.generators import IdentityFeatureGenerator
        from autogluon.tabular import TabularPredictor

        from lorien.models.rankers import RANKERS
    except ImportError:
        raise MissingExtra("autogluon.tabular", "train") from None

    _list_packages_once()
    # Columns are named by position, so that a booster's own names tell which column it means.
    data = pd.DataFrame(features, columns=_column_names(features.shape[1]), copy=False)
    data = data.assign(label=encode(value, workload), weight=weight, fold=fold)
    families = {ranker.ag_key: ranker for ranker in RANKERS}
    position = count()
    hyperparameters = {
        families.get(name, name): [_in_turn(model, next(position)) | _AS_THEY_ARE.get(name, {}) for model in models]
        for name, models in preset.hyperparameters.items()
    }
    with _quiet(), _little_garbage():
        predictor = TabularPredictor(
            label="label",
            problem_type="regression",
            eval_metric=ranking_metric(),
            path=str(folder),
            groups="fold",
            sample_weight="weight",
            weight_evaluation=True,
            verbosity=2,
            learner_kwargs={"cache_data": False},
        )
        try:
            predictor.fit(
                data,
                time_limit=time_limit_s,
                hyperparameters=hyperparameters,
                # Features are float32, with NaN where one does not apply: boosters take them as they are.
                feature_generator=IdentityFeatureGenerator(),
                # Inside its own boosters AutoGluon keeps labels as float32, in which no workload fits.
                ag_args_fit={"drop_unique": False, "stopping_metric": "root_mean_squared_error"}
                # Before each of dozens of boosters AutoGluon asks how much memory it will take.
                | ({"max_memory_usage_ratio": None} if len(features) < PARALLEL_ROWS else {}),
                ag_args_ensemble={"fold_fitting_strategy": "sequential_local"},
                num_bag_folds=len(np.unique(fold)),
                num_bag_sets=1,
                num_stack_levels=0,
                dynamic_stacking=False,
                num_cpus=available_cores() if len(features) >= PARALLEL_ROWS else 1,
                num_gpus=0,
                memory_limit=MEMORY_GB,
            )
            _share_more_equally(predictor, data)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise LorienError(
                f"AutoGluon fitted no model ({error}). Fix: a longer --time-limit, or more logs"
            ) from error
        return Ensemble(tuple(_members(predictor)), features.shape[1], predictor)


def library_versions() -> dict[str, str]:
    """Versions of what a model was fitted with."""
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def _little_garbage() -> Iterator[None]:
    """AutoGluon collects garbage after each model it fits: what is there already is left out of it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _in_turn(model: dict[str, Any], position: int) -> dict[str, Any]:
    """Settings by which AutoGluon fits a model at this place: it has an order of its own, highest priority first."""
    return model | {"ag_args": model.get("ag_args", {}) | {"priority": 100 - position}}


def _list_packages_once() -> None:
    """AutoGluon reads what is installed at each of the five times it saves a predictor: half a second each."""
    from autogluon.common.utils import utils

    if not hasattr(utils.get_package_versions, "cache_info"):
        utils.get_package_versions = cache(utils.get_package_versions)


def _column_names(columns: int) -> list[str]:
    return [f"f{index}" for index in range(columns)]


def _share_more_equally(predictor: Any, data: Any) -> None:
    """Add an ensemble with weights nearer to equal ones, and make it the one that predicts."""
    trainer = predictor._trainer
    names = trainer.get_model_names(level=1)
    if len(names) < 2:
        return
    chosen = _shares(predictor)
    weights = [(1 - EQUAL_SHARE) * chosen.get(name, 0.0) + EQUAL_SHARE / len(names) for name in names]
    inputs = trainer.get_inputs_to_stacker(data[["weight"]], base_models=names, fit=True, use_orig_features=False)
    (name,) = trainer.generate_weighted_ensemble(
        X=inputs.assign(weight=data["weight"]),
        y=data["label"],
        level=2,
        base_model_names=names,
        child_cls="SIMPLE_ENS_WEIGHTED",
        child_hyperparameters={"weights": weights},
        # Left to itself, AutoGluon keeps only the best of each family when there are few rows.
        ag_args_ensemble={"max_base_models_per_type": 0},
        name_suffix="_Shared",
        check_if_best=False,
    )
    predictor.set_model_best(name, save_trainer=True)  # a copy for deployment is made from disk


def _shares(predictor: Any) -> dict[str, float]:
    """Weight of each bagged model in the one that predicts."""
    from autogluon.core.models import WeightedEnsembleModel

    best = predictor._trainer.load_model(predictor.model_best)
    if not isinstance(best, WeightedEnsembleModel):
        return {predictor.model_best: 1.0}
    (child,) = best.models
    return dict(best.load_child(child)._get_model_weights())


def _members(predictor: Any) -> Iterator[Member]:
    trainer = predictor._trainer
    for name, share in _shares(predictor).items():
        bag = trainer.load_model(name)
        # The children S1F1, S1F2... were fitted without the first, second... fold.
        boosters = tuple(bag.load_child(child).model for child in bag.models)
        yield Member(name, float(share), boosters)


class _Relay(logging.Handler):
    """What AutoGluon says at any level is, to a user of Lorien, detail."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("%s", record.getMessage().strip())


@contextmanager
def _quiet() -> Iterator[None]:
    """AutoGluon's messages go to our logger and nowhere else; its libraries' warnings of their own future, nowhere."""
    theirs = logging.getLogger("autogluon")
    before = theirs.handlers, theirs.propagate, theirs.level
    theirs.handlers, theirs.propagate = [_Relay()], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.handlers, theirs.propagate = before[:2]
        theirs.setLevel(before[2])
