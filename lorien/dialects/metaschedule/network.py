"""A whole model through TVM: lowered once, built with the schedules chosen for its workloads, run by the Relax VM."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import ModelInput
from lorien.dialects.metaschedule.compile import INPUT_SEED, random_tensor, warm_up
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.extract import lower_model, workloads_in
from lorien.dialects.metaschedule.workload import NAIVE, module_of, replay, schedule_of, tvm_target
from lorien.errors import BadInput
from lorien.records import Candidate, Layout, Workload
from lorien.target import Target

if TYPE_CHECKING:
    import tvm


_SAID_CHARS = 300


class Network:
    """A Relax module on its way to a library. Implements ``lorien.dialects.base.Model``.

    Parameters
    ----------
    module : IRModule
        As a front end makes it, not lowered.
    target : Target
    name : str
        Network that the workloads are annotated with.
    layout : Layout

    Raises
    ------
    BadInput
        An operator cannot be lowered, or an input has a shape known only at run time.
    """

    def __init__(self, module: tvm.IRModule, target: Target, name: str, layout: Layout = "auto") -> None:
        warm_up(target)
        self._module, self._target, self._name, self._layout = module, target, name, layout
        self.inputs = tuple(_input(param, name) for param in module["main"].params)
        self._lowered = lower_model(module, target, name, layout)
        self.workloads = workloads_in(self._lowered, target, name)

    def refusal(self, workload: Workload, candidate: Candidate) -> str:
        """See ``Model``. Names the first instruction of the trace that the workload does not take."""
        try:
            schedule_of(workload, candidate)
        except (RuntimeError, ValueError, TypeError) as error:
            return _failing_instruction(workload, candidate.schedule) or str(error)
        return ""

    def build(self, schedules: Mapping[str, Candidate], library: Path) -> None:
        """See ``Model``. Raises ``BadInput`` naming an operator that TVM cannot compile."""
        from tvm import relax
        from tvm.ir.transform import PassContext
        from tvm.s_tir import meta_schedule as ms

        device = tvm_target(self._target)
        database = ms.database.MemoryDatabase()
        for workload in self.workloads:
            trace = self._trace(workload, schedules.get(workload.key, Candidate(None)))
            if trace is not None:
                entry = database.commit_workload(module_of(workload))
                # One record each: any latency makes it the best.
                database.commit_tuning_record(ms.database.TuningRecord(trace, entry, [1.0], device, []))
        try:
            with device, database, PassContext(opt_level=3):
                executable = relax.build(self._lowered, target=device, relax_pipeline=_passes(device))
        except Exception as error:  # a compiler raises anything
            raise BadInput(_uncompiled(error)) from error
        # Beside the library: TVM's own folder would stay if this process is killed.
        executable.export_library(str(library), workspace_dir=str(library.parent))

    def build_naive(self, library: Path) -> None:
        """See ``Model``. Where TVM lowers the model in blocks alone, it is the loops of these kernels as written."""
        plain = self
        if self._layout != "plain":
            with suppress(BadInput):
                plain = Network(self._module, self._target, self._name, "plain")
        plain.build({workload.key: NAIVE for workload in plain.workloads}, library)

    def _trace(self, workload: Workload, candidate: Candidate) -> tvm.s_tir.schedule.Trace | None:
        """The trace to apply to the workload's kernel; None leaves its loops to TVM."""
        if candidate.schedule is not None:
            trace = schedule_of(workload, candidate).trace
        elif self._target.kind == "llvm":
            trace = cpu_schedule(module_of(workload), self._target).trace
        else:
            return None
        return trace if trace.insts else None  # a kernel with a record is not scheduled by TVM's rules for GPUs


def _passes(device: tvm.target.Target) -> tvm.ir.transform.Pass:
    """From fused kernels to what the virtual machine takes; within the scope of a target and a database."""
    from tvm import relax
    from tvm.ir.transform import Sequential
    from tvm.relax.pipeline import BackendDispatcher
    from tvm.s_tir import dlight

    # LegalizeOps leaves sorting, scans and sampling to these: they know what the target's runtime has of it.
    passes = [relax.backend.DispatchSampling(), relax.backend.DispatchSortScan()]
    passes.append(relax.transform.MetaScheduleApplyDatabase())
    if BackendDispatcher.is_gpu_target(device):
        gpu = dlight.gpu
        rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
        passes.append(dlight.ApplyDefaultSchedule(*rules))
    # As compile_relax ends; its beginning, which fuses, is behind us.
    passes += [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return Sequential(passes)


def _uncompiled(error: Exception) -> str:
    """What TVM could not compile: an operator that no pass has lowered, or what else it says."""
    said = str(error).strip() or type(error).__name__
    left_over = re.search(r"^Offending call:\s*R\.([\w.]+)", said, re.MULTILINE)
    if left_over is not None:
        return (
            f"TVM has no implementation of the Relax operator {left_over[1]} on this target; it was left over when all "
            "others were lowered. Fix: export the model without it"
        )
    return f"TVM cannot compile the model: {type(error).__name__} {' '.join(said.split())[-_SAID_CHARS:]}"


def run(
    library: Path, inputs: Sequence[ModelInput], target: Target, *, repeat: int, min_repeat_s: float
) -> tuple[list[npt.NDArray[Any]], list[float]]:
    """See ``ModelDialect.run_model``."""
    warm_up(target)
    import tvm
    from tvm import relax

    device = tvm.runtime.device_from_target(tvm_target(target), 0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
    rng = np.random.default_rng(INPUT_SEED)
    arguments = [tvm.runtime.tensor(random_tensor(rng, list(i.shape), i.dtype), device) for i in inputs]
    outputs = [tensor.numpy() for tensor in _tensors(machine["main"](*arguments))]
    if not repeat:
        return outputs, []
    evaluator = machine.time_evaluator(
        "main", device, number=1, repeat=repeat, min_repeat_ms=math.ceil(min_repeat_s * 1e3)
    )
    return outputs, [float(latency_s) for latency_s in evaluator(*arguments).results]


def _input(param: tvm.relax.Var, model: str) -> ModelInput:
    from tvm import relax, tirx

    kind = param.ty
    if not isinstance(kind, relax.TensorType) or kind.shape is None:
        raise BadInput(f"{model}: input {param.name} is no tensor of known shape. Fix: bind it before building")
    if not all(isinstance(extent, tirx.IntImm) for extent in kind.shape):
        raise BadInput(
            f"{model}: input {param.name} has the open shape {kind.shape}. Fix: --shape {param.name}=N,N,..."
        )
    return ModelInput(str(param.name), tuple(int(extent) for extent in kind.shape), str(kind.dtype))


def _failing_instruction(workload: Workload, trace: Any) -> str:
    """The first instruction that the trace cannot be replayed up to, found by halving."""
    try:
        instructions, decisions = trace
        fits, fails = 0, len(instructions)
    except (TypeError, ValueError):
        return "it is no trace of TVM"
    module, reason = module_of(workload), ""
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            replay(module, [instructions[:middle], [entry for entry in decisions if entry[0] < middle]])
            fits = middle
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            fails, reason = middle, str(error)
    if not fails:
        return ""
    name = instructions[fails - 1][0] if instructions[fails - 1] else "?"
    last = next((line.strip() for line in reversed(reason.splitlines()) if line.strip()), "")
    return f"instruction {fails} of {len(instructions)}, {name}" + (f": {last[:200]}" if last else "")


def _tensors(value: Any) -> list[Any]:
    """The tensors of an output, which may be tuples in tuples."""
    import tvm

    return [value] if isinstance(value, tvm.runtime.Tensor) else [t for part in value for t in _tensors(part)]
