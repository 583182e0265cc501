"""Trees as arrays: read from a LightGBM text model, checked, and laid out for the kernel that scores them.

Source: LightGBM ``src/io/tree.cpp`` (text form, ``decision_type`` bits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson

from lorien.models import kernel
from lorien.models.kernel import LANES, MAX_LEAVES
from lorien.models.metrics import FloatArray, IntArray

# As the kernel reads them.
_NODE = np.dtype([("threshold", "f4"), ("column", "u2"), ("left", "u2"), ("right", "u2"), ("nan_left", "i2")])
_TREE = np.dtype([("node", "u4"), ("nodes", "u4"), ("leaf", "u4")])
_MAX_COLUMNS = 1 << 16
_ALIGNMENT = 64

# decision_type.
_CATEGORICAL, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2
_MISSING_ZERO, _MISSING_NAN = 1, 2


class Forest:
    """A sum of trees, evaluated by the kernel. Safe across threads.

    Parameters
    ----------
    text : bytes
        LightGBM text model.

    Attributes
    ----------
    trees, columns : int
        How many there are, and how many columns of features they read.

    Raises
    ------
    ValueError
        It is no such model, or not of numerical splits and at most ``MAX_LEAVES`` leaves a tree.
    """

    def __init__(self, text: bytes) -> None:
        header, fields = _sections(text)
        _check(header[b"num_class"] == header[b"num_tree_per_iteration"] == b"1", "several sums")
        _check(b"average_output" not in header, "a mean of trees")
        _check(set(fields.get(b"is_linear", ())) <= {b"0"}, "leaves that are not numbers")
        self.columns = int(header[b"max_feature_idx"]) + 1
        _check(1 <= self.columns <= _MAX_COLUMNS, "too many columns")

        leaves = _integers(fields[b"num_leaves"])
        inner = leaves - 1
        self.trees = len(leaves)
        _check(1 <= leaves.min() <= leaves.max() <= MAX_LEAVES, "trees too large")
        self._trees = np.empty(self.trees, _TREE)
        self._trees["node"], self._trees["nodes"] = np.cumsum(inner) - inner, inner
        self._trees["leaf"] = np.cumsum(leaves) - leaves
        self._leaves = _floats(fields[b"leaf_value"])
        _check(len(self._leaves) == leaves.sum(), "leaves without a value")

        threshold = _floats(fields.get(b"threshold", ()))
        names = (b"split_feature", b"decision_type", b"left_child", b"right_child")
        feature, decision, left, right = (_integers(fields.get(name, ())) for name in names)
        _check({len(one) for one in (threshold, feature, decision, left, right)} == {inner.sum()}, "nodes cut short")
        missing = decision >> _MISSING_SHIFT
        _check(not (decision & _CATEGORICAL).any() and not (missing == _MISSING_ZERO).any(), "splits of another kind")
        _check(((feature >= 0) & (feature < self.columns)).all(), "columns that are not there")
        is_used = np.bincount(feature, minlength=self.columns) > 0
        is_used[0] |= not len(feature)  # the kernel wants one column at least, which trees of one leaf do not read
        self._used = np.flatnonzero(is_used).astype(np.uint32)
        self._nodes = np.empty(len(feature), _NODE)
        self._nodes["threshold"] = _float32_below(threshold)
        self._nodes["column"] = (np.cumsum(is_used) - 1)[feature]
        self._nodes["left"], self._nodes["right"] = _slots(inner, left, right)
        # A booster that never saw a NaN in a column takes it for zero.
        goes_left = np.where(missing == _MISSING_NAN, (decision & _DEFAULT_LEFT) > 0, threshold >= 0)
        self._nodes["nan_left"] = -goes_left.astype(np.int16)

    def parts(self, matrix: npt.NDArray[np.float32], trees: Sequence[int]) -> FloatArray:
        """See ``TreeEnsemble.parts``; the matrix is contiguous and has the columns."""
        ends = np.cumsum(trees, dtype=np.int64)
        _check(min(trees) >= 0 and ends[-1] <= self.trees, "more trees than there are")
        sums = np.empty((len(ends), len(matrix)))
        if len(matrix):
            columns = _aligned(LANES * len(self._used))
            nans = np.empty(len(self._used), np.int64)
            arrays = (self._nodes, self._leaves, self._trees, ends)
            kernel.sum_trees()(
                *(matrix.ctypes.data, *matrix.shape),
                *(self._used.ctypes.data, len(self._used)),
                *(array.ctypes.data for array in arrays),
                *(len(ends), sums.ctypes.data),
                *(columns.ctypes.data, nans.ctypes.data),
            )
        return sums


def read_forest(text: bytes) -> Forest | None:
    """The trees of a LightGBM text model; None where they are not what the kernel scores, or there is no kernel."""
    try:
        return Forest(text) if kernel.available() else None
    except (KeyError, ValueError, OverflowError):  # orjson's error is a ValueError
        return None


def _check(holds: bool | np.bool_, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _sections(text: bytes) -> tuple[dict[bytes, bytes], dict[bytes, list[bytes]]]:
    """Fields of the header; and each field of the trees, from all trees that have it, in their order."""
    trees, end = text.index(b"\nTree="), text.index(b"\nend of trees")
    header = dict(line.partition(b"=")[::2] for line in text[:trees].split(b"\n"))
    fields: dict[bytes, list[bytes]] = {}
    # Copied but once: most of the time of reading goes into pages that the process did not have.
    for line in text[trees:end].split(b"\n"):
        name = line[: line.find(b"=")]
        fields.setdefault(name, []).append(line[len(name) + 1 :])
    return header, fields


def _floats(texts: Sequence[bytes]) -> FloatArray:
    try:
        return np.array(_items(texts), dtype=np.float64)
    except orjson.JSONDecodeError:  # there is an infinity among them
        return np.array(b" ".join(texts).split(), dtype=np.float64)


def _integers(texts: Sequence[bytes]) -> IntArray:
    return np.array(_items(texts), dtype=np.int64)


def _items(texts: Sequence[bytes]) -> list[float]:
    # As JSON: several times as fast as NumPy's reader of text, and as exact.
    found: list[float] = orjson.loads(b"[%b]" % b",".join(texts).replace(b" ", b","))
    return found


def _float32_below(threshold: FloatArray) -> npt.NDArray[np.float32]:
    """The largest float32 that is not above: of float32 features, the same go left."""
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
        return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def _slots(inner: IntArray, left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """Slots of each node's children in its tree. Raises ``ValueError`` unless all but roots have one parent, above."""
    nodes = np.repeat(inner, inner)
    first = np.cumsum(inner) - inner
    own = np.arange(len(nodes)) - np.repeat(first, inner)
    _check((left < nodes).all() and (right < nodes).all(), "nodes that are not there")
    children = [np.where(child < 0, nodes + ~child, child) for child in (left, right)]
    _check(all(((own < child) & (child <= 2 * nodes)).all() for child in children), "children before their parent")
    # A tree of n nodes has 2n + 1 slots; all but the root's are children.
    roots = 2 * first + np.arange(len(inner))
    place = np.repeat(roots, inner)
    parents = np.bincount(np.concatenate([place + child for child in children]), minlength=2 * len(nodes) + len(inner))
    parents[roots] += 1
    _check((parents == 1).all(), "children of two parents")
    return children[0], children[1]


def _aligned(count: int) -> npt.NDArray[np.float32]:
    """Room for so many float32, from an address the kernel can load vectors from."""
    raw = np.empty(4 * count + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + 4 * count].view(np.float32)
