"""A Ray cluster: one that runs, or one started here for as long as it is needed."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

from pebble import ProcessExpired

from lorien.errors import BadInput, MissingExtra

T = TypeVar("T")
HERE = "127.0.0.1"
CONNECT_TIMEOUT_S = 5.0
_ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def connected(address: str | None, resources: Mapping[str, float] | None = None) -> Iterator[None]:
    """Connect to a cluster, and let go of it at the end. Meanwhile standard output goes to standard error.

    Parameters
    ----------
    address : str, optional
        Of a running cluster: ``host:port``, or ``auto`` on one of its nodes. Without, one is started on this machine,
        which listens on the loopback device only, asks for a token that its own processes have, and has no dashboard.
    resources : mapping of str to float, optional
        Custom resources of the cluster started here.

    Raises
    ------
    MissingExtra
        Ray is not installed.
    BadInput
        No cluster answers at the address, or it runs another Ray or Python.
    """
    if address is None:
        _guard()
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray") from None
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Nothing about a user's cluster leaves it unasked, and Ray need not tell us what it will do about GPUs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints news of lost nodes on standard output, which is a result's: no option of its own keeps it from that.
    with redirect_stdout(sys.stderr):
        try:
            if address is None:
                own: dict[str, Any] = {"_node_ip_address": HERE, "include_dashboard": False}
                ray.init("local", **own, resources=dict(resources or {}), **common)
            else:
                if address != "auto":
                    _dial(address)  # Ray itself tries for minutes
                ray.init(address, **common)
        except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            raise BadInput(
                f"no Ray cluster at {address or HERE}: {error}. Fix: --ray-address HOST:PORT of one that runs the same "
                "versions of Python and Ray, with RAY_AUTH_MODE and the token it wants, or without it to start one here"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _dial(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


def _guard() -> None:
    """Let Ray listen on the loopback device only, and ask for a token; the processes it starts inherit both.

    It takes another address of this machine for 127.0.0.1 unless it is told what it does by itself on other systems.
    """
    if "ray" not in sys.modules:
        os.environ[_ON_LOOPBACK] = "0"
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    elif os.environ.get(_ON_LOOPBACK) != "0":
        raise BadInput(
            "this process has imported Ray already, and a cluster of it would listen on all interfaces. "
            f"Fix: set {_ON_LOOPBACK}=0 and RAY_AUTH_MODE=token before it does, or give the address of a cluster"
        )


class RayPool:
    """A pool of processes on the cluster that is connected, with the methods of ``pebble.ProcessPool`` used here."""

    def __init__(self) -> None:
        self._asked: list[Any] = []

    def schedule(self, function: Callable[..., T], args: tuple[Any, ...]) -> Future[T]:
        """Call a function of a module on any node; again on another when the node or its process is lost.

        The future raises what the function raised, or ``ProcessExpired`` when its process died each time.
        """
        import ray

        ref = ray.remote(num_cpus=1)(function).remote(*args)
        self._asked.append(ref)
        answer: Future[T] = Future()

        def copy(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                answer.set_result(done.result())
            elif isinstance(error, ray.exceptions.RayTaskError):
                answer.set_exception(getattr(error, "cause", None) or error)
            else:
                answer.set_exception(ProcessExpired(str(error).splitlines()[0]))

        ref.future().add_done_callback(copy)
        return answer

    def stop(self) -> None:
        """End what is running."""
        import ray

        for ref in self._asked:
            ray.cancel(ref, force=True)


@contextmanager
def ray_pool(address: str | None) -> Iterator[RayPool]:
    """Connect to a cluster as ``connected`` does, for as long as its pool is used."""
    with connected(address):
        yield RayPool()
