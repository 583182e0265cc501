"""How much data a model needs: a new device that starts from another's model, and more workloads to learn from.

    python benchmarks/model_curves.py --data DATASETS --work FOLDER --transfer
    python benchmarks/model_curves.py --data DATASETS --work FOLDER --workloads
    python benchmarks/model_curves.py --features FEATURES --work FOLDER --workloads

Transfer: an i5-1035G1 with 0 to 2,000 records of its own (20 for each workload), beside the model of an i7-3770 that
learned from all of its; a GTX 1650 beside an RTX 3080. Workloads: MetaSchedule models trained on growing parts of the
workloads of all networks but one; of FEATURES, tables of one target, where they are given. The held-out network is out
of every training, the base model's too, and so is what ``datasets/tune_more.sh`` made of it by rules.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness import machine, markdown, run
from model import BASELINES, held_out, kept_or, prepare, xgboost_scores

from lorien.featurize.schema import is_of, parted

PAIRS = {"x86_inteli5-1035G1": "x86_inteli7-3770", "cuda_gtx1650": "cuda_rtx3080"}
"""New device: the device of the base model."""
HELD_OUT = "vgg-16"
MUTATED = "-mutated"
"""What ``datasets/tune_more.sh`` appends to a network's name for workloads that rules made of it."""
RECORDS = (100, 500, 2000)
RECORDS_EACH = 20
PARTS = (0.125, 0.25, 0.5, 1.0)
SCORES = ("top1_mean", "top5_mean", "min_top10", "spearman_mean")
TRANSFER = (*SCORES, *BASELINES[:4])
CURVE = (*SCORES, "coverage", "needed_median", *BASELINES[:4])


def by_hash(names: Collection[str]) -> list[str]:
    """In an order that has nothing to do with what they are."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def copy_part(features: Path, out: Path, kept: Collection[str], network: str, each: int | None = None) -> None:
    """Copy feature tables: all rows of the network held out; of workloads in ``kept``, all or ``each`` of theirs."""
    tables = {
        path: pq.read_table(path, page_checksum_verification=True) for path in sorted(features.rglob("*.parquet"))
    }
    candidates: dict[str, set[str]] = {key: set() for key in kept}
    for table in tables.values():
        for key, candidate in zip(table["workload_key"].to_pylist(), table["candidate"].to_pylist(), strict=True):
            if key in candidates:
                candidates[key].add(candidate)
    # Keys of candidates are hashes: the smallest are a random choice, not the first that a tuner tried.
    chosen = {key: set(sorted(found)[:each]) for key, found in candidates.items()}
    for path, table in tables.items():
        columns = (table[name].to_pylist() for name in ("workload_key", "network", "candidate"))
        wanted = [
            is_of(name, network) or candidate in chosen.get(key, ())
            for key, name, candidate in zip(*columns, strict=True)
        ]
        if any(wanted):
            target = out / path.relative_to(features)
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.filter(pa.array(wanted)), target)


def workloads_of(features: Path, network: str) -> list[str]:
    """Keys of the workloads that neither are the network's nor were made of its, in the order of ``by_hash``."""
    keys: set[str] = set()
    related: set[str] = set()
    for path in features.rglob("*.parquet"):
        table = pq.read_table(path, columns=["workload_key", "network"], page_checksum_verification=True)
        for row in table.group_by(["workload_key", "network"]).aggregate([]).to_pylist():
            apart = any(is_of(row["network"], name) for name in (network, network + MUTATED))
            (related if apart else keys).add(row["workload_key"])
    return by_hash(keys - related)


def networks_of(features: Path) -> list[str]:
    """Networks that can be held out."""
    values: set[str | None] = set()
    for path in features.rglob("*.parquet"):
        values |= set(
            pq.read_table(path, columns=["network"], page_checksum_verification=True)["network"].unique().to_pylist()
        )
    return sorted({name for value in values for name in parted(value) if not name.endswith(MUTATED)})


def transfer(data: Path, work: Path) -> None:
    """One table for each pair of devices."""
    for device, other in PAIRS.items():
        features, base = prepare(data, work, "autotvm", device), work / other / "models-fast" / HELD_OUT
        held_out(prepare(data, work, "autotvm", other), base, HELD_OUT, "fast")
        zero = run("lorien", "evaluate", features, "--models", base, "--holdout-network", HELD_OUT).value["targets"]
        (alone,) = zero.values()
        rows: list[list[Any]] = [[0, "base alone", None, *(alone.get(c) for c in TRANSFER)]]
        for records in RECORDS:
            part = work / device / f"transfer-{records}"
            if not part.exists():
                kept = set(workloads_of(features, HELD_OUT)[: records // RECORDS_EACH])
                copy_part(features, part / "features", kept, HELD_OUT, RECORDS_EACH)
            for name, options in {"own": (), "with the base": ("--base", base)}.items():
                found = kept_or(
                    part / f"{name}.json",
                    lambda p=part, n=name, o=options: (
                        held_out(p / "features", p / n, HELD_OUT, "fast", *o) | xgboost_scores(p / "features", HELD_OUT)
                    ),
                )
                model = json.loads(next((part / name).glob("*/*/model.json")).read_text())["model"]
                share = model["holdout"].get("base_share")
                rows.append([records, name, share, *(found[c] for c in TRANSFER)])
        title = f"{device} from {other}, {HELD_OUT} held out of both, preset fast"
        print(f"\n{title}, {machine()}\n\n{markdown(['records', 'model', 'base share', *TRANSFER], rows)}", flush=True)


def more_workloads(features: Path, work: Path, networks: Sequence[str]) -> None:
    """Means over the networks held out in turn, by number of training workloads."""
    rows = []
    for part in PARTS:
        counts, scores = [], []
        for network in networks or networks_of(features):
            keys = workloads_of(features, network)
            kept = keys[: round(part * len(keys))]
            folder = work / f"curve-{part}" / network
            if not folder.exists():
                copy_part(features, folder / "features", set(kept), network)
            counts.append(len(kept))
            scores.append(
                kept_or(
                    folder / "scores.json",
                    lambda f=folder, n=network: (
                        held_out(f / "features", f / "models", n, "fast") | xgboost_scores(f / "features", n)
                    ),
                )
            )
            print(part, network, counts[-1], *(scores[-1][c] for c in CURVE), flush=True)
        rows.append([round(statistics.fmean(counts)), *(statistics.fmean(s[c] for s in scores) for c in CURVE)])
    title = "MetaSchedule, each network held out in turn, preset fast"
    print(f"\n{title}, {machine()}\n\n{markdown(['training workloads', *CURVE], rows)}", flush=True)


def main() -> None:
    """Run what was asked for, both by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data sets; may be left out where FEATURES are given")
    parser.add_argument("--features", type=Path, help="of --workloads: tables to learn from in place of the data sets'")
    parser.add_argument("--networks", nargs="*", default=(), help="of --workloads: hold out only these")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep logs, tables and models in")
    parser.add_argument("--transfer", action="store_true")
    parser.add_argument("--workloads", action="store_true")
    arguments = parser.parse_args()
    if arguments.transfer or not arguments.workloads:
        transfer(arguments.data, arguments.work)
    if arguments.workloads or not arguments.transfer:
        features = arguments.features
        if features is None:
            (target,) = (arguments.data / "metaschedule").iterdir()
            features = prepare(arguments.data, arguments.work, "metaschedule", target.name)
        more_workloads(features, arguments.work, arguments.networks)


if __name__ == "__main__":
    main()
