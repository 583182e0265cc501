from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorien.files import atomic_file, atomic_folder, sha256_of


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for text in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "file").write_text(text)
    assert (path / "deep" / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, lorien.files as f; os.umask(0o022)\n"
        "with f.atomic_file(pathlib.Path('a')) as t: t.write_text('x')\n"
        "with f.atomic_folder(pathlib.Path('b')) as t: (t / 'c').write_text('x')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write fails half way, with an OSError of the kernel's."""
    program = (
        "import pathlib, resource, signal, lorien.files as f\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "with f.atomic_file(pathlib.Path('a')) as t: t.write_bytes(bytes(1 << 20))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert "OSError" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
