"""Sessions of jobs, copied to S3 while they run: for workers that share no disk, and whose disk goes with them."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorien.database.jobs import JobState
from lorien.errors import StoreUnavailable
from lorien.files import atomic_folder
from lorien.s3 import S3Folder
from lorien.tune.session import DETAILS

logger = logging.getLogger(__name__)

_SUFFIX = ".copy"
"""Without it, the log store would take a copy for a log."""
EVERY_S = 15.0
"""Trials of so many seconds are measured again when a machine is lost."""


class JobCopies:
    """Copies of the sessions of a run, below ``sessions/<run>/`` of a log store in S3, each in the folder of its lease.

    A session belongs to one lease, so no two workers ever write the same copy; see ``open_job_session``.

    All methods raise ``StoreUnavailable`` when S3 cannot be read or written.
    """

    def __init__(self, url: str, run: str) -> None:
        self._s3 = S3Folder(url)
        self._below = f"sessions/{run}"

    def fetch(self, root: Path, state: JobState) -> None:
        """Bring the session that the job goes on with to ``root``: the sealed one, else the last before this lease."""
        tokens: dict[int, list[str]] = {}
        for name in self._names(state.number):
            tokens.setdefault(int(name.split("/")[2].rpartition(".")[2]), []).append(name)
        if state.sealed:
            wanted = int(state.sealed.rpartition(".")[2])
        else:
            wanted = max((token for token in tokens if token < state.token), default=-1)
        folder = root / f"{state.number}.{wanted}"
        if wanted not in tokens or folder.exists():
            return
        with atomic_folder(folder) as temporary:
            self._s3.download(
                {name: temporary / name.rpartition("/")[2].removesuffix(_SUFFIX) for name in tokens[wanted]}
            )

    @contextmanager
    def following(self, folder: Path) -> Iterator[None]:
        """Send what is new every so often, and when the block ends, however it does."""
        ended = threading.Event()
        follower = threading.Thread(target=self._follow, args=(folder, ended), name="lorien-job-copy", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            self.send(folder)

    def send(self, folder: Path) -> None:
        """Send the files of a session as they are now."""
        with tempfile.TemporaryDirectory(prefix="lorien-copy-") as temporary:
            # The details last, so that no record is without its own; what a crash cuts off a session cuts off too.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == DETAILS):
                shutil.copy(path, temporary)
            files = {f"{self._below}/{folder.name}/{path.name}{_SUFFIX}": path for path in Path(temporary).iterdir()}
            self._s3.upload(files)

    def remove(self, number: int) -> None:
        """Remove the copies of a job whose log is in the store."""
        self._s3.delete(self._names(number))

    def _names(self, number: int) -> list[str]:
        return [name for page in self._s3.pages(f"{self._below}/{number}.") for name in page]

    def _follow(self, folder: Path, ended: threading.Event) -> None:
        while not ended.wait(EVERY_S):
            try:
                self.send(folder)
            except StoreUnavailable as error:
                logger.warning("%s. Tuning goes on; it is tried again in %g s", error, EVERY_S)
