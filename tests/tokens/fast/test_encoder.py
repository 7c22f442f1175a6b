"""The fast encoder gives the library's ids on every text: real, random, and made to be hard."""

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED as SHARED_DATA

from isoflop.tokens.bpe import BOS, EOS, FIM_HOLE, Tokenizer, train_tokenizer
from isoflop.tokens.fast import encoder as encoder_module
from isoflop.tokens.rules import Rules

SHARED = SHARED_DATA / "pretrain"
SAMPLE = (
    "The model's value12345 = f(x1);\n\n\n  (it's) .hello\r\n\t\tna\u00efve caf\u00e9s, 1,234,567.89 #include <a>  \n "
    "\u4e2d\u6587\u5206\u8bcd\u4e0d\u7528\u7a7a\u683c\uff0c\u6a21\u578b\u8bfb\u6587\u672c\u3002\u30ab\u30bf\u30ab\u30ca"
    "\u7684\u4e2d\u6587\u7684\u6587\u672c\ud55c\uad6d\uc5b4 \u0440\u0443\u0441\u0441\u043a\u0438 x\u0301y \u0661\u0662"
    " \x00\x07a \u200b\u00a0b \U0001f600\U0001f468\u200d\U0001f469 https://example.org/a?b=c%20d aaaaaaaa ....... \n"
)
ALPHABET = st.one_of(
    st.sampled_from(
        "ab'Z1 \t\r\n.,_(\u00e9\u0301\u4e2d\u6587\u30a2\u30fb\u3002\u3000\uff5c\u00a0\u0085\u2028\x00\x1c\u200b\u0661"
    ),
    st.sampled_from(SAMPLE),
    st.characters(codec="utf-8"),
)
TEXTS = st.lists(st.text(alphabet=ALPHABET), min_size=1, max_size=4)

HARD = [
    "",
    "\x00",
    "\x00\x00a\x00 \x00\n\x00",
    " " * 5000 + "x",
    "\n" * 3000 + " \n" * 500 + "  x",
    "." * 4000 + "\r\n" * 300 + "\n  \n  .",
    "a" * 5000,
    "1" * 1000 + "\u0661" * 7,
    "\u4e2d" * 3000 + "\u6587\u672c" * 1000,
    "\u4e2d\u30fb\u3002\u4e2d \u4e2d\n\u4e2d1\u4e2da\u4e2d.",
    f"{BOS}text{EOS}{FIM_HOLE} <|endoftext|> <s>",
    "(it's) ('abc\u00e9 'abc\u00e9d \u00e9'abc --abc -abc -\u00e9 .\u0301a",
    "a \x07b  \x07b\x07\x07c\x07 d\x07\n\x07",
    ".\n \n. \n\n .\n\n  \n  x\n\t(y)\n \t (z)\r\r\n .",
    "\U0001f600 \U0001f468\u200d\U0001f469\U000e0100 \U0010fffd\uf8ff\ufffe\uffff",
    "\u1100\u1161\u11a8 \u0e01\u0e33 \u0915\u094d\u0937 \u05d0\u05b8 \u0627\u064b",
]


def trained(rules: Rules) -> Tokenizer:
    generator = random.Random(7)
    words = SAMPLE.split(" ")
    texts = [SAMPLE] * 20 + [" ".join(generator.choices(words, k=60)) for _ in range(150)]
    return train_tokenizer(texts, 400, rules=rules, fim_tokens=True, n_reserved=1)


