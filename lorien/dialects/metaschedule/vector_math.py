"""Legalizations of exp, erf, tanh, softmax, Gelu and the like to kernels that CPUs compute in vectors.

TVM lowers each of these operators to a scalar call of the C library for an element, which LLVM cannot vectorize. Here
they are arithmetic (``formulas``), and the reductions of a softmax are made of partial results that are vectors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lorien.dialects.metaschedule import formulas
from lorien.dialects.metaschedule.computations import PLACED

if TYPE_CHECKING:
    import tvm
    from tvm import relax, te, tirx
    from tvm.relax.transform.legalize_ops.common import LegalizeFunc

    Formula = Callable[[tirx.Expr], tirx.Expr]
    Join = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]


def block_name(op: str) -> str:
    """Name of the TIR block that computes an elementwise Relax operator: ``relax.nn.gelu`` is ``vector_nn_gelu``."""
    return f"vector_{op.removeprefix('relax.').replace('.', '_')}"


def _kernel_name(op: str) -> str:
    """As TVM names the kernel; ``exp`` alone would be the C library's."""
    *_, group, name = op.split(".")
    return name if group == "nn" or name == "erf" else f"tir_{name}"


ELEMENTWISE = {
    "relax.exp": formulas.exp,
    "relax.erf": formulas.erf,
    "relax.log": formulas.log,
    "relax.sigmoid": formulas.sigmoid,
    "relax.tanh": formulas.tanh,
    "relax.nn.gelu": formulas.gelu,
    "relax.nn.gelu_tanh": formulas.gelu_tanh,
    "relax.nn.selu": formulas.selu,
    "relax.nn.silu": formulas.silu,
}
"""Operators without attributes."""


def legalizations() -> dict[str, LegalizeFunc]:
    """Legalizations for CPUs by the name of the Relax operator, as ``relax.transform.LegalizeOps`` takes them.

    Tensors of other dtypes than float32 are legalized as TVM does it.
    """
    made = {name: _elementwise(name, partial(_without_attributes, formula)) for name, formula in ELEMENTWISE.items()}
    made["relax.nn.softplus"] = _elementwise("relax.nn.softplus", _softplus)
    made["relax.nn.softmax"] = _over_axis(_softmax)
    made["relax.nn.log_softmax"] = _over_axis(_log_softmax)
    return made


def _without_attributes(formula: Formula, _: Any) -> Formula:
    return formula


def _softplus(attrs: Any) -> Formula:
    return partial(formulas.softplus, beta=float(attrs.beta), threshold=float(attrs.threshold))


def _is_float32(call: relax.Call) -> bool:
    return str(call.args[0].ty.dtype.dtype) == "float32"


def _elementwise(op: str, formula_of: Callable[[Any], Formula]) -> LegalizeFunc:
    name = block_name(op)

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        from tvm import te

        if not _is_float32(call):
            return call.op.get_attr("FLegalize")(builder, call)
        formula = formula_of(call.attrs)

        def compute(x: te.Tensor) -> te.Tensor:
            return te.compute(x.shape, lambda *indices: formula(x(*indices)), name=name)

        return builder.call_te(compute, call.args[0], primfunc_name_hint=_kernel_name(op))

    return legalize


def _over_axis(compute: Callable[[te.Tensor, int], te.Tensor]) -> LegalizeFunc:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if not _is_float32(call):
            return call.op.get_attr("FLegalize")(builder, call)
        from tvm import relax
        from tvm.relax.utils import gen_call_tir_inputs

        axis = int(call.attrs.axis) % call.args[0].ty.ndim
        function, arguments, output = gen_call_tir_inputs(compute, call.args[0], axis)
        name = builder.add_func(_lanes_innermost(function), compute.__name__.lstrip("_"))
        return relax.call_tir(name, arguments, output)

    return legalize


_LANES = 16
"""Partial results of a reduction: the widest vectors of today, two or four of narrower ones."""
_PARTIAL = "_lanes"
"""How the name of a block of partial results ends."""
_KEPT = {"meta_schedule.inline_rule": "disable"}
"""Of a block that is read more than once: MetaSchedule knows that tirx.exp is not to be computed twice, not this."""


