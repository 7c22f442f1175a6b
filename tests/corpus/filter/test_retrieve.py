import hashlib
import random

import pytest

from isoflop.corpus.filter.retrieve import RetrieveOptions, retrieve
from isoflop.errors import DataError

pa = pytest.importorskip("pyarrow", reason="tables need the corpus extra")

MATH = [
    "theorem",
    "proof",
    "lemma",
    "integral",
    "derivative",
    "continuous",
    "function",
    "group",
    "ring",
    "field",
    "vector",
    "matrix",
    "limit",
]
TOPOLOGY = ["manifold", "homotopy", "sheaf", "cohomology", "fibre", "bundle", "covering", "compact", "topology", "knot"]
NEWS = [
    "minister",
    "election",
    "police",
    "weather",
    "market",
    "goal",
    "match",
    "storm",
    "budget",
    "mayor",
    "traffic",
    "school",
    "hospital",
]
COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
]


def _page(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choice(words) if rng.random() < 0.4 else rng.choice(COMMON) for _ in range(80))


def _pool() -> tuple[list["pa.Table"], set[str]]:
    """(tables, keys of pages on mathematics): a site of mathematics whose pages on topology share no word with the
    seed, and sites of news with some mathematics."""
    rng = random.Random(4)
    pages = []
    for i in range(400):
        site, words = ("math.example", MATH) if i % 8 == 0 else (f"news{i % 5}.example", NEWS)
        if i % 8 == 4:
            site, words = "math.example", rng.choice([TOPOLOGY, MATH + TOPOLOGY])
        pages.append((site, _page(rng, words), words is not NEWS))
    keys = [hashlib.sha256(text.encode()).hexdigest()[:32] for _, text, _ in pages]
    table = pa.table({"key": keys, "source": [p[0] for p in pages], "text": [p[1] for p in pages]})
    return [table.slice(i, 90) for i in range(0, 400, 90)], {key for key, page in zip(keys, pages) if page[2]}


def test_rounds_find_what_the_seed_does_not_name() -> None:
    tables, wanted = _pool()
    rng = random.Random(1)
    seeds = [_page(rng, MATH) for _ in range(40)]
    rounds, taken, classifier = retrieve(seeds, lambda: iter(tables), RetrieveOptions(take_mb=0.03))
    assert 2 <= len(rounds) <= 4
    assert rounds[0].sites == ("math.example",)
    assert rounds[1].n_seeds > rounds[0].n_seeds
    assert rounds[-1].accuracy > 0.9  # at first, many of the others are like the seed
    found = set(taken)
    assert len(found & wanted) / len(found) > 0.95
    assert len(found & wanted) / len(wanted) > 0.6
    assert len(found & wanted) > 1.5 * rounds[0].n_taken
    assert classifier.accuracy == rounds[-1].accuracy


def test_order_of_the_pool_changes_nothing() -> None:
    tables, _ = _pool()
    rng = random.Random(1)
    seeds = [_page(rng, MATH) for _ in range(40)]
    options = RetrieveOptions(take_mb=0.03, max_rounds=2)
    first = retrieve(seeds, lambda: iter(tables), options)
    second = retrieve(seeds, lambda: iter(tables[::-1]), options)
    assert first[1].keys() == second[1].keys()
    assert first[0] == second[0]


def test_too_few_seeds_or_an_empty_pool_are_refused() -> None:
    tables, _ = _pool()
    with pytest.raises(DataError, match="3 seed and"):
        retrieve(["a b c"] * 3, lambda: iter(tables), RetrieveOptions())
    with pytest.raises(DataError, match="no document that is not taken"):
        retrieve(["a b c"] * 30, lambda: iter(()), RetrieveOptions())
