"""A session's copy in S3. It follows the session while that runs, and another machine can go on from it.

``sessions/<name>/copy.json`` names its owner, and the pieces of each file in order. A piece is an object that never
changes: what a file grew by is a new one, together with the last when that was small, so that pieces stay few.
``copy.json`` is written after them, on condition that nobody else wrote it: a session that is resumed elsewhere has
another owner, and the one before can write no more. Each owner has a higher token than the one before: whoever resumes
a session by hand takes the next, a worker has that of its lease, and cannot take a job's copy from a later lease.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

import orjson

from lorien.errors import BadInput, ChecksumMismatch, LorienError, SchemaMismatch, StoreUnavailable
from lorien.files import atomic_folder
from lorien.logs.base import DETAILS, SIDECAR
from lorien.s3 import Object, S3Folder

logger = logging.getLogger(__name__)

COPY = "copy.json"
COPY_VERSION = 1
PIECE_BYTES = 1 << 20
"""A last piece below this is sent again with what follows it: no more than so much is ever sent twice."""
EVERY_S = 15.0
"""Trials of so many seconds are measured again when a machine is lost."""
TAKE_TRIES = 5
"""Times that the copy of one who still sends is read again."""


class Piece(TypedDict):
    """An object that holds a part of a file."""

    name: str
    bytes: int
    sha256: str


class _Moved(Exception):
    """The copy changed while it was read: its owner still sends."""


class RemoteSession:
    """The copy of the session in a local ``folder``, below ``sessions/`` of a log store in S3.

    One process of a machine at a time; ``taken_over`` comes before the session is opened.

    Parameters
    ----------
    url : str
        The log store.
    folder : Path
    name : str, optional
        Of the copy; else the folder's.
    token : int, optional
        Of the lease under which a job is worked on.
    """

    def __init__(self, url: str, folder: Path, *, name: str = "", token: int | None = None) -> None:
        self._s3 = S3Folder(url)
        self._folder = folder
        self._below = f"sessions/{name or folder.name}"
        self._lease = token
        self._token = token or 0
        self._pieces: dict[str, list[Piece]] = {}
        self._written: Object | None = None
        self._owner = uuid.uuid4().hex
        self._sending = threading.Lock()
        self._lost: LorienError | None = None
        self._follower: threading.Thread | None = None

    @contextmanager
    def taken_over(self, *, resume: bool) -> Iterator[None]:
        """Own the copy; bring to the local folder what it lacks of it.

        Raises
        ------
        BadInput
            There is a copy and ``resume`` is False, another process of this machine or a later lease has it, a piece
            was removed, or the local folder and the copy went different ways.
        SchemaMismatch, ChecksumMismatch
            Another Lorien wrote the copy; a piece is not what was sent.
        StoreUnavailable
            S3 cannot be read or written.
        """
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        # Stays when this ends: were it removed, two processes could each lock a file of that name.
        with self._folder.with_name(f"{self._folder.name}.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"another process writes {self._folder}. Fix: wait for it, or stop it") from None
            for left in reversed(range(TAKE_TRIES)):
                try:
                    self._take(resume=resume)
                    break
                except _Moved as moved:
                    if not left:
                        raise BadInput(str(moved)) from None
            yield

    def _take(self, *, resume: bool) -> None:
        self._written = self._s3.read(f"{self._below}/{COPY}")
        if self._written is not None:
            if not resume:
                raise BadInput(
                    f"{self._s3.url}/{self._below} is a session of these workloads. Fix: --resume goes on with it; "
                    "to tune anew, give other --logs"
                )
            self._pieces, before = self._parsed(self._written)
            if self._lease is None:
                self._token = before + 1
            elif self._lease <= before:
                raise self._gone()
            self._restore()
        if not self._write(self._pieces):
            raise _Moved(str(self._gone()))

    @contextmanager
    def following(self, every_s: float = EVERY_S) -> Iterator[None]:
        """Send what is new every so often and when the block ends, however it does.

        Raises
        ------
        BadInput
            Another machine goes on with the session.
        StoreUnavailable
            What is new at the end could not be sent; it is in the local folder.
        """
        stop = threading.Event()
        follower = threading.Thread(target=self._follow, args=(stop, every_s), name="lorien-session-copy")
        follower.start()
        self._follower = follower
        try:
            yield
        except BaseException:
            self._end_follower(stop)
            with suppress(LorienError):  # Why the block ended says more.
                self.send()
            raise
        self._end_follower(stop)
        try:
            self.send()
        except StoreUnavailable as error:
            if self._lease is not None:
                raise
            raise StoreUnavailable(
                f"{error}. All trials are in {self._folder}: the same command with --resume sends them"
            ) from error

    def check(self) -> None:
        """See that the session is still this process's, and that its copy is.

        Raises
        ------
        BadInput
            Another machine has been seen to go on with the session.
        StoreUnavailable
            The thread that sends has ended: nothing that is measured now would be in the copy.
        """
        if self._lost is not None:
            raise self._lost
        if self._follower is not None and not self._follower.is_alive():
            raise StoreUnavailable(
                f"the thread that copies the session to {self._s3.url}/{self._below} has ended. All trials are in "
                f"{self._folder}: the same command with --resume goes on and sends them"
            )

    def send(self) -> None:
        """Send what the local files grew by. Raises ``BadInput`` when another machine goes on with the session."""
        with self._sending:
            if self._lost is not None:
                raise self._lost
            pieces: dict[str, list[Piece]] = {}
            replaced: list[str] = []
            # The details last: no record is without its own.
            for path in sorted(self._folder.iterdir(), key=lambda path: (path.name == DETAILS, path.name)):
                pieces[path.name] = self._grown(path, self._pieces.get(path.name, []), replaced)
            if pieces == self._pieces:
                return
            if not self._write(pieces):
                known = {piece["name"] for parts in self._pieces.values() for piece in parts}
                new = {piece["name"] for parts in pieces.values() for piece in parts} - known
                self._lost = self._gone()
                self._s3.delete(f"{self._below}/{name}" for name in new)
                raise self._lost
            self._s3.delete(f"{self._below}/{name}" for name in replaced)

    def remove(self) -> None:
        """Remove the copy, of a session whose log is in the store."""
        for page in self._s3.pages(f"{self._below}/"):
            self._s3.delete(page)

    def _follow(self, stop: threading.Event, every_s: float) -> None:
        while not stop.wait(every_s) and self._lost is None:
            try:
                self.send()
            except BadInput:
                return  # ``check`` tells.
            except StoreUnavailable as error:
                logger.warning("%s. Tuning goes on; it is tried again in %g s", error, every_s)
            except Exception:  # Whatever it is, it may be over by then: a copy that is late is better than none.
                logger.exception("copying %s failed. Tuning goes on; it is tried again in %g s", self._folder, every_s)

    def _end_follower(self, stop: threading.Event) -> None:
        stop.set()
        if self._follower is not None:
            self._follower.join()
        self._follower = None

    def _grown(self, path: Path, sent: list[Piece], replaced: list[str]) -> list[Piece]:
        pieces = list(sent)
        start = sum(piece["bytes"] for piece in pieces)
        if (path.name == SIDECAR and pieces) or path.stat().st_size <= start:
            return pieces
        if pieces and pieces[-1]["bytes"] < PIECE_BYTES:
            start -= pieces[-1]["bytes"]
            replaced.append(pieces.pop()["name"])
        with path.open("rb") as file:
            file.seek(start)
            while content := file.read(4 * PIECE_BYTES):
                # What follows the last newline is being written, and may yet be taken back.
                end = len(content) if path.name == SIDECAR else content.rfind(b"\n") + 1
                if not end:
                    break
                file.seek(end - len(content), 1)
                pieces.append(self._sent(content[:end]))
        return pieces

    def _sent(self, content: bytes) -> Piece:
        piece = Piece(name=uuid.uuid4().hex, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        self._s3.write(f"{self._below}/{piece['name']}", content, None)
        return piece

    def _write(self, pieces: dict[str, list[Piece]]) -> bool:
        """Make these the copy; False when somebody else wrote it."""
        about = {"version": COPY_VERSION, "owner": self._owner, "token": self._token, "files": pieces}
        content = orjson.dumps(about)
        place = f"{self._below}/{COPY}"
        for _ in range(2):
            self._s3.write(place, content, self._written)
            found = self._s3.read(place)
            if found is not None and found.content == content:
                self._written, self._pieces = found, pieces
                return True
            if found is None or f'"owner":"{self._owner}"'.encode() not in found.content:
                break
            self._written = found  # Of an earlier request of ours, whose answer was lost.
        return False

    def _gone(self) -> BadInput:
        if self._lease is not None:
            return BadInput(
                f"{self._s3.url}/{self._below} is of a later lease. Fix: if no worker has that, it is of another run "
                "of this name; remove it, or give this one another --run NAME"
            )
        return BadInput(
            f"another process goes on with {self._s3.url}/{self._below}. The trials of this one are in "
            f"{self._folder}. Fix: lorien ingest that folder to keep them"
        )

    def _parsed(self, found: Object) -> tuple[dict[str, list[Piece]], int]:
        """Pieces and token of a copy."""
        where = f"{self._s3.url}/{self._below}/{COPY}"
        try:
            value = orjson.loads(found.content)
            version, token = value["version"], int(value.get("token", 0))
            pieces = {
                str(name): [Piece(name=str(p["name"]), bytes=int(p["bytes"]), sha256=str(p["sha256"])) for p in parts]
                for name, parts in value["files"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{where} is damaged ({error!r}). Fix: remove it, or give other --logs") from None
        if version != COPY_VERSION:
            raise SchemaMismatch(
                f"{where} is of version {version}, this Lorien reads {COPY_VERSION}. Fix: other --logs"
            )
        if any("/" in name or name in ("", "..", ".") for name in pieces):
            raise BadInput(f"{where} names files of other folders. Fix: remove it")
        return pieces, token

    def _restore(self) -> None:
        """Bring the local folder up to the copy, unless it is further."""
        there = self._folder.exists()
        if not self._pieces or (there and all(self._holds(name, parts) for name, parts in self._pieces.items())):
            return
        with atomic_folder(self._folder) as temporary:
            for name, parts in self._pieces.items():
                with (temporary / name).open("wb") as file:
                    for part in parts:
                        file.write(self._fetched(part))
            for path in self._folder.iterdir() if there else ():
                if not _begins(temporary / path.name, path):
                    raise BadInput(
                        f"{self._folder} and {self._s3.url}/{self._below} went different ways: another machine went on "
                        f"with what was sent. Fix: lorien ingest {self._folder} keeps its trials; then remove it"
                    )

    def _fetched(self, piece: Piece) -> bytes:
        place = f"{self._below}/{piece['name']}"
        found = self._s3.read(place)
        if found is None:
            raise _Moved(
                f"{self._s3.url}/{place} is gone: another machine is sending to this session, or it was removed. "
                "Fix: run again; if that does not help, tune into other --logs"
            )
        if hashlib.sha256(found.content).hexdigest() != piece["sha256"]:
            raise ChecksumMismatch(f"{self._s3.url}/{place} is not what was sent. Fix: tune into other --logs")
        return found.content

    def _holds(self, name: str, parts: list[Piece]) -> bool:
        """Whether the local file begins with all that was sent of it."""
        with suppress(FileNotFoundError), (self._folder / name).open("rb") as file:
            return all(hashlib.sha256(file.read(part["bytes"])).hexdigest() == part["sha256"] for part in parts)
        return False


def _begins(whole: Path, part: Path) -> bool:
    """Whether a file begins with the whole lines of another."""
    if not whole.exists():
        return False
    with whole.open("rb") as file, part.open("rb") as lines:
        return all(file.read(len(line)) == line for line in lines if line.endswith(b"\n"))
