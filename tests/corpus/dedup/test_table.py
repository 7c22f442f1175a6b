"""Deduplication of tables against plain readings of its definitions: all pairs, all substrings, one run over all."""

import random

import numpy as np
import pytest
from dedup_tables import N_PARTITIONS, rows_of, shingles, words, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.corpus.dedup.job import Dump, Threads
from isoflop.corpus.dedup.near import components
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.dedup.table import cut, deduplicate_table, survivors
from isoflop.errors import DataError, RecipeError

pytest.importorskip("pyarrow", reason="tables need the corpus extra")
pytest.importorskip("daft", reason="signatures need the corpus extra")

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "ru", "so") for b in ("ta", "ve", "xi", "zu", "ba", "do")]
HAN = [chr(0x4E00 + i) for i in range(120)]


def prose(generator: random.Random, n: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(n))


def edited(generator: random.Random, text: str, n: int) -> str:
    words = text.split(" ")
    for at in generator.sample(range(len(words)), min(n, len(words))):
        words[at] = "edit" + str(generator.randrange(10**6))
    return " ".join(words)


def collection(seed: int, n: int = 60):
    """(origin, text): originals, exact and edited copies, Chinese, empty and wordless texts, in a random order."""
    generator = random.Random(seed)
    texts = []
    for _ in range(n):
        text = prose(generator, 80)
        texts.append(text)
        texts += [
            edited(generator, text, generator.choice([0, 1, 2, 4, 10, 30])) for _ in range(generator.randrange(4))
        ]
        han = "".join(generator.choice(HAN) for _ in range(90))
        texts += [han, han[:40] + generator.choice(HAN) + han[40:]][: generator.randrange(1, 3)]
    texts += ["", " ", "...", "!!", "one two", "One  TWO!", "one two three"]
    generator.shuffle(texts)
    return [(f"s{seed}/{index:04d}", text) for index, text in enumerate(texts)]


def dropped(work):
    return {row["origin"]: (row["rule"], row["survivor"]) for row in rows_of(work / "drops")}


def true_clusters(documents, threshold):
    """The connected components of all pairs whose similarity reaches the threshold."""
    root = {origin: origin for origin, _ in documents}

    def find(a):
        while root[a] != a:
            a = root[a]
        return a

    sets = [(origin, " ".join(text.split()), shingles(text, 5)) for origin, text in documents]
    for i, (a, x, of_a) in enumerate(sets):
        for b, y, of_b in sets[:i]:
            if x == y or (of_a and len(of_a & of_b) >= threshold * len(of_a | of_b)):
                low, high = sorted((find(a), find(b)))
                root[high] = low
    return {origin: find(origin) for origin, _ in documents}


def test_clusters_are_those_of_all_pairs_with_bands_that_miss_next_to_nothing(tmp_path):
    documents = collection(1)
    options = DedupOptions(bands=64, rows=3, threshold=0.6)  # a pair of 0.6 is missed once in 5 million
    deduplicate_table(write_table(tmp_path, documents), tmp_path / "work", options)
    clusters = true_clusters(documents, 0.6)
    found = dropped(tmp_path / "work")
    assert {origin for origin, root in clusters.items() if origin != root} == set(found)
    assert all(clusters[origin] == clusters[survivor] for origin, (_, survivor) in found.items())
    assert {rule for rule, _ in found.values()} == {"exact_duplicate", "near_duplicate"}


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_components_are_what_walking_along_edges_reaches(edges):
    found = dict(zip(*(part.tolist() for part in components(np.array(edges, np.uint64).reshape(-1, 2)))))
    reached = {end: {end} for edge in edges for end in edge}
    for left, right in edges * len(reached):
        reached[left] |= reached[right]
        reached[right] |= reached[left]
    assert found == {end: min(others) for end, others in reached.items()}


def test_split_text_loses_the_same_documents(tmp_path):
    documents = [(origin, text) for origin, text in collection(1) if words(text)]
    split = [(origin, " ".join(words(text))) for origin, text in documents]
    found = []
    for name, texts, presplit in (("whole", documents, False), ("split", split, True)):
        options = DedupOptions(bands=64, rows=3, threshold=0.6, presplit=presplit)
        deduplicate_table(write_table(tmp_path / name, texts), tmp_path / name / "work", options)
        found.append(set(dropped(tmp_path / name / "work")))
    assert found[0] == found[1] and found[0]


