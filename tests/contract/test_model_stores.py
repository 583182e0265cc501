"""One suite for every store of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorien.errors import ChecksumMismatch, StoreUnavailable
from lorien.models.store import Model, ModelStore, open_models

BACKENDS = ("local", "moto", "seaweedfs")


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if request.param == "local":
        return str(tmp_path / "models")
    s3_folder: Callable[[str], str] = request.getfixturevalue("s3_folder")
    return s3_folder(request.param)


@pytest.fixture
def store(url: str) -> ModelStore:
    return open_models(url)


def described(target: str = "llvm", rows: int = 1) -> Model:
    return Model(
        lorien="0",
        dialect="toy",
        target=target,
        family=target,
        target_attrs={"kind": target},
        feature_set={"name": "toy", "version": 1, "columns": []},
        options={},
        tables={"a.parquet": "0"},
        rows=rows,
        workload_keys=["w"],
        networks=[],
        holdout={"top1_mean": 0.5},
        fit_seconds=1.5,
        calibration={"raw": [0.0, 1.0], "fraction": [0.0, 1.0]},
        members=[],
        libraries={},
        fold_trees=[1],
    )


def files(folder: Path, text: str) -> Path:
    (folder / text / "more").mkdir(parents=True)
    (folder / text / "scorer.txt").write_text(text)
    (folder / text / "more" / "data").write_bytes(b"\0" * 1000)
    return folder / text


def test_an_empty_store(store: ModelStore) -> None:
    assert store.list() == []
    assert store.read("toy", "llvm") is None


def test_what_is_published_comes_back(store: ModelStore, tmp_path: Path) -> None:
    for target in ("llvm", "cuda"):
        published = store.publish(described(target), files(tmp_path, target))
        assert published.read("scorer.txt") == target.encode()
    assert store.list() == store.list("toy") == [("toy", "cuda"), ("toy", "llvm")]
    assert store.list("other") == []
    stored = store.read("toy", "llvm")
    assert stored is not None
    assert stored.model == described()
    assert stored.home.endswith("/toy/llvm")
    assert (stored.read("scorer.txt"), len(stored.read("more/data"))) == (b"llvm", 1000)
    with pytest.raises(ChecksumMismatch, match="other"):
        stored.read("other.txt")


def test_a_newer_model_takes_the_place(store: ModelStore, tmp_path: Path) -> None:
    old = store.publish(described(rows=1), files(tmp_path, "one"))
    store.publish(described(rows=2), files(tmp_path, "two"))
    new = store.read("toy", "llvm")
    assert new is not None
    assert (new.model.rows, new.read("scorer.txt")) == (2, b"two")
    assert store.list() == [("toy", "llvm")]
    with pytest.raises(ChecksumMismatch, match="not the file"):
        old.read("scorer.txt")


# What only S3 can meet.


def test_two_publishers_cannot_both_win(s3_folder: Callable[[str], str], tmp_path: Path) -> None:
    url = s3_folder("seaweedfs")
    slow, fast = open_models(url), open_models(url)
    upload = slow._s3.upload  # type: ignore[attr-defined]

    def overtaken(objects: dict[str, Path]) -> None:
        upload(objects)
        fast.publish(described(rows=2), files(tmp_path, "fast"))

    slow._s3.upload = overtaken  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable, match="another process"):
        slow.publish(described(rows=1), files(tmp_path, "slow"))
    stored = fast.read("toy", "llvm")
    assert stored is not None
    assert (stored.model.rows, stored.read("scorer.txt")) == (2, b"fast")


def test_a_damaged_cache_is_fetched_again(
    s3_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = open_models(s3_folder("moto"))
    stored = store.publish(described(), files(tmp_path, "text"))
    for _ in range(2):
        assert stored.read("scorer.txt") == b"text"
        (cached,) = (tmp_path / "home" / ".cache" / "lorien").iterdir()
        cached.write_text("cut")
    (tmp_path / "home" / ".cache" / "lorien" / stored.files["scorer.txt"]).write_text("text")
    for page in store._s3.pages(""):  # type: ignore[attr-defined]
        store._s3.delete(page)  # type: ignore[attr-defined]
    assert stored.read("scorer.txt") == b"text"
