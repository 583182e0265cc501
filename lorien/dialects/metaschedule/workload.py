"""Between Lorien's records and TVM's objects. Nothing here imports TVM before it is used."""

from __future__ import annotations

import gc
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.graph import module_graph
from lorien.errors import BadInput, MissingExtra, VersionClash
from lorien.machine import physical_cores
from lorien.records import Candidate, Json, Workload
from lorien.target import Target

if TYPE_CHECKING:
    import tvm

DIALECT = "metaschedule"
IDENTITY_KIND = "structural"
"""How the hash in an identity tells modules apart: TVM's module equality of that name."""

NAIVE = Candidate([[], []])
"""The loops as written: a trace without instructions."""

PINNED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
BUILD = f"tvm {PINNED['apache-tvm']}"


@lru_cache(maxsize=1)
def require_tvm() -> None:
    """Import the pinned TVM. Call it before the first ``import tvm`` of a process.

    Other pairs of the two packages import and then die with a segmentation fault, so their metadata is asked first.

    Raises
    ------
    MissingExtra
        TVM is not installed.
    VersionClash
        The two packages are not the pinned pair.
    """
    try:
        found = {package: version(package) for package in PINNED}
    except PackageNotFoundError as error:
        raise MissingExtra(str(error.name), "tvm") from None
    if found != PINNED:
        names = " with ".join(f"{package} {release}" for package, release in found.items())
        pins = " ".join(f"'{package}=={release}'" for package, release in PINNED.items())
        raise VersionClash(f"{names}: this pair is not known to work and may crash. Fix: pip install {pins}")
    _import_tvm()


def _import_tvm() -> None:
    """In four fifths of the time: TVM lists its functions anew for each of 52 modules, and none of it is garbage."""
    from tvm_ffi import registry

    listed, collecting = registry.list_global_func_names, gc.isenabled()
    registry.list_global_func_names = cache(listed)
    gc.disable()
    try:
        import tvm  # noqa: F401
    finally:
        registry.list_global_func_names = listed
        if collecting:
            gc.enable()


@lru_cache(maxsize=64)
def tvm_target(target: Target) -> tvm.target.Target:
    """The target as TVM's object. Raises ``BadInput`` when TVM does not know an attribute of it."""
    require_tvm()
    import tvm

    try:
        return tvm.target.Target(target.to_json())
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise BadInput(f"TVM does not accept the target {target.key}: {reason}") from None


def native_target() -> Target:
    """The CPU of this machine: LLVM's name for it and the physical cores this process may run on."""
    require_tvm()
    from tvm.target.codegen import llvm_get_system_cpu

    return Target.parse({"kind": "llvm", "mcpu": str(llvm_get_system_cpu()), "num-cores": physical_cores()})


def workload_of(mod: tvm.IRModule, name: str, *, weight: float = 1.0, networks: tuple[str, ...] = ()) -> Workload:
    """A module as a workload. Its definition is the text that TVM's own ``JSONDatabase`` would write.

    Parameters
    ----------
    mod : IRModule
        One function named ``main``, as MetaSchedule extracts it.
    name, weight, networks
        Annotations of ``Workload``.
    """
    require_tvm()
    from tvm.s_tir import meta_schedule as ms

    structural_hash, definition = ms.database.Workload(mod).as_json()
    return Workload(
        dialect=DIALECT,
        name=name,
        identity=[IDENTITY_KIND, structural_hash],
        definition=definition,
        flop=flop_of(mod),
        weight=weight,
        networks=networks,
    )


def flop_of(mod: tvm.IRModule) -> float | None:
    """TVM's count of the floating-point operations of one run; None where it cannot count or there are none."""
    from tvm.s_tir.analysis import estimate_tir_flops

    try:
        return float(estimate_tir_flops(mod)) or None
    except (RuntimeError, ValueError, TypeError):
        return None


def module_of(workload: Workload) -> tvm.IRModule:
    """The module a workload was made from, kept for the next call.

    Raises
    ------
    BadInput
        The workload has no definition, is of another dialect, or TVM cannot read its definition.
    """
    if workload.dialect != DIALECT or not workload.definition:
        raise BadInput(
            f"workload {workload.name!r} ({workload.dialect}) holds no TVM module. Fix: write it with lorien extract"
        )
    return load_module(str(workload.identity[1]), workload.definition)


@lru_cache(maxsize=256)
def load_module(structural_hash: str, definition: str) -> tvm.IRModule:
    """The module in a line of ``database_workload.json``. Raises ``BadInput`` when TVM cannot read it."""
    require_tvm()
    from tvm.s_tir import meta_schedule as ms

    try:
        module_graph(definition)
        return ms.database.Workload.from_json([structural_hash, definition]).mod
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"{BUILD} cannot read the module of workload {structural_hash}: {reason[:200]}. "
            "Fix: extract the workload again with this TVM"
        ) from None


def schedule_of(workload: Workload, candidate: Candidate) -> tvm.s_tir.Schedule:
    """The candidate's trace replayed on the workload's module; the module as it is when there is no schedule.

    Raises
    ------
    BadInput
        The workload cannot be read.
    RuntimeError, ValueError, TypeError
        TVM's own, when the trace does not fit the module. Intrinsics that the trace names must be registered before.
    """
    return replay(module_of(workload), candidate.schedule)


def replay(mod: tvm.IRModule, trace: Json) -> tvm.s_tir.Schedule:
    """A traced schedule of ``mod`` after the instructions of a JSON trace; None applies nothing."""
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import Trace

    # No error rendering: to print the module of a trace that does not fit takes longer than to replay ten that do.
    schedule = Schedule(mod, seed=1, debug_mask="none", error_render_level="none")
    if trace is not None:
        Trace.apply_json_to_schedule(trace, schedule)
    return schedule


def candidate_of(schedule: tvm.s_tir.Schedule, score: float | None = None) -> Candidate:
    """A TVM schedule as a candidate: its trace in the JSON form of ``database_tuning_record.json``."""
    return candidate_of_trace(schedule.trace, score)


def candidate_of_trace(trace: tvm.s_tir.schedule.Trace, score: float | None = None) -> Candidate:
    """As ``candidate_of``, where the trace is all that was kept of a schedule."""
    return Candidate(_plain(trace.as_json()), score)


def _plain(value: Any) -> Json:
    """Lists, texts and numbers; booleans as 0 and 1, as TVM writes them to logs: a candidate has one key only."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value  # IntImm, FloatImm
