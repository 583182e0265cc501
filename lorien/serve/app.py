"""The routes: HTTP in, JSON out. What they do is in ``service``; who may ask is the ``guard``'s business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lorien import __version__
from lorien.errors import BadInput
from lorien.models import Ranker
from lorien.records import Candidate, Json, Workload
from lorien.serve import schema
from lorien.serve.limits import (
    DIALECT_CHARS,
    FEATURES_CHARS,
    FRAMEWORK_CHARS,
    MAX_NESTING,
    MAX_RECORDS,
    QUERY_CHARS,
)
from lorien.serve.metrics import CONTENT_TYPE_LATEST
from lorien.serve.refusals import add_handlers
from lorien.serve.service import Service, about, blocking, stats
from lorien.serve.wire import FEATURES_TYPE, LINES_TYPE, delivery_to_json, record_to_json
from lorien.target import Target

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.Error, "description": "The body cannot be read."},
    401: {"model": schema.Error, "description": "No token, or a wrong one."},
    403: {"model": schema.Error, "description": "The operator has not allowed this."},
    404: {"model": schema.Error, "description": "No model for this target, or no such dialect."},
    409: {"model": schema.Error, "description": "The features are of another set than the model's."},
    413: {"model": schema.Error, "description": "The request is too large."},
    415: {"model": schema.Error, "description": "The body is of another type."},
    422: {"model": schema.Error, "description": "What was sent cannot be used."},
    503: {"model": schema.Error, "description": "Too busy, too slow, or a store is not there. Mind Retry-After."},
}
_TOO_DEEP = f"the body nests lists or objects over {MAX_NESTING} deep. Fix: send schedules as the dialect writes them"
_ROWS = {
    "requestBody": {
        "required": True,
        "content": {FEATURES_TYPE: {"schema": {"type": "string", "format": "binary", "minLength": 4}}},
    }
}


class _Body(Request):
    async def json(self) -> Json:
        # Strict: no NaN, no lone surrogates, no integers that no other part of Lorien could write.
        value = orjson.loads(await self.body())
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            raise HTTPException(422, _TOO_DEEP) from None
        return value


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_strict_json(request: Request) -> Response:
            return await handle(_Body(request.scope, request.receive))

        return with_strict_json


def answer(value: dict[str, Json]) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def parse_target(value: str | dict[str, Json]) -> Target:
    """A target that its key and family can be told of. Raises ``BadInput``."""
    try:
        target = Target.parse(value)
        hash((target, target.key, target.family))
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(f"not a target: {error}. Fix: write it as 'llvm -mcpu=znver4 -num-cores=2'") from None
    return target


def parse_workload(value: schema.WorkloadValue) -> Workload:
    """A workload. Raises ``BadInput``."""
    return Workload.from_json({name: field for name, field in value if name != "key" or field is not None})


def query_target(target: Annotated[schema.TargetText, Query()]) -> Target:
    """The target in a URL."""
    return parse_target(target)


QueryTarget = Annotated[Target, Depends(query_target)]
Dialect = Annotated[
    str | None, Query(max_length=DIALECT_CHARS, description="Needed where there are models of several.")
]
Count = Annotated[int, Query(ge=1, le=MAX_RECORDS, description="At most so many.")]


def create_app(service: Service) -> FastAPI:
    """The application, without its guard."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        fresh = asyncio.create_task(service.keep_fresh())
        yield
        fresh.cancel()
        with suppress(asyncio.CancelledError):
            await fresh

    app = FastAPI(
        title="Lorien",
        summary="Good schedules for deep-learning operators that nobody has tuned yet.",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    secured = [Depends(HTTPBearer(auto_error=False))] if service.config.token is not None else []
    v1 = APIRouter(prefix="/v1", route_class=_Route, responses=_ERRORS, dependencies=secured)

    @v1.get("/models", response_model=schema.Models)
    async def models() -> Response:
        """List the models that are loaded, and those that could not be."""
        rankers = service.rankers()
        return answer({"models": [about(ranker) for ranker in rankers.all()], "problems": rankers.problems})

    @v1.get("/model", response_model=schema.Chosen)
    async def model(target: QueryTarget, dialect: Dialect = None) -> Response:
        """Tell which model ranks for a target."""
        ranker = service.rankers().get(target, dialect)
        return answer({"model": about(ranker), "exact": ranker.exact})

    @v1.post("/rank", response_model=schema.Scores)
    async def rank(body: schema.RankRequest) -> Response:
        """Score candidates of a workload."""
        candidates = [Candidate(schedule) for schedule in body.candidates]
        ranker, scores = await service.rank(parse_workload(body.workload), candidates, parse_target(body.target))
        return answer({"scores": scores, **_by(ranker)})

    @v1.post("/score", response_model=schema.Scores, openapi_extra=_ROWS)
    async def score(
        request: Request,
        target: QueryTarget,
        features: Annotated[
            str, Query(max_length=FEATURES_CHARS, description="NAME/VERSION of the feature set of the rows.")
        ],
        dialect: Dialect = None,
    ) -> Response:
        """Score feature rows: little-endian float32, row by row."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FEATURES_TYPE:
            raise HTTPException(415, f"feature rows are bytes. Fix: send the header Content-Type: {FEATURES_TYPE}")
        ranker, scores = await service.score(await request.body(), features, target, dialect)
        return answer({"scores": scores, **_by(ranker)})

    @v1.post("/deliver", response_model=schema.DeliveryValue)
    async def deliver(body: schema.DeliverRequest) -> Response:
        """Find a schedule: in the database, else ranked, and verified where asked for and allowed, else the default."""
        workload, target = parse_workload(body.workload), parse_target(body.target)
        return answer(delivery_to_json(await service.deliver(workload, target, body.top_k, body.verify)))

    @v1.get("/schedules/best", response_model=schema.Records)
    async def best(
        target: QueryTarget,
        workload_key: Annotated[schema.WorkloadKey, Query()],
        n: Count = 1,
        build: Annotated[
            str | None, Query(max_length=FRAMEWORK_CHARS, description="Only of this framework build.")
        ] = None,
    ) -> Response:
        """The best schedules of a workload on a target."""
        found = await blocking(service.database().best, target, workload_key, n, build)
        return answer({"records": [record_to_json(record) for record in found]})

    @v1.get("/schedules/related", response_model=schema.Records)
    async def related(
        target: QueryTarget, workload_key: Annotated[schema.WorkloadKey, Query()], n: Count = 1
    ) -> Response:
        """The best schedules of a workload on other targets of the family."""
        found = await blocking(service.database().related, target, workload_key, n)
        return answer({"records": [record_to_json(record) for record in found]})

    @v1.get(
        "/schedules",
        response_class=StreamingResponse,
        responses={200: {"content": {LINES_TYPE: {}}, "description": "A record a line, as in /v1/schedules/best."}},
    )
    async def schedules(
        target: Annotated[schema.TargetText | None, Query()] = None,
        workload: Annotated[
            str | None, Query(max_length=QUERY_CHARS, description="A name, a pattern, or a key.")
        ] = None,
        dialect: Annotated[str | None, Query(max_length=DIALECT_CHARS)] = None,
        network: Annotated[str | None, Query(max_length=QUERY_CHARS)] = None,
    ) -> Response:
        """Stream the schedules that fit all that is given."""
        where = parse_target(target) if target is not None else None
        lines = service.lines(service.database().query(where, workload, dialect, network))
        # The first are read before the answer begins: while an error can still be told.
        first = await anext(lines, b"")

        async def all_lines() -> AsyncIterator[bytes]:
            yield first
            async for chunk in lines:
                yield chunk

        return StreamingResponse(all_lines(), media_type=LINES_TYPE)

    @v1.get("/stats", response_model=schema.Stats)
    async def database_stats() -> Response:
        """Count what the database holds."""
        return answer(await blocking(stats, service.database()))

    app.include_router(v1)

    @app.get("/healthz", response_model=schema.Status)
    async def healthz() -> Response:
        """Tell that the process answers."""
        return answer({"status": "ok"})

    @app.get("/readyz", response_model=schema.Status, responses={503: {"model": schema.Status}})
    async def readyz() -> Response:
        """Tell whether requests can be served: models are loaded and the database answers."""
        if service.ready:
            return answer({"status": "ready"})
        return Response(b'{"status":"not ready"}', 503, media_type="application/json")

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, 401: _ERRORS[401]}, dependencies=secured)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    add_handlers(app)
    return app


def _by(ranker: Ranker) -> dict[str, Json]:
    return {"target": ranker.model.target, "version": ranker.version, "exact": ranker.exact}
