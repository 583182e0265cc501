"""What ``LiveDialect`` promises, on this machine. Each test takes the name of a dialect and a model of one workload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorien.dialects import open_live_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune.compare import KERNEL, compare_outputs

_WARM = """
import json, os, sys
sys.path[:] = sys.argv[3:]
from lorien.dialects import open_live_dialect
from lorien.target import Target
open_live_dialect(sys.argv[1]).warm_up(Target.parse(json.loads(sys.argv[2])))
print(len(os.listdir("/proc/self/task")))
"""


def extracted(dialect: str, model: str) -> tuple[Workload, Target]:
    """The first workload of the model, and this machine."""
    live = open_live_dialect(dialect)
    target = live.native_target()
    return live.extract(Path(model), target)[0], target


def test_extracting_twice_is_the_same(dialect: str, model: str) -> None:
    workload, target = extracted(dialect, model)
    assert extracted(dialect, model) == (workload, target)
    assert workload.dialect == dialect
    assert Workload.from_json(workload.to_json()) == workload


def test_samples_are_distinct_and_follow_the_seed(dialect: str, model: str) -> None:
    live = open_live_dialect(dialect)
    workload, target = extracted(dialect, model)
    found = [candidate.key for candidate in live.search(workload, target, 4, None, seed=1)]
    assert 0 < len(set(found)) == len(found) <= 4
    assert [candidate.key for candidate in live.search(workload, target, 4, None, seed=1)] == found


def test_a_candidate_computes_what_the_default_does(dialect: str, model: str, tmp_path: Path) -> None:
    live = open_live_dialect(dialect)
    workload, target = extracted(dialect, model)
    live.warm_up(target)
    results = []
    for index, candidate in enumerate((Candidate(None), *live.search(workload, target, 2, None))):
        library = tmp_path / f"{index}.so"
        live.build(workload, candidate, target, library)
        results.append(live.outputs(workload, library, target))
        assert all(latency_s > 0 for latency_s in live.run(workload, library, target, repeat=2, min_repeat_s=0.0))
    for result in results[1:]:
        assert not compare_outputs(result, results[0], KERNEL, reference="the default schedule", what="tensor")


def test_what_is_forkable_starts_no_thread(dialect: str, model: str) -> None:
    """A fork inherits the locks of all threads, and none of the threads to open them."""
    if not getattr(open_live_dialect(dialect), "forkable", False) or sys.platform != "linux":
        pytest.skip("it does not say that it is forkable, or nobody is forked here")
    _, target = extracted(dialect, model)
    done = subprocess.run(
        [sys.executable, "-c", _WARM, dialect, json.dumps(target.to_json()), *sys.path],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["1"]), done.stderr


def test_a_schedule_of_another_kind_raises(dialect: str, model: str, tmp_path: Path) -> None:
    workload, target = extracted(dialect, model)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever the framework raises; a crash it must not be)
        open_live_dialect(dialect).build(workload, Candidate("no schedule"), target, tmp_path / "x.so")


def test_what_it_writes_it_reads(dialect: str, model: str, tmp_path: Path) -> None:
    live = open_live_dialect(dialect)
    workload, target = extracted(dialect, model)
    candidates = live.search(workload, target, 3, None)
    measurements = [Measurement(Outcome.OK, (1e-3, 2e-3)), Measurement(Outcome.CRASH, detail="no"), None]
    writer = live.log_writer([workload], target)
    (tmp_path / writer.workload_file).write_bytes(writer.workload_lines())
    pairs = [pair for pair in zip(candidates, measurements, strict=False) if pair[1] is not None]
    lines = [writer.record_line(0, candidate, measurement) for candidate, measurement in pairs if measurement]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    (tmp_path / writer.record_file).write_bytes(b"".join(lines))
    (log,) = live.find(tmp_path)
    records = list(live.read(log, LogInfo(), ReadReport()))
    assert [record.candidate.key for record in records] == [candidate.key for candidate, _ in pairs]
    assert [record.measurement.ok for record in records] == [m.ok for _, m in pairs if m]
    assert {record.workload.key for record in records} == {workload.key}
    assert {record.target.key for record in records} == {target.key}
