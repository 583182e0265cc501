"""One process that loads a network, runs it and times it: a turn of ``deliver.py``. Its answer is JSON.

    python benchmarks/inference.py LIBRARY.so|MODEL.onnx --inputs FILE.npz --seconds 0.3 --threads 2 [--outputs FILE]

What is timed is a call as a user makes it from Python, of TVM's virtual machine or of a session of ONNX Runtime. Each
turn has a process of its own: threads that wait for work in a loop, as ONNX Runtime's do, are in nobody's way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WARM_UP_S = 0.2

Tensors = list[npt.NDArray[Any]]


def tvm_call(library: Path, inputs: Tensors) -> Callable[[], Any]:
    """One inference by the Relax virtual machine."""
    import tvm
    from tvm import relax

    device = tvm.cpu()
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
    arguments = [tvm.runtime.tensor(tensor, device) for tensor in inputs]
    main = machine["main"]
    return lambda: main(*arguments)


def onnx_call(model: Path, inputs: Tensors, threads: int) -> Callable[[], Any]:
    """One inference by ONNX Runtime with its default optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: tensor for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feeds)


def tensors_of(result: Any) -> Tensors:
    """The outputs of a call."""
    parts = result if isinstance(result, Sequence) else [result]
    return [np.asarray(part if isinstance(part, np.ndarray) else part.numpy()) for part in parts]


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, for at least so many seconds in all; of one call where that takes longer."""
    latencies_s: list[float] = []
    end_s = time.perf_counter() + seconds
    while not latencies_s or time.perf_counter() < end_s:
        started_s = time.perf_counter()
        call()
        latencies_s.append(time.perf_counter() - started_s)
    return latencies_s


def main() -> None:
    """Load, run, time, answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--outputs", type=Path)
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)  # read once, when TVM is loaded
    with np.load(arguments.inputs) as stored:
        inputs = [stored[name] for name in stored.files]
    started_s = time.perf_counter()
    if arguments.network.suffix == ".onnx":
        call = onnx_call(arguments.network, inputs, arguments.threads)
    else:
        call = tvm_call(arguments.network, inputs)
    load_s = time.perf_counter() - started_s
    outputs = tensors_of(call())
    if arguments.outputs is not None:
        np.savez(arguments.outputs, *outputs)
    timed(call, WARM_UP_S)
    latencies_s = timed(call, arguments.seconds)
    answer = {"latency_s": statistics.median(latencies_s), "calls": len(latencies_s), "load_s": load_s}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
