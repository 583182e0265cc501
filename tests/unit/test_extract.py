"""Extraction from ONNX graphs written for the test."""

import logging

import pytest

from lorien.dialects import open_live_dialect
from lorien.errors import BadInput
from lorien.target import Target

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
TARGET = Target.parse("llvm -mcpu=x86-64-v3 -num-cores=2")


def extract(model, shapes=None, target=TARGET):
    return open_live_dialect("metaschedule").extract(model, target, shapes)


def save(path, nodes, shape=(1, 64), constants=(), output=("y", None)):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(output[0], FLOAT, output[1])],
        [helper.make_tensor(name, FLOAT, dims, [0.5] * (dims[0] * dims[1])) for name, dims in constants],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


DENSE = [("w", (64, 64))]


def dense_layers(count):
    names = ["x", *(f"h{index}" for index in range(count))]
    return [
        node
        for index in range(count)
        for node in (
            helper.make_node("MatMul", [names[index], "w"], [f"m{index}"]),
            helper.make_node("Relu", [f"m{index}"], [names[index + 1]]),
        )
    ]


def test_a_fused_kernel_is_one_workload_with_its_calls(tmp_path):
    (dense,) = extract(save(tmp_path / "mlp.onnx", dense_layers(3), constants=DENSE, output=("h2", None)))
    assert dense.name == "fused_matmul_relu"
    assert dense.weight == 3
    assert dense.networks == ("mlp",)
    assert dense.flop == 2 * 64 * 64 + 64
    assert dense.dialect == "metaschedule"


def test_the_same_kernel_of_another_model_is_the_same_workload(tmp_path):
    (one,) = extract(save(tmp_path / "one.onnx", dense_layers(1), constants=DENSE, output=("h0", None)))
    (two,) = extract(save(tmp_path / "two.onnx", dense_layers(2), constants=DENSE, output=("h1", None)))
    assert one.key == two.key


def test_an_open_shape_must_be_given(tmp_path):
    model = save(tmp_path / "open.onnx", dense_layers(1), shape=("batch", 64), constants=DENSE, output=("h0", None))
    with pytest.raises(BadInput, match=r"input x has the open shape batch,64. Fix: --shape x="):
        extract(model)
    (dense,) = extract(model, {"x": (8, 64)})
    assert dense.flop == 8 * (2 * 64 * 64 + 64)
    with pytest.raises(BadInput, match="--shape gives 3"):
        extract(model, {"x": (8, 64, 1)})


def test_an_operator_that_tvm_lacks_is_named(tmp_path):
    model = save(tmp_path / "odd.onnx", [helper.make_node("Det", ["x"], ["y"])], shape=(8, 8))
    with pytest.raises(BadInput, match=r"odd\.onnx: TVM has no conversion for the ONNX operators Det"):
        extract(model)


def test_an_operator_that_tvm_fails_on_is_named_and_nothing_is_printed(tmp_path, capfd):
    sizes = helper.make_tensor("s", onnx.TensorProto.INT64, [1], [63])
    constant = helper.make_node("Constant", [], ["s"], value=sizes)
    model = save(tmp_path / "odd.onnx", [constant, helper.make_node("Reshape", ["x", "s"], ["y"])])
    with pytest.raises(BadInput, match=r"odd\.onnx: TVM cannot convert the ONNX operator Reshape"):
        extract(model)
    assert capfd.readouterr().out == ""


def test_what_is_no_onnx_model_is_refused(tmp_path):
    whole = save(tmp_path / "whole.onnx", dense_layers(2), constants=DENSE, output=("h1", None)).read_bytes()
    for name, content in {"binary": b"\x00\xff" * 999, "empty": b"", "cut": whole[:-500], "text": b"{}"}.items():
        model = tmp_path / f"{name}.onnx"
        model.write_bytes(content)
        with pytest.raises(BadInput, match=rf"{name}\.onnx.*Fix: export it, or copy it, again"):
            extract(model)
    with pytest.raises(BadInput, match=r"missing\.onnx: No such file"):
        extract(tmp_path / "missing.onnx")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(BadInput, match=r"model\.pt: no model format"):
        extract(tmp_path / "model.pt")


def test_a_kernel_with_a_shape_known_only_at_run_time_is_left_out(tmp_path, caplog):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=FLOAT),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    with caplog.at_level(logging.WARNING):
        workloads = extract(save(tmp_path / "dynamic.onnx", nodes))
    assert [workload.flop for workload in workloads] == [64.0]
    assert "known only at run time" in caplog.text
