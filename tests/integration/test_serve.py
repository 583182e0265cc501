"""A real service on loopback: asked, overloaded, stopped, killed, given broken models, and fuzzed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import psutil
import pytest

from lorien.database import open_database
from lorien.delivery import Source
from lorien.dialects import open_dialect, open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import (
    BadInput,
    NotAllowed,
    SchemaMismatch,
    ServiceUnavailable,
    UnknownTarget,
    UnsupportedOperation,
)
from lorien.featurize import open_extractor
from lorien.featurize.table import featurize
from lorien.logs import open_logs
from lorien.logs.ingest import ingest
from lorien.models import load_ranker
from lorien.models.store import SCORER_FILE, open_models
from lorien.models.train import train
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.serve.client import Client
from lorien.target import Target

BIN = Path(sys.executable).parent
TARGET = Target.parse("x86_i7-3770")
SISTER = Target.parse("x86_i9-9900")
TOKEN = "0123456789abcdef"
WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True)
class Shop:
    """What is served: AutoTVM records, a model trained on them, and a database of the best."""

    records: list[TuningRecord]
    models: Path
    database: str

    @property
    def workload(self) -> Workload:
        return self.records[0].workload

    @property
    def candidates(self) -> list[Candidate]:
        return [record.candidate for record in self.records if record.workload.key == self.workload.key]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shop:
    from conftest import autotvm_line as line

    folder = tmp_path_factory.mktemp("shop")
    log = folder / "given" / "mlp.log"
    log.parent.mkdir()
    lines = [
        line([1e-6 * size * (1 + abs(tile - 4))], tile, size=size)
        for size in range(32, 288, 32)
        for tile in range(1, 13)
    ]
    log.write_text("\n".join(lines) + "\n")
    dialect = open_dialect("autotvm")
    logs = open_logs(str(folder / "logs"))
    ingest([log], logs, dialect=dialect, target=TARGET)
    featurize(logs, folder / "features", processes=1)
    train(folder / "features", folder / "models", time_limit_s=20)
    records = list(dialect.read(log, LogInfo(TARGET, "mlp", "tvm 0.10.0"), ReadReport()))
    database = f"sqlite:///{folder}/best.db"
    with open_database(database) as opened:
        opened.put_many(records)
        opened.put(dataclasses.replace(records[3], target=SISTER))
    return Shop(records, folder / "models", database)


class Serving:
    """A ``lorien serve`` of its own."""

    def __init__(self, log: Path, *options: str | Path) -> None:
        command = [BIN / "lorien", "serve", "--port", "0", "--json", *options]
        environment = {name: value for name, value in os.environ.items() if name != "LORIEN_TOKEN"}
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        assert self.process.stdout is not None
        said = b""
        while not said.endswith(b"}\n"):
            line = self.process.stdout.readline()
            assert line, log.read_text()
            said += line
        self.url: str = json.loads(said)["url"]
        self.log = log

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.url.removeprefix("http://"), timeout=WITHIN_S)

    def ask(
        self, path: str, body: bytes | None = None, *, method: str | None = None, **headers: str
    ) -> tuple[HTTPResponse, Any]:
        """The response, and what it says."""
        connection = self.connect()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, names)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = response.headers["Content-Type"] == "application/json"
        return response, json.loads(content) if is_json else content.decode()

    def metric(self, name: str, **headers: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics", **headers)[1], re.M)
        return float(found[1]) if found else 0.0

    def begin(self, path: str, body: bytes) -> Held:
        """A request whose body is sent but for its last byte; returns once the service works on it."""
        busy = self.metric("lorien_requests_busy")
        held = Held(self.connect(), path, body)
        until(lambda: self.metric("lorien_requests_busy") == busy + 1)
        return held

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(WITHIN_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Held:
    def __init__(self, connection: HTTPConnection, path: str, body: bytes) -> None:
        self._connection, self._rest = connection, body[-1:]
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[:-1])

    def finish(self) -> tuple[int, Any]:
        self._connection.send(self._rest)
        return self.answer()

    def answer(self) -> tuple[int, Any]:
        response = self._connection.getresponse()
        content = json.loads(response.read())
        self._connection.close()
        return response.status, content


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@contextmanager
def serving(folder: Path, *options: str | Path) -> Iterator[Serving]:
    service = Serving(folder / "serve.log", *options)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


@pytest.fixture(scope="module")
def service(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("service"), "--models", shop.models, "--db", shop.database) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(service: Serving) -> Iterator[Client]:
    with Client(service.url) as opened:
        yield opened


def rank_body(shop: Shop, **changes: Any) -> bytes:
    schedules = [candidate.schedule for candidate in shop.candidates]
    request = {"workload": shop.workload.to_json(), "target": TARGET.key, "candidates": schedules}
    return orjson.dumps(request | changes)


def test_the_client_gives_what_the_local_calls_give(client: Client, shop: Shop) -> None:
    local, remote = load_ranker(shop.models, TARGET), client.load_ranker(TARGET)
    assert remote.exact
    features = open_extractor("autotvm").extract(shop.workload, shop.candidates, TARGET)
    scores = local.score(features)
    assert len(set(scores)) > 3
    np.testing.assert_array_equal(remote.score(features), scores)
    np.testing.assert_array_equal(remote.rank(shop.workload, shop.candidates), scores)
    assert remote.rank(shop.workload, []).shape == remote.score(features[:0]).shape == (0,)
    for ranker in (local, remote):
        with pytest.raises(BadInput, match=r"shape \(2, 3\) given to a model of"):
            ranker.score(np.zeros((2, 3), np.float32))
        with pytest.raises(BadInput, match="of dialect metaschedule, the model of autotvm"):
            ranker.rank(dataclasses.replace(shop.workload, dialect="metaschedule"), shop.candidates)

    with open_database(shop.database) as database:
        key = shop.workload.key
        assert client.best(TARGET, key, 3) == database.best(TARGET, key, 3) != []
        assert client.best(TARGET, key, build="tvm 0.9") == []
        assert client.related(TARGET, key) == database.related(TARGET, key)
        assert [record.target for record in client.related(TARGET, key)] == [SISTER]
        everything = list(database.query())
        assert list(client.query()) == everything
        assert len(everything) > 64
        assert list(client.query(SISTER, workload="dense*", dialect="autotvm")) == list(database.query(SISTER))
        assert list(client.query(network="none")) == []
        assert client.stats() == database.stats()
    (model,) = client.models()
    assert (model["dialect"], model["target"], model["rows"]) == ("autotvm", TARGET.key, 96)


def test_a_related_target_is_ranked_by_its_neighbour_s_model(
    client: Client, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    ranker = client.load_ranker(SISTER.key, "autotvm")
    assert not ranker.exact
    assert "of the same family" in caplog.text
    expected = load_ranker(shop.models, SISTER).rank(shop.workload, shop.candidates)
    np.testing.assert_array_equal(ranker.rank(shop.workload, shop.candidates), expected)


def test_errors_are_those_of_the_local_calls(client: Client, shop: Shop) -> None:
    with pytest.raises(UnknownTarget, match=r"no model for 'cuda'; trained: llvm-model_i7-3770. Fix: lorien-train"):
        client.load_ranker("cuda")
    with pytest.raises(UnsupportedOperation, match="reads logs only"):
        client.deliver(shop.workload, TARGET, verify=False)
    with pytest.raises(NotAllowed, match=r"verifies nothing. Fix: .*--verify"):
        client.deliver(shop.workload, TARGET)
    with pytest.raises(SchemaMismatch, match="autotvm/99"):
        client.scores(np.zeros((1, 2), np.float32), "autotvm/99", TARGET)
    with pytest.raises(ServiceUnavailable, match="lorien serve runs there"), Client(client.url[:-1], retries=0) as gone:
        gone.models()
    with pytest.raises(BadInput, match="no URL of a service"):
        Client("127.0.0.1:8642")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": "gpu9"}, "unknown target"),
        ({"target": {"kind": "llvm", "keys": 1}}, "not a target"),
        ({"target": {"kind": "llvm", "mattr": ["+avx"]}}, None),
        ({"candidates": [None, 1, {"a": []}, [["tile_x", "sp", [-1, "a"]]]]}, None),
        ({"workload": {}}, "body.workload.dialect"),
        ({"workload": {"dialect": "autotvm", "name": "x", "identity": []}, "candidates": [[]]}, "lorien extract"),
        ({"workload": {"dialect": "autotvm", "name": "x", "identity": 1, "key": "0" * 32}}, "was edited"),
        ({"workload": {"dialect": "autotvm", "name": "x", "identity": json.loads("[" * 300 + "]" * 300)}}, "over 254"),
        ({"more": 1}, "body.more"),
    ],
)
def test_bad_input_is_told_and_never_an_error_of_the_service(
    service: Serving, shop: Shop, changes: dict[str, Any], says: str | None
) -> None:
    body = json.dumps(json.loads(rank_body(shop)) | changes).encode()
    response, value = service.ask("/v1/rank", body, Content_Type="application/json")
    if says is None:
        assert response.status == 200, value
        assert all(0 <= score <= 1 for score in value["scores"])
    else:
        assert response.status == 422, value
        assert says in value["message"]
        assert "Fix:" in value["message"] or "Kinds:" in value["message"]


def test_whatever_is_sent_is_refused_and_not_an_error_of_the_service(service: Serving, shop: Shop) -> None:
    """Depths, sizes, numbers, types and characters, in every place of every request."""
    deep = [json.loads("[" * depth + "]" * depth) for depth in (200, 260, 900)] + [
        json.loads('{"a":' * 300 + "1" + "}" * 300)
    ]
    odd = [*deep, 2**63, 2**64 - 1, -(2**63), 1e308, -1, 0.5, True, None, "\0", "x" * 70_000, [], {}, [[]], {"": []}]
    whole = json.loads(rank_body(shop))
    places: list[tuple[str, ...]] = [(name,) for name in (*whole, "top_k", "verify", "other")]
    places += [("workload", name) for name in whole["workload"]]
    places += [("target", name) for name in ("kind", "num-cores", "mattr", "mcpu")]
    for path in ("/v1/rank", "/v1/deliver"):
        for place in places:
            for value in odd:
                known = ("workload", "target", "candidates" if path == "/v1/rank" else "top_k")
                body = {name: whole.get(name, 1) for name in known} | {"target": {"kind": "llvm"}}
                if len(place) == 1:
                    body[place[0]] = [value] if place[0] == "candidates" and value is not None else value
                else:
                    body[place[0]] = body[place[0]] | {place[1]: value}
                response, said = service.ask(path, json.dumps(body).encode(), Content_Type="application/json")
                assert response.status < 500, (path, place, str(value)[:40], said)
                assert response.status == 200 or len(said["message"]) < 1100
    texts = [
        "{" * 4000,
        '{"kind": ' + "[" * 4000,
        "llvm -num-cores=" + "9" * 4090,
        "%ff%00",
        "%ed%a0%80",
        "%F0%9F%98%80",
        "x" * 5000,
    ]
    routes = ("/v1/model?target={}", "/v1/schedules?target={}", "/v1/schedules?workload={}", "/v1/schedules?network={}")
    routes += ("/v1/schedules/best?target=llvm&workload_key=" + "0" * 32 + "&n={}", "/v1/score?features=a/1&target={}")
    routes += ("/v1/schedules/related?target={}&workload_key=" + "0" * 32, "/v1/model?target=llvm&dialect={}", "/v1/{}")
    for route in routes:
        for text in texts:
            body = b"abcd" if "score" in route else None
            quoted = text if "%" in text else quote(text)
            response, said = service.ask(route.format(quoted), body, Content_Type="application/octet-stream")
            assert response.status < 500, (route, text[:40], said)
    bodies = [
        b"",
        b"null",
        b"1",
        b'"\\ud800"',
        b"\xff\xfe{",
        b'{"target": 1e999}',
        b"[" * 2000 + b"]" * 2000,
        b"9" * 100_000,
        b"NaN",
    ]
    for path in ("/v1/rank", "/v1/deliver", "/v1/score?target=x86_i7-3770&features=autotvm/1"):
        for sent in bodies:
            for kind in ("application/json", "application/octet-stream", "text/plain", "\xe9"):
                response, said = service.ask(path, sent, Content_Type=kind)
                assert 400 <= response.status < 500, (path, sent[:40], kind, said)
                assert "Fix:" in said["message"]


def test_a_candidate_nested_deeply(service: Serving, client: Client, shop: Shop) -> None:
    for depth, status in ((100, 200), (300, 422), (900, 422)):
        nested = json.loads("[" * depth + "]" * depth)
        response, value = service.ask(
            "/v1/rank",
            json.dumps(json.loads(rank_body(shop)) | {"candidates": [nested]}).encode(),
            Content_Type="application/json",
        )
        assert response.status == status, value
        if status == 422:
            assert "over 254 deep. Fix:" in value["message"]
            with pytest.raises(BadInput, match="cannot be sent as JSON"):
                client.load_ranker(TARGET).rank(shop.workload, [Candidate(nested)])


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("/v1/rank", b"{", "application/json", 422),
        ("/v1/rank", b'{"target": NaN}', "application/json", 422),
        ("/v1/rank", b"[" * 100_000, "application/json", 422),
        ("/v1/score?target=x86_i7-3770&features=autotvm/1", b"abcd", "application/octet-stream", 422),
        ("/v1/score?target=x86_i7-3770&features=autotvm/1", b"[1]", "application/json", 415),
        ("/v1/score?target=x86_i7-3770&features=other/1", b"abcd", "application/octet-stream", 409),
        ("/v1/schedules?target=gpu9", None, "", 422),
        ("/v1/schedules/best?target=llvm&workload_key=1", None, "", 422),
        ("/v1/none", None, "", 404),
        ("/v1/models", b"", "application/json", 405),
    ],
)
def test_status(service: Serving, path: str, body: bytes | None, kind: str, status: int) -> None:
    response, value = service.ask(path, body, Content_Type=kind)
    assert (response.status, set(value)) == (status, {"error", "message"})
    assert "Fix:" in value["message"] or "Kinds:" in value["message"]


def test_delivery(service: Serving, client: Client, shop: Shop) -> None:
    """The database's schedule without a compiler; the default where there is no model."""
    workload, target = Workload("metaschedule", "w", ["structural", "1"]), Target.parse("llvm -mcpu=none")
    assert client.deliver(workload, target, verify=False).source is Source.DEFAULT
    build = open_live_dialect("metaschedule").framework()
    record = TuningRecord(workload, target, Candidate([[1], []]), Measurement(Outcome.OK, (2e-3,)), build)
    with open_database(shop.database) as database:
        database.put(record)
    answer = client.deliver(workload, target, verify=False)
    assert (answer.source, answer.latency_s, answer.candidate) == (Source.DATABASE, 2e-3, record.candidate)
    assert service.metric('lorien_delivered_total{source="database"}') == 1
    assert service.metric('lorien_delivered_total{source="default"}') == 1


