"""Words, shingles and window hashes against readings of their definitions a character at a time."""

import numpy as np
import pytest
from dedup_tables import shingles, words
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.corpus.dedup.options import candidate_probability
from isoflop.corpus.dedup.words import shingle_sets, spaced, window_hashes

pytest.importorskip("pyarrow", reason="words come as Arrow arrays")

TEXTS = st.lists(
    st.text(st.sampled_from("ab_1 \n.\u00e9\u0301\u4e2d\u6587\u3042\u0e01\uac00\U00020000\u0130\u03a3"), max_size=30)
)


@settings(max_examples=200)
@given(TEXTS)
def test_words_are_those_of_a_plain_reading(texts):
    found = [text for part in spaced(texts) for text in part.to_pylist()]
    assert found == [" ".join(words(text)) for text in texts]


@settings(max_examples=200)
@given(TEXTS, st.integers(1, 6))
def test_shingles_are_as_many_and_as_equal_as_their_texts(texts, n):
    found = list(shingle_sets(texts, n))
    wanted = [shingles(text, n) for text in texts]
    assert [len(one) for one in found] == [len(one) for one in wanted]
    for i in range(len(texts)):
        for j in range(i):
            assert len(np.intersect1d(found[i], found[j])) == len(wanted[i] & wanted[j])


@settings(max_examples=100)
@given(TEXTS, st.integers(1, 6))
def test_split_text_has_the_shingles_of_the_text_it_was_split_from(texts, n):
    split = [" ".join(words(text)) for text in texts]
    for found, wanted in zip(shingle_sets(split, n, presplit=True), shingle_sets(texts, n), strict=True):
        assert np.array_equal(found, wanted)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.integers(1, 40))
def test_window_hashes_are_equal_where_windows_are(data, width):
    found = window_hashes(np.frombuffer(data, np.uint8), width)
    windows = [data[at : at + width] for at in range(len(data) - width + 1)]
    assert len(found) == len(windows)
    assert len(set(found.tolist())) == len(set(windows))
    assert len(set(zip(windows, found.tolist()))) == len(set(windows))


def test_candidate_probability_is_the_documented_curve():
    values = [round(candidate_probability(s, 16, 8), 2) for s in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert values == [0.06, 0.24, 0.61, 0.95, 1.0]
