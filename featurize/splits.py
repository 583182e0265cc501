"""Splits by workload: rows of one workload never sit on both sides.

Two records of a workload differ only in their schedule; a model that has seen one of them knows the other's shapes and
how fast its best is. Every split here is therefore a statement about workloads, and rows follow their workload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lorien.errors import BadInput
from lorien.featurize.schema import is_of, parted

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def assign_folds(keys: Sequence[str], rows: Sequence[int] | IntArray, folds: int) -> IntArray:
    """Fold of each workload: folds of nearly equal rows, the same on every machine and in any order of the keys.

    Parameters
    ----------
    keys : sequence of str
        Distinct workload keys.
    rows : sequence of int
        Rows of each workload, in the order of ``keys``.
    folds : int
        Folds wanted; fewer workloads than that make a fold each.

    Returns
    -------
    array (len(keys),) of int
        Numbers from 0 without a gap; no fold is empty.

    Raises
    ------
    BadInput
        Fewer than two workloads, or fewer than two folds: nothing can be held out.
    """
    folds = min(folds, len(keys))
    if folds < 2:
        raise BadInput(
            f"{len(keys)} workload(s) cannot be split into folds. Fix: featurize logs of at least two workloads"
        )
    # The largest first, each to the fold that has least: no fold ends up with one giant more than another. Equal
    # sizes, the usual case, are told apart by a hash, so that neighbours in a network do not travel together.
    order = sorted(range(len(keys)), key=lambda i: (-int(rows[i]), hashlib.sha256(keys[i].encode()).digest()))
    load = [(0, 0)] * folds
    assigned = np.zeros(len(keys), dtype=np.int64)
    for index in order:
        fold = min(range(folds), key=load.__getitem__)
        load[fold] = (load[fold][0] + int(rows[index]), load[fold][1] + 1)
        assigned[index] = fold
    return assigned


def split_holdout(
    workloads: Sequence[str], networks: Sequence[str | None], network: str
) -> tuple[BoolArray, BoolArray]:
    """Rows to train on and rows to test on when a network is held out.

    The test rows are those tuned for ``network``. A workload that other networks share with it is out of training
    altogether, whichever network its rows were tuned for.

    Parameters
    ----------
    workloads, networks : sequence of str, one per row
        Workload of each row, and its network or networks as the tables name them; None where they are unknown.
    network : str
        The one to hold out.

    Returns
    -------
    (train, test) : arrays (rows,) of bool
        Never both true; rows of shared workloads from other networks are in neither.

    Raises
    ------
    BadInput
        No row is of that network, or nothing is left to train on.
    """
    test = np.fromiter((is_of(name, network) for name in networks), dtype=np.bool_, count=len(networks))
    if not test.any():
        known = sorted({part for name in networks for part in parted(name)})
        raise BadInput(f"no rows of network {network!r}; there are: {', '.join(known) or 'none with a name'}")
    held = {key for key, is_test in zip(workloads, test, strict=True) if is_test}
    train = np.fromiter((key not in held for key in workloads), dtype=np.bool_, count=len(workloads))
    if not train.any():
        raise BadInput(
            f"without the workloads of {network!r} nothing is left to train on. Fix: add logs of other networks"
        )
    return train, test
