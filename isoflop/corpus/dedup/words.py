"""Texts -> words, shingles and MinHash signatures, many documents at a time and without a Python loop over words.

A word is a run of letters, marks, digits and underscores; in scripts that don't put spaces between words each
character is a word by itself. Case is ignored. A shingle is `n` consecutive words; a shorter text is one shingle.
Signatures come from Daft's `minhash`, which sees the words joined by single spaces. Text that another splitter cut
(`presplit`) is taken as it is: words are what lies between single spaces.

Legend of arrays: C code points, W words, S shingles, D documents.
"""

import functools
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.corpus.blocks import blocks
from isoflop.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR, WORD, ALONE = 0, 1, 2
UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai and Lao, Burmese, Khmer
    *((0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),  # kana, Han
    *((0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Hangul (counted in syllables), rare Han
)
"""Ranges of scripts that are shingled by character."""

BLOCK_CHARS = 1_000_000  # assumption: working arrays of one block take about 100 MB
SPACE = 32


def import_daft() -> Any:
    """Daft, with its usage reports switched off, which must happen before it is imported.

    Raises:
        DataError: not installed.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    try:
        import daft
    except ImportError as error:
        raise DataError("near-duplicate search needs daft; pip install isoflop[corpus], or dedup.near=false") from error
    return daft


def minhash(words: "pa.Array", *, n_hashes: int, n_words: int, seed: int) -> np.ndarray:
    """MinHash values of texts that are words with one space between them, uint32 (n, n_hashes); all ones without words.

    Evaluates Daft's expression on a batch, without a query: a query is planned, and looks for Ray, at every call.
    """
    import pyarrow as pa

    daft = import_daft()
    from daft.expressions import ExpressionsProjection  # type: ignore[import-not-found]
    from daft.functions import minhash as daft_minhash  # type: ignore[import-not-found]
    from daft.recordbatch import RecordBatch  # type: ignore[import-not-found]

    if not len(words):
        return np.empty((0, n_hashes), np.uint32)
    batch = RecordBatch.from_arrow_table(pa.table({"words": words}))
    values = daft_minhash(
        daft.col("words"), num_hashes=n_hashes, ngram_size=n_words, seed=seed, hash_function="xxhash3_64"
    )
    found = batch.eval_expression_list(ExpressionsProjection([values.alias("values")])).to_arrow_table()
    return found.column("values").combine_chunks().flatten().to_numpy().reshape(-1, n_hashes)


def spaced(texts: Sequence[str]) -> "Iterator[pa.Array]":
    """The words of each text, lower case, one space between them; arrays of consecutive texts."""
    import pyarrow as pa

    for block in blocks(texts, len, BLOCK_CHARS):
        codes_C, bounds_D = _spaced_codes(block)
        whole = codes_C.tobytes().decode("utf-32-le", "surrogatepass")
        # every text ends with a space, which is dropped
        rows = [whole[start : max(start, stop - 1)] for start, stop in pairwise(bounds_D.tolist())]
        yield pa.array(rows, pa.large_string())


def shingle_sets(texts: Sequence[str], n_words: int, *, presplit: bool = False) -> Iterator[np.ndarray]:
    """The distinct shingles of each text as sorted 64-bit hashes; empty for a text without words."""
    for block in blocks(texts, len, BLOCK_CHARS):
        codes_C, bounds_D = _presplit_codes(block) if presplit else _spaced_codes(block)
        hashes_W, first_word_D = _word_hashes(codes_C, bounds_D)
        n_words_D = np.diff(first_word_D)
        hashes_S = sum(_rolled(hashes_W, offset, n_words) for offset in range(n_words))
        hashes_S = mix(np.asarray(hashes_S, np.uint64))
        for first, count in zip(first_word_D[:-1].tolist(), n_words_D.tolist()):
            if count >= n_words:
                yield np.unique(hashes_S[first : first + count - n_words + 1])
            else:
                short = sum(_rolled(hashes_W[first : first + count], j, n_words)[:1] for j in range(count))
                yield mix(np.asarray(short, np.uint64)) if count else np.empty(0, np.uint64)


def mix(values: np.ndarray) -> np.ndarray:
    """Spread every bit of a 64-bit value over all bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def window_hashes(values: np.ndarray, width: int) -> np.ndarray:
    """Hash of each run of `width` consecutive values (uint8 or uint32), uint64 (n - width + 1,); empty if n < width.

    A polynomial modulo 2^64 in an odd base, so that a difference of prefix sums can be shifted back exactly.
    """
    if len(values) < width:
        return np.empty(0, np.uint64)
    sums = _prefix_sums(values)
    found = sums[width:] - sums[:-width]
    found *= _powers(len(found), inverse=True)
    return mix(found)


def _presplit_codes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """`_spaced_codes` of texts that have one space between their words already."""
    ended = [f"{text} " if text else "" for text in texts]
    codes = np.frombuffer("".join(ended).encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes, np.cumsum([0, *map(len, ended)])


def _spaced_codes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points in which each word is followed by one space, uint32 (C,), and where each text begins, (D + 1,)."""
    lowered = [text.lower() for text in texts]
    joined = "\n".join(lowered) + "\n"
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = kinds_of_code_points().take(codes)
    word = kind == WORD
    # each character and a space behind it; of the spaces those stay that end a word or a character that stands alone
    keep = np.zeros((len(codes), 2), bool)
    keep[:, 0] = kind
    keep[:, 1] = kind == ALONE
    keep[:-1, 1] |= word[:-1] > word[1:]
    pairs = np.full((len(codes), 2), SPACE, np.uint32)
    pairs[:, 0] = codes
    at = np.flatnonzero(keep)
    ends = np.cumsum([0, *(len(text) + 1 for text in lowered)])
    return pairs.ravel().take(at), np.searchsorted(at, 2 * ends)


def _word_hashes(codes_C: np.ndarray, bounds_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stops = np.flatnonzero(codes_C == SPACE)
    starts = np.concatenate([[0], stops[:-1] + 1]) if len(stops) else stops
    sums = _prefix_sums(codes_C)
    hashes_W = (sums[stops] - sums[starts]) * _powers(len(sums), inverse=True)[starts]
    return mix(hashes_W), np.searchsorted(stops, bounds_D)


def _rolled(hashes_W: np.ndarray, offset: int, n_words: int) -> np.ndarray:
    """Contribution of the word `offset` places after the first to each shingle."""
    factor = np.uint64(pow(_BASE, offset, 1 << 64) * 2 + 1 & 0xFFFFFFFFFFFFFFFF)
    moved = np.zeros(len(hashes_W), np.uint64)
    moved[: max(0, len(hashes_W) - offset)] = hashes_W[offset:] * factor
    return moved


_BASE = 0x9E3779B97F4A7C15  # odd: has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)


def _prefix_sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum((values.astype(np.uint64) + np.uint64(1)) * _powers(len(values)), out=sums[1:])
    return sums


def _powers(n: int, *, inverse: bool = False) -> np.ndarray:
    """`_BASE**i`, or its inverse, modulo 2^64 for i < n."""
    room = 1 << max(21, (n - 1).bit_length())
    return _all_powers(_INVERSE if inverse else _BASE, room)[:n]


@functools.lru_cache(maxsize=4)
def _all_powers(base: int, n: int) -> np.ndarray:
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


@functools.cache
def kinds_of_code_points() -> np.ndarray:
    """SEPARATOR, WORD or ALONE for each code point, uint8."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    wordlike = [unicodedata.category(chr(code))[0] in "LMN" for code in range(sys.maxunicode + 1)]
    kinds[wordlike] = WORD
    kinds[ord("_")] = WORD
    for first, last in UNSPACED:
        part = kinds[first : last + 1]
        part[part == WORD] = ALONE
    return kinds
