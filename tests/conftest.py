"""What many tests need: small AutoTVM logs, and servers that speak AWS."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import servers

AutoTvmLine = Callable[..., str]
LONG = (
    "test_docs",
    "test_batch",
    "test_fleet",
    "test_main_job",
    "test_models",
    "test_farm",
    "test_cli",
    "test_serve",
    "test_tune_metaschedule",
    "test_remote_session",
    "test_notebooks",
    "test_database",
    "test_report_pages",
)
"""Files that take a minute, longest first: begun last, they would keep one of two processes busy and the other idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def autotvm_line(
    latencies_s: Sequence[float] = (1e-3,),
    tile: int = 1,
    *,
    size: int = 64,
    error: int = 0,
    target: str = "llvm -keys=cpu",
) -> str:
    """One line of an AutoTVM log: a dense layer of ``size``, tiled by ``tile``."""
    tensor = ["TENSOR", [1, size], "float32"]
    knobs = [["tile_x", "sp", [-1, tile]], ["tile_y", "sp", [-1, 1]], ["tile_k", "sp", [-1, 1]]]
    return json.dumps(
        {
            "input": [target, "dense_nopack.x86", [tensor, ["TENSOR", [size, size], "float32"], None, "float32"], {}],
            "config": {"index": tile, "code_hash": None, "entity": knobs},
            "result": [list(latencies_s), error, 1.0, 1680553635.0 + tile],
            "version": 0.2,
            "tvm_version": "0.10.0",
        }
    )


@pytest.fixture(name="line")
def line_factory() -> AutoTvmLine:
    return autotvm_line


@pytest.fixture
def autotvm_log(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to ``<tmp_path>/<name>``."""

    def write(name: str, lines: Sequence[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def aws_credentials() -> Iterator[None]:
    """Credentials that the servers of these tests take, and none of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def aws(aws_credentials: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The endpoint of a server by its name in ``servers``; each is started once, when it is first asked for."""
    running: dict[str, servers.Server] = {}

    def endpoint(name: str) -> str:
        if name not in running:
            running[name] = getattr(servers, name)(tmp_path_factory.mktemp(name))
        return running[name].url

    yield endpoint
    for server in running.values():
        server.kill()


@pytest.fixture(scope="session")
def s3_folder(aws: Callable[[str], str]) -> Callable[[str], str]:
    """The URL of an empty folder on a server, by its name in ``servers``."""
    buckets: set[str] = set()

    def make(server: str) -> str:
        if server not in buckets:
            servers.make_bucket(aws(server))
            buckets.add(server)
        return f"s3://{servers.BUCKET}/{uuid.uuid4().hex}/some-folder?endpoint_url={aws(server)}"

    return make


@pytest.fixture
def proxy(aws: Callable[[str], str]) -> Iterator[servers.FaultyProxy]:
    """A proxy before moto that delays, cuts and answers with errors as it is told."""
    faulty = servers.FaultyProxy(aws("moto"))
    yield faulty
    faulty.close()
