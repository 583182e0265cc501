"""Halide: pipelines that compute what they say, schedules that replay, features in the layout Halide publishes."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from lorien.dialects import open_dialect, open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.halide import space
from lorien.dialects.halide.features import FEATURES, describe
from lorien.dialects.halide.pipelines import parse, pipeline_of
from lorien.errors import BadInput
from lorien.featurize import open_extractor
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target

pytest.importorskip("halide")
DIALECT = open_live_dialect("halide")
SMALL = {
    "matmul": "matmul:8,32,16",
    "conv2d": "conv2d:6,16,4,16,3",
    "depthwise_conv2d": "depthwise_conv2d:6,10,16,3",
    "blur": "blur:40,64",
    "unsharp": "unsharp:40,64",
    "resize": "resize:32,64,2",
    "softmax": "softmax:8,64",
    "layer_norm": "layer_norm:8,64",
    "histogram_equalisation": "histogram_equalisation:32,64",
}


@pytest.fixture(scope="module")
def target() -> Target:
    return DIALECT.native_target()


def windows(image: np.ndarray, kernel: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(image, (kernel, kernel), axis=(0, 1))


def expected(workload: Workload) -> np.ndarray:
    """What numpy makes of the same inputs; its axes are Halide's reversed."""
    from lorien.dialects.halide.compile import inputs_of

    name, sizes = workload.identity
    given = [tensor.astype(np.float64) for tensor in inputs_of(workload, pipeline_of(workload))]
    first = given[0]
    if name == "matmul":
        return first @ given[1]
    if name == "conv2d":
        return np.maximum(np.einsum("yxcuv,uvcf->yxf", windows(first, sizes[4]), given[1]) + given[2], 0)
    if name == "depthwise_conv2d":
        return np.maximum(np.einsum("yxcuv,uvc->yxc", windows(first, sizes[3]), given[1]) + given[2], 0)
    if name == "blur":
        return windows(np.pad(first, 1, "edge"), 3).mean(axis=(2, 3))
    if name == "softmax":
        power = np.exp(first - first.max(axis=1, keepdims=True))
        return power / power.sum(axis=1, keepdims=True)
    if name == "layer_norm":
        mean, variance = first.mean(axis=1, keepdims=True), first.var(axis=1, keepdims=True)
        return (first - mean) / np.sqrt(variance + 1e-5) * given[1] + given[2]
    if name == "resize":
        factor = sizes[2]
        padded = np.pad(first, (0, 1), "edge")
        y, x = (np.arange(size) / factor for size in sizes[:2])
        rows = padded[y.astype(int)] * (1 - y % 1)[:, None] + padded[y.astype(int) + 1] * (y % 1)[:, None]
        return rows[:, x.astype(int)] * (1 - x % 1) + rows[:, x.astype(int) + 1] * (x % 1)
    if name == "histogram_equalisation":
        below = np.cumsum(np.bincount(first.astype(int).ravel(), minlength=256))
        return np.floor((below / first.size * 255).astype(np.float32)[first.astype(int)])
    grey = np.tensordot([0.299, 0.587, 0.114], first, axes=1)
    weights = np.exp(-(np.arange(-3, 4) ** 2) / 4.5) / (np.sqrt(2 * np.pi) * 1.5)
    soft = np.einsum("yxuv,u,v->yx", windows(np.pad(grey, 3, "edge"), 7), weights, weights)
    return (2 * grey - soft) / (grey + 0.01) * first


@pytest.mark.parametrize("name", SMALL)
def test_a_pipeline_computes_what_numpy_does_under_any_schedule(name: str, target: Target, tmp_path: Path) -> None:
    workload = parse(SMALL[name])
    random = space.schedule(
        workload, {"parallelism": "2", "beam_size": "1", "random_dropout": "20", "random_dropout_seed": "7"}, target
    ).candidate
    for index, candidate in enumerate((Candidate(None), random)):
        library = tmp_path / f"{index}.so"
        DIALECT.build(workload, candidate, target, library)
        (found,) = DIALECT.outputs(workload, library, target)
        tolerance = 1 if found.dtype == np.uint8 else 1e-3
        assert np.allclose(found, expected(workload), rtol=0, atol=tolerance)
        assert all(latency_s > 0 for latency_s in DIALECT.run(workload, library, target, repeat=2, min_repeat_s=0.0))


def test_the_same_parameters_replay_to_the_same_schedule(target: Target) -> None:
    for text in ("blur:40,64", "matmul:64,64,64"):
        for candidate in DIALECT.search(parse(text), target, 4, None, seed=3):
            assert space.replay(parse(text), candidate, target).candidate == candidate


def test_a_schedule_that_this_halide_does_not_make_is_refused(target: Target) -> None:
    workload = parse("blur:40,64")
    candidate = space.schedule(workload, {"parallelism": "2"}, target).candidate
    changed = Candidate({**candidate.schedule, "source": "output.compute_root();"})
    for bad in (changed, Candidate({"autoscheduler": "Li2018"}), Candidate("text")):
        with pytest.raises(BadInput):
            space.replay(workload, bad, target)


def test_search_gives_distinct_candidates_and_the_best_scored_first(target: Target) -> None:
    workload = parse("matmul:64,64,64")
    found = DIALECT.search(workload, target, 4, lambda rows: -rows[:, 0].astype(float), seed=1, budget_s=2.0)
    scores = [candidate.score for candidate in found]
    assert 1 <= len({candidate.key for candidate in found}) == len(found) <= 4
    assert scores == sorted(scores, reverse=True)


