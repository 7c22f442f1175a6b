"""Passkey documents: what is asked for is in the text, once, anywhere; and a corpus holds them as made."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from isoflop.corpus.build import build_corpus
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.passkey import FILLER, QUESTION, WORDS, PasskeyOptions, passkey_documents, statement
from isoflop.corpus.read.sources import read_texts
from isoflop.corpus.recipe import CorpusRecipe, SplitOptions
from isoflop.errors import RecipeError

OPTIONS = PasskeyOptions(n_documents=600, min_chars=120, max_chars=400, list_share=0.25, valid_share=0.1)


def texts_of(options: PasskeyOptions) -> list[str]:
    return [document.text for _, document in passkey_documents(options)]


def test_the_answer_is_the_key_stated_once_before() -> None:
    asked = [text for text in texts_of(OPTIONS) if QUESTION in text]
    places = []
    for text in asked:
        body, _, answer = text.partition(QUESTION)
        key = answer.removesuffix(".")
        assert re.fullmatch(r"\d{5}", key) and len(set(key)) == 5
        assert body.count(statement(key)) == 1 and len(re.findall(r"\d+", body)) == 1
        places.append(body.index(statement(key)) / len(body))
        assert len(text) <= OPTIONS.max_chars
    assert min(places) == 0.0 and max(places) > 0.8 and 0.25 < np.mean(places) < 0.55  # a sentence before the end


def test_a_list_is_asked_for_in_its_own_words() -> None:
    lists = [text for text in texts_of(OPTIONS) if QUESTION not in text]
    assert abs(len(lists) - 150) < 45
    for text in lists:
        body, _, words = text.removesuffix(".").partition("What is the list? The list is ")
        assert body.count(f"The list is {words}. Remember it.") == 1 and len(text) <= OPTIONS.max_chars
        assert set(words.split()) <= set(WORDS) and len(set(words.split())) == len(words.split()) >= 3


def test_a_share_of_documents_begins_with_what_is_asked_for() -> None:
    options = dataclasses.replace(OPTIONS, first_share=0.5, min_chars=300)
    begins = [text.startswith(("The pass key is", "The list is")) for text in texts_of(options)]
    assert 0.47 < np.mean(begins) < 0.66  # and one in seven or more of the others by chance
    assert all(
        text.startswith(("The pass key is", "The list is"))
        for text in texts_of(dataclasses.replace(options, first_share=1.0))
    )


def test_filler_says_nothing_about_keys_and_lists() -> None:
    assert not any(re.search(r"\d|key|list", sentence) for sentence in FILLER)
    assert not {word.strip(".").lower() for sentence in FILLER for word in sentence.split()} & set(WORDS)


def test_a_document_depends_on_seed_and_number_alone_and_lengths_spread() -> None:
    longer = dataclasses.replace(OPTIONS, n_documents=700, valid_share=0.0)
    assert texts_of(longer)[:600] == texts_of(OPTIONS)
    assert texts_of(dataclasses.replace(OPTIONS, seed=1)) != texts_of(OPTIONS)
    lengths = np.array(list(map(len, texts_of(OPTIONS))))
    assert np.percentile(lengths, 20) < 190 and np.percentile(lengths, 80) > 290


def test_a_corpus_has_them_as_a_domain_with_both_splits(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"{index}.txt").write_text(f"Document {index} says something of its own. " * 3, encoding="utf-8")
    recipe = CorpusRecipe(
        sources=(SourceOptions(path=str(tmp_path), domain="prose"),),
        split=SplitOptions(valid_fraction=0.3),
        dedup=DedupOptions(near=False),
        passkey=(OPTIONS, dataclasses.replace(OPTIONS, domain="passkey_long", max_chars=900)),
    )
    made = build_corpus(recipe, tmp_path / "corpus")
    counts = {(item["split"], item["domain"]): item["n_documents"] for item in made["files"]}
    assert counts["train", "passkey"] == 540 and counts["valid", "passkey"] == 60
    assert counts["train", "passkey_long"] == 540
    stored = [*read_texts(tmp_path / "corpus/valid/passkey.jsonl.zst")]
    assert [*stored, *read_texts(tmp_path / "corpus/train/passkey.jsonl.zst")] == texts_of(OPTIONS)
    plain = build_corpus(dataclasses.replace(recipe, passkey=None), tmp_path / "plain")
    assert "passkey" not in plain["recipe"]  # corpora of recipes without the section keep their identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_chars": 50}, r"passkey\.min_chars = 50 must be at least \d+"),
        ({"min_chars": 500}, r"at most passkey\.max_chars = 400"),
        ({"list_share": 1.5}, r"passkey\.list_share = 1\.5 must be at least 0 and at most 1"),
        ({"first_share": -0.1}, r"passkey\.first_share = -0\.1 must be at least 0 and at most 1"),
        ({"domain": "prose"}, "passkey.domain = 'prose' must be passkey or begin with passkey_"),
        ({"n_documents": 0}, r"passkey\.n_documents = 0 must be at least 1"),
    ],
)
def test_options_that_make_no_documents_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        list(passkey_documents(dataclasses.replace(OPTIONS, **changes)))
