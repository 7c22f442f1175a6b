"""The quality and repetition rules of MassiveText (Gopher), with the published thresholds as defaults.

Source: Rae et al. 2021, arXiv 2112.11446, appendix A1.1: "quality filtering" and table A1 for repetition. What the
paper leaves open (what a word is, how overlapping repeats count) follows datatrove's filters of the same names where
that is possible on arrays; the differences are listed in docs/corpus-filters.md with the measured agreement.
"""

from dataclasses import dataclass

import numpy as np

from isoflop.corpus.filter.text_block import (
    ALONE,
    SIGN,
    Groups,
    SortedIndex,
    Spans,
    TextBlock,
    alpha_table,
    group,
    join_hashes,
)
from isoflop.recipe import NotNegative, Positive, Share

STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),  # paper
    # assumption: the commonest function characters of modern and classical Chinese
    "zh": tuple("\u7684\u4e86\u662f\u5728\u4e0d\u548c\u6709\u4e00\u6211\u4ed6\u4e4b\u4e5f\u800c\u5176\u4ee5\u8005"),
}
_BULLETS = (0x2022, ord("-"))  # datatrove; the paper says "bullet point"
_ELLIPSIS = 0x2026


@dataclass(frozen=True)
class GopherQualityOptions:
    """Thresholds of the quality rules (paper)."""

    enabled: bool = True
    """Apply the family."""
    min_words: NotNegative = 50
    """Fewer words: dropped. Words in unspaced scripts are characters."""
    max_words: Positive = 100_000
    """More words: dropped."""
    min_mean_word_chars: NotNegative = 3.0
    """Shorter words on average: dropped. Only where most words are set with spaces."""
    max_mean_word_chars: Positive = 10.0
    """Longer words on average: dropped."""
    max_hash_ratio: NotNegative = 0.1
    """Hash signs per word; more: dropped."""
    max_ellipsis_ratio: NotNegative = 0.1
    """Ellipses per word; more: dropped."""
    max_bullet_lines: Share = 0.9
    """Share of lines that begin with a bullet; more: dropped."""
    max_ellipsis_lines: Share = 0.3
    """Share of lines that end with an ellipsis; more: dropped."""
    min_alpha_words: Share = 0.8
    """Share of words with a letter; less: dropped."""
    min_stop_words: NotNegative = 2
    """Different stop words that must occur; only for languages with a list (en, zh)."""


