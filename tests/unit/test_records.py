"""Identities and JSON of what moves between the parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorien.errors import BadInput
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload, candidate_key, canonical_json
from lorien.target import Target

# A key, once given out, is in databases and tables: this file is only ever added to.
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/keys_v1.json").read_text())
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def workload(**changed: Any) -> Workload:
    return Workload(**{"dialect": "autotvm", "name": "dense", "identity": ["dense", [1, 2]], **changed})


@pytest.mark.parametrize("golden", GOLDEN["workloads"], ids=lambda golden: golden["dialect"])
def test_workload_keys_of_version_1(golden: dict[str, Any]) -> None:
    assert Workload(golden["dialect"], "any name", golden["identity"]).key == golden["key"]


@pytest.mark.parametrize("golden", GOLDEN["candidates"], ids=lambda golden: golden["key"])
def test_candidate_keys_of_version_1(golden: dict[str, Any]) -> None:
    assert Candidate(golden["schedule"], score=0.5).key == candidate_key(golden["schedule"]) == golden["key"]


@pytest.mark.parametrize("golden", GOLDEN["records"], ids=lambda golden: golden["key"])
def test_record_keys_of_version_1(golden: dict[str, Any]) -> None:
    operator = GOLDEN["workloads"][golden["workload"]]
    record = TuningRecord(
        Workload(operator["dialect"], "any name", operator["identity"]),
        Target.parse(GOLDEN["targets"][golden["target"]]["target"]),
        Candidate(GOLDEN["candidates"][golden["candidate"]]["schedule"]),
        Measurement(Outcome.RUN_ERROR),
        golden["build"],
    )
    assert record.key == golden["key"]


def test_what_describes_a_workload_is_no_part_of_its_identity() -> None:
    other = workload(name="other", definition="text", flop=1.0, weight=3.0, networks=("resnet50",))
    assert other.key == workload().key
    assert workload(dialect="halide").key != workload().key != workload(identity=["dense", [2, 1]]).key


def test_a_workload_goes_to_json_and_back() -> None:
    whole = workload(definition="text", flop=2e9, weight=3.0, networks=("resnet50", "vgg19"))
    assert Workload.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize(
    "line", [{}, {"dialect": "x", "name": "y"}, [], None, {**workload().to_json(), "weight": "many"}]
)
def test_what_is_no_workload_is_refused(line: Any) -> None:
    with pytest.raises(BadInput, match="not a workload"):
        Workload.from_json(line)


def test_a_workload_whose_key_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match=r"was edited.*Fix"):
        Workload.from_json({**workload().to_json(), "identity": ["dense", [9]]})


@given(JSON_VALUES)
def test_keys_survive_json(value: Any) -> None:
    assert candidate_key(json.loads(canonical_json(value))) == candidate_key(value)
    assert workload(identity=json.loads(canonical_json(value))).key == workload(identity=value).key


def test_the_latency_is_the_median_over_the_repeats() -> None:
    assert Measurement(Outcome.OK, (3.0, 1.0, 2.0)).latency_s == 2.0
    assert Measurement(Outcome.OK, (3.0,)).latency_s == 3.0
    assert Measurement(Outcome.BUILD_TIMEOUT).latency_s is None


@pytest.mark.parametrize(
    "measurement",
    [Measurement(Outcome.OK, (1.0, 2.0), timestamp_s=1.7e9), Measurement(Outcome.CRASH, detail="signal 11")],
)
def test_a_measurement_goes_to_json_and_back(measurement: Measurement) -> None:
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_a_record_is_told_by_target_workload_build_and_candidate() -> None:
    def key(target: str = "cuda", size: int = 1, build: str = "tvm 1", schedule: int = 1, **rest: Any) -> str:
        operator = workload(identity=["dense", size])
        return TuningRecord(
            operator, Target.parse(target), Candidate(schedule), Measurement(Outcome.OK, (1.0,)), build, **rest
        ).key

    keys = {key(), key(target="rocm"), key(size=2), key(build="tvm 2"), key(schedule=2)}
    assert len(keys) == 5
    assert key(network="resnet50", log="x.log") == key()
