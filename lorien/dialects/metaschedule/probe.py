"""A workload to see whether anything builds and runs here."""

from __future__ import annotations

from lorien.dialects.metaschedule.workload import require_tvm, workload_of
from lorien.records import Workload

SIZE = 64


def probe_workload() -> Workload:
    """A matrix product of 64 x 64: built and run in a fraction of a second."""
    require_tvm()
    import tvm
    from tvm import te

    left, right = (te.placeholder((SIZE, SIZE), name=name) for name in ("left", "right"))
    inner = te.reduce_axis((0, SIZE), name="inner")
    product = te.compute((SIZE, SIZE), lambda i, j: te.sum(left[i, inner] * right[inner, j], axis=inner), name="matmul")
    return workload_of(tvm.IRModule({"main": te.create_prim_func([left, right, product])}), "matmul")
