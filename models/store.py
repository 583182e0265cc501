"""The store of performance models: a folder per (dialect, target), whole or not there.

``<root>/<dialect>/<target key>/model.json`` says everything about the model and names the folder beside it that holds
its files, with their checksums. It is written last and in one step, so a reader sees the old model or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import orjson

from lorien.errors import ChecksumMismatch, SchemaMismatch, StoreUnavailable, UnsupportedOperation
from lorien.featurize.schema import Column, FeatureSet
from lorien.files import atomic_file, atomic_folder, cache_folder, keep, sha256_of
from lorien.records import Json, canonical_json
from lorien.s3 import S3Folder

FORMAT_VERSION = 1
SCORER_FILE = "scorer.txt"
DRAFT_FILE = "draft.txt"
AUTOGLUON_FOLDER = "autogluon"
_MODEL_FILE = "model.json"
_LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Model:
    """What is known of a model: the content of ``model.json``.

    Parameters
    ----------
    lorien : str
        Version that trained it.
    dialect, target, family : str
        What it is for: ``target`` is the key of the target, ``family`` its alternative key.
    target_attrs : dict
        The target in TVM's dictionary form, as far as the key tells it.
    feature_set : dict
        ``name``, ``version`` and ``columns`` (name, unit, meaning) it reads.
    options : dict
        ``preset``, ``time_limit_s``, ``holdout_network`` and ``base`` it was trained with.
    tables : dict of str to str
        Feature tables it was trained on, with their SHA-256.
    rows : int
        Rows it was fitted on.
    workload_keys, networks : list of str
        Workloads and networks in those rows.
    holdout : dict
        Scores on workloads that the scoring model had not seen, and which those were.
    fit_seconds : float
        Seconds to fit it.
    calibration : dict
        ``raw`` and ``fraction``: knots of the map from the trees' sum to an expected fraction of the best.
    members : list of dict
        Models in the ensemble: name and share.
    fold_trees : list of int
        Trees of each fold in the scorer's text, in its order.
    libraries : dict of str to str
        Versions of the libraries that trained it.
    workload_folds : list of int
        Fold of each of ``workload_keys``; empty in models of an earlier Lorien, and in those trained on a base.
    confidence : dict
        ``margin`` and ``expected``: how deep a ranking must be tried; empty in models of an earlier Lorien.
    draft : dict
        ``fold_trees`` and ``calibration`` of the model that ranks by the columns known before a schedule is made; empty
        where the dialect has no such columns, and in models of an earlier Lorien.
    """

    lorien: str
    dialect: str
    target: str
    family: str
    target_attrs: dict[str, Json]
    feature_set: dict[str, Json]
    options: dict[str, Json]
    tables: dict[str, str]
    rows: int
    workload_keys: list[str]
    networks: list[str]
    holdout: dict[str, Json]
    fit_seconds: float
    calibration: dict[str, list[float]]
    members: list[dict[str, Json]]
    fold_trees: list[int]
    libraries: dict[str, str]
    workload_folds: list[int] = field(default_factory=list)
    confidence: dict[str, Json] = field(default_factory=dict)
    draft: dict[str, Json] = field(default_factory=dict)

    @property
    def features(self) -> FeatureSet:
        """The feature set it reads."""
        columns = tuple(Column(*column) for column in self.feature_set["columns"])
        return FeatureSet(self.feature_set["name"], self.feature_set["version"], columns)


@dataclass(frozen=True)
class StoredModel:
    """A published model: what is known of it, where its files are, and what they must be."""

    model: Model
    folder: str
    files: dict[str, str]
    load: Callable[[str], bytes] = field(repr=False)
    """The bytes of a file as they are now; empty when it is not there."""

    @property
    def home(self) -> str:
        """The model's own folder, which holds ``model.json``."""
        return self.folder.rpartition("/")[0]

    def read(self, name: str) -> bytes:
        """The bytes of a file, checked. Raises ``ChecksumMismatch`` when it is not the one that was published."""
        content = self.load(name)
        if hashlib.sha256(content).hexdigest() != self.files.get(name):
            raise ChecksumMismatch(f"{self.folder}/{name} is not the file that was published. Fix: lorien-train again")
        return content


