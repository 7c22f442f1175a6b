"""A block of documents as arrays: where words, tokens, lines and paragraphs begin and end, and a hash of each.

Every filter reads these arrays, so a rule costs a few passes of numpy over a megabyte of text and no loop over words.

    texts --TextBlock--> code points --classes--> chunks, tokens, lines, paragraphs (spans with document offsets)

A *chunk* is what white space separates (the "word" of the published rules); a *token* is a run of letters and digits,
or one other sign. In Chinese and Japanese, which set no spaces, every character is a chunk and a token (assumption:
counts of words then are counts of characters). Hashes fold case; they are 64 bits, so that two different spans of a
corpus of 1e9 words share one with a chance of 3%, which moves a count by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from unicodedata import category

import numpy as np

from isoflop.corpus.dedup.words import mix

SPACE, WORD, ALONE, SIGN = 0, 1, 2, 3
"""Classes of characters: white space and controls; letters, digits, marks; unspaced scripts; everything else."""

_ALONE_RANGES = (
    *((0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00)),
    *((0x20000, 0x2FA20), (0x30000, 0x323B0)),
)
"""Hiragana, Katakana and Han: the scripts that are written without spaces and taken character by character."""

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_BASE_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


@dataclass(frozen=True)
class Spans:
    """Pieces of the text of a block, in order."""

    start: np.ndarray
    """First character, int64."""
    end: np.ndarray
    """One past the last character, int64."""
    offsets: np.ndarray
    """Spans of document i are offsets[i] to offsets[i + 1], int64 (documents + 1,)."""

    @cached_property
    def doc(self) -> np.ndarray:
        """Document of each span."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def counts(self) -> np.ndarray:
        """Spans per document."""
        return np.diff(self.offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Characters per span."""
        return self.end - self.start

    def per_doc(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values`, one per span, over each document."""
        if values.dtype.kind == "f":  # each document by itself: no rounding from those before it
            sums, full = np.zeros(len(self.offsets) - 1), self.counts > 0
            if full.any():
                sums[full] = np.add.reduceat(values, self.offsets[:-1][full])
            return sums
        sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]

    def where(self, keep: np.ndarray) -> "Spans":
        """Only the spans with `keep`."""
        offsets = np.concatenate([[0], np.cumsum(keep)])[self.offsets]
        return Spans(self.start[keep], self.end[keep], offsets)


class TextBlock:
    """Documents joined with line breaks, and what the filters ask about them."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts
        joined = "\n".join(texts)
        self.codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.doc_end = np.cumsum(lengths + 1) - 1
        self.doc_start = self.doc_end - lengths
        self.n_chars = lengths

    @property
    def n_docs(self) -> int:
        return len(self.texts)

    @cached_property
    def classes(self) -> np.ndarray:
        """Class of each character, uint8."""
        return _class_table()[self.codes]

    @cached_property
    def tokens(self) -> Spans:
        """Runs of letters and digits; every other sign and every character of an unspaced script alone."""
        word = self.classes == WORD
        single = self.classes >= ALONE
        begin, stop = word.copy(), word.copy()
        begin[1:] &= ~word[:-1]
        stop[:-1] &= ~word[1:]
        return self.spans(np.flatnonzero(begin | single), np.flatnonzero(stop | single) + 1)

    @cached_property
    def chunks(self) -> Spans:
        """What white space separates; in unspaced scripts each character with the signs behind it."""
        solid, alone = self.classes != SPACE, self.classes == ALONE
        begin, stop = solid.copy(), solid.copy()
        cut = alone.copy()  # a chunk begins at each such character, and at a letter behind one or behind a wide sign
        wide = alone | ((self.classes == SIGN) & (self.codes >= 0x3000) & (self.codes < 0x10000))
        cut[1:] |= wide[:-1] & (self.classes[1:] == WORD)
        begin[1:] &= ~solid[:-1] | cut[1:]
        stop[:-1] &= ~solid[1:] | cut[1:]
        return self.spans(np.flatnonzero(begin), np.flatnonzero(stop) + 1)

    @cached_property
    def lines(self) -> Spans:
        """Lines with text, without white space around it."""
        breaks = np.flatnonzero(self.codes == 10)
        left, right = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(self.codes)]])
        first, last = np.searchsorted(self.chunks.start, left), np.searchsorted(self.chunks.start, right)
        full = last > first
        return self.spans(self.chunks.start[first[full]], self.chunks.end[last[full] - 1])

    @cached_property
    def paragraphs(self) -> Spans:
        """Runs of lines between empty lines."""
        lines = self.lines
        if not len(lines.start):
            return lines
        breaks = np.concatenate([[0], np.cumsum(self.codes == 10)])
        begins = np.ones(len(lines.start), dtype=bool)
        begins[1:] = breaks[lines.start[1:]] - breaks[lines.end[:-1]] > 1
        begins[lines.offsets[:-1][lines.counts > 0]] = True
        first = np.flatnonzero(begins)
        return self.spans(lines.start[first], lines.end[np.append(first[1:], len(lines.end)) - 1])

    @cached_property
    def _prefix(self) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.codes)
        powers = np.cumprod(np.full(n + 1, _BASE, dtype=np.uint64))
        sums = np.zeros(n + 1, dtype=np.uint64)
        np.cumsum(_value_table()[self.codes] * powers[:n], out=sums[1:])
        return sums, np.cumprod(np.full(n + 1, _BASE_INVERSE, dtype=np.uint64))

    def hashes(self, spans: Spans) -> np.ndarray:
        """Hash of the text of each span, case folded, uint64: equal texts have equal hashes in every block."""
        sums, inverse = self._prefix
        return mix((sums[spans.end] - sums[spans.start]) * inverse[spans.start])

    @cached_property
    def token_hashes(self) -> np.ndarray:
        return self.hashes(self.tokens)

    @cached_property
    def is_word(self) -> np.ndarray:
        """Per token: a word or a character of an unspaced script, not a sign."""
        return self.classes[self.tokens.start] != SIGN

    def spans(self, start: np.ndarray, end: np.ndarray) -> Spans:
        """Spans of this block from their bounds, in order; none may cross documents."""
        offsets = np.append(np.searchsorted(start, self.doc_start), len(start))
        return Spans(start, end, offsets)

    def count_chars(self, flags: np.ndarray) -> np.ndarray:
        """Characters with a flag in each document, int64."""
        places = np.flatnonzero(flags)
        return np.searchsorted(places, self.doc_end) - np.searchsorted(places, self.doc_start)

    def any_in(self, spans: Spans, flags: np.ndarray) -> np.ndarray:
        """Whether a span has a character with a flag."""
        sums = np.zeros(len(flags) + 1, dtype=np.int32)
        np.cumsum(flags, out=sums[1:])
        return sums[spans.end] > sums[spans.start]


def join_hashes(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Hash of a longer run from the hash of a run and of what follows it; order matters."""
    return mix(left * _BASE + right)


