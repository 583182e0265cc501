"""Boosters of any family lowered to one LightGBM text model: the weighted sum of all their trees.

An ensemble of bagged LightGBM, XGBoost and CatBoost models is in the end a sum of trees over the same float32 columns.
Written as one, it needs one library to load, no pickle, and one pass to score.

Sources: LightGBM ``src/io/tree.cpp`` (text form, ``decision_type`` bits), XGBoost ``doc/model.schema``, CatBoost "JSON
model tutorial".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.files import temporary_folder

# decision_type: numerical split, missing values are NaN, and they go right or left.
_NAN_RIGHT = 8
_NAN_LEFT = 10


@dataclass(frozen=True)
class Tree:
    """A binary tree: ``x[feature] <= threshold`` goes left; a child below 0 is the leaf ``~child``.

    Parameters
    ----------
    feature, threshold, decision, left, right : lists, one item per inner node
        ``decision`` is LightGBM's ``decision_type``.
    leaf : array (inner nodes + 1,)
        What each leaf adds.
    """

    feature: Sequence[int]
    threshold: Sequence[float]
    decision: Sequence[int]
    left: Sequence[int]
    right: Sequence[int]
    leaf: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaled:
    """A booster of ranking with what turns its raw score into a value: ``scale * raw + offset``."""

    booster: Any
    scale: float
    offset: float

    def predict(self, features: Any) -> npt.NDArray[np.float64]:
        """Values (rows,) of features (rows, columns), by the booster's own library."""
        matrix = np.asarray(features, dtype=np.float32)
        if type(self.booster).__module__.startswith("xgboost"):
            raw = self.booster.inplace_predict(matrix, predict_type="margin", iteration_range=_kept(self.booster))
        else:
            raw = self.booster.predict(matrix)
        return self.scale * np.asarray(raw, dtype=np.float64) + self.offset


def lower(members: Sequence[tuple[float, Any]], columns: int) -> bytes:
    """One LightGBM model text whose raw score is the weighted sum of the members' predictions.

    Parameters
    ----------
    members : sequence of (weight, booster)
        Boosters: ``lightgbm.Booster``, ``xgboost.XGBRegressor`` (or its ``Booster``), ``catboost.CatBoostRegressor``
        (or its base), or a ``Scaled`` one of these. All were fitted on columns named ``f0``, ``f1``... in that order.
    columns : int
        Number of feature columns.
    """
    blocks: list[str] = []
    for weight, booster in members:
        for tree in _trees(booster):
            blocks.append(_block(len(blocks), tree, weight))
    header = [
        "tree",
        "version=v4",
        "num_class=1",
        "num_tree_per_iteration=1",
        "label_index=0",
        f"max_feature_idx={columns - 1}",
        "objective=regression",
        "feature_names=" + " ".join(f"f{index}" for index in range(columns)),
        "feature_infos=" + " ".join(["[-inf:inf]"] * columns),
        "tree_sizes=" + " ".join(str(len(block)) for block in blocks),
        "\n",
    ]
    return ("\n".join(header) + "".join(blocks) + "end of trees\n").encode()


def _block(index: int, tree: Tree, weight: float) -> str:
    lines = [f"Tree={index}", f"num_leaves={len(tree.leaf)}", "num_cat=0"]
    if len(tree.leaf) > 1:
        for name, values in (
            ("split_feature", tree.feature),
            ("threshold", tree.threshold),
            ("decision_type", tree.decision),
            ("left_child", tree.left),
            ("right_child", tree.right),
        ):
            lines.append(f"{name}={' '.join(map(str, values))}")
    lines.append("leaf_value=" + " ".join(map(str, (tree.leaf * weight).tolist())))
    return "\n".join([*lines, "is_linear=0", "shrinkage=1", "\n\n"])


def _trees(booster: Any) -> Iterator[Tree]:
    if isinstance(booster, Scaled):
        yield _constant(np.float64(booster.offset))
        for tree in _trees(booster.booster):
            yield replace(tree, leaf=booster.scale * tree.leaf)
        return
    family = type(booster).__module__.partition(".")[0]
    lowering = {"lightgbm": _from_lightgbm, "xgboost": _from_xgboost, "catboost": _from_catboost}
    if family not in lowering:
        raise TypeError(f"no lowering for {type(booster).__name__}: use LightGBM, XGBoost or CatBoost")
    yield from lowering[family](booster)


