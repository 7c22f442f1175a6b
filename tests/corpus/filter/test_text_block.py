import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.corpus.filter.text_block import Spans, TextBlock, group, runs_of

TEXT = "It's  a caf\u00e9, _x1 -- \u4e2d\u6587\uff0cand\u5b57.\n\n\tEnd\u2026\n"
ANY_TEXT = st.lists(
    st.text(alphabet=st.sampled_from("ab \n.,-\u4e2d\u6587\uff0c\u00e9\U0001f600\t1"), max_size=40), max_size=6
)


def _pieces(block: TextBlock, spans: Spans, doc: int = 0) -> list[str]:
    begin, rows = block.doc_start[doc], slice(spans.offsets[doc], spans.offsets[doc + 1])
    text = block.texts[doc]
    return [text[a:b] for a, b in zip(spans.start[rows] - begin, spans.end[rows] - begin)]


def test_tokens_chunks_lines_and_paragraphs_of_a_known_text() -> None:
    block = TextBlock([TEXT])
    words = "It ' s a caf\u00e9 , _x1 - - \u4e2d \u6587 \uff0c and \u5b57 . End \u2026"
    assert _pieces(block, block.tokens) == words.split()
    assert (
        _pieces(block, block.chunks)
        == "It's a caf\u00e9, _x1 -- \u4e2d \u6587\uff0cand \u5b57. End\u2026".replace(
            "\uff0cand", "\uff0c and"
        ).split()
    )
    assert _pieces(block, block.lines) == ["It's  a caf\u00e9, _x1 -- \u4e2d\u6587\uff0cand\u5b57.", "End\u2026"]
    assert _pieces(block, block.paragraphs) == _pieces(block, block.lines)
    assert _pieces(TextBlock(["a\nb\n\nc"]), TextBlock(["a\nb\n\nc"]).paragraphs) == ["a\nb", "c"]


@given(ANY_TEXT)
def test_spans_agree_with_regular_expressions_in_any_block(texts: list[str]) -> None:
    block = TextBlock(texts)
    for doc, text in enumerate(texts):
        alone = "\u4e2d\u6587"
        tokens = re.findall(rf"[{alone}]|(?:(?![{alone}])\w)+|[^\w\s]", text)
        assert _pieces(block, block.tokens, doc) == tokens
        assert _pieces(block, block.lines, doc) == [line.strip() for line in text.split("\n") if line.strip()]
        assert "".join(_pieces(block, block.chunks, doc)) == "".join(text.split())
        paragraphs = [part.strip() for part in re.split(r"\n(?:[ \t]*\n)+", text) if part.strip()]
        assert _pieces(block, block.paragraphs, doc) == paragraphs


@given(ANY_TEXT)
def test_hash_of_a_token_is_the_same_wherever_it_stands(texts: list[str]) -> None:
    block = TextBlock(texts)
    for doc in range(len(texts)):
        rows = slice(block.tokens.offsets[doc], block.tokens.offsets[doc + 1])
        expected = [TextBlock([word]).token_hashes[0] for word in _pieces(block, block.tokens, doc)]
        assert block.token_hashes[rows].tolist() == expected


def test_hash_folds_case_and_tells_words_apart() -> None:
    words = sorted({"".join(random.Random(i).choices("abcdefgh", k=1 + i % 7)) for i in range(20_000)})
    hashes = TextBlock([" ".join(words)]).token_hashes
    assert len(np.unique(hashes)) == len(words)
    for upper, lower in (("\u00c9T\u00c9", "\u00e9t\u00e9"), ("\u0416", "\u0436")):
        assert TextBlock([upper]).token_hashes[0] == TextBlock([lower]).token_hashes[0]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_runs_stay_inside_documents(n: int) -> None:
    texts = ["a b c d e", "", "b", "a b c", "", "x a b c d e f"]
    block = TextBlock(texts)
    first, runs = runs_of(block.token_hashes, block.tokens.offsets, n)
    found = [" ".join(" ".join(texts).split()[i : i + n]) for i in first]
    expected = [" ".join(t.split()[i : i + n]) for t in texts for i in range(len(t.split()) - n + 1)]
    assert found == expected
    assert len(set(found)) == len(np.unique(runs))


def test_sums_per_document_and_groups() -> None:
    block = TextBlock(["aa b", "", "ccc"])
    assert block.tokens.per_doc(block.tokens.lengths).tolist() == [3, 0, 3]
    assert block.tokens.per_doc(block.tokens.lengths / 2).tolist() == [1.5, 0, 1.5]
    assert block.tokens.where(block.tokens.lengths > 1).counts.tolist() == [1, 0, 1]
    later = group(np.array([5, 3, 5, 5, 3, 9], dtype=np.uint64)).later()
    assert later.tolist() == [False, False, True, True, True, False]
    assert TextBlock([]).tokens.counts.tolist() == []
    assert TextBlock(["", " \n"]).lines.counts.tolist() == [0, 0]
