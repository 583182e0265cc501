"""The Python side of ``lorien serve``: the calls of the local API, answered elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import orjson

from lorien.database.base import DatabaseStats
from lorien.delivery import Delivery
from lorien.errors import BadInput, LorienError, MissingExtra, ServiceUnavailable, error_named
from lorien.models.metrics import FloatArray
from lorien.records import Candidate, Json, TuningRecord, Workload
from lorien.serve.wire import FEATURES_DTYPE, FEATURES_TYPE, delivery_from_json, record_from_json
from lorien.target import Target

try:
    import urllib3
except ModuleNotFoundError as error:
    raise MissingExtra("urllib3", "client") from error

logger = logging.getLogger(__name__)


class Client:
    """A ranking service. Safe across threads; nothing is sent before the first call.

    A request that the service has no room for, or that meets no service, is sent again, after the time it says or a
    growing delay.

    Parameters
    ----------
    url : str
        Where it listens: ``http://127.0.0.1:8642``.
    token : str, optional
        What it was started with.
    timeout_s : float
        Seconds to wait for an answer.
    retries : int
        How often a request is sent again.

    Raises
    ------
    NotAllowed
        By every call: the token is not the service's, or its operator has not allowed what was asked.
    ServiceUnavailable
        By every call: the service is not there, has too much to do, or took too long.
    BadInput
        By every call: what was sent cannot be used. The service's other errors come as they would locally.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 150.0, retries: int = 6) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"{url!r} is no URL of a service. Fix: write it as http://127.0.0.1:8642")
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        # Only what has a Retry-After is sent again, and what was never answered: all calls can be repeated.
        retry = urllib3.Retry(
            retries, read=1, backoff_factor=0.1, allowed_methods=None, redirect=False, raise_on_status=False
        )
        timeout = urllib3.Timeout(connect=5.0, read=timeout_s)
        self._http = urllib3.PoolManager(maxsize=16, headers=headers, timeout=timeout, retries=retry)

    def load_ranker(self, target: str | Mapping[str, Json] | Target, dialect: str | None = None) -> RemoteRanker:
        """What ranks for a target; see ``lorien.load_ranker``."""
        wanted = Target.parse(target)
        chosen = self._get("/v1/model", target=_text(wanted), dialect=dialect)
        if not chosen["exact"]:
            trained = chosen["model"]["target"]
            logger.warning("no model for %s: ranking with that of %s, of the same family", wanted.key, trained)
        return RemoteRanker(self, wanted, chosen["model"])

    def models(self) -> list[dict[str, Json]]:
        """What the service tells of each model it has loaded: dialect, target, feature set, held-out scores."""
        found: list[dict[str, Json]] = self._get("/v1/models")["models"]
        return found

    def deliver(self, workload: Workload, target: Target, *, top_k: int = 8, verify: bool = True) -> Delivery:
        """A schedule for a workload; see ``lorien.deliver``. Verified on the service's device, if it allows that."""
        request = {
            "workload": workload.to_json(),
            "target": target.to_json(),
            "top_k": top_k,
            "verify": verify,
        }
        return delivery_from_json(self._post("/v1/deliver", request), workload, target)

    def best(self, target: Target, workload_key: str, n: int = 1, build: str | None = None) -> list[TuningRecord]:
        """See ``ScheduleDatabase.best``."""
        found = self._get("/v1/schedules/best", target=_text(target), workload_key=workload_key, n=n, build=build)
        return [record_from_json(record) for record in found["records"]]

    def related(self, target: Target, workload_key: str, n: int = 1) -> list[TuningRecord]:
        """See ``ScheduleDatabase.related``."""
        found = self._get("/v1/schedules/related", target=_text(target), workload_key=workload_key, n=n)
        return [record_from_json(record) for record in found["records"]]

    def query(
        self,
        target: Target | None = None,
        workload: str | None = None,
        dialect: str | None = None,
        network: str | None = None,
    ) -> Iterator[TuningRecord]:
        """See ``ScheduleDatabase.query``."""
        where = {"target": _text(target) if target else None, "workload": workload}
        reply = self._send("GET", f"/v1/schedules{_query(**where, dialect=dialect, network=network)}", stream=True)
        try:
            for line in reply:
                yield record_from_json(orjson.loads(line))
        except urllib3.exceptions.HTTPError as error:
            raise self._lost(error) from error
        finally:
            reply.close()

    def stats(self) -> DatabaseStats:
        """See ``ScheduleDatabase.stats``."""
        return DatabaseStats(**self._get("/v1/stats"))

    def scores(
        self, features: npt.NDArray[np.float32], feature_set: str, target: Target, dialect: str | None = None
    ) -> FloatArray:
        """Scores (rows,) of feature rows (rows, columns) of a feature set; ``RemoteRanker.score`` knows which."""
        where = _query(target=_text(target), features=feature_set, dialect=dialect)
        rows = np.ascontiguousarray(features, FEATURES_DTYPE).tobytes()
        return _scores(self._call("POST", f"/v1/score{where}", rows, FEATURES_TYPE))

    def rank(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> FloatArray:
        """Scores (candidates,) of candidates of a workload for a target."""
        schedules = [candidate.schedule for candidate in candidates]
        request = {"workload": workload.to_json(), "target": target.to_json(), "candidates": schedules}
        return _scores(self._post("/v1/rank", request))

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, **where: str | int | None) -> Json:
        return self._call("GET", path + _query(**where))

    def _post(self, path: str, value: Json) -> Json:
        try:
            body = orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise BadInput(
                f"it cannot be sent as JSON: {error}. Fix: give schedules as the dialect writes them"
            ) from None
        return self._call("POST", path, body, "application/json")

    def _call(self, method: str, path: str, body: bytes | None = None, kind: str | None = None) -> Json:
        return orjson.loads(self._send(method, path, body, kind).data)

    def _send(
        self, method: str, path: str, body: bytes | None = None, kind: str | None = None, *, stream: bool = False
    ) -> urllib3.BaseHTTPResponse:
        headers = {**self._http.headers, **({"Content-Type": kind} if kind else {})}
        try:
            reply = self._http.request(method, self.url + path, body=body, headers=headers, preload_content=not stream)
            if reply.status != 200:
                raise _error(reply.status, reply.data)
        except urllib3.exceptions.HTTPError as error:
            raise self._lost(error) from error
        return reply

    def _lost(self, error: Exception) -> ServiceUnavailable:
        reason = getattr(error, "reason", None) or error
        return ServiceUnavailable(f"{self.url} does not answer: {reason}. Fix: see that lorien serve runs there")


