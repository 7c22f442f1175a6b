"""Fill-in-the-middle and split line breaks: order, rate, nothing lost, the same everywhere, training text only."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.corpus.read.sources import read_texts
from isoflop.errors import RecipeError
from isoflop.tokens.bpe import FIM_BEGIN, FIM_END, FIM_HOLE, Tokenizer, train_tokenizer
from isoflop.tokens.documents import DocumentOptions, Texts, check, cut_for_fim, encode_documents, split_line_breaks
from isoflop.tokens.shards import TokenizerOptions, TokenSet, TokensRecipe, build_tokens

TEXT = "value123 = f(x1);\n\n\n  \u4e2d\u6587\u3002\n Hello, (World)!\n It's 2024.\n\ncaf\u00e9 .hello\n\treturn x;\n"
ALL = DocumentOptions(fim_rate=1.0, split_rate=1.0)
PLAIN = DocumentOptions()


@pytest.fixture(scope="module")
def v3() -> Tokenizer:
    return train_tokenizer([TEXT] * 50, 300, rules="v3", fim_tokens=True)


def rows(tokenizer: Tokenizer, ids: np.ndarray) -> list[list[int]]:
    starts, ends = (np.flatnonzero(ids == index) for index in (tokenizer.bos_id, tokenizer.eos_id))
    return [ids[a + 1 : b].tolist() for a, b in zip(starts, ends, strict=True)]


def text_of(tokenizer: Tokenizer, row: list[int]) -> str:
    """The document behind a row, back in its order."""
    assert tokenizer.fim_ids is not None
    begin, hole, end = tokenizer.fim_ids
    if begin not in row:
        return tokenizer.decode(row)
    assert row[0] == begin and [row.count(index) for index in (begin, hole, end)] == [1, 1, 1]
    prefix, rest = row[1 : row.index(hole)], row[row.index(hole) + 1 :]
    suffix, middle = rest[: rest.index(end)], rest[rest.index(end) + 1 :]
    return "".join(map(tokenizer.decode, (prefix, middle, suffix)))


@given(texts=st.lists(st.text(alphabet="ab1 .,)\n\r\u4e2d\u3002"), min_size=1, max_size=4), seed=st.integers(0, 5))
@settings(max_examples=150)
def test_prefix_middle_and_suffix_together_are_the_document(v3: Tokenizer, texts: list[str], seed: int) -> None:
    ids = encode_documents(v3, DocumentOptions(1.0, 0.5, seed), Texts("train", "a", 3, texts))
    assert [text_of(v3, row) for row in rows(v3, ids)] == texts


def test_the_order_is_prefix_suffix_middle_as_published(v3: Tokenizer) -> None:
    ids = encode_documents(v3, DocumentOptions(1.0), Texts("train", "a", 0, [TEXT]))
    generator_cut = [v3.decode([i]) for i in ids if i >= v3.bos_id]
    assert generator_cut[1:4] == [FIM_BEGIN, FIM_HOLE, FIM_END]
    assert generator_cut[0].startswith("<\uff5cbegin") and generator_cut[-1].startswith("<\uff5cend")


def test_a_tenth_of_the_documents_is_cut_at_rate_one_tenth_and_cuts_are_uniform() -> None:
    text = "x" * 1000
    cuts = [cut_for_fim(text, 0.1, np.random.default_rng(seed)) for seed in range(4000)]
    chosen = [cut for cut in cuts if cut]
    assert abs(len(chosen) - 400) < 4 * np.sqrt(4000 * 0.09)
    lengths = np.array([[len(part) for part in cut] for cut in chosen])
    assert (lengths.sum(axis=1) == 1000).all()
    np.testing.assert_allclose(lengths.mean(axis=0), 1000 / 3, rtol=0.15)  # of three sorted uniform parts


def test_documents_do_not_depend_on_how_they_are_chunked_but_on_seed_and_domain(v3: Tokenizer) -> None:
    texts = [f"{TEXT}{index}" for index in range(20)]
    options = DocumentOptions(0.3, 0.5, seed=1)
    whole = encode_documents(v3, options, Texts("train", "a", 0, texts))
    parts = [encode_documents(v3, options, Texts("train", "a", at, texts[at : at + 7])) for at in (0, 7, 14)]
    assert np.array_equal(whole, np.concatenate(parts))
    for other in (Texts("train", "b", 0, texts), Texts("train", "a", 1, texts)):
        assert not np.array_equal(whole, encode_documents(v3, options, other))
    assert not np.array_equal(whole, encode_documents(v3, DocumentOptions(0.3, 0.5, 2), Texts("train", "a", 0, texts)))


def test_validation_text_and_rate_zero_are_left_as_they_are(v3: Tokenizer) -> None:
    plain = [v3.bos_id, *v3.encode(TEXT), v3.eos_id]
    assert encode_documents(v3, ALL, Texts("valid", "a", 0, [TEXT])).tolist() == plain
    assert encode_documents(v3, PLAIN, Texts("train", "a", 0, [TEXT])).tolist() == plain


def test_splitting_leaves_no_token_that_joins_punctuation_and_line_breaks(v3: Tokenizer) -> None:
    joined = {v3.decode([index]) for index in v3.line_break_splits}
    assert {").\n", ");\n\n\n", ".\n\n", "!\n"} & joined
    assert all(text.rstrip("\r\n").strip() and text.endswith("\n") for text in joined)
    ids = np.array(v3.encode(TEXT), dtype=np.int32)
    split = split_line_breaks(v3, ids, 1.0, np.random.default_rng(0))
    assert v3.is_line_break_join[ids].any() and not v3.is_line_break_join[split].any()
    assert v3.decode(split) == TEXT


def test_the_share_of_split_tokens_is_the_rate(v3: Tokenizer) -> None:
    ids = np.array(v3.encode(TEXT) * 500, dtype=np.int32)
    n = int(v3.is_line_break_join[ids].sum())
    left = split_line_breaks(v3, ids, 0.25, np.random.default_rng(0))
    assert abs(v3.is_line_break_join[left].sum() - 0.75 * n) < 4 * np.sqrt(n * 0.25 * 0.75)


@pytest.mark.parametrize(
    ("options", "rules", "message"),
    [
        (DocumentOptions(fim_rate=1.5), "v3", r"documents\.fim_rate = 1\.5 must be at least 0 and at most 1"),
        (DocumentOptions(split_rate=-1.0), "v3", r"documents\.split_rate = -1\.0 must be at least 0"),
        (DocumentOptions(fim_rate=0.1), "v1", r"tokenizer\.fim_tokens = true"),
        (DocumentOptions(split_rate=0.1), "v1", 'tokenizer.rules = "v3"'),
    ],
)
def test_options_that_the_tokenizer_cannot_serve_are_refused(
    v3: Tokenizer, tokenizer: Tokenizer, options: DocumentOptions, rules: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check(options, v3 if rules == "v3" else tokenizer)


def test_shards_carry_the_changes_and_hold_every_byte(small_corpus: Path, tmp_path: Path) -> None:
    tokenizer = TokenizerOptions(300, 0, 0, rules="v3", fim_tokens=True)
    recipe = TokensRecipe(tokenizer, DocumentOptions(fim_rate=0.5))
    made = build_tokens(small_corpus, tmp_path / "tokens", recipe)
    again = build_tokens(small_corpus, tmp_path / "again", TokensRecipe(tokenizer, recipe.documents, workers=2))
    assert made["data_sha256"] == again["data_sha256"] and made["made_from"]["documents"]["fim_rate"] == 0.5
    found = TokenSet.open(tmp_path / "tokens")
    assert found.tokenizer.fim_ids is not None
    for shard in found.shards:
        tokens = np.array(found.tokens(shard.split, shard.domain))
        n_fim = int((tokens == found.tokenizer.fim_ids[0]).sum())
        assert 0.3 < n_fim / shard.n_documents < 0.7 if shard.split == "train" else n_fim == 0
        texts = list(read_texts(small_corpus / shard.split / f"{shard.domain}.jsonl.zst"))
        assert [text_of(found.tokenizer, row) for row in rows(found.tokenizer, tokens)] == texts


def test_a_rate_without_its_tokens_leaves_no_folder_behind(small_corpus: Path, tmp_path: Path) -> None:
    recipe = TokensRecipe(TokenizerOptions(300, 0, 0), DocumentOptions(fim_rate=0.1))
    with pytest.raises(RecipeError, match="fim_tokens"):
        build_tokens(small_corpus, tmp_path / "tokens", recipe)
    assert not list(tmp_path.iterdir())
