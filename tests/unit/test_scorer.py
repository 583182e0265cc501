"""Scores of one ensemble, asked for by many threads at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lorien.models.scorer import PASS_TREES, TreeEnsemble


def test_threads_do_not_get_each_other_s_trees() -> None:
    import lightgbm

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 6)).astype(np.float32)
    options = {"verbosity": -1, "num_leaves": 7, "num_threads": 1, "learning_rate": 0.5}
    fitted = lightgbm.train(options, lightgbm.Dataset(rows, rows @ rng.normal(size=6)), 3 * PASS_TREES)
    trees = TreeEnsemble(fitted.model_to_string().encode())
    assert trees.trees == 3 * PASS_TREES
    expected = trees(rows)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: trees(rows), range(64)):
            np.testing.assert_array_equal(scores, expected)
