"""Rebuild a Relax function binding by binding: what the rewriting passes of Lorien share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm
    from tvm.relax import BlockBuilder


DROPPED = object()
"""In the place of a binding: nothing. ``Rewriting.use`` then answers for its variable."""


class Rewriting:
    """A pass: what becomes of each binding, and what each use of a variable stands for.

    Only a ``DataflowVar`` may be dropped: what is read outside of its block must be there.
    """

    builder: BlockBuilder
    """Emits into the block that is being rebuilt."""

    def bind(self, var: Any, value: Any) -> Any:
        """The expression that takes the place of a value; None keeps the value, ``DROPPED`` leaves the binding out."""
        raise NotImplementedError

    def use(self, var: Any) -> Any:
        """The expression that a use of the variable stands for; None for what its binding became."""
        raise NotImplementedError

    def visit(self, expr: Any) -> Any:
        """An expression of the old function in the variables of the new one. Set by ``rewrite``."""
        raise NotImplementedError


def rewrite(module: tvm.IRModule, rewriting: Rewriting) -> tvm.IRModule:
    """The module with its ``main`` rebuilt."""
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Rebuilder(PyExprMutator):  # type: ignore[misc]
        def visit_var_binding_(self, binding: Any) -> None:
            var = binding.var
            made = rewriting.bind(var, binding.value)
            if made is None:
                super().visit_var_binding_(binding)
            elif made is not DROPPED:
                inner = isinstance(var, relax.DataflowVar) or not self.builder_.current_block_is_dataflow()
                emit = self.builder_.emit if inner else self.builder_.emit_output
                self.set_var_remap(var, emit(made))

        def visit_var_(self, var: Any) -> Any:
            made = rewriting.use(var)
            return super().visit_var_(var) if made is None else made

        def visit_dataflow_var_(self, var: Any) -> Any:
            made = rewriting.use(var)
            return super().visit_dataflow_var_(var) if made is None else made

    rebuilder = Rebuilder(module)
    rewriting.builder = rebuilder.builder_
    rewriting.visit = rebuilder.visit_expr  # type: ignore[method-assign]
    rebuilder.builder_.update_func(module.get_global_var("main"), rebuilder.visit_expr(module["main"]))
    return rebuilder.builder_.get()


def bindings(function: Any) -> Iterator[tuple[Any, Any]]:
    """Variable and value of each binding of a function, in order, but for those inside of branches."""
    for block in function.body.blocks:
        for binding in block.bindings:
            yield binding.var, getattr(binding, "value", None)


def uses_in(function: Any) -> Counter[Any]:
    """How often each variable is read in a function."""
    from tvm import relax

    found: Counter[Any] = Counter()

    def count(expr: Any) -> None:
        if isinstance(expr, relax.Var):
            found[expr] += 1
        elif isinstance(expr, relax.Call):
            for argument in expr.args:
                count(argument)
        elif isinstance(expr, relax.Tuple):
            for field in expr.fields:
                count(field)
        elif isinstance(expr, relax.TupleGetItem):
            count(expr.tuple_value)
        elif isinstance(expr, (relax.If, relax.SeqExpr, relax.Function)):
            relax.analysis.post_order_visit(expr, lambda part: found.update([part] * isinstance(part, relax.Var)))

    for _, value in bindings(function):
        count(value)
    count(function.body.body)
    return found


def name_of(value: Any) -> str:
    """The Relax operator that a value calls, without ``relax.``; empty for what is no such call."""
    name = getattr(getattr(value, "op", None), "name", "")
    return str(name).removeprefix("relax.")


def shape_of(expr: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for what is no tensor, or has a size known only at run time."""
    return shape_of_type(expr.ty)


def shape_of_type(kind: Any) -> tuple[int, ...] | None:
    """``shape_of`` an expression of this type."""
    from tvm import relax, tirx

    if not isinstance(kind, relax.TensorType) or not isinstance(kind.shape, relax.ShapeExpr):
        return None
    if not all(isinstance(extent, tirx.IntImm) for extent in kind.shape):
        return None
    return tuple(int(extent) for extent in kind.shape)


def is_float32(expr: Any) -> bool:
    """Whether an expression is a tensor of float32."""
    return str(getattr(expr.ty, "dtype", "")) == "float32"


def is_nchw_convolution(value: Any) -> bool:
    """Whether a value is a float32 convolution in two dimensions, in the layouts NCHW and OIHW."""
    if name_of(value) != "nn.conv2d" or not is_float32(value):
        return False
    layouts = (value.attrs.data_layout, value.attrs.kernel_layout, value.attrs.out_layout)
    return tuple(map(str, layouts)) == ("NCHW", "OIHW", "NCHW")
