"""What deduplication is asked to do, and what near-duplicate search can be expected to find.

MinHash signatures of 5-word shingles are cut into bands; two documents that share a band are candidates, and are
joined if the Jaccard similarity of their shingles reaches the threshold. With b bands of r rows a pair of similarity s
becomes a candidate with probability 1 - (1 - s^r)^b. The defaults, 16 x 8:

    s            0.5    0.6    0.7    0.8    0.9
    candidate    0.06   0.24   0.61   0.95   1.00

Source: Broder 1997 (MinHash); DeepSeek LLM 2.1 deduplicates across the whole corpus, parameters not stated.
"""

from dataclasses import dataclass
from typing import Any

from isoflop.errors import RecipeError
from isoflop.recipe import NotNegativeInt, PositiveInt, Seed, Share, check_ranges


@dataclass(frozen=True)
class DedupOptions:
    """Near-duplicate search; see the module for what the numbers mean."""

    near: bool = True
    """Look for near-duplicates; exact ones are always removed."""
    bands: PositiveInt = 16
    """Bands of the signature."""
    rows: PositiveInt = 8
    """Hash values per band."""
    shingle_words: PositiveInt = 5
    """Consecutive words per shingle; each character counts as one in scripts without spaces."""
    presplit: bool = False
    """Words are what lies between single spaces, case counts: for text that another splitter cut; half the time."""
    threshold: Share = 0.7
    """Jaccard similarity at which a candidate pair counts as the same text; 0: every one does; usual: 0.7 to 0.9."""
    seed: Seed = 1
    """Seed of the hash functions."""
    max_shared_share: Share = 0.2
    """Training documents with more than this share of their text in lines of validation documents are removed."""
    min_line_chars: PositiveInt = 40
    """Shorter lines are never compared."""
    max_line_copies: NotNegativeInt = 0
    """Of equal lines so many stay, in any documents; 0: all."""
    min_passage_bytes: NotNegativeInt = 0
    """Strings of so many bytes that occur a second time are cut out, wherever they lie; 0: none, usual: 200."""


def candidate_probability(similarity: Any, bands: int, rows: int) -> Any:
    """Chance that a pair of this Jaccard similarity (a number or an array) shares a band."""
    return 1.0 - (1.0 - similarity**rows) ** bands


def check_options(options: DedupOptions) -> None:
    """Raises RecipeError for values outside their ranges, and passages so short that all text has them."""
    check_ranges(options, "dedup.")
    if options.min_passage_bytes and options.min_passage_bytes < 16:
        raise RecipeError(
            f"dedup.min_passage_bytes = {options.min_passage_bytes} must be 0 (off) or at least 16; 200 is usual"
        )
