"""Errors as the service tells them: a status, the error's name, and the message that says what to do."""

from __future__ import annotations

import logging

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lorien.errors import (
    BadInput,
    ChecksumMismatch,
    DatabaseUnavailable,
    LorienError,
    MissingExtra,
    NotAllowed,
    SchemaMismatch,
    ServiceUnavailable,
    StoreUnavailable,
    UnknownDialect,
    UnknownTarget,
    UnsupportedOperation,
)
from lorien.serve.limits import MESSAGE_CHARS

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
_STATUS: dict[type[LorienError], int] = {
    BadInput: 422,
    UnknownDialect: 404,
    UnknownTarget: 404,
    UnsupportedOperation: 422,
    SchemaMismatch: 409,
    NotAllowed: 403,
    MissingExtra: 501,
    ChecksumMismatch: 503,
    DatabaseUnavailable: 503,
    StoreUnavailable: 503,
    ServiceUnavailable: 503,
}
_SAYS = {
    400: "the body cannot be read. Fix: send what /docs shows",
    404: "there is nothing here. Fix: see /docs for what there is",
    405: "this method does nothing here. Fix: see /docs for those that do",
}


def error_response(error: LorienError, status: int, headers: dict[str, str] | None = None) -> Response:
    """An error as JSON; ``lorien.errors.again`` makes it one again."""
    message = str(error)
    if len(message) > MESSAGE_CHARS:  # its end says what to do
        half = MESSAGE_CHARS // 2
        message = f"{message[:half]} [{len(message) - 2 * half} characters left out] {message[-half:]}"
    sayable = message.encode(errors="replace").decode()
    body = orjson.dumps({"error": type(error).__name__, "message": sayable})
    return Response(body, status, headers, media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Let an application tell all its errors this way."""

    @app.exception_handler(LorienError)
    async def told(_: Request, error: LorienError) -> Response:
        status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
        if status >= 500:
            logger.warning("answered %d: %s", status, error)
        return error_response(error, status, {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return error_response(BadInput(f"{where}: {first['msg']}. Fix: see /docs for what is expected"), 422)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        message = _SAYS.get(error.status_code, error.detail)
        return error_response(BadInput(message), error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return error_response(LorienError("an error of the service itself. Fix: report what its log says"), 500)
