"""What is temporary and has no living owner goes; what has one stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from lorien.files import FOREIGN_AFTER_S, atomic_file, remove_leftovers, temporary_folder
from lorien.machine import place_of_processes

HOLD = """
import os, pathlib, sys, time
from contextlib import ExitStack
from lorien.files import atomic_file, atomic_folder, temporary_folder
with ExitStack() as stack:
    for begun in (
        atomic_file(pathlib.Path("a.json")), atomic_folder(pathlib.Path("net-1.0-abc")),
        temporary_folder("lorien-measure-", pathlib.Path()), temporary_folder(".building-", pathlib.Path()),
    ):
        path = pathlib.Path(stack.enter_context(begun))
        (path / "part" if path.is_dir() else path).write_text("half")
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing a file and three folders."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_next_process_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        killed, living = (stack.enter_context(hold(tmp_path)) for _ in range(2))
        stack.callback(living.kill)
        assert len(names(tmp_path)) == 8
        killed.send_signal(signal.SIGKILL)
        # It is a zombie until it is waited for: that counts as ended.
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        (tmp_path / "lorien-backup").mkdir()
        (tmp_path / "lorien-measure-abcd1234").mkdir()
        program = f"from lorien.files import *; temporary_folder('lorien-log-', Path({str(tmp_path)!r})).cleanup()"
        subprocess.run([sys.executable, "-c", program], check=True)
        left = names(tmp_path) - {"lorien-backup", "lorien-measure-abcd1234"}
        assert len(left) == 4
        assert all(f"-{living.pid}-" in name for name in left)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"lorien-backup", "lorien-measure-abcd1234"}


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    (tmp_path / f".tmp-{place_of_processes()}-{os.getpid()}-1-abcdefgh.json").touch()
    with atomic_file(tmp_path / "b") as temporary:
        temporary.touch()
    assert names(tmp_path) == {"b"}


@pytest.mark.parametrize(
    "name", [f".tmp-{'0' * 12}-{os.getpid()}-1-abcdefgh", f".tmp-{'0' * 32}.parquet"], ids=["elsewhere", "unknown"]
)
def test_what_another_machine_writes_stays_until_it_did_not_change_for_long(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    inside = folder / "rows.parquet"
    inside.touch()
    long_ago_s = time.time() - FOREIGN_AFTER_S - 1
    os.utime(folder, (long_ago_s, long_ago_s))
    remove_leftovers(tmp_path)
    assert inside.exists()
    os.utime(inside, (long_ago_s, long_ago_s))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == set()


def test_a_folder_that_stepped_aside_for_one_that_never_came_goes_back(tmp_path: Path) -> None:
    """Killed between the two renames: the old folder may be the only copy of what is in it."""
    program = (
        "import os, pathlib\n"
        "from lorien.files import atomic_folder\n"
        "replace = pathlib.Path.replace\n"
        "def killed(self, to):\n"
        "    replace(self, to)\n"
        "    os.kill(os.getpid(), 9)\n"
        "pathlib.Path.replace = killed\n"
        "with atomic_folder(pathlib.Path('session')) as folder: (folder / 'new').touch()\n"
    )
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "old").touch()
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path)
    assert "session" not in names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"session"}
    assert names(tmp_path / "session") == {"old"}


def test_a_folder_of_another_user_and_a_link_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    shared = tmp_path / "shared"
    shared.mkdir()
    owned = f"lorien-measure-{place_of_processes()}-1-1-abcdefg"
    (shared / f"{owned}1").symlink_to(outside)
    if os.geteuid() == 0:
        (shared / f"{owned}2").mkdir()
        os.chown(shared / f"{owned}2", 12345, 12345)
    with temporary_folder("lorien-log-", shared):
        pass
    assert names(shared) == ({f"{owned}2"} if os.geteuid() == 0 else set())
    assert names(outside) == {"kept"}
