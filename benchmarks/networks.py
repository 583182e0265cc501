"""The networks of ``deliver.py`` as model files with random weights: ONNX's own light models, MobileNetV2, encoders.

    python benchmarks/networks.py FOLDER [--network squeezenet]

Each weight of ONNX's light models is one constant: their channels are all the same, and a kernel that mixes them up
goes unnoticed. Here weights are random, of He's scale, and batch normalisations change what they are given.
MobileNetV2 is written twice from one set of weights, by torch.export for Lorien and as ONNX for ONNX Runtime: ``pip
install onnxruntime onnxscript torch torchvision``. The same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import transformer
from zero_shot import onnx_model

LIGHT = ("squeezenet", "resnet50", "inception_v1")
MOBILENET = "mobilenet_v2"
NETWORKS = (*LIGHT, MOBILENET, *transformer.SIZES)
SEED = 0
LOGIT_STD = 2.0
"""Of the logits before a softmax: enough to tell the classes apart, too little to leave one of them."""

Tensor = npt.NDArray[Any]


@dataclass(frozen=True)
class Files:
    """A network: the file that Lorien reads, and the same network for ONNX Runtime."""

    lorien: Path
    onnx: Path

    @property
    def trust(self) -> tuple[str, ...]:
        """The option of ``lorien`` for a format that can run code."""
        return ("--allow-code",) if self.lorien.suffix == ".pt2" else ()


def files_of(folder: Path, network: str) -> Files:
    """Where a network's files are, or will be."""
    onnx_file = folder / f"{network}.onnx"
    return Files(folder / f"{network}.pt2" if network == MOBILENET else onnx_file, onnx_file)


def write(folder: Path, network: str) -> Files:
    """Write the files of a network."""
    files = files_of(folder, network)
    folder.mkdir(parents=True, exist_ok=True)
    if network in transformer.SIZES:
        transformer.write(files.onnx, network)
    elif network == MOBILENET:
        _write_mobilenet(files)
    else:
        _write_light(files.onnx, network)
    return files


def random_inputs(model: Any) -> dict[str, Tensor]:
    """Standard normal inputs of an ONNX model without open dimensions, by name: the same for every process."""
    rng = np.random.default_rng(SEED)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in constants)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _write_light(path: Path, network: str) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(onnx_model(network))
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: tuple(tensor.dims) for name, tensor in stored.items()}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(numpy_helper.to_array(stored[node.input[0]]).tolist())
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    layers = _layers(nodes, shapes)
    parameters = _parameters(layers, shapes)
    used = {name for node in nodes for name in node.input}
    _replace(graph.node, nodes)
    _replace(graph.input, [value for value in graph.input if value.name not in shapes])
    model.ir_version = 8  # before 4, parameters are inputs as well

    def store() -> None:
        kept = [tensor for name, tensor in stored.items() if name in used and name not in parameters]
        _replace(graph.initializer, [*kept, *(numpy_helper.from_array(v, name) for name, v in parameters.items())])

    store()
    scale = LOGIT_STD / np.std(_logits(model))
    _, last = layers[-1]
    parameters.update((name, (parameters[name] * scale).astype(np.float32)) for name in last)
    store()
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _replace(field: Any, content: Sequence[Any]) -> None:
    del field[:]
    field.extend(content)


def _layers(nodes: Iterable[Any], shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, list[str]]]:
    """Operators with parameters, in order: the operator, and the names of its parameters."""
    reshaped, layers = {}, []
    for node in nodes:
        if node.op_type == "Reshape" and node.input[0] in shapes:
            reshaped[node.output[0]] = node.input[0]
        elif node.op_type in ("Conv", "Gemm", "BatchNormalization"):
            layers.append((node.op_type, [reshaped.get(name, name) for name in node.input[1:]]))
    return layers


def _parameters(layers: Iterable[tuple[str, list[str]]], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random parameters by name, with which the values between the operators neither vanish nor explode."""
    rng = np.random.default_rng(SEED)

    def normal(name: str, deviation: float) -> Tensor:
        return rng.normal(0, deviation, shapes[name]).astype(np.float32)

    def uniform(name: str, low: float, high: float) -> Tensor:
        return rng.uniform(low, high, shapes[name]).astype(np.float32)

    parameters = {}
    for operator, (first, *others) in layers:
        if operator == "BatchNormalization":
            bias, mean, variance = others
            parameters |= {first: uniform(first, 0.6, 1.2), bias: normal(bias, 0.1)}
            parameters |= {mean: normal(mean, 0.1), variance: uniform(variance, 0.5, 1.5)}
        else:
            # (outputs, inputs, ...) or, of the products, (..., outputs, inputs).
            inputs = math.prod(shapes[first][1:]) if operator == "Conv" else shapes[first][-1]
            parameters[first] = normal(first, math.sqrt(2 / inputs))
            parameters |= {name: normal(name, 0.1) for name in others}
    return parameters


def _logits(model: Any) -> Tensor:
    """What the softmax at a model's end is given, for random inputs."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    (softmax,) = (node for node in probe.graph.node if node.op_type == "Softmax")
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(softmax.input[0]))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run([softmax.input[0]], random_inputs(model))
    return np.asarray(logits)


def _write_mobilenet(files: Files) -> None:
    import torch
    import torchvision

    torch.manual_seed(SEED)
    model = torchvision.models.mobilenet_v2(weights=None, dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.6, 1.2)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in")
    model.eval()
    example = (torch.randn(1, 3, 224, 224),)
    program = torch.export.export(model, example)
    torch.export.save(program, files.lorien)
    torch.onnx.export(program, (), files.onnx, input_names=["image"], external_data=False, verbose=False)


def main() -> None:
    """Write the files of the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    arguments = parser.parse_args()
    for network in arguments.network:
        started_s = time.perf_counter()
        files = write(arguments.folder, network)
        print(f"{files.lorien} written in {time.perf_counter() - started_s:.1f} s", flush=True)


if __name__ == "__main__":
    main()
