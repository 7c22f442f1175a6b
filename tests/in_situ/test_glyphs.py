"""Glyphs: labelled, large, the same for a seed, and tested in fonts that training never saw."""

import pytest
import torch

from isoflop.in_situ.images import drawn_glyphs

pytest.importorskip("matplotlib")


def test_glyphs_are_images_of_light_with_labels_that_a_nearest_neighbour_can_read():
    train, test = drawn_glyphs(400, 100, side=28)
    assert train.x.shape == (400, 784) and test.n_classes == 10
    assert train.x.min() >= 0 and train.x.max() <= 1 and 0.03 < train.x.mean() < 0.4
    nearest = train.y[torch.cdist(test.x, train.x).argmin(1)]
    assert (nearest == test.y).float().mean() > 0.6  # chance is 0.1


def test_a_seed_fixes_them_and_another_changes_them():
    one, again, other = (drawn_glyphs(6, 3, side=28, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one.x, again.x) and torch.equal(one.y, again.y) and not torch.equal(one.x, other.x)


def test_sides_and_characters_are_as_asked():
    train, _ = drawn_glyphs(5, 2, characters="ABC", side=112)
    assert train.x.shape == (5, 12_544) and train.n_classes == 3 and int(train.y.max()) < 3
