"""The document rules of FineWeb, with the thresholds of its released pipeline as defaults.

Source: Penedo et al. 2024, arXiv 2406.17557, section 3.6: the share of lines that end with punctuation, the share of
characters in duplicated lines and the share of short lines; the list rule and the default thresholds are those of
datatrove's FineWebQualityFilter (the paper states 0.1 for duplicated lines, the released pipeline 0.01).
"""

from dataclasses import dataclass

import numpy as np

from isoflop.corpus.filter.gopher import Finding, above, below, duplicates, share
from isoflop.corpus.filter.text_block import TextBlock
from isoflop.recipe import NotNegative, NotNegativeInt, Share

SENTENCE_ENDS = np.array(
    [
        *(0x21, 0x2E, 0x3F, 0x3002, 0xFF01, 0xFF0E, 0xFF1F, 0xFF61, 0xFE52, 0xFE56, 0xFE57),
        *(0x0589, 0x061D, 0x061E, 0x061F, 0x06D4, 0x0964, 0x0965, 0x104A, 0x104B, 0x1362, 0x17D4, 0x17D5),
        *(0x203C, 0x203D, 0x2047, 0x2048, 0x2049, 0x2E2E, 0x2E3C),
    ],
    dtype=np.uint32,
)
"""Signs that end a sentence, of the scripts in wide use (Unicode property Sentence_Terminal)."""


@dataclass(frozen=True)
class FinewebOptions:
    """Thresholds of the document rules."""

    enabled: bool = True
    """Apply the family."""
    min_punctuated_lines: Share = 0.12
    """Share of lines that end with a sentence end; less: dropped."""
    max_short_lines: Share = 0.67
    """Share of lines of at most `short_line_chars`; more: dropped."""
    short_line_chars: NotNegativeInt = 30
    """Length of a short line."""
    max_duplicate_line_chars: Share = 0.01
    """Share of characters in lines that occurred before; more: dropped."""
    max_breaks_per_word: NotNegative = 0.3
    """Line breaks per word (lists have many); more: dropped."""


def fineweb(block: TextBlock, options: FinewebOptions) -> list[Finding]:
    """Four rules, each one finding. Source: arXiv 2406.17557, section 3.6, and datatrove (see the module)."""
    lines, codes = block.lines, block.codes
    breaks = block.count_chars(codes == 10)
    ended = np.isin(codes[lines.end - 1], SENTENCE_ENDS)
    short = lines.lengths <= options.short_line_chars
    repeated = lines.per_doc(lines.lengths * duplicates(block, lines))
    punctuated = share(lines.per_doc(ended), lines.counts)
    return [
        below("fineweb_unpunctuated_lines", punctuated, options.min_punctuated_lines),
        above("fineweb_short_lines", share(lines.per_doc(short), lines.counts), options.max_short_lines),
        above("fineweb_duplicate_lines", share(repeated, block.n_chars - breaks), options.max_duplicate_line_chars),
        above("fineweb_list", share(breaks, block.tokens.counts), options.max_breaks_per_word),
    ]
