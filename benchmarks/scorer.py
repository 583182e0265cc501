"""How fast trees are scored, beside other ways to score them, and what is left of that in a search.

    python benchmarks/scorer.py [--models MODELS --features TABLES] [--others]

Trains on the logs in datasets/ unless MODELS and the tables they are of are given. On one core; a search takes all.
``--others`` adds ONNX Runtime and treelite's interpreter, as far as they are installed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, markdown, run
from serve import DATASETS, prepare, scored_rows

from lorien.database import open_database
from lorien.dialects import open_live_dialect
from lorien.models import Ranker, kernel, load_ranker
from lorien.models.store import SCORER_FILE, open_models
from lorien.target import Target

Score = Callable[[np.ndarray], np.ndarray]

FEW, MANY = 512, 20_000
REPEAT = 100
WORKLOADS = 2
COLD = "import sys; from lorien.models import kernel, load_ranker; {}; load_ranker(sys.argv[1], sys.argv[2])"
WITHOUT = "kernel.available = lambda: False"


@contextmanager
def no_kernel() -> Iterator[None]:
    """What is loaded meanwhile is scored by LightGBM's library, as if llvmlite were not installed."""
    available = kernel.available
    kernel.available = lambda: False
    try:
        yield
    finally:
        kernel.available = available


