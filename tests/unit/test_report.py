"""What reports count, cross-checked with plain computations over the logs that ship."""

from __future__ import annotations

import math
import shutil
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reports

from lorien.database import open_database
from lorien.database.jobs import Job, JobError, Run, open_jobs
from lorien.database.queue import JobQueue
from lorien.dialects import open_dialect
from lorien.dialects.base import ReadReport
from lorien.errors import BadInput
from lorien.logs import open_logs
from lorien.logs.base import info_of, read_sidecar
from lorien.logs.ingest import publish
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.report import page
from lorien.report.peak import Peak, measured_peak, read_peaks
from lorien.report.rows import rows_of
from lorien.report.sources import Kind, Report, gather, low_peaks, source_of
from lorien.report.tally import MAX_STEPS, NO_LATENCY, Tally, convergence, failures_by_kind, thinned
from lorien.report.trace import lines_of
from lorien.target import Target
from lorien.tune.jobs import open_job_session
from lorien.tune.session import Session

SAMPLE = Path(__file__).parents[2] / "datasets/plain/llvm_znver4_2"
STUB = Path(__file__).parent / "stub_dialect"
TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
SHARDS = 3


@pytest.fixture(scope="module")
def records() -> dict[str, list[TuningRecord]]:
    """Real records by network, some of which share workloads, made to fail in more ways than these did."""
    found = {}
    for network in ("bvlc_alexnet", "vgg19", "shufflenet"):
        folder = SAMPLE / network
        info = info_of(read_sidecar(folder), folder)
        found[network] = list(open_dialect("metaschedule").read(folder, info, ReadReport()))
    return found


