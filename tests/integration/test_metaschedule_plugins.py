"""Lorien's database, cost model, builder and runner in TVM's own tuning; the cases are those TVM holds its own to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
import tvm_ffi
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms

import lorien.metaschedule as lms
from lorien.database import open_database
from lorien.dialects.metaschedule.describe import FEATURES
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.dialects.metaschedule.workload import native_target, tvm_target, workload_of
from lorien.errors import BadInput, SchemaMismatch
from lorien.models.online import FIRST_ROWS
from lorien.tune.measure import MeasureConfig

TARGET = tvm.target.Target({"kind": "llvm", "num-cores": 1})


def module(size: int) -> tvm.IRModule:
    a, b = (te.placeholder((size, size), name=name) for name in "AB")
    k = te.reduce_axis((0, size), "k")
    c = te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    return tvm.IRModule({"main": te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")})


MATMUL, OTHER = module(32), module(16)


def tiled(mod: tvm.IRModule, tile: int) -> Schedule:
    schedule = Schedule(mod)
    _, j, _ = schedule.get_loops(schedule.get_sblock("C"))
    schedule.vectorize(schedule.split(j, [None, tile])[1])
    return schedule


def commit(database, run_secs, tile=4, mod=MATMUL, target=TARGET):
    token = database.commit_workload(mod)
    arguments = ms.arg_info.ArgInfo.from_prim_func(mod["main"])
    record = ms.database.TuningRecord(tiled(mod, tile).trace, token, run_secs, target, arguments)
    database.commit_tuning_record(record)
    return record


def latencies(records):
    return [[float(second.value) for second in record.run_secs] for record in records]


@pytest.fixture(params=["sqlite", "dynalite"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'best.db'}"
    endpoint = request.getfixturevalue("aws")("dynalite")
    return f"dynamodb://plugins-{tmp_path.name}?region=us-east-1&endpoint_url={endpoint}"


@pytest.fixture
def database(url):
    opened = lms.Database(url, create=True)
    yield opened
    opened.close()


def test_workloads_and_records_come_back(database):
    assert not database.has_workload(MATMUL)
    record = commit(database, [1.5, 2.5, 1.8])
    assert database.has_workload(MATMUL)
    assert not database.has_workload(OTHER)
    assert len(database) == 1
    equal = module(32)
    assert database.commit_workload(equal).same_as(database.commit_workload(MATMUL))
    (found,) = database.get_top_k(database.commit_workload(equal), 3)
    assert str(found.trace) == str(record.trace)
    assert latencies([found]) == [[1.5, 2.5, 1.8]]
    assert dict(found.target.export()) == dict(record.target.export())
    assert tvm_ffi.structural_equal(found.workload.mod, MATMUL)
    assert [str(a.as_json()) for a in found.args_info] == [str(a.as_json()) for a in record.args_info]
    assert latencies(database.get_all_tuning_records()) == [[1.5, 2.5, 1.8]]
    assert database.get_top_k(database.commit_workload(OTHER), 3) == []


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [[0.5, 2.0]]), (9, [[0.5, 2.0], [2.0], [1.5, 4.5]])])
def test_the_top_k_are_by_mean_and_without_failures(tmp_path, count, expected):
    database = lms.Database(str(tmp_path / "best.db"))
    for tile, run_secs in zip((1, 2, 4, 8, 16, 32), ([1.5, 4.5], [], [0.5, 2.0], None, [2.0], [1e10]), strict=True):
        commit(database, run_secs, tile)
    assert latencies(database.get_top_k(database.commit_workload(MATMUL), count)) == expected
    database.close()


def test_queries_are_of_the_target_asked_for(database):
    commit(database, [1.0], 4)
    commit(database, [0.2], 8)
    assert latencies([database.query(MATMUL, TARGET, kind="record")]) == [[0.2]]
    expected = tiled(MATMUL, 8).mod
    assert tvm_ffi.structural_equal(database.query(MATMUL, TARGET, kind="schedule").mod, expected)
    assert tvm_ffi.structural_equal(database.query(MATMUL, TARGET, kind="ir_module"), expected)
    elsewhere = tvm.target.Target({"kind": "llvm", "num-cores": 64})
    for kind in ("record", "schedule", "ir_module"):
        assert database.query(OTHER, TARGET, kind=kind) is None
        assert database.query(MATMUL, elsewhere, kind=kind) is None
    with pytest.raises(ValueError, match="Unknown kind"):
        database.query(MATMUL, TARGET, kind="best")


def test_the_module_as_it_is_can_be_the_best(database):
    commit(database, [1.0])
    arguments = ms.arg_info.ArgInfo.from_prim_func(MATMUL["main"])
    token = database.commit_workload(MATMUL)
    database.commit_tuning_record(ms.database.TuningRecord(Schedule(MATMUL).trace, token, [0.1], TARGET, arguments))
    assert database.query(MATMUL, TARGET, kind="record") is None
    assert latencies(database.get_top_k(token, 5)) == [[1.0]]


def test_it_is_the_current_database_and_unites_with_others(tmp_path):
    database = lms.Database(str(tmp_path / "best.db"), TARGET)
    with database:
        assert ms.database.Database.current() == database
    commit(database, [1.0], target=None)  # the database's own target
    memory = ms.database.MemoryDatabase()
    commit(memory, [0.5], 8)
    assert latencies([ms.database.UnionDatabase(database, memory).query(MATMUL, TARGET, kind="record")]) == [[0.5]]
    assert latencies([ms.database.OrderedUnionDatabase(database, memory).query(MATMUL, TARGET, kind="record")]) == [
        [1.0]
    ]
    pruned = ms.database.MemoryDatabase()
    database.dump_pruned(pruned)
    assert len(pruned) == 1
    database.close()
    with pytest.raises(ValueError, match="names no target"):
        commit(lms.Database(str(tmp_path / "other.db")), [1.0], target=None)


@pytest.fixture(scope="module")
def measurer():
    config = MeasureConfig(builders=1, repeat=2, min_repeat_s=0.005, build_timeout_s=60)
    with lms.Measurer("metaschedule", native_target(), config) as opened:
        yield opened


def test_builder_and_runner_answer_one_for_one(measurer):
    native = tvm_target(native_target())
    builder, runner = lms.Builder(measurer), lms.Runner(measurer)
    gpu = Schedule(MATMUL)
    gpu.bind(gpu.get_loops(gpu.get_sblock("C"))[0], "threadIdx.x")
    elsewhere = tvm.target.Target({"kind": "llvm", "mcpu": "skylake", "num-cores": 64})
    inputs = [(MATMUL, native), (gpu.mod, native), (tiled(MATMUL, 8).mod, native), (MATMUL, elsewhere)]
    built = builder.build([ms.builder.BuilderInput(mod, target) for mod, target in inputs])
    assert [result.error_msg is None for result in built] == [True, False, True, False]
    assert built[1].error_msg.startswith("lorien: build_error: ")
    assert "measurer's" in built[3].error_msg
    arguments = ms.arg_info.ArgInfo.from_prim_func(MATMUL["main"])
    paths = [built[0].artifact_path, "missing.so", built[2].artifact_path]
    futures = runner.run([ms.runner.RunnerInput(path, "llvm", arguments) for path in paths])
    assert all(future.done() for future in futures)
    first, missing, last = (future.result() for future in futures)
    assert first.error_msg is None
    assert len(first.run_secs) == len(last.run_secs) == 2
    assert all(0 < float(second) < 0.1 for second in first.run_secs)
    assert missing.run_secs is None
    assert missing.error_msg.startswith("lorien: run_error: ")


def test_stock_tuning_with_all_four(measurer, tmp_path):
    target = native_target()
    native = tvm_target(target)
    url = str(tmp_path / "best.db")
    database, model = lms.Database(url, native), lms.CostModel(None, native)
    returned = ms.tune_tir(
        MATMUL,
        native,
        str(tmp_path),
        max_trials_global=6,
        num_trials_per_iter=3,
        builder=lms.Builder(measurer),
        runner=lms.Runner(measurer),
        cost_model=model,
        database=database,
        strategy=ms.search_strategy.EvolutionarySearch(population_size=16, init_min_unmeasured=4, genetic_num_iters=1),
        seed=1,
    )
    assert returned.same_as(database)
    assert 0 < len(database) <= 6
    best = database.query(MATMUL, native, kind="record")
    with open_database(url) as stored:
        (record,) = stored.best(target, workload_of(MATMUL, "main").key)
    assert record.candidate.schedule is not None
    assert latencies([best]) == [list(record.measurement.latencies_s)]
    model.save(str(tmp_path / "model.npz"))
    again = lms.CostModel(None, native)
    again.load(str(tmp_path / "model.npz"))
    with np.load(tmp_path / "model.npz") as saved:
        assert saved["rows"].shape == (6, len(FEATURES))
    database.close()


@pytest.fixture
def context():
    register_intrinsics(native_target())
    return ms.TuneContext(MATMUL, target=TARGET, task_name="matmul")


def candidates(count):
    return [ms.MeasureCandidate(tiled(MATMUL, 1 << i % 6), []) for i in range(count)]


def results(count):
    good = [ms.runner.RunnerResult([0.001 * (1 + i % 6)], None) for i in range(count - 1)]
    return [*good, ms.runner.RunnerResult(None, "error")]


def test_the_cost_model_learns_is_saved_and_comes_back_the_same(context, tmp_path):
    model = lms.CostModel(None, TARGET)
    assert np.ptp(model.predict(context, candidates(8))) > 0  # random, as TVM's own while it knows nothing
    model.update(context, [], [])
    count = FIRST_ROWS + 6
    model.update(context, candidates(count), results(count))
    scores = model.predict(context, candidates(6))
    assert scores.dtype == np.float64
    assert scores[0] > scores[5]
    path = str(tmp_path / "model")
    model.save(path)
    other = lms.CostModel(None, TARGET)
    other.load(path)
    np.testing.assert_array_equal(other.predict(context, candidates(6)), scores)
    lms.CostModel(None, TARGET).save(path)
    other.load(path)  # nothing learned: random again


def test_what_a_cost_model_cannot_use_is_refused(context, tmp_path):
    model = lms.CostModel._cls(None, TARGET)
    with pytest.raises(BadInput, match="6 candidates have 5 results"):
        model.update(context, candidates(6), results(5))
    path = tmp_path / "model"
    path.write_bytes(b"no arrays")
    with pytest.raises(BadInput, match="no saved cost model"):
        model.load(str(path))
    with path.open("wb") as file:
        np.savez(file, features="metaschedule 0", workloads=[], rows=[], latencies_s=[])
    with pytest.raises(SchemaMismatch, match="metaschedule 0"):
        model.load(str(path))


def test_lowered_kernels_are_those_that_are_extracted(tmp_path):
    from tvm import relax
    from tvm.s_tir.meta_schedule.relax_integration import extract_tasks

    from lorien.dialects import open_live_dialect

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 16, 8, 8), "float32"))
    weight = relax.const(np.random.default_rng(0).random((32, 16, 3, 3), np.float32))
    with builder.function("main", [x]):
        with builder.dataflow():
            convolved = builder.emit(relax.op.nn.conv2d(x, weight, padding=1))
            result = builder.emit_output(relax.op.nn.relu(convolved))
        builder.emit_func_output(result)
    model, native = tmp_path / "model.json", native_target()
    model.write_text(tvm.ir.save_json(builder.get()))
    tasks = extract_tasks(lms.lower(builder.get(), native), tvm_target(native), params={})
    known = {workload.key for workload in open_live_dialect("metaschedule").extract(model, native)}
    assert {workload_of(task.dispatched[0], task.task_name).key for task in tasks} == known
    assert any("NCHWc" in task.task_name for task in tasks)
