"""The process: a socket, uvicorn, and an end that lets nobody down."""

from __future__ import annotations

import math
import signal
import socket
from collections.abc import Callable
from contextlib import closing

import uvicorn
from starlette.types import ASGIApp

from lorien.errors import BadInput
from lorien.serve.app import create_app
from lorien.serve.config import ServeConfig
from lorien.serve.guard import Guard, is_loopback
from lorien.serve.service import Service

BACKLOG = 512


def check_host(host: str, token: str | None) -> None:
    """Raise ``BadInput`` when others could reach a service that lets everybody in."""
    if token is None and not is_loopback(host):
        raise BadInput(
            f"whoever reaches {host} could use this service. Fix: give it a token (--token-file or LORIEN_TOKEN), "
            "or stay on 127.0.0.1"
        )


def serve(config: ServeConfig, host: str, port: int, listening: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; then take no more requests, finish those begun, and return.

    Parameters
    ----------
    config : ServeConfig
    host : str
        Address to listen on; without a token, one of this machine's loopback.
    port : int
        0 for any that is free.
    listening : callable
        Told the URL once requests are answered.

    Raises
    ------
    BadInput
        Others could reach a service without a token.
    LorienError
        A store cannot be read.
    OSError
        The address cannot be listened on.
    """
    check_host(host, config.token)
    with listener(host, port) as sock, Service(config) as service:
        app = Guard(create_app(service), config, service.metrics)
        answer(app, host, sock, listening, graceful_s=config.timeout_s)


def listener(host: str, port: int) -> closing[socket.socket]:
    """A socket that listens; closed when its context ends. Raises ``OSError`` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # asyncio leaves this out for sockets it did not make: head and body of an answer then come 40 ms apart.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return closing(sock)


def answer(
    app: ASGIApp, host: str, sock: socket.socket, listening: Callable[[str], None], *, graceful_s: float
) -> None:
    """Run an application on the socket of a host until SIGTERM or SIGINT, then finish what was begun, in seconds."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(graceful_s),
        )
    )

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn sends itself the signal again once it has stopped: to these, as the end was asked for and went well.
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    name = f"[{host}]" if sock.family == socket.AF_INET6 else host
    server.started_at = lambda: listening(f"http://{name}:{sock.getsockname()[1]}")
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    started_at: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.started_at()
