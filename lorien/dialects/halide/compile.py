"""Builds and runs schedules: a shared library of one function, called through Halide's C ABI."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.halide.pipelines import Pipeline, pipeline_of
from lorien.dialects.halide.space import halide_target, load_autoscheduler, replay
from lorien.errors import BadInput
from lorien.files import temporary_folder
from lorien.records import Candidate, Workload
from lorien.target import Target

FUNCTION = "lorien_kernel"
_CODES = {"i": 0, "u": 1, "f": 2}


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Dimension(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("min", "extent", "stride", "flags"))


class _Buffer(ctypes.Structure):
    """``halide_buffer_t`` of HalideRuntime.h."""

    _fields_ = (
        ("device", ctypes.c_uint64),
        ("device_interface", ctypes.c_void_p),
        ("host", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("type", _Type),
        ("dimensions", ctypes.c_int32),
        ("dim", ctypes.POINTER(_Dimension)),
        ("padding", ctypes.c_void_p),
    )


def warm_up(target: Target) -> None:
    """Import Halide, and compile the part of it that every library has."""
    load_autoscheduler()
    _runtime(target)


@lru_cache(maxsize=1)
def _runtime(target: Target) -> tempfile.TemporaryDirectory[str]:
    """Folder of ``runtime.o``; it goes with this process."""
    import halide as hl

    folder = temporary_folder("lorien-halide-")
    hl.compile_standalone_runtime(str(Path(folder.name, "runtime.o")), halide_target(target))
    return folder


def build(workload: Workload, candidate: Candidate, target: Target, out: Path) -> None:
    """See ``LiveDialect.build``."""
    import halide as hl

    made = replay(workload, candidate, target)
    bare = halide_target(target).with_feature(hl.TargetFeature.NoRuntime)
    with temporary_folder("lorien-kernel-", out.parent) as folder:
        kernel = Path(folder, "kernel.o")
        images = [image for image, _ in made.pipeline.inputs]
        made.halide.compile_to({hl.OutputFileType.object: str(kernel)}, images, FUNCTION, bare)
        linker = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if linker is None:
            raise BadInput("no C compiler to link with. Fix: install gcc or clang")
        objects = [str(kernel), str(Path(_runtime(target).name, "runtime.o"))]
        done = subprocess.run(  # noqa: S603
            [linker, "-shared", "-o", str(out), *objects, "-lpthread", "-ldl", "-lm"], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{linker}: {done.stderr.strip()[-300:]}")


def run(workload: Workload, library: Path, target: Target, *, repeat: int, min_repeat_s: float) -> list[float]:
    """See ``LiveDialect.run``."""
    with _loaded(workload, library, target) as (call, _):
        call()
        started_s = time.perf_counter()
        call()
        once_s = max(time.perf_counter() - started_s, 1e-7)
        calls = max(1, round(min_repeat_s / once_s))
        latencies_s = []
        for _ in range(repeat):
            started_s = time.perf_counter()
            for _ in range(calls):
                call()
            latencies_s.append((time.perf_counter() - started_s) / calls)
    return latencies_s


def outputs(workload: Workload, library: Path, target: Target) -> list[npt.NDArray[Any]]:
    """See ``LiveDialect.outputs``."""
    with _loaded(workload, library, target) as (call, output):
        call()
        return [output.copy()]


@contextmanager
def _loaded(workload: Workload, library: Path, target: Target) -> Iterator[tuple[Any, npt.NDArray[Any]]]:
    """What calls the function once, on inputs that depend on the workload only, and the tensor it writes."""
    load_autoscheduler()
    pipeline = pipeline_of(workload)
    arrays = [*inputs_of(workload, pipeline), _empty(pipeline)]
    loaded = ctypes.CDLL(str(library))
    loaded.halide_set_num_threads(ctypes.c_int(target.num_cores or 1))
    buffers = [_buffer(array) for array in arrays]
    arguments = [ctypes.byref(buffer) for buffer in buffers]
    function = getattr(loaded, FUNCTION)

    def call() -> None:
        if function(*arguments):
            raise RuntimeError("the pipeline reported an error: its buffers do not fit")

    try:
        yield call, arrays[-1]
    finally:
        loaded.halide_shutdown_thread_pool()


def inputs_of(workload: Workload, pipeline: Pipeline) -> list[npt.NDArray[Any]]:
    """Random tensors, the first dimension of Halide innermost: shape reversed."""
    rng = np.random.default_rng(int(workload.key[:8], 16))
    tensors: list[npt.NDArray[Any]] = []
    for image, shape in pipeline.inputs:
        dtype = np.dtype(str(image.type()))
        if dtype.kind == "f":
            tensors.append(rng.random(shape[::-1]).astype(dtype))
        else:
            tensors.append(rng.integers(0, 128, shape[::-1]).astype(dtype))
    return tensors


def _empty(pipeline: Pipeline) -> npt.NDArray[Any]:
    (kind,) = pipeline.output.types()
    return np.zeros(tuple(pipeline.shape)[::-1], dtype=np.dtype(str(kind)))


def _buffer(array: npt.NDArray[Any]) -> _Buffer:
    """Of a C-contiguous tensor, which must outlive it."""
    extents: Sequence[int] = array.shape[::-1]
    strides = np.cumprod([1, *extents[:-1]])
    dimensions = (_Dimension * len(extents))(
        *(_Dimension(0, extent, int(stride), 0) for extent, stride in zip(extents, strides, strict=True))
    )
    kind = _Type(_CODES[array.dtype.kind], array.dtype.itemsize * 8, 1)
    return _Buffer(0, None, array.ctypes.data, 0, kind, len(extents), dimensions, None)
