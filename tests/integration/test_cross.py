"""Building for other machines: as far as a library for them, which nothing here can run."""

import shutil
import struct

import pytest

from lorien.errors import BadInput
from lorien.records import Candidate
from lorien.target import Target

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

from tvm import IRModule, te

from lorien.dialects.metaschedule import compile as tvm_compile
from lorien.dialects.metaschedule.cross import linker
from lorien.dialects.metaschedule.workload import native_target, workload_of

ARM = Target.parse("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -num-cores=4")
CUDA = Target.parse("cuda -arch=sm_86")
ELF_AARCH64 = 183


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "1")  # put back what warm_up sets in this process


@pytest.fixture
def workload():
    a, b = (te.placeholder((32, 32), name=name) for name in "ab")
    k = te.reduce_axis((0, 32), "k")
    c = te.compute((32, 32), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    return workload_of(IRModule({"main": te.create_prim_func([a, b, c])}), "matmul32")


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="apt-get install gcc-aarch64-linux-gnu")
def test_a_library_for_a_board(workload, tmp_path):
    tvm_compile.build(workload, Candidate(None), ARM, tmp_path / "board.so")
    assert struct.unpack_from("<H", (tmp_path / "board.so").read_bytes(), 18) == (ELF_AARCH64,)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="the CUDA toolkit is not here")
def test_a_library_for_an_nvidia_gpu(workload, tmp_path):
    tvm_compile.build(workload, Candidate(None), CUDA, tmp_path / "gpu.so")
    assert b"main_kernel" in (tmp_path / "gpu.so").read_bytes()


@pytest.mark.parametrize(("target", "tool"), [(ARM, "aarch64-linux-gnu-gcc"), (CUDA, "nvcc")])
def test_a_tool_that_is_missing_is_named_before_anything_is_built(target, tool, workload, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=tool):
        tvm_compile.warm_up(target)
    with pytest.raises(BadInput, match=tool):
        tvm_compile.build(workload, Candidate(None), target, tmp_path / "out.so")


def test_this_machine_links_by_itself():
    assert linker(native_target()) is None
