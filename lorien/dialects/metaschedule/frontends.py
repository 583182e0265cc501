"""Model files into Relax, one front end per format: ONNX, PyTorch's exported programs, Relax itself."""

from __future__ import annotations

import logging
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule.onnx_convert import (
    MAX_PASSES,
    Unconvertible,
    convert,
    cut,
    reason_of,
    warnings_to_log,
)
from lorien.dialects.metaschedule.onnx_graph import is_numeric
from lorien.dialects.metaschedule.onnx_prepare import prepare
from lorien.dialects.metaschedule.workload import BUILD, require_tvm
from lorien.errors import BadInput, MissingExtra
from lorien.records import Layout

if TYPE_CHECKING:
    import tvm

logger = logging.getLogger(__name__)

_LFS_POINTER = b"version https://git-lfs.github.com/"
Shapes = dict[str, tuple[int, ...]]
_NAMED = 8
"""Operators that one message names."""

FORMATS = {
    ".onnx": "an ONNX model",
    ".pt2": "a program saved by torch.export.save",
    ".json": "a Relax module saved by tvm.ir.save_json",
    ".py": "a Python file with one Relax module",
}
RUNS_CODE = {".pt2": "torch.export.load unpickles parts of it", ".py": "it is run"}
"""Formats whose loading executes what the file holds, and how."""


def load_model(
    model: Path,
    shapes: Shapes | None = None,
    *,
    allow_code: bool = False,
    cut: bool = False,
    layout: Layout = "auto",
) -> tvm.IRModule:
    """A model file as a Relax module with static inputs, not yet lowered.

    Parameters
    ----------
    model : Path
        The suffix tells the format; see ``FORMATS``.
    shapes : dict of str to tuple of int, optional
        Static shapes by input name, needed for the inputs the model leaves open. A name that is no input is warned of.
    allow_code : bool
        Also load the formats in ``RUNS_CODE``.
    cut : bool
        Leave out of an ONNX model the operators that TVM's front end lacks or fails on, with a warning that names them.
        What is left holds the model's other kernels, and is no model to run.
    layout : Layout
        How the module will be lowered.

    Raises
    ------
    BadInput
        No such format, a broken file, code that is not allowed, an open input without a shape, constants that take too
        much memory, or an operator that TVM's front end lacks or fails on; the message names it.
    MissingExtra
        The package that reads the format is not installed.
    """
    require_tvm()
    if model.suffix not in FORMATS:
        known = "; ".join(f"*{suffix}, {what}" for suffix, what in FORMATS.items())
        raise BadInput(f"{model}: no model format that can be read. Fix: give one of {known}")
    if not model.is_file():
        raise BadInput(f"{model}: No such file. Fix: give the path of {FORMATS[model.suffix]}")
    if model.suffix in RUNS_CODE and not allow_code:
        raise BadInput(
            f"{model} can run any code on this machine when it is loaded: {RUNS_CODE[model.suffix]}. "
            "Fix: give --allow-code if you trust who made it, else export the model to ONNX"
        )
    if model.suffix == ".onnx":
        return _from_onnx(model, shapes or {}, cut, layout)
    read = {".pt2": _read_exported_program, ".json": _read_json, ".py": _read_python}[model.suffix]
    return _bind_shapes(model, read(model), shapes or {})


def _from_onnx(model: Path, shapes: Shapes, cut: bool, layout: Layout) -> tvm.IRModule:
    proto = _read_onnx(model)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = {
        value.name: value.type.tensor_type
        for value in proto.graph.input
        if value.name not in constants and is_numeric(value.type)
    }
    _check_shapes(model, {name: _onnx_dims(tensor) for name, tensor in inputs.items()}, shapes)
    try:
        prepared = prepare(proto, {name: shape for name, shape in shapes.items() if name in inputs}, runs=not cut)
    except BadInput as error:
        raise BadInput(f"{model}: {error}") from None
    except Exception as error:  # onnx.load takes any graph, nodes without their inputs among them
        reason = reason_of(error)
        raise BadInput(
            f"{model} is not a valid ONNX graph{': ' * bool(reason)}{reason}. Fix: export it again"
        ) from error
    try:
        run = partial(convert, as_operators=layout == "auto")
        return _convert_rest(model, prepared, run) if cut else run(prepared)
    except Unconvertible as error:
        raise BadInput(_refusal(model, error)) from error
    except BadInput as error:
        raise BadInput(f"{model}: {error}") from error


