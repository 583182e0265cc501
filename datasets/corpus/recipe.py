"""Write the distinct workloads of the corpus: some 360 networks of all families, as they are lowered for a target.

    pip install torch torchvision timm transformers
    python datasets/corpus/recipe.py FOLDER [--target native] [--match EXPRESSION] [--jobs 2]

Each network is made with random weights, exported, lowered, and its workloads are written to
``FOLDER/<target>/networks``, by a process of its own: whatever stops the command, the next one goes on. A network that
cannot be exported or lowered is in ``FOLDER/<target>/refused`` with the reason, and is tried again with ``--retry``.

Then all are joined. ``held-out.jsonl`` has the workloads of the networks that figures are of. ``workloads.jsonl`` has
those of the others, without each workload whose main operator is one of a held-out network's at the same sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import as_completed
from multiprocessing import get_context
from pathlib import Path

from anchors import anchor_of
from architectures import Architecture, architectures
from pebble import ProcessPool

from lorien.cli.workloads import merge, read_workloads, write_workloads
from lorien.dialects import open_live_dialect, resolve_target
from lorien.errors import BadInput
from lorien.records import Workload
from lorien.target import Target

DIALECT = "metaschedule"
TIMEOUT_S = 600.0
PRELOADED = ["torch", "timm", "torchvision", "transformers", "tvm", "lorien.dialects.metaschedule.extract"]


def extract(name: str, target: Target, out: Path) -> int:
    """Write the workloads of a network, whole or not at all; their number. Called in a process of its own."""
    (architecture,) = (one for one in architectures() if one.name == name)
    with tempfile.TemporaryDirectory(prefix="lorien-corpus-") as folder:
        found = open_live_dialect(DIALECT).extract(architecture.source(Path(folder)), target, allow_code=True)
    write_workloads(out, [dataclasses.replace(workload, networks=(name,)) for workload in found])
    return len(found)


def extract_all(wanted: list[Architecture], target: Target, folder: Path, jobs: int) -> None:
    """Write the workloads of networks, or why there are none."""
    networks, refused = folder / "networks", folder / "refused"
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started_s = time.monotonic()
    # One network a process: what torch and TVM keep of a network does not pile up.
    with ProcessPool(max_workers=jobs, max_tasks=1, context=context) as pool:
        futures = {
            pool.schedule(extract, args=[one.name, target, networks / f"{one.name}.jsonl"], timeout=TIMEOUT_S): one
            for one in wanted
        }
        try:
            for done, future in enumerate(as_completed(futures), 1):
                name = futures[future].name
                try:
                    said = f"{future.result()} workloads"
                except Exception as error:  # torch, the network's code and TVM raise what they like, or crash
                    said = f"refused: {type(error).__name__} {error}".strip()
                    (refused / f"{name}.txt").write_text(f"{said}\n")
                line = said.splitlines()[0][:200]
                print(f"{done}/{len(futures)}  {time.monotonic() - started_s:.0f} s  {name}: {line}", flush=True)
        except BaseException:  # an interrupt does not wait for the networks at hand
            pool.stop()
            raise


def join(folder: Path) -> None:
    """Write the workloads of all networks, and those held out, and say what there is of each family."""
    found: dict[str, Workload] = {}
    held_out: dict[str, Workload] = {}
    families: dict[str, Counter[str]] = {}
    for one in architectures():
        file = folder / "networks" / f"{one.name}.jsonl"
        refused = (folder / "refused" / f"{one.name}.txt").exists()
        family = families.setdefault("held out" if one.held_out else one.family, Counter())
        family["refused"] += refused
        if not file.exists():
            continue
        family["networks"] += 1
        into = held_out if one.held_out else found
        for workload in read_workloads(file):
            family["new workloads"] += workload.key not in into
            into[workload.key] = merge(into[workload.key], workload) if workload.key in into else workload
    asked = {anchor_of(workload).problem for workload in held_out.values()}
    kept = [workload for workload in found.values() if anchor_of(workload).problem not in asked]
    write_workloads(folder / "held-out.jsonl", list(held_out.values()))
    write_workloads(folder / "workloads.jsonl", kept)
    width = max(map(len, families))
    for name, counts in families.items():
        refused_too = f", {counts['refused']} refused" if counts["refused"] else ""
        print(f"{name:{width}}  {counts['networks']:3} networks, {counts['new workloads']:4} workloads{refused_too}")
    print(f"{len(kept)} of {len(found)} workloads in {folder / 'workloads.jsonl'}; {len(held_out)} are held out")


def main() -> None:
    """Extract what is missing, and join what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="native")
    parser.add_argument("--match", default="", help="only networks whose name matches this expression")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="networks at a time")
    parser.add_argument("--retry", action="store_true", help="try those again that were refused")
    arguments = parser.parse_args()
    try:
        target = resolve_target(arguments.target, DIALECT)
    except BadInput as error:
        sys.exit(str(error))
    folder = arguments.folder / target.key
    for name in ("networks", "refused"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if arguments.retry:
        shutil.rmtree(folder / "refused")
        (folder / "refused").mkdir()
    pattern = re.compile(arguments.match)
    wanted = [
        one
        for one in architectures()
        if pattern.search(one.name)
        and not (folder / "networks" / f"{one.name}.jsonl").exists()
        and not (folder / "refused" / f"{one.name}.txt").exists()
    ]
    if wanted:
        extract_all(wanted, target, folder, arguments.jobs)
    join(folder)


if __name__ == "__main__":
    main()
