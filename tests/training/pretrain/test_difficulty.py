"""How hard text is by its pairs of tokens: chances that add up to 1, known text, and runs of every kind of mixture."""

from types import SimpleNamespace

import numpy as np
import pytest

from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.difficulty import LARGEST_BATCH, TextDifficulty
from isoflop.training.pretrain.workload import forecast_of

VOCAB, LENGTH = 8, 16


def judge(text) -> TextDifficulty:
    """Of steps of four windows; `text` makes the S x (LENGTH + 1) windows from their numbers."""
    return TextDifficulty(
        SimpleNamespace(batch_sequences=4, seq_len=LENGTH, sequences=text),  # type: ignore[arg-type]
        vocab_size=VOCAB,
        n_steps=100,
    )


def counting(numbers: np.ndarray) -> np.ndarray:
    """Every token is the one before plus 1; windows of every third step are random instead."""
    windows = (numbers[:, None] + np.arange(LENGTH + 1)) % VOCAB
    random = np.random.default_rng(int(numbers[0])).integers(VOCAB, size=windows.shape)
    return np.where((numbers // 4 % 3 == 0)[:, None], random, windows)


def test_text_that_follows_its_pairs_is_easier_and_steps_are_told_apart():
    known = judge(counting)(0, 9).reshape(3, 3)
    assert np.all(known[:, 0] > 2.0)  # ln 8 = 2.08 nats is a guess
    assert np.all(known[:, 1:] < 0.5)
    np.testing.assert_allclose(judge(counting)(4, 6), known.ravel()[4:6])


def test_chances_of_all_tokens_add_up_to_one():
    """The windows of step 0 hold each pair of tokens once."""
    before, token = np.divmod(np.arange(VOCAB * VOCAB), VOCAB)

    def text(numbers: np.ndarray) -> np.ndarray:
        if numbers[0] >= 400:  # what is counted
            return np.random.default_rng(0).integers(VOCAB, size=(len(numbers), LENGTH + 1)) ** 2 % VOCAB
        return np.stack([before, token], axis=1)[numbers]

    known = TextDifficulty(
        SimpleNamespace(batch_sequences=1, seq_len=1, sequences=text),  # type: ignore[arg-type]
        vocab_size=VOCAB,
        n_steps=400,
    )
    np.testing.assert_allclose(np.exp(-known(0, 64)).reshape(VOCAB, VOCAB).sum(axis=1), 1.0)


@pytest.mark.parametrize("data", [{}, {"weights": {"A": 0.7, "B": 0.3}}, "curriculum"])
def test_text_of_mixtures_and_curricula_is_judged_to_the_end(tiny_recipe, data):
    recipe = tiny_recipe(train={"n_tokens": 200 * 256, "batch_tokens": 256})
    names = TokenSet.open(recipe.data.tokens).domains("train")
    shares = {names[0]: 0.7, names[-1]: 0.3} if len(names) > 1 else {names[0]: 1.0}
    if data == "curriculum":
        data = {"curriculum": [{"from_share": 0.0, "weights": shares}, {"from_share": 0.5, "weights": {names[0]: 1.0}}]}
    elif data:
        data = {"weights": shares}
    recipe = tiny_recipe(train={"n_tokens": 200 * 256, "batch_tokens": 256}, data=data)
    forecast = forecast_of(recipe, TokenSet.open(recipe.data.tokens))
    assert forecast is not None and forecast.difficulty is not None
    found = forecast.difficulty(0, 200)
    assert found.shape == (200,) and np.all(np.isfinite(found))


def test_steps_of_many_tokens_are_not_read_twice(tiny_recipe):
    recipe = tiny_recipe(train={"n_tokens": 400 * LARGEST_BATCH, "batch_tokens": 2 * LARGEST_BATCH})
    forecast = forecast_of(recipe, TokenSet.open(recipe.data.tokens))
    assert forecast is not None and forecast.difficulty is None
