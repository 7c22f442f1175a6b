"""Intervals against scipy, by hand, and by how often they cover."""

import math

import numpy as np
import pytest
from scipy import stats

from isoflop.errors import DataError
from isoflop.evaluation.statistics import (
    accuracy_of,
    clustered_error,
    mean_of,
    normalised,
    paired,
    pass_at_k,
    weighted_mean,
)
from isoflop.intervals import wilson


@pytest.mark.parametrize(("n_right", "n"), [(0, 10), (10, 10), (3, 7), (541, 1000), (1, 1)])
def test_wilson_equals_scipy(n_right, n):
    found = wilson(n_right, n)
    expected = stats.binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert (found.value, found.n) == (n_right / n, n)


def test_clustered_error_of_single_items_is_the_standard_error():
    scores = np.random.default_rng(0).random(50)
    assert clustered_error(scores.tolist(), range(50)) == pytest.approx(stats.sem(scores))


def test_clustered_error_known_answer():
    # residuals 0.25, 0.25 | -0.75, 0.25: sums 0.5 and -0.5; sqrt((0.25 + 0.25) * 2 / 1) / 4
    assert clustered_error([1, 1, 0, 1], ["a", "a", "b", "b"]) == pytest.approx(0.25)


def test_copies_in_a_cluster_add_nothing():
    scores = [0.0, 1.0, 1.0, 0.0, 1.0]
    once = clustered_error(scores, range(5))
    assert clustered_error(scores * 3, [*range(5)] * 3) == pytest.approx(once)
    assert clustered_error(scores * 3, range(15)) < 0.6 * once


def test_one_cluster_says_nothing_about_others():
    assert clustered_error([1.0, 0.0], ["a", "a"]) == math.inf
    assert mean_of([1.0, 0.0], ["a", "a"])[:3] == (0.5, 0.0, 1.0)


def test_intervals_over_clusters_cover_as_often_as_they_say():
    generator = np.random.default_rng(1)
    covered = {"clusters": 0, "items": 0}
    groups = np.repeat(np.arange(40), 10)
    for _ in range(400):
        shares = generator.beta(1, 1, size=40)
        scores = (generator.random(400) < shares[groups]).astype(float).tolist()
        for name, given in (("clusters", groups.tolist()), ("items", None)):
            found = mean_of(scores, given)
            covered[name] += found.low <= 0.5 <= found.high
    assert 0.91 < covered["clusters"] / 400 < 0.98 and covered["items"] / 400 < 0.8


def test_weighted_mean_of_equal_weights_is_the_mean_and_weights_count_items_again():
    scores, groups = [0.0, 1.0, 0.5, 1.0], ["a", "b", "c", "d"]
    plain = mean_of([0.1, 0.9, 0.5, 0.7])
    assert weighted_mean([0.1, 0.9, 0.5, 0.7], [3.0] * 4)[:3] == pytest.approx(plain[:3])
    heavy = weighted_mean(scores, [1, 2, 1, 1], groups)
    again = mean_of([0.0, 1.0, 1.0, 0.5, 1.0], ["a", "b", "b", "c", "d"])
    assert heavy[:3] == pytest.approx(again[:3])
    with pytest.raises(DataError, match="1 weights for 2 scores"):
        weighted_mean([1.0, 0.0], [1.0])


def test_paired_interval_is_narrower_than_two():
    generator = np.random.default_rng(2)
    easy = generator.random(600)
    first = (generator.random(600) < easy).astype(float)
    second = np.where(generator.random(600) < 0.1, 1.0, first)
    found = paired(first.tolist(), second.tolist())
    assert found.value == pytest.approx(second.mean() - first.mean()) and found.low > 0
    error = math.hypot(stats.sem(first), stats.sem(second))
    assert found.high - found.low < 0.6 * 2 * 1.96 * error


@pytest.mark.parametrize(("n", "c", "k"), [(10, 3, 1), (10, 3, 5), (10, 0, 4), (10, 10, 1), (5, 3, 3)])
def test_pass_at_k_is_the_hypergeometric_chance(n, c, k):
    assert pass_at_k(n, c, k) == pytest.approx(1 - stats.hypergeom(n, c, k).pmf(0))


def test_ties_go_to_the_first_option():
    assert accuracy_of([-1.0, -1.0, -2.0], (0,)) == 1 and accuracy_of([-1.0, -1.0], (1,)) == 0
    assert accuracy_of([-3.0, -1.0], (0, 1)) == 1


@pytest.mark.parametrize(
    ("by", "expected"),
    [("sum", [-4.0, -3.0]), ("character", [-2.0, -3.0]), ("byte", [-2.0, -1.0]), ("token", [-1.0, -3.0])],
)
def test_normalisations_known_answer(by, expected):
    assert normalised([-4.0, -3.0], [" ab", " \u4e2d"], by, [4, 1]) == expected


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: wilson(3, 2), "3 of 2 items are right"),
        (lambda: wilson(0, 0), "0 of 0 items"),
        (lambda: mean_of([]), "no item has a score"),
        (lambda: mean_of([1.0, math.nan]), "score nan is no number; leave missing items out"),
        (lambda: clustered_error([1.0], []), "1 scores for 0 groups"),
        (lambda: paired([1.0], [1.0, 0.0]), "1 and 2 scores are not of the same items"),
        (lambda: pass_at_k(5, 2, 6), "pass@6 of 2 right among 5 samples"),
        (lambda: normalised([0.0], [" "], "character", [1]), "option 0 is empty"),
    ],
)
def test_unusable_numbers_are_refused(work, message):
    with pytest.raises(DataError, match=message):
        work()


def test_clusters_that_are_all_wrong_are_not_certain():
    found = mean_of([0.0] * 12, ["a", "b", "c"] * 4)
    assert (found.value, found.low, found.n) == (0.0, 0.0, 12)
    assert found.high == pytest.approx(wilson(0, 3).high)  # three groups, not twelve items
    assert weighted_mean([1.0] * 4, [1.0, 2.0, 1.0, 3.0]).low == pytest.approx(wilson(4, 4).low)
