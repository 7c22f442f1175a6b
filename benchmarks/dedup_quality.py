"""Which duplicates the near-duplicate search finds, on a labelled set made from real text, against exact similarity.

    python benchmarks/dedup_quality.py [--shared ../shared] [--bases 3000] [--json FILE] [--figure FILE]

The set: documents of `pretrain` that resemble no other (bases), and for each base one partner of known kind:

    exact         the base with other white space
    edit 1%..30%  that share of the words exchanged, each for a word of another document
    boilerplate   another document's body under the base's first 60 words
    none          no partner: unrelated to everything else
    translation   besides, English and Chinese passages of FLORES-200, line by line the same content

Truth is the Jaccard similarity of the sets of shingles, formed here from plain Python sets: which pairs of documents
share any shingle comes from an index of all of them, so no pair is left out. A pair is found if both end in one
cluster. Clusters chain: where a resembles b and b resembles c, the pair (a, c) is found too, however little the two
resemble each other. Such pairs count against the precision, and `n_chained` says how many of the false ones they are;
`n_wrong` are those that no chain of true pairs explains. Reported by similarity: share of pairs found beside
1 - (1 - s^rows)^bands, with every candidate joined and with the comparison that is the default; precision and recall at
the threshold; found by kind.
"""

import argparse
import json
import random
import tempfile
import unicodedata
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import zstandard

from isoflop.corpus.dedup.options import DedupOptions, candidate_probability
from isoflop.corpus.dedup.table import deduplicate_table
from isoflop.corpus.dedup.words import UNSPACED
from isoflop.corpus.tables import partitions as tables
from isoflop.recipe import write_json
from isoflop.run import commit

N_PARTITIONS = 4
RATES = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.3)
DOMAINS = ("openstax_en", "openstax_math", "math_latex", "misc_en", "lctt_zh", "laws_zh", "wiki_zh", "oiwiki_zh")
CHARS = 3000


def split_words(text: str) -> list[str]:
    """Words as the documentation defines them, a character at a time."""
    found, word = [], ""
    for char in text.lower():
        wordlike = unicodedata.category(char)[0] in "LMN" or char == "_"
        alone = wordlike and any(first <= ord(char) <= last for first, last in UNSPACED)
        if wordlike and not alone:
            word += char
            continue
        if word:
            found.append(word)
        word = ""
        if alone:
            found.append(char)
    return [*found, word] if word else found


def shingle_set(words: list[str], n: int = 5) -> set[tuple[str, ...]]:
    """Sets of n consecutive words; a shorter text is one."""
    return set(zip(*(words[offset:] for offset in range(n)))) if len(words) >= n else {tuple(words)}