def _convert_rest(model: Path, prepared: Any, run: Callable[[Any], tvm.IRModule]) -> tvm.IRModule:
    """What of a model can be converted, with a warning about what cannot."""
    for _ in range(MAX_PASSES):
        try:
            return run(prepared)
        except Unconvertible as error:
            left = cut(prepared, [*error.lacking, *error.failing])
            if left is None:
                raise
            prepared, behind = left
            if error.lacking:
                names = ", ".join(sorted({failure.op_type for failure in error.lacking}))
                logger.warning("%s: TVM has no conversion for the ONNX operators %s; left out", model, names)
            if error.failing:
                names = ", ".join(map(str, error.failing[:_NAMED]))
                more = f" and {len(error.failing) - _NAMED} more" * (len(error.failing) > _NAMED)
                logger.warning("%s: TVM cannot convert the ONNX operators %s%s; left out", model, names, more)
            if behind:
                logger.warning(
                    "%s: %d operators behind them have inputs whose shapes are not known; left out", model, len(behind)
                )
    raise BadInput(f"TVM's front end still fails without {MAX_PASSES} sets of operators. Fix: export the model again")


def _refusal(model: Path, error: Unconvertible) -> str:
    if error.lacking:
        return _unsupported(model, "ONNX operators", ", ".join(sorted({failure.op_type for failure in error.lacking})))
    return (
        f"{model}: TVM cannot convert the ONNX operators {', '.join(map(str, error.failing[:_NAMED]))}. "
        "Fix: export the model without them, or extract its other parts as models of their own"
    )


def _onnx_dims(tensor: Any) -> list[int | str] | None:
    # A dimension is given by dim_value; a name (dim_param), nothing at all, or 0 leave it open.
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in tensor.shape.dim]


