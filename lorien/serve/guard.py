"""The door of the service: who may come in, how much they may bring, how many at a time and for how long."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorien.errors import BadInput, NotAllowed, ServiceUnavailable
from lorien.serve.config import ServeConfig
from lorien.serve.metrics import Metrics
from lorien.serve.refusals import RETRY_AFTER_S, error_response

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})
"""Says nothing that is not in this repository, or that a load balancer must know."""
LIMITED = "/v1/"


def is_loopback(host: str) -> bool:
    """True for an address, or the name, by which only this machine reaches itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware around the whole application; counts all that passes."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics
        self._token = digest(config.token.encode()) if config.token is not None else None
        self._busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse to."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - started_s)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["path"].startswith(LIMITED):
            self._busy += 1
            self._metrics.busy.set(self._busy)
            try:
                await self._in_time(scope, self._small(receive), send)
            finally:
                self._busy -= 1
                self._metrics.busy.set(self._busy)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        if self._token is None:
            # Without a token any page in a browser of this machine could ask, under a name that it gave to 127.0.0.1.
            if not of_this_machine(headers.get("host", "")):
                return error_response(NotAllowed("this name is not of this machine. Fix: use 127.0.0.1"), 403)
        elif path not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(digest(given.encode()), self._token):
                message = "no token, or not the one of this service. Fix: send the header Authorization: Bearer TOKEN"
                return error_response(NotAllowed(message), 401, {"WWW-Authenticate": "Bearer"})
        if not path.startswith(LIMITED):
            return None
        if self._busy >= self._config.concurrency:
            message = f"{self._busy} requests are being answered. Fix: ask again in {RETRY_AFTER_S} s"
            return error_response(ServiceUnavailable(message), 503, {"Retry-After": str(RETRY_AFTER_S)})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            return error_response(BadInput(self._too_large), 413, {"Connection": "close"})
        return None

    @property
    def _too_large(self) -> str:
        return f"the request is over {self._config.max_body_bytes} bytes. Fix: send fewer candidates at a time"

    def _small(self, receive: Receive) -> Receive:
        """A body whose length was not told, or not truly, is cut off as well."""
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._config.max_body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return limited

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await asyncio.wait_for(self._app(scope, receive, noted), self._config.timeout_s)
        except asyncio.TimeoutError:
            if begun:  # the connection is cut: half an answer must not pass for a whole one
                raise
            message = (
                f"no answer within {self._config.timeout_s:g} s. Fix: send fewer candidates, or start the service "
                "with a larger --timeout-s"
            )
            await error_response(ServiceUnavailable(message), 503)(scope, receive, send)


def of_this_machine(host: str) -> bool:
    """Whether a ``Host`` header, with or without a port, names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def digest(token: bytes) -> bytes:
    """Of one length, so that a comparison takes the same time for every token."""
    return hashlib.sha256(token).digest()