@pytest.mark.parametrize("time", ["once", "again"])
def test_a_worker_that_is_killed_is_replaced(service: Serving, client: Client, shop: Shop, time: str) -> None:
    ranker = client.load_ranker(TARGET)
    ranker.rank(shop.workload, shop.candidates)
    killed = psutil.Process(service.process.pid).children()
    for child in killed:
        child.kill()
    until(lambda: not any(map(_lives, killed)))
    until(lambda: _ranks(ranker, shop))


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _ranks(ranker: Any, shop: Shop) -> bool:
    try:
        return len(ranker.rank(shop.workload, shop.candidates)) == len(shop.candidates)
    except (BadInput, ServiceUnavailable):  # it was given to one that had just died
        return False


def test_an_answer_does_not_wait_for_the_network(service: Serving) -> None:
    """Head and body held back for an acknowledgement would take 40 ms, every time."""
    connection, took_s = service.connect(), []
    for _ in range(10):
        started_s = time.perf_counter()
        connection.request("GET", "/v1/models")
        connection.getresponse().read()
        took_s.append(time.perf_counter() - started_s)
    connection.close()
    assert min(took_s) < 0.03


def test_nobody_comes_in_without_the_token(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    with serving(tmp_path, "--db", shop.database, "--token-file", tmp_path / "token", "--host", "0.0.0.0") as service:
        service.url = service.url.replace("0.0.0.0", "127.0.0.1")
        for path in ("/v1/stats", "/metrics", "/v1/none"):
            for headers in ({}, {"Authorization": "Bearer 0123456789abcdeg"}, {"Authorization": f"Basic {TOKEN}"}):
                response, value = service.ask(path, **headers)
                assert (response.status, value["error"]) == (401, "NotAllowed")
                assert response.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert service.ask(path)[0].status == 200
        assert service.metric('lorien_requests_total{route="other",status="401"}', Authorization=f"Bearer {TOKEN}") == 9
        with Client(service.url, TOKEN) as client:
            assert client.stats().targets >= 2
            with pytest.raises(UnsupportedOperation, match="--models"):
                client.models()
        with Client(service.url, "wrong") as client, pytest.raises(NotAllowed, match="Fix: send the header"):
            client.stats()
        assert TOKEN not in service.log.read_text()


def test_without_a_token_it_stays_on_this_machine(service: Serving, shop: Shop, tmp_path: Path) -> None:
    for host in ("attacker.example:80", "[", ""):
        response, value = service.ask("/v1/stats", Host=host)
        assert (response.status, value["error"]) == (403, "NotAllowed")
    for host in ("localhost", "[::1]:80", "127.0.0.1:1"):
        assert service.ask("/v1/stats", Host=host)[0].status == 200
    (tmp_path / "short").write_text("secret")
    for options, says in (
        (["--db", shop.database, "--host", "0.0.0.0"], "Fix: give it a token"),
        (["--db", shop.database, "--token-file", tmp_path / "short"], "16 characters"),
        (["--db", tmp_path / "none" / "s.db"], "no folder"),
        ([], "--models"),
    ):
        done = subprocess.run([BIN / "lorien", "serve", *options], capture_output=True, text=True, timeout=WITHIN_S)
        assert done.returncode == 1
        assert says in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr


def test_limits(shop: Shop, tmp_path: Path) -> None:
    options = ["--models", shop.models, "--max-body-mb", "0.02", "--timeout-s", "2", "--concurrency", "1"]
    with serving(tmp_path, *options) as service, Client(service.url) as client:
        body = rank_body(shop)
        assert len(body) < 20_000
        for chunked in (False, True):
            connection = service.connect()
            whole: Any = iter([b" " * 5_000] * 5) if chunked else b" " * 25_000
            connection.request("POST", "/v1/rank", whole, {"Content-Type": "application/json"}, encode_chunked=chunked)
            response = connection.getresponse()
            assert response.status == 413
            assert "Fix: send fewer candidates" in json.loads(response.read())["message"]
            connection.close()

        held = service.begin("/v1/rank", body)
        response, value = service.ask("/v1/models")
        assert (response.status, response.headers["Retry-After"], value["error"]) == (503, "1", "ServiceUnavailable")
        with (
            pytest.raises(ServiceUnavailable, match="1 requests are being answered"),
            Client(service.url, retries=0) as one,
        ):
            one.models()
        # A client that is told to come back comes back.
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.extend(client.models()))
        waiting.start()
        until(lambda: service.metric('lorien_requests_total{route="other",status="503"}') >= 3)
        status, value = held.finish()
        assert (status, len(value["scores"])) == (200, len(shop.candidates))
        waiting.join(WITHIN_S)
        assert len(found) == 1

        # A body that never comes takes no longer than an answer may.
        status, value = service.begin("/v1/rank", body).answer()
        assert (status, value["error"]) == (503, "ServiceUnavailable")
        assert "within 2 s" in value["message"]
        assert service.metric("lorien_requests_busy") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_begun(shop: Shop, tmp_path: Path, number: int) -> None:
    with serving(tmp_path, "--models", shop.models) as service:
        held = service.begin("/v1/rank", rank_body(shop))
        children = psutil.Process(service.process.pid).children(recursive=True)
        service.process.send_signal(number)
        until(lambda: not _listens(service))
        status, value = held.finish()
        assert (status, len(value["scores"])) == (200, len(shop.candidates))
        assert service.process.wait(WITHIN_S) == 0
        assert service.process.stdout is not None
        service.process.stdout.close()
        assert not psutil.wait_procs(children, WITHIN_S)[1]
        assert service.log.read_text() == ""


