"""One suite for every store of models."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorien.errors import ChecksumMismatch, StoreUnavailable
from lorien.models.store import Model, ModelStore, open_models, successor
from lorien.s3 import S3Folder

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


def test_publishers_and_readers_at_the_same_time(url: str, store: ModelStore, tmp_path: Path) -> None:
    """Whoever wins, the model is whole at any time, and nothing is left of the others."""
    rounds, publishers = 4, 3
    store.publish(described(rows=0), files(tmp_path, "0"))
    started = threading.Barrier(publishers)

    def publish(number: int) -> int:
        won = 0
        for turn in range(rounds):
            rows = 1 + number * rounds + turn
            folder = files(tmp_path, str(rows))
            started.wait()
            try:
                open_models(url).publish(described(rows=rows), folder)
                won += 1
            except StoreUnavailable:  # Another was first.
                assert url.startswith("s3://")
        return won

    with ThreadPoolExecutor(publishers) as pool:
        running = [pool.submit(publish, number) for number in range(publishers)]
        while not all(publisher.done() for publisher in running):
            stored = store.read("toy", "llvm")
            while stored is not None:
                try:
                    assert stored.read("scorer.txt") == str(stored.model.rows).encode()
                    break
                except ChecksumMismatch:
                    stored = successor(store, stored)
                    assert stored is not None
    assert sum(publisher.result() for publisher in running) >= rounds
    stored = store.read("toy", "llvm")
    assert stored is not None
    assert stored.read("scorer.txt") == str(stored.model.rows).encode()
    assert contents(url) == {stored.folder.rpartition("/")[2]}


def contents(url: str) -> set[str]:
    """Folders of files that the store has of the one model."""
    if url.startswith("s3://"):
        names = [name for page in S3Folder(url).pages("toy/llvm/") for name in page]
        return {name.split("/")[2] for name in names if name.count("/") > 2}
    return {path.name for path in Path(url, "toy", "llvm").iterdir() if path.is_dir()}


# What only a folder can meet.


PUBLISHER = (
    "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
    "from lorien.models.store import open_models\n"
    "store = open_models(sys.argv[1])\nmodel = store.read('toy', 'llvm').model\nprint('ready', flush=True)\n"
    "while True:\n    store.publish(model, Path(sys.argv[2]))\n"
)


def test_a_publisher_that_is_killed(tmp_path: Path) -> None:
    """The model stays whole, nobody waits for the dead, and what they left goes with the next publication."""
    store, folder = open_models(tmp_path / "models"), files(tmp_path, "one")
    for number in range(40):
        (folder / f"tree{number}").write_bytes(bytes(10000))
    store.publish(described(), folder)
    words = [sys.executable, "-B", "-c", PUBLISHER, str(tmp_path / "models"), str(folder)]
    rng = random.Random(22)
    for _ in range(3):
        with subprocess.Popen(words, stdout=subprocess.PIPE) as publisher:
            assert publisher.stdout is not None
            publisher.stdout.readline()
            for _ in range(rng.randrange(2000)):  # Kill it anywhere: it publishes some hundred times a second.
                stored = store.read("toy", "llvm")
            publisher.kill()
        stored = store.read("toy", "llvm")
        assert stored is not None
        assert all(stored.read(name) for name in stored.files)
    stored = store.publish(described(rows=2), folder)
    assert {path.name for path in (tmp_path / "models/toy/llvm").iterdir()} == {
        ".lock",
        "model.json",
        stored.folder.rpartition("/")[2],
    }


FULL = (
    "import resource, signal, sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
    "from lorien.errors import StoreUnavailable\nfrom lorien.models.store import open_models\n"
    "store = open_models(sys.argv[1])\nmodel = store.read('toy', 'llvm').model\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "for limit_bytes in (500, 2000):\n"
    "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))\n"
    "    try:\n        store.publish(replace(model, networks=['n' * 2000]), Path(sys.argv[2]))\n"
    "    except StoreUnavailable as error:\n        print(error)\n"
)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: in the files of a model, and in what describes it."""
    store = open_models(tmp_path / "models")
    before = store.publish(described(), files(tmp_path, "one"))
    words = [sys.executable, "-B", "-c", FULL, str(tmp_path / "models"), str(files(tmp_path, "two"))]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.count("File too large. The model that was there stays. Fix: see that the disk has room") == 2
    stored = store.read("toy", "llvm")
    assert stored is not None
    assert (stored.folder, stored.read("scorer.txt")) == (before.folder, b"one")
    assert contents(str(tmp_path / "models")) == {before.folder.rpartition("/")[2]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path) -> None:
    store = open_models(small_disk / "models")
    before = store.publish(described(), files(tmp_path, "one"))
    larger = files(tmp_path, "two")
    (larger / "trees").write_bytes(bytes(100_000))
    with pytest.raises(StoreUnavailable, match=r"No space left on device\. The model that was there stays\. Fix: "):
        store.publish(described(rows=2), larger)
    stored = store.read("toy", "llvm")
    assert stored is not None
    assert (stored.folder, stored.read("scorer.txt")) == (before.folder, b"one")
    store.publish(described(rows=2), files(tmp_path, "three"))


# What only S3 can meet.


def test_what_a_killed_publisher_sent_goes_with_the_next_model(s3_folder: Callable[[str], str], tmp_path: Path) -> None:
    url = s3_folder("moto")
    assert S3Folder(url).write("toy/llvm/0123/more/data", b"half", None)
    stored = open_models(url).publish(described(), files(tmp_path, "one"))
    assert contents(url) == {stored.folder.rpartition("/")[2]}


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
