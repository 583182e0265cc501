"""Workloads, traces and targets to TVM and back; the pinned versions; one target's intrinsics."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.dialects.metaschedule import workload as subject
from lorien.errors import BadInput, MissingExtra, VersionClash
from lorien.records import Candidate, TuningRecord, Workload
from lorien.target import Target

SAMPLE = Path(__file__).parents[2] / "datasets/plain/llvm_znver4_2/bvlc_alexnet"
GOLDEN = Path(__file__).parents[1] / "golden/metaschedule_keys.json"


@pytest.fixture(scope="module")
def records() -> list[TuningRecord]:
    found = open_dialect("metaschedule").read(SAMPLE, LogInfo(), ReadReport())
    return list({record.workload.key: record for record in found}.values())


def test_keys_are_those_of_the_past(records: list[TuningRecord]) -> None:
    keys = {record.workload.name: [record.workload.key, record.candidate.key] for record in records[:4]}
    assert keys == json.loads(GOLDEN.read_text())


def test_a_module_and_its_workload_are_one(records: list[TuningRecord]) -> None:
    for record in records[:4]:
        module = subject.module_of(record.workload)
        again = subject.workload_of(module, record.workload.name)
        assert again == record.workload  # definition included: byte for byte what JSONDatabase wrote
        assert again.key == record.workload.key
        assert subject.module_of(again) is module


def test_a_trace_replayed_is_the_candidate_it_came_from(records: list[TuningRecord]) -> None:
    for record in records[:4]:
        schedule = subject.schedule_of(record.workload, record.candidate)
        assert subject.candidate_of(schedule).key == record.candidate.key


def test_no_schedule_leaves_the_module_as_it_is(records: list[TuningRecord]) -> None:
    import tvm_ffi

    workload = records[0].workload
    module = subject.schedule_of(workload, Candidate(None)).mod
    assert str(tvm_ffi.structural_hash(module)) == workload.identity[1]


@pytest.mark.parametrize("definition", ["", "AAAA", "%%%", "AAAAAAAAAAA=", None])
def test_a_definition_that_is_none_says_so(definition: str | None) -> None:
    with pytest.raises(BadInput, match="Fix: "):
        subject.module_of(Workload("metaschedule", "broken", ["structural", "1"], definition))


def test_a_workload_of_another_dialect_holds_no_module() -> None:
    with pytest.raises(BadInput, match="holds no TVM module"):
        subject.module_of(Workload("autotvm", "dense", ["dense", []], "text"))


def test_a_target_tvm_does_not_know() -> None:
    with pytest.raises(BadInput, match="TVM does not accept the target"):
        subject.tvm_target(Target.parse({"kind": "llvm", "wings": 2}))


def test_this_machine_is_a_target() -> None:
    target = subject.native_target()
    assert target.kind == "llvm"
    assert target.num_cores is not None
    assert target.num_cores >= 1
    assert "mcpu" in target.identity
    assert subject.tvm_target(target).kind.name == "llvm"


@pytest.mark.parametrize("ffi", ["0.1.15", "0.1.13.post2"])
def test_versions_that_crash_are_refused_before_the_import(monkeypatch: pytest.MonkeyPatch, ffi: str) -> None:
    monkeypatch.setattr(subject, "version", {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": ffi}.__getitem__)
    with pytest.raises(VersionClash, match=r"'apache-tvm==0\.27\.0\.post1' 'apache-tvm-ffi==0\.1\.14\.post1'"):
        subject.require_tvm.__wrapped__()


def test_without_tvm_the_message_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(subject, "version", version)
    with pytest.raises(MissingExtra, match=r"pip install 'lorien\[tvm\]'"):
        subject.require_tvm.__wrapped__()


def test_one_targets_intrinsics_and_no_others() -> None:
    code = """
import sys
import lorien.dialects.metaschedule
assert "tvm" not in sys.modules
from lorien.dialects.metaschedule.intrin import register_intrinsics
from lorien.target import Target
target = Target.parse("llvm -mcpu=cascadelake -num-cores=2")
register_intrinsics(target)
register_intrinsics(target)
from tvm.s_tir import TensorIntrin, meta_schedule as ms
ms.TuneContext()  # imports tvm.s_tir.tensor_intrin
TensorIntrin.get("dot_16x4_vnni")
loaded = {name for name in sys.modules if name.startswith("tvm.s_tir.tensor_intrin.")}
assert loaded == {"tvm.s_tir.tensor_intrin.x86"}, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fields_that_hold_a_number_are_those_of_tvm() -> None:
    """A field that is taken for a reference, and is none, would refuse modules that are whole."""
    import json

    from tvm_ffi import core
    from tvm_ffi.registry import get_registered_type_keys

    from lorien.dialects.metaschedule.graph import NUMBERS
    from lorien.dialects.metaschedule.workload import require_tvm

    require_tvm()
    rooms = ("ir.", "tirx.", "prim.", "relax.", "te.")
    others = (
        "relax.attrs.",
        "relax.distributed.",
        "relax.dpl.",
        "relax.transform.",
        "tirx.transform.",
        "tirx.TensorMapEncodeTiledAttr",
        "ir.Op",
    )
    found: dict[str, set[str]] = {}
    for key in map(str, get_registered_type_keys()):
        if not key.startswith(rooms) or key.startswith(others):
            continue
        for field in core._lookup_or_register_type_info_from_type_key(key).fields or ():
            schema = (field.metadata or {}).get("type_schema")
            if isinstance(schema, str) and json.loads(schema)["type"] == "int":
                found.setdefault(key, set()).add(field.name)
    assert found == NUMBERS
