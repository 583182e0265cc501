"""The tuning loop with candidates that misbehave, and under kills."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from lorien.database import open_database
from lorien.delivery import Deliverer
from lorien.records import Candidate, Workload
from lorien.target import Target
from lorien.tune.contention import Watch
from lorien.tune.loop import TuneConfig, tune
from lorien.tune.measure import MeasureConfig, Measurer
from lorien.tune.session import Session, open_session

HERE = Path(__file__).parent
STUB = HERE.parent / "unit" / "stub_dialect"
TARGET = Target.parse("llvm -num-cores=2")
WORKLOADS = [Workload("recording", f"w{i}", [i]) for i in range(3)]
KILLS = int(os.environ.get("LORIEN_KILLS", "6"))


@pytest.fixture(autouse=True, scope="module")
def _stub_dialect():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUB)
        yield


@pytest.fixture
def measurer(monkeypatch, tmp_path):
    monkeypatch.setenv("MISBEHAVING_FILE", str(tmp_path / "told-"))
    with Measurer("recording", TARGET, MeasureConfig(builders=1, run_timeout_s=1.0)) as measurer:
        yield measurer


class Listed:
    """Offers each workload the same candidates, in order, and forgets that it did when it is made again."""

    def __init__(self, schedules):
        self.schedules = schedules
        self.offered = Counter()
        self.told = []

    def prepare(self, workload, count):
        pass

    def ask(self, workload, count):
        first = self.offered[workload.key]
        self.offered[workload.key] += count
        return [Candidate(schedule) for schedule in self.schedules[first : first + count]]

    def tell(self, workload, candidates, measurements):
        self.told.append((workload.name, len(candidates)))


def test_tuning_goes_on_past_candidates_that_crash_hang_and_fail(tmp_path, measurer):
    schedules = [{"build": "segfault"}, {"run": "hang"}, {"run": 0.5}, {"build": "raise"}, {"run": "nan"}, {"run": 0.4}]
    with Session.create(tmp_path / "s", WORKLOADS[:1], TARGET) as session:
        report = tune(session, Listed(schedules), measurer, TuneConfig(100, batch=4))
        assert (report.trials, report.exhausted) == (6, 1)
        assert session.outcomes == {"crash": 1, "run_timeout": 1, "ok": 2, "build_error": 1, "run_error": 1}
        assert session.trials[0].best_s == 0.4
    with Session(tmp_path / "s") as session:
        assert session.outcomes["crash"] == 1


@pytest.fixture
def undisturbed(monkeypatch):
    """What the other tests do meanwhile does not count: test_remeasure.py has the runs that are disturbed."""
    monkeypatch.setattr(Watch, "ran", lambda self: (False, None))


@pytest.mark.usefixtures("undisturbed")
def test_slow_candidates_are_stopped_and_the_log_says_so(tmp_path, measurer):
    with Session.create(tmp_path / "s", WORKLOADS[:1], TARGET) as session:
        tune(session, Listed([{"run": 0.1}, {"run": 0.12}, {"run": 0.3}]), measurer, TuneConfig(3, batch=1))
    with Session(tmp_path / "s") as session:
        measured = {candidate.schedule["run"]: measurement for candidate, measurement in session.trials[0].top()}
        assert measured[0.12].detail == ""
        assert "stopped early" in measured[0.3].detail


def liar(at_first, then, name="liar"):
    return {"run": {"at first": at_first, "then": then, "name": name}}


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_run_that_lies_once_is_not_believed(tmp_path, measurer, batch, place):
    """Wherever it stands: it is one trial, its slower result counts, and the others are measured as if without it."""
    schedules = [{"run": 0.1}, {"run": 0.09}, {"run": 0.08}]
    schedules.insert(place, liar(1e-4, 0.12))
    with open_database(str(tmp_path / "best.db")) as database:
        with Session.create(tmp_path / "s", WORKLOADS[:1], TARGET) as session:
            told = []
            report = tune(
                session,
                Listed(schedules),
                measurer,
                TuneConfig(4, batch=batch),
                database=database,
                watch=lambda index, measurement: told.append(measurement),
            )
        assert [record.measurement.latency_s for record in database.query()] == [0.08, 0.09, 0.1, 0.12]
    assert (report.trials, len(told)) == (4, 4)
    assert len((tmp_path / "s" / "records.jsonl").read_text().splitlines()) == 4
    with Session(tmp_path / "s") as session:
        measured = {str(candidate.schedule): measurement for candidate, measurement in session.trials[0].top()}
    slow = measured.pop(str(liar(1e-4, 0.12)))
    assert slow.latency_s == 0.12
    assert "measured again: 0.0001 s at first, then 0.12 s; the slower counts" in slow.detail
    assert [len(measurement.latencies_s) for measurement in measured.values()] == [3, 3, 3]


@pytest.mark.usefixtures("undisturbed")
def test_a_great_improvement_is_measured_twice_and_believed(tmp_path, measurer):
    with Session.create(tmp_path / "s", WORKLOADS[:1], TARGET) as session:
        schedules = [{"run": 0.1}, {"run": 0.09}, {"run": 0.01}, {"run": 0.0099}]
        tune(session, Listed(schedules), measurer, TuneConfig(4, batch=2))
        details = {measurement.latency_s: measurement.detail for _, measurement in session.trials[0].top()}
        assert session.trials[0].best_s == 0.0099
    assert details == {
        0.1: "", 0.09: "", 0.01: "measured again: 0.01 s at first, then 0.01 s", 0.0099: "",
    }  # fmt: skip


def test_a_fast_run_that_crashes_when_it_is_repeated_is_a_crash(tmp_path, measurer):
    with Session.create(tmp_path / "s", WORKLOADS[:1], TARGET) as session:
        schedules = [{"run": 0.1}, {"run": 0.09}, liar(1e-4, "segfault"), {"run": 0.3}]
        tune(session, Listed(schedules), measurer, TuneConfig(4, batch=2))
        assert session.outcomes == {"ok": 3, "crash": 1}
        assert session.trials[0].best_s == 0.09


def test_a_latency_that_cannot_be_true_is_a_failure(tmp_path, measurer):
    with Session.create(tmp_path / "s", WORKLOADS[:1], TARGET) as session:
        tune(session, Listed([{"run": 0.1}, {"run": 1e-12}]), measurer, TuneConfig(2))
        assert session.outcomes == {"ok": 1, "run_error": 1}
    assert "cannot be true: 1e-12 s is less than a clock can see" in (tmp_path / "s" / "details.jsonl").read_text()


def test_verifying_does_not_believe_a_run_that_lies_once(measurer):
    ranked = [Candidate(schedule) for schedule in (liar(1e-4, 0.12), {"run": 0.1}, {"run": 0.09})]
    by_default, measured = Deliverer(TARGET)._verify(measurer, WORKLOADS[0], Candidate(None), ranked, None)
    assert [result.latency_s for result in measured] == [0.12, 0.1, 0.09]
    assert (by_default.latency_s, len(by_default.latencies_s)) == (0.06, 3)


def test_resume_measures_nothing_twice_and_stops_at_the_number_asked_for(tmp_path, measurer):
    schedules = [{"run": 0.1 + number / 100} for number in range(40)]
    counts = []
    with open_database(str(tmp_path / "best.db")) as database:
        for trials in (10, 10, 25):
            with open_session(tmp_path, WORKLOADS[:2], TARGET, resume=True) as session:
                strategy = Listed(schedules)
                tune(session, strategy, measurer, TuneConfig(trials, batch=4), database=database)
                counts.append(session.records)
                assert sum(len(own.keys) for own in session.trials) == session.records
                best = database.best(TARGET, WORKLOADS[0].key)
                assert best[0].measurement.latency_s == session.trials[0].best_s
    assert counts == [10, 10, 25]
    assert sum(count for _, count in strategy.told) == 25  # those of the sessions before too


def test_limits_per_workload_and_round_robin(tmp_path, measurer):
    schedules = [{"run": 0.1 + number / 100} for number in range(40)]
    with Session.create(tmp_path / "s", WORKLOADS, TARGET) as session:
        tune(session, Listed(schedules), measurer, TuneConfig(100, 5, batch=2, scheduler="round-robin"))
        assert [len(own.latencies_s) for own in session.trials] == [5, 5, 5]


def test_an_interrupt_in_a_search_waits_for_its_end_and_then_ends_the_run(tmp_path, measurer):
    class Interrupted(Listed):
        def ask(self, workload, count):
            os.kill(os.getpid(), signal.SIGINT)
            self.searched = True
            return super().ask(workload, count)

    strategy = Interrupted([{"run": 0.1}])
    with Session.create(tmp_path / "s", WORKLOADS, TARGET) as session, pytest.raises(KeyboardInterrupt):
        tune(session, strategy, measurer, TuneConfig(3))
    assert strategy.searched
    assert session.records == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_kills_at_any_time_lose_nothing_that_was_acknowledged(tmp_path):
    """The parent is killed after a random trial, at times one of its children before it; then the log is compared."""
    rng = random.Random(0)
    log = []
    for kill in range(KILLS):
        with tuning(tmp_path, 10_000) as process:
            assert process.stdout.readline() == f"resumed {len(log)}\n"
            acknowledged = [acknowledgement(process) for _ in range(rng.randrange(1, 12))]
            children = psutil.Process(process.pid).children()
            if kill % 2 and children:  # none when all have just died of their candidates
                rng.choice(children).kill()
                acknowledged += [acknowledgement(process) for _ in range(10)]
            process.kill()
            acknowledged += [parsed(line) for line in process.stdout]
            assert process.wait() == -signal.SIGKILL
        after = read_log(tmp_path)
        assert after[: len(log) + len(acknowledged)] == log + acknowledged
        assert len(after) - len(log) - len(acknowledged) in (0, 1)  # on the disk, and killed before it could say so
        log = after
    with tuning(tmp_path, len(log) + 5) as process:
        assert process.stdout.read().endswith("done\n")
    assert read_log(tmp_path)[: len(log)] == log
    with open_session(tmp_path, WORKLOADS, TARGET, resume=True) as session:
        assert session.records == sum(len(own.keys) for own in session.trials) == len(log) + 5


@contextmanager
def tuning(root: Path, trials: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, str(HERE / "tuning_driver.py"), str(root), str(trials)]
    environment = {**os.environ, "PYTHONPATH": str(STUB)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def parsed(line: str) -> tuple[int, list[float]]:
    _, index, _, *latencies_s = line.split()
    return int(index), [float(latency_s) for latency_s in latencies_s]


def acknowledgement(process: subprocess.Popen) -> tuple[int, list[float]]:
    return parsed(process.stdout.readline())


def read_log(root: Path) -> list[tuple[int, list[float]]]:
    """Whole lines of the one session's records: workload and latencies."""
    (records,) = root.glob("*/records.jsonl")
    lines = [json.loads(line) for line in records.read_bytes().split(b"\n")[:-1]]
    return [(index, latencies_s) for index, _, latencies_s in lines]
