"""Build and run one candidate with TVM. Called in a child process: all of it may crash or hang with the candidate."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.cross import linker
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.workload import NAIVE, module_of, require_tvm, schedule_of, tvm_target
from lorien.errors import BadInput
from lorien.machine import available_cores
from lorien.records import Candidate, Workload
from lorien.target import Target

if TYPE_CHECKING:
    import tvm

INPUT_SEED = 0
_PROBE_S = 0.005
"""Runs that tell how many make up a repeat."""
_BOUND_THREADS = ("cuda", "metal", "nvptx", "opencl", "rocm", "vulkan", "webgpu")
"""Kinds whose code generators refuse loops that are not bound to threads."""


def warm_up(target: Target) -> None:
    """Import TVM and the target's intrinsics, and set the threads that kernels get: the target's cores, if they exist.

    Call it first: TVM reads the number of threads once, and would take half of the CPUs it sees on x86. Raises
    ``BadInput`` when a tool that builds for the target is missing: before the first candidate fails for that.
    """
    linker(target)
    available = available_cores()
    os.environ["TVM_NUM_THREADS"] = str(min(target.num_cores or available, available))
    require_tvm()
    register_intrinsics(target)


def build(workload: Workload, candidate: Candidate, target: Target, out: Path) -> None:
    """Compile a candidate to the shared library ``out``, its function named ``main``.

    Raises
    ------
    BadInput
        The trace does not fit the workload.
    Exception
        Whatever TVM or the linker raise on a schedule that cannot be compiled.
    """
    warm_up(target)
    import tvm

    module = module_of(workload)
    device = tvm_target(target)
    if candidate.schedule is None:
        module = default_schedule(module, target)
    elif candidate.schedule == NAIVE.schedule:
        module = as_written(module, target)
    else:
        try:
            module = schedule_of(workload, candidate).mod
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadInput(f"the trace does not fit workload {workload.name!r}: {error}") from error
    cross = linker(target)
    tvm.tirx.build(module, device).export_library(str(out), **({"cc": cross} if cross else {"fcompile": link}))


def link(out: str, objects: list[str], **options: Any) -> None:
    """Link for this machine as TVM does, without the C++ runtime, whose search takes most of the time of it."""
    from tvm.support import cc

    if sys.platform == "linux":
        objects, options["options"] = [*objects, "-lm", "-lgcc"], [*options.get("options", ()), "-nostdlib"]
    cc.create_shared(out, objects, **options)


def default_schedule(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """What is built without tuning: on a CPU, loops cut by rules; else the loops as written."""
    return cpu_schedule(module, target).mod if target.kind == "llvm" else as_written(module, target)


def as_written(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """What TVM compiles without a schedule: the loops as written; for GPUs bound to threads, or nothing would build."""
    if target.kind not in _BOUND_THREADS:
        return module
    from tvm.s_tir.transform import DefaultGPUSchedule

    with tvm_target(target):
        return DefaultGPUSchedule()(module)


def run(workload: Workload, library: Path, target: Target, *, repeat: int, min_repeat_s: float) -> list[float]:
    """Time a library that ``build`` wrote on this machine's device.

    Returns
    -------
    list of float
        ``repeat`` mean latencies in seconds, each over as many runs as take about ``min_repeat_s``, after a few runs to
        warm up. Caches are warm, as they are between the operators of a network.
    """
    return evaluate(_load(workload, library, target), repeat=repeat, min_repeat_s=min_repeat_s)


def evaluate(loaded: Loaded, *, repeat: int, min_repeat_s: float) -> list[float]:
    """``run`` with what is loaded, here or on a remote device."""

    def timed(extent_s: float, latency_s: float, repeat: int = 1) -> list[float]:
        number = max(1, round(extent_s / latency_s))
        evaluator = loaded.library.time_evaluator("main", loaded.device, number=number, repeat=repeat)
        return [float(latency_s) for latency_s in evaluator(*loaded.arguments).results]

    # TVM finds the number of runs by itself, from one run while the threads still wake up, and repeats what was too
    # short: half of the time went there.
    if loaded.latency_s is None:
        (loaded.latency_s,) = timed(0.0, 1.0)
        extent_s = min(min_repeat_s, _PROBE_S)
        if loaded.latency_s < extent_s:
            (loaded.latency_s,) = timed(extent_s, loaded.latency_s)
        if repeat == 1 and max(loaded.latency_s, extent_s) >= min_repeat_s:
            return [loaded.latency_s]
    latencies_s = timed(min_repeat_s, loaded.latency_s, repeat)
    loaded.latency_s = min(latencies_s)
    return latencies_s


def outputs(workload: Workload, library: Path, target: Target) -> list[npt.NDArray[Any]]:
    """Every argument of the workload after one run on the same inputs, to compare one candidate with another."""
    return results(_load(workload, library, target))


def results(loaded: Loaded) -> list[npt.NDArray[Any]]:
    """``outputs`` with what is loaded, here or on a remote device."""
    loaded.library["main"](*loaded.arguments)
    loaded.device.sync()
    return [argument.numpy() for argument in loaded.arguments]


@dataclass
class Loaded:
    """A library, the device it runs on, and tensors there to call its ``main`` with: TVM's objects, local or remote."""

    library: Any
    device: Any
    arguments: list[Any]
    latency_s: float | None = None
    """As far as it was timed: how many runs make up a repeat."""


def _load(workload: Workload, library: Path, target: Target) -> Loaded:
    warm_up(target)
    return _loaded(module_of(workload), library, target)


@lru_cache(maxsize=1)
def _loaded(module: tvm.IRModule, library: Path, target: Target) -> Loaded:
    """Kept for the next look at the same candidate: no two of them have a path in common."""
    import tvm

    device = tvm.runtime.device_from_target(tvm_target(target), 0)
    return Loaded(tvm.runtime.load_module(str(library)), device, arguments(module, device))


def arguments(module: tvm.IRModule, device: Any) -> list[Any]:
    """Tensors on the device for each parameter of a workload's module, the same in every call."""
    import tvm

    return [tvm.runtime.tensor(value, device) for value in _inputs(module)]


@lru_cache(maxsize=1)
def _inputs(module: tvm.IRModule) -> list[npt.NDArray[Any]]:
    """Values of all arguments, kept for the next candidate of the same workload."""
    rng = np.random.default_rng(INPUT_SEED)
    return [
        random_tensor(rng, [int(extent) for extent in param.ty.shape], str(param.ty.dtype))
        for param in module["main"].params
    ]


def random_tensor(rng: np.random.Generator, shape: list[int], dtype: str) -> npt.NDArray[Any]:
    """A tensor that every operator takes, of an element type by TVM's name."""
    # Integers may be indices, so they stay within the shortest axis worth indexing. Floats stay off zero and below one:
    # no denormals, no logarithm of a negative, no overflow in a long sum.
    kind = np.dtype(dtype)
    if kind.kind in "iub":
        return rng.integers(0, 2, shape).astype(kind)
    return (rng.random(shape, dtype=np.float32) * 0.9 + 0.1).astype(kind)
