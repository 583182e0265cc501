"""ONNX models of the field: operators that TVM lacks or fails on, functions, old opsets, int8, files not whole."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import FLOAT, INT64, MICROSOFT, between_convolutions, model, node, weight

from lorien.dialects.metaschedule.extract import extract_workloads
from lorien.dialects.metaschedule.frontends import load_model
from lorien.dialects.metaschedule.onnx_quantized import dequantize
from lorien.errors import BadInput
from lorien.target import Target

TARGET = Target("llvm")


def saved(folder: Path, proto: Any, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def convolutions(path: Path) -> int:
    return sum(w.weight for w in extract_workloads(path, TARGET) if "conv2d" in w.name)


# What cannot be converted is cut out and named.


def test_a_scalar_of_run_time_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    proto = model(
        [
            node("Conv", ["x", "w"], ["y"]),
            node("Range", ["zero", "limit", "one"], ["r"]),
            node("Cast", ["r"], ["z"], to=FLOAT),
        ],
        {"x": (FLOAT, (1, 3, 8, 8)), "limit": (INT64, ())},
        ["y", "z"],
        {"w": weight(4, 3, 3, 3), "zero": np.int64(0), "one": np.int64(1)},
    )
    assert convolutions(saved(tmp_path, proto)) == 1
    assert "has a shape known only at run time and cannot be tuned; left out" in caplog.text


def test_an_operator_that_fails_is_cut_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inverse = node("Reshape", ["a", "s"], ["r"], name="runtime")
    proto = between_convolutions([inverse, node("Relu", ["a"], ["b"])], {"s": (INT64, (4,))})
    proto.graph.output.append(onnx.ValueInfoProto(name="r"))
    path = saved(tmp_path, proto)
    assert convolutions(path) == 2
    assert "TVM cannot convert the ONNX operators Reshape runtime; left out" in caplog.text
    with pytest.raises(
        BadInput, match=r"TVM cannot convert the ONNX operators Reshape runtime\. Fix: export"
    ) as caught:
        load_model(path)
    assert "Error" not in str(caught.value)
    assert "--shape" not in str(caught.value)


def test_operators_behind_one_of_unknown_shape_go_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    proto = between_convolutions([node("Reshape", ["a", "s"], ["b"])], {"s": (INT64, (4,))})
    assert convolutions(saved(tmp_path, proto)) == 1
    assert "1 operators behind them have inputs whose shapes are not known; left out" in caplog.text


def test_each_failing_operator_is_found_in_one_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    middle = [node("TopK", ["a", "k"], [f"t{i}", f"i{i}"], name=f"top{i}") for i in range(40)]
    proto = between_convolutions([*middle, node("Relu", ["a"], ["b"])], {"k": (INT64, (1,))})
    assert convolutions(saved(tmp_path, proto)) == 2
    assert "top0 (TopK k must be a constant), TopK top1" in caplog.text
    assert "and 32 more; left out" in caplog.text


@pytest.mark.parametrize("kind", ["text", "sequence"])
def test_inputs_that_are_no_tensors(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    proto = between_convolutions([node("Relu", ["a"], ["b"])])
    if kind == "text":
        proto.graph.node.append(node("Identity", ["words"], ["same"]))
        proto.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, (2,)))
    else:
        proto.graph.node.append(node("SequenceLength", ["words"], ["same"]))
        proto.graph.input.append(helper.make_tensor_sequence_value_info("words", FLOAT, None))
    proto.graph.output.append(onnx.ValueInfoProto(name="same"))
    assert convolutions(saved(tmp_path, proto)) == 2
    assert "it reads an input that is no tensor of numbers" in caplog.text


def test_inputs_that_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    middle = [node("Concat", ["", "a"], ["c"], axis=1), node("Relu", ["a"], ["b"])]  # TVM dies of it
    path = saved(tmp_path, between_convolutions(middle))
    assert convolutions(path) == 2
    assert "ONNX operators Concat (an input is missing); left out" in caplog.text
    with pytest.raises(BadInput, match=r"its operator Relu late reads c, which nothing before it makes\. Fix: export"):
        load_model(
            saved(tmp_path, between_convolutions([node("Relu", ["c"], ["b"], name="late"), node("Relu", ["a"], ["c"])]))
        )


def test_an_operator_that_does_not_lower_is_cut_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvm import relax

    def fails(builder: Any, call: Any) -> Any:
        raise TypeError("no schedule for it")

    legalize = relax.transform.LegalizeOps
    monkeypatch.setattr(relax.transform, "LegalizeOps", lambda own: legalize({**(own or {}), "relax.sinh": fails}))
    path = saved(tmp_path, between_convolutions([node("Sinh", ["a"], ["b"])]))
    assert convolutions(path) == 2
    assert "TVM cannot lower the operators sinh; left out" in caplog.text


def test_an_operator_of_another_domain_is_not_taken_for_onnx_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(
        tmp_path, between_convolutions([node("Relu", ["a"], ["c"], domain="org.example"), node("Relu", ["a"], ["b"])])
    )
    assert convolutions(path) == 2
    assert "no conversion for the ONNX operators Relu; left out" in caplog.text


# Functions, and operators of old opsets.


def function(name: str, nodes: list[Any]) -> Any:
    return helper.make_function(
        "local", name, ["p"], ["q"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    )


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    inner = function("inner", [node("Relu", ["p"], ["q"])])
    outer = function("outer", [node("inner", ["p"], ["h"], domain="local"), node("Tanh", ["h"], ["q"])])
    proto = between_convolutions([node("outer", ["a"], ["b"], domain="local")], functions=[inner, outer])
    names = [w.name for w in extract_workloads(saved(tmp_path, proto), TARGET, layout="plain")]
    assert len(names) == 2
    assert any("relu" in name and "tanh" in name for name in names)


def test_functions_that_grow_or_call_themselves_are_refused(tmp_path: Path) -> None:
    doubling = [function("f0", [node("Relu", ["p"], ["q"])])]
    for i in range(1, 40):
        calls = [node(f"f{i - 1}", ["p"], ["h"], domain="local"), node(f"f{i - 1}", ["h"], ["q"], domain="local")]
        doubling.append(function(f"f{i}", calls))
    proto = between_convolutions([node("f39", ["a"], ["b"], domain="local")], functions=doubling)
    with pytest.raises(BadInput, match=r"549755813\d{3} operators with its functions in the place of their calls"):
        load_model(saved(tmp_path, proto))
    itself = function("f", [node("f", ["p"], ["q"], domain="local")])
    proto = between_convolutions([node("f", ["a"], ["b"], domain="local")], functions=[itself])
    with pytest.raises(BadInput, match="its function f calls itself"):
        load_model(saved(tmp_path, proto))
    chain = [function("f0", [node("Relu", ["p"], ["q"])])]
    chain += [function(f"f{i}", [node(f"f{i - 1}", ["p"], ["q"], domain="local")]) for i in range(1, 3000)]
    proto = between_convolutions([node("f2999", ["a"], ["b"], domain="local")], functions=chain)
    with pytest.raises(BadInput, match="is called through over 64 others"):
        load_model(saved(tmp_path, proto))


def test_operators_that_onnx_defines_as_functions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attention = model(
        [node("Attention", ["q", "k", "v"], ["y"])], dict.fromkeys("qkv", (FLOAT, (1, 2, 4, 8))), ["y"], opset=23
    )
    names = [w.name for w in extract_workloads(saved(tmp_path, attention), TARGET)]
    assert sum("matmul" in name for name in names) == 2
    cached = [node("Attention", ["q", "k", "v", "", "p", "r"], ["y", "s", "t"])]  # no mask
    decoder = model(cached, dict.fromkeys("qkvpr", (FLOAT, (1, 2, 4, 8))), ["y", "s", "t"], opset=23)
    names = [w.name for w in extract_workloads(saved(tmp_path, decoder), TARGET)]
    assert sum("matmul" in name for name in names) == 2
    assert convolutions(saved(tmp_path, between_convolutions([node("Celu", ["a"], ["b"], alpha=2.0)]))) == 2
    assert "left out" not in caplog.text


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_upsample_and_resize_of_old_opsets(tmp_path: Path, opset: int, caplog: pytest.LogCaptureFixture) -> None:
    if opset < 9:
        middle = node("Upsample", ["a"], ["b"], scales=[1.0, 1.0, 2.0, 2.0])
    else:
        middle = node("Upsample" if opset == 9 else "Resize", ["a", "scales"], ["b"])
    proto = between_convolutions([middle], opset=opset, weights={"scales": np.float32([1, 1, 2, 2])})
    workloads = extract_workloads(saved(tmp_path, proto), TARGET)
    assert any("resize2d" in w.name for w in workloads)
    assert sum("conv2d" in w.name for w in workloads) == 2
    assert "left out" not in caplog.text


# Int8.

SCALES = {"s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(0.05), "u": np.uint8(128)}
CHANNELS = {"ws": np.float32([0.01, 0.02, 0.005, 0.01]), "wz": np.zeros(4, np.int8)}


def int8(*shape: int) -> Any:
    return np.random.default_rng(1).integers(-128, 127, shape).astype(np.int8)


def float_of(values: Any, scale: Any, zero: int) -> Any:
    return (values.astype(np.float64) - zero) * scale


def quantized(values: Any, scale: float, zero: int) -> Any:
    return np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)


DATA = np.random.default_rng(2).integers(0, 255, (1, 4, 6, 6)).astype(np.uint8)
ROWS = np.random.default_rng(3).integers(0, 255, (5, 16)).astype(np.uint8)
REAL = float_of(DATA, 0.02, 120)
UNARY = {
    "QLinearSigmoid": ({}, 1 / (1 + np.exp(-REAL))),
    "QLinearLeakyRelu": ({"alpha": 0.1}, np.where(REAL < 0, 0.1 * REAL, REAL)),
    "QLinearGlobalAveragePool": ({"channels_last": 0}, REAL.mean((2, 3), keepdims=True)),
    "QLinearAveragePool": ({"kernel_shape": [2, 2], "strides": [2, 2]}, REAL.reshape(1, 4, 3, 2, 3, 2).mean((3, 5))),
}


def run_dequantized(proto: Any, **feeds: Any) -> Any:
    dequantize(proto)
    assert not any("Integer" in n.op_type or n.domain for n in proto.graph.node)
    return ReferenceEvaluator(proto).run(None, feeds)[0]


def test_qlinear_conv_by_channel_with_a_bias() -> None:
    weights = {**SCALES, **CHANNELS, "w": int8(4, 4, 3, 3), "b": np.int32([100, -900, 5, 0])}
    conv = node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "t", "u", "b"], ["y"], pads=[1] * 4)
    reference = model(
        [node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4)],
        {"x": (FLOAT, DATA.shape)},
        ["y"],
        {
            "w": (weights["w"] * CHANNELS["ws"].reshape(4, 1, 1, 1)).astype(np.float32),
            "b": (weights["b"] * 0.02 * CHANNELS["ws"]).astype(np.float32),
        },
        opset=19,
    )
    right = quantized(ReferenceEvaluator(reference).run(None, {"x": REAL.astype(np.float32)})[0], 0.05, 128)
    proto = model([conv], {"x": (TensorProto.UINT8, DATA.shape)}, ["y"], weights, opset=19)
    np.testing.assert_array_equal(run_dequantized(proto, x=DATA), right)


def test_integer_convolution_and_quantized_product_as_onnx_runs_them() -> None:
    conv = model(
        [node("ConvInteger", ["x", "w", "z", "v"], ["y"])],
        {"x": (TensorProto.UINT8, DATA.shape)},
        ["y"],
        {"w": DATA.reshape(4, 4, 3, 3), "z": np.uint8(120), "v": np.uint8(3)},
        opset=19,
    )
    product = model(
        [node("QLinearMatMul", ["x", "s", "z", "w", "t", "u", "t", "u"], ["y"])],
        {"x": (TensorProto.UINT8, ROWS.shape)},
        ["y"],
        {**SCALES, "w": ROWS.T.copy()},
        opset=19,
    )
    for proto, data in ((conv, DATA), (product, ROWS)):
        right = ReferenceEvaluator(proto).run(None, {"x": data})[0]
        np.testing.assert_array_equal(run_dequantized(proto, x=data), right)


@pytest.mark.parametrize("name", UNARY)
def test_quantized_operators_of_onnx_runtime_with_one_input(name: str) -> None:
    attributes, real = UNARY[name]
    proto = model(
        [node(name, ["x", "s", "z", "t", "u"], ["y"], domain=MICROSOFT, **attributes)],
        {"x": (TensorProto.UINT8, DATA.shape)},
        ["y"],
        SCALES,
        opset=19,
    )
    np.testing.assert_array_equal(run_dequantized(proto, x=DATA), quantized(real, 0.05, 128))


def test_quantized_operators_of_onnx_runtime_with_more_inputs() -> None:
    cases = [
        (node("QLinearAdd", ["x", "s", "z", "x", "t", "u", "t", "u"], ["y"], domain=MICROSOFT), np.add),
        (node("QLinearMul", ["x", "s", "z", "x", "t", "u", "t", "u"], ["y"], domain=MICROSOFT), np.multiply),
        (
            node("QLinearConcat", ["t", "u", "x", "s", "z", "x", "t", "u"], ["y"], domain=MICROSOFT, axis=1),
            lambda a, b: np.concatenate([a, b], 1),
        ),
    ]
    for call, real in cases:
        proto = model([call], {"x": (TensorProto.UINT8, DATA.shape)}, ["y"], SCALES, opset=19)
        right = quantized(real(REAL, float_of(DATA, 0.05, 128)), 0.05, 128)
        np.testing.assert_array_equal(run_dequantized(proto, x=DATA), right)


def test_quantized_products_of_onnx_runtime() -> None:
    columns, scales, bias = (
        int8(6, 16),
        np.float32([0.01, 0.02, 0.005, 0.01, 0.02, 0.03]),
        np.int32([5, 0, -9, 1, 2, 3]),
    )
    weights = {**SCALES, "w": columns, "v": columns.T.copy(), "ws": scales, "wz": np.zeros(6, np.int8), "b": bias}
    inputs = {"x": (TensorProto.UINT8, ROWS.shape)}
    exact = ((ROWS.astype(int) - 120) @ columns.T.astype(int) + bias) * 0.5 * 0.02 * scales
    gemm = node("QGemm", ["x", "s", "z", "w", "ws", "wz", "b", "t", "u"], ["y"], domain=MICROSOFT, transB=1, alpha=0.5)
    right = quantized(exact, 0.05, 128)
    np.testing.assert_array_equal(run_dequantized(model([gemm], inputs, ["y"], weights, opset=19), x=ROWS), right)
    product = node("MatMulIntegerToFloat", ["x", "v", "s", "ws", "z", "wz"], ["y"], domain=MICROSOFT)
    found = run_dequantized(model([product], inputs, ["y"], weights, opset=19), x=ROWS)
    np.testing.assert_allclose(found, float_of(ROWS, 0.02, 120) @ (columns.T * scales), rtol=1e-4, atol=1e-4)
    data = weight(5, 16)
    dynamic = node("DynamicQuantizeMatMul", ["x", "v", "ws"], ["y"], domain=MICROSOFT)
    found = run_dequantized(model([dynamic], {"x": (FLOAT, (5, 16))}, ["y"], weights, opset=19), x=data)
    np.testing.assert_allclose(found, data @ (columns.T * scales), atol=0.1)


def test_an_int8_network_keeps_its_convolutions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = {**SCALES, **CHANNELS, "w": int8(4, 3, 3, 3), "v": int8(4, 4, 3, 3), "b": np.int32([1, 2, 3, 4])}
    weights.update(s1=np.float32([0.02]), z1=np.uint8([120]))  # as ONNX Runtime writes them
    proto = model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("QLinearConv", ["q", "s1", "z1", "w", "ws", "wz", "t", "u", "b"], ["c"], pads=[1] * 4),
            node("QLinearAdd", ["c", "t", "u", "c", "t", "u", "t", "u"], ["d"], domain=MICROSOFT),
            node("QLinearConv", ["d", "t", "u", "v", "ws", "wz", "t", "u"], ["e"], pads=[1] * 4),
            node("DequantizeLinear", ["e", "t", "u"], ["y"]),
        ],
        {"x": (FLOAT, (1, 3, 8, 8))},
        ["y"],
        weights,
        opset=11,  # whose DequantizeLinear has no axis
    )
    assert convolutions(saved(tmp_path, proto)) == 2
    assert "left out" not in caplog.text
    load_model(tmp_path / "model.onnx")


# Models of ONNX's own backend tests; benchmarks/onnx_sweep.py has all of them.

BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"
SWEPT = sorted(path for kind in ("simple", "pytorch-*") for path in BACKEND.glob(f"{kind}/*/model.onnx"))[::4]


@pytest.mark.parametrize("path", SWEPT, ids=lambda path: path.parent.name)
def test_backend_tests_of_onnx_end_well(path: Path) -> None:
    try:
        extract_workloads(path, TARGET)
        said = ""
    except BadInput as error:
        said = str(error)
    assert not said or "Fix: " in said
    assert not re.search(r"(Type|Key|Index|Attribute|Assertion|Name)Error", said)


# Files that are not whole, and files that ask for too much.


def test_a_weight_whose_data_is_short(tmp_path: Path) -> None:
    proto = between_convolutions([node("Relu", ["a"], ["b"])])
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(BadInput, match=r"the weight w has 428 bytes of data where its shape 4x3x3x3 takes 432"):
        load_model(saved(tmp_path, proto))
    huge = TensorProto(name="h", data_type=FLOAT, dims=(1 << 20, 1 << 20), raw_data=b"1234")
    with pytest.raises(BadInput, match=r"the weight h has 4 bytes .* takes 4398046511104: the file is not whole"):
        load_model(saved(tmp_path, between_convolutions([node("Add", ["a", "h"], ["b"])], extra=[huge])))


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(BadInput, match="Fix: it is a pointer of Git LFS: git lfs pull"):
        load_model(path)


N = 10**8
I64 = np.int64
BOMBS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Range": ([node("Range", ["zero", "n", "one"], ["r"]), node("Cast", ["r"], ["c"], to=FLOAT)], {}),
    "Range down": ([node("Range", ["n", "zero", "down"], ["r"]), node("Cast", ["r"], ["c"], to=FLOAT)], {}),
    "ConstantOfShape": ([node("ConstantOfShape", ["shape"], ["c"])], {}),
    "Expand": ([node("Expand", ["f", "shape"], ["c"])], {}),
    "Tile": ([node("Tile", ["f", "shape"], ["c"])], {}),
    "Pad": ([node("Pad", ["f", "pads"], ["c"])], {"pads": I64([0, N])}),
    "Resize": (
        [node("Resize", ["image", "", "", "sizes"], ["c"])],
        {"sizes": I64([1, 1, 10**4, 10**4]), "image": weight(1, 1, 2, 2)},
    ),
    "OneHot": ([node("OneHot", ["hot", "n", "values"], ["c"])], {"hot": I64([1, 2]), "values": np.float32([0, 1])}),
    "outer": ([node("Add", ["column", "row"], ["c"])], {"column": weight(20000, 1), "row": weight(1, 20000)}),
    "stack": ([node("Max", ["row"] * 2000, ["c"])], {"row": weight(1, 40000)}),
    "chain": (
        [
            node("ConstantOfShape", ["half"], ["h0"]),
            *(node("Neg", [f"h{i}"], [f"h{i + 1}"]) for i in range(40)),
            node("Neg", ["h40"], ["c"]),
        ],
        {"half": I64([10**6])},
    ),
    "EyeLike": (
        [node("ConstantOfShape", ["square"], ["e"]), node("EyeLike", ["e"], ["c"])],
        {"square": I64([10**4, 10**4])},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_constants_too_large_to_compute(tmp_path: Path, name: str) -> None:
    nodes, weights = BOMBS[name]
    given = {
        "zero": I64(0),
        "one": I64(1),
        "down": I64(-1),
        "n": I64(N),
        "shape": I64([N]),
        "f": np.float32([1]),
        **weights,
    }
    proto = model([*nodes, node("Add", ["x", "c"], ["y"])], {"x": (FLOAT, (1,))}, ["y"], given)
    path, started_s = saved(tmp_path, proto), time.process_time()
    for read in (load_model, lambda path: extract_workloads(path, TARGET)):
        with pytest.raises(
            BadInput, match=r"its computed constants take [\d.e+]+ .B, .* the limit is \d+ MB .*Fix: make"
        ):
            read(path)
    assert time.process_time() - started_s < 5


def test_constants_that_take_too_long(tmp_path: Path) -> None:
    products = [node("MatMul", ["m", "m"], ["p"]), node("MatMul", ["p", "m"], ["c"])]
    weights = {"m": weight(1500, 1500)}
    proto = model([*products, node("Add", ["x", "c"], ["y"])], {"x": (FLOAT, (1,))}, ["y"], weights)
    started_s = time.process_time()
    with pytest.raises(BadInput, match=r"its computed constants take 6\.75e\+09 operations"):
        extract_workloads(saved(tmp_path, proto), TARGET)
    assert time.process_time() - started_s < 5


def test_a_range_in_a_relax_module(tmp_path: Path) -> None:
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1,), "int64"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, builder.emit(relax.op.arange(0, N, 1, "int64")))))
    path = tmp_path / "range.json"
    path.write_text(tvm.ir.save_json(builder.get()))
    with pytest.raises(BadInput, match=r"range.json: its computed constants take 800 MB"):
        extract_workloads(path, TARGET)


def test_weights_in_the_file_may_be_large(tmp_path: Path) -> None:
    proto = model(
        [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])],
        {"x": (FLOAT, (1, 4096))},
        ["y"],
        {"w": np.zeros((8400, 4096), np.float32)},
    )
    assert [w.name for w in extract_workloads(saved(tmp_path, proto), TARGET)] == ["matmul_packed"]


def test_filled_weights_are_not_computed_to_extract(tmp_path: Path) -> None:
    def classifier(weights: list[Any], **arrays: Any) -> Path:
        gemm = node("Gemm", ["x", "w", "b"], ["y"], transB=1)
        return saved(tmp_path, model([*weights, gemm], {"x": (FLOAT, (1, 8192))}, ["y"], {"b": weight(512), **arrays}))

    held = extract_workloads(classifier([], w=np.zeros((512, 8192), np.float32)), TARGET)
    filled = extract_workloads(classifier([node("ConstantOfShape", ["s"], ["w"])], s=I64([512, 8192])), TARGET)
    assert [w.key for w in filled] == [w.key for w in held]
    vast = classifier([node("ConstantOfShape", ["s"], ["w"])], s=I64([1 << 20, 8192]), b=np.float32([1]))
    assert len(extract_workloads(vast, TARGET)) == 1
    with pytest.raises(BadInput, match=r"weights, which it does not hold but fills with one value, take 34.4 GB"):
        load_model(vast)


def test_the_memory_of_a_bomb_in_its_own_process(tmp_path: Path) -> None:
    import resource
    import subprocess
    import sys

    nodes, _ = BOMBS["Range"]
    given = {"zero": I64(0), "one": I64(1), "n": I64(10**9)}
    path = saved(tmp_path, model([*nodes, node("Add", ["x", "c"], ["y"])], {"x": (FLOAT, (1,))}, ["y"], given))
    command = [
        Path(sys.executable).with_name("lorien"),
        "extract",
        str(path),
        "--target",
        "llvm",
        "-o",
        str(tmp_path / "w.jsonl"),
    ]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "its computed constants take 8 GB" in done.stderr
    assert "Traceback" not in done.stderr
