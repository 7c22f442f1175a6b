import math
import random
from pathlib import Path

import numpy as np
import pytest

from isoflop.corpus.filter.perplexity import (
    NgramModel,
    cut_off,
    perplexities,
    perplexity,
    token_log_probabilities,
    train_ngrams,
)
from isoflop.corpus.filter.text_block import TextBlock
from isoflop.errors import DataError

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]


def _texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(n)]


def _reference(texts: list[str], order: int, history: list[str], word: str) -> float:
    """Interpolated Kneser-Ney, written from its recursive definition with dictionaries."""
    padded = [["<s>"] * order + text.split() for text in texts]

    def grams(n: int) -> list[tuple[str, ...]]:
        return [tuple(words[i - n + 1 : i + 1]) for words in padded for i in range(order, len(words))]

    def counts(n: int) -> dict[tuple[str, ...], int]:
        table: dict[tuple[str, ...], int] = {}
        for gram in grams(n) if n == order else [longer[1:] for longer in set(grams(n + 1))]:
            table[gram] = table.get(gram, 0) + 1
        return table

    def probability(n: int, context: tuple[str, ...]) -> float:
        if n == 0:
            return 1 / (len({w for text in texts for w in text.split()}) + 1)
        table = counts(n)
        ones, twos = (sum(c == k for c in table.values()) for k in (1, 2))
        discount = ones / (ones + 2 * twos) if ones and twos else 0.5
        follow = {gram: c for gram, c in table.items() if gram[:-1] == context}
        lower = probability(n - 1, context[1:])
        if not follow:
            return lower
        total = sum(follow.values())
        return max(table.get((*context, word), 0) - discount, 0) / total + discount * len(follow) / total * lower

    return probability(order, tuple((["<s>"] * order + history)[-(order - 1) :]) if order > 1 else ())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_are_those_of_the_definition(order: int) -> None:
    texts = _texts(8, order)
    model = train_ngrams([TextBlock(texts[:5]), TextBlock(texts[5:])], order, min_count=1)
    question = "the cat ran under the unseen mat and dog"
    found = np.exp(token_log_probabilities(model, TextBlock([question])))
    words = question.split()
    known = [w if w in " ".join(texts).split() else "<unk>" for w in words]
    for place, word in enumerate(known):
        assert found[place] == pytest.approx(_reference(texts, order, known[:place], word), rel=1e-9), (place, word)


@pytest.mark.parametrize("history", ["", "the cat", "dog never", "zzz zzz zzz"])
def test_probabilities_of_all_words_sum_to_one(history: str) -> None:
    model = train_ngrams([TextBlock(_texts(40, 5))], 3)
    block = TextBlock([f"{history} {word}".strip() for word in [*WORDS, "unknownword"]])
    last = token_log_probabilities(model, block)[block.tokens.offsets[1:] - 1]
    assert math.fsum(np.exp(last)) == pytest.approx(1.0, abs=1e-9)


def test_perplexity_ranks_text_like_the_seed_below_shuffled_and_foreign_text() -> None:
    model = train_ngrams([TextBlock([f"the cat sat on the {word} and then ran" for word in WORDS] * 20)])
    block = TextBlock(["the cat sat on the mat", "mat the on sat cat the", "colourless green ideas", ""])
    values = perplexities(model, block)
    assert values[0] < 3 < values[1] < values[2]
    assert np.isnan(values[3])
    assert perplexity(block, model, values[1])[0].drop.tolist() == [False, False, True, False]
    assert cut_off(model, [block], 1 / 3) == pytest.approx(np.quantile(values[:3], 2 / 3))


def test_score_does_not_depend_on_the_block_a_document_is_in() -> None:
    model = train_ngrams([TextBlock(_texts(40, 1))])
    texts = _texts(20, 2)
    together = perplexities(model, TextBlock(texts))
    alone = np.concatenate([perplexities(model, TextBlock([text])) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-10)


def test_model_is_read_back_as_written_and_damage_is_refused(tmp_path: Path) -> None:
    model = train_ngrams([TextBlock(_texts(40, 1))])
    model.save(tmp_path / "deep" / "en.npz")
    block = TextBlock(_texts(5, 9))
    again = NgramModel.load(tmp_path / "deep" / "en.npz")
    np.testing.assert_array_equal(perplexities(again, block), perplexities(model, block))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no n-gram model"):
        NgramModel.load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="no text to train"):
        train_ngrams([TextBlock(["", "  "])])
