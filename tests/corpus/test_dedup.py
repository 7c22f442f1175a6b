import random

import numpy as np
import pytest

from isoflop.corpus.dedup import DedupOptions, candidate_probability, deduplicate, shared_lines, shingles
from isoflop.corpus.sources import Document
from isoflop.errors import RecipeError

WORDS = [f"word{i}" for i in range(2000)]


def _documents(texts: list[str]) -> list[Document]:
    return [Document(str(i), text, "prose", str(i)) for i, text in enumerate(texts)]


def _random_text(generator: random.Random, n: int = 300) -> list[str]:
    return generator.choices(WORDS, k=n)


def test_exact_duplicates_go_and_the_first_stays() -> None:
    found = deduplicate(_documents(["a b c", "x", "a  b\nc", "x", "a b c"]), DedupOptions(near=False))
    assert found.keep.tolist() == [True, True, False, False, False]
    assert found.cluster.tolist() == [0, 1, 0, 1, 0]
    assert (found.n_exact, found.n_near) == (3, 0)


def test_near_duplicates_go_and_different_texts_stay() -> None:
    pytest.importorskip("rensa", reason="near-duplicate search needs the corpus extra")
    generator = random.Random(1)
    originals = [_random_text(generator) for _ in range(40)]
    edited = []
    for words in originals[:20]:
        copy = list(words)
        copy[generator.randrange(300)] = "changed"  # 5 of about 300 shingles differ
        edited.append(copy)
    texts = [" ".join(words) for words in originals + edited]
    found = deduplicate(_documents(texts), DedupOptions())
    assert found.keep.tolist() == [True] * 40 + [False] * 20
    assert found.cluster[40:].tolist() == list(range(20))
    assert found.n_near == 20
    again = deduplicate(_documents(texts[::-1]), DedupOptions())
    assert again.keep.sum() == 40
    assert again.keep[:20].all()  # the survivor is the first in order, whichever text that is


def test_clusters_join_through_a_chain() -> None:
    pytest.importorskip("rensa", reason="near-duplicate search needs the corpus extra")
    generator = random.Random(2)
    chain = [_random_text(generator, 400)]
    for step in range(6):
        following = list(chain[-1])
        following[step * 60 : step * 60 + 8] = ["new"] * 8
        chain.append(following)
    found = deduplicate(_documents([" ".join(words) for words in chain]), DedupOptions())
    assert found.cluster.tolist() == [0] * 7


def test_candidate_probability_is_the_documented_curve() -> None:
    values = [round(candidate_probability(s, 16, 8), 2) for s in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert values == [0.06, 0.24, 0.61, 0.95, 1.0]


def test_measured_recall_follows_the_curve() -> None:
    pytest.importorskip("rensa", reason="near-duplicate search needs the corpus extra")
    generator = random.Random(3)
    options = DedupOptions(threshold=0.01, shingle_words=1)
    hits = 0
    for _ in range(200):
        shared = generator.sample(WORDS, 170)  # Jaccard of the two sets: 140 / 200 = 0.7
        left, right = shared[:155], shared[15:]
        hits += int(not deduplicate(_documents([" ".join(left), " ".join(right)]), options).keep.all())
    expected = candidate_probability(len(shared[15:155]) / 170, 16, 8)
    assert abs(hits / 200 - expected) < 4 * np.sqrt(expected * (1 - expected) / 200) + 0.02


def test_chinese_is_shingled_by_character() -> None:
    assert shingles("\u4e2d\u6587 ab \u4f60", 2) == ["\u4e2d \u6587", "\u6587 ab", "ab \u4f60"]
    assert shingles("Only Two", 5) == ["only two"]


def test_quoted_lines_are_measured() -> None:
    line = "a long line of text that stands in both of the documents, word for word"
    train = _documents([f"{line}\nx", "nothing\nshared", line + " " * 5])
    shares = list(shared_lines(train, _documents([f"intro\n  {line}  \nend"])))
    assert shares[0] == pytest.approx(len(line) / (len(line) + 2))
    assert shares[1] == 0.0


@pytest.mark.parametrize("options", [DedupOptions(bands=0), DedupOptions(threshold=1.5), DedupOptions(threshold=0.0)])
def test_impossible_options_are_refused(options: DedupOptions) -> None:
    with pytest.raises(RecipeError, match=r"dedup\.(bands|threshold) = .* must"):
        deduplicate(_documents(["a", "b"]), options)
