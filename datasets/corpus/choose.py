"""Put the workloads of the corpus in the order in which to measure them: the most different first.

    python datasets/corpus/choose.py FOLDER/<target>/workloads.jsonl -o chosen.jsonl [--count 1000] [--known FILE ...]

Operators take turns, those with more workloads more often. Of an operator, next is the workload that is farthest from
all before it, in the logarithms of its extents; what many networks have counts as farther. So any first part of the
file is a good choice of its size. The workloads in the files of ``--known`` were measured before the first.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from anchors import Anchor, anchor_of

from lorien.cli.workloads import read_workloads, write_workloads
from lorien.records import Workload

PLAIN_SHARE = 0.25
"""Turns of an operator that sums nothing, over those of one that does: its schedules differ little."""
NETWORKS_WEIGHT = 0.15
"""How much farther a workload counts for each doubling of the networks that have it."""
EPSILON = 1e-6
"""Of two workloads as near as can be, the one that more networks have is first."""


def farthest_first(pool: Sequence[tuple[Workload, Anchor]], known: Sequence[Anchor]) -> Iterator[Workload]:
    """All workloads of an operator, each the farthest from those before it and from those known."""
    points = np.stack([anchor.vector for _, anchor in pool])
    weight = np.array([1 + NETWORKS_WEIGHT * math.log2(max(1, len(workload.networks))) for workload, _ in pool])
    distance = np.full(len(pool), 1e6)
    for anchor in known:
        distance = np.minimum(distance, np.linalg.norm(points - anchor.vector, axis=1))
    for _ in pool:
        at = int(np.argmax((distance + EPSILON) * weight))
        yield pool[at][0]
        distance = np.minimum(distance, np.linalg.norm(points - points[at], axis=1))
        weight[at] = -1.0


def in_turns(workloads: Sequence[Workload], known: Sequence[Anchor]) -> Iterator[Workload]:
    """All workloads, the operators in turns."""
    pools: dict[str, list[tuple[Workload, Anchor]]] = defaultdict(list)
    for workload in workloads:
        anchor = anchor_of(workload)
        pools[anchor.operator].append((workload, anchor))
    before = Counter(anchor.operator for anchor in known)
    queues, turn, due = {}, {}, {}
    for operator, pool in pools.items():
        queues[operator] = farthest_first(pool, [anchor for anchor in known if anchor.operator == operator])
        share = 1.0 if any(anchor.reduced for _, anchor in pool) else PLAIN_SHARE
        # As often as the root of its workloads: a kind of a few is not left out, and one of hundreds is not all.
        turn[operator] = 1 / (share * math.sqrt(len(pool) + before[operator]))
        due[operator] = turn[operator] * (1 + before[operator])
    while due:
        operator = min(due, key=lambda one: due[one])
        due[operator] += turn[operator]
        workload = next(queues[operator], None)
        if workload is None:
            del due[operator]
        else:
            yield workload


def choose(workloads: Sequence[Workload], known: Sequence[Workload], count: int) -> list[Workload]:
    """The first ``count`` workloads in order, those known left out."""
    keys = {workload.key for workload in known}
    new = [workload for workload in workloads if workload.key not in keys]
    return list(itertools.islice(in_turns(new, list(map(anchor_of, known))), count))


def main() -> None:
    """Write the order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--known", type=Path, nargs="+", default=[], metavar="FILE", help="workloads measured before")
    arguments = parser.parse_args()
    known = [workload for file in arguments.known for workload in read_workloads(file)]
    chosen = choose(read_workloads(arguments.workloads), known, arguments.count)
    write_workloads(arguments.output, chosen)
    print(f"{len(chosen)} workloads in {arguments.output}")


if __name__ == "__main__":
    main()
