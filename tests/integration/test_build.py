"""``lorien build`` on small real graphs: what is in the folder, and why each schedule is what it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("tvm")

import tvm
from tvm import relax

import lorien
from lorien.database import open_database
from lorien.delivery import Source
from lorien.dialects import open_live_dialect, open_model_dialect
from lorien.dialects.metaschedule.frontends import load_model
from lorien.dialects.metaschedule.network import Network
from lorien.dialects.metaschedule.workload import BUILD, NAIVE, native_target
from lorien.errors import BadInput, LorienError, UnsupportedOperation
from lorien.network import BUDGET_S, Budget, _beside_reference
from lorien.records import Candidate, Measurement, Outcome, TuningRecord
from lorien.tune.compare import save_outputs
from lorien.tune.model_run import difference, run_beside, run_reference

TARGET = native_target()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return networks.convolutions(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def convolutions(model):
    """The two workloads with something to tune."""
    return [w for w in open_live_dialect("metaschedule").extract(model, TARGET) if "conv2d" in w.name]


@pytest.fixture(scope="module")
def schedules(convolutions):
    """A schedule for each of them, as the search samples it."""
    dialect = open_live_dialect("metaschedule")
    return [dialect.search(workload, TARGET, 1, None)[0] for workload in convolutions]


def put(url: Path, workload, candidate, build=BUILD, latency_s=1e-5) -> None:
    with open_database(str(url)) as database:
        measurement = Measurement(Outcome.OK, (latency_s,))
        database.put(TuningRecord(workload, TARGET, candidate, measurement, build))


def test_what_the_command_leaves_is_a_model_that_tvm_runs(model, tmp_path):
    command = [sys.executable, "-c", "from lorien.cli import main; main()", "build", str(model), "--run", "--json"]
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    # Two convolutions, a pooling, and what brings the output back from its blocks.
    assert answer["sources"] == {"database": 0, "ranked": 0, "default": 4}
    assert {w["why"] for w in answer["workloads"]} == {"no database was given; no models were given"}
    assert answer["latency_s"] > 0
    assert answer["reference"]["name"].startswith("ONNX")
    assert (answer["reference"]["difference"], answer["reference"]["skipped"]) == ("", "")
    assert json.loads((tmp_path / "out/report.json").read_bytes()) == answer
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "library.so",
        "report.json",
        "workloads.jsonl",
    ]
    x = np.random.default_rng(1).random((1, 3, 14, 14), np.float32)
    machine = relax.VirtualMachine(tvm.runtime.load_module(answer["library"]), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(x)).numpy()
    (expected,) = ReferenceEvaluator(onnx.load(str(model))).run(None, {"image": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_why_a_schedule_is_used_or_not(model, convolutions, schedules, tmp_path):
    url = tmp_path / "best.db"
    put(url, convolutions[0], schedules[0])
    instructions, _ = schedules[1].schedule
    broken = [[*instructions[:3], ["GetSBlock", [], ["nobody", "main"], ["b99"]], *instructions[3:]], []]
    put(url, convolutions[1], Candidate(broken))
    report = lorien.build(model, output=tmp_path / "out", database=str(url))
    first, second, mean = (
        next(c for c in report.choices if c.workload.name == name)
        for name in (convolutions[0].name, convolutions[1].name, "mean")
    )
    assert (first.source, first.latency_s, first.why) == (Source.DATABASE, 1e-5, "")
    assert first.candidate.schedule == schedules[0].schedule
    assert second.source is Source.DEFAULT
    assert f"does not replay: instruction 4 of {len(instructions) + 1}, GetSBlock" in second.why
    assert mean.why == "not in the database; no models were given"
    assert report.run is not None
    assert not report.run.difference

    put(url, convolutions[1], schedules[1], latency_s=2e-5)  # slower than the broken one, and good
    module = load_model(model)
    report = lorien.build(module, TARGET, output=tmp_path / "out", database=str(url), check=False)
    assert report.count(Source.DATABASE) == 2
    assert report.run is None

    other = tmp_path / "other.db"
    put(other, convolutions[0], schedules[0], build="tvm 0.9.0")
    report = lorien.build(model, output=tmp_path / "out", database=str(other), check=False)
    assert [c.why for c in report.choices if c.workload.key == convolutions[0].key] == [
        "only measured with tvm 0.9.0; no models were given"
    ]


def test_a_schedule_changes_the_kernel(model, convolutions, schedules, tmp_path):
    opened = open_model_dialect("metaschedule").open_model(model, TARGET)
    chosen = {w.key: candidate for w, candidate in zip(convolutions, schedules, strict=True)}
    opened.build(chosen, tmp_path / "tuned.so")
    opened.build({}, tmp_path / "default.so")
    opened.build(dict.fromkeys((workload.key for workload in opened.workloads), NAIVE), tmp_path / "naive.so")
    run = run_beside(
        "metaschedule",
        TARGET,
        tmp_path / "tuned.so",
        tmp_path / "naive.so",
        opened.inputs,
        default=tmp_path / "default.so",
        repeat=2,
        min_repeat_s=0.01,
        timeout_s=60,
    )
    assert not run.difference
    assert run.latency_s != run.default_latency_s
    sizes = {(tmp_path / f"{name}.so").stat().st_size for name in ("tuned", "default", "naive")}
    assert len(sizes) == 3


def test_a_library_that_cannot_be_run_is_an_error_with_what_was_said(model, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(LorienError, match=r"(?s)ended with exit code 1: .*broken\.so"):
        run_beside("metaschedule", TARGET, broken, broken, (), repeat=0, min_repeat_s=0, timeout_s=60)


def test_a_wrong_model_is_not_kept(model, tmp_path, monkeypatch):
    """The library built is another network's: same inputs, other outputs."""
    other = networks.convolutions(tmp_path / "other.onnx", seed=1)
    wrong = tmp_path / "wrong"
    lorien.build(other, output=wrong, check=False)
    build = Network.build

    def swapped(self, schedules, library):
        build(self, schedules, library)
        if library.name == "library.so":
            shutil.copy(wrong / "library.so", library)

    monkeypatch.setattr(Network, "build", swapped)
    with pytest.raises(LorienError, match="the built model is wrong: output 0 is off by"):
        lorien.build(model, output=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_sorts_and_scans_is_built_and_right(tmp_path):
    report = lorien.build(networks.sorting(tmp_path / "sorting.onnx"), output=tmp_path / "out")
    assert report.reference is not None
    assert report.reference.name
    assert (report.reference.difference, report.reference.skipped) == ("", "")


def test_an_operator_that_is_left_over_is_named(tmp_path):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(relax.op.ewise_fma(x, x, x)))
        builder.emit_func_output(out)
    with pytest.raises(BadInput, match="no implementation of the Relax operator ewise_fma on this target"):
        lorien.build(builder.get(), output=tmp_path / "out")