def labelled_set(shared: Path, n_bases: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(origin, kind, text). The partner of `NUMBER/base` is `NUMBER/partner`."""
    generator = random.Random(seed)
    bases = _bases(shared, n_bases, generator)
    words = [split_words(text) for text in bases]
    found = []
    kinds = ["exact", *(f"edit {round(rate * 100)}%" for rate in RATES), "boilerplate", "none"]
    for index, text in enumerate(bases):
        kind, other = kinds[index % len(kinds)], generator.choice(words)
        found.append((f"{index:05d}/base", kind, text))
        if kind == "exact":
            found.append((f"{index:05d}/partner", kind, "  ".join(text.split()) + "\n"))
        elif kind == "boilerplate":
            found.append((f"{index:05d}/partner", kind, " ".join([*words[index][:60], *other[60:]])))
        elif kind != "none":
            share = float(kind[5:-1]) / 100
            edited = [generator.choice(other) if generator.random() < share else word for word in words[index]]
            found.append((f"{index:05d}/partner", kind, " ".join(edited)))
    return [*found, *_translations(shared, first=len(bases))]


def _bases(shared: Path, n: int, generator: random.Random) -> list[str]:
    texts = []
    for domain in DOMAINS:
        with zstandard.open(shared / "data/pretrain" / domain / "docs.jsonl.zst", "rt", encoding="utf-8") as file:
            for line in file.read().split("\n")[:-1]:
                text = json.loads(line)["text"]
                start = generator.randrange(max(1, len(text) - CHARS))
                texts.append(text[start : start + generator.randrange(300, CHARS)])
    generator.shuffle(texts)
    kept: list[str] = []
    owner: set[tuple[str, ...]] = set()
    for text in texts:
        shingles = shingle_set(split_words(text))
        if len(shingles) >= 50 and len(shingles & owner) < 0.1 * len(shingles):  # resembles none before it
            kept.append(text)
            owner |= shingles
        if len(kept) == n:
            break
    return kept


def _translations(shared: Path, *, first: int) -> list[tuple[str, str, str]]:
    folder = shared / "data/eval/flores_en_zh"
    pages = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            lines = path.read_text(encoding="utf-8").split("\n")
            pages.append(["\n".join(lines[at : at + 12]) for at in range(0, len(lines) - 12, 12)])
    found = []
    for number, (left, right) in enumerate(zip(pages[0], pages[len(pages) // 2])):
        found.append((f"{first + number:05d}/base", "translation", left))
        found.append((f"{first + number:05d}/partner", "translation", right))
    return found


def similar_pairs(documents: list[tuple[str, str, str]]) -> dict[tuple[int, int], float]:
    """Jaccard similarity of every pair that shares a shingle."""
    sets = [shingle_set(split_words(text)) for _, _, text in documents]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, shingles in enumerate(sets):
        for shingle in shingles:
            holders[shingle].append(index)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for found in holders.values():
        for place, right in enumerate(found):
            for left in found[:place]:
                shared[left, right] += 1
    return {(a, b): n / (len(sets[a]) + len(sets[b]) - n) for (a, b), n in shared.items()}


def clusters_found(documents: list[tuple[str, str, str]], folder: Path, options: DedupOptions) -> list[str]:
    """The document that stands for each document in the end."""
    import pyarrow as pa

    columns = list(zip(*((tables.document_key("d", t), o, "s", "d", "", "", t) for o, _, t in documents)))
    table = pa.table([list(column) for column in columns], schema=tables.document_schema())
    tables.write_run(folder / "run.arrow", table, N_PARTITIONS)
    for partition in range(N_PARTITIONS):
        rows = tables.read_runs([folder / "run.arrow"], partition)
        tables.write_partition(folder / "documents", partition, rows)
    tables.finish(folder / "documents", N_PARTITIONS)
    deduplicate_table(folder / "documents", folder / "work", options)
    survivor = {}
    for partition in range(N_PARTITIONS):
        rows = tables.read_partition(folder / "work" / "drops", partition, ["origin", "survivor"])
        survivor |= dict(zip(rows.column("origin").to_pylist(), rows.column("survivor").to_pylist()))
    ends = []
    for origin, _, _ in documents:
        while origin in survivor:
            origin = survivor[origin]
        ends.append(origin)
    return ends


def chained(similarity: dict[tuple[int, int], float], threshold: float, n: int) -> list[int]:
    """For each document the first that a chain of pairs of this similarity leads to."""
    root = list(range(n))

    def first(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    for (a, b), value in similarity.items():
        if value >= threshold:
            low, high = sorted((first(a), first(b)))
            root[high] = low
    return [first(index) for index in range(n)]


def measure(documents: list[tuple[str, str, str]], folder: Path, options: DedupOptions) -> dict:
    """One row per range of similarity, and counts at the default threshold."""
    threshold = DedupOptions().threshold
    pairs = similar_pairs(documents)
    ends = clusters_found(documents, folder, options)
    edges = np.arange(0.0, 1.01, 0.1)
    similarity = np.array(list(pairs.values()))
    joined = np.array([ends[a] == ends[b] for a, b in pairs])
    chance = np.array([candidate_probability(s, options.bands, options.rows) for s in similarity.tolist()])
    rows = []
    for low, high in pairwise(edges):
        here = (similarity >= low) & (similarity < high + (high > 0.99))
        if here.any():
            expected, error = chance[here].mean(), np.sqrt((chance[here] * (1 - chance[here])).sum()) / here.sum()
            row = {"low": round(float(low), 1), "high": round(float(high), 1), "n_pairs": int(here.sum())}
            rows.append({**row, "found": joined[here].mean(), "expected": expected, "standard_error": error})
    by_end: dict[str, list[int]] = defaultdict(list)
    for index, end in enumerate(ends):
        by_end[end].append(index)
    found_pairs = {(a, b) for group in by_end.values() for b in group for a in group if a < b}
    true = similarity >= threshold
    false = [pair for pair in found_pairs if pairs.get(pair, 0.0) < threshold]
    chain = chained(pairs, threshold, len(documents))
    n_wrong = sum(chain[a] != chain[b] for a, b in false)
    kinds: dict[str, list[bool]] = defaultdict(list)
    for index, (origin, kind, _) in enumerate(documents):
        if origin.endswith("/partner"):
            kinds[kind].append(ends[index] == ends[index - 1])
    return {
        "by_similarity": rows,
        "n_found": len(found_pairs),
        "precision": 1 - len(false) / max(1, len(found_pairs)),
        "n_chained": len(false) - n_wrong,
        "n_wrong": n_wrong,
        "n_true": int(true.sum()),
        "recall": float(joined[true].mean()),
        "recall_expected": float(chance[true].mean()),
        "recall_error": float(np.sqrt((chance[true] * (1 - chance[true])).sum()) / true.sum()),
        "found_by_kind": {kind: [sum(found), len(found)] for kind, found in kinds.items()},
    }


def draw(record: dict, path: Path, options: DedupOptions) -> None:
    """The curve, and the shares that were found."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    grid = np.linspace(0, 1, 201)
    curve = [candidate_probability(s, options.bands, options.rows) for s in grid.tolist()]
    axes.plot(grid, curve, color="0.5", label=f"1 - (1 - s^{options.rows})^{options.bands}")
    for name, marker in (("candidates", "o"), ("compared", "x")):
        rows = record[name]["by_similarity"]
        middle = [(row["low"] + row["high"]) / 2 for row in rows]
        found, error = [row["found"] for row in rows], [2 * row["standard_error"] for row in rows]
        axes.errorbar(middle, found, yerr=error, fmt=marker, label=f"found, {name} (2 standard errors)")
    axes.axvline(0.7, color="0.8", linestyle=":", label="threshold")
    axes.set_xlabel("Jaccard similarity of 5-word shingles (5 characters in Chinese)")
    axes.set_ylabel("share of pairs found")
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[1].parent / "shared")
    parser.add_argument("--bases", type=int, default=3000)
    parser.add_argument("--json")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    documents = labelled_set(given.shared, given.bases)
    record: dict = {"commit": commit(), "n_documents": len(documents)}
    default = DedupOptions()
    for name, threshold in (("candidates", 0.0), ("compared", default.threshold)):
        options = DedupOptions(threshold=threshold)
        with tempfile.TemporaryDirectory() as folder:
            record[name] = measure(documents, Path(folder), options)
        print(name, {key: value for key, value in record[name].items() if key != "by_similarity"})
        for row in record[name]["by_similarity"]:
            print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if given.json:
        write_json(given.json, record)
    if given.figure:
        draw(record, given.figure, default)


if __name__ == "__main__":
    main()
