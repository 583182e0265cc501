"""Canonical targets: four ways to write one, one key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorien.errors import BadInput
from lorien.target import Target

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden/keys_v1.json").read_text())["targets"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["key"])
def test_keys_and_families_of_version_1(golden: dict[str, Any]) -> None:
    target = Target.parse(golden["target"])
    assert (target.key, target.family) == (golden["key"], golden["family"])
    assert str(target) == target.key


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["key"])
def test_a_target_goes_to_json_and_back(golden: dict[str, Any]) -> None:
    target = Target.parse(golden["target"])
    assert Target.parse(target) is target
    assert Target.parse(target.to_json()) == target == Target.parse(json.dumps(target.to_json()))
    assert Target.from_key(target.key).key == target.key
    assert hash(Target.parse(target.to_json())) == hash(target)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("llvm -num-cores=2 -mcpu=znver4", {"kind": "llvm", "mcpu": "znver4", "num-cores": 2}),
        ("cuda -arch=sm_86 -max_num_threads=1024 -thread_warp_size=32", "cuda -keys=cuda,gpu -arch=sm_86"),
        ("llvm -mattr=+fma,+avx2", "llvm -mattr=+avx2,+fma"),
        ("llvm -target=aarch64-linux-gnu", "llvm -mtriple=aarch64-linux-gnu"),
        ("  llvm  -mcpu='znver4' ", "llvm -mcpu=znver4"),
        ({"kind": "cuda", "arch": "sm_86", "tag": "", "host": {"kind": "llvm"}, "libs": []}, "cuda -arch=sm_86"),
    ],
)
def test_two_ways_to_write_one_target(text: Any, same: Any) -> None:
    assert Target.parse(text).key == Target.parse(same).key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("toaster", "unknown target"),
        ("toaster_3000", "Kinds:.*cuda"),
        ("cuda_", "unknown target"),
        ("llvm -mcpu", "not of the form"),
        ("llvm mcpu=znver4", "not of the form"),
        ("llvm -mcpu='znver4", "quotation"),
        ("{", "not JSON"),
        ('{"mcpu": "znver4"}', "unknown target kind None"),
        ({"kind": []}, "unknown target kind"),
    ],
)
def test_what_is_no_target_is_refused(text: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Target.parse(text)


def test_a_key_is_a_safe_file_name() -> None:
    key = Target.parse({"kind": "llvm", "mcpu": "../a b/*", "mattr": ["+x", "-y"]}).key
    assert not set(key) & set("/ *?[]:")


def test_cores() -> None:
    assert Target.parse("llvm -num-cores=4").num_cores == 4
    assert Target.parse({"kind": "llvm", "num-cores": "4"}).num_cores == 4
    assert Target.parse("cuda").num_cores is None


@pytest.mark.parametrize(
    ("family", "models"),
    [
        ("llvm-x86", "rocketlake raptorlake tigerlake sapphirerapids graniterapids znver5 barcelona k8 atom x86-64-v4"),
        ("llvm-arm", "cortex-a72 neoverse-n1 apple-m1 cyclone kryo oryon-1 ampere1 a64fx grace tsv110 thunderx2t99"),
        ("llvm-riscv", "rocket rocket-rv64 generic-rv64 sifive-u74 spacemit-x60 xiangshan-nanhu tt-ascalon-d8"),
    ],
)
def test_families_of_llvm_s_cpus(family: str, models: str) -> None:
    found = {model: Target("llvm", (("mcpu", model),)).family for model in models.split()}
    assert found == dict.fromkeys(models.split(), family)


@pytest.mark.parametrize(("family", "triple"), [("llvm-x86", "x86_64"), ("llvm-arm", "aarch64")])
def test_families_of_all_cpus_that_tvm_knows(family: str, triple: str) -> None:
    codegen = pytest.importorskip("tvm.target.codegen")
    from tvm.target import Target as TvmTarget

    machine = {"kind": "llvm", "mtriple": f"{triple}-linux-gnu"}
    models = [model for model in codegen.llvm_get_cpu_archlist(TvmTarget(machine)) if not model.startswith("generic")]
    assert len(models) > 50
    assert {model for model in models if Target("llvm", (("mcpu", model),)).family != family} == set()
