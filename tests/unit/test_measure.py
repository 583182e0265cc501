"""Children that can be killed, with the candidates that make it necessary: ``stub_dialect/misbehaving.py``."""

import math
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from lorien.errors import LorienError, UnknownDialect, UnsupportedOperation
from lorien.records import Candidate, Outcome, Workload
from lorien.target import Target
from lorien.tune.measure import MeasureConfig, Measurer

STUB = Path(__file__).parent / "stub_dialect"
TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
WORKLOAD = Workload("misbehaving", "stub", ["stub"])
FINE = Candidate({})
WAIT_S = 20  # for what takes milliseconds on an idle machine


@pytest.fixture(autouse=True)
def _stub_dialect(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(STUB)
    monkeypatch.setenv("MISBEHAVING_FILE", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(params=["misbehaving", "forked"])
def dialect(request):
    """Children that are started, and children that are forks of one that was."""
    return request.param


@pytest.fixture
def measurer(dialect):
    with Measurer(dialect, TARGET, MeasureConfig(builders=2)) as measurer:
        yield measurer


def processes() -> list[psutil.Process]:
    """Of this one's, those that measure and those that are forked; none of the servers of other tests."""
    return [child for child in psutil.Process().children(recursive=True) if "lorien.tune._child" in command(child)]


def children() -> list[psutil.Process]:
    """Those that measure."""
    mine = psutil.Process().pid
    return [one for one in processes() if one.ppid() != mine or "_child import prepare" not in command(one)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended
        return ""


def outcomes(measurer, *schedules):
    return [result.outcome for result in measurer.measure(WORKLOAD, [Candidate(schedule) for schedule in schedules])]


MISBEHAVIOURS = {
    "segfault": (Outcome.CRASH, Outcome.CRASH, "SIGSEGV"),
    "exit": (Outcome.CRASH, Outcome.CRASH, "exit code 3"),
    "killed": (Outcome.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY, "killed"),
    "abort on bad_alloc": (Outcome.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY, "SIGABRT. terminate called"),
    "raise": (Outcome.BUILD_ERROR, Outcome.RUN_ERROR, "RuntimeError: the compiler says no"),
    "unfit": (Outcome.INSTANTIATION_ERROR, Outcome.INSTANTIATION_ERROR, "does not fit"),
    "print": (Outcome.OK, Outcome.OK, ""),
}


def test_whatever_a_candidate_does_is_its_measurement_and_leaves_its_neighbours_alone(measurer):
    candidates, expected = [], []
    for how, (built, ran, detail) in MISBEHAVIOURS.items():
        candidates += [Candidate({"build": how}), FINE, Candidate({"run": how}), FINE]
        expected += [(built, detail), (Outcome.OK, ""), (ran, detail), (Outcome.OK, "")]
    results = measurer.measure(WORKLOAD, candidates)
    assert [result.outcome for result in results] == [outcome for outcome, _ in expected]
    for result, (_, detail) in zip(results, expected, strict=True):
        assert detail in result.detail
        assert result.timestamp_s > 0
        assert result.latencies_s == ((0.06, 0.06, 0.06) if result.ok else ())


def test_what_hangs_is_killed(dialect):
    with Measurer(dialect, TARGET, MeasureConfig(builders=1, build_timeout_s=0.5, run_timeout_s=0.5)) as measurer:
        results = measurer.measure(WORKLOAD, [Candidate({"build": "hang"}), FINE, Candidate({"run": "hang"}), FINE])
    assert [r.outcome for r in results] == [Outcome.BUILD_TIMEOUT, Outcome.OK, Outcome.RUN_TIMEOUT, Outcome.OK]
    assert results[0].detail == "killed after 0.5 s"


def test_what_takes_all_memory_is_stopped_at_the_limit(dialect):
    with Measurer(dialect, TARGET, MeasureConfig(builders=1, memory_bytes=512 << 20)) as measurer:
        found = outcomes(measurer, {"build": "allocate"}, {}, {"run": "allocate"}, {})
    assert found == [Outcome.OUT_OF_MEMORY, Outcome.OK, Outcome.OUT_OF_MEMORY, Outcome.OK]


def test_a_compiler_that_a_build_started_dies_with_it(dialect, tmp_path):
    with Measurer(dialect, TARGET, MeasureConfig(builders=1, build_timeout_s=2)) as measurer:
        assert outcomes(measurer, {"build": "hang in a compiler"}) == [Outcome.BUILD_TIMEOUT]
        assert_gone([int((tmp_path / "scratch").read_text())])


@pytest.mark.parametrize("run", ["nan", "zero", "nothing"])
def test_latencies_that_are_none_are_a_run_error(measurer, run):
    assert outcomes(measurer, {"run": run}) == [Outcome.RUN_ERROR]


def test_a_build_that_writes_nothing_is_a_build_error(measurer):
    assert outcomes(measurer, {"build": "write nothing"}) == [Outcome.BUILD_ERROR]


@pytest.mark.parametrize("schedule", [{"build": "killed once"}, {"run": "killed once"}])
def test_a_child_that_another_killed_is_not_held_against_the_candidate(measurer, schedule):
    assert outcomes(measurer, schedule, {}) == [Outcome.OK, Outcome.OK]


@pytest.mark.parametrize("best_s", [0.06, math.inf])
def test_what_is_slower_than_the_best_gets_no_full_repeats(measurer, best_s):
    fine, slow = measurer.measure(WORKLOAD, [FINE, Candidate({"run": "slow"})], best_s=best_s)
    assert fine.latencies_s == (0.06, 0.06, 0.06)
    assert slow.ok
    assert slow.latencies_s == (9.0,)
    assert slow.detail == "stopped early: takes more than 4 times the best, 0.06 s"


def test_without_a_contest_all_get_full_repeats(measurer):
    (slow,) = measurer.measure(WORKLOAD, [Candidate({"run": "slow"})])
    assert slow.latencies_s == (9.0, 9.0, 9.0)
    assert not slow.detail


def test_progress_tells_of_each_candidate_once(measurer):
    seen = {}
    candidates = [FINE, Candidate({"build": "raise"}), Candidate({"run": "segfault"}), FINE]
    results = measurer.measure(WORKLOAD, candidates, progress=lambda index, result: seen.setdefault(index, result))
    assert [seen[index] for index in range(4)] == results


def test_no_candidates_no_measurements(measurer):
    assert measurer.measure(WORKLOAD, []) == []


def test_outputs_are_checked_against_the_default_schedule(dialect):
    with Measurer(dialect, TARGET, MeasureConfig(builders=2, check=True)) as measurer:
        results = measurer.measure(WORKLOAD, [FINE, Candidate({"run": "wrong"}), Candidate(None)])
        assert [result.outcome for result in results] == [Outcome.OK, Outcome.WRONG_RESULT, Outcome.OK]
        assert results[1].detail == "tensor 1 is off by 1 where the naive kernel's largest value is 1"
        (result,) = measurer.measure(Workload("misbehaving", "no reference", ["other"]), [FINE])
        assert result.outcome is Outcome.UNKNOWN_ERROR
        assert "cannot run the default" in result.detail


@pytest.mark.parametrize("state", ["warming up", "idle"])
@pytest.mark.parametrize(
    ("dialect", "which"), [("misbehaving", children), ("forked", children), ("forked", processes)], indirect=["dialect"]
)
def test_a_child_that_died_without_a_job_is_replaced(measurer, state, which):
    if state == "idle":
        assert outcomes(measurer, {}) == [Outcome.OK]
    for child in which():
        child.kill()
        if child.ppid() == psutil.Process().pid:
            wait_for_end([child])
    assert outcomes(measurer, {}, {}) == [Outcome.OK, Outcome.OK]


def test_children_outlive_the_one_they_were_forked_from_and_end_when_they_should():
    with Measurer("forked", TARGET, MeasureConfig(builders=2)) as measurer:
        assert outcomes(measurer, {}, {}) == [Outcome.OK] * 2
        (first,) = [one for one in processes() if one.ppid() == psutil.Process().pid]
        orphans = children()
        first.kill()
        wait_for_end([first])
        assert outcomes(measurer, {}, {}) == [Outcome.OK] * 2
        *crashed, fine = outcomes(measurer, {"build": "segfault"}, {"run": "segfault"}, {})
        assert fine is Outcome.OK
        assert {*crashed} <= {Outcome.CRASH, Outcome.OUT_OF_MEMORY}  # how an orphan ended, nobody can tell
        orphans += children()
    wait_for_end(orphans)


def test_children_are_warm_and_kept_until_they_have_done_their_jobs(dialect):
    with Measurer(dialect, TARGET, MeasureConfig(builders=1, jobs_per_child=3)) as measurer:
        assert outcomes(measurer, {}) == [Outcome.OK]
        before = {child.pid for child in children()}
        assert len(before) == 2
        assert outcomes(measurer, {}, {}) == [Outcome.OK] * 2
        assert {child.pid for child in children()} == before
        assert outcomes(measurer, {}) == [Outcome.OK]
        assert before.isdisjoint(child.pid for child in children())


def test_threads_take_turns(measurer):
    found = []
    threads = [threading.Thread(target=lambda: found.append(outcomes(measurer, {}, {}, {}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[Outcome.OK] * 3] * 4


def test_nothing_is_left_behind(dialect, tmp_path):
    with Measurer(dialect, TARGET, MeasureConfig(builders=2)) as measurer:
        outcomes(measurer, {}, {"run": "segfault"})
        pids = [child.pid for child in processes()]
    assert_gone(pids)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_the_children_and_the_measurer_can_go_on(measurer):
    def interrupt(index, result):
        raise KeyboardInterrupt

    pids = [child.pid for child in children()]
    with pytest.raises(KeyboardInterrupt):
        measurer.measure(WORKLOAD, [Candidate({"build": "raise"}), Candidate({"build": "hang"})], progress=interrupt)
    assert_gone(pids)
    assert outcomes(measurer, {}) == [Outcome.OK]


@pytest.mark.parametrize(
    ("end", "schedule"),
    [
        (signal.SIGKILL, {"build": "hang"}),
        (signal.SIGKILL, {"run": "hang"}),
        (signal.SIGTERM, {"build": "hang"}),
        (signal.SIGINT, {"run": "hang"}),
    ],
)
def test_children_do_not_outlive_their_parent(dialect, end, schedule):
    # As users write scripts: without a guard around the main code, which multiprocessing would ask for.
    script = f"""
import sys
sys.path.insert(0, {str(STUB)!r})
from lorien.tune.measure import *
with Measurer({dialect!r}, Target.parse("llvm"), MeasureConfig(builders=1)) as measurer:
    failed = lambda index, result: print("measuring", flush=True)
    candidates = [Candidate({{"build": "raise"}}), Candidate({schedule})]
    measurer.measure(Workload("misbehaving", "stub", []), candidates, failed)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout.readline() == "measuring\n"
        orphans = psutil.Process(parent.pid).children(recursive=True)
        assert len(orphans) == (3 if dialect == "forked" else 2)
        parent.send_signal(end)
        parent.wait(WAIT_S)
    wait_for_end(orphans)


def test_a_child_that_cannot_start_is_an_error_with_its_last_words(dialect):
    with (
        Measurer(dialect, Target.parse("cuda -arch=sm_86")) as measurer,
        pytest.raises(LorienError, match="did not start: RuntimeError: no such device"),
    ):
        measurer.measure(WORKLOAD, [FINE])


def test_only_a_live_dialect_can_measure():
    with pytest.raises(UnknownDialect):
        Measurer("nobody's", TARGET)
    with pytest.raises(UnsupportedOperation):
        Measurer("autotvm", TARGET)


def assert_gone(pids):
    wait_for_end([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])


def wait_for_end(processes):
    assert psutil.wait_procs(processes, timeout=WAIT_S)[1] == []
