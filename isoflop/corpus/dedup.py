"""Exact and near-duplicate removal. In: documents in order of preference; out: which to keep, and the clusters.

Exact: hash of the text with white space collapsed. Near: MinHash of 5-word shingles, cut into bands; two documents
that share a band are candidates, and are joined if the estimated Jaccard similarity reaches the threshold. With b
bands of r rows a pair of similarity s becomes a candidate with probability 1 - (1 - s^r)^b. The defaults, 16 x 8:

    s            0.5    0.6    0.7    0.8    0.9
    candidate    0.06   0.24   0.61   0.95   1.00

The first document of a cluster survives, so the result depends on nothing but the order. Another engine can stand
behind `deduplicate`: it is a plain function of documents.
Source: Broder 1997 (MinHash); DeepSeek LLM 2.1 deduplicates across the whole corpus, parameters not stated.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isoflop.corpus.sources import Document
from isoflop.errors import DataError, RecipeError

# words, and each CJK character by itself (no spaces between words there)
_WORDS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff]|[^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff]+")


@dataclass(frozen=True)
class DedupOptions:
    """Near-duplicate search; see the module for what the numbers mean."""

    near: bool = True
    """Look for near-duplicates; exact ones are always removed."""
    bands: int = 16
    """Bands of the signature."""
    rows: int = 8
    """Hash values per band."""
    shingle_words: int = 5
    """Consecutive words (or CJK characters) per shingle."""
    threshold: float = 0.7
    """Estimated Jaccard similarity at which a candidate pair counts as the same text."""
    seed: int = 1
    """Seed of the hash functions."""
    max_shared_share: float = 0.2
    """Training documents with more than this share of their text in lines of validation documents are removed."""
    min_line_chars: int = 40
    """Shorter lines are never compared."""
    max_line_copies: int = 0
    """Of equal lines so many stay, in any documents; 0: all."""
    min_passage_bytes: int = 0
    """Strings of so many bytes that occur a second time are cut out, wherever they lie; 0: none, usual: 200."""


@dataclass(frozen=True)
class Deduplicated:
    """`cluster[i]` is the index of the document that survives in place of document i."""

    keep: np.ndarray
    """bool (n,)."""
    cluster: np.ndarray
    """int64 (n,)."""
    n_exact: int
    n_near: int


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """Chance that a pair of this Jaccard similarity shares a band."""
    return 1.0 - (1.0 - similarity**rows) ** bands


def check_options(options: DedupOptions) -> None:
    """Raises RecipeError for sizes that are not positive, or shares outside 0 to 1."""
    sizes = {"bands": options.bands, "rows": options.rows, "shingle_words": options.shingle_words}
    for name, value in sizes.items():
        if value < 1:
            raise RecipeError(f"dedup.{name} = {value} must be at least 1; leave it out for the default")
    if not 0.0 <= options.threshold <= 1.0:
        raise RecipeError(
            f"dedup.threshold = {options.threshold} must lie in [0, 1]; usual values are 0.7 to 0.9, "
            "0 takes every candidate"
        )
    if options.min_passage_bytes and options.min_passage_bytes < 16:
        raise RecipeError(
            f"dedup.min_passage_bytes = {options.min_passage_bytes} must be 0 (off) or at least 16; 200 is usual"
        )
    if options.max_line_copies < 0 or options.min_line_chars < 1:
        raise RecipeError(
            f"dedup.max_line_copies = {options.max_line_copies} must not be negative and dedup.min_line_chars = "
            f"{options.min_line_chars} must be positive; 0 copies keeps every line"
        )


def deduplicate(
    documents: Sequence[Document], options: DedupOptions, *, signatures: np.ndarray | None = None
) -> Deduplicated:
    """Keep the first of each group of equal or nearly equal documents.

    `signatures` are those of `minhash_signatures` for all documents, where they exist already.

    Raises:
        RecipeError: sizes that are not positive, or a threshold outside 0 to 1.
        DataError: near-duplicate search asked for, and rensa is not installed.
    """
    check_options(options)
    cluster = _exact_clusters(documents)
    firsts = np.flatnonzero(cluster == np.arange(len(documents)))
    n_exact = len(documents) - len(firsts)
    if options.near and len(firsts) > 1:
        if signatures is None:
            signatures = minhash_signatures([documents[i].text for i in firsts.tolist()], options)
        else:
            signatures = signatures[firsts]
        cluster = firsts[_near_clusters(signatures, options)[np.searchsorted(firsts, cluster)]]
    keep = cluster == np.arange(len(documents))
    return Deduplicated(keep, cluster, n_exact, int(len(firsts) - keep.sum()))


def minhash_signatures(texts: Sequence[str], options: DedupOptions) -> np.ndarray:
    """MinHash values, uint32 (n, bands * rows)."""
    try:
        from rensa import RMinHash  # type: ignore[attr-defined]
    except ImportError as error:
        raise DataError(
            "dedup.near = true needs rensa; pip install isoflop[corpus], or set dedup.near = false"
        ) from error
    signatures = np.empty((len(texts), options.bands * options.rows), dtype=np.uint32)
    for index, text in enumerate(texts):
        minhash = RMinHash(num_perm=signatures.shape[1], seed=options.seed)
        minhash.update(shingles(text, options.shingle_words))
        signatures[index] = minhash.digest()
    return signatures


def shingles(text: str, n_words: int) -> list[str]:
    """Runs of `n_words` consecutive words, case and white space ignored; shorter texts are one shingle."""
    words = _WORDS.findall(text.lower())
    if len(words) <= n_words:
        return [" ".join(words)]
    return [" ".join(run) for run in zip(*(words[offset:] for offset in range(n_words)))]


def shared_lines(
    documents: Iterable[Document], reference: Iterable[Document], *, min_chars: int = 40
) -> Iterator[float]:
    """Share of each document's text in lines of at least `min_chars` that some document of `reference` has too.

    Near-duplicate search compares whole documents; this finds the passage that one quotes from another.
    """
    known = {line for document in reference for line in _long_lines(document.text, min_chars)}
    for document in documents:
        shared = sum(len(line) for line in _long_lines(document.text, min_chars) if line in known)
        yield shared / max(1, len(document.text))


def _long_lines(text: str, min_chars: int) -> Iterator[str]:
    return (line for line in map(str.strip, text.split("\n")) if len(line) >= min_chars)


def _exact_clusters(documents: Sequence[Document]) -> np.ndarray:
    first: dict[bytes, int] = {}
    cluster = np.empty(len(documents), dtype=np.int64)
    for index, document in enumerate(documents):
        key = hashlib.blake2b(" ".join(document.text.split()).encode(), digest_size=16).digest()
        cluster[index] = first.setdefault(key, index)
    return cluster


def _near_clusters(signatures: np.ndarray, options: DedupOptions) -> np.ndarray:
    parent = np.arange(len(signatures), dtype=np.int64)

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    for band in range(options.bands):
        values = np.ascontiguousarray(signatures[:, band * options.rows : (band + 1) * options.rows])
        keys = values.view(np.dtype((np.void, values.itemsize * options.rows))).ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        for left, right in zip(*_runs_of_equal(order, same)):
            similarity = np.mean(signatures[left] == signatures[right])
            if similarity >= options.threshold:
                a, b = root(int(left)), root(int(right))
                parent[max(a, b)] = min(a, b)  # the earliest document is the root, so it survives
    return np.array([root(node) for node in range(len(parent))], dtype=np.int64)


def _runs_of_equal(order: np.ndarray, same: np.ndarray) -> tuple[list[int], list[int]]:
    """Pairs to compare in a sorted band: each member with the one before it and with the first of its run."""
    left, right = [], []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
    for start, stop in zip(edges[::2], edges[1::2]):
        run = order[start : stop + 1]
        for before, member in pairwise(run):
            left.append(int(before))
            right.append(int(member))
            if before != run[0]:
                left.append(int(run[0]))
                right.append(int(member))
    return left, right
