"""An answer of S3 that breaks off is read again; at last the command says what to do, and a session's copy goes on."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import servers

from lorien.errors import StoreUnavailable
from lorien.s3 import S3Folder
from lorien.tune.remote import COPY, RemoteSession

CUT = servers.FaultyProxy.CUT_ANSWER
EVERY_S = 0.02


@pytest.fixture
def url(s3_folder: Callable[[str], str], aws: Callable[[str], str], proxy: servers.FaultyProxy) -> str:
    return s3_folder("moto").replace(aws("moto"), proxy.url)


@pytest.fixture
def three_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")


@pytest.mark.usefixtures("three_tries")
def test_what_breaks_off_is_read_again(url: str, proxy: servers.FaultyProxy, tmp_path: Path) -> None:
    folder = S3Folder(url)
    assert folder.write("a", b"0123456789" * 100, None)
    proxy.faults.extend([CUT, CUT])
    found = folder.read("a")
    assert found is not None
    assert found.content == b"0123456789" * 100
    proxy.faults.append(CUT)
    tail = folder.read("a", last_bytes=10)
    assert tail is not None
    assert tail.content == b"0123456789"
    proxy.faults.append(CUT)
    assert list(folder.pages()) == [["a"]]
    proxy.faults.extend([None, CUT])  # what is asked first is how long the object is
    folder.download({"a": tmp_path / "a"})
    assert (tmp_path / "a").read_bytes() == found.content
    assert not proxy.faults


@pytest.mark.usefixtures("three_tries")
def test_what_always_breaks_off_is_told_with_what_to_do(url: str, proxy: servers.FaultyProxy, tmp_path: Path) -> None:
    folder = S3Folder(url)
    assert folder.write("a", bytes(1000), None)
    for use in (lambda: folder.read("a"), lambda: list(folder.pages()), lambda: folder.download({"a": tmp_path / "a"})):
        proxy.faults.extend([CUT] * 12)
        with pytest.raises(StoreUnavailable, match=r"cannot (read|list).*Fix: .*run again"):
            use()
        proxy.faults.clear()
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("three_tries")
def test_a_command_ends_with_what_to_do(url: str, proxy: servers.FaultyProxy) -> None:
    folder = S3Folder(url)
    assert folder.write("metaschedule/llvm/model.json", b"{}" + bytes(100), None)
    proxy.faults.extend([None, None, CUT, CUT, CUT])  # two lists
    program = "from lorien.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "report", url, "-o", "report.html"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: cannot read metaschedule/llvm/model.json of" in done.stderr
    assert "Fix: see that the endpoint can be reached, then run again" in done.stderr


class Copied:
    """A folder that grows, and as much of it as its copy has."""

    def __init__(self, url: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "lorien.json").write_text("{}")
        self._records = folder / "records.jsonl"
        self.session = RemoteSession(url, folder)
        self._objects = S3Folder(url)
        self._place = f"sessions/{folder.name}/"

    def grow(self, line: str) -> None:
        with self._records.open("a") as file:
            file.write(f"{line}\n")

    def holds(self, line: str) -> bool:
        """Whether an object of the copy has this line: there are few, and small ones."""
        names = [name for page in self._objects.pages(self._place) for name in page if not name.endswith(COPY)]
        found = [self._objects.read(name) for name in names]
        return any(f"{line}\n".encode() in piece.content for piece in found if piece is not None)


@pytest.mark.parametrize("tries", ["1", "3"])
def test_a_session_is_copied_on_after_an_answer_that_breaks_off(
    url: str,
    s3_folder: Callable[[str], str],
    aws: Callable[[str], str],
    proxy: servers.FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tries: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", tries)
    copied = Copied(url, tmp_path / "session")
    copied._objects = S3Folder(url.replace(proxy.url, aws("moto")))
    with copied.session.taken_over(resume=False):
        proxy.faults.extend([None, None, CUT, CUT, CUT])  # a piece, copy.json, and that read back
        with copied.session.following(every_s=EVERY_S):
            copied.grow("first")
            waited = threading.Event()
            while not copied.holds("first") or proxy.faults:
                waited.wait(EVERY_S)
            copied.grow("second")
            while not copied.holds("second"):
                waited.wait(EVERY_S)
            copied.session.check()


def test_a_local_file_that_cannot_be_read_is_no_end_of_the_copy(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = Copied(url, tmp_path / "session")
    waited = threading.Event()
    with copied.session.taken_over(resume=False), copied.session.following(every_s=EVERY_S):
        aside = tmp_path / "aside"
        (tmp_path / "session").rename(aside)
        while not any(record.levelno == logging.ERROR for record in caplog.records):
            waited.wait(EVERY_S)
        aside.rename(tmp_path / "session")
        copied.grow("after")
        while not copied.holds("after"):
            waited.wait(EVERY_S)
        copied.session.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_copying_thread_that_ended_is_noticed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = Copied(url, tmp_path / "session")

    def end(*_: object) -> None:
        raise SystemExit  # ends a thread without a word

    def run() -> None:
        with copied.session.following(every_s=EVERY_S):
            (thread,) = (one for one in threading.enumerate() if one.name == "lorien-session-copy")
            thread.join()
            monkeypatch.undo()
            copied.session.check()

    with copied.session.taken_over(resume=False):
        monkeypatch.setattr(copied.session, "send", end)
        with pytest.raises(StoreUnavailable, match=r"has ended\. All trials are in .*--resume"):
            run()
