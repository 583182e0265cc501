"""Who is to blame when a run on a device fails: the candidate, or the device."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import asdict
from typing import Protocol

from lorien.dialects import open_live_dialect
from lorien.dialects.remote import RemoteDialect, Tracker
from lorien.errors import DeviceUnavailable, UnsupportedOperation
from lorien.records import Json, Measurement, Outcome

logger = logging.getLogger(__name__)

DEVICE_WAIT_S = 60.0
QUARANTINE_FAILURES = 3
"""Failures in a row that were a device's own, after which it gets no more candidates."""


class Judge(Protocol):
    """Decides, for the jobs of one kind over one batch, what a failure says."""

    wait_s: float
    """Seconds that a job may wait for its device, before its own time begins."""
    grace_s: float
    """Seconds after its time in which a device may still end the job by itself."""

    def terms(self, index: int) -> dict[str, Json]:
        """What the child is told beside the job itself."""

    def again(self, index: int, result: Measurement | None, *, died: bool, lost: str, device: str) -> bool:
        """Whether to do the job once more instead of taking this result.

        Parameters
        ----------
        index : int
        result : Measurement, optional
            None when it went well and there is nothing to say.
        died : bool
            The child died, by no doing of its parent.
        lost : str
            Why the device gave no session; empty when it did.
        device : str
            Where it ran; empty on this machine, and when no device was to be had.
        """


class OnceMore:
    """``Judge`` of this machine: a child killed by another, or broken by the job before, is not this job's fault."""

    wait_s = grace_s = 0.0

    def __init__(self) -> None:
        self._suspects: set[int] = set()

    def terms(self, index: int) -> dict[str, Json]:
        """See ``Judge``."""
        return {"tracker": None}

    def again(self, index: int, result: Measurement | None, *, died: bool, lost: str, device: str) -> bool:
        """See ``Judge``."""
        if not died or index in self._suspects:
            return False
        self._suspects.add(index)
        return True


class Farm:
    """The devices of a tracker, as far as a session has come to know them.

    Parameters
    ----------
    tracker : Tracker
    dialect : str

    Raises
    ------
    UnsupportedOperation
        The dialect cannot run candidates on remote devices.
    DeviceUnavailable
        The tracker does not answer, or has no device of that key.
    """

    def __init__(self, tracker: Tracker, dialect: str) -> None:
        opened = open_live_dialect(dialect)
        if not isinstance(opened, RemoteDialect):
            raise UnsupportedOperation(f"dialect {dialect!r} runs on this machine only. Fix: leave --runner out")
        self.tracker = tracker
        self.devices = opened.devices(tracker)
        if not self.devices:
            raise DeviceUnavailable(
                f"no device is registered as {tracker.key!r} with the tracker {tracker.host}:{tracker.port}. "
                f"Fix: on the device, python -m tvm.exec.rpc_server --tracker {tracker.host}:{tracker.port} "
                f"--key {tracker.key}"
            )
        self.failures: Counter[str] = Counter()
        self.banned: set[str] = set()
        self.heard_s = 0.0

    def judge(self) -> SecondOpinion:
        """For one batch."""
        self.heard_s = time.monotonic()
        return SecondOpinion(self)

    def worked(self, device: str) -> None:
        """The device did what it was asked to."""
        self.failures[device] = 0

    def failed(self, device: str, why: str) -> None:
        """The device failed at what another did, or gave no session."""
        self.failures[device] += 1
        if self.failures[device] == QUARANTINE_FAILURES:
            self.banned.add(device)
            logger.warning(
                "device %s gets no more candidates: %d failures in a row, the last: %s",
                device,
                QUARANTINE_FAILURES,
                why,
            )


class SecondOpinion:
    """``Judge`` of a farm: what failed on one device runs on another before the candidate is blamed.

    Where both fail, it is the candidate's failure, and neither device is blamed for it. Where the second does not, it
    was the first device's. With one device only, two failures there are the candidate's.
    """

    wait_s = DEVICE_WAIT_S
    # TVM's server stops for good when a client is killed in the middle of a session: that is for frozen devices only.
    grace_s = 5.0

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._suspects: dict[int, tuple[str, str]] = {}

    def terms(self, index: int) -> dict[str, Json]:
        """See ``Judge``."""
        avoid = [self._suspects[index][0]] if index in self._suspects else []
        return {"tracker": asdict(self._farm.tracker), "avoid": avoid, "banned": sorted(self._farm.banned)}

    def again(self, index: int, result: Measurement | None, *, died: bool, lost: str, device: str) -> bool:
        """See ``Judge``.

        Raises
        ------
        DeviceUnavailable
            The tracker does not answer, or no device has been heard of for ``wait_s``.
        """
        farm = self._farm
        if not device:
            if result is not None and result.outcome is Outcome.UNKNOWN_ERROR:
                raise DeviceUnavailable(result.detail)
            if time.monotonic() - farm.heard_s >= self.wait_s:
                raise DeviceUnavailable(self._nobody())
            return True
        farm.heard_s = time.monotonic()
        if lost:
            farm.failed(device, lost)
            return True
        suspect, why = self._suspects.get(index, ("", ""))
        if result is None or result.ok:
            if suspect and suspect != device:
                farm.failed(suspect, why)
            farm.worked(device)
            return False
        if suspect:
            return False
        self._suspects[index] = (device, f"{result.outcome.value} {result.detail}".strip())
        return True

    def _nobody(self) -> str:
        tracker = self._farm.tracker
        banned = f"; in quarantine: {', '.join(sorted(self._farm.banned))}" if self._farm.banned else ""
        return (
            f"no device of {tracker.key!r} was free for {self.wait_s:g} s{banned}. Fix: python -m "
            f"tvm.exec.query_rpc_tracker --host {tracker.host} --port {tracker.port} shows them; start their servers "
            "again, then the same command with --resume"
        )
