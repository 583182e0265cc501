"""The real thing: matrix products scheduled, built and run by TVM in child processes."""

import numpy as np
import pytest

from lorien.records import Candidate, Outcome
from lorien.target import Target
from lorien.tune.measure import MeasureConfig, Measurer

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

from tvm import IRModule, te
from tvm.s_tir import Schedule

from lorien.dialects.metaschedule import compile as tvm_compile
from lorien.dialects.metaschedule.workload import NAIVE, candidate_of, module_of, native_target, workload_of

SIZE = 128


@pytest.fixture(scope="module")
def target():
    return native_target()


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "1")  # put back what warm_up sets in this process


def matmul(size=SIZE, dtype="float32"):
    a = te.placeholder((size, size), dtype, name="a")
    b = te.placeholder((size, size), dtype, name="b")
    k = te.reduce_axis((0, size), "k")
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    return workload_of(IRModule({"main": te.create_prim_func([a, b, c])}), f"matmul{size}")


def tiled(workload, tile):
    schedule = Schedule(module_of(workload))
    i, j, k = schedule.get_loops(schedule.get_sblock("c"))
    outer, inner = schedule.split(j, [None, tile])
    schedule.reorder(i, outer, k, inner)
    schedule.parallel(i)
    schedule.vectorize(inner)
    return candidate_of(schedule)


def test_candidates_are_built_run_and_checked(target):
    workload = matmul()
    other_block = Candidate([[["GetSBlock", [], ["nobody", "main"], ["b0"]]], []])
    candidates = [NAIVE, Candidate(None), *(tiled(workload, tile) for tile in (8, 16, 32)), other_block]
    with Measurer("metaschedule", target, MeasureConfig(check=True, repeat=2, min_repeat_s=0.02)) as measurer:
        naive, default, *tuned, unfit = measurer.measure(workload, candidates)
        assert [result.outcome for result in tuned] == [Outcome.OK] * 3, tuned
        assert all(len(result.latencies_s) == 2 for result in tuned)
        assert default.latency_s < min(result.latency_s for result in tuned) < naive.latency_s < 0.1
    assert unfit.outcome is Outcome.INSTANTIATION_ERROR
    assert "does not fit workload 'matmul128'" in unfit.detail


def test_the_check_sees_a_kernel_that_lost_precision(target):
    workload = matmul()
    schedule = Schedule(module_of(workload))
    schedule.cache_write(schedule.get_sblock("c"), 0, "global")
    schedule.unsafe_set_dtype(schedule.get_sblock("c"), 0, "float16")
    with Measurer("metaschedule", target, MeasureConfig(builders=1, check=True)) as measurer:
        (result,) = measurer.measure(workload, [candidate_of(schedule)])
    assert result.outcome is Outcome.WRONG_RESULT
    assert "tensor 2 is off by" in result.detail


def test_the_outputs_are_the_product(target, tmp_path):
    workload = matmul()
    tvm_compile.build(workload, tiled(workload, 16), target, tmp_path / "matmul.so")
    a, b, c = tvm_compile.outputs(workload, tmp_path / "matmul.so", target)
    np.testing.assert_allclose(c, a @ b, rtol=1e-5)
    again = tvm_compile.outputs(workload, tmp_path / "matmul.so", target)
    assert all((one == other).all() for one, other in zip((a, b, c), again, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint8", "int64"])
def test_every_type_has_inputs(target, tmp_path, dtype):
    workload = matmul(8, dtype)
    tvm_compile.build(workload, Candidate(None), target, tmp_path / "matmul.so")
    a, b, c = tvm_compile.outputs(workload, tmp_path / "matmul.so", target)
    assert {str(tensor.dtype) for tensor in (a, b, c)} == {dtype}
    assert np.abs(a.astype("float64")).max() <= 1
    expected = a.astype("float64") @ b.astype("float64")
    np.testing.assert_allclose(c.astype("float64"), expected, rtol=0.05)
    (latency_s,) = tvm_compile.run(workload, tmp_path / "matmul.so", target, repeat=1, min_repeat_s=0.0)
    assert latency_s > 0


def test_the_default_for_a_gpu_is_bound_to_threads():
    module = module_of(matmul())
    assert tvm_compile.as_written(module, Target.parse("llvm")) is module
    for made in (tvm_compile.default_schedule, tvm_compile.as_written):
        bound = made(module, Target.parse("cuda -arch=sm_86")).script()
        assert "blockIdx.x" in bound
        assert "threadIdx.x" in bound
