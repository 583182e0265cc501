"""Devices behind TVM's RPC tracker. Called in measuring children: a session that hangs is killed with its process."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from lorien.dialects.metaschedule import MetaScheduleDialect
from lorien.dialects.metaschedule.compile import Loaded, arguments, evaluate, results
from lorien.dialects.metaschedule.workload import module_of, require_tvm, tvm_target
from lorien.dialects.remote import Device, DeviceLost, SessionBroken, Tracker
from lorien.errors import DeviceUnavailable
from lorien.records import Json, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from tvm.rpc import RPCSession

CONNECT_TIMEOUT_S = 5.0
ELSEWHERE_S = 10.0
"""How long another device is waited for, when one is to be avoided."""
_AGAIN_S = 0.2
_BIG_CORES = 1


def devices(tracker: Tracker) -> list[str]:
    """See ``RemoteDialect``."""
    from tvm.rpc.base import TrackerCode

    with closing(_dial(tracker)) as wire:
        _, summary = _ask(wire, [TrackerCode.SUMMARY])
    found = [server["addr"] for server in summary["server_info"] if server["key"] == f"server:{tracker.key}"]
    for host, _ in found:
        tracker.check(host)
    return sorted(f"{host}:{port}" for host, port in found)


def take(tracker: Tracker, avoid: Collection[str], banned: Collection[str]) -> Device:
    """See ``RemoteDialect``."""
    from tvm.rpc.base import TrackerCode

    elsewhere_until_s = time.monotonic() + ELSEWHERE_S
    with closing(_dial(tracker)) as wire:
        wire.settimeout(None)  # the tracker answers when a device is free
        while True:
            _, (host, port, pass_key) = _ask(wire, [TrackerCode.REQUEST, tracker.key, "", 1])
            device = Device(host, port, pass_key)
            tracker.check(host)
            if device.address in banned:
                continue  # its server offers it again in some seconds, after all the others
            if device.address not in avoid or time.monotonic() > elsewhere_until_s:
                return device
            _give_back(device)
            time.sleep(_AGAIN_S)


@contextmanager
def at(device: Device, timeout_s: float) -> Iterator[RemoteMetaSchedule]:
    """See ``RemoteDialect``."""
    require_tvm()
    from tvm import rpc

    # TVM's own connection waits for a frozen server without end; whoever called this has a deadline.
    try:
        session = rpc.connect(device.host, device.port, device.pass_key, timeout_s)
    except (RuntimeError, OSError) as error:
        raise DeviceLost(f"{device.address}: {str(error).strip().splitlines()[-1]}") from None
    there = RemoteMetaSchedule(session)
    try:
        yield there
    finally:
        there.unload()
        try:
            session.get_function("CloseRPCConnection")()
        except (RuntimeError, OSError) as error:
            raise SessionBroken(f"{device.address}: {str(error).strip().splitlines()[-1]}") from None


class RemoteMetaSchedule(MetaScheduleDialect):
    """MetaSchedule whose candidates run in an RPC session."""

    def __init__(self, session: RPCSession) -> None:
        self._session = session
        self._loaded: dict[Path, Loaded] = {}

    def run(
        self, workload: Workload, library: Path, target: Target, *, repeat: int, min_repeat_s: float
    ) -> list[float]:
        """See ``LiveDialect``."""
        return evaluate(self._load(workload, library, target), repeat=repeat, min_repeat_s=min_repeat_s)

    def outputs(self, workload: Workload, library: Path, target: Target) -> list[npt.NDArray[Any]]:
        """See ``LiveDialect``."""
        return results(self._load(workload, library, target))

    def unload(self) -> None:
        """Let go of what was loaded, while there is a session to say so to."""
        self._loaded.clear()

    def _load(self, workload: Workload, library: Path, target: Target) -> Loaded:
        # Once: the device would write a second upload over the library that it runs, and crash.
        if library not in self._loaded:
            self._loaded[library] = self._uploaded(workload, library, target)
        return self._loaded[library]

    def _uploaded(self, workload: Workload, library: Path, target: Target) -> Loaded:
        import tvm

        session = self._session
        if target.kind == "llvm" and target.num_cores:
            session.get_function("runtime.config_threadpool")(_BIG_CORES, target.num_cores)
        session.upload(str(library))
        kind = tvm.runtime.device_from_target(tvm_target(target), 0).dlpack_device_type()
        device = session.device(kind, 0)
        return Loaded(session.load_module(library.name), device, arguments(module_of(workload), device))


def _dial(tracker: Tracker) -> socket.socket:
    require_tvm()
    from tvm.rpc.base import RPC_TRACKER_MAGIC, recvall

    try:
        wire = socket.create_connection((tracker.host, tracker.port), CONNECT_TIMEOUT_S)
        wire.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
        answer = struct.unpack("<i", recvall(wire, 4))[0]
    except OSError as error:
        raise DeviceUnavailable(
            f"the RPC tracker {tracker.host}:{tracker.port} does not answer: {error}. "
            f"Fix: python -m tvm.exec.rpc_tracker --host {tracker.host} --port {tracker.port}"
        ) from None
    if answer != RPC_TRACKER_MAGIC:
        wire.close()
        raise DeviceUnavailable(f"{tracker.host}:{tracker.port} is no RPC tracker. Fix: the port of rpc_tracker")
    return wire


def _ask(wire: socket.socket, message: list[Json]) -> Json:
    from tvm.rpc.base import TrackerCode, recvjson, sendjson

    try:
        sendjson(wire, message)
        answer = recvjson(wire)
    except OSError as error:
        raise DeviceUnavailable(f"the RPC tracker hung up: {error}. Fix: start it again, then --resume") from None
    if answer[0] != TrackerCode.SUCCESS:
        raise DeviceUnavailable(f"the RPC tracker answered {answer}. Fix: one of this TVM")
    return answer


def _give_back(device: Device) -> None:
    """Begin a session and end it at once: its server then offers the device again."""
    from tvm.rpc.base import RPC_MAGIC, recvall

    hello = f"client:{device.pass_key}".encode()
    with suppress(OSError), closing(socket.create_connection((device.host, device.port), CONNECT_TIMEOUT_S)) as wire:
        wire.sendall(struct.pack("<ii", RPC_MAGIC, len(hello)) + hello)
        recvall(wire, 4)
