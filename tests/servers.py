"""Real servers that the tests start, kill and start again."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

NPM = Path(sys.prefix) / "npm" / "node_modules"
READY_WITHIN_S = 60.0
# dynalite throws when a client dies in the middle of a request, and some tests kill clients.
FORGIVING = (
    'process.on("uncaughtException", e => { if (e.code !== "ECONNRESET") { console.error(e); process.exit(1) } })'
)
# Amazon's own has a licence to accept: it takes part when DYNAMODB_LOCAL names the folder of DynamoDBLocal.jar.
DATABASES = ("sqlite", "dynalite", "moto", *(["dynamodb_local"] if "DYNAMODB_LOCAL" in os.environ else ()))
RACED = pytest.mark.parametrize("url", [name for name in DATABASES if name != "moto"], indirect=True)
"""For hundreds of requests at once: moto, a model of DynamoDB in Python, would show no more than that it is slow."""
ACCESS_KEY, SECRET_KEY = "LORIENTEST", "no-secret"  # DynamoDB Local wants letters and digits
BUCKET = "tests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What these servers take, and nothing of the user's own."""


class Server:
    """A server on a port of this machine. It keeps its port when it is killed and started again."""

    def __init__(self, command: Callable[[int], Sequence[str | Path]], *, log: Path, ready: str = "") -> None:
        self._port = free_port()
        self._command = [str(word) for word in command(self._port)]
        self._log = log
        self.url = f"http://127.0.0.1:{self._port}"
        self._ready = self.url + ready
        self.start()

    def start(self) -> None:
        """Start it, and return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._log.parent)
        give_up_s = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_s:
                self.kill()
                raise RuntimeError(f"{self._command[0]} did not start: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self._ready, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code < 500
        except OSError:
            return False
        return True


def make_bucket(url: str) -> None:
    """Make ``BUCKET`` on an S3 server. One for all tests: SeaweedFS sets disk space aside for each."""
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket=BUCKET)
    client.close()


class FaultyProxy:
    """A way to an HTTP server on which requests meet what is in ``faults``, one each, in order; then no fault.

    None: no fault. ``DROP``: the server is not reached. ``LOSE_ANSWER``: the request is carried out, its answer lost;
    ``CUT_ANSWER``: half of it; ``UNPROCESSED``: a BatchGetItem gives nothing and says so. Another text: the DynamoDB
    error of that name.
    """

    DROP = "drop"
    LOSE_ANSWER = "lose answer"
    CUT_ANSWER = "cut answer"
    UNPROCESSED = "unprocessed"

    def __init__(self, target: str) -> None:
        self.faults: deque[str | None] = deque()
        proxy, address = self, target.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                fault = proxy.faults.popleft() if proxy.faults else None
                if fault == proxy.UNPROCESSED:
                    self.say(200, {"Responses": {}, "UnprocessedKeys": json.loads(body)["RequestItems"]})
                    return
                if fault not in (None, proxy.DROP, proxy.LOSE_ANSWER, proxy.CUT_ANSWER):
                    self.say(400, {"__type": f"x#{fault}", "message": "injected"})
                    return
                if fault != proxy.DROP:
                    connection = HTTPConnection(address)
                    headers = {name: value for name, value in self.headers.items() if name != "Expect"}
                    connection.request(self.command, self.path, body, headers)
                    reply = connection.getresponse()
                    content = reply.read()
                    connection.close()
                    if fault is None:
                        self.answer(reply.status, reply.getheaders(), content)
                        return
                    if fault == proxy.CUT_ANSWER:
                        self.answer(reply.status, reply.getheaders(), content[: len(content) // 2])
                self.close_connection = True

            do_DELETE = do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815

            def say(self, status: int, value: dict[str, object]) -> None:
                text = json.dumps(value).encode()
                self.answer(status, [("Content-Length", str(len(text)))], text)

            def answer(self, status: int, headers: Sequence[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class CuttableWire:
    """A way to a server that can be cut: what is on it then, and what comes until it is mended, is lost.

    Connections of before are dead after mending, as behind a router that forgot them.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._whole = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Lose everything from now on, without a word to either side."""
        self._whole = False

    def mend(self) -> None:
        """Let new connections through, and end those of before."""
        with self._lock:
            ends, self._ends = self._ends, []
        self._whole = True
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.mend()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                with self._lock:
                    self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if self._whole:
                    sink.sendall(content)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        source.close()


_given: set[int] = set()


def free_port() -> int:
    """A port that no program listens on, below those that the system gives to outgoing connections.

    None is given twice: a server of many ports draws them all before it listens on any.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def moto(folder: Path) -> Server:
    """DynamoDB and S3 in memory."""
    program = Path(sys.executable).with_name("moto_server")
    return Server(lambda port: [program, "-H", "127.0.0.1", "-p", str(port)], log=folder / "moto.log")


def batch(folder: Path) -> Server:
    """AWS Batch that runs its jobs here."""
    program = Path(__file__).with_name("batch_server.py")
    return Server(lambda port: [sys.executable, program, str(port)], log=folder / "batch.log")


def dynalite(folder: Path) -> Server:
    """DynamoDB on LevelDB: what was acknowledged is there after a kill."""
    node, program = shutil.which("node"), NPM / "dynalite" / "cli.js"
    if node is None or not program.exists():
        pytest.skip("dynalite needs node and npm; make test installs it where they are")
    fixed = ["--import", f"data:text/javascript,{FORGIVING}", program, "--path", folder / "db", "--createTableMs", "0"]
    return Server(lambda port: [node, *fixed, "--port", str(port)], log=folder / "dynalite.log")


def dynamodb_local(folder: Path) -> Server:
    """Amazon's own DynamoDB, of the folder that DYNAMODB_LOCAL names."""
    home = Path(os.environ["DYNAMODB_LOCAL"]).resolve()
    fixed = [f"-Djava.library.path={home / 'DynamoDBLocal_lib'}", "-jar", home / "DynamoDBLocal.jar", "-inMemory"]
    return Server(lambda port: ["java", *fixed, "-port", str(port)], log=folder / "dynamodb.log")


def seaweedfs(folder: Path, filer_port: int | None = None) -> Server:
    """S3 on disk. What is behind it, the filer, takes files over plain HTTP at a port of its own."""
    program = Path(sys.executable).with_name("weed")
    (folder / "data").mkdir()
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    # Each of its parts listens on a second port, for gRPC, unless that is given: 10,000 above the first.
    parts = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc")
    ports = [f"-filer.port={filer_port or free_port()}", *(f"-{part}={free_port()}" for part in parts)]
    fixed = [f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}"]
    fixed += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    return Server(
        lambda port: [program, "server", *fixed, *ports, f"-s3.port={port}"],
        log=folder / "weed.log",
        ready="/healthz",
    )
