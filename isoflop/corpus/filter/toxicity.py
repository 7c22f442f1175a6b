"""Offensive expressions: counted against a word list, masked where they are few, the document dropped where many.

Source: C4 (arXiv 1910.10683) drops a page with any word of a list; that is `max_per_thousand = 0` with that list. The
default here is milder, because the C4 rule removes medical, legal and minority texts (Dodge et al. 2021, arXiv
2104.08758): a document goes where expressions are frequent, and the few that stay are masked. The shipped lists are
short and our own; a list in another sense (threats, hatred without swear words) needs a classifier: see
`filter_quality` with seed documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.corpus.filter.gopher import Finding, above, share
from isoflop.corpus.filter.text_block import Spans, TextBlock, runs_of
from isoflop.errors import DataError
from isoflop.recipe import NotNegative

WORDS = Path(__file__).parents[2] / "presets" / "words"


@dataclass(frozen=True)
class ToxicityOptions:
    """What counts as offensive, and what happens."""

    enabled: bool = False
    """Apply the rule."""
    word_files: tuple[str, ...] = ()
    """Text files with one expression a line, # for comments; empty: the shipped lists (English, Chinese)."""
    max_per_thousand: NotNegative = 5.0
    """Expressions per 1000 words (characters in unspaced scripts); more: dropped. Assumption."""
    mask: bool = True
    """Replace expressions in documents that stay."""


Lexicon = dict[int, np.ndarray]
"""Expressions by the number of their tokens: sorted hashes."""


def load_lexicon(files: Sequence[str]) -> Lexicon:
    """Read word lists. Raises DataError where one can't be read or holds nothing."""
    expressions: list[str] = []
    for path in map(Path, files) if files else sorted(WORDS.glob("toxic.*.txt")):
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"toxicity.word_files: {path} can't be read as UTF-8 text ({error})") from error
        expressions += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    block = TextBlock(expressions)
    found: Lexicon = {}
    for n in sorted(set(block.tokens.counts.tolist()) - {0}):
        first, runs = runs_of(block.token_hashes, block.tokens.offsets, n)
        found[n] = np.unique(runs[block.tokens.counts[block.tokens.doc[first]] == n])
    if not found:
        raise DataError(
            f"toxicity.word_files = {list(files)} hold no expression; leave the key out for the shipped lists"
        )
    return found


def find_expressions(block: TextBlock, lexicon: Lexicon) -> Spans:
    """Where expressions stand, in order; of those that begin at one place the longest."""
    tokens = block.tokens
    length = np.zeros(len(tokens.start), dtype=np.int64)
    for n, hashes in lexicon.items():
        first, runs = runs_of(block.token_hashes, tokens.offsets, n)
        length[first[contains(hashes, runs)]] = n
    first = np.flatnonzero(length)
    return block.spans(tokens.start[first], tokens.end[first + length[first] - 1])


def toxicity(block: TextBlock, lexicon: Lexicon, options: ToxicityOptions) -> tuple[list[Finding], list[str]]:
    """One finding, and the texts with the expressions masked."""
    found = find_expressions(block, lexicon)
    words = block.tokens.per_doc(block.is_word)
    finding = above("toxic_words", 1000 * share(found.counts, words), options.max_per_thousand)
    texts = list(block.texts)
    if options.mask:
        for doc in np.flatnonzero((found.counts > 0) & ~finding.drop).tolist():
            first, stop = found.offsets[doc], found.offsets[doc + 1]
            begin = block.doc_start[doc]
            texts[doc] = _masked(texts[doc], found.start[first:stop] - begin, found.end[first:stop] - begin)
    return [finding], texts


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each key is among the sorted ones."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[place] == keys


def _masked(text: str, starts: np.ndarray, ends: np.ndarray) -> str:
    parts, done = [], 0
    for start, end in zip(starts.tolist(), ends.tolist()):
        if start >= done:
            parts += [text[done:start], "*" * (end - start)]
            done = end
    return "".join(parts) + text[done:]