def _read_onnx(model: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "tvm") from None
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise BadInput(f"{model} is not an ONNX model, or not whole: {error}. Fix: {_whole_again(model)}") from None
    if not proto.graph.node:
        raise BadInput(f"{model} holds no ONNX graph: it is empty or cut short. Fix: {_whole_again(model)}")
    try:
        onnx.load_external_data_for_model(proto, str(model.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        # A file of weights that is missing, short (a pointer of Git LFS) or elsewhere on this machine.
        raise BadInput(f"{model} is not whole: {error}. Fix: copy it with its data files again") from None
    return proto


def _whole_again(model: Path) -> str:
    with model.open("rb") as file:
        pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    return "it is a pointer of Git LFS: git lfs pull" if pointer else "export it, or copy it with its data files, again"


def _read_exported_program(model: Path) -> tvm.IRModule:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "pytorch") from None
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings_to_log():
            program = torch.export.load(model)
    except Exception as error:  # zip, JSON, pickle and schema errors alike
        raise BadInput(
            f"{model} is no exported program that torch {torch.__version__} reads: {_reason(error)}. "
            "Fix: save it again with torch.export.save"
        ) from error
    try:
        with warnings_to_log():
            return from_exported_program(program)
    except Exception as error:  # a converter may raise anything on a graph it did not expect
        unsupported = str(error).partition("Unsupported function types")[2].strip(" []{}")
        if unsupported:
            raise BadInput(_unsupported(model, "PyTorch operators", unsupported)) from None
        raise BadInput(
            f"{model}: TVM cannot convert the program: {_reason(error)}. Fix: export it without that operator"
        ) from error


def _read_json(model: Path) -> tvm.IRModule:
    import tvm

    try:
        module = tvm.ir.load_json(model.read_text())
    except Exception as error:  # bytes that are no text, text that is no JSON, JSON that is no node of TVM
        raise BadInput(
            f"{model} is no module that {BUILD} reads: {_reason(error)}. Fix: save it with tvm.ir.save_json"
        ) from None
    if not _is_relax(module):
        raise BadInput(f"{model} holds no Relax module with a function main. Fix: save the IRModule of the model")
    return module


def _read_python(model: Path) -> tvm.IRModule:
    try:
        names = runpy.run_path(str(model), run_name="lorien_model")
    except (Exception, SystemExit) as error:  # the file's own
        raise BadInput(f"{model} does not run: {_reason(error)}. Fix: run it with python first") from error
    modules = {name: value for name, value in names.items() if _is_relax(value)}
    if len(modules) != 1:
        raise BadInput(
            f"{model} has {len(modules)} Relax modules with a function main ({', '.join(modules) or 'none'}). "
            "Fix: leave exactly one at its top level"
        )
    return modules.popitem()[1]


def _is_relax(value: Any) -> bool:
    import tvm

    return (
        isinstance(value, tvm.IRModule)
        and "main" in [var.name_hint for var in value.get_global_vars()]
        and isinstance(value["main"], tvm.relax.Function)
    )


def _bind_shapes(model: Path, module: tvm.IRModule, shapes: Shapes) -> tvm.IRModule:
    """The module with the open dimensions of its inputs replaced by those of the shapes given."""
    from tvm import relax, tirx

    inputs = {
        param.name: None if info.shape is None else list(info.shape)
        for param in module["main"].params
        if isinstance(info := param.ty, relax.TensorType)
    }
    plain = {
        name: None if dims is None else [int(d) if isinstance(d, tirx.IntImm) else str(d) for d in dims]
        for name, dims in inputs.items()
    }
    _check_shapes(model, plain, shapes)
    bound: dict[Any, int] = {}
    for name, dims in inputs.items():
        for dim, size in zip(dims or (), shapes.get(name, ()), strict=False):
            if isinstance(dim, tirx.IntImm) or dim in bound:
                known = int(bound.get(dim, dim))
                if known != size:
                    raise BadInput(f"{model}: --shape {name} gives {size} where the model has {known}")
            elif isinstance(dim, tirx.Var):
                bound[dim] = size
    return relax.transform.BindSymbolicVars(bound, "main")(module) if bound else module


def _check_shapes(model: Path, inputs: dict[str, list[int | str] | None], shapes: Shapes) -> None:
    """Raise ``BadInput`` for an input that stays open. Dimensions are sizes, or names of open ones; None: no rank."""
    for name in shapes.keys() - inputs.keys():
        logger.warning("%s has no input %s; its inputs: %s", model, name, ", ".join(inputs) or "none")
    for name, dims in inputs.items():
        found = "?" if dims is None else ",".join(str(dim) or "?" for dim in dims)
        given = shapes.get(name)
        if given is not None and dims is not None and len(given) != len(dims):
            raise BadInput(f"{model}: input {name} has {len(dims)} dimensions ({found}), --shape gives {len(given)}")
        if given is None and (dims is None or not all(isinstance(dim, int) for dim in dims)):
            example = "N,N,..." if dims is None else ",".join(str(d) if isinstance(d, int) else "N" for d in dims)
            raise BadInput(
                f"{model}: input {name} has the open shape {found}. Fix: --shape {name}={example} with numbers for N"
            )


def _unsupported(model: Path, kind: str, names: str) -> str:
    return (
        f"{model}: TVM has no conversion for the {kind} {names.strip()}. "
        "Fix: export the model without them, or extract its other parts as models of their own"
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip().splitlines()[-1]