class ModelStore(Protocol):
    """Models by dialect and target. Safe to read while another process publishes."""

    def list(self, dialect: str | None = None) -> list[tuple[str, str]]:
        """(dialect, target key) of every model, sorted."""

    def read(self, dialect: str, target: str) -> StoredModel | None:
        """The model of a target key; None when there is none.

        Raises
        ------
        SchemaMismatch
            It was written by another version.
        ChecksumMismatch
            What it says of itself was changed or cut short.
        """

    def publish(self, model: Model, files: Path) -> StoredModel:
        """Copy the files below a folder into the store as this model; an older one is replaced in one step.

        Of publishers at the same time, each waits for its turn, or one wins and the others get ``StoreUnavailable``:
        in any case the store has one model, whole. What a publisher left that was killed goes with the next one's.

        Raises
        ------
        StoreUnavailable
            The model cannot be written, or another process has just published one. The one that is there stays.
        """


def open_models(url: str | Path) -> ModelStore:
    """The model store at a path, a ``file://`` URL or ``s3://bucket/prefix?region=...&endpoint_url=...``.

    Raises
    ------
    UnsupportedOperation
        Another scheme.
    MissingExtra
        boto3 is needed and not installed.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "s3":
        return S3ModelStore(text)
    if separator and scheme != "file":
        raise UnsupportedOperation(f"no model store speaks {scheme}://. Fix: give a path, file:// or s3://")
    return LocalModelStore(Path(rest if separator else text))


class LocalModelStore:
    """``ModelStore`` below a folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self, dialect: str | None = None) -> list[tuple[str, str]]:
        """See ``ModelStore.list``."""
        found = sorted(self._root.glob(f"{dialect or '*'}/*/{_MODEL_FILE}"))
        return [(path.parent.parent.name, path.parent.name) for path in found]

    def read(self, dialect: str, target: str) -> StoredModel | None:
        """See ``ModelStore.read``."""
        home = self._root / dialect / target
        try:
            raw = (home / _MODEL_FILE).read_bytes()
        except FileNotFoundError:
            return None
        return self._stored(home, *_parsed(raw, str(home / _MODEL_FILE)))

    def publish(self, model: Model, files: Path) -> StoredModel:
        """See ``ModelStore.publish``. Publishers of one model wait for each other."""
        home = self._root / model.dialect / model.target
        checksums = _checksums(files)
        # A folder for each publication, as in S3: a reader of the model before cannot meet files of this one.
        content = uuid.uuid4().hex
        try:
            home.mkdir(parents=True, exist_ok=True)
            with (home / _LOCK_FILE).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._write(home, content, model, files, checksums)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write the model of {model.target} to {self._root}: {error.strerror or error}. The model that "
                "was there stays. Fix: see that the disk has room and the folder can be written, then run again"
            ) from error
        return self._stored(home, model, content, checksums)

    @staticmethod
    def _write(home: Path, content: str, model: Model, files: Path, checksums: dict[str, str]) -> None:
        """Write a model, and remove what is not of it. For who holds the lock."""
        kept = {_LOCK_FILE, _MODEL_FILE, content}
        try:
            with atomic_folder(home / content) as folder:
                for name in checksums:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(files / name, folder / name)
            with atomic_file(home / _MODEL_FILE) as path:
                path.write_bytes(_described(model, content, checksums))
        except BaseException:
            shutil.rmtree(home / content, ignore_errors=True)
            raise
        for old in home.iterdir():
            if old.name not in kept:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)

    @staticmethod
    def _stored(home: Path, model: Model, content: str, files: dict[str, str]) -> StoredModel:
        def load(name: str) -> bytes:
            try:
                return (home / content / name).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):  # replaced meanwhile, or damaged
                return b""

        return StoredModel(model, f"{home}/{content}", files, load)


