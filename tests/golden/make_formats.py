"""Writes a small file of every format, as this Lorien writes it. ``python make_formats.py FOLDER``.

``formats_v1/`` is of Lorien 0.1.0, ``formats_v2/`` of the first whose databases hold definitions apart (schema 2).

Run by a Lorien that raises a format's version, into a folder of the new version, before the reader of the old one is
forgotten. The files are never written again: ``tests/unit/test_formats.py`` holds that they go on to be read.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import lightgbm

import lorien
from lorien.cli.workloads import write_workloads
from lorien.database.jobs import Run, open_jobs
from lorien.featurize.table import featurize
from lorien.logs.commit import commit
from lorien.models.data import group_tables, read_features, read_rows
from lorien.models.lower import lower
from lorien.models.store import SCORER_FILE, Model
from lorien.tune.jobs import JobOptions, jobs_of

TARGET = "x86_i7-3770"


def line(tile: int, size: int) -> str:
    """A line of an AutoTVM log: a dense layer of ``size``, tiled by ``tile``."""
    tensors = [["TENSOR", [1, size], "float32"], ["TENSOR", [size, size], "float32"], None, "float32"]
    knobs = [["tile_x", "sp", [-1, tile]], ["tile_y", "sp", [-1, 1]], ["tile_k", "sp", [-1, 1]]]
    value = {
        "input": ["llvm -keys=cpu", "dense_nopack.x86", tensors, {}],
        "config": {"index": tile, "code_hash": None, "entity": knobs},
        "result": [[1e-6 * size * (1 + abs(tile - 4))], 0, 1.0, 1680553635.0 + tile],
        "version": 0.2,
        "tvm_version": "0.10.0",
    }
    return json.dumps(value)


def make(folder: Path) -> None:
    """Write the files."""
    logs = lorien.open_logs(f"{folder}/logs")
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary, "mlp.log")
        log.write_text("".join(line(tile, size) + "\n" for size in (32, 64) for tile in range(1, 7)))
        target = lorien.resolve_target(TARGET)
        lorien.ingest([log], logs, dialect=lorien.open_dialect("autotvm"), target=target)
    featurize(logs, folder / "features", processes=1)
    (group,) = group_tables(folder / "features")
    rows = read_rows(group)
    value = rows.candidates(rows.all()).value()
    settings = {"min_data_in_leaf": 2, "num_leaves": 4, "verbosity": -1}
    matrix = read_features(group, rows.all())
    names = [f"f{index}" for index in range(matrix.shape[1])]
    booster = lightgbm.train(settings, lightgbm.Dataset(matrix, value, feature_name=names), 3)
    model = Model(
        lorien=lorien.__version__,
        dialect=group.dialect,
        target=group.target,
        family="llvm-x86",
        target_attrs=lorien.Target.from_key(group.target).to_json(),
        feature_set=asdict(group.features) | {"columns": [list(asdict(c).values()) for c in group.features.columns]},
        options={},
        tables={},
        rows=len(rows),
        workload_keys=list(rows.keys),
        networks=["mlp"],
        holdout={},
        fit_seconds=0.1,
        calibration={"raw": [-1.0, 2.0], "fraction": [0.0, 1.0]},
        members=[],
        fold_trees=[3],
        libraries={},
        workload_folds=[0] * len(rows.keys),
        confidence={"margin": 0.1, "expected": [0.9, 1.0]},
    )
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary, SCORER_FILE).write_bytes(lower([(1.0, booster)], matrix.shape[1]))
        lorien.open_models(folder / "models").publish(model, Path(temporary))
    with lorien.open_database(f"{folder}/schedules.db") as database:
        commit(logs, database)
        workloads = list({record.workload.key: record.workload for record in database.query()}.values())
    write_workloads(folder / "workloads.jsonl", workloads)
    with open_jobs(f"{folder}/schedules.db") as jobs:
        options = JobOptions(4, 2, "gradient", "evolutionary", "none", False, 0, 10.0)
        jobs.add_run(Run("nightly", 1.7e9, asdict(options), (group.target,), 60.0), jobs_of(workloads, [target]))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
