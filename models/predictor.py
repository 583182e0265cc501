"""The ranking API: candidates of a workload in, expected fractions of the best out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput, ChecksumMismatch, SchemaMismatch, UnknownTarget, UnsupportedOperation
from lorien.featurize import open_extractor
from lorien.models.calibration import Calibration
from lorien.models.confidence import Confidence
from lorien.models.metrics import FloatArray
from lorien.models.scorer import Scorer, TreeEnsemble
from lorien.models.store import DRAFT_FILE, SCORER_FILE, Model, ModelStore, StoredModel, open_models, successor
from lorien.records import Candidate, Json, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from lorien.featurize.base import FeatureExtractor
    from lorien.models.data import Tables

logger = logging.getLogger(__name__)

CAUTION = 0.5


class Ranker:
    """Ranks candidates of one dialect for one target. Deterministic; safe across threads.

    Parameters
    ----------
    stored : StoredModel
        A published model.
    target : Target
        What candidates are ranked for.

    Attributes
    ----------
    model : Model
        What is known of the model.
    folder : str
        Where its files are; another one for each publication.
    target : Target
        What candidates are ranked for.

    Raises
    ------
    ChecksumMismatch
        A file is not the one that was published.
    SchemaMismatch
        The model reads another feature set than this version of Lorien writes.
    """

    def __init__(self, stored: StoredModel, target: Target) -> None:
        self.model: Model = stored.model
        self.folder = stored.folder
        self.target = target
        self._extractor: FeatureExtractor | None
        try:
            self._extractor = open_extractor(stored.model.dialect, stored.model.features.name)
        except UnsupportedOperation:
            # Tables of such a dialect were written elsewhere: they can be scored, candidates cannot.
            self._extractor = None
        if self._extractor is not None and self._extractor.features != stored.model.features:
            raise SchemaMismatch(
                f"the model of {stored.model.target} reads features {stored.model.features.id}, this Lorien writes "
                f"{self._extractor.features.id} with other columns. Fix: lorien featurize and lorien-train again"
            )
        self._scorer = _scorer(stored.read(SCORER_FILE), stored.model.fold_trees, stored.model.calibration)
        self._draft_text = stored.read(DRAFT_FILE) if stored.model.draft else b""

    @property
    def exact(self) -> bool:
        """False when the model was trained for another target of the same family."""
        return self.model.target == self.target.key

    @property
    def version(self) -> str:
        """Tells this publication of the model from others."""
        return self.folder.rpartition("/")[2]

    def on(self, target: Target) -> Ranker:
        """The same model, its trees shared, as the ranker of another target."""
        other = copy.copy(self)
        other.target = target
        return other

    def rank(self, workload: Workload, candidates: Sequence[Candidate]) -> FloatArray:
        """Score candidates of a workload.

        Parameters
        ----------
        workload : Workload
            Of this ranker's dialect.
        candidates : sequence of Candidate
            Schedules of it.

        Returns
        -------
        array (candidates,) of float64
            Expected fraction of the best achievable performance, in [0, 1], in the order given; 0 for a candidate
            that cannot be lowered.

        Raises
        ------
        BadInput
            The workload is of another dialect.
        UnsupportedOperation
            The dialect has no feature extractor.
        """
        if workload.dialect != self.model.dialect:
            raise BadInput(
                f"workload {workload.name!r} is of dialect {workload.dialect}, the model of {self.model.dialect}"
            )
        extractor = self._extractor or open_extractor(self.model.dialect, self.model.features.name)
        return self.score(extractor.extract(workload, candidates, self.target))

    def score(self, features: npt.NDArray[np.float32]) -> FloatArray:
        """Score feature rows (candidates, columns) of the model's feature set: (candidates,), as ``rank`` does.

        Raises ``BadInput`` on another number of columns.
        """
        return self._scorer(features)

    def guide(self, features: npt.NDArray[np.float32]) -> FloatArray:
        """Score feature rows for a search: as ``score``, lower where the parts of the model disagree.

        A search looks for what the model overrates; what only some of its parts praise is rarely good.

        Raises ``SchemaMismatch`` when the model reads another feature set than the dialect is searched with.
        """
        if self._extractor is not None and self.model.features != open_extractor(self.model.dialect).features:
            raise SchemaMismatch(
                f"the model of {self.model.target} reads features {self.model.features.id}: it ranks candidates and "
                "cannot guide a search. Fix: lorien featurize without --features into another folder, and train on that"
            )
        return self._scorer.cautious(features, CAUTION)

    @property
    def hints(self) -> dict[str, Any]:
        """Keywords for the dialect's ``search`` beside ``guide``.

        ``draft``, where the extractor names ``early`` columns: as ``guide``, of rows in which no others are given.
        """
        return {"draft": lambda features: self._drafts.cautious(features, CAUTION)} if self.model.draft else {}

    @cached_property
    def _drafts(self) -> Scorer:
        """Read by the first search: who only ranks does not wait for it."""
        return _scorer(self._draft_text, **self.model.draft)

    def score_unseen(self, features: npt.NDArray[np.float32], fold: npt.NDArray[np.int64]) -> FloatArray:
        """Score feature rows as ``score`` does, each by the part of the model that has not seen its workload.

        ``fold`` (candidates,) is the fold of each row's workload in ``model.workload_folds``, -1 for one not trained
        on. Raises ``BadInput`` on another number of columns.
        """
        return self._scorer.unseen(features, fold)

    @property
    def confidence(self) -> Confidence:
        """How many of the first ranked to try. Raises ``SchemaMismatch`` for a model that was trained without it."""
        if not self.model.confidence:
            raise SchemaMismatch(
                f"the model of {self.model.target} is of an earlier Lorien, which learned no confidence. "
                "Fix: lorien-train again, or name the k"
            )
        return Confidence.from_json(self.model.confidence)

    def score_table(self, path: Path) -> FloatArray:
        """Score every row of a feature table, in its order, in batches: (rows,).

        Raises
        ------
        SchemaMismatch
            The table is damaged, or of another dialect or feature set.
        """
        from lorien.models.data import feature_batches, table_at

        table = table_at(path)
        self.check(table)
        return np.concatenate([np.zeros(0), *(self.score(batch) for _, batch in feature_batches(table))])

    def check(self, tables: Tables) -> None:
        """Raise ``SchemaMismatch`` when tables are of another dialect or feature set than the model reads."""
        if (tables.dialect, tables.features) != (self.model.dialect, self.model.features):
            raise SchemaMismatch(
                f"{tables.paths[0]} holds {tables.dialect} features {tables.features.id}, the model of "
                f"{self.model.target} reads {self.model.features.id} of {self.model.dialect}. "
                "Fix: lorien featurize, then lorien-train again"
            )


def _scorer(text: bytes, fold_trees: Sequence[int], calibration: Mapping[str, Sequence[float]]) -> Scorer:
    knots = Calibration(tuple(calibration["raw"]), tuple(calibration["fraction"]))
    return Scorer(TreeEnsemble(text), fold_trees, knots)


def load_ranker(url: str | Path, target: str | Mapping[str, Json] | Target, dialect: str | None = None) -> Ranker:
    """Load the model for a target.

    Parameters
    ----------
    url : str or Path
        Model store: a path, ``file://`` or ``s3://`` URL.
    target : Target, str or mapping
        Any form ``Target.parse`` reads.
    dialect : str, optional
        Needed only where the store holds models of several.

    Returns
    -------
    Ranker
        Of the target's own model, else, with a warning, of the nearest of its family (``exact`` is then False).

    Raises
    ------
    UnknownTarget
        No model of that target or its family.
    BadInput
        The store holds several dialects and none was named.
    ChecksumMismatch
        The model was damaged or changed.
    SchemaMismatch
        The model was written by another version, or reads another feature set.
    UnsupportedOperation
        No model store speaks the URL's scheme.
    """
    store = open_models(url)
    wanted = Target.parse(target)
    trained = store.list(dialect)
    dialects = sorted({name for name, _ in trained})
    if len(dialects) > 1:
        raise BadInput(f"{url} holds models of {', '.join(dialects)}. Fix: --dialect with one of them")
    stored = nearest_model(store, trained, wanted)
    if stored is None:
        raise UnknownTarget(wanted.key, [key for _, key in trained])
    if stored.model.target != wanted.key:
        logger.warning("no model for %s: ranking with that of %s, of the same family", wanted.key, stored.model.target)
    return load(store, stored, wanted)


def load(store: ModelStore, stored: StoredModel, target: Target) -> Ranker:
    """The ranker of a model that was read from a store. Raises as ``Ranker`` does."""
    while True:
        try:
            return Ranker(stored, target)
        except ChecksumMismatch:
            newer = successor(store, stored)
            if newer is None:
                raise
            stored = newer


class _Trained(Protocol):
    @property
    def model(self) -> Model: ...


M = TypeVar("M", bound=_Trained)


def nearest(trained: Iterable[M], wanted: Target) -> M | None:
    """The model of the target, else the one of its family that shares most attributes with it, then has most rows."""

    def closeness(one: M) -> tuple[bool, int, int, str]:
        known = Target.from_key(one.model.target)
        shared = sum(known.identity.get(name) == value for name, value in wanted.identity.items())
        return one.model.target == wanted.key, shared, one.model.rows, one.model.target

    near = [one for one in trained if one.model.target == wanted.key or one.model.family == wanted.family]
    return max(near, key=closeness, default=None)


def nearest_model(store: ModelStore, trained: Sequence[tuple[str, str]], wanted: Target) -> StoredModel | None:
    """As ``nearest``, of the models (dialect, target key) of a store."""
    own = [one for one in trained if one[1] == wanted.key]
    near = own or [one for one in trained if Target.from_key(one[1]).family == wanted.family]
    return nearest(filter(None, (store.read(*one) for one in near)), wanted)
