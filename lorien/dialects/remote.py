"""Measuring on devices of a farm: how they are named, and what a dialect does to run candidates there."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from lorien.dialects.base import LiveDialect
from lorien.errors import BadInput


class DeviceLost(Exception):
    """A device gave no session: nothing of the candidate has run."""


class SessionBroken(Exception):
    """A session was gone before it was closed: the candidate crashed there, or the device is gone too."""


@dataclass(frozen=True)
class Tracker:
    """An RPC tracker and the key that devices of one kind are registered under: ``rpc://host:port/key``.

    Parameters
    ----------
    host, port
        The tracker.
    key : str
        The kind of device.
    trusted : bool
        Hosts other than this machine may be talked to. TVM's RPC neither encrypts nor asks who is there, and runs
        whatever code it is sent.
    """

    host: str
    port: int
    key: str
    trusted: bool = False

    @classmethod
    def parse(cls, url: str, *, trusted: bool = False) -> Tracker:
        """Read ``rpc://host:port/key``. Raises ``BadInput``, also for a host that is not trusted."""
        parts = urlsplit(url)
        key = parts.path.strip("/")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if parts.scheme != "rpc" or not host or not port or not key or "/" in key:
            raise BadInput(
                f"runner {url!r} is not of the form rpc://TRACKER:PORT/KEY. Fix: for example rpc://127.0.0.1:9190/pi4"
            )
        tracker = cls(host, port, key, trusted)
        tracker.check(host)
        return tracker

    def check(self, host: str) -> None:
        """Raises ``BadInput`` when the host is another machine and those are not trusted."""
        if not self.trusted and not _loopback(host):
            raise BadInput(
                f"{host} is another machine, and TVM's RPC has neither passwords nor encryption: whoever reaches a "
                "device runs code there. Fix: an SSH tunnel to 127.0.0.1, or --trust-network in a closed network"
            )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Device:
    """A device that the tracker gave to one client, until it connects and leaves again.

    Parameters
    ----------
    host, port
        Its RPC server.
    pass_key : str
        What that server wants to hear; it lasts a few seconds.
    """

    host: str
    port: int
    pass_key: str

    @property
    def address(self) -> str:
        """Its name."""
        return f"{self.host}:{self.port}"


@runtime_checkable
class RemoteDialect(LiveDialect, Protocol):
    """A live dialect that also runs candidates on devices of a tracker."""

    def devices(self, tracker: Tracker) -> list[str]:
        """Addresses of the devices registered under the key. Raises ``DeviceUnavailable``, ``BadInput``."""

    def take(self, tracker: Tracker, avoid: Collection[str], banned: Collection[str]) -> Device:
        """Wait until a device is free: none of ``banned``; one of ``avoid`` only if no other comes free soon."""

    def at(self, device: Device, timeout_s: float) -> AbstractContextManager[LiveDialect]:
        """The dialect whose ``run`` and ``outputs`` are on the device; the device ends the session after ``timeout_s``.

        Raises ``DeviceLost`` when there is no session to be had, ``SessionBroken`` when it did not last.
        """
