"""Scores of groupings at known answers, and intervals that hold what they promise."""

import math

import numpy as np
import pytest
import torch

from isoflop.in_situ.scores import (
    adjusted_rand_index,
    matched_accuracy,
    normalised_mutual_information,
    paired_interval,
)

TRUTH = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


def test_renamed_groups_are_perfect():
    renamed = torch.tensor([2, 0, 1])[TRUTH]
    for score in (matched_accuracy, normalised_mutual_information, adjusted_rand_index):
        assert score(renamed, TRUTH) == pytest.approx(1.0)


def test_one_group_for_all_says_nothing():
    lump = torch.zeros_like(TRUTH)
    assert matched_accuracy(lump, TRUTH) == 0.4
    assert normalised_mutual_information(lump, TRUTH) == pytest.approx(0.0)
    assert adjusted_rand_index(lump, TRUTH) == pytest.approx(0.0)


def test_a_case_counted_by_hand():
    found = torch.tensor([0, 0, 1, 1])
    truth = torch.tensor([0, 1, 1, 1])
    assert matched_accuracy(found, truth) == 0.75
    # pairs together: found 2, truth 3, both 1 of 6
    assert adjusted_rand_index(found, truth) == pytest.approx((1 - 2 * 3 / 6) / ((2 + 3) / 2 - 2 * 3 / 6))
    mutual = 0.25 * math.log(0.25 / (0.5 * 0.25)) + 0.25 * math.log(0.25 / (0.5 * 0.75)) + 0.5 * math.log(0.5 / 0.375)
    entropies = math.log(2) + (-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert normalised_mutual_information(found, truth) == pytest.approx(mutual / (entropies / 2))


def test_chance_groupings_score_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    scores = [
        adjusted_rand_index(torch.randint(0, 4, (60,), generator=generator), torch.arange(60) % 4) for _ in range(300)
    ]
    assert abs(sum(scores) / 300) < 0.01


def test_paired_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        mean, low, high = paired_interval(generator.normal(0.3, 1.0, 15).tolist(), level=0.9)
        inside += low <= 0.3 <= high
        assert low < mean < high
    assert 0.87 < inside / 1000 < 0.93
