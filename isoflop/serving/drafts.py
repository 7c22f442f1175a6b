"""Guesses of the next tokens from the text itself: what followed the last words when they stood there before.

Drafts only cost or save time. Whatever they are, the text is the one that the model would have drawn without them.
"""

from array import array
from collections.abc import Sequence


def look_up(tokens: Sequence[int], n_drafts: int, *, longest: int = 4, window: int = 4096) -> list[int]:
    """Up to `n_drafts` tokens that followed the latest earlier occurrence of the last `longest` tokens, or of fewer.

    Looks back over `window` tokens; without any repetition of the last token there is nothing to guess.
    """
    recent = array("q", tokens[-window:])
    data, size = recent.tobytes(), recent.itemsize
    for n in range(min(longest, len(recent) - 1), 0, -1):
        found = _last_before_end(data, data[-n * size :], size)
        if found is not None:
            return recent[found + n : found + n + n_drafts].tolist()
    return []


def _last_before_end(data: bytes, ending: bytes, size: int) -> int | None:
    """Index of the last place of `ending` before the one at the end, counted in numbers of `size` bytes."""
    end = len(data) - 1
    while (at := data.rfind(ending, 0, end)) >= 0:
        if at % size == 0:
            return at // size
        end = at + len(ending) - 1  # between two numbers
    return None
