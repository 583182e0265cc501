"""Rows of MetaSchedule candidates: what the columns say, and what happens to candidates that cannot be described."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule import logs
from lorien.dialects.metaschedule.cpu_schedule import cpu_schedule
from lorien.dialects.metaschedule.vectors import vectors_of
from lorien.dialects.metaschedule.workload import NAIVE, candidate_of, module_of, schedule_of
from lorien.errors import BadInput
from lorien.featurize import open_extractor
from lorien.featurize.base import Features
from lorien.records import Candidate, TuningRecord, Workload
from lorien.target import Target

SAMPLE = Path(__file__).parents[2] / "datasets/plain/llvm_znver4_2/bvlc_alexnet"
GOLDEN = Path(__file__).parents[1] / "golden/metaschedule_features.json"
EXTRACTOR = open_extractor("metaschedule")
NO_SUCH_BLOCK = [[["GetSBlock", [], ["nobody", "main"], ["b0"]]], []]


@pytest.fixture(scope="module")
def convs() -> list[TuningRecord]:
    """Six candidates of one convolution that are tiled."""
    records = open_dialect("metaschedule").read(SAMPLE, LogInfo(), ReadReport())
    tiled = [r for r in records if "conv2d" in r.workload.name and "SamplePerfectTile" in str(r.candidate.schedule)]
    return [record for record in tiled if record.workload == tiled[0].workload][:6]


@pytest.fixture(scope="module")
def rows(convs: list[TuningRecord]) -> Features:
    return EXTRACTOR.extract(convs[0].workload, [record.candidate for record in convs], convs[0].target)


def column(rows: Features, name: str) -> list[float]:
    values: list[float] = rows[:, EXTRACTOR.features.names.index(name)].tolist()
    return values


def test_columns_and_values_are_those_of_this_version(rows: Features) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert EXTRACTOR.features.id == golden["id"]
    assert list(EXTRACTOR.features.names) == list(golden["row"]), "other columns are another version of the feature set"
    assert rows[0].tolist() == pytest.approx(list(golden["row"].values()), rel=1e-5)


def test_every_column_is_named_once_and_explained() -> None:
    columns = EXTRACTOR.features.columns
    assert len({column.name for column in columns}) == len(columns)
    assert all(column.unit and column.meaning for column in columns)


def test_rows_are_finite_and_tell_candidates_apart(rows: Features) -> None:
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_the_tiles_are_those_of_the_trace(convs: list[TuningRecord], rows: Features) -> None:
    for record, tile0, reduce0 in zip(
        convs, column(rows, "trace_spatial_tile0"), column(rows, "trace_reduce_tile0"), strict=True
    ):
        instructions, decisions = record.candidate.schedule
        factors = [d for i, d in decisions if instructions[i][0] == "SamplePerfectTile"]
        spatial = [f[-1] for f in factors if len(f) == 4]
        reduce = [f[-1] for f in factors if len(f) == 2]
        assert tile0 == pytest.approx(np.log2(1 + np.prod(spatial)))
        assert reduce0 == pytest.approx(np.log2(1 + np.prod(reduce)))


@pytest.mark.parametrize(
    ("target", "vectors"),
    [
        ("llvm -mcpu=znver5", (16, 32)),
        ("llvm -mcpu=znver1", (8, 16)),
        ("llvm -mcpu=nehalem", (4, 16)),
        ("llvm", (4, 16)),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72", (4, 32)),
        ("cuda -arch=sm_86", (16, 32)),
    ],
)
def test_targets_have_the_vectors_of_their_instructions(target: str, vectors: tuple[int, int]) -> None:
    assert vectors_of(Target.parse(target)) == vectors


def test_tiles_are_told_in_parts_of_what_the_target_holds(convs: list[TuningRecord], rows: Features) -> None:
    candidates = [record.candidate for record in convs]
    narrow = EXTRACTOR.extract(convs[0].workload, candidates, Target.parse("llvm -mcpu=znver1 -num-cores=2"))
    changed = {name: factor(rows, narrow, name) for name in EXTRACTOR.features.names if differ(rows, narrow, name)}
    fills = {f"trace_fill_{name}" for name in ("quarter", "half", "full")}
    # Half as many lanes: twice the vectors. A quarter of what the registers hold: four times the part of it.
    vectors = {"main_vectorize_extent", "main_vectorize_inner", "trace_axis0_tile0"}
    registers = {"trace_spatial_tile0", "trace_spatial_inner2", "trace_spatial_inner3", "trace_body", "trace_body2"}
    assert {name for name, times in changed.items() if times == pytest.approx(2)} == vectors
    assert {name for name, times in changed.items() if times == pytest.approx(4)} == registers
    assert set(changed) - vectors - registers <= fills | {"sum_vectorize_extent", "sum_vectorize_inner"}
    assert column(narrow, "trace_fill_full") == column(rows, "trace_fill_half")


def differ(rows: Features, others: Features, name: str) -> bool:
    return column(rows, name) != column(others, name)


def factor(rows: Features, others: Features, name: str) -> float:
    """What the numbers of a column of log2(1 + x) are multiplied by; infinity where by different factors."""
    before, after = (2 ** np.array(column(each, name), dtype=np.float64) - 1 for each in (rows, others))
    factors = after[before > 1e-6] / before[before > 1e-6]
    return float(factors.mean()) if factors.std() < 1e-3 else float("inf")


def test_the_main_store_is_the_convolution(convs: list[TuningRecord], rows: Features) -> None:
    points = 2 ** np.array(column(rows, "workload_spatial_points")) - 1
    reduction = 2 ** np.array(column(rows, "workload_reduce_points")) - 1
    multiplications = 2 ** np.array(column(rows, "main_float_mul")) - 1
    assert multiplications == pytest.approx(points * reduction, rel=0.2)  # padded tiles do a little more
    assert column(rows, "workload_flop")[0] == pytest.approx(np.log2(1 + (convs[0].workload.flop or 0)))


def test_the_naive_kernel_has_a_row(convs: list[TuningRecord]) -> None:
    row = EXTRACTOR.extract(convs[0].workload, [NAIVE], convs[0].target)
    assert np.isfinite(row).all()
    assert column(row, "main_parallel_loops") == [0]
    assert column(row, "trace_location_first") == [-3]


def test_the_default_schedule_has_its_tile(convs: list[TuningRecord]) -> None:
    """By its trace as well: unrolled loops times a vector are the registers that the sum is held in."""
    own = convs[0]
    trace = candidate_of(cpu_schedule(module_of(own.workload), own.target))
    row = EXTRACTOR.extract(own.workload, [Candidate(None), trace], own.target)
    assert np.array_equal(row[0], row[1])
    tile, unrolled = (2 ** np.array(column(row, name)) - 1 for name in ("trace_spatial_tile0", "main_unroll_extent"))
    lanes = 2 ** np.array(column(row, "main_vectorize_inner")) - 1
    assert tile == pytest.approx(unrolled * lanes)
    assert column(row, "trace_tiled_reduce_axes")[0] >= 1


def test_what_cannot_be_lowered_is_a_row_of_nan(convs: list[TuningRecord], rows: Features) -> None:
    candidates = [convs[0].candidate, Candidate(NO_SUCH_BLOCK), Candidate("nonsense"), convs[1].candidate]
    found = EXTRACTOR.extract(convs[0].workload, candidates, convs[0].target)
    assert np.isnan(found[1:3]).all()
    assert np.array_equal(found[[0, 3]], rows[:2])


def test_no_candidates_no_rows(convs: list[TuningRecord]) -> None:
    assert EXTRACTOR.extract(convs[0].workload, [], convs[0].target).shape == (0, len(EXTRACTOR.features.columns))


def test_a_workload_that_cannot_be_read_is_an_error(convs: list[TuningRecord]) -> None:
    with pytest.raises(BadInput):
        EXTRACTOR.extract(Workload("metaschedule", "broken", ["structural", "1"], "AAAA"), [], convs[0].target)


def test_a_log_gives_the_rows_of_its_candidates_and_reports_the_rest(tmp_path: Path) -> None:
    lines = gzip.decompress((SAMPLE / f"{logs.RECORDS}.gz").read_bytes()).splitlines()[:70]
    lines[3] = json.dumps([0, [NO_SUCH_BLOCK, [1e-3], {"kind": "llvm", "num-cores": 2}, []]]).encode()
    (tmp_path / logs.RECORDS).write_bytes(b"\n".join(lines))
    (tmp_path / f"{logs.WORKLOADS}.gz").write_bytes((SAMPLE / f"{logs.WORKLOADS}.gz").read_bytes())
    report = ReadReport()
    batches = list(EXTRACTOR.extract_log(tmp_path, LogInfo(), report, (0, 1), 40))
    assert [len(records) for records, _ in batches] == [39, 30]
    assert report.unreadable == 1
    assert "its trace does not fit" in report.reasons[0]
    for records, rows in batches:
        assert rows.shape == (len(records), len(EXTRACTOR.features.columns))
        assert np.isfinite(rows).all()
        assert np.array_equal(
            rows[:2], np.concatenate([EXTRACTOR.extract(r.workload, [r.candidate], r.target) for r in records[:2]])
        )


def test_a_schedule_is_described_as_its_candidate_is(convs: list[TuningRecord], rows: Features) -> None:
    from lorien.dialects.metaschedule.describe import Describer

    workload = convs[0].workload
    schedules = [schedule_of(workload, record.candidate) for record in convs]
    assert np.array_equal(Describer(convs[0].target, threads=2)(schedules, [workload] * len(schedules)), rows)


def test_the_balance_is_that_of_whole_parallel_iterations(rows: Features) -> None:
    for extent, balance in zip(column(rows, "main_parallel_extent"), column(rows, "parallel_balance"), strict=True):
        iterations = max(1, round(2**extent - 1))
        assert balance == pytest.approx(iterations / (iterations + iterations % 2))  # two cores


def test_types_numpy_does_not_know_are_described() -> None:
    from tvm import IRModule, te

    from lorien.dialects.metaschedule.workload import workload_of

    a = te.placeholder((8, 8), "bfloat16", name="a")
    copy = te.create_prim_func([a, te.compute(a.shape, lambda *i: a(*i), name="copy")])
    target = Target.parse("llvm -num-cores=2")
    row = EXTRACTOR.extract(workload_of(IRModule({"main": copy}), "copy"), [Candidate(None)], target)
    assert column(row, "workload_argument_bytes") == pytest.approx([np.log2(1 + 2 * 8 * 8 * 2)])
    assert column(row, "workload_flop") == [0]
