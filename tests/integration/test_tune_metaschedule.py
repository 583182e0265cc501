"""``lorien tune`` on real workloads, beside TVM's own tools."""

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

import orjson
import tvm
from tvm import te

from lorien.database import open_database
from lorien.dialects.metaschedule import MetaScheduleDialect
from lorien.dialects.metaschedule.cpu_schedule import FIRST_DEFAULTS, cpu_schedules
from lorien.dialects.metaschedule.describe import FEATURES
from lorien.dialects.metaschedule.tuner import MetaScheduleSearch
from lorien.dialects.metaschedule.workload import candidate_of, module_of, native_target, tvm_target, workload_of
from lorien.models.online import FIRST_ROWS, OnlineModel
from lorien.records import Measurement, Outcome
from lorien.tune.scheduler import SCHEDULERS


def matmul(size):
    a, b = (te.placeholder((size, size), name=name) for name in "AB")
    k = te.reduce_axis((0, size))
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    return workload_of(module(a, b, c), f"matmul{size}", weight=2.0, networks=("small",))


def relu(size):
    a = te.placeholder((size,), name="A")
    c = te.compute((size,), lambda i: te.max(a[i], 0.0), name="C")
    return workload_of(module(a, c), "relu", networks=("small",))


def module(*tensors):
    return tvm.IRModule({"main": te.create_prim_func(tensors).with_attr("global_symbol", "main")})


