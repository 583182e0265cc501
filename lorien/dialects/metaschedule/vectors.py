"""What a core of a target computes with: how long its vectors are, and how many registers hold them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from lorien.dialects.metaschedule.workload import tvm_target
from lorien.target import Target


class Vectors(NamedTuple):
    """Vector registers.

    Parameters
    ----------
    lanes : int
        float32 numbers that one holds.
    registers : int
        How many a program may name.
    """

    lanes: int
    registers: int

    @property
    def sixteenths(self) -> float:
        """What one float32 number takes of a vector, in sixteenths: 1 with AVX-512."""
        return 16 / self.lanes

    @property
    def register_parts(self) -> float:
        """What one float32 number takes of all the registers, in 512ths: 1 with AVX-512."""
        return 512 / (self.lanes * self.registers)


AVX512, AVX, SSE, NEON = Vectors(16, 32), Vectors(8, 16), Vectors(4, 16), Vectors(4, 32)


@lru_cache(maxsize=64)
def vectors_of(target: Target) -> Vectors:
    """The vector registers of a CPU, as LLVM knows it; a GPU, which has none, counts as the widest of CPUs.

    Source: Intel's and Arm's manuals, for the numbers of registers.
    """
    if target.kind != "llvm":
        return AVX512
    if target.family != "llvm-x86":  # RISC-V's vectors, whose length no target tells, count as Arm's
        return NEON
    from tvm.target.codegen import target_has_features

    native = tvm_target(target)
    if target_has_features("avx512f", native):
        return AVX512
    return AVX if target_has_features("avx", native) else SSE
