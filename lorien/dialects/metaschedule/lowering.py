"""A Relax module without the operators that cannot be lowered: each is found alone, and stands outside the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

Lower = Callable[["tvm.IRModule"], "tvm.IRModule"]


def failing_operators(module: tvm.IRModule, lower: Lower) -> dict[Any, tuple[str, Exception]]:
    """By the variable that holds its result, the name of each operator that ``lower`` fails on, and why."""
    from tvm import relax

    found: dict[Any, tuple[str, Exception]] = {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and (name := getattr(value.op, "name", "")):
                try:
                    lower(_alone(value))
                except Exception as error:  # operator code checks its arguments as it likes
                    found[binding.var] = name.removeprefix("relax."), error
    return found


def without(module: tvm.IRModule, variables: Collection[Any]) -> tvm.IRModule:
    """A module in which what these variables hold comes from a function outside, which there is none of."""
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    cut = set(variables)

    @mutator
    class Outside(PyExprMutator):  # type: ignore[misc]
        def visit_var_binding_(self, binding: Any) -> None:
            if binding.var in cut:
                # What it reads stays in use, so that the kernels before it stay too.
                arguments = [self.visit_expr(argument) for argument in binding.value.args]
                call = relax.op.call_pure_packed("lorien.left_out", *arguments, ty_args=[binding.var.ty])
                binding = relax.VarBinding(binding.var, call)
            super().visit_var_binding_(binding)

    mutated = Outside(module)
    name = module.get_global_var("main")
    mutated.builder_.update_func(name, mutated.visit_expr(module["main"]))
    return mutated.builder_.get()


def _alone(call: Any) -> tvm.IRModule:
    import tvm
    from tvm import relax

    inputs = relax.analysis.free_vars(call)
    return tvm.IRModule({"main": relax.Function(inputs, relax.SeqExpr([], call), call.ty)})