def _from_lightgbm(booster: Any) -> Iterator[Tree]:
    # A booster that stopped early keeps the trees past its best iteration; the text leaves them out.
    columns = [int(name.removeprefix("f")) for name in booster.feature_name()]
    _, *blocks = booster.model_to_string().partition("\nend of trees")[0].split("\nTree=")
    for block in blocks:
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if int(fields["num_cat"]):
            raise TypeError("no lowering for categorical splits: every feature is a number")
        yield Tree(
            feature=[columns[int(text)] for text in fields.get("split_feature", "").split()],
            threshold=[float(text) for text in fields.get("threshold", "").split()],
            decision=[int(text) for text in fields.get("decision_type", "").split()],
            left=[int(text) for text in fields.get("left_child", "").split()],
            right=[int(text) for text in fields.get("right_child", "").split()],
            leaf=np.array(fields["leaf_value"].split(), dtype=np.float64),
        )


def _from_xgboost(model: Any) -> Iterator[Tree]:
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    learner = json.loads(booster.save_raw("json"))["learner"]
    yield _constant(np.float64(learner["learner_model_param"]["base_score"].strip("[]")))
    trees = learner["gradient_booster"]["model"]["trees"]
    for tree in trees[slice(*_kept(booster))]:
        left, right = tree["left_children"], tree["right_children"]
        inner = [node for node, child in enumerate(left) if child != -1]
        leaves = [node for node, child in enumerate(left) if child == -1]
        number = {node: index for index, node in enumerate(inner)} | {node: ~i for i, node in enumerate(leaves)}
        condition = np.array(tree["split_conditions"], dtype=np.float32)
        # Left is "less than" here and "at most" there: one float32 below is the same cut.
        below = np.nextafter(condition, np.float32(-np.inf)).astype(np.float64)
        yield Tree(
            feature=[tree["split_indices"][node] for node in inner],
            threshold=below[inner].tolist(),
            decision=[_NAN_LEFT if tree["default_left"][node] else _NAN_RIGHT for node in inner],
            left=[number[left[node]] for node in inner],
            right=[number[right[node]] for node in inner],
            leaf=condition[leaves].astype(np.float64),
        )


def _kept(booster: Any) -> tuple[int, int]:
    """First and past-last tree to use: those up to the best, where training stopped early."""
    best = booster.attr("best_iteration")
    return 0, int(best) + 1 if best is not None else booster.num_boosted_rounds()


def _from_catboost(model: Any) -> Iterator[Tree]:
    with temporary_folder("lorien-export-") as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        content = json.loads(path.read_bytes())
    scale, bias = content["scale_and_bias"]
    yield _constant(np.float64(bias[0]))
    floats = {feature["feature_index"]: feature for feature in content["features_info"]["float_features"]}
    for tree in content["oblivious_trees"]:
        splits = tree["splits"]
        depth = len(splits)
        if not depth:
            yield _constant(scale * np.float64(tree["leaf_values"][0]))
            continue
        # Oblivious: every node of a level asks the same question. Level d is split d, whose answer is bit d of the
        # leaf's number. A node is (level, answers so far); nodes are numbered level by level.
        nodes = [(level, answers) for level in range(depth) for answers in range(1 << level)]

        def child(level: int, answers: int, depth: int = depth) -> int:
            return ~answers if level == depth else (1 << level) - 1 + answers

        right_if_nan = [floats[split["float_feature_index"]]["nan_value_treatment"] == "AsTrue" for split in splits]
        yield Tree(
            feature=[floats[splits[level]["float_feature_index"]]["flat_feature_index"] for level, _ in nodes],
            # Borders are float32 in the model and printed as such: read back to the very same number.
            threshold=[float(np.float32(splits[level]["border"])) for level, _ in nodes],
            decision=[_NAN_RIGHT if right_if_nan[level] else _NAN_LEFT for level, _ in nodes],
            left=[child(level + 1, answers) for level, answers in nodes],
            right=[child(level + 1, answers | 1 << level) for level, answers in nodes],
            leaf=scale * np.array(tree["leaf_values"], dtype=np.float64),
        )


def _constant(value: np.float64) -> Tree:
    return Tree([], [], [], [], [], np.array([value]))