def test_what_the_importer_reads_wrongly_is_not_kept(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from lorien.cli import main; main()",
        "build",
        "--json",
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, str(networks.sequence(tmp_path / "sequence.onnx"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "TVM reads the model wrongly: output 0 is off by" in said
    assert "Nothing was kept. Fix:" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_what_was_not_compared_with_another_implementation_says_why(model, tmp_path, monkeypatch):
    outputs = tmp_path / "outputs.npz"
    save_outputs(outputs, [np.zeros(3, np.float32)])
    opened = open_model_dialect("metaschedule").open_model(model, TARGET)
    assert "has shape (3,)" in run_reference(model, opened.inputs, outputs, 60).difference
    assert "has 1 inputs, TVM's program 0" in run_reference(model, (), outputs, 60).skipped
    assert "did not end within 0.1 s, and was killed" in run_reference(model, opened.inputs, outputs, 0.1).skipped
    unknown = onnx.load(str(model))
    unknown.graph.node[1].op_type = "Nobody"
    onnx.save(unknown, str(tmp_path / "unknown.onnx"))
    assert "cannot run the model:" in run_reference(tmp_path / "unknown.onnx", opened.inputs, outputs, 60).skipped
    monkeypatch.setattr("lorien.network.REFERENCE_S", 1e-9)
    assert "GFLOP would take" in _beside_reference(model, opened, outputs).skipped
    assert "no ONNX model" in _beside_reference(load_model(model), opened, outputs).skipped


def test_what_cannot_be_built(model, tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        lorien.build(tmp_path / "none.onnx", output=tmp_path / "out")
    with pytest.raises(UnsupportedOperation, match="reads logs only"):
        open_model_dialect("autotvm")


def test_outputs_are_compared_by_scale_and_type():
    ones = np.ones(4, np.float32)
    assert not difference([ones * 1.0005], [ones])
    assert "output 1 is off by 0.1" in difference([ones, ones * 1.1], [ones, ones])
    assert difference([np.array([1, 2])], [np.array([1, 3])])
    assert not difference([np.float32([np.inf, np.nan, 1])], [np.float32([np.inf, np.nan, 1])])
    assert difference([np.float32([1, 1])], [np.float32([np.inf, 1])])
    assert difference([], [ones])
    assert difference([ones[:2]], [ones])


def test_the_budget_goes_to_all_and_more_to_the_heavy():
    budget = Budget(BUDGET_S)
    shares = [budget.share([work, *[1.0] * 9], now_s=0.0) for work in (1.0, 91.0)]
    assert shares == pytest.approx([BUDGET_S / 10, BUDGET_S * (0.05 + 0.455)])
    assert budget.share([0.0, 0.0], now_s=BUDGET_S / 2) == pytest.approx(BUDGET_S / 4)
    assert budget.share([1.0], now_s=BUDGET_S + 1) == 0
