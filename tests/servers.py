"""Real servers that the tests start, kill and start again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

NPM = Path(sys.prefix) / "npm" / "node_modules"
READY_WITHIN_S = 60.0
# dynalite throws when a client dies in the middle of a request, and some tests kill clients.
FORGIVING = 'process.on("uncaughtException", e => { if (e.code !== "ECONNRESET") { console.error(e); process.exit(1) } })'
ACCESS_KEY, SECRET_KEY = "lorien-test", "no-secret"


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
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def moto(folder: Path) -> Server:
    """DynamoDB and S3 in memory."""
    program = Path(sys.executable).with_name("moto_server")
    return Server(lambda port: [program, "-H", "127.0.0.1", "-p", str(port)], log=folder / "moto.log")


def dynalite(folder: Path) -> Server:
    """DynamoDB on LevelDB: what was acknowledged is there after a kill."""
    node, program = shutil.which("node"), NPM / "dynalite" / "cli.js"
    if node is None or not program.exists():
        pytest.skip("dynalite needs node and npm; make test installs it where they are")
    fixed = ["--import", f"data:text/javascript,{FORGIVING}", program, "--path", folder / "db", "--createTableMs", "0"]
    return Server(lambda port: [node, *fixed, "--port", str(port)], log=folder / "dynalite.log")


def dynamodb_local(folder: Path) -> Server:
    """Amazon's own, for those who accept its licence: DYNAMODB_LOCAL names the folder of DynamoDBLocal.jar."""
    home = os.environ.get("DYNAMODB_LOCAL")
    if not home:
        pytest.skip("DYNAMODB_LOCAL does not name the folder of DynamoDBLocal.jar")
    libraries, jar = f"-Djava.library.path={home}/DynamoDBLocal_lib", f"{home}/DynamoDBLocal.jar"
    return Server(
        lambda port: ["java", libraries, "-jar", jar, "-inMemory", "-port", str(port)], log=folder / "dynamodb.log"
    )


def seaweedfs(folder: Path) -> Server:
    """S3 on disk."""
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
    parts = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = [f"-{part}={free_port()}" for part in (*parts, "s3.port.grpc")]
    fixed = [f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}"]
    return Server(
        lambda port: [program, "server", *fixed, *ports, f"-s3.port={port}"],
        log=folder / "weed.log",
        ready="/healthz",
    )
