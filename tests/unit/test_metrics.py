"""Scores of a ranking, against their definitions worked out by hand or by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorien.models.metrics import Candidates, random_top, ranking_scores

NAN = float("nan")


def scores(workload, latency, score, weight=None):
    count = max(workload) + 1 if workload else 0
    weights = np.array(weight if weight is not None else [1.0] * count)
    return ranking_scores(Candidates(np.array(workload), np.array(latency, dtype=float), weights), np.array(score))


def test_top_k_by_hand():
    # Workload 0: ranked 2 s, 1 s, failed. Workload 1: ranked failed, 4 s.
    result = scores([0, 0, 0, 1, 1], [1, 2, NAN, 4, NAN], [0.5, 0.9, 0.1, 0.2, 0.3], weight=[1, 10])
    assert result["top1_mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert result["top5_mean"] == pytest.approx(1.0)
    assert result["min_top10"] == pytest.approx(1.0)
    # The workload whose first failed pays its slowest latency, 4 s.
    assert result["top1_weighted"] == pytest.approx((1 * 1 + 10 * 4) / (1 * 2 + 10 * 4))
    assert result["top5_weighted"] == pytest.approx(1.0)
    assert result["random_top1_mean"] == pytest.approx(((1 + 0.5 + 0) / 3 + 0.5) / 2)
    assert (result["workloads"], result["records"], result["failed_workloads"]) == (2, 5, 0)


def test_equal_scores_count_as_the_slowest_first():
    assert scores([0, 0, 0], [1, 2, 4], [0.5, 0.5, 0.5])["top1_mean"] == pytest.approx(0.25)
    assert scores([0, 0], [1, NAN], [0.5, 0.5])["top1_mean"] == 0.0


def test_a_score_of_nan_is_ranked_last():
    assert scores([0, 0], [1, 2], [NAN, -5.0])["top1_mean"] == pytest.approx(0.5)


def test_a_workload_where_nothing_ran_is_left_out_and_counted():
    result = scores([0, 0, 1, 2], [NAN, NAN, 3, 5], [1, 2, 3, 4])
    assert (result["workloads"], result["records"], result["failed_workloads"]) == (2, 2, 1)
    assert result["top1_mean"] == 1.0


def test_nothing_left_gives_nan_not_an_exception():
    assert np.isnan(scores([0], [NAN], [1.0])["top1_mean"])


def test_spearman_is_one_for_the_right_order_and_minus_one_for_the_reverse():
    latency = [1, 2, 3, 4, NAN]
    right = scores([0] * 5, latency, [5, 4, 3, 2, 1])
    wrong = scores([0] * 5, latency, [1, 2, 3, 4, 5])
    assert right["spearman_mean"] == pytest.approx(1.0)
    assert wrong["spearman_mean"] == pytest.approx(-1.0)


def test_spearman_agrees_with_scipy_and_leaves_constant_workloads_out():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    workload = np.repeat([0, 1, 2], 50)
    latency = rng.integers(1, 9, 150).astype(float)
    latency[100:] = 1.0
    score = rng.integers(0, 9, 150).astype(float)
    expected = [stats.spearmanr(score[workload == w], 1 / latency[workload == w])[0] for w in (0, 1)]
    assert scores(workload.tolist(), latency, score)["spearman_mean"] == pytest.approx(np.mean(expected))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.integers(1, 5))
def test_random_ranking_is_the_mean_over_all_draws(values, k):
    draws = list(itertools.combinations(values, min(k, len(values))))
    expected = np.mean([max(draw) for draw in draws])
    found = random_top(np.zeros(len(values), dtype=np.int64), np.array(values), k)
    assert found[0] == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.floats(1e-6, 1.0))), min_size=1, max_size=60))
def test_scores_agree_with_a_plain_loop(rows):
    codes = {key: index for index, key in enumerate(dict.fromkeys(key for key, _ in rows))}
    workload = [codes[key] for key, _ in rows]
    latency = [NAN if value is None else value for _, value in rows]
    score = np.random.default_rng(0).permutation(len(rows)).astype(float)
    result = scores(workload, latency, score)
    expected: dict[int, list[float]] = {1: [], 5: [], 10: []}
    for code in codes.values():
        members = [i for i, w in enumerate(workload) if w == code]
        ran = [latency[i] for i in members if not np.isnan(latency[i])]
        if not ran:
            continue
        members.sort(key=lambda i: -score[i])
        for k, found in expected.items():
            top = [latency[i] for i in members[:k] if not np.isnan(latency[i])]
            found.append(min(ran) / min(top) if top else 0.0)
    assert result["workloads"] == len(expected[1])
    for k, found in expected.items():
        if found:
            assert result[f"top{k}_mean"] == pytest.approx(np.mean(found))
    if expected[10]:
        assert result["min_top10"] == pytest.approx(min(expected[10]))
