"""What this machine needs to build for another one: TVM generates the code, a linker of that platform packs it."""

from __future__ import annotations

import platform
import shutil

from lorien.errors import BadInput
from lorien.target import Target

_TOOLS = ("gcc", "clang")


def linker(target: Target) -> str | None:
    """Compiler driver that links for the target; None for this machine's own.

    Raises
    ------
    BadInput
        It, or another tool that the target needs to build, is not installed.
    """
    if target.kind == "cuda" and shutil.which("nvcc") is None:
        raise BadInput(f"building for {target} takes NVIDIA's compiler. Fix: install the CUDA toolkit, nvcc on PATH")
    triple = str(dict(target.attrs).get("mtriple", ""))
    if not triple or triple.partition("-")[0] == platform.machine():
        return None
    names = [f"{triple}-{tool}" for tool in _TOOLS]
    for name in names:
        if shutil.which(name) is not None:
            return name
    raise BadInput(
        f"no linker for {triple} here: neither {' nor '.join(names)} is on PATH. Fix: on Debian apt-get install "
        f"gcc-{triple}, for Android a link of that name to the compiler of its NDK"
    )
