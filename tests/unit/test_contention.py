"""Who measures beside another, or on busy cores, is told so before the first trial, and the results are marked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from lorien.machine import busy_s, process_cpu_s
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune.contention import MIN_SAMPLE_S, Contention, Watch
from lorien.tune.measure import MeasureConfig, Measurer

STUB = Path(__file__).parent / "stub_dialect"
TARGET = Target.parse("llvm -num-cores=2")
HOLD = """
import sys, time
from lorien.target import Target
from lorien.tune.contention import Watch
with Watch(Target.parse(sys.argv[1]), list, remote=sys.argv[2] == "remote").measuring():
    print("measuring", flush=True)
    time.sleep(600)
"""
SPIN = "print('spinning', flush=True)\nwhile True: pass"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@contextmanager
def running(program: str, *words: str, cores: set[int] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line."""
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def sees(process: subprocess.Popen[str], target: Target = TARGET, *, remote: bool = False) -> bool:
    """Whether who measures now is told of a process."""
    with Watch(target, list, remote=remote).measuring() as contention:
        return any(one.endswith(f"(process {process.pid})") for one in contention.measurers)


def test_a_second_measurer_is_named_until_it_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    with running(HOLD, str(TARGET), "here") as other:
        assert sees(other)
        (said,) = (message for message in caplog.messages if f"(process {other.pid}) measures on the same" in message)
        assert said.startswith(Path(sys.executable).name)
        assert "Fix: wait for it" in said
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert not sees(other)


@pytest.mark.parametrize(("target", "how"), [("cuda -arch=sm_86", "here"), ("llvm", "remote")])
def test_measuring_elsewhere_is_no_disturbance(target: str, how: str) -> None:
    with running(HOLD, target, how) as other:
        assert not sees(other)


def test_devices_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Target.parse("cuda -arch=sm_86")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with running(HOLD, str(cuda), "here") as other:
        assert sees(other, cuda)
        assert not sees(other, cuda, remote=True)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert not sees(other, cuda)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_workers_on_cores_of_their_own_do_not_disturb_each_other() -> None:
    before = os.sched_getaffinity(0)
    mine, other_core, *_ = sorted(before)
    with running(HOLD, str(TARGET), "here", cores={other_core}) as other:
        os.sched_setaffinity(0, {mine})
        try:
            assert not sees(other)
        finally:
            os.sched_setaffinity(0, before)
        assert sees(other)


def work_until(count: Callable[[], float], grown: float) -> None:
    """Work until a count of CPU seconds has grown by so much."""
    end = count() + grown
    while count() < end:
        sum(range(1000))


@pytest.mark.parametrize("ours", [False, True])
def test_work_of_others_is_counted_and_ours_is_not(ours: bool) -> None:
    """By the kernel's counts: what this process and the child given used is ours, the rest is others'."""
    cores = os.sched_getaffinity(0)
    with running(SPIN) as spinning:
        watch = Watch(TARGET, lambda: [spinning.pid] if ours else [])
        with watch.measuring() as contention:
            busy_before_s, spun_before_s = busy_s(cores), process_cpu_s(spinning.pid)
            watch.begin()
            work_until(lambda: process_cpu_s(spinning.pid), 2 * MIN_SAMPLE_S)
            watch.ran()
            busy_after_s, spun_s = busy_s(cores), process_cpu_s(spinning.pid) - spun_before_s
        assert busy_before_s is not None
        assert busy_after_s is not None
        most_s = busy_after_s - busy_before_s - (spun_s if ours else 0.0)
        assert contention.runs == 1
        assert contention.others_core_s <= most_s + 0.05
        assert ours or contention.others_core_s >= spun_s - 0.05


def test_children_are_asked_for_when_they_have_worked() -> None:
    """To ask for a fork's number waits until the framework is loaded; what that takes is no work of others."""
    asked = []

    def children() -> list[int]:
        asked.append(True)
        return []

    watch = Watch(TARGET, children)
    assert not asked
    watch.begin()
    assert asked


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(STUB)
    monkeypatch.setenv("MISBEHAVING_FILE", str(tmp_path / "scratch"))


@pytest.mark.usefixtures("recording")
def test_runs_beside_another_measurer_are_marked() -> None:
    workload = Workload("recording", "w", [0])
    with (
        running(HOLD, str(TARGET), "here") as other,
        Measurer("recording", TARGET, MeasureConfig(builders=1)) as measurer,
        measurer.measuring() as contention,
    ):
        results = measurer.measure(workload, [Candidate({"run": 0.5}), Candidate({"run": 0.25})])
        assert [result.outcome for result in results] == [Outcome.OK] * 2
        assert all(result.disturbed for result in results)
        assert (contention.runs, contention.disturbed_runs, contention.disturbed) == (2, 2, True)
        assert f"(process {other.pid})" in str(contention)
        assert contention.to_json()["disturbed"] is True
        ours = measurer._processes()
        assert len(ours) == 2
        assert {psutil.Process(pid).ppid() for pid in ours} == {os.getpid()}


def test_nothing_is_said_where_nothing_disturbed() -> None:
    assert str(Contention(runs=3)) == ""
    assert Contention(runs=3).to_json() == {"disturbed": False, "disturbance": "", "others_cores": None}


def test_marks_are_kept_and_older_measurements_have_none() -> None:
    marked = Measurement(Outcome.OK, (1.0,), disturbed=True, others_cores=0.75)
    assert Measurement.from_json(json.loads(json.dumps(marked.to_json()))) == marked
    plain = Measurement(Outcome.OK, (1.0,))
    assert not {"disturbed", "others_cores"} & plain.to_json().keys()
    assert Measurement.from_json(plain.to_json()) == plain
