"""A Relax module without the operators that cannot be lowered: each is found alone, and made an input of the rest."""

from __future__ import annotations

from collections.abc import Callable
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


def without(module: tvm.IRModule, variables: Any) -> tvm.IRModule:
    """A module whose function ``main`` takes these variables as further parameters."""
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    taken = {variable: relax.Var(variable.name, variable.ty) for variable in variables}

    @mutator
    class Cut(PyExprMutator):  # type: ignore[misc]
        def visit_var_binding_(self, binding: Any) -> None:
            if binding.var in taken:
                self.set_var_remap(binding.var, taken[binding.var])
            else:
                super().visit_var_binding_(binding)

    main = module["main"]
    cut = Cut(module)
    body = cut.visit_expr(main.body)
    rest = relax.Function([*main.params, *taken.values()], body, main.ret_ty, main.is_pure, main.attrs)
    made = module.clone()
    made.update_func(module.get_global_var("main"), rest)
    return made


def _alone(call: Any) -> tvm.IRModule:
    import tvm
    from tvm import relax

    inputs = relax.analysis.free_vars(call)
    return tvm.IRModule({"main": relax.Function(inputs, relax.SeqExpr([], call), call.ty)})
