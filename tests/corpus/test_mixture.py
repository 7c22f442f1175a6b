import numpy as np
import pytest

from isoflop.corpus.mixture import BLOCK, Curriculum, Mixture, shares_per_block
from isoflop.errors import RecipeError


def test_every_block_has_the_exact_shares_in_another_order() -> None:
    mixture = Mixture({"a": 0.5, "b": 0.3, "c": 0.2}, seed=1)
    blocks = [mixture.draws(np.arange(start, start + BLOCK))[0] for start in (0, BLOCK, 7 * BLOCK)]
    counts = [np.bincount(block, minlength=3).tolist() for block in blocks]
    assert counts[0] == counts[1] == counts[2] == [2048, 1229, 819]
    assert not np.array_equal(blocks[0], blocks[1])


def test_draws_of_one_source_are_numbered_without_gaps() -> None:
    mixture = Mixture({"a": 3, "b": 1}, seed=2)
    sources, ranks = mixture.draws(np.arange(3 * BLOCK))
    for number in range(2):
        assert np.array_equal(np.sort(ranks[sources == number]), np.arange((sources == number).sum()))


def test_any_position_is_found_without_replay() -> None:
    indices = np.array([123_456_789, 5, 99_999, 5])
    whole = Mixture({"a": 1, "b": 2}, seed=3)
    alone = [Mixture({"a": 1, "b": 2}, seed=3).draws(np.array([index])) for index in indices]
    sources, ranks = whole.draws(indices)
    assert sources.tolist() == [int(item[0][0]) for item in alone]
    assert ranks.tolist() == [int(item[1][0]) for item in alone]


def test_tiny_weights_are_seen_and_zero_weights_are_not() -> None:
    counts = shares_per_block({"large": 1.0, "tiny": 1e-9, "none": 0.0})
    assert counts == {"large": BLOCK - 1, "tiny": 1}


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_useless_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="must be numbers >= 0 with a positive sum"):
        shares_per_block(weights)


def test_a_curriculum_of_one_stage_is_its_mixture() -> None:
    indices = np.arange(0, 3 * BLOCK, 7)
    mixture, one = Mixture({"a": 1, "b": 2}, seed=3), Curriculum([(0, {"a": 1, "b": 2})], seed=3)
    assert all(np.array_equal(x, y) for x, y in zip(mixture.draws(indices), one.draws(indices), strict=True))


def test_a_source_goes_on_where_it_was_when_shares_change() -> None:
    stages = [(0, {"a": 0.9, "b": 0.1}), (5000, {"b": 0.5, "c": 0.5}), (9000, {"a": 1.0})]
    plan = Curriculum(stages, seed=4)
    sources, ranks = plan.draws(np.arange(12_000))
    for number, name in enumerate(plan.names):
        seen = ranks[sources == number]
        assert np.array_equal(np.sort(seen), np.arange(len(seen))), name
    assert plan.names == ["a", "b", "c"] and set(sources[9000:].tolist()) == {0}
    for n in (0, 1, 4999, 5000, 7777, 12_000):
        assert plan.counts_before(n).tolist() == np.bincount(sources[:n], minlength=3).tolist()
    backwards = plan.draws(np.arange(12_000)[::-1])  # any place is found without replay
    assert np.array_equal(backwards[0][::-1], sources) and np.array_equal(backwards[1][::-1], ranks)


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 5, 3]])
def test_stages_that_do_not_follow_each_other_are_refused(starts: list[int]) -> None:
    with pytest.raises(RecipeError, match="the first must begin at 0"):
        Curriculum([(start, {"a": 1.0}) for start in starts], seed=0)
