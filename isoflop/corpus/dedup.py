"""What deduplication is asked to do, and what near-duplicate search can be expected to find.

MinHash signatures of 5-word shingles are cut into bands; two documents that share a band are candidates, and are
joined if the Jaccard similarity of their shingles reaches the threshold. With b bands of r rows a pair of similarity s
becomes a candidate with probability 1 - (1 - s^r)^b. The defaults, 16 x 8:

    s            0.5    0.6    0.7    0.8    0.9
    candidate    0.06   0.24   0.61   0.95   1.00

Source: Broder 1997 (MinHash); DeepSeek LLM 2.1 deduplicates across the whole corpus, parameters not stated.
"""

from dataclasses import dataclass

from isoflop.errors import RecipeError


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
    """Consecutive words per shingle; each character counts as one in scripts without spaces."""
    presplit: bool = False
    """Words are what lies between single spaces, case counts: for text that another splitter cut; half the time."""
    threshold: float = 0.7
    """Jaccard similarity at which a candidate pair counts as the same text; 0: every candidate does."""
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
