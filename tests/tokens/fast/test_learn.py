"""Merges are those of the library's trainer, pieces those of its cuts, and neither depends on how they are counted."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from isoflop.tokens import shards as shards_module
from isoflop.tokens.bpe import _untrained, train_tokenizer
from isoflop.tokens.fast import count as count_module
from isoflop.tokens.fast import learn as learn_module
from isoflop.tokens.fast.count import TooVaried, count_pieces
from isoflop.tokens.rules import Rules, byte_symbols
from isoflop.tokens.shards import TokenizerOptions, _train

RULES: tuple[Rules, ...] = ("v1", "v3")
WORDS = [
    *("aaaa", "aaa", "ababab", "banana", "bananas", "na\u00efve", "caf\u00e9", "xx", "xxx\n\n\n", "111", "1111"),
    *("\u4e2d\u6587\u4e2d\u6587\u4e2d", "\u6587\u4e2d\u6587", "(((((", ")))", "......"),
]


def library_model(texts: list[str], vocab_size: int, rules: Rules, min_frequency: int) -> dict:
    backend = _untrained(rules)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, show_progress=False, initial_alphabet=alphabet
    )
    backend.train_from_iterator(texts, trainer)
    return json.loads(backend.to_str())["model"]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("seed", "min_frequency"), [(0, 2), (1, 2), (2, 7), (3, 7), (5, 3)])
def test_merges_are_those_of_the_library(
    rules: Rules, min_frequency: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(seed)
    texts = [
        " ".join("".join(generator.choices(WORDS, k=generator.randint(1, 3))) for _ in range(20)) for _ in range(25)
    ]
    expected = library_model(texts, 10_000, rules, min_frequency)
    vocab_size = len(expected["vocab"]) - seed  # to the last pair that is frequent enough, and a few less
    if seed % 2:  # thresholds that fall in many steps, scans in many parts
        monkeypatch.setattr(learn_module, "MAX_FREQUENT", 5)
        monkeypatch.setattr(learn_module, "SCAN_BITS", 6)
        monkeypatch.setattr(learn_module, "SCAN_PLACES", 997)
        monkeypatch.setattr(count_module, "MAX_PIECES", 10)
    found = json.loads(train_tokenizer(texts, vocab_size, rules=rules, min_frequency=min_frequency).to_json())["model"]
    assert found["merges"] == expected["merges"][: vocab_size - 256]
    assert found["vocab"].items() <= expected["vocab"].items()
    assert {k: v for k, v in found.items() if k not in ("merges", "vocab")} == {
        k: v for k, v in expected.items() if k not in ("merges", "vocab")
    }


@given(
    texts=st.lists(st.text(alphabet=st.one_of(st.sampled_from("ab1 \n.\u4e2d\u6587"), st.characters(codec="utf-8"))))
)
@settings(max_examples=60)
@pytest.mark.parametrize("rules", RULES)
def test_pieces_are_counted_as_the_library_cuts_them(rules: Rules, texts: list[str]) -> None:
    backend = _untrained(rules)
    assert backend.pre_tokenizer is not None
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    expected = Counter(
        bytes(byte_of[c] for c in piece) for text in texts for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)
    )
    data, sizes, counts = count_pieces(texts, backend, rules, 1_000_000)
    ends = np.cumsum(sizes)
    found = Counter()
    for start, end, n in zip((ends - sizes).tolist(), ends.tolist(), counts.tolist()):
        found[data[start:end]] += n
    assert found == expected


def test_texts_that_are_too_varied_are_refused_and_a_thinner_sample_is_taken(
    small_corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{i:b}".replace("0", "a").replace("1", "b") for i in range(1000)]
    with pytest.raises(TooVaried, match=r"more than 0 MB of different pieces"):
        count_pieces(texts, _untrained("v1"), "v1", 200)

    files = json.loads((small_corpus / "manifest.json").read_text())["files"]
    seen: list[tuple[str, int, int]] = []
    options = TokenizerOptions(vocab_size=270, n_reserved=0, padded_vocab_size=0)
    whole = _train(small_corpus, files, options, lambda *progress: seen.append(progress))
    assert {what for what, _, _ in seen} == {"tokenizer sample", "merges"}
    assert seen[-1] == ("merges", 14, 14)

    def refuse_the_whole(texts, *args, **kwargs):
        texts = list(texts)
        if len(texts) > 60:
            raise TooVaried("too varied")
        return train_tokenizer(texts, *args, **kwargs)

    monkeypatch.setattr(shards_module, "train_tokenizer", refuse_the_whole)
    half = _train(small_corpus, files, options, None)
    assert "training on half the sample" in caplog.text
    assert half.n_tokens == whole.n_tokens