class S3ModelStore:
    """``ModelStore`` below a prefix. What was read once is kept in ``~/.cache/lorien``, by its checksum."""

    def __init__(self, url: str) -> None:
        self._s3 = S3Folder(url)

    def list(self, dialect: str | None = None) -> list[tuple[str, str]]:
        """See ``ModelStore.list``."""
        names = (name.split("/") for page in self._s3.pages(f"{dialect}/" if dialect else "") for name in page)
        return sorted((name[0], name[1]) for name in names if name[2:] == [_MODEL_FILE])

    def read(self, dialect: str, target: str) -> StoredModel | None:
        """See ``ModelStore.read``."""
        home = f"{dialect}/{target}"
        found = self._s3.read(f"{home}/{_MODEL_FILE}")
        if found is None:
            return None
        return self._stored(home, *_parsed(found.content, f"{self._s3.url}/{home}/{_MODEL_FILE}"))

    def publish(self, model: Model, files: Path) -> StoredModel:
        """See ``ModelStore.publish``. Of publishers at the same time, one wins."""
        home = f"{model.dialect}/{model.target}"
        replaced = self._s3.read(f"{home}/{_MODEL_FILE}")
        # Folders that are there before this publication's. Where it wins, nobody can have model.json name them any
        # more: who writes in them has seen a model.json that was replaced by then, and is refused.
        old = {name.split("/")[2] for page in self._s3.pages(f"{home}/") for name in page if name.count("/") > 2}
        content = uuid.uuid4().hex
        checksums = _checksums(files)
        self._s3.upload({f"{home}/{content}/{name}": files / name for name in checksums})
        if not self._s3.write(f"{home}/{_MODEL_FILE}", _described(model, content, checksums), replaced):
            self._drop(home, content)
            raise StoreUnavailable(
                f"another process has just published {self._s3.url}/{home}; its model stays. "
                "Fix: run again, if yours is to replace it"
            )
        for folder in old:
            self._drop(home, folder)
        return self._stored(home, model, content, checksums)

    def _drop(self, home: str, content: str) -> None:
        for page in self._s3.pages(f"{home}/{content}/"):
            self._s3.delete(page)

    def _stored(self, home: str, model: Model, content: str, files: dict[str, str]) -> StoredModel:
        def load(name: str) -> bytes:
            cached = cache_folder() / files.get(name, "")
            if cached.is_file() and sha256_of(cached) == cached.name:
                return cached.read_bytes()
            found = self._s3.read(f"{home}/{content}/{name}")
            if found is None:
                return b""
            if hashlib.sha256(found.content).hexdigest() == cached.name:
                keep(cached, found.content)
            return found.content

        return StoredModel(model, f"{self._s3.url}/{home}/{content}", files, load)


def successor(store: ModelStore, stored: StoredModel) -> StoredModel | None:
    """What has taken the place of a model, and removed its files, since it was read; None when nothing has."""
    newer = store.read(stored.model.dialect, stored.model.target)
    return None if newer is None or newer.folder == stored.folder else newer


def _parsed(raw: bytes, where: str) -> tuple[Model, str, dict[str, str]]:
    """The model that a ``model.json`` describes, the folder of its files, and their checksums."""
    try:
        content = orjson.loads(raw)
        written, digest = content["format_version"], content.pop("sha256")
    except (orjson.JSONDecodeError, TypeError, KeyError):
        raise ChecksumMismatch(f"{where} is damaged. Fix: lorien-train again") from None
    if written != FORMAT_VERSION:
        raise SchemaMismatch(
            f"{where} has format version {written}, this Lorien reads {FORMAT_VERSION}. Fix: lorien-train again"
        )
    if _digest(content) != digest:
        raise ChecksumMismatch(f"{where} was changed after it was published. Fix: lorien-train again")
    try:
        return Model(**content["model"]), content["content"], content["files"]
    except (TypeError, KeyError) as error:
        raise SchemaMismatch(f"{where} was written by another Lorien ({error}). Fix: lorien-train again") from None


def _described(model: Model, folder: str, files: dict[str, str]) -> bytes:
    """The ``model.json`` of a model."""
    # Through JSON and back, so that what is hashed is what a reader will hash.
    content = orjson.loads(
        orjson.dumps(
            {
                "format_version": FORMAT_VERSION,
                "model": asdict(model),
                "content": folder,
                "files": files,
            },
        )
    )
    return orjson.dumps(content | {"sha256": _digest(content)}, option=orjson.OPT_INDENT_2)


def _checksums(files: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    found = (path for path in sorted(files.rglob("*")) if path.is_file())
    return {path.relative_to(files).as_posix(): sha256_of(path) for path in found}


def _digest(value: Json) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