@pytest.fixture(scope="module")
def tables(records: dict[str, list[TuningRecord]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They as feature tables, each log cut into shards as featurize cuts it."""
    root = tmp_path_factory.mktemp("features")
    for network, own in records.items():
        for shard in range(SHARDS):
            rows = [
                {
                    "workload_key": record.workload.key,
                    "workload": record.workload.name,
                    "network": network,
                    "weight": record.workload.weight,
                    "flop": record.workload.flop,
                    "candidate": record.candidate.key,
                    "build": record.build,
                    "latency_s": record.measurement.latency_s,
                    "error": None if record.measurement.ok else record.measurement.outcome.value,
                    "tile": 1.0,
                }
                for record in own[shard::SHARDS]
            ]
            source = {"log": network, "fingerprint": network, "shard": f"{shard}/{SHARDS}"}
            schema = reports.FEATURES.arrow_schema("metaschedule", TARGET.key, source)
            path = root / f"dialect=metaschedule/target={TARGET.key}/{network}-{shard}of{SHARDS}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=100)
    return root


@pytest.mark.parametrize("source", ["tables", "records"])
def test_counts_are_those_of_a_plain_computation(source, tables, records, monkeypatch):
    monkeypatch.setattr("lorien.report.tally.BATCH_ROWS", 1024)  # many batches
    if source == "tables":
        tally = Tally.of_tables(tables)
    else:
        tally = Tally()
        for own in sorted(records):
            tally.take(records[own])
    latencies, failures, weights = defaultdict(list), defaultdict(Counter), defaultdict(dict)
    for network in sorted(records):
        for record in records[network]:
            key = record.workload.key
            latencies[key].append(record.measurement.latency_s or math.inf)
            weights[key][network] = record.workload.weight
            if not record.measurement.ok:
                failures[key][record.measurement.outcome.value] += 1

    assert {key[2] for key in tally.workloads} == set(latencies)
    for own in tally.workloads.values():
        expected = latencies[own.key]
        assert own.trials == len(expected)
        assert own.best_s == min(expected)
        assert own.weights == weights[own.key]
        assert own.failures == failures[own.key]
        for trials in (1, 2, 7, 30, 1000):
            assert own.best_after(trials) == min(expected[:trials])
    assert tally.records == sum(map(len, latencies.values())) == sum(map(len, records.values()))
    assert failures_by_kind(tally.workloads.values()) == sum(failures.values(), Counter())
    assert failures_by_kind(tally.workloads.values()).total() > 0

    (target,) = tally.targets.values()
    ran = [latency_s for own in latencies.values() for latency_s in own if math.isfinite(latency_s)]
    assert target.failed == tally.records - len(ran)
    for fraction in (0.1, 0.5, 0.9):
        assert target.quantile_s(fraction) == pytest.approx(np.quantile(ran, fraction), rel=0.27)

    curve = convergence(tally.workloads.values(), [1, 8, 64])
    plain = [[min(own) / min(own[:t]) for t in (1, 8, 64)] for own in latencies.values() if min(own) < math.inf]
    np.testing.assert_allclose(sorted(curve.tolist()), sorted(plain))


def test_what_tables_may_hold_besides_is_counted_and_harms_nobody(tmp_path):
    """Latencies that are none, errors of no known kind, no network, no weight, no operations."""
    row = dict.fromkeys(reports.FEATURES.arrow_schema("toy", TARGET.key, {}).names)
    row |= {"workload_key": "w", "workload": "<b>", "build": "b", "latency_s": 1.0}
    rows = [row, row | {"latency_s": -1.0}, row | {"latency_s": math.inf}, row | {"latency_s": None, "error": "<i>"}]
    schema = reports.FEATURES.arrow_schema("toy", TARGET.key, {"shard": "0/1"})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "t.parquet")
    (own,) = Tally.of_tables(tmp_path).workloads.values()
    assert (own.trials, own.best_s, own.weight, own.networks, own.flop_per_s) == (4, 1.0, 1.0, [], None)
    assert own.failures == {NO_LATENCY: 2, "<i>": 1}


def test_what_is_kept_does_not_grow_with_the_records(tmp_path):
    """Ten times the trials of the same workloads: what stays of them is the same, to a few steps more."""
    sizes = []
    for trials in (40, 400):
        reports.write_tables(tmp_path / str(trials), 20, trials)
        tally = Tally.of_tables(tmp_path / str(trials))
        assert tally.records == 20 * trials
        sizes.append(sum(len(own.steps) for own in tally.workloads.values()))
    assert sizes[1] < 3 * sizes[0]
    many = [(trial, 1 / trial) for trial in range(1, 1000)]
    few = thinned(many)
    assert (few[0], few[-1], len(few)) == (many[0], many[-1], MAX_STEPS)
    assert few == sorted(few)


def test_traces_read_as_calls(records):
    record = max(records["vgg19"], key=lambda one: len(one.candidate.schedule[1]))
    lines = lines_of("metaschedule", record.candidate.schedule).splitlines()
    assert len(lines) == len(record.candidate.schedule[0])
    decided = [line for line in lines if "decision=" in line]
    assert len(decided) == len(record.candidate.schedule[1])
    assert any(line.split(" = ")[-1].startswith("sample_perfect_tile(") for line in decided)
    assert lines_of("autotvm", [["tile_x", "sp", [-1, 4]]]) == "tile_x = split([-1, 4])"
    assert lines_of("auto_scheduler", [["SP", 2, 0, 8]]) == "split(stage 2, 0, 8)"
    assert lines_of("halide", {"source": "f.vectorize(x);\nf.parallel(y);"}) == "f.vectorize(x);\nf.parallel(y);"
    assert lines_of("metaschedule", {"of": ["another"]}) == lines_of("unknown", {"of": ["another"]})
    assert lines_of("autotvm", None) == "the dialect's default schedule"
    assert len(lines_of("unknown", ["x" * 50_000])) < 13_000


def test_peaks_are_given_measured_or_not_known():
    assert read_peaks([], "a", ["a", "b"]) == {}
    given = read_peaks(["a=100", "b=2.5"], "a", ["a", "b"])
    assert {name: peak.flop_per_s for name, peak in given.items()} == {"a": 100e9, "b": 2.5e9}
    assert read_peaks(["7"], "", ["only"])["only"].flop_per_s == 7e9
    for wrong in ("7", "c=7", "a=fast", "a=0", "a=inf", "measure"):
        with pytest.raises(BadInput, match="Fix: "):
            read_peaks([wrong], "here", ["a", "b"])
    peak = measured_peak()
    assert 1e9 < peak.flop_per_s < 1e14
    assert "cores" in peak.how


def test_each_input_is_told_by_what_lies_there(tmp_path, tables):
    with open_database(f"sqlite:///{tmp_path}/s.db"):
        pass
    assert source_of(str(tables), None).kind is Kind.FEATURES
    assert source_of(f"{tmp_path}/s.db", None).kind is Kind.DATABASE
    assert source_of("dynamodb://table?region=eu-west-1", None).kind is Kind.DATABASE
    assert source_of(str(SAMPLE / "vgg19"), None).kind is Kind.LOG
    assert source_of(str(SAMPLE), None).kind is Kind.LOGS
    assert source_of("nightly", "sqlite:///s.db").kind is Kind.RUN
    (tmp_path / "empty").mkdir()
    for wrong in ("nightly", str(tmp_path / "empty"), __file__):
        with pytest.raises(BadInput, match="Fix: give what"):
            source_of(wrong, None)


def gathered(*inputs: str, **options: str) -> Report:
    report = Report("t", 1e9, [source_of(text, options.get("db")) for text in inputs])
    gather(report, **options)
    return report


def test_a_record_is_counted_once_and_the_fastest_schedule_is_shown(tmp_path, tables, records):
    """Tables, the log they came from, and a database with one faster schedule, together."""
    faster = records["vgg19"][0]
    best = TuningRecord(faster.workload, TARGET, Candidate(["new"]), Measurement(Outcome.OK, (1e-6,)), "tvm 9")
    with open_database(f"sqlite:///{tmp_path}/s.db") as database:
        database.put(best)
    report = gathered(str(tables), str(SAMPLE / "vgg19"), f"{tmp_path}/s.db")
    assert report.tally.records == sum(map(len, records.values()))
    assert {key[2] for key in report.schedules} == {record.workload.key for record in records["vgg19"]}
    rows = rows_of(report)
    row = rows.columns["key"].index(faster.workload.key)
    assert rows.columns["best"][row] == 1e-6
    assert rows.schedules[str(row)] | {"log": None} == {
        "text": '[\n  "new"\n]',
        "best": 1e-6,
        "build": "tvm 9",
        "log": None,
    }
    report.peaks = {TARGET.key: Peak(1e9, "given")}
    (told,) = low_peaks(report)
    assert "Fix: --peak" in told
    report.peaks = {TARGET.key: Peak(1e20, "given")}
    assert low_peaks(report) == []
    costs = [
        calls * best_s for calls, best_s in zip(rows.columns["calls"], rows.columns["best"], strict=True) if best_s
    ]
    assert costs == sorted(costs, reverse=True)
    (card,) = report.sessions
    assert card.outcomes.total() == len(records["vgg19"])


def test_logs_that_no_store_has_yet_are_reported_where_they_lie(tmp_path, records):
    shutil.copytree(SAMPLE / "vgg19", tmp_path / "logs" / "vgg19")
    shutil.copytree(SAMPLE / "bvlc_alexnet", tmp_path / "logs" / "more" / "alexnet")
    report = gathered(str(tmp_path / "logs"))
    assert report.sources[0].kind is Kind.LOGS
    assert report.tally.records == len(records["vgg19"]) + len(records["bvlc_alexnet"])


def test_a_session_is_reported_while_it_is_written(tmp_path, monkeypatch):
    """Its kinds of failures and build seconds are those of its details; a line half written is told of and left out."""
    monkeypatch.syspath_prepend(STUB)
    workloads = [Workload("recording", f"w{number}", [number], flop=1e6, networks=("net",)) for number in range(2)]
    measured = [
        Measurement(Outcome.OK, (2e-3, 1e-3, 3e-3), timestamp_s=5e9, build_s=1.5),
        Measurement(Outcome.CRASH, (), "SIGSEGV", 5e9 + 60, 0.5),
        Measurement(Outcome.OK, (1e-3,), timestamp_s=5e9 + 61),
    ]
    with Session.create(tmp_path / "s", workloads, TARGET) as session:
        for number, measurement in enumerate(measured):
            session.append(number % 2, Candidate({"n": number}), measurement)
        with session._records.open("ab") as log:
            log.write(b'[0, {"n"')
        report = gathered(str(tmp_path / "s"))
    (card,) = report.sessions
    assert (card.outcomes, card.build_s, card.ended_s) == ({"ok": 2, "crash": 1}, 2.0, 5e9 + 61)
    first, second = report.tally.workloads.values()
    assert (first.steps, first.flop_per_s, first.networks) == ([(1, 2e-3), (2, 1e-3)], 1e9, ["net"])
    assert second.failures == {"crash": 1}
    assert len(report.problems) == 1
    assert "1 records cannot be read" in report.problems[0]


def test_a_run_of_jobs_is_reported_with_what_is_published_and_what_is_at_work(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(STUB)
    workloads = [Workload("recording", f"w{number}", [number], flop=1e6, networks=("net",)) for number in range(3)]
    url, logs = f"sqlite:///{tmp_path}/s.db", tmp_path / "logs"
    root = logs / "sessions" / "nightly"
    run = Run("nightly", 100.0, {"trials": 4}, (TARGET.key,))
    with open_database(url) as database, open_jobs(url) as table:
        table.add_run(run, [Job(number, TARGET, (workload,)) for number, workload in enumerate(workloads)])
        queue = JobQueue(table, run)
        states = {}
        while (state := queue.claim(f"worker{len(states)}", TARGET.key, 200.0)) is not None:
            states[state.number] = state
        for number, state in states.items():
            with open_job_session(root, table.job("nightly", number), state) as session:
                for trial in range(number + 1):
                    latency_s = 1e-3 / (trial + 1)
                    session.append(0, Candidate({"n": trial}), Measurement(Outcome.OK, (latency_s,), timestamp_s=300.0))
        sealed = queue.seal(states[0], "0.1", 1)
        publish(root / "0.1", open_logs(str(logs)), dialect=open_dialect("recording"))
        queue.finish(sealed)
        queue.fail(states[1], JobError.BAD_INPUT, "<b>no</b>", again=False)
        assert database.stats().records == 0

    report = gathered("nightly", db=url, logs=str(logs))
    (card,) = report.runs
    assert {status.value: jobs for status, jobs in card.counts.by_status.items()} == {
        "done": 1,
        "failed": 1,
        "leased": 1,
    }
    assert [(job.number, job.detail) for job in card.troubled] == [(1, "<b>no</b>")]
    trials = {own.name: own.trials for own in report.tally.workloads.values()}
    assert trials == {"w0": 1, "w1": 2, "w2": 3}
    assert statistics.fmean(own.best_s for own in report.tally.workloads.values()) == pytest.approx(11e-3 / 18)
    assert gathered("nightly", db=url).problems == [
        "run nightly: its trials are in its log store. Fix: --logs URL shows them too"
    ]


def test_the_plotting_library_is_bundled_once_and_a_damaged_copy_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = []

    def bundle(snippet: str) -> str:
        bundled.append(snippet)
        return "let a = '</script>';"

    monkeypatch.setattr(page.vl_convert, "javascript_bundle", bundle)
    monkeypatch.setenv("HOME", str(tmp_path))
    script = page._vega.__wrapped__()
    assert "</script" not in script
    assert page._vega.__wrapped__() == script
    assert len(bundled) == 1
    (kept,) = (tmp_path / ".cache/lorien").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert page._vega.__wrapped__() == script
    assert len(bundled) == 2
    kept.unlink()
    kept.mkdir()  # nothing that can be read
    assert page._vega.__wrapped__() == script
    kept.rmdir()
    kept.parent.rmdir()
    kept.parent.write_text("where nothing can be written")
    assert page._vega.__wrapped__() == script
