"""The house rules a machine can hold: style, types, import directions, start-up time."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"lorien": ROOT / "lorien", "lorien.featurize": ROOT / "featurize", "lorien.models": ROOT / "models"}

# Imports point one way: a room may import from itself and from the rooms before it.
LAYERS = (
    {"lorien.errors", "lorien.files", "lorien.aws", "lorien.s3", "lorien.cluster", "lorien.machine"},
    {"lorien.records", "lorien.target", "lorien.plausible", "lorien.mutate"},
    {"lorien.dialects"},
    {"lorien.database", "lorien.logs"},
    {"lorien.featurize"},
    {"lorien.models"},
    {"lorien.tune"},
    {"lorien.delivery", "lorien.doctor", "lorien.metaschedule"},
    {"lorien.network"},
    {"lorien.serve"},
    {"lorien.report"},
    {"lorien.analysis"},
    {"lorien.cli"},
    {"lorien.testing"},
)
# Heavy packages stay in their rooms.
ROOMS = {
    "tvm": (
        "lorien.dialects.metaschedule",
        "lorien.featurize.metaschedule",
        "lorien.metaschedule",
        "lorien.tune.measure",
    ),
    "tvm_ffi": (
        "lorien.dialects.metaschedule",
        "lorien.featurize.metaschedule",
        "lorien.metaschedule",
        "lorien.tune.measure",
    ),
    "autogluon": ("lorien.models",),
    "pandas": ("lorien.models",),
    "lightgbm": ("lorien.models",),
    "llvmlite": ("lorien.models.kernel",),
    "xgboost": ("lorien.models",),
    "catboost": ("lorien.models",),
    "boto3": ("lorien.aws", "lorien.s3"),
    "botocore": ("lorien.aws", "lorien.s3"),
    "s3transfer": ("lorien.aws",),
    "halide": ("lorien.dialects.halide",),
    "onnx": ("lorien.dialects.metaschedule",),
    "onnxruntime": ("lorien.dialects.metaschedule",),
    "torch": ("lorien.dialects.metaschedule",),
    "pytest": ("lorien.testing",),
    "fastapi": ("lorien.serve",),
    "starlette": ("lorien.serve", "lorien.report"),
    "uvicorn": ("lorien.serve", "lorien.report"),
    "jinja2": ("lorien.report",),
    "vl_convert": ("lorien.report",),
    "pydantic": ("lorien.serve",),
    "prometheus_client": ("lorien.serve",),
    "urllib3": ("lorien.serve",),
    "typer": ("lorien.cli",),
    "plotly": ("lorien.analysis",),
    "matplotlib": ("lorien.analysis",),
    "IPython": ("lorien.analysis",),
    "rich": ("lorien.cli",),
    "ray": ("lorien.cluster", "lorien.tune.executors.ray"),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def layer(module: str) -> int:
    for index, rooms in enumerate(LAYERS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return index
    assert module == "lorien", f"{module} has no layer: add it to LAYERS"
    return -1


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        if module != "lorien"
        for name in imports(path)
        if name.startswith("lorien.") and layer(name) > layer(module)
    ]
    assert not wrong


def test_heavy_packages_stay_in_their_rooms() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        for name in imports(path)
        if not module.startswith(ROOMS.get(name.partition(".")[0], module))
    ]
    assert not wrong


@pytest.mark.parametrize("arguments", [["check", "."], ["format", "--check", "."]], ids=["check", "format"])
def test_ruff(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_strict_on_the_package_as_installed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lorien", tmp_path / "lorien")
    for name in ("featurize", "models"):
        shutil.copytree(ROOT / name, tmp_path / "lorien" / name)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg"), "-p", "lorien"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "limit_s"),
    [("import lorien", 0.3), ("from lorien.cli.app import app; app(['--help'], standalone_mode=False)", 0.5)],
    ids=["import", "help"],
)
def test_start_up_is_light(code: str, limit_s: float) -> None:
    """Best of five fresh interpreters, in processor time: it starts alone on users' machines, but not here."""
    program = (
        f"import time; t = time.process_time(); {code}; s = time.process_time() - t\n"
        "import sys; heavy = {'tvm', 'autogluon', 'pandas', 'numpy', 'pyarrow', 'onnx', 'boto3'} & set(sys.modules)\n"
        "print(); print(s, *heavy)"
    )
    times = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds, *heavy = done.stdout.splitlines()[-1].split()
        assert not heavy
        times.append(float(seconds))
    assert min(times) < limit_s, times


def test_no_path_of_a_machine_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".cfg", ".toml", ".sh", ""} and path.is_file() and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            assert "/home/" not in text, f"{name} names a path of a machine"
            assert "/root/" not in text, f"{name} names a path of a machine"
