"""Candidates measured on a real RPC farm whose devices are killed, frozen and broken meanwhile."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorien.errors import BadInput, DeviceUnavailable
from lorien.records import Candidate, Outcome
from lorien.tune import farm as farm_module
from lorien.tune.measure import MeasureConfig, Measurer

pytest.importorskip("tvm", reason="pip install 'lorien[tvm]'")

from farm import DeviceFarm
from tvm import IRModule, te

from lorien.dialects.metaschedule.workload import native_target, workload_of

CONFIG = MeasureConfig(builders=1, repeat=2, min_repeat_s=0.02, run_timeout_s=5.0)


def matmul(size):
    a = te.placeholder((size, size), "float32", name="a")
    b = te.placeholder((size, size), "float32", name="b")
    k = te.reduce_axis((0, size), "k")
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    return workload_of(IRModule({"main": te.create_prim_func([a, b, c])}), f"matmul{size}")


@pytest.fixture(scope="module")
def target():
    return native_target()


@pytest.fixture
def farm(tmp_path):
    farm = DeviceFarm(tmp_path)
    yield farm
    farm.close()


def test_devices_measure_in_parallel_and_one_that_dies_loses_nothing(farm, target):
    first, second, third = farm.add(3)
    with Measurer("metaschedule", target, CONFIG, farm.tracker) as measurer:
        done = []

        def progress(index, measurement):
            done.append(index)
            if len(done) == 2:
                farm.kill(first)
            if len(done) == 4:
                farm.signal(second, signal.SIGSTOP)

        results = measurer.measure(matmul(64), [Candidate(None)] * 10, progress)
    assert [result.outcome for result in results] == [Outcome.OK] * 10, results
    assert sorted(done) == list(range(10))
    assert farm.devices() == sorted([second, third])  # a frozen device hangs no session up