@pytest.fixture(scope="module")
def workloads(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "workloads.jsonl"
    path.write_bytes(b"".join(orjson.dumps(w.to_json()) + b"\n" for w in (matmul(64), relu(256))))
    return path


def lorien(*arguments, **options):
    command = [sys.executable, "-c", "from lorien.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_tune_then_resume_and_what_is_left_behind(workloads, tmp_path):
    logs, db = tmp_path / "logs", tmp_path / "best.db"
    asked = ["tune", workloads, "--logs", logs, "--db", db, "--batch", 8, "--json"]
    done = lorien(*asked, "--trials", 10)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["trials"], answer["measured"], answer["interrupted"]) == (10, 10, False)
    assert "10/10 trials" in done.stderr

    refused = lorien(*asked, "--trials", 20)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--resume" in refused.stderr

    resumed = json.loads(lorien(*asked, "--trials", 20, "--resume").stdout)
    assert (resumed["trials"], resumed["measured"]) == (20, 10)
    assert sum(own["trials"] for own in resumed["workloads"]) == 20

    session = Path(resumed["session"])
    stock = tvm.s_tir.meta_schedule.database.JSONDatabase(work_dir=str(session))
    assert len(stock) == 20
    of_matmul = [r for r in stock.get_all_tuning_records() if len(r.args_info) == 3]
    best = min(float(np.median(record.run_secs)) for record in of_matmul)
    target = native_target()
    with open_database(str(db)) as database:
        (record,) = database.best(target, matmul(64).key)
    assert record.measurement.latency_s == resumed["workloads"][0]["best_latency_s"]
    assert record.measurement.latency_s == pytest.approx(best, rel=1e-6)  # TVM reads exponents to eight digits
    assert sorted(path.name for path in (logs / "metaschedule" / target.key).iterdir()) == [Path(resumed["log"]).name]


def test_random_search_goes_on_after_each_resume(workloads, tmp_path):
    asked = ("tune", workloads, "--strategy", "replay", "--batch", 2, "--logs", tmp_path / "logs", "--json")
    trials = [json.loads(lorien(*asked, "--trials", n, "--resume").stdout)["trials"] for n in (4, 6, 8)]
    assert trials == [4, 6, 8]


def test_an_interrupt_ends_it_with_the_log_whole_and_no_process_left(workloads, tmp_path):
    command = [sys.executable, "-c", "from lorien.cli import main; main()"]
    command += ["tune", str(workloads), "--logs", str(tmp_path), "--trials", "1000", "--batch", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # A machine that is busy otherwise is told of first.
    assert any("/1000 trials" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on" in said
    (session,) = (tmp_path / "sessions").iterdir()
    lines = (session / "database_tuning_record.json").read_bytes().splitlines()
    assert f"interrupted after {len(lines)} trials" in said
    assert not [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) == process.pid]


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_the_search_learns_and_never_offers_a_candidate_twice():
    workload, target = matmul(64), native_target()
    model = OnlineModel(None)
    search = MetaScheduleSearch(target, model, threads=1, seed=0)
    keys = []
    while not model.ready(workload.key):
        candidates = search.ask(workload, 32)
        keys += [candidate.key for candidate in candidates]
        results = [Measurement(Outcome.OK, (1e-3 * (1 + index),)) for index in range(len(candidates))]
        results[0] = Measurement(Outcome.BUILD_ERROR)
        search.tell(workload, candidates, results)
    assert len(keys) >= FIRST_ROWS
    keys += [candidate.key for _ in range(2) for candidate in search.ask(workload, 16)]
    assert len(keys) == len(set(keys)) > FIRST_ROWS + 16

    again = MetaScheduleSearch(target, OnlineModel(lambda rows: rows[:, 0].astype(float)), threads=1, seed=1)
    again.tell(workload, candidates, results)  # of another session
    offered = again.ask(workload, 8)
    assert offered
    assert not {candidate.key for candidate in offered} & {candidate.key for candidate in candidates}


def test_the_first_batch_of_a_search_that_drafts_is_what_the_drafts_promise():
    # Vectors are full in every schedule where the last axis is whole vectors; how deep the innermost sum is differs.
    depth = [feature.name for feature in FEATURES].index("trace_reduce_tile0")

    def deep_sums(rows):
        return rows[:, depth].astype(float)

    workload, target = matmul(96), native_target()
    batches = []
    for hints in ({}, {"draft": deep_sums}):
        search = MetaScheduleSearch(target, OnlineModel(lambda rows: np.zeros(len(rows))), threads=1, seed=0, **hints)
        search.prepare(workload, 16)
        (own,) = search._searches.values()
        batches.append(deep_sums(np.stack([own._rows[schedule] for schedule in own._pool.values()])))
    assert batches[1].mean() > batches[0].mean()


def test_the_default_schedule_and_its_likes_come_first():
    workload, target = matmul(256), native_target()
    likes = [candidate_of(schedule).key for schedule in cpu_schedules(module_of(workload), target)]
    for model in (None, OnlineModel(None)):
        search = MetaScheduleSearch(target, model, threads=1, seed=0)
        first = [candidate.key for candidate in search.ask(workload, 16)]
        assert first[:FIRST_DEFAULTS] == likes[:FIRST_DEFAULTS]
        assert not set(first[FIRST_DEFAULTS:]) & set(likes), "then come random samples"


def test_a_tiny_space_is_exhausted():
    search = MetaScheduleSearch(native_target(), OnlineModel(lambda rows: np.zeros(len(rows))), threads=1, seed=0)
    found = []
    while candidates := search.ask(relu(256), 16):
        found += candidates
        search.tell(relu(256), candidates, [Measurement(Outcome.OK, (1e-6,))] * len(candidates))
    assert 1 <= len(found) < 16


@pytest.mark.parametrize("name", ["gradient", "round-robin"])
def test_the_schedulers_choose_as_tvm_does(name):
    """TVM's own scheduler object runs with made-up latencies; ours is shown the same ones."""
    batch, weights, rounds = 4, [1.0, 3.0, 2.0], 30
    rng = np.random.default_rng(0)
    latencies_s = [list(rng.lognormal(scale, 1.0, batch * rounds)) for scale in (0, -1, 1)]
    ours, shown = [], [[] for _ in weights]
    for _ in range(rounds):
        index = SCHEDULERS[name](weights, shown, batch)
        ours.append(index)
        first = len(shown[index])
        shown[index] += latencies_s[index][first : first + batch]
    assert ours == tvm_choices(name, weights, latencies_s, batch, rounds)


def tvm_choices(name, weights, latencies_s, batch, rounds):
    from tvm.ir.utils import derived_object
    from tvm.s_tir import meta_schedule as ms

    MetaScheduleDialect().warm_up(native_target())
    chosen, streams = [], [iter(own) for own in latencies_s]
    modules = [tvm.s_tir.Schedule(module_of_size(size)) for size in (8, 16, 32)]

    @derived_object
    class Strategy(ms.search_strategy.PySearchStrategy):
        def _initialize_with_tune_context(self, context):
            pass

        def pre_tuning(self, max_trials, num_trials_per_iter, design_spaces, database=None, cost_model=None):
            self.schedule = design_spaces[0]

        def post_tuning(self):
            pass

        def generate_measure_candidates(self):
            return [ms.MeasureCandidate(self.schedule, []) for _ in range(batch)]

        def notify_runner_results(self, measure_candidates, results):
            pass

        def clone(self):
            return Strategy()

    @derived_object
    class Builder(ms.builder.PyBuilder):
        def build(self, build_inputs):
            size = int(build_inputs[0].mod["main"].params[0].ty.shape[0])
            chosen.append((8, 16, 32).index(size))
            return [ms.builder.BuilderResult(str(chosen[-1]), None)] * len(build_inputs)

    @derived_object
    class Future(ms.runner.PyRunnerFuture):
        def __init__(self, latency_s):
            super().__init__()
            self.latency_s = latency_s

        def done(self):
            return True

        def result(self):
            return ms.runner.RunnerResult([self.latency_s], None)

    @derived_object
    class Runner(ms.runner.PyRunner):
        def run(self, runner_inputs):
            own = streams[int(runner_inputs[0].artifact_path)]
            return [Future(float(latency_s)) for latency_s in islice(own, len(runner_inputs))]

    tasks = [
        ms.TuneContext(
            schedule.mod,
            target=tvm_target(native_target()),
            space_generator=ms.space_generator.ScheduleFn(lambda schedule: None, postprocs=[], mutator_probs={}),
            search_strategy=Strategy(),
        )
        for schedule in modules
    ]
    scheduler = ms.task_scheduler.create(name)
    scheduler.tune(tasks, weights, batch * rounds, 10**6, batch, Builder(), Runner(), [], None, None)
    return chosen


def module_of_size(size):
    a = te.placeholder((size,), name="A")
    return module(a, te.compute((size,), lambda i: a[i] + 1.0, name="C"))
