"""The scorer of tree ensembles: the kernel beside LightGBM's own library."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import pytest

from lorien.errors import MissingExtra
from lorien.models import kernel, lightgbm_library
from lorien.models.forest import Forest, read_forest
from lorien.models.kernel import LANES, MAX_LEAVES
from lorien.models.lightgbm_library import PASS_TREES, LightGBMTrees
from lorien.models.scorer import TreeEnsemble

Rows = npt.NDArray[np.float32]
COLUMNS = 6


def some_rows(count: int, seed: int = 0) -> Rows:
    """Rows with what extractors produce at the edges: NaN, infinities, zeros, and values that are right on the cuts."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, COLUMNS)).astype(np.float32)
    rows[:, 1] = rows[:, 1].round()
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38], dtype=np.float32)
    cells = rng.random((count, COLUMNS)) < 0.2
    rows[cells] = rng.choice(odd, int(cells.sum()))
    rows[:, 5] = rng.normal(size=count)  # no NaN in training: the booster takes one for zero
    return rows


def fitted(trees: int, rows: Rows, **options: Any) -> bytes:
    settings = {"verbosity": -1, "num_leaves": 31, "num_threads": 1, "learning_rate": 0.3, "min_data_in_leaf": 3}
    label = np.nan_to_num(rows, posinf=3, neginf=-3).clip(-3, 3) @ np.arange(1, COLUMNS + 1)
    data = lightgbm.Dataset(rows, label, categorical_feature=options.pop("categorical_feature", "auto"))
    booster = lightgbm.train(settings | options, data, trees)
    return booster.model_to_string().encode()


@pytest.mark.parametrize("leaves", [2, 31, MAX_LEAVES])
def test_the_kernel_says_what_lightgbm_says(leaves: int) -> None:
    rows = some_rows(2000)
    text = fitted(40, rows, num_leaves=leaves)
    forest, theirs = Forest(text), LightGBMTrees(text)
    assert (forest.trees, forest.columns) == (theirs.trees, theirs.columns) == (40, COLUMNS)
    asked = some_rows(1000, seed=1)
    asked[::7, 5] = np.nan
    for matrix in (asked, asked[: LANES - 1], asked[:LANES], asked[: LANES + 1], asked[:1], asked[:0]):
        for groups in ([40], [10, 0, 30], [1, 2]):
            expected = theirs.parts(matrix, groups)
            np.testing.assert_allclose(forest.parts(matrix, groups), expected, rtol=0, atol=1e-11)
    # To the last bit, whatever rows are beside it.
    np.testing.assert_array_equal(forest.parts(asked[333:334], [40])[0], forest.parts(asked, [40])[0, 333:334])
    with pytest.raises(ValueError, match="more trees"):
        forest.parts(asked, [20, 21])


def test_trees_without_a_split_add_their_value() -> None:
    text = fitted(3, np.zeros((50, COLUMNS), dtype=np.float32))
    forest, theirs, asked = Forest(text), LightGBMTrees(text), some_rows(5)
    assert forest.parts(asked, [forest.trees]).tolist() == theirs.parts(asked, [theirs.trees]).tolist()


@pytest.mark.parametrize("evaluator", [Forest, LightGBMTrees], ids=["kernel", "lightgbm"])
def test_threads_do_not_get_each_other_s_trees(evaluator: Callable[[bytes], Any]) -> None:
    rows = some_rows(400)
    trees = evaluator(fitted(3 * PASS_TREES, rows, num_leaves=7))
    assert trees.trees == 3 * PASS_TREES
    expected = trees.parts(rows, [trees.trees])
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: trees.parts(rows, [trees.trees]), range(64)):
            np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"num_leaves": MAX_LEAVES + 1, "min_data_in_leaf": 1},
        {"zero_as_missing": True},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"categorical_feature": [1]},
        {"linear_tree": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_kernel_does_not_know_lightgbm_scores(options: dict[str, Any]) -> None:
    rows = np.abs(some_rows(1500)).clip(0, 5)
    text = fitted(10, rows, **options)
    assert read_forest(text) is None
    booster = lightgbm.Booster(model_str=text.decode())
    # Means and linear leaves are not what LightGBM's C interface is asked for in parts: only that it takes them over.
    assert TreeEnsemble(text).trees == booster.current_iteration()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("left_child", "0 -1"),  # its own child
        ("left_child", "1 1"),
        ("left_child", "1 -2"),  # a leaf with two parents
        ("left_child", "2 -1"),  # a leaf's slot, as a node
        ("right_child", "-3 -9"),
        ("right_child", "-3 99999999999999999999"),
        ("right_child", "-3"),
        ("split_feature", "0 6"),
        ("split_feature", "-1 0"),
        ("threshold", "0.5 x"),
        ("leaf_value", "1 2"),
        ("num_leaves", "4"),
        ("num_leaves", "-1"),
        ("num_leaves", "3000000000"),
    ],
)
def test_a_damaged_tree_never_reaches_the_kernel(field: str, value: str) -> None:
    tree = {
        "num_leaves": "3",
        "num_cat": "0",
        "split_feature": "0 5",
        "threshold": "0.5 -1e300",
        "decision_type": "10 8",
        "left_child": "1 -1",
        "right_child": "-3 -2",
        "leaf_value": "1 2 3",
        "is_linear": "0",
        "shrinkage": "1",
    }

    def text(fields: dict[str, str]) -> bytes:
        header = f"tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nmax_feature_idx={COLUMNS - 1}\n\n"
        return (header + "Tree=0\n" + "".join(f"{k}={v}\n" for k, v in fields.items()) + "\nend of trees\n").encode()

    whole = read_forest(text(tree))
    assert whole is not None
    rows = np.array([[0] * 6, [1] * 6, [-np.inf] * 6, [np.nan] * 6], dtype=np.float32)
    assert whole.parts(rows, [1]).tolist() == [[2, 3, 1, 2]]
    assert read_forest(text(tree | {field: value})) is None


def test_either_library_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(300)
    text = fitted(20, rows)
    fast = TreeEnsemble(text)
    assert isinstance(fast._evaluator, Forest)
    monkeypatch.setattr(kernel, "available", lambda: False)
    slow = TreeEnsemble(text)
    assert isinstance(slow._evaluator, LightGBMTrees)
    np.testing.assert_allclose(fast(rows), slow(rows), rtol=0, atol=1e-11)
    monkeypatch.undo()

    def missing() -> None:
        raise MissingExtra("lightgbm", "train")

    monkeypatch.setattr(lightgbm_library, "_lightgbm", missing)
    np.testing.assert_array_equal(TreeEnsemble(text)(rows), fast(rows))
    with pytest.raises(MissingExtra, match="train"):
        TreeEnsemble(b"no model")