def test_a_search_spends_no_more_than_its_budget_on_wide_beams(target: Target) -> None:
    """One of them takes seconds of the unsharp mask, and again as many in the build that replays it."""
    found = DIALECT.search(parse("unsharp:720,1280"), target, 3, None, budget_s=0.5)
    assert found
    assert {candidate.schedule["parameters"]["beam_size"] for candidate in found} == {"1"}
    assert str(space.OWN_BEAM) in {sample["beam_size"] for sample in itertools.islice(space.samples(target, 0), 10)}


def test_featurization_has_the_published_layout(target: Target) -> None:
    """The fields whose values follow from the algorithm alone are where Featurization.h says."""
    workload = parse("matmul:64,128,32")
    stages = space.featurization_of(space.schedule(workload, {"parallelism": "2"}, target).candidate.schedule)
    at = {name: index for index, name in enumerate(space.STAGE_FEATURES)}
    assert (len(space.SCHEDULE_FEATURES), len(space.PIPELINE_FEATURES)) == (39, 7 + 24 * 7 + 16 * 7)
    output, update, pure = stages
    # A point of the output, the sums and their start: 64 * 128, and 32 products for each.
    assert [row[at["points_computed_minimum"]] for row in (output, update, pure)] == [8192, 8192 * 32, 8192]
    assert [row[at["bytes_at_root"]] for row in stages] == [4 * 8192] * 3
    assert [row[at["innermost_bytes_at_root"]] for row in stages] == [4 * 128] * 3
    assert (update[at["mul_float"]], update[at["add_float"]], pure[at["mul_float"]]) == (1, 1, 0)
    # To Adams2019 an input is a function like any other.
    assert (update[at["func_call_float"]], update[at["self_call_float"]], output[at["func_call_float"]]) == (2, 1, 1)
    assert (update[at["uses_float"]], update[at["uses_double"]]) == (1, 0)
    assert (output[at["pointwise_load_func_float"]], pure[at["const_float"]]) == (1, 1)
    assert pure[at["pointwise_store_float"]] == 1


def test_features_are_decoded_from_the_candidate_alone(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = parse("softmax:8,64")
    candidates = [*DIALECT.search(workload, target, 3, None), Candidate(None), Candidate({"featurization": "%%"})]
    monkeypatch.setitem(sys.modules, "halide", None)
    rows = open_extractor("halide").extract(workload, candidates, target)
    assert rows.shape == (len(candidates), len(FEATURES))
    assert np.isnan(rows[:, 0]).tolist() == [False] * (len(candidates) - 2) + [True, True]
    assert np.isfinite(rows[:-2]).all()
    assert np.array_equal(rows[:1], describe([candidates[0].schedule], target))


def test_a_user_registers_a_function_of_their_own(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brightness.py").write_text(
        "import halide as hl\n"
        "from lorien.dialects.halide import Pipeline\n"
        "def twice(size: int) -> Pipeline:\n"
        "    image, x, output = hl.ImageParam(hl.Float(32), 1, 'image'), hl.Var('x'), hl.Func('output')\n"
        "    output[x] = image[x] * 2.0\n"
        "    return Pipeline(output, (size,), ((image, (size,)),), float(size))\n"
        "def wrong(size: int) -> int:\n"
        "    return size\n"
    )
    workload = parse("brightness:twice:64")
    with pytest.raises(BadInput, match="PYTHONPATH"):
        pipeline_of(workload)
    monkeypatch.syspath_prepend(tmp_path)
    DIALECT.build(workload, Candidate(None), target, tmp_path / "twice.so")
    (found,) = DIALECT.outputs(workload, tmp_path / "twice.so", target)
    assert 0 < found.max() <= 2.0
    for bad in ("brightness:wrong:64", "brightness:nothing:64", "brightness:twice:64,64"):
        with pytest.raises(BadInput):
            pipeline_of(parse(bad))


@pytest.mark.parametrize(
    "text", ["matmul", "matmul:", "matmul:1,2", "matmul:0,1,2", "nothing:4", "blur:4,4,4", "blur:x,4"]
)
def test_what_names_no_pipeline_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


def test_another_machine_is_refused() -> None:
    with pytest.raises(BadInput, match="--target native"):
        space.halide_target(Target.parse("llvm -mcpu=cortex-a72"))


def test_a_log_reads_back_what_was_written(target: Target, tmp_path: Path) -> None:
    workloads = [parse("blur:40,64"), parse("softmax:8,64")]
    writer = DIALECT.log_writer(workloads, target)
    (tmp_path / writer.workload_file).write_bytes(writer.workload_lines())
    candidate = space.schedule(workloads[1], {"parallelism": "2"}, target).candidate
    lines = [
        writer.record_line(1, candidate, Measurement(Outcome.OK, (1e-3, 2e-3))),
        writer.record_line(0, Candidate(None), Measurement(Outcome.BUILD_ERROR, detail="no")),
    ]
    (tmp_path / writer.record_file).write_bytes(b"".join(lines) + b"[9,null,[],{}]\n[0\n")
    report = ReadReport()
    ran, failed = open_dialect("halide").read(tmp_path, LogInfo(), report)
    assert (ran.workload, ran.target.key, ran.candidate) == (workloads[1], target.key, candidate)
    assert ran.measurement.latencies_s == (1e-3, 2e-3)
    assert (failed.workload, failed.measurement.ok) == (workloads[0], False)
    assert (report.records, report.failed, report.unreadable) == (2, 1, 2)
