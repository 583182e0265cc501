"""What the model says of its own ranking: labels that know their workload, and how deep a ranking must be tried."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorien.errors import BadInput
from lorien.models.confidence import DEPTH, GOOD, SHARE, Confidence, check_confidence, learn_confidence
from lorien.models.grouped import decode, encode, ranking_quality


def test_a_label_holds_its_value_and_its_workload():
    rng = np.random.default_rng(0)
    value = np.r_[0.0, 1.0, rng.random(1000)]
    workload = np.r_[0, (1 << 24) - 1, rng.integers(0, 1 << 24, 1000)]
    found_value, found_workload = decode(encode(value, workload))
    np.testing.assert_array_equal(found_workload, workload)
    np.testing.assert_allclose(found_value, value, atol=2**-24)
    assert found_value[:2].tolist() == [0.0, 1.0]
    # Encoding once more changes nothing, so a label may be read and written any number of times.
    np.testing.assert_array_equal(encode(found_value, found_workload), encode(value, workload))
    with pytest.raises(BadInput, match="workloads"):
        encode(value[:1], np.array([1 << 24]))


def test_the_quality_of_a_ranking_by_hand():
    workload = np.array([3, 3, 3, 5, 5, 9])
    value = np.array([1.0, 0.5, 0.0, 0.2, 1.0, 0.0])
    best_first = np.array([3.0, 2, 1, 1, 2, 1])
    assert ranking_quality(value, workload, best_first) == 1.0
    # The best comes third of three in one workload, second of two in the other; the third has nothing to rank.
    worst_first = -best_first
    assert ranking_quality(value, workload, worst_first) == pytest.approx(((0 + 0.5 + 8) / 10 + (0.2 + 9) / 10) / 2)
    # A model that does not decide gains nothing.
    assert ranking_quality(value, workload, np.zeros(6)) == ranking_quality(value, workload, worst_first)


def workloads(rng, count, rows=60, noise=0.15):
    """(workload, value, score) of workloads whose scores are their values and noise."""
    value = rng.random((count, rows))
    value /= value.max(axis=1, keepdims=True)
    score = value + noise * rng.normal(size=value.shape)
    return np.repeat(np.arange(count), rows), value.ravel(), score.ravel()


def test_nine_in_ten_unseen_workloads_have_a_good_candidate_within_the_margin():
    rng = np.random.default_rng(0)
    confidence = learn_confidence(*workloads(rng, 300))
    found = check_confidence(confidence, *workloads(rng, 2000))
    assert found["coverage"] == pytest.approx(SHARE, abs=0.03)
    assert found["coverage_claimed"] == SHARE
    assert 1 < found["needed_median"] < 20
    # A ranking that is never wrong needs one candidate, one that says nothing needs nearly all.
    assert learn_confidence(*workloads(rng, 300, noise=0.0)).margin == 0.0
    blind = check_confidence(learn_confidence(*workloads(rng, 300, noise=50.0)), *workloads(rng, 300, noise=50.0))
    assert blind["needed_median"] > 20


def test_the_k_follows_the_scores_of_the_workload():
    confidence = Confidence(0.1, (0.8, 0.9, 0.95))
    assert confidence.needed(np.array([0.2, 0.9, 0.3])) == 1
    assert confidence.needed(np.array([0.85, 0.9, 0.81, 0.3])) == 3
    assert confidence.needed(np.array([])) == 0
    assert [confidence.expected_fraction(k) for k in (1, 3, 50)] == [0.8, 0.95, 0.95]
    assert Confidence.from_json(confidence.to_json()) == confidence


def test_too_few_workloads_say_try_everything():
    confidence = learn_confidence(*workloads(np.random.default_rng(0), 8))
    assert confidence.margin == math.inf
    assert Confidence.from_json(confidence.to_json()) == confidence
    assert confidence.needed(np.arange(40.0)) == 40
    nothing_ran = learn_confidence(np.zeros(5, np.int64), np.zeros(5), np.arange(5.0))
    assert (nothing_ran.margin, nothing_ran.expected) == (math.inf, (0.0,) * DEPTH)
    assert math.isnan(check_confidence(confidence, np.zeros(5, np.int64), np.zeros(5), np.arange(5.0))["coverage"])


def test_expected_is_the_mean_top_k_score():
    workload = np.array([0, 0, 0, 1, 1])
    value = np.array([0.5, GOOD, 1.0, 1.0, 0.1])
    score = np.array([3.0, 2.0, 1.0, 1.0, 2.0])
    confidence = learn_confidence(workload, value, score)
    assert confidence.expected[:3] == pytest.approx([0.3, (GOOD + 1) / 2, 1.0])
    assert confidence.expected[-1] == 1.0
