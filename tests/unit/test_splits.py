"""Splits never let rows of one workload sit on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorien.errors import BadInput
from lorien.featurize.splits import assign_folds, split_holdout

KEYS = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=2, max_size=40, unique=True)
ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["vgg-16", "resnet", "mobilenet", None])),
    min_size=1,
    max_size=200,
)


@given(KEYS, st.integers(2, 10), st.data())
def test_every_workload_has_one_fold_and_no_fold_is_empty(keys, folds, data):
    rows = data.draw(st.lists(st.integers(1, 1000), min_size=len(keys), max_size=len(keys)))
    assigned = assign_folds(keys, rows, folds)
    assert len(assigned) == len(keys)
    assert set(assigned) == set(range(min(folds, len(keys))))


@given(KEYS, st.integers(2, 6), st.randoms())
def test_folds_do_not_depend_on_the_order_of_the_workloads(keys, folds, random):
    rows = {key: 1 + len(key) for key in keys}
    shuffled = random.sample(keys, len(keys))
    one = dict(zip(keys, assign_folds(keys, [rows[key] for key in keys], folds), strict=True))
    other = dict(zip(shuffled, assign_folds(shuffled, [rows[key] for key in shuffled], folds), strict=True))
    assert one == other


@given(KEYS, st.integers(2, 6), st.data())
def test_folds_differ_by_at_most_one_workload_rows(keys, folds, data):
    rows = data.draw(st.lists(st.integers(1, 1000), min_size=len(keys), max_size=len(keys)))
    assigned = assign_folds(keys, rows, folds)
    load = np.bincount(assigned, weights=rows)
    assert load.max() - load.min() <= max(rows)


def test_one_workload_cannot_be_split():
    with pytest.raises(BadInput, match="at least two workloads"):
        assign_folds(["only"], [10], 4)


@given(ROWS)
def test_no_workload_is_on_both_sides_of_a_holdout(rows):
    workloads, networks = zip(*rows, strict=True)
    shared = {key for key, network in rows if network == "vgg-16"}
    if not shared or shared == set(workloads):
        with pytest.raises(BadInput):
            split_holdout(workloads, networks, "vgg-16")
        return
    train, test = split_holdout(workloads, networks, "vgg-16")
    assert not (train & test).any()
    assert not {workloads[i] for i in np.flatnonzero(train)} & {workloads[i] for i in np.flatnonzero(test)}
    assert all(networks[i] == "vgg-16" for i in np.flatnonzero(test))
    assert int(test.sum()) == networks.count("vgg-16")
    # What is in neither is a held-out workload's rows of another network, and nothing else.
    assert all(workloads[i] in shared and networks[i] != "vgg-16" for i in np.flatnonzero(~train & ~test))


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(BadInput, match=r"no rows of network 'vgg'.*resnet"):
        split_holdout(["a", "b"], ["resnet", None], "vgg")
