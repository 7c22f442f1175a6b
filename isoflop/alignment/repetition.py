"""The repetition ratio: the share of answers that never end and loop over a span of text.

DeepSeek LLM reports it for greedy answers and states neither length nor thresholds (arXiv 2401.02954, section 5.1), so
these are ours. An answer repeats when it reached the limit of new tokens without stopping and its end is one span over
and over: at least MIN_REPEATS times, over at least MIN_TOKENS tokens in all. A span may be one token or a third of the
answer; the last repetition may be cut by the limit.
"""

from collections.abc import Sequence

import numpy as np

MIN_REPEATS = 3  # assumption: twice happens in lists and refrains
MIN_TOKENS = 24  # assumption: shorter runs are rows of dots or digits, not loops


def repeats(ids: Sequence[int], *, stopped: bool) -> bool:
    """Whether an answer loops; one that stopped by itself never counts."""
    return not stopped and looped_tokens(ids) >= MIN_TOKENS


def looped_tokens(ids: Sequence[int]) -> int:
    """Tokens at the end that are one span at least MIN_REPEATS times, 0 without such a span."""
    backwards = np.asarray(ids)[::-1]
    longest = 0
    for period in range(1, len(backwards) // MIN_REPEATS + 1):
        differs = np.flatnonzero(backwards[period:] != backwards[:-period])
        covered = period + (int(differs[0]) if len(differs) else len(backwards) - period)
        if covered >= MIN_REPEATS * period:
            longest = max(longest, covered)
    return longest
