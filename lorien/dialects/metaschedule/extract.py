"""Tuning tasks of a model: Relax lowered and fused as it is compiled, one workload per distinct kernel."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorien.dialects.metaschedule.blocks import block_channels
from lorien.dialects.metaschedule.frontends import Shapes, load_model
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.limits import check_folding, check_ranges
from lorien.dialects.metaschedule.lowering import failing_operators, without
from lorien.dialects.metaschedule.onnx_convert import reason_of
from lorien.dialects.metaschedule.simplify import simplify
from lorien.dialects.metaschedule.vector_math import count_flop, legalizations
from lorien.dialects.metaschedule.vectors import vectors_of
from lorien.dialects.metaschedule.workload import tvm_target, workload_of
from lorien.errors import BadInput
from lorien.records import Layout, Workload
from lorien.target import Target

if TYPE_CHECKING:
    import tvm

logger = logging.getLogger(__name__)

HOST = Target("llvm")


def extract_workloads(
    model: Path,
    target: Target,
    shapes: Shapes | None = None,
    *,
    allow_code: bool = False,
    layout: Layout = "auto",
) -> list[Workload]:
    """Distinct workloads of a model, in the order MetaSchedule finds them.

    Operators that TVM cannot convert or lower are warned of by name; the workloads of the others are kept.

    Parameters
    ----------
    model : Path
        A file that ``load_model`` reads; its stem names the network.
    target : Target
        What it is lowered for.
    shapes, allow_code
        See ``load_model``.
    layout : Layout
        ``auto`` or ``plain``; the kernels of one are not those of the other.

    Raises
    ------
    BadInput, MissingExtra
        As ``load_model`` does; ``BadInput`` also when nothing is left, or its constants take too much to compute.
    """
    module = load_model(model, shapes, allow_code=allow_code, cut=True, layout=layout)
    return workloads_in(lower_model(module, target, str(model), layout, cut=True), target, model.stem)


def lower_model(
    module: tvm.IRModule, target: Target, model: str, layout: Layout = "auto", *, cut: bool = False
) -> tvm.IRModule:
    """``lower``, with ``BadInput`` that names the model and the operators where TVM cannot.

    With ``cut`` these operators are left out, with a warning. What is left holds the model's other kernels, and is no
    model to run.
    """
    try:
        return lower(module, target, layout)
    except BadInput as error:
        raise BadInput(f"{model}: {error}") from None
    except Exception as error:  # legalizing calls operator code that checks its arguments as it likes
        failing = failing_operators(module, partial(lower, target=target, layout=layout))
        names = ", ".join(dict.fromkeys(name for name, _ in failing.values()))
        reason = reason_of(error)
        said = (
            f"{model}: TVM cannot lower {f'the operators {names}' if names else 'it'}{f' ({reason})' if reason else ''}"
        )
        if not cut or not failing:
            raise BadInput(f"{said}. Fix: export it without {'them' if names else 'its rare operators'}") from error
    logger.warning("%s; left out", said)
    return lower_model(without(module, failing), target, model, layout)


def workloads_in(lowered: tvm.IRModule, target: Target, network: str) -> list[Workload]:
    """Distinct workloads of a lowered module, in the order MetaSchedule finds them."""
    from tvm.s_tir.meta_schedule.relax_integration import extract_tasks

    workloads = []
    for task in extract_tasks(lowered, tvm_target(target), params={}):
        kernel = task.dispatched[0]
        if not _is_static(kernel):
            logger.warning(
                "%s: %s has a shape known only at run time and cannot be tuned; left out", network, task.task_name
            )
            continue
        workloads.append(workload_of(kernel, task.task_name, weight=float(task.weight), networks=(network,)))
    return workloads


def lower(module: tvm.IRModule, target: Target, layout: Layout = "auto") -> tvm.IRModule:
    """A Relax module as fused kernels.

    With the layout ``plain`` they are those that ``compile_relax`` tunes. With ``auto`` the model is simplified first,
    and for a CPU its channels are in blocks as long as the target's vectors.

    Raises
    ------
    BadInput
        To fold its constants would take too much memory or time. The message lacks the path.
    Exception
        TVM's own, for an operator that cannot be lowered.
    """
    suits_cpu = layout == "auto" and target.kind == "llvm"
    with tvm_target(target):
        check_ranges(module)
        if layout == "auto":
            module = simplify(module)
        if suits_cpu:
            module = block_channels(module, vectors_of(target).lanes)
        return fused_kernels(module, vector_math=suits_cpu)


def fused_kernels(module: tvm.IRModule, *, vector_math: bool) -> tvm.IRModule:
    """A Relax module legalized and fused as it stands, for the target of the scope.

    With ``vector_math``, exp, tanh and the like become the kernels of ``vector_math.legalizations``. Raises as
    ``lower`` does.
    """
    from tvm import relax
    from tvm.ir.transform import Sequential

    # FoldConstant builds for the host, whose build imports the intrinsics of all devices unless some are there: 27 s.
    register_intrinsics(HOST)
    own = legalizations() if vector_math else None
    legalized = Sequential([relax.transform.DecomposeOpsForInference(), relax.transform.LegalizeOps(own)])(module)
    check_folding(legalized)
    fuse = Sequential(
        [
            relax.transform.FoldConstant(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            count_flop(),
        ]
    )
    return fuse(legalized)


def _is_static(module: tvm.IRModule) -> bool:
    from tvm.tirx import IntImm

    # A scalar parameter is a size: it has no shape, and a value only at run time.
    return all(
        isinstance(extent, IntImm) for param in module["main"].params for extent in getattr(param.ty, "shape", (None,))
    )
