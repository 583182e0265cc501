"""A session's copy in S3: whatever is cut, killed or started twice, no acknowledged trial is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import orjson
import pytest
import servers

from lorien.errors import BadInput, ChecksumMismatch, LorienError, SchemaMismatch, StoreUnavailable
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.s3 import S3Folder
from lorien.target import Target
from lorien.tune import remote
from lorien.tune.jobs import remove_left_sessions
from lorien.tune.remote import COPY, RemoteSession
from lorien.tune.session import Session

STUB = Path(__file__).parents[1] / "unit" / "stub_dialect"
TARGET = Target.parse("llvm -num-cores=2")
WORKLOADS = [Workload("recording", f"w{number}", [number]) for number in range(2)]


@pytest.fixture(autouse=True, scope="module")
def _stub_dialect() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUB)
        yield


@pytest.fixture
def url(s3_folder: Callable[[str], str]) -> str:
    return s3_folder("seaweedfs")


def grow(session: Session, count: int, first_s: float = 1.0) -> None:
    for number in range(session.records, session.records + count):
        failed = Measurement(Outcome.CRASH, (), "SIGSEGV", 1.0)
        ran = Measurement(Outcome.OK, (first_s / (number + 1),), timestamp_s=1.0)
        session.append(number % 2, Candidate({"n": number}), failed if number % 5 == 0 else ran)


def contents(folder: Path) -> list[tuple[list[float], set[str]]]:
    with Session(folder) as session:
        return [(own.latencies_s, own.keys) for own in session.trials]


def restored(url: str, folder: Path) -> list[tuple[list[float], set[str]]]:
    """What a machine that has nothing yet goes on with."""
    with RemoteSession(url, folder).taken_over(resume=True):
        return contents(folder)


@pytest.mark.parametrize("piece_bytes", [200, 1 << 20])
def test_another_machine_goes_on(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(remote, "PIECE_BYTES", piece_bytes)
    here, there = tmp_path / "here" / "s", tmp_path / "there" / "s"
    first = RemoteSession(url, here)
    with first.taken_over(resume=False), Session.create(here, WORKLOADS, TARGET) as session:
        for count in (3, 0, 40, 1):
            grow(session, count)
            first.send()
        (names,) = S3Folder(url).pages("sessions/s/")
        if piece_bytes > 200:
            # Of each file that is not empty one piece; those that it took the place of are gone.
            assert len(names) == sum(path.stat().st_size > 0 for path in here.iterdir()) + 1
        with (
            pytest.raises(BadInput, match="another process writes"),
            RemoteSession(url, here).taken_over(resume=True),
        ):
            pass
        with pytest.raises(BadInput, match=r"Fix: --resume"), RemoteSession(url, there).taken_over(resume=False):
            pass
        second = RemoteSession(url, there)
        with second.taken_over(resume=True), Session(there) as other:
            assert other.records == 44
            grow(other, 2)
            second.send()
        grow(session, 1, first_s=2.0)
        with pytest.raises(BadInput, match=r"another process goes on.*Fix"):
            first.send()
        with pytest.raises(BadInput, match="another process goes on"):
            first.check()
    assert contents(there) == restored(url, tmp_path / "third" / "s")
    # Here is a trial that was never sent, there are two that came after.
    with pytest.raises(BadInput, match="different ways"), RemoteSession(url, here).taken_over(resume=True):
        pass
    assert sum(len(latencies) for latencies, _ in contents(here)) == 45


def test_a_folder_that_is_behind_catches_up(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "s", tmp_path / "there" / "s"
    first = RemoteSession(url, here)
    with first.taken_over(resume=False), Session.create(here, WORKLOADS, TARGET) as session:
        grow(session, 3)
        first.send()
    second = RemoteSession(url, there)
    with second.taken_over(resume=True), Session(there) as session:
        grow(session, 3)
        second.send()
    assert restored(url, here) == contents(there)


def test_a_job_is_handed_from_lease_to_lease_and_never_back(url: str, tmp_path: Path) -> None:
    def leased(token: int) -> tuple[RemoteSession, Path]:
        folder = tmp_path / f"machine{token}" / f"7.{token}"
        return RemoteSession(url, folder, name="run/7", token=token), folder

    first, here = leased(1)
    second, there = leased(2)
    with first.taken_over(resume=True), Session.create(here, WORKLOADS, TARGET) as session:
        grow(session, 10)
        first.send()
        with second.taken_over(resume=True), Session(there) as other:
            assert other.records == 10
            grow(other, 5)
            second.send()
            grow(session, 1)
            with pytest.raises(BadInput, match="is of a later lease"):
                first.send()  # woken up after its lease
            late = RemoteSession(url, tmp_path / "late" / "7.1", name="run/7", token=1)
            with pytest.raises(BadInput, match="is of a later lease"), late.taken_over(resume=True):
                pass
            grow(other, 5)
            second.send()  # it is none the worse for it
    assert sum(len(latencies) for latencies, _ in contents(there)) == 20
    sealed = RemoteSession(url, tmp_path / "machine3" / "7.2", name="run/7", token=3)
    with sealed.taken_over(resume=True):
        assert contents(tmp_path / "machine3" / "7.2") == contents(there)
    assert len(next(S3Folder(url).pages("sessions/run/7/"))) == 1 + len(list(there.iterdir()))
    other = RemoteSession(url, tmp_path / "8.1", name="run/8", token=1)
    with other.taken_over(resume=True):
        pass
    remove_left_sessions(url, "run", lambda number: number == 7)
    assert [page for page in S3Folder(url).pages() if page] == [[f"sessions/run/8/{COPY}"]]
    other.remove()
    assert not any(S3Folder(url).pages())


@pytest.mark.parametrize("fault", [servers.FaultyProxy.DROP, servers.FaultyProxy.LOSE_ANSWER])
def test_cut_at_any_request(
    url: str, aws: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What is there after a cut is a whole beginning; the next sending sends the rest."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy = servers.FaultyProxy(aws("seaweedfs"))
    here, objects = tmp_path / "here" / "s", S3Folder(url)
    copy = RemoteSession(url.replace(aws("seaweedfs"), proxy.url), here)
    try:
        with copy.taken_over(resume=False), Session.create(here, WORKLOADS, TARGET) as session:
            grow(session, 5)
            copy.send()
            for requests in range(8):
                before = sent(objects)
                grow(session, 5)
                proxy.faults.extend([None] * requests + [fault])
                # Two files that grew, copy.json and back, two old pieces.
                with pytest.raises(StoreUnavailable, match="Fix") if requests < 6 else nullcontext():
                    copy.send()
                proxy.faults.clear()
                whole = {path.name: path.read_bytes() for path in here.iterdir()}
                assert sent(objects) in (before, whole)
                grow(session, 5)
                copy.send()
    finally:
        proxy.close()
    assert restored(url, tmp_path / "there" / "s") == contents(here)


def sent(objects: S3Folder) -> dict[str, bytes]:
    """The files that the copy stands for now."""
    found = objects.read(f"sessions/s/{COPY}")
    assert found is not None
    files: dict[str, bytes] = {}
    for name, pieces in orjson.loads(found.content)["files"].items():
        parts = [objects.read(f"sessions/s/{piece['name']}") for piece in pieces]
        files[name] = b"".join(part.content for part in parts if part is not None)
        assert len(files[name]) == sum(piece["bytes"] for piece in pieces)
    return files


def test_a_server_killed_while_it_is_followed(
    aws_credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server = servers.seaweedfs(tmp_path)
    here = tmp_path / "here" / "s"
    url = f"s3://{servers.BUCKET}/logs?endpoint_url={server.url}"
    try:
        servers.make_bucket(server.url)
        copy = RemoteSession(url, here)
        with (
            copy.taken_over(resume=False),
            Session.create(here, WORKLOADS, TARGET) as session,
            copy.following(every_s=0.05),
        ):
            grow(session, 10)
            server.kill()
            grow(session, 10)
            server.start()
            grow(session, 10)
        assert restored(url, tmp_path / "there" / "s") == contents(here)
    finally:
        server.kill()


def end(session: Session, proxy: servers.FaultyProxy) -> None:
    """Trials, and nobody to send them to."""
    grow(session, 10)
    proxy.faults.append(proxy.DROP)


def test_what_could_not_be_sent_is_sent_by_the_next(
    url: str, aws: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy = servers.FaultyProxy(aws("seaweedfs"))
    here = tmp_path / "here" / "s"
    copy = RemoteSession(url.replace(aws("seaweedfs"), proxy.url), here)
    try:
        with (
            copy.taken_over(resume=False),
            Session.create(here, WORKLOADS, TARGET) as session,
            pytest.raises(StoreUnavailable, match=r"All trials are in .*--resume sends them"),
            copy.following(),
        ):
            end(session, proxy)
    finally:
        proxy.close()
    again = RemoteSession(url, here)
    with again.taken_over(resume=True), Session(here) as session, again.following():
        assert session.records == 10
    assert restored(url, tmp_path / "there" / "s") == contents(here)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b'"version":1', b'"version":2', SchemaMismatch),
        (b'"files"', b'"f"', BadInput),
        (b'"details.jsonl"', b'"../details.jsonl"', BadInput),
        (b'"sha256":"', b'"sha256":"0', ChecksumMismatch),
    ],
)
def test_a_copy_that_is_not_what_was_sent(
    url: str, tmp_path: Path, old: bytes, new: bytes, error: type[LorienError]
) -> None:
    here = tmp_path / "here" / "s"
    copy = RemoteSession(url, here)
    with copy.taken_over(resume=False), Session.create(here, WORKLOADS, TARGET) as session:
        grow(session, 3)
        copy.send()
    objects = S3Folder(url)
    found = objects.read(f"sessions/s/{COPY}")
    assert found is not None
    assert objects.write(f"sessions/s/{COPY}", found.content.replace(old, new), found)
    with pytest.raises(error, match="Fix"):
        restored(url, tmp_path / "there" / "s")
    assert not (tmp_path / "there" / "s").exists()


def test_a_piece_that_is_gone(url: str, tmp_path: Path) -> None:
    here = tmp_path / "here" / "s"
    copy = RemoteSession(url, here)
    with copy.taken_over(resume=False), Session.create(here, WORKLOADS, TARGET) as session:
        grow(session, 3)
        copy.send()
    objects = S3Folder(url)
    (names,) = objects.pages("sessions/s/")
    objects.delete([next(name for name in names if not name.endswith(COPY))])
    with pytest.raises(BadInput, match=r"is gone.*Fix: run again"):
        restored(url, tmp_path / "there" / "s")
