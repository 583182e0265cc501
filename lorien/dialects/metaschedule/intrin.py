"""Register the tensor intrinsics of one target, and spare the process those of all the others."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec

from lorien.dialects.metaschedule.workload import require_tvm
from lorien.target import Target

PACKAGE = "tvm.s_tir.tensor_intrin"
_MODULES = {
    "llvm-x86": "x86",
    "llvm-arm": "arm_cpu",
    "llvm-riscv": "riscv_cpu",
    "cuda": "cuda",
    "nvptx": "cuda",
    "rocm": "rocm",
    "metal": "metal",
    "hexagon": "hexagon",
}
"""Module of ``tvm.s_tir.tensor_intrin`` by ``Target.family``; the kinds not named have no intrinsics."""


def register_intrinsics(target: Target) -> None:
    """Make the target's tensor intrinsics known to TVM: what its schedule rules, traces and builds may name.

    Call it before anything that makes a ``TuneContext`` or builds a module. Calling it again costs nothing.
    """
    require_tvm()
    _enter_package()
    module = _MODULES.get(target.family)
    if module is not None and f"{PACKAGE}.{module}" not in sys.modules:
        with _bare_stacks():
            importlib.import_module(f"{PACKAGE}.{module}")


def _enter_package() -> None:
    # TuneContext and default_build run `import tvm.s_tir.tensor_intrin`, whose __init__ parses the intrinsics of every
    # device TVM knows: 27 s. The package is put into sys.modules here without running that __init__, so their import
    # finds it done, while its modules can still be imported one by one.
    import tvm.s_tir

    if PACKAGE in sys.modules:
        return
    spec = find_spec(PACKAGE)
    if spec is None:
        raise ImportError(f"{PACKAGE} is not in this TVM")
    package = module_from_spec(spec)
    sys.modules[PACKAGE] = package
    tvm.s_tir.tensor_intrin = package


_one_at_a_time = threading.Lock()


@contextmanager
def _bare_stacks() -> Iterator[None]:
    """Stacks without lines of source.

    TVM's parser asks for the stack twice a function, for its frames' variables. For each frame Python then looks for
    the source through all modules there are: of the 180 functions of CUDA's intrinsics, 15 of 18 s.
    """
    with _one_at_a_time:
        whole, inspect.stack = inspect.stack, _stack
        try:
            yield
        finally:
            inspect.stack = whole


def _stack(context: int = 1) -> list[inspect.FrameInfo]:
    """``inspect.stack`` as far as the frames tell."""
    found = []
    frame = inspect.currentframe()
    while frame is not None and (frame := frame.f_back) is not None:
        code = frame.f_code
        found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
    return found
