"""What the notebooks ask, on numbers that can be checked by hand, and that their figures show them."""

from __future__ import annotations

import io
import math

import matplotlib.image
import numpy as np
import pytest

from lorien.analysis import figures
from lorien.analysis.roofline import roofline
from lorien.analysis.search import (
    calibration_bins,
    random_share_reached,
    random_trials,
    ranked_trials,
    share_reached,
    tuner_trials,
)
from lorien.analysis.spent import measuring_seconds, network_seconds, operator_of
from lorien.errors import BadInput
from lorien.models.data import Rows
from lorien.models.explain import explain
from lorien.models.metrics import Candidates
from lorien.report.tally import WorkloadTally

# Two workloads of four candidates: the best of the first is its last, of the second its first; one failed.
CANDIDATES = Candidates(
    np.array([0, 0, 0, 0, 1, 1, 1, 1]),
    np.array([4.0, 2.0, np.nan, 1.0, 1.0, 1.04, 3.0, 8.0]),
    np.ones(2),
)


def tally(name: str, latencies_s: list[float], **weights: float) -> WorkloadTally:
    own = WorkloadTally("metaschedule", "llvm", name, name, weights=weights)
    own.add(np.array(latencies_s))
    return own


def test_trials_until_near_the_best() -> None:
    ahead = np.array([1.0, 2, 3, 4, 1, 2, 3, 4])
    assert ranked_trials(CANDIDATES, ahead, 0.95).tolist() == [1, 3]
    assert ranked_trials(CANDIDATES, -ahead, 0.95).tolist() == [4, 1]
    assert ranked_trials(CANDIDATES, np.zeros(8), 1.0).tolist() == [4, 4], "of equal scores the slowest comes first"
    own = [tally("a", [4, 2, math.nan, 1]), tally("b", [1, 1.04, 3, 8]), tally("c", [math.nan])]
    assert tuner_trials(own, 0.95).tolist() == [4, 1, math.inf]
    assert tuner_trials(own, 0.5).tolist() == [2, 1, math.inf]
    with pytest.raises(BadInput, match=r"95.*Fix"):
        tuner_trials(own, 95)


def test_random_orders_are_exact() -> None:
    rng = np.random.default_rng(0)
    tried = np.array([ranked_trials(CANDIDATES, rng.random(8), 0.95) for _ in range(4000)])
    assert random_trials(CANDIDATES, 0.95) == pytest.approx(tried.mean(axis=0), abs=0.05)
    trials = np.arange(1, 5)
    drawn = np.mean([share_reached(own, trials) for own in tried], axis=0)
    assert random_share_reached(CANDIDATES, 0.95, trials) == pytest.approx(drawn, abs=0.02)
    assert random_share_reached(CANDIDATES, 0.95, trials)[-1] == 1


def test_calibration_in_groups_of_equal_size() -> None:
    predicted, measured = calibration_bins(np.array([0.4, 0.1, 0.2, 0.3]), np.array([1.0, 0, 0.2, 0.4]), bins=2)
    assert predicted == pytest.approx([0.15, 0.35])
    assert measured == pytest.approx([0.1, 0.7])


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("fused_conv2d17_add9_relu9", "conv2d"),
        ("fused_matmul1_add6_relu4_dropout", "matmul"),
        ("max_pool2d2", "max_pool2d"),
        ("softmax", "softmax"),
        ("pad_temp+conv2d_nchw+T_add+compute(1x3x8x8,8x3x3x3,1x8x8x8)", "conv2d_nchw"),
        ("T_reshape(1x1000,1x1000)", "T_reshape"),
        ("lv36_red(1x64x7x7,1x64)", "reduction"),
    ],
)
def test_the_operator_of_a_name(name: str, operator: str) -> None:
    assert operator_of(name) == operator


def test_where_time_went() -> None:
    nothing = np.zeros(0)
    latency_s = np.array([0.01, 0.2, np.nan])
    rows = Rows(("a", "b"), (), np.array([0, 1, 1]), nothing, latency_s, nothing)
    assert measuring_seconds(rows, repeats=3, min_repeat_s=0.06) == pytest.approx([0.18, 0.6])
    own = [
        tally("conv2d(1)", [2, 1], net=3, other=1),
        tally("matmul(1)", [0.5], net=2),
        tally("softmax(1)", [math.nan]),
    ]
    assert network_seconds(own) == {"net": {"conv2d": 3, "matmul": 1}, "other": {"conv2d": 1}}


def test_a_roofline_touches_the_fastest() -> None:
    found = roofline(np.array([1.0, 2, np.nan, 1]), np.array([8.0, 8, 8, 1]), np.array([2.0, 2, 2, 1]))
    assert found.intensity.tolist() == [4, 4, 1]
    assert (found.peak_flop_per_s, found.peak_bytes_per_s) == (8, 2)
    assert found.reached().tolist() == [1, 0.5, 0.5]
    with pytest.raises(BadInput, match="no candidate ran"):
        roofline(np.array([np.nan]), np.array([1.0]), np.array([1.0]))


def test_shares_add_up_and_find_what_matters() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((600, 4), dtype=np.float32)
    value = 0.7 * features[:, 2] + 0.1 * features[:, 0]
    held_out = np.arange(600) % 3 == 0
    found = explain(features, value.astype(float), held_out, ["tile1", "other", "tile0", "none"])
    assert found.predicted == pytest.approx(found.base + found.shares.sum(axis=1))
    assert np.corrcoef(found.predicted, value[held_out])[0, 1] > 0.95
    assert found.importance().argmax() == 2
    assert next(iter(found.grouped())) == "tile#"
    assert len(found.grouped()) == 3
    with pytest.raises(BadInput, match="hold out"):
        explain(features, value.astype(float), np.zeros(600, bool), ["a", "b", "c", "d"])


def test_every_figure_has_a_picture_that_shows_something() -> None:
    x = np.linspace(1, 10, 20)
    names = [f"conv2d_nchw({index}x{index}x{index}x{index},{index}x{index}x{index}x{index})" for index in range(20)]
    drawn = [
        figures.lines("Lines", ("k", x), "score", {"model": x / 10, "random": x / 20}, log_x=True),
        figures.band("Band", ("trials", x), "score", np.linspace(0, 1, 60).reshape(3, 20)),
        figures.bars("Bars", "seconds", {name: float(index) for index, name in enumerate(names)}, most=5),
        figures.points("Points", ("x", x), ("y", x), names=names, groups=names, diagonal=True),
        figures.shares("Shares", names[:4], np.outer(x, [1, -1, 0.5, 0]), np.outer(x, np.ones(4)), most=3),
        figures.roof("Roof", roofline(x, x * 1e9, x[::-1].copy()), names),
    ]
    for figure in drawn:
        image = matplotlib.image.imread(io.BytesIO(figures.picture(figure)))
        assert image.shape[:2] == (figure.layout.height, figure.layout.width)
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
        assert figure.to_dict()["data"]