def _listens(service: Serving) -> bool:
    connection = service.connect()
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()
    return True


def test_a_kill_leaves_no_process(shop: Shop, tmp_path: Path) -> None:
    with serving(tmp_path, "--models", shop.models) as service:
        with Client(service.url) as client:
            client.load_ranker(TARGET).rank(shop.workload, shop.candidates)
        children = psutil.Process(service.process.pid).children(recursive=True)
        assert children
        assert service.stop(signal.SIGKILL) == -signal.SIGKILL
        assert not psutil.wait_procs(children, WITHIN_S)[1]


def test_newer_models_come_in_under_load_and_broken_ones_stay_out(shop: Shop, tmp_path: Path) -> None:
    models = Path(shutil.copytree(shop.models, tmp_path / "models"))
    features = open_extractor("autotvm").extract(shop.workload, shop.candidates, TARGET)
    store = open_models(models)

    def publish(number: int) -> str:
        """The model with its scores halved so often: another one, and it can be told from the others."""
        stored = open_models(shop.models).read("autotvm", TARGET.key)
        assert stored is not None
        knots = stored.model.calibration
        calibration = knots | {"fraction": [fraction / 2**number for fraction in knots["fraction"]]}
        files = tmp_path / f"files{number}"
        shutil.copytree(stored.folder, files)
        (files / "number").write_text(str(number))
        newer = store.publish(dataclasses.replace(stored.model, calibration=calibration), files)
        return newer.folder.rpartition("/")[2]

    expected = load_ranker(models, TARGET).score(features)
    answers: list[tuple[str, Any]] = []
    stopping = threading.Event()
    with serving(tmp_path, "--models", models, "--reload-s", "0.2") as service:
        before = Client(service.url).models()[0]["version"]
        versions = {before: expected}
        where = f"/v1/score?target={TARGET.key}&features=autotvm/1"

        def load() -> None:
            while not stopping.is_set():
                response, value = service.ask(where, features.tobytes(), Content_Type="application/octet-stream")
                answers.append((value.get("version", response.status), value.get("scores")))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, 4):
                version = publish(number)
                versions[version] = expected / 2**number
                until(lambda version=version: bool(answers) and answers[-1][0] == version)
            # Now one whose files are not what its description says.
            broken = publish(4)
            scorer = next(models.glob(f"*/*/{broken}/{SCORER_FILE}"))
            scorer.write_bytes(scorer.read_bytes()[:-1])
            versions[broken] = expected / 2**4  # it may have been read whole, just before
            until(lambda: "damaged" in service.ask("/v1/models")[1]["problems"] or _seen(service, broken))
            publish(5)
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    assert len(answers) > 20
    for version, scores in answers:
        np.testing.assert_allclose(scores, versions.get(version, expected / 2**5), rtol=1e-12)


