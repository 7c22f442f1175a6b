"""The rules of C4: lines that are removed from a page, and pages that are dropped.

Source: Raffel et al. 2020, JMLR 21 (arXiv 1910.10683), section 2.2, with the thresholds of its published code
(5 words in a line, 3 sentences in a page; the first arXiv version has 3 and 5) and the rules that only the code has:
policy phrases, citation marks, overlong words. The rule on words of a list is `filter_toxicity`; the removal of
repeated three-sentence spans belongs to deduplication. Sentence ends of Chinese and Japanese count too (ours).
"""

import re
from dataclasses import dataclass

import numpy as np

from isoflop.corpus.filter.fineweb import SENTENCE_ENDS
from isoflop.corpus.filter.gopher import Finding, below
from isoflop.corpus.filter.text_block import ALONE, SPACE, TextBlock
from isoflop.recipe import NotNegativeInt, PositiveInt

_LINE_ENDS = np.array([*map(ord, ".?!\"'"), *SENTENCE_ENDS[3:], 0x201D, 0x2019, 0x300D, 0x300F], dtype=np.uint32)
_CLOSING = np.array([*map(ord, "\"')]"), 0x201D, 0x2019, 0x300D, 0x300F, 0xFF09], dtype=np.uint32)
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LINE_PHRASES = re.compile("|".join(map(re.escape, ("javascript", *_POLICY))))
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_ASCII_LOWER = np.arange(0x110000, dtype=np.uint32)
_ASCII_LOWER[65:91] += 32


@dataclass(frozen=True)
class C4Options:
    """Which lines and pages go (paper and code)."""

    enabled: bool = False
    """Apply the family. It edits texts: for web pages, not for code, mathematics or verse."""
    terminal_punctuation: bool = True
    """Remove lines that do not end with a sentence end or a quotation mark, or that end with "...". FineWeb: false."""
    min_line_words: NotNegativeInt = 5
    """Remove lines with fewer words (characters in unspaced scripts)."""
    max_word_chars: PositiveInt = 1000
    """Remove lines with a longer word."""
    phrases: bool = True
    """Remove lines that say "javascript" or name a policy on terms, privacy or cookies."""
    citations: bool = True
    """Take marks like [12], [edit] and [citation needed] out of lines."""
    curly_bracket: bool = True
    """Drop pages with a curly bracket."""
    lorem_ipsum: bool = True
    """Drop pages with "lorem ipsum"."""
    min_sentences: NotNegativeInt = 3
    """Drop pages with fewer sentences in the lines that stay."""


def c4(block: TextBlock, options: C4Options) -> tuple[list[Finding], list[str], np.ndarray]:
    """Findings on pages, the texts with their lines removed, and how many lines each rule removed (rule -> lines).

    Returns (findings, texts, removed lines per document).
    """
    lines, codes = block.lines, block.codes
    lowered = _ASCII_LOWER[codes].tobytes().decode("utf-32-le")
    last = codes[lines.end - 1]
    dots = (last == ord(".")) & (lines.lengths >= 3)
    dots[dots] &= (codes[lines.end[dots] - 2] == ord(".")) & (codes[lines.end[dots] - 3] == ord("."))
    remove = np.zeros(len(lines.start), dtype=bool)
    if options.terminal_punctuation:
        remove |= ~np.isin(last, _LINE_ENDS) | dots
    chunks = block.chunks
    first, stop = np.searchsorted(chunks.start, lines.start), np.searchsorted(chunks.start, lines.end)
    remove |= stop - first < options.min_line_words
    long_words = chunks.start[chunks.lengths > options.max_word_chars]
    remove[np.searchsorted(lines.start, long_words, side="right") - 1] = True
    if options.phrases:
        found = np.array([match.start() for match in _LINE_PHRASES.finditer(lowered)], dtype=np.int64)
        remove[np.searchsorted(lines.start, found, side="right") - 1] = True
    ends = sentence_ends(block)
    sums = np.concatenate([[0], np.cumsum(ends)])
    sentences = np.maximum(sums[lines.end] - sums[lines.start], 1) * ~remove
    findings = []
    if options.curly_bracket:
        findings.append(_present("c4_curly_bracket", block.count_chars(codes == ord("{"))))
    if options.lorem_ipsum:
        findings.append(_present("c4_lorem_ipsum", _occurrences(block, lowered, "lorem ipsum")))
    findings.append(below("c4_few_sentences", lines.per_doc(sentences), options.min_sentences))
    return findings, _without(block, remove, options), lines.per_doc(remove)


def sentence_ends(block: TextBlock) -> np.ndarray:
    """Per character: ends a sentence: a run of end signs before white space, a closing mark or an unspaced script."""
    codes, classes = block.codes, block.classes
    ends = np.isin(codes, SENTENCE_ENDS)
    follows = np.ones(len(codes), dtype=bool)
    follows[:-1] = (classes[1:] == SPACE) | (classes[1:] == ALONE) | np.isin(codes[1:], _CLOSING)
    follows |= codes > 0x3000  # a full-width sign ends a sentence whatever comes
    again = np.zeros(len(codes), dtype=bool)
    again[:-1] = ends[1:]
    return ends & follows & ~again


def _without(block: TextBlock, remove: np.ndarray, options: C4Options) -> list[str]:
    lines, texts = block.lines, []
    for doc, text in enumerate(block.texts):
        first, stop = lines.offsets[doc], lines.offsets[doc + 1]
        if remove[first:stop].any():
            begin = block.doc_start[doc]
            spans = zip(lines.start[first:stop] - begin, lines.end[first:stop] - begin, remove[first:stop])
            text = "\n".join(text[left:right] for left, right, gone in spans if not gone)
        texts.append(_CITATION.sub("", text) if options.citations and "[" in text else text)
    return texts


def _present(rule: str, counts: np.ndarray) -> Finding:
    return Finding(rule, counts.astype(np.float64), counts > 0)


def _occurrences(block: TextBlock, lowered: str, phrase: str) -> np.ndarray:
    counts, at = np.zeros(block.n_docs, dtype=np.int64), lowered.find(phrase)
    while at >= 0:
        counts[np.searchsorted(block.doc_start, at, side="right") - 1] += 1
        at = lowered.find(phrase, at + 1)
    return counts