def onnx_runtime(text: Path, columns: int) -> Score:
    """The trees as one operator of ONNX Runtime, on one thread."""
    import lightgbm
    import onnxruntime
    from onnx import TensorProto, helper

    fields: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "featureids", "values", "modes")}
    fields |= {"truenodeids": [], "falsenodeids": []}
    targets: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def add(tree: int, node: dict[str, Any]) -> int:
        place = len(fields["nodeids"])
        leaf = "leaf_value" in node
        below = np.float32(node.get("threshold", 0.0))
        below = np.nextafter(below, np.float32(-np.inf)) if below > node.get("threshold", 0.0) else below
        mode = "LEAF" if leaf else "BRANCH_LEQ"
        for name, value in zip(
            fields, (tree, place, node.get("split_feature", 0), float(below), mode, 0, 0), strict=True
        ):
            fields[name].append(value)
        if leaf:
            for name, value in zip(targets, (tree, place, 0, node["leaf_value"]), strict=True):
                targets[name].append(value)
        else:
            fields["truenodeids"][place] = add(tree, node["left_child"])
            fields["falsenodeids"][place] = add(tree, node["right_child"])
        return place

    for tree in lightgbm.Booster(model_file=str(text)).dump_model()["tree_info"]:
        add(tree["tree_index"], tree["tree_structure"])
    node = helper.make_node(
        *("TreeEnsembleRegressor", ["rows"], ["scores"]),
        domain="ai.onnx.ml",
        n_targets=1,
        **{f"nodes_{name}": values for name, values in fields.items()},
        **{f"target_{name}": values for name, values in targets.items()},
    )
    shapes = [("rows", [None, columns]), ("scores", [None, 1])]
    rows, scores = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    versions = [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 18)]
    model = helper.make_model(
        helper.make_graph([node], "trees", [rows], [scores]), opset_imports=versions, ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda part: session.run(None, {"rows": part})[0][:, 0]


def treelite_interpreter(text: Path, columns: int) -> Score:
    """treelite's own loop, on one thread."""
    import treelite

    model = treelite.frontend.load_lightgbm_model(text)
    return lambda rows: treelite.gtil.predict(model, rows, nthread=1).reshape(-1)


def timed_ms(score: Score, rows: np.ndarray, repeat: int) -> list[float]:
    """Milliseconds of each of some calls, the fastest first, after one that is not counted."""
    took_ms = []
    for _ in range(repeat + 1):
        started_s = time.perf_counter()
        score(rows)
        took_ms.append(1e3 * (time.perf_counter() - started_s))
    return sorted(took_ms[1:])


def speeds(models: str, target: Target, rows: np.ndarray, others: bool, scratch: Path) -> None:
    """The table of what scores how fast, on one core."""
    few, many = rows[:FEW], np.resize(rows, (MANY, rows.shape[1]))
    ranker = load_ranker(models, target)
    expected = ranker._scorer.trees(few)
    table = []

    def add(name: str, build: Callable[[], Score]) -> None:
        started_s = time.perf_counter()
        score = build()
        error = np.abs(score(few) - expected).max()
        ready_s = time.perf_counter() - started_s
        took_ms = timed_ms(score, few, REPEAT)
        rate = MANY / timed_ms(score, many, 1)[0] * 1e3
        table.append([name, ready_s, took_ms[REPEAT // 2], took_ms[-2], round(rate), f"{error:.0e}"])
        print(table[-1], flush=True)

    def slow() -> Score:
        with no_kernel():
            return load_ranker(models, target)._scorer.trees

    add("kernel", lambda: load_ranker(models, target)._scorer.trees)
    add("LightGBM's library", slow)
    if others:
        import lightgbm

        ((dialect, key),) = open_models(models).list()
        text = scratch / "trees.txt"
        lowered = open_models(models).read(dialect, key).read(SCORER_FILE).decode()
        lightgbm.Booster(model_str=lowered).save_model(text)
        for name, build in (
            ("ONNX Runtime", onnx_runtime),
            ("treelite's interpreter", treelite_interpreter),
        ):
            try:
                add(name, lambda build=build: build(text, rows.shape[1]))
            except ImportError as error:
                print(f"{name}: {error}", flush=True)
    print(f"\n{ranker._scorer.trees.trees} trees, {rows.shape[1]} columns, one core, {machine()}\n")
    columns = ["by", "ready after s", f"{FEW} rows p50 ms", "p99 ms", "rows/s", "differs by"]
    print(markdown(columns, table), flush=True)


def loading(models: str, target: Target) -> None:
    """Seconds until a fresh process has a ranker, Python's start included."""

    def fresh_s(*first: str) -> float:
        command = [sys.executable, "-c", COLD.format("; ".join(first) or "pass"), models, target.key]
        taken = []
        for _ in range(5):
            started_s = time.perf_counter()
            subprocess.run(command, check=True)
            taken.append(time.perf_counter() - started_s)
        return statistics.median(taken)

    print(
        f"\nPython, imports and load_ranker: {fresh_s():.2f} s, without the kernel {fresh_s(WITHOUT):.2f} s", flush=True
    )


def searching(models: str, target: Target, scratch: Path) -> None:
    """The share of scoring in a search without an end: of the heaviest workloads of the logs."""
    run("lorien", "ingest", DATASETS / "metaschedule", "--dialect", "metaschedule", "--logs", scratch / "logs")
    run("lorien", "commit", "--logs", scratch / "logs", "--db", f"sqlite:///{scratch}/best.db")
    with open_database(f"sqlite:///{scratch}/best.db") as database:
        known = {record.workload.key: record.workload for record in database.query(target)}
    heaviest = sorted(known.values(), key=lambda workload: -(workload.flop or 0))[:WORKLOADS]
    dialect = open_live_dialect("metaschedule")
    dialect.warm_up(target)
    with no_kernel():
        slow = load_ranker(models, target)
    table = []
    for workload, (name, ranker) in itertools.product(
        heaviest, (("kernel", load_ranker(models, target)), ("LightGBM's library", slow))
    ):
        spent_s, scored = 0.0, 0

        def score(rows: np.ndarray, ranker: Ranker = ranker) -> np.ndarray:
            nonlocal spent_s, scored
            started_s = time.perf_counter()
            scores = ranker.guide(rows)
            spent_s, scored = spent_s + time.perf_counter() - started_s, scored + len(rows)
            return scores

        started_s = time.perf_counter()
        dialect.search(workload, target, 64, score)
        seconds = time.perf_counter() - started_s
        table.append([workload.name, name, scored, seconds, spent_s, f"{spent_s / seconds:.1%}"])
    print(f"\nA search without a limit, {machine()}\n")
    columns = ["workload", "scored by", "candidates", "search s", "of it scoring s", "share"]
    print(markdown(columns, table), flush=True)


def main() -> None:
    """Everything, one table after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models")
    parser.add_argument("--features")
    parser.add_argument("--others", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        given = arguments.features, arguments.models
        features, models = given if all(given) else prepare(scratch)
        target, rows = scored_rows(features, models)
        searching(models, target, scratch)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        speeds(models, target, rows, arguments.others, scratch)
        loading(models, target)


if __name__ == "__main__":
    main()