def _lanes_innermost(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Blocks of partial results with the lanes innermost, where they vectorize: te puts the reduction there."""
    import tvm
    from tvm.s_tir import Schedule
    from tvm.tirx import IndexMap

    schedule = Schedule(tvm.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        axes = schedule.get(block).iter_vars
        if schedule.get(block).name_hint.endswith(_PARTIAL):
            swapped = IndexMap.from_func(lambda *axes: (*axes[:-2], axes[-1], axes[-2]), ndim=len(axes))
            schedule.transform_block_layout(block, swapped)
    return schedule.mod["main"]


def _reduced(x: te.Tensor, axis: int, reduce: Callable[..., tirx.Expr], join: Join, name: str) -> te.Tensor:
    """``x`` reduced over ``axis``, which the result lacks.

    Floating-point additions keep their order, so that no compiler vectorizes one reduction. Over the last axis, element
    16 * k + l is therefore reduced into lane l. What is left over joins the first lanes, and the lanes are reduced.
    """
    from tvm import te, tirx

    outer = [extent for position, extent in enumerate(x.shape) if position != axis]
    extent = x.shape[axis]
    if axis != len(x.shape) - 1 or not isinstance(extent, tirx.IntImm) or int(extent) < 2 * _LANES:
        k = te.reduce_axis((0, extent), name="k")
        return te.compute(outer, lambda *i: reduce(x(*i[:axis], k, *i[axis:]), axis=k), name=name)
    count, rest = divmod(int(extent), _LANES)
    k = te.reduce_axis((0, count), name="k")
    lanes = te.compute(
        [*outer, _LANES],
        lambda *i: reduce(x(*i[:-1], k * _LANES + i[-1]), axis=k),
        name=f"{name}{_PARTIAL}",
        attrs=PLACED,  # MetaSchedule split it further, and LLVM then took up to a minute for a candidate
    )

    def part(indices: Sequence[tirx.Expr], lane: tirx.Expr) -> tirx.Expr:
        if not rest:
            return lanes(*indices, lane)
        left_over = x(*indices, count * _LANES + tirx.min(lane, rest - 1))
        return tirx.Select(lane < rest, join(lanes(*indices, lane), left_over), lanes(*indices, lane))

    lane = te.reduce_axis((0, _LANES), name="k")
    return te.compute(outer, lambda *i: reduce(part(i, lane), axis=lane), name=name)


def _without(indices: Sequence[tirx.Expr], axis: int) -> tuple[tirx.Expr, ...]:
    return (*indices[:axis], *indices[axis + 1 :])


def _exponentials(x: te.Tensor, axis: int) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
    """Maximum over the axis, exp(x - maximum), and the sum of these over the axis."""
    from tvm import te, tirx

    maximum = _reduced(x, axis, te.max, tirx.max, "softmax_maximum")
    powers = te.compute(
        x.shape,
        lambda *i: formulas.exp(x(*i) - maximum(*_without(i, axis))),
        name="softmax_exp",
        attrs=_KEPT,
    )
    return maximum, powers, _reduced(powers, axis, te.sum, operator.add, "softmax_sum")


def _softmax(x: te.Tensor, axis: int) -> te.Tensor:
    from tvm import te

    _, powers, total = _exponentials(x, axis)
    return te.compute(x.shape, lambda *i: powers(*i) / total(*_without(i, axis)), name="softmax")


def _log_softmax(x: te.Tensor, axis: int) -> te.Tensor:
    from tvm import te

    maximum, _, total = _exponentials(x, axis)
    logarithm = te.compute(total.shape, lambda *i: formulas.log(total(*i)), name="softmax_log", attrs=_KEPT)
    return te.compute(
        x.shape,
        lambda *i: x(*i) - maximum(*_without(i, axis)) - logarithm(*_without(i, axis)),
        name="log_softmax",
    )


def count_flop() -> tvm.transform.Pass:
    """A pass that notes the floating-point operations of the kernels made here: TVM's counter fails on their names.

    It is to follow fusion. TVM, its task scheduler too, takes the note where there is one.
    """
    import tvm
    from tvm import tirx
    from tvm.s_tir.analysis import estimate_tir_flops
    from tvm_ffi import structural_map

    def counted(function: tirx.PrimFunc, *_: Any) -> tirx.PrimFunc:
        body = structural_map(function.body, (tirx.Let, _as_call))
        if body.same_as(function.body):
            return function
        plain = tvm.IRModule({"main": function.with_body(body)})
        return function.with_attr("estimated_flops", int(estimate_tir_flops(plain)))

    return tirx.transform.prim_func_pass(counted, opt_level=0, name="CountFlop")


def _as_call(let: tirx.Let) -> tirx.Expr:
    """Value and body as arguments of one call, which TVM counts."""
    from tvm import tirx

    return tirx.call_pure_extern(let.body.ty.dtype, "let", let.value, let.body)
