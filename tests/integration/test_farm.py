"""Candidates measured on a real RPC farm whose devices are killed, frozen and broken meanwhile."""

import json
import signal
import subprocess
import sys

import pytest

from lorien.errors import DeviceUnavailable
from lorien.records import Candidate, Outcome
from lorien.tune.farm import SecondOpinion
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


@pytest.fixture(scope="module")
def farm():
    """One for all tests, in their order: the last ones take it apart."""
    farm = DeviceFarm()
    yield farm
    farm.close()


def test_a_farm_without_devices(farm, target):
    with pytest.raises(DeviceUnavailable, match="no device is registered as 'board'"):
        Measurer("metaschedule", target, CONFIG, farm.tracker)


def test_a_candidate_that_fails_on_two_devices_is_to_blame_and_they_are_not(farm, target):
    farm.add(2)
    slow = matmul(2048)  # as it is written, it takes longer than it is given
    config = MeasureConfig(builders=1, repeat=2, min_repeat_s=0.02, run_timeout_s=1.0)
    with Measurer("metaschedule", target, config, farm.tracker) as measurer:
        (result,) = measurer.measure(slow, [Candidate(None)])
        assert result.outcome is Outcome.RUN_TIMEOUT, result
        fine = measurer.measure(matmul(64), [Candidate(None)] * 2)  # on devices that ended the sessions themselves
    assert [result.outcome for result in fine] == [Outcome.OK] * 2, fine


def test_tune_on_the_farm_from_the_command_line(farm, target, tmp_path):
    workloads = tmp_path / "workloads.jsonl"
    workloads.write_text(json.dumps(matmul(64).to_json()) + "\n")
    command = [sys.executable, "-c", "from lorien.cli import main; main()", "tune", str(workloads), "--trials", "6"]
    options = ["--logs", str(tmp_path / "logs"), "--strategy", "replay", "--runner", farm.url, "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["outcomes"] == {"ok": 6}
    assert answer["workloads"][0]["best_latency_s"] < 0.1
    far = subprocess.run([*command, *options[:-2], "rpc://192.0.2.1:9190/board"], capture_output=True, text=True)
    assert far.returncode == 1
    assert "--trust-network" in far.stderr


def test_devices_measure_in_parallel_and_one_that_dies_loses_nothing(farm, target):
    farm.add(1)
    first, second, third = farm.devices()
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


def test_a_farm_that_is_gone_is_an_error_that_says_so(farm, target, monkeypatch):
    monkeypatch.setattr(SecondOpinion, "wait_s", 2.0)
    with Measurer("metaschedule", target, CONFIG, farm.tracker) as measurer:
        for device in farm.devices():
            farm.kill(device)
        with pytest.raises(DeviceUnavailable, match="no device of 'board' was free for 2 s"):
            measurer.measure(matmul(64), [Candidate(None)])
        farm.kill("tracker")
        with pytest.raises(DeviceUnavailable, match="does not answer"):
            measurer.measure(matmul(64), [Candidate(None)])