def test_output_does_not_depend_on_threads_nor_on_the_order_of_input(tmp_path):
    documents = collection(2)
    options = DedupOptions(min_passage_bytes=64, max_line_copies=3, min_line_chars=10)
    contents = []
    for name, workers, seed in (("one", 1, 3), ("many", 3, 4)):
        folder = write_table(tmp_path / name, documents, seed=seed)
        deduplicate_table(folder, tmp_path / name / "work", options, run=Threads(workers))
        files = sorted((tmp_path / name / "work").glob("*/part-*.parquet"))
        assert len(files) == 2 * N_PARTITIONS
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_the_smallest_priority_then_the_smallest_origin_survives(tmp_path):
    text = prose(random.Random(5), 60)
    near = edited(random.Random(6), text, 1)
    documents = [
        ("a/1", text, "train", 9),
        ("b/1", near, "valid", 1),
        ("c/1", text, "train", 9),
        ("a/2", near, "train", 9),
    ]
    deduplicate_table(write_table(tmp_path, documents), tmp_path / "work", DedupOptions(bands=40, rows=4))
    found = dropped(tmp_path / "work")
    assert found["c/1"] == ("exact_duplicate", "a/1")
    assert found["a/2"] == ("exact_duplicate", "b/1")
    assert found["a/1"] == ("near_duplicate", "b/1") and len(found) == 3


def test_a_new_dump_loses_what_one_run_over_both_would_take_from_it(tmp_path):
    old, new = collection(7), collection(8)
    copies = random.Random(9)
    new += [
        (f"s8/x{i:03d}", edited(copies, text, copies.choice([0, 1, 3, 20])))
        for i, (_, text) in enumerate(old[:70])
        if text
    ]
    options = DedupOptions(bands=32, rows=4, threshold=0.5, min_passage_bytes=100)
    together = [(o, t, "train", 0) for o, t in old] + [(o, t, "train", 1) for o, t in new]
    deduplicate_table(write_table(tmp_path / "all", together), tmp_path / "all" / "work", options)
    dumps = []
    for name, documents in (("old", old), ("new", new)):
        folder = write_table(tmp_path / name, [(o, t, "train", 0) for o, t in documents])
        deduplicate_table(folder, tmp_path / name / "work", options, earlier=dumps)
        dumps.append(Dump(folder, tmp_path / name / "work"))
    jointly = {origin for origin in dropped(tmp_path / "all" / "work") if origin.startswith("s8")}
    assert set(dropped(tmp_path / "new" / "work")) == jointly
    assert len(jointly) > 40

    def cuts(work):
        return sorted(
            (r["origin"], r["start"], r["stop"]) for r in rows_of(work / "cuts") if r["origin"].startswith("s8")
        )

    assert cuts(tmp_path / "new" / "work") == cuts(tmp_path / "all" / "work")


def first_occurrences(texts: list[bytes], length: int):
    """Bytes of each text that lie in a passage that occurred before."""
    seen, repeated = set(), []
    for text in texts:
        marked = np.zeros(len(text), bool)
        for at in range(len(text) - length + 1):
            passage = text[at : at + length]
            marked[at : at + length] |= passage in seen
            seen.add(passage)
        repeated.append(marked)
    return repeated


@pytest.mark.parametrize("length", [16, 33, 64])
def test_passages_are_cut_where_a_search_of_all_substrings_finds_them(tmp_path, length):
    generator = random.Random(length)
    shared = [prose(generator, 12) for _ in range(4)] + ["".join(generator.choice(HAN) for _ in range(20)), "ab" * 40]
    texts = []
    for _ in range(30):
        parts = [prose(generator, generator.randrange(8)) for _ in range(5)]
        parts += [generator.choice(shared)[generator.randrange(9) :] for _ in range(generator.randrange(3))]
        generator.shuffle(parts)
        texts.append("|".join(parts) + str(generator.random()))
    documents = write_table(tmp_path, [(f"s/{i}", text) for i, text in enumerate(texts)])
    deduplicate_table(documents, tmp_path / "work", DedupOptions(near=False, min_passage_bytes=length))
    rows = rows_of(documents)  # in the order of the numbers of documents
    cuts = {row["origin"]: [] for row in rows}
    for row in rows_of(tmp_path / "work" / "cuts"):
        cuts[row["origin"]].append((row["start"], row["stop"]))
    n_cut = 0
    for row, marked in zip(rows, first_occurrences([row["text"].encode() for row in rows], length)):
        data = row["text"].encode()
        wanted = bytes(byte for byte, gone in zip(data, marked) if not gone)
        got = cut(row["text"], *zip(*cuts[row["origin"]])) if cuts[row["origin"]] else row["text"]
        # a cut keeps the characters that it would have split: at most 3 bytes at each end
        assert len(wanted) <= len(got.encode()) <= len(wanted) + 6 * len(cuts[row["origin"]])
        assert row["text"].isascii() is False or got.encode() == wanted
        n_cut += marked.sum()
    assert n_cut > 500
    kept = {
        row["origin"]: row["text"]
        for i in range(N_PARTITIONS)
        for row in survivors(documents, tmp_path / "work", i).to_pylist()
    }
    assert set(kept) == {row["origin"] for row in rows} - set(dropped(tmp_path / "work"))