class RemoteRanker:
    """Ranks candidates of one dialect for one target, as ``Ranker`` does.

    Attributes
    ----------
    model : dict
        What the service tells of the model.
    target : Target
        What candidates are ranked for.
    exact : bool
        False when the model was trained for another target of the same family.
    """

    def __init__(self, client: Client, target: Target, model: dict[str, Json]) -> None:
        self._client = client
        self.target = target
        self.model = model
        self.exact = model["target"] == target.key

    def rank(self, workload: Workload, candidates: Sequence[Candidate]) -> FloatArray:
        """See ``Ranker.rank``."""
        if workload.dialect != self.model["dialect"]:
            raise BadInput(
                f"workload {workload.name!r} is of dialect {workload.dialect}, the model of {self.model['dialect']}"
            )
        return self._client.rank(workload, candidates, self.target)

    def score(self, features: npt.NDArray[np.float32]) -> FloatArray:
        """See ``Ranker.score``."""
        if features.ndim != 2 or features.shape[1] != self.model["columns"]:
            raise BadInput(f"features of shape {features.shape} given to a model of {self.model['columns']} columns")
        if not len(features):
            return np.zeros(0)
        return self._client.scores(features, self.model["feature_set"], self.target, self.model["dialect"])


def _error(status: int, body: bytes) -> LorienError:
    """The error that the service tells of."""
    try:
        told = orjson.loads(body)
        if error := error_named(told["error"], str(told["message"])):
            return error
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass  # something between us and the service answered
    text = body[:200].decode(errors="replace").strip()
    return ServiceUnavailable(f"status {status}: {text}. Fix: see that this is the URL of a lorien serve")


def _text(target: Target) -> str:
    return orjson.dumps(target.to_json()).decode()


def _query(**where: str | int | None) -> str:
    given = {name: value for name, value in where.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _scores(reply: Json) -> FloatArray:
    return np.array(reply["scores"], dtype=np.float64)
