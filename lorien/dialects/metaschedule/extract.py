"""Tuning tasks of a model: ONNX into Relax, lowered and fused as Relax compiles it, a workload per distinct kernel."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.workload import require_tvm, tvm_target, workload_of
from lorien.errors import BadInput, MissingExtra
from lorien.records import Workload
from lorien.target import Target

if TYPE_CHECKING:
    import tvm

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]


def extract_workloads(model: Path, target: Target, shapes: Shapes | None = None) -> list[Workload]:
    """Distinct workloads of an ONNX model, in the order MetaSchedule finds them.

    Parameters
    ----------
    model : Path
        A file whose name ends in ``.onnx``; its stem names the network.
    target : Target
        What it is lowered for.
    shapes : dict of str to tuple of int, optional
        Static shapes of inputs, by name; those the model leaves open must be here.

    Raises
    ------
    BadInput
        Not an ONNX model, an input without a static shape, or an operator that TVM's front end lacks.
    """
    from tvm.s_tir.meta_schedule.relax_integration import extract_tasks

    device = tvm_target(target)
    workloads: dict[str, Workload] = {}
    for task in extract_tasks(lower(load_model(model, shapes), target), device, params={}):
        module = task.dispatched[0]
        if not _is_static(module):
            logger.warning(
                "%s: %s has a shape known only at run time and cannot be tuned; left out", model, task.task_name
            )
            continue
        workload = workload_of(module, task.task_name, weight=float(task.weight), networks=(model.stem,))
        workloads[workload.key] = workload
    return list(workloads.values())


def load_model(model: Path, shapes: Shapes | None = None) -> tvm.IRModule:
    """A model file as the Relax module its front end gives. Raises ``BadInput`` as ``extract_workloads`` does."""
    require_tvm()
    if model.suffix != ".onnx":
        raise BadInput(f"{model}: no model format that can be read. Fix: export the model to a file named *.onnx")
    proto = _read_onnx(model)
    _check_inputs(model, proto, shapes or {})

    from tvm.error import OpNotImplemented
    from tvm.relax.frontend.onnx import from_onnx

    said = io.StringIO()  # the front end prints the operator it fails on instead of raising it
    try:
        with contextlib.redirect_stdout(said), _warnings_to_log():
            return from_onnx(proto, shape_dict={name: list(shape) for name, shape in (shapes or {}).items()})
    except OpNotImplemented as error:
        names = str(error).rpartition(":")[2].strip()
        raise BadInput(
            f"{model}: TVM has no conversion for the ONNX operators {names}. "
            "Fix: export the model without them, or extract its other parts as models of their own"
        ) from None
    except Exception as error:  # a converter may raise anything on a graph it did not expect
        hint = said.getvalue().partition(", with inputs")[0].replace("Error converting", "").strip()
        reason = f"{type(error).__name__} {error}".strip().splitlines()[-1]
        raise BadInput(
            f"{model}: TVM cannot convert the ONNX {hint or 'graph'}: {reason}. "
            "Fix: give static shapes with --shape, or simplify the model before (onnxsim)"
        ) from error


def lower(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """A Relax module as fused kernels: after these passes the tasks found are those that ``compile_relax`` looks up."""
    from tvm import relax
    from tvm.ir.transform import Sequential

    passes = Sequential(
        [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.LegalizeOps(),
            relax.transform.FoldConstant(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        ]
    )
    with tvm_target(target):
        return passes(module)


def _read_onnx(model: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "tvm") from None
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(model))
    except OSError as error:
        raise BadInput(f"{model}: {error.strerror or error}. Fix: give the path of an ONNX model") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BadInput(
            f"{model} is not an ONNX model, or is cut short ({error}). Fix: export it, or copy it, again"
        ) from None
    if not proto.graph.node:
        raise BadInput(f"{model} holds no ONNX graph: it is empty or cut short. Fix: export it, or copy it, again")
    return proto


def _check_inputs(model: Path, proto: Any, shapes: Shapes) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name: value.type.tensor_type for value in proto.graph.input if value.name not in constants}
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise BadInput(f"{model} has no input {', '.join(unknown)}; its inputs: {', '.join(inputs)}")
    for name, tensor in inputs.items():
        # A dimension is given by dim_value; a name (dim_param), nothing at all, or 0 leave it open.
        is_open = not tensor.HasField("shape") or any(dim.dim_value <= 0 for dim in tensor.shape.dim)
        if is_open and name not in shapes:
            found = ",".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim) or "?"
            raise BadInput(f"{model}: input {name} has the open shape {found}. Fix: --shape {name}=1,3,224,224")


def _is_static(module: tvm.IRModule) -> bool:
    from tvm.tirx import IntImm

    return all(isinstance(extent, IntImm) for param in module["main"].params for extent in param.ty.shape)


@contextlib.contextmanager
def _warnings_to_log() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        logger.debug("%s", warning.message)