def test_lines_stay_in_the_first_documents_only(tmp_path):
    line = "Subscribe to our newsletter for more of this"
    generator = random.Random(11)
    documents = [(f"s/{i}", f"{prose(generator, 30)}\n  {line} \n{prose(generator, 30)}", "train", i) for i in range(9)]
    documents = write_table(tmp_path, documents)
    deduplicate_table(documents, tmp_path / "work", DedupOptions(max_line_copies=4))
    kept = [row for i in range(N_PARTITIONS) for row in survivors(documents, tmp_path / "work", i).to_pylist()]
    assert {row["origin"] for row in kept if line in row["text"]} == {f"s/{i}" for i in range(4)}
    assert len(kept) == 9 and all(row["text"].count("\n") == (2 if line in row["text"] else 1) for row in kept)


def test_training_documents_that_quote_validation_go(tmp_path):
    generator = random.Random(12)
    lines = [prose(generator, 12) for _ in range(10)]
    documents = [("v/1", "\n".join(lines), "valid", 0)]
    for n in range(6):  # n lines of the validation document and ten of its own
        own = [prose(generator, 12) for _ in range(10)]
        documents.append((f"t/{n}", "\n".join([*own, *lines[:n]]), "train", 1))
    deduplicate_table(write_table(tmp_path, documents), tmp_path / "work", DedupOptions(max_shared_share=0.2))
    found = dropped(tmp_path / "work")
    assert found == {f"t/{n}": ("shared_with_validation", "") for n in (3, 4, 5)}


def test_texts_without_words_are_not_alike(tmp_path):
    documents = [("s/1", "..."), ("s/2", "!!!"), ("s/3", "---"), ("s/4", "... "), ("s/5", "")]
    found = deduplicate_table(write_table(tmp_path, documents), tmp_path / "work", DedupOptions())
    assert found["rules"] == {"exact_duplicate": {"n_documents": 1, "n_bytes": 4}}


def test_an_empty_table_has_no_duplicates(tmp_path):
    options = DedupOptions(min_passage_bytes=20, max_line_copies=1)
    found = deduplicate_table(write_table(tmp_path, []), tmp_path / "work", options)
    assert found == {"n_documents": 0, "rules": {}, "n_cut_documents": 0, "n_cut_bytes": 0}


def test_a_work_folder_of_another_deduplication_is_refused(tmp_path):
    documents = write_table(tmp_path, collection(13, n=3))
    deduplicate_table(documents, tmp_path / "work", DedupOptions())
    with pytest.raises(DataError, match="holds another deduplication"):
        deduplicate_table(documents, tmp_path / "work", DedupOptions(seed=2))
    with pytest.raises(DataError, match=r"earlier\[0\] = .* not with the same options and 5 partitions"):
        earlier = [Dump(documents, tmp_path / "work")]
        deduplicate_table(documents, tmp_path / "next", DedupOptions(rows=5), earlier=earlier)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DedupOptions(min_passage_bytes=5), r"dedup\.min_passage_bytes = 5 must be 0 \(off\) or at least 16"),
        (DedupOptions(max_line_copies=-1), r"dedup\.max_line_copies = -1 must be at least 0"),
        (DedupOptions(threshold=1.5), r"dedup\.threshold = 1\.5 must be at least 0 and at most 1"),
        (DedupOptions(bands=0), r"dedup\.bands = 0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        deduplicate_table(tmp_path, tmp_path / "work", options)
