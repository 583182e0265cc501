"""The main job with real parts: real logs, a real ONNX graph, the real compiler, schedules run on this machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample

from lorien.cli.workloads import read_workloads
from lorien.database import open_database
from lorien.delivery import Source, deliver
from lorien.dialects import open_live_dialect, resolve_target
from lorien.errors import NotAllowed, UnknownTarget
from lorien.models import load_ranker
from lorien.records import Candidate, Measurement, Outcome, TuningRecord
from lorien.serve.client import Client

BIN = Path(sys.executable).parent


def result(*arguments: str | Path, program: str = "lorien") -> dict[str, Any]:
    done = subprocess.run([BIN / program, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of one small real network, its features, and a model of them."""
    folder = tmp_path_factory.mktemp("job")
    sample.cut_short(folder / "given", {"bvlc_alexnet": 13}, records=16)
    result("ingest", folder / "given", "--dialect", "metaschedule", "--logs", folder / "logs")
    result("featurize", folder / "logs", "-o", folder / "features")
    result(folder / "features", "-o", folder / "models", "--time-limit", "60", program="lorien-train")
    conv_model(folder / "net.onnx")
    result("extract", folder / "net.onnx", "--match", "conv2d", "-o", folder / "workloads.jsonl")
    return folder


def conv_model(path: Path) -> None:
    """A convolution with bias and ReLU, as exporters write it. In float64 the default is bad: a search pays."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)

    weight = numpy_helper.from_array(np.ones((32, 16, 3, 3), np.float64), "w")
    bias = numpy_helper.from_array(np.ones(32, np.float64), "b")
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net", [value("x", [1, 16, 28, 28])], [value("y", [1, 32, 28, 28])], [weight, bias]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))


def test_an_unseen_workload_gets_a_verified_schedule_and_then_a_database_hit(job: Path, tmp_path: Path) -> None:
    rank = ["rank", job / "workloads.jsonl", "--models", job / "models", "--top-k", "4", "--search-s", "3"]
    rank += ["--verify", "--db", f"sqlite:///{tmp_path / 's.db'}"]
    (answer,) = result(*rank)["workloads"]
    assert answer["source"] == "ranked"
    assert answer["candidates"] >= 4
    assert len(answer["top_k"]) == 4
    scores = [trial["score"] for trial in answer["top_k"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    latencies = [trial["latency_s"] for trial in answer["top_k"] if trial["latency_s"]]
    assert answer["best_latency_s"] == min(latencies)
    assert answer["rank1_latency_s"] == answer["top_k"][0]["latency_s"]
    assert answer["best_latency_s"] < answer["default_latency_s"]

    (hit,) = result(*rank)["workloads"]
    assert hit["source"] == "database"
    assert hit["best_latency_s"] == answer["best_latency_s"]
    assert hit["schedule"] == answer["schedule"]
    assert hit["seconds"] < 1

    (found,) = result("query", "--db", tmp_path / "s.db", "--target", "native")["records"]
    assert found["latency_s"] == answer["best_latency_s"]


def test_as_many_are_verified_as_the_model_asks_for_and_the_budget_allows(job: Path) -> None:
    rank = [
        "rank",
        job / "workloads.jsonl",
        "--models",
        job / "models",
        "--top-k",
        "auto",
        "--budget",
        "6s",
        "--verify",
    ]
    (answer,) = result(*rank)["workloads"]
    tried = len(answer["top_k"])
    wanted = min(answer["confident_k"], answer["candidates"])
    assert answer["confident_k"] >= 1
    assert 0 < answer["expected_fraction"] <= 1
    # All of those asked for, or as many as there was time for, and the note says so.
    assert tried == wanted or f"the budget ended after {tried} of {wanted}" in answer["note"]
    # The default is run last: the budget may end before it.
    assert answer["best_latency_s"] < (answer["default_latency_s"] or math.inf)


def test_the_model_drafts_by_what_is_known_before_lowering(job: Path) -> None:
    import numpy as np

    from lorien.dialects.metaschedule.describe import EARLY
    from lorien.models.data import group_tables, read_features, read_rows

    (group,) = group_tables(job / "features")
    rows = read_rows(group)
    matrix = read_features(group, rows.all())
    drafts = np.full_like(matrix, np.nan)
    drafts[:, EARLY] = matrix[:, EARLY]
    ranker = load_ranker(job / "models", group.target)
    scores = ranker.hints["draft"](drafts)
    value = rows.candidates(rows.all()).value()
    assert np.corrcoef(scores, value)[0, 1] > 0.4
    # Nothing but the early columns counts.
    matrix[:, np.setdiff1d(np.arange(matrix.shape[1]), EARLY)] = 1.0
    assert np.array_equal(ranker.hints["draft"](matrix), scores)


def test_ranked_without_a_device(job: Path) -> None:
    (answer,) = result("rank", job / "workloads.jsonl", "--models", job / "models", "--search-s", "1")["workloads"]
    assert (answer["source"], answer["note"]) == ("ranked", "not verified")
    assert answer["best_latency_s"] is None
    assert answer["top_k"][0]["error"] is None


def test_the_default_where_there_is_no_model(job: Path) -> None:
    (workload,) = read_workloads(job / "workloads.jsonl")
    target = resolve_target("native")
    answer = deliver(workload, target, verify=False)
    assert (answer.source, answer.candidate.schedule) == (Source.DEFAULT, None)
    assert "no model" in answer.note


def test_only_a_schedule_of_this_build_is_a_hit(job: Path, tmp_path: Path) -> None:
    (workload,) = read_workloads(job / "workloads.jsonl")
    target = resolve_target("native")
    measurement = Measurement(Outcome.OK, (1e-3,))
    url = f"sqlite:///{tmp_path / 's.db'}"
    for build, source in (
        ("tvm 0.9.0", Source.DEFAULT),
        (open_live_dialect("metaschedule").framework(), Source.DATABASE),
    ):
        with open_database(url) as database:
            database.put(TuningRecord(workload, target, Candidate([[], []]), measurement, build))
        assert deliver(workload, target, database=url, verify=False).source is source


def test_a_model_of_another_family_is_refused_and_the_answer_is_the_default(job: Path) -> None:
    (workload,) = read_workloads(job / "workloads.jsonl")
    target = resolve_target("cuda -arch=sm_86")
    with pytest.raises(UnknownTarget, match="lorien-train"):
        load_ranker(str(job / "models"), target)
    answer = deliver(workload, target, models=str(job / "models"), verify=False)
    assert answer.source is Source.DEFAULT


def test_the_service_delivers_what_it_ranked_and_verified(job: Path, tmp_path: Path) -> None:
    (workload,) = read_workloads(job / "workloads.jsonl")
    target = resolve_target("native")
    options = ["--models", str(job / "models"), "--db", str(tmp_path / "s.db"), "--verify", "--search-s", "2"]
    command = [BIN / "lorien", "serve", "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        url = json.loads(b"".join(iter(service.stdout.readline, b"}\n")) + b"}")["url"]
        try:
            with Client(url) as client:
                with pytest.raises(NotAllowed, match=f"verifies for {target.key} only"):
                    client.deliver(workload, resolve_target("llvm -mcpu=other"))
                answer = client.deliver(workload, target, top_k=2)
                assert answer.source is Source.RANKED
                assert len(answer.trials) == 2
                times = [trial.measurement.latency_s for trial in answer.trials if trial.measurement]
                assert answer.latency_s == min(filter(None, times)) < (answer.default_latency_s or 0)
                hit = client.deliver(workload, target)
                assert (hit.source, hit.candidate.schedule) == (Source.DATABASE, answer.candidate.schedule)
                candidates = [*(trial.candidate for trial in answer.trials), Candidate([["no trace"]])]
                scores = load_ranker(job / "models", target).rank(workload, candidates)
                assert list(client.load_ranker(target).rank(workload, candidates)) == list(scores)
                assert scores[2] == 0
        finally:
            service.terminate()
    assert service.returncode == 0


def test_a_model_is_built_with_schedules_ranked_now_and_then_from_the_database(job: Path, tmp_path: Path) -> None:
    (workload,) = read_workloads(job / "workloads.jsonl")
    framework = open_live_dialect("metaschedule").framework()
    nothing, measurement = Candidate([["no trace"]]), Measurement(Outcome.OK, (1e-6,))
    with open_database(str(tmp_path / "s.db")) as database:
        database.put(TuningRecord(workload, resolve_target("native"), nothing, measurement, framework))
    build = ["build", job / "net.onnx", "--db", tmp_path / "s.db", "--models", job / "models", "--run"]
    first = result(*build, "--budget", "15", "-o", tmp_path / "first")
    (ranked,) = first["workloads"]
    assert ranked["source"] == "ranked"  # what does not replay is not asked for again
    assert ranked["why"].startswith("the record does not replay")
    assert first["latency_s"] < first["default_latency_s"]
    again = result(*build, "--budget", "0", "-o", tmp_path / "again")
    (hit,) = again["workloads"]
    assert (hit["source"], hit["why"], hit["schedule"]) == ("database", "", ranked["schedule"])
    assert again["sources"] == {"database": 1, "ranked": 0, "default": 0}