def _seen(service: Serving, version: str) -> bool:
    return version in str(service.ask("/v1/models")[1])


@pytest.mark.parametrize("known", [False, True], ids=["anything", "what there is"])
def test_fuzzed_from_its_own_description(shop: Shop, tmp_path: Path, known: bool) -> None:
    """Whatever is sent, answers are as described, bad input is told so, and no error is the service's own."""
    parameters = {"query.target": TARGET.key, "query.dialect": "autotvm", "query.features": "autotvm/1"}
    lines = [f'"{name}" = "{value}"\n' for name, value in parameters.items()]
    (tmp_path / "schemathesis.toml").write_text("[parameters]\n" + "".join(lines) if known else "")
    (tmp_path / "token").write_text(TOKEN)
    options = ["--models", shop.models, "--db", shop.database, "--token-file", tmp_path / "token", "--search-s", "0.1"]
    with serving(tmp_path, *options) as service:
        command = [BIN / "schemathesis", "run", f"{service.url}/openapi.json", "-H", f"Authorization: Bearer {TOKEN}"]
        # Valid by its description, and still of no use: a target nobody trained for, a workload that is none.
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--seed", "1", "--no-color"]
        fuzz = subprocess.run(
            [*command, "--max-examples", "3", "--phases", "examples,coverage,fuzzing", "--continue-on-failure"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert fuzz.returncode == 0, fuzz.stdout
        generated = re.search(r"(\d+) generated", fuzz.stdout)
        assert generated is not None
        assert int(generated[1]) > 500
        assert "Traceback" not in service.log.read_text()