def runs_of(hashes: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of n spans that lie in one document: (index of the first span, hash of the run)."""
    if len(hashes) < n:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    run = hashes[: len(hashes) - n + 1].copy()
    for step in range(1, n):
        run = join_hashes(run, hashes[step : len(hashes) - n + 1 + step])
    inside = np.ones(len(run) + n - 1, dtype=bool)
    for step in range(1, n):  # a run that begins fewer than n spans before a boundary would cross it
        boundary = offsets[1:-1] - step
        inside[boundary[boundary >= 0]] = False
    first = np.flatnonzero(inside[: len(run)])
    return first, run[first]


@dataclass(frozen=True)
class Groups:
    """Equal keys: `order` lists positions group by group, `begin` where each group begins in it."""

    order: np.ndarray
    begin: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(np.append(self.begin, len(self.order)))

    def later(self) -> np.ndarray:
        """Per position: an equal key came before it."""
        flags = np.ones(len(self.order), dtype=bool)
        if len(self.order):
            flags[np.minimum.reduceat(self.order, self.begin)] = False
        return flags


def group(keys: np.ndarray) -> Groups:
    """Group equal keys by sorting them."""
    order = np.argsort(keys)
    ranked = keys[order]
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    return Groups(order, np.flatnonzero(begins))


class SortedIndex:
    """Finds keys among sorted hashes. Hashes are spread evenly, so the first bits of one say nearly where it is."""

    def __init__(self, keys: np.ndarray):
        bits = max(1, len(keys).bit_length())
        self._keys, self._shift = keys, np.uint64(64 - bits)
        buckets = np.arange(1 << bits, dtype=np.uint64) << self._shift
        self._begin = np.searchsorted(keys, buckets)

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place of each key, or any place; whether it is there)."""
        last = len(self._keys) - 1
        if last < 0:
            return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
        place = np.minimum(self._begin[wanted >> self._shift], last)
        found = self._keys[place]
        behind = np.flatnonzero(found < wanted)
        while len(behind):  # a bucket holds one key on average
            step = place[behind] + 1
            behind, step = behind[step <= last], step[step <= last]
            place[behind], found[behind] = step, self._keys[step]
            behind = behind[found[behind] < wanted[behind]]
        return place, found == wanted


@cache
def _class_table() -> np.ndarray:
    table = np.full(0x110000, SIGN, dtype=np.uint8)
    for code in range(0x20000):
        kind = category(chr(code))[0]
        if kind in "LNM":
            table[code] = WORD
        elif kind in "ZC":
            table[code] = SPACE
    table[ord("_")] = WORD
    for first, stop in _ALONE_RANGES:
        table[first:stop] = ALONE
    return table


@cache
def alpha_table() -> np.ndarray:
    """Per code point: a letter, bool."""
    table = np.zeros(0x110000, dtype=bool)
    table[:0x20000] = [chr(code).isalpha() for code in range(0x20000)]
    for first, stop in _ALONE_RANGES:
        table[first:stop] = True
    return table


@cache
def _value_table() -> np.ndarray:
    lower = np.arange(0x110000, dtype=np.uint64)
    for code in range(0x20000):
        folded = chr(code).lower()
        if len(folded) == 1:
            lower[code] = ord(folded)
    return mix(lower + np.uint64(1))
