"""The store of performance models: a folder per (dialect, target), whole or not there.

``<root>/<dialect>/<target key>/model.json`` says everything about the model and names the folder beside it that holds
its files, with their checksums. It is written last and in one step, so a reader sees the old model or the new one.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from lorien.errors import ChecksumMismatch, SchemaMismatch, UnsupportedOperation
from lorien.featurize.schema import Column, FeatureSet
from lorien.files import TEMPORARY_PREFIX, atomic_file, atomic_folder, sha256_of
from lorien.records import Json, canonical_json

FORMAT_VERSION = 1
SCORER_FILE = "scorer.txt"
AUTOGLUON_FOLDER = "autogluon"
_MODEL_FILE = "model.json"


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
        ``preset``, ``time_limit_s`` and ``holdout_network`` it was trained with.
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
    libraries : dict of str to str
        Versions of the libraries that trained it.
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
    libraries: dict[str, str]

    @property
    def features(self) -> FeatureSet:
        """The feature set it reads."""
        columns = tuple(Column(*column) for column in self.feature_set["columns"])
        return FeatureSet(self.feature_set["name"], self.feature_set["version"], columns)


@dataclass(frozen=True)
class StoredModel:
    """A published model: what is known of it, where its files are, and what they must be."""

    model: Model
    folder: Path
    files: dict[str, str]

    @property
    def home(self) -> Path:
        """The model's own folder, which holds ``model.json``."""
        return self.folder.parent

    def read(self, name: str) -> bytes:
        """The bytes of a file, checked. Raises ``ChecksumMismatch`` when it is not the one that was published."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self.files.get(name):
            raise ChecksumMismatch(f"{path} is not the file that was published. Fix: lorien-train again")
        return content


class ModelStore:
    """Models below a folder. Safe to read while another process publishes.

    Parameters
    ----------
    root : Path
        The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self, dialect: str | None = None) -> list[tuple[str, str]]:
        """(dialect, target key) of every model, sorted."""
        found = sorted(self._root.glob(f"{dialect or '*'}/*/{_MODEL_FILE}"))
        return [(path.parent.parent.name, path.parent.name) for path in found]

    def read(self, dialect: str, target: str) -> StoredModel | None:
        """The model of a target key; None when there is none.

        Raises
        ------
        SchemaMismatch
            It was written by another version.
        ChecksumMismatch
            What it says of itself was changed or cut short.
        """
        path = self._root / dialect / target / _MODEL_FILE
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            content = orjson.loads(raw)
            written, digest = content["format_version"], content.pop("sha256")
        except (orjson.JSONDecodeError, TypeError, KeyError):
            raise ChecksumMismatch(f"{path} is damaged. Fix: lorien-train again") from None
        if written != FORMAT_VERSION:
            raise SchemaMismatch(
                f"{path} has format version {written}, this Lorien reads {FORMAT_VERSION}. Fix: lorien-train again"
            )
        if _digest(content) != digest:
            raise ChecksumMismatch(f"{path} was changed after it was published. Fix: lorien-train again")
        try:
            model = Model(**content["model"])
        except TypeError as error:
            raise SchemaMismatch(f"{path} was written by another Lorien ({error}). Fix: lorien-train again") from None
        return StoredModel(model, path.parent / content["content"], content["files"])

    def publish(self, model: Model, files: Path) -> StoredModel:
        """Copy the files below a folder into the store as this model; an older one is replaced in one step."""
        home = self._root / model.dialect / model.target
        checksums = {
            path.relative_to(files).as_posix(): sha256_of(path) for path in sorted(files.rglob("*")) if path.is_file()
        }
        # Through JSON and back, so that what is hashed is what a reader will hash.
        content = orjson.loads(
            orjson.dumps(
                {
                    "format_version": FORMAT_VERSION,
                    "model": asdict(model),
                    "content": _digest(checksums)[:16],
                    "files": checksums,
                },
            )
        )
        with atomic_folder(home / content["content"]) as folder:
            shutil.copytree(files, folder, dirs_exist_ok=True)
        with atomic_file(home / _MODEL_FILE) as path:
            path.write_bytes(orjson.dumps(content | {"sha256": _digest(content)}, option=orjson.OPT_INDENT_2))
        for old in home.iterdir():
            # A temporary folder may be another publisher's.
            if old.is_dir() and old.name != content["content"] and not old.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(old, ignore_errors=True)
        return StoredModel(model, home / content["content"], checksums)


def open_models(url: str | Path) -> ModelStore:
    """The model store at a path or ``file://`` URL. Raises ``UnsupportedOperation`` for another scheme."""
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "file":
        raise UnsupportedOperation(f"no model store speaks {scheme}://. Fix: give a path or file://")
    return ModelStore(Path(rest if separator else text))


def _digest(value: Json) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