@pytest.fixture(scope="module", params=["v1", "v3"])
def both(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


def agree(tokenizer: Tokenizer, texts: list[str]) -> None:
    found = tokenizer.encode_batch(texts)
    assert len(found) == len(texts)
    for text, ids in zip(texts, found):
        expected = tokenizer.encode(text)
        if ids.tolist() != expected:
            at = next(i for i, pair in enumerate(zip(ids.tolist(), expected)) if pair[0] != pair[1])
            around = tokenizer.decode(expected[max(0, at - 5) : at + 5])
            pytest.fail(f"{tokenizer.rules}: differs at token {at} of {len(expected)}: {around!r}")


@given(texts=TEXTS)
@settings(max_examples=400)
def test_any_texts_get_the_ids_of_the_library(both: Tokenizer, texts: list[str]) -> None:
    assert both.rules and both._encoder is not None
    agree(both, texts)


@given(texts=TEXTS)
@settings(max_examples=300)
def test_a_text_longer_than_the_window_is_cut_as_if_it_were_whole(both: Tokenizer, texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "WINDOW_CHARS", 5)
        agree(both, texts)


@given(texts=TEXTS)
@settings(max_examples=100)
def test_a_full_table_is_forgotten_without_a_trace(both: Tokenizer, texts: list[str]) -> None:
    assert both._encoder is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(both._encoder, "max_pieces", 3)
        for text in [*texts, "a", "b"]:
            agree(both, [text])
        assert len(both._encoder._known) <= 4


def test_hard_texts_get_the_ids_of_the_library(both: Tokenizer) -> None:
    agree(both, HARD)
    agree(both, ["|".join(HARD)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "WINDOW_CHARS", 100)
        agree(both, ["|".join(HARD)])


def test_every_character_is_cut_as_by_the_library_wherever_it_stands(both: Tokenizer) -> None:
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    generator = random.Random(3)
    chosen = map(chr, points[:0x600] + generator.sample(points[0x600:0xFFFF], 3000) + generator.sample(points, 300))
    agree(both, [f"a{c}{c}b {c}1{c}\n{c}  {c}.{c}\u4e2d{c}" for c in chosen])


@pytest.mark.slow
def test_all_characters_are_cut_as_by_the_library(both: Tokenizer) -> None:
    points = [point for point in range(0x34000) if not 0xD800 <= point < 0xE000]
    agree(both, [f"a{c} {c}.{c}b" for c in map(chr, points)])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("rules", ["v1", "v3"])
def test_real_text_of_all_sources_gets_the_ids_of_the_library(rules: Rules) -> None:
    texts = []
    for path in sorted(SHARED.glob("*/docs.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
            records = islice(file, 0, 100, 5)
            texts += [json.loads(record)["text"][:4000] for record in records]
    texts += [path.read_text() for path in sorted(Path(random.__file__).parent.glob("s*.py"))[:15]]
    tokenizer = train_tokenizer((text[:1000] for text in texts), 2000, rules=rules)
    agree(tokenizer, texts)
    agree(tokenizer, ["\n".join(texts)])


def test_tokens_that_begin_or_end_within_a_character_are_not_cut_away() -> None:
    # one first byte and one last byte are in every pair, so merges cross borders of characters partly
    text = "".join(f"\u4e2d{chr(0x4E00 + 64 * i + 5)}" for i in range(40)) * 5
    for size in (258, 262, 270, 300, 340):
        tokenizer = train_tokenizer([text + text[::-1]], size)
        parts = [tokenizer.decode_bytes([i]) for i in range(256, size)]
        agree(tokenizer, [text, text[1:], text[::-1], "\u4e2d\u4e05\u4e45\u4e2d"])
    assert any(len(part) > 3 for part in parts)


def test_borders_of_characters_that_no_token_crosses_are_cut_and_the_others_are_not() -> None:
    crossed = encoder_module._crossed_borders(["\u4e2d\u6587".encode(), "\u672c".encode() + b"\xe5", b"ab", b"\xe4"])

    def crosses(left: str, right: str) -> bool:
        pair = [np.array([ord(c)], dtype=np.uint32) for c in (left, right)]
        return bool(crossed[encoder_module._border(*pair)][0])

    assert crosses("\u4e2d", "\u6587") and crosses("\u672c", "\u5000") and crosses("\u672c", "\u5fff")
    assert not crosses("\u6587", "\u4e2d") and not crosses("\u4e2d", "\u672c") and not crosses("\u672c", "\u6587")


def test_rules_that_are_not_ours_are_left_to_the_library(both: Tokenizer) -> None:
    changed = json.loads(both.to_json())
    changed["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithPrevious"
    other = Tokenizer(type(both._backend).from_str(json.dumps(changed)), both.vocab_size)
    assert other.rules is None and other._encoder is None
    agree(other, HARD)
