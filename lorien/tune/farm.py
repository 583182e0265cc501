"""Who is to blame when a run on a device fails: the candidate, or the device."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Protocol

from lorien.dialects import open_live_dialect
from lorien.dialects.remote import RemoteDialect, Tracker
from lorien.errors import DeviceUnavailable, UnsupportedOperation
from lorien.records import Json, Measurement, Outcome

logger = logging.getLogger(__name__)

DEVICE_WAIT_S = 60.0
QUARANTINE_FAILURES = 3
"""Failures in a row that were a device's own, after which it gets no more candidates."""
WITNESSES = 2
"""Failures on devices that outlived them, after which they are the candidate's."""
MAX_BROKEN = 3
"""Devices that were not heard of again after a candidate, until it is taken to be what ends them."""


@dataclass(frozen=True)
class Ending:
    """How a job ended, beside its result.

    Parameters
    ----------
    died : bool
        The child died, by no doing of its parent.
    device : str
        Where it ran; empty on this machine, and when no device was to be had.
    lost : str
        Why the device gave no session; empty when it did.
    broke : bool
        The device said nothing at the end: the session was gone, or had to be killed long after its time.
    """

    died: bool = False
    device: str = ""
    lost: str = ""
    broke: bool = False


class Judge(Protocol):
    """Decides, for the jobs of one kind over one batch, what a failure says."""

    wait_s: float
    """Seconds that a job may wait for its device, before its own time begins."""
    grace_s: float
    """Seconds after its time in which a device may still end the job by itself."""

    def terms(self, index: int) -> dict[str, Json]:
        """What the child is told beside the job itself."""

    def again(self, index: int, result: Measurement | None, how: Ending) -> bool:
        """Whether to do the job once more instead of taking this result, which is None when there is nothing to say."""


class OnceMore:
    """``Judge`` of this machine: a child killed by another, or broken by the job before, is not this job's fault."""

    wait_s = grace_s = 0.0

    def __init__(self) -> None:
        self._suspects: set[int] = set()

    def terms(self, index: int) -> dict[str, Json]:
        """See ``Judge``."""
        return {"tracker": None}

    def again(self, index: int, result: Measurement | None, how: Ending) -> bool:
        """See ``Judge``."""
        if not how.died or index in self._suspects:
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


@dataclass
class _Failure:
    """Of a candidate on a device; it counts once the device has been heard of after it."""

    device: str
    why: str
    counts: bool


class SecondOpinion:
    """``Judge`` of a farm: what failed on one device runs on another before the candidate is blamed.

    A device that died or froze says nothing about the candidate it had: a failure counts when the device outlived it,
    by its own word or by seeing a later session to its end. Two that count are the candidate's, and no device is
    blamed. So are three that do not count: it may be the candidate that ends devices. Where a candidate then runs, the
    devices before are to blame. With one device only, two failures there are the candidate's.
    """

    wait_s = DEVICE_WAIT_S
    # TVM's server stops for good when a client is killed in the middle of a session: that is for frozen devices only.
    grace_s = 5.0

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._failures: dict[int, list[_Failure]] = {}

    def terms(self, index: int) -> dict[str, Json]:
        """See ``Judge``."""
        failed = [failure.device for failure in self._failures.get(index, ())]
        anywhere_else = set(self._farm.devices) - self._farm.banned - set(failed)
        avoid = sorted(set(failed)) if anywhere_else else failed[-1:]
        return {"tracker": asdict(self._farm.tracker), "avoid": avoid, "banned": sorted(self._farm.banned)}

    def again(self, index: int, result: Measurement | None, how: Ending) -> bool:
        """See ``Judge``.

        Raises
        ------
        DeviceUnavailable
            The tracker does not answer, or no device has been heard of for ``wait_s``.
        """
        farm = self._farm
        if not how.device:
            if result is not None and result.outcome is Outcome.UNKNOWN_ERROR:
                raise DeviceUnavailable(result.detail)
            if time.monotonic() - farm.heard_s >= self.wait_s:
                raise DeviceUnavailable(self._nobody())
            return True
        farm.heard_s = time.monotonic()
        if how.lost:
            farm.failed(how.device, how.lost)
            return True
        if not how.broke:
            self._heard_of(how.device)
        failures = self._failures.setdefault(index, [])
        if result is None or result.ok:
            for failure in failures:
                if failure.device != how.device:
                    farm.failed(failure.device, failure.why)
            farm.worked(how.device)
            return False
        why = f"{result.outcome.value} {result.detail}".strip()
        failures.append(_Failure(how.device, why, counts=not how.broke))
        broken = sum(not failure.counts for failure in failures)
        return len(failures) - broken < WITNESSES and broken < MAX_BROKEN

    def _heard_of(self, device: str) -> None:
        """It has seen a session to its end: it outlived all it had before."""
        for failures in self._failures.values():
            for failure in failures:
                failure.counts |= failure.device == device

    def _nobody(self) -> str:
        tracker = self._farm.tracker
        banned = f"; in quarantine: {', '.join(sorted(self._farm.banned))}" if self._farm.banned else ""
        return (
            f"no device of {tracker.key!r} was free for {self.wait_s:g} s{banned}. Fix: python -m "
            f"tvm.exec.query_rpc_tracker --host {tracker.host} --port {tracker.port} shows them; start their servers "
            "again, then the same command with --resume"
        )