@dataclass(frozen=True)
class GopherRepetitionOptions:
    """Thresholds of the repetition rules (paper, table A1). All are shares; more: dropped."""

    enabled: bool = True
    """Apply the family."""
    max_duplicate_lines: Share = 0.30
    """Lines that occurred before, among lines."""
    max_duplicate_paragraphs: Share = 0.30
    """Paragraphs that occurred before, among paragraphs."""
    max_duplicate_line_chars: Share = 0.20
    """Characters in lines that occurred before."""
    max_duplicate_paragraph_chars: Share = 0.20
    """Characters in paragraphs that occurred before."""
    max_top_ngram_chars: tuple[Share, ...] = (0.20, 0.18, 0.16)
    """Characters in the most frequent run of 2, 3, 4 tokens, if it occurs twice or more."""
    max_duplicate_ngram_chars: tuple[Share, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Characters in runs of 5, 6, ... 10 tokens that occurred before, overlaps counted once."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of each document of a block."""

    rule: str
    value: np.ndarray
    """The measured value, float64; NaN where the rule does not apply."""
    drop: np.ndarray
    """bool"""


def above(rule: str, value: np.ndarray, limit: float) -> Finding:
    """Drop where the value exceeds the limit."""
    value = np.asarray(value, dtype=np.float64)
    return Finding(rule, value, value > limit)


def below(rule: str, value: np.ndarray, limit: float) -> Finding:
    """Drop where the value is under the limit."""
    value = np.asarray(value, dtype=np.float64)
    return Finding(rule, value, value < limit)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 for empty documents."""
    return np.asarray(part, dtype=np.float64) / np.maximum(whole, 1)


def gopher_quality(block: TextBlock, options: GopherQualityOptions, lang: str) -> list[Finding]:
    """Nine rules, each one finding.

    Source: arXiv 2112.11446, appendix A1.1. Words are chunks of `TextBlock` with a letter or digit; for the share of
    words with a letter, all chunks.
    """
    chunks, lines, codes = block.chunks, block.lines, block.codes
    words = chunks.where(block.any_in(chunks, (block.classes != SIGN) & (block.classes > 0)))
    spaced = words.where(block.classes[words.start] != ALONE)
    mean_chars = share(spaced.per_doc(spaced.lengths), spaced.counts)
    mean_chars[spaced.counts * 2 <= words.counts] = np.nan  # comparisons with NaN are false: the rule does not apply
    ends = ellipsis_ends(block)
    bullets = np.isin(codes[lines.start], _BULLETS)
    findings = [
        below("gopher_few_words", words.counts, options.min_words),
        above("gopher_many_words", words.counts, options.max_words),
        below("gopher_short_words", mean_chars, options.min_mean_word_chars),
        above("gopher_long_words", mean_chars, options.max_mean_word_chars),
        above("gopher_hashes", share(block.count_chars(codes == ord("#")), chunks.counts), options.max_hash_ratio),
        above("gopher_ellipses", share(block.count_chars(ends), chunks.counts), options.max_ellipsis_ratio),
        above("gopher_bullet_lines", share(lines.per_doc(bullets), lines.counts), options.max_bullet_lines),
        above(
            "gopher_ellipsis_lines", share(lines.per_doc(ends[lines.end - 1]), lines.counts), options.max_ellipsis_lines
        ),
        below(
            "gopher_few_letters",
            share(chunks.per_doc(block.any_in(chunks, alpha_table()[codes])), chunks.counts),
            options.min_alpha_words,
        ),
    ]
    if lang in STOP_WORDS:
        findings.append(below("gopher_stop_words", stop_word_counts(block, lang), options.min_stop_words))
    return findings


def ellipsis_ends(block: TextBlock) -> np.ndarray:
    """Per character: the last one of "..." (dots in threes) or the ellipsis sign."""
    flags = block.codes == _ELLIPSIS
    dots = block.codes == ord(".")
    begins = dots.copy()
    begins[1:] &= ~dots[:-1]
    first = np.flatnonzero(begins)
    place = np.arange(len(dots)) - first[np.maximum(np.cumsum(begins) - 1, 0)] if len(first) else np.zeros(len(dots))
    return flags | (dots & (place % 3 == 2))


def stop_word_counts(block: TextBlock, lang: str) -> np.ndarray:
    """Different stop words in each document."""
    words = np.sort(TextBlock(STOP_WORDS[lang]).token_hashes)
    place, found = SortedIndex(words).find(block.token_hashes)
    pairs = np.unique(block.tokens.doc[found] * len(words) + place[found])
    return np.bincount(pairs // len(words), minlength=block.n_docs)


def gopher_repetition(block: TextBlock, options: GopherRepetitionOptions) -> list[Finding]:
    """Thirteen rules on repeated lines, paragraphs and runs of tokens.

    Source: arXiv 2112.11446, table A1. A run of n tokens is only looked for where the run of n - 1 repeats: the
    others cannot, and few are left after the pairs.
    """
    findings = []
    for name, spans, count_limit, char_limit in (
        ("paragraph", block.paragraphs, options.max_duplicate_paragraphs, options.max_duplicate_paragraph_chars),
        ("line", block.lines, options.max_duplicate_lines, options.max_duplicate_line_chars),
    ):
        later = duplicates(block, spans)
        chars = spans.per_doc(spans.lengths * later)
        findings.append(above(f"gopher_duplicate_{name}s", share(spans.per_doc(later), spans.counts), count_limit))
        findings.append(above(f"gopher_duplicate_{name}_chars", share(chars, block.n_chars), char_limit))
    tokens = block.tokens
    keys = join_hashes(tokens.doc.astype(np.uint64), block.token_hashes)
    first = np.arange(len(keys))
    stop = tokens.offsets[1:][tokens.doc]  # one past the last token of the same document
    top, repeated = options.max_top_ngram_chars, options.max_duplicate_ngram_chars
    for n in range(2, 5 + len(repeated)):
        fits = first + n <= stop[first]
        first, keys = first[fits], keys[fits]
        keys = join_hashes(keys, block.token_hashes[first + n - 1])
        groups = group(keys)
        sizes = groups.sizes
        if n - 2 < len(top):
            chars = _top_chars(block, groups, first, n)
            findings.append(above(f"gopher_top_{n}gram", share(chars, block.n_chars), top[n - 2]))
        if n >= 5:
            chars = _covered_chars(block, first[groups.later()], n)
            findings.append(above(f"gopher_duplicate_{n}gram", share(chars, block.n_chars), repeated[n - 5]))
        again = np.zeros(len(first), dtype=bool)
        again[groups.order] = np.repeat(sizes > 1, sizes)
        first, keys = first[again], keys[again]
    return findings


def duplicates(block: TextBlock, spans: Spans) -> np.ndarray:
    """Per span: the same text (case aside) occurred before in its document."""
    return group(join_hashes(spans.doc.astype(np.uint64), block.hashes(spans))).later()


def _top_chars(block: TextBlock, groups: Groups, first: np.ndarray, n: int) -> np.ndarray:
    """Characters in all occurrences of the most frequent run of n tokens of each document; ties: the longest."""
    tokens, best = block.tokens, np.zeros(block.n_docs, dtype=np.int64)
    many = np.flatnonzero(groups.sizes > 1)
    if len(many):
        head, sizes = first[groups.order[groups.begin[many]]], groups.sizes[many]
        chars = (tokens.end[head + n - 1] - tokens.start[head]) * sizes
        np.maximum.at(best, tokens.doc[head], (sizes << 40) + np.minimum(chars, (1 << 40) - 1))
    return best & ((1 << 40) - 1)


def _covered_chars(block: TextBlock, first: np.ndarray, n: int) -> np.ndarray:
    """Characters of the tokens that lie in any of the runs, per document; overlaps count once."""
    depth = np.zeros(len(block.tokens.start) + 1, dtype=np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, first + n, -1)
    return block.tokens.per_doc(block.tokens.lengths * (np.cumsum(depth[:-1]) > 0))
