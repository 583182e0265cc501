"""How much may be computed while a model is read and lowered: bytes and operations of what depends on constants only.

The weights in a model's file are its own business. What is computed from them, or from nothing, is bounded by a fixed
amount and a multiple of them: a file of 100 bytes cannot ask for the memory of a machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorien.errors import BadInput

if TYPE_CHECKING:
    import tvm

BASE_BYTES = 128 << 20
WEIGHTS_FACTOR = 12
"""Int8 weights to float32 are four times their bytes, in three steps (cast, subtract, multiply)."""
FILLED_FACTOR = 3
FILLED_BYTES = "lorien.filled_bytes"
"""Attribute of a module: bytes of weights that its file fills with one value."""
FILLED_WEIGHTS = "lorien.filled_weights"
"""Attribute of a module of which only the kernels are wanted: parameters of main that are such weights, by index."""
MAX_OPERATIONS = 5_000_000_000
"""Some 10 s in code that is not scheduled."""


def check_bytes(needed: int, weights: int, filled: int, what: str) -> None:
    """Raise ``BadInput`` when computed constants need more than their limit, all in bytes."""
    limit = BASE_BYTES + WEIGHTS_FACTOR * weights + FILLED_FACTOR * filled
    if needed > limit:
        raise BadInput(
            f"its computed constants take {readable(needed)}, {what}; the limit is {readable(limit)} for "
            f"{readable(weights)} of weights. Fix: make what is that large an input of the model, or a smaller size"
        )


def readable(size_bytes: int) -> str:
    """Bytes for people: ``400 MB``."""
    size, unit = float(min(size_bytes, 10**30)), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if size < 1000 else f"over 1000 {unit}"


def filled_weights(module: tvm.IRModule) -> set[Any]:
    """The parameters of main that stand for weights which the file fills with one value."""
    positions = module.attrs.get(FILLED_WEIGHTS, ()) if module.attrs else ()
    return {module["main"].params[int(position)] for position in positions}


def check_folding(module: tvm.IRModule) -> None:
    """Raise ``BadInput`` when ``FoldConstant`` would compute too much in a legalized module."""
    from tvm import relax

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            _Folding(module).check(function)


def check_ranges(module: tvm.IRModule) -> None:
    """Raise ``BadInput`` when ``LegalizeOps`` would compute too much: it makes constants of ranges."""
    from tvm import relax

    made: list[int] = []

    def count(expr: Any) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.arange":
            made.append(_bytes(expr.ty) or 0)

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, count)
    check_bytes(sum(made), 0, 0, f"a range alone {readable(max(made, default=0))}")


class _Folding:
    """What of one function depends on constants only, as ``FoldConstant`` sees it."""

    def __init__(self, module: tvm.IRModule) -> None:
        self._module = module
        self._constant: set[Any] = set()
        self._filled = int(module.attrs.get(FILLED_BYTES, 0)) if module.attrs else 0
        self._weights = self._made = self._operations = 0

    def check(self, function: Any) -> None:
        from tvm import relax
        from tvm.ir import GenericConst

        def count(expr: Any) -> None:
            if isinstance(expr, GenericConst):
                self._weights += _bytes(expr.ty) or 0

        relax.analysis.post_order_visit(function, count)
        for block in function.body.blocks:
            for binding in block.bindings:
                value = binding.value
                if self._is_constant(value):
                    self._constant.add(binding.var)
                elif isinstance(value, relax.Call) and self._folds(value):
                    self._constant.add(binding.var)
                    self._spend(value)

    def _is_constant(self, expr: Any) -> bool:
        from tvm import relax
        from tvm.ir import GenericConst

        if isinstance(expr, relax.Tuple):
            return all(map(self._is_constant, expr.fields))
        return isinstance(expr, GenericConst) or expr in self._constant

    def _folds(self, call: Any) -> bool:
        from tvm import relax

        if getattr(call.op, "name", "") != "relax.call_tir" or not isinstance(call.args[1], relax.Tuple):
            return False
        inputs = call.args[1].fields
        # What TVM makes of nothing it leaves to the run, unless it is as small as a shape.
        return bool(inputs) and all(map(self._is_constant, inputs)) and _bytes(call.ty) is not None

    def _spend(self, call: Any) -> None:
        self._made += _bytes(call.ty) or 0
        kernel = call.args[0]
        check_bytes(
            self._made, self._weights, self._filled, f"{kernel.name_hint} alone {readable(_bytes(call.ty) or 0)}"
        )
        self._operations += _operations(self._module[kernel])
        if self._operations > MAX_OPERATIONS:
            raise BadInput(
                f"its computed constants take {self._operations:.3g} operations, {kernel.name_hint} among them; the "
                f"limit is {MAX_OPERATIONS:.3g}. Fix: make what is that large an input of the model, or a smaller size"
            )


def _bytes(kind: Any) -> int | None:
    """Bytes of a value of this type; None where they are known only at run time."""
    from tvm import DataType, relax, tirx

    if isinstance(kind, relax.TupleType):
        parts = [_bytes(field) for field in kind.fields]
        return None if None in parts else sum(part or 0 for part in parts)
    if not isinstance(kind, relax.TensorType) or kind.shape is None or not isinstance(kind.shape, relax.ShapeExpr):
        return None
    count = 1
    for extent in kind.shape:
        if not isinstance(extent, tirx.IntImm):
            return None
        count *= int(extent)
    bits: int = DataType(str(kind.dtype)).bits
    return count * max(bits, 8) // 8


def _operations(kernel: tvm.tirx.PrimFunc) -> int:
    """Runs of all blocks of a kernel: the extents of the loops around each, multiplied."""
    from tvm import tirx
    from tvm.s_tir import SBlock, SBlockRealize

    total = 0

    def visit(statement: Any, runs: int) -> None:
        nonlocal total
        if isinstance(statement, tirx.For):
            extent = statement.extent
            visit(statement.body, runs * (int(extent) if isinstance(extent, tirx.IntImm) else 1))
        elif isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                visit(part, runs)
        elif isinstance(statement, SBlockRealize):
            visit(statement.block, runs)
        elif isinstance(statement, SBlock):
            visit(statement.body, runs)
        else:
            total += runs

    visit(kernel.body, 1)
    return total
