"""The corpus: its table names networks once, and workloads are chosen by how much they differ."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from lorien.dialects import open_live_dialect
from lorien.records import Workload
from lorien.target import Target

CORPUS = Path(__file__).parents[2] / "datasets" / "corpus"
TARGET = Target.parse({"kind": "llvm", "mcpu": "znver3", "num-cores": 2})


@pytest.fixture(autouse=True)
def _scripts_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CORPUS))


def products(tmp_path: Path, sizes: list[tuple[int, int, int]]) -> list[Workload]:
    """Matrix products of the sizes, and the sum of two matrices, as they are lowered."""
    nodes, inputs, outputs = [], [], []
    for at, (rows, inside, columns) in enumerate(sizes):
        shapes = {f"a{at}": (rows, inside), f"b{at}": (inside, columns)}
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
        nodes.append(helper.make_node("MatMul", list(shapes), [f"c{at}"]))
        outputs.append(helper.make_tensor_value_info(f"c{at}", TensorProto.FLOAT, (rows, columns)))
    nodes.append(helper.make_node("Add", ["a0", "a0"], ["sum"]))
    outputs.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, sizes[0][:2]))
    model = helper.make_model(
        helper.make_graph(nodes, "products", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    file = tmp_path / "products.onnx"
    file.write_bytes(model.SerializeToString())
    return open_live_dialect("metaschedule").extract(file, TARGET)


def test_each_network_has_a_name_of_its_own_and_none_is_held_out_and_learned() -> None:
    from architectures import architectures

    found = architectures()
    assert [name for name, times in Counter(one.name for one in found).items() if times > 1] == []
    assert len({one.name.partition("-")[0] for one in found if not one.held_out}) >= 150
    assert {one.name for one in found if one.held_out} == {
        *("resnet50", "resnext50_32x4d", "mobilenetv2_100", "bert-tiny-1x128", "bert-base-1x128"),
        *("onnx-squeezenet", "onnx-resnet50"),
    }
    assert "+" not in "".join(one.name for one in found)


def test_an_anchor_is_the_operator_and_its_sizes(tmp_path: Path) -> None:
    from anchors import anchor_of

    anchors = {one.operator: one for one in map(anchor_of, products(tmp_path, [(32, 64, 16)]))}
    assert set(anchors) == {"matmul", "T_add"}
    product = anchors["matmul"]
    assert (product.spatial, product.reduced, product.reads) == ((32, 16), (64,), ((32, 64), (64, 16)))
    assert anchors["T_add"].reduced == ()
    assert len(product.vector) == len(anchors["T_add"].vector)


def test_the_most_different_come_first_and_what_is_known_is_left_out(tmp_path: Path) -> None:
    from anchors import anchor_of
    from choose import choose

    sizes = [(32, 64, 16), (32, 64, 24), (512, 512, 512), (8, 2048, 8)]
    workloads = products(tmp_path, sizes)

    def order(known: list[Workload]) -> list[tuple[int, ...]]:
        chosen = choose(workloads, known, 9)
        anchors = [anchor for anchor in map(anchor_of, chosen) if anchor.operator == "matmul"]
        return [(anchor.spatial[0], *anchor.reduced, anchor.spatial[1]) for anchor in anchors]

    known = [one for one in workloads if anchor_of(one).spatial == (32, 16)]
    assert set(order([])) == set(sizes)
    assert order(known)[-1] == (32, 64, 24)
    assert len(order(known)) == 3
    assert len(choose(workloads, [], 2)) == 2


def test_of_equals_the_one_that_more_networks_have_is_first(tmp_path: Path) -> None:
    from choose import choose

    found = [one for one in products(tmp_path, [(32, 64, 16), (64, 32, 16)]) if "matmul" in one.name]
    known_by_many = dataclasses.replace(found[1], networks=tuple("abcdefgh"))
    assert choose([found[0], known_by_many], [], 1) == [known_by_many]


def test_a_workload_of_a_held_out_problem_is_in_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recipe
    from architectures import Architecture

    from lorien.cli.workloads import read_workloads, write_workloads

    folder = tmp_path / "target"
    for name in ("networks", "refused"):
        (folder / name).mkdir(parents=True)
    networks = {"asked": [(32, 64, 16)], "learned": [(32, 64, 16), (64, 64, 64)]}
    listed = []
    for name, sizes in networks.items():
        (tmp_path / name).mkdir()
        found = products(tmp_path / name, sizes)
        if name == "learned":  # another kernel of the same product
            found = [dataclasses.replace(one, identity=["metaschedule", f"{one.identity[1]}0"]) for one in found]
        write_workloads(folder / "networks" / f"{name}.jsonl", found)
        listed.append(Architecture(name, "products", lambda path: path, held_out=name == "asked"))
    monkeypatch.setattr(recipe, "architectures", lambda: listed)
    recipe.join(folder)
    kept = read_workloads(folder / "workloads.jsonl")
    assert [one.flop for one in kept if "matmul" in one.name] == [2 * 64**3]
    assert len(read_workloads(folder / "held-out.jsonl")) == 2
