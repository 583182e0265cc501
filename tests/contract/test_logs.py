"""One suite for every log store."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorien.dialects.base import Task
from lorien.errors import BadInput, ChecksumMismatch, SchemaMismatch, StoreUnavailable
from lorien.logs import open_logs
from lorien.logs.base import LogFile, LogStore, StoredLog
from lorien.s3 import S3Folder
from lorien.target import Target

BACKENDS = ("local", "moto", "seaweedfs")
CUDA, LLVM = Target.parse("cuda -arch=sm_86"), Target.parse("llvm -mcpu=znver4")


def described(files: list[Path], network: str | None = "resnet50", target: Target = CUDA) -> StoredLog:
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    sizes = [file.stat().st_size for file in files]
    return StoredLog(
        dialect="autotvm",
        target=target,
        network=network,
        files=tuple(
            LogFile(file.name, size, size, digest, size, digest)
            for file, size, digest in zip(files, sizes, digests, strict=True)
        ),
        is_folder=len(files) > 1,
        fingerprint=hashlib.sha256("".join(digests).encode()).hexdigest(),
        records=3,
        failed=1,
        unreadable=0,
        workloads=1,
        build="tvm 0.10.0",
        tasks=(Task("conv", 2.0, ("a", "b")), Task("dense")),
        host="a machine",
        started_s=1.5e9,
        ended_s=1.6e9,
    )


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LogStore:
    if request.param == "local":
        return open_logs(f"file://{tmp_path}/logs")
    s3_folder: Callable[[str], str] = request.getfixturevalue("s3_folder")
    return open_logs(s3_folder(request.param))


@pytest.fixture
def native(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(*contents: str) -> list[Path]:
        files = [tmp_path / f"part{index}.log" for index in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)
        return files

    return write


def test_an_empty_store_lists_nothing(store: LogStore) -> None:
    assert list(store.list()) == []


def test_what_is_published_comes_back(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n", "b\n")
    log = described(files)
    assert store.publish(log, files)
    assert list(store.list()) == [log]
    assert log.info.tasks == (Task("conv", 2.0, ("a", "b")), Task("dense"))
    assert log.size_bytes == 4
    with store.local(log) as path:
        assert [(path / file.name).read_text() for file in log.files] == ["a\n", "b\n"]


def test_a_log_of_one_file_is_that_file(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n")
    store.publish(described(files), files)
    with store.local(described(files)) as path:
        assert path.name == "part0.log"
        assert path.read_text() == "a\n"


def test_a_large_log_comes_back(store: LogStore, tmp_path: Path) -> None:
    files = [tmp_path / "large.log"]
    files[0].write_bytes(random.Random(0).randbytes(20 << 20))
    log = described(files)
    assert store.publish(log, files)
    with store.local(log) as path:
        assert path.read_bytes() == files[0].read_bytes()


def test_publishing_twice_adds_nothing(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n")
    assert [store.publish(described(files), files) for _ in range(2)] == [True, False]
    assert len(list(store.list())) == 1


def test_many_publish_the_same_at_once(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n" * 1000)
    log = described(files)
    threads = [threading.Thread(target=store.publish, args=(log, files)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(store.list()) == [log]
    with store.local(log) as path:
        assert path.read_text() == "a\n" * 1000


def test_list_filters_in_a_stable_order(store: LogStore, native: Callable[..., list[Path]]) -> None:
    for target in (LLVM, CUDA):
        for network in ("vgg19", "resnet50", None):
            files = native(f"{target} {network}\n")
            store.publish(described(files, network, target), files)
    found = [log.id for log in store.list()]
    assert found == sorted(found)
    assert len(found) == 6
    assert [log.network for log in store.list(target=LLVM)] == [None, "resnet50", "vgg19"]
    assert list(store.list(dialect="metaschedule")) == []


def test_a_network_is_any_text(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n")
    log = described(files, network="../../etc/a b:c")
    store.publish(log, files)
    assert list(store.list()) == [log]
    assert ".." not in log.id.split("/")


def test_a_file_that_changed_is_refused(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n")
    log = described(files)
    files[0].write_text("a\nb\n")
    with pytest.raises(BadInput, match="being written"):
        store.publish(log, files)
    assert list(store.list()) == []


def test_what_is_known_is_written_anew_and_the_files_stay(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n", "b\n")
    log = described(files)
    told = replace(log, build="tvm 0.11.0")
    store.describe(told)
    assert list(store.list()) == []
    store.publish(log, files)
    store.describe(told)
    assert list(store.list()) == [told]
    with store.local(told) as folder:
        assert [(folder / file.name).read_text() for file in files] == ["a\n", "b\n"]


def test_remove(store: LogStore, native: Callable[..., list[Path]]) -> None:
    files = native("a\n")
    log = described(files)
    store.publish(log, files)
    for _ in range(2):
        store.remove(log)
        assert list(store.list()) == []
    with pytest.raises(BadInput, match="no log"), store.local(log):
        pass
    assert store.publish(log, files)


def test_unknown_scheme_names_the_known() -> None:
    with pytest.raises(BadInput, match="known: file"):
        open_logs("ftp://x")


# What only a folder can meet.


def test_a_path_and_a_file_url_are_the_same(tmp_path: Path) -> None:
    assert open_logs(str(tmp_path)).url == open_logs(f"file://{tmp_path}").url == str(tmp_path)


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(BadInput, match="no folder"):
        open_logs(str(tmp_path / "logs"))


def test_a_damaged_sidecar_is_told(tmp_path: Path, native: Callable[..., list[Path]]) -> None:
    store, files = open_logs(str(tmp_path / "logs")), native("a\n")
    log = described(files)
    store.publish(log, files)
    sidecar = tmp_path / "logs" / log.id / "lorien.json"
    whole = sidecar.read_text()
    for text, error in (
        (whole[:40], BadInput),
        ("[]", BadInput),
        (whole.replace('"records"', '"r"'), BadInput),
        (whole.replace('"version": 1', '"version": 2'), SchemaMismatch),
    ):
        sidecar.write_text(text)
        with pytest.raises(error, match=r"lorien\.json.*Fix"):
            list(store.list())


def test_leftovers_of_a_killed_writer_are_no_logs(tmp_path: Path, native: Callable[..., list[Path]]) -> None:
    store, files = open_logs(str(tmp_path / "logs")), native("a\n")
    log = described(files)
    store.publish(log, files)
    folder = tmp_path / "logs" / log.id
    folder.rename(folder.with_name(".tmp-1"))
    assert list(store.list()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, native: Callable[..., list[Path]]) -> None:
    store, files = open_logs(str(tmp_path / "logs")), native("a\n", "b\n")
    log = described(files)
    files[1].unlink()
    with pytest.raises(StoreUnavailable, match=r"cannot write.*Fix"):
        store.publish(log, files)
    assert list(store.list()) == []
    assert [path for path in (tmp_path / "logs").rglob("*") if path.is_file()] == []


def test_a_log_names_its_place(native: Callable[..., list[Path]]) -> None:
    log = described(native("a\n"))
    assert log.id == f"autotvm/{CUDA.key}/resnet50-{log.fingerprint[:12]}"
    assert replace(log, network=None).id.startswith(f"autotvm/{CUDA.key}/log-")


# What only S3 can meet.


def test_damage_in_a_bucket_is_told(s3_folder: Callable[[str], str], native: Callable[..., list[Path]]) -> None:
    store, files = open_logs(s3_folder("moto")), native("a\n")
    log = described(files)
    store.publish(log, files)
    objects: S3Folder = store._s3  # type: ignore[attr-defined]
    (file,) = (name for page in objects.pages() for name in page if name.endswith("part0.log"))
    objects.upload({file: native("b\n")[0]})
    with pytest.raises(ChecksumMismatch, match="Fix"), store.local(log):
        pass
    objects.delete([file])
    with pytest.raises(BadInput, match="no log"), store.local(log):
        pass
    sidecar = objects.read(f"{log.id}/lorien.json")
    assert sidecar is not None
    for content, error in (
        (sidecar.content[:40], BadInput),
        (b"[]", BadInput),
        (sidecar.content.replace(b"part0.log", b"../../../x"), BadInput),
        (sidecar.content.replace(b'"records"', b'"r"'), BadInput),
        (sidecar.content.replace(b'"version": 1', b'"version": 2'), SchemaMismatch),
    ):
        assert objects.write(f"{log.id}/lorien.json", content, objects.read(f"{log.id}/lorien.json"))
        with pytest.raises(error, match=r"lorien\.json.*Fix"):
            list(store.list())


def test_there_are_other_pages(s3_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorien.s3.PAGE_OBJECTS", 10)
    objects = S3Folder(s3_folder("moto"))
    names = sorted(f"{number}.txt" for number in range(25))
    objects.each(lambda name: objects.write(name, b"", None), names)
    assert list(objects.pages()) == [names[:10], names[10:20], names[20:]]
    assert not objects.write(names[0], b"late", None)
