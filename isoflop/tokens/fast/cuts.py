"""Where a text is cut before merging, found for many characters at once with numpy instead of a regular expression.

Both rule sets of `isoflop.tokens.bpe` decide by classes of characters, so the cuts are a few comparisons of each
character's class with its neighbours'. In: the class of every character of several texts, END before, between and
after them. Out: a flag per character that says whether a piece starts there. Texts never share a piece. That the cuts
are those of the regular expressions is tested; the classes of the rules v3 are asked of the library that runs them.
"""

import re
from functools import lru_cache

import numpy as np
from tokenizers import Regex, pre_tokenizers

from isoflop.tokens.rules import CJK, CJK_V3, DIGIT, LETTER, PUNCTUATION, SPACE, Rules

PROBED = 0x34000
"""Classes are known below this character; the planes above hold private and a few special characters."""
END = 0

# v1: a change of class is a cut; from V1_SINGLE on every character is a piece
V1_OTHER, V1_CJK, V1_LETTER, V1_PUNCTUATION, V1_SPACE, V1_SINGLE = range(1, 7)

# v3: a change of class // 2 is a cut
LETTER_OR_MARK, ASCII_LETTER, SYMBOL, ASCII_SYMBOL, BLANK, PLAIN_SPACE = range(2, 8)
NUMBER, IDEOGRAPH, BREAK, OTHER = 8, 10, 12, 14


@lru_cache(maxsize=2)
def class_table(rules: Rules) -> np.ndarray:
    """Class of every character below PROBED, uint8."""
    return _v1_table() if rules == "v1" else _v3_table()


def ideographs(rules: Rules) -> int:
    """The class of characters that are written without spaces."""
    return V1_CJK if rules == "v1" else IDEOGRAPH


def starts(kinds: np.ndarray, rules: Rules) -> np.ndarray:
    """Whether a piece starts at each character, bool; END counts as a piece.

    `kinds` holds classes, uint8, with END at both ends and between texts.
    """
    return _v1_starts(kinds) if rules == "v1" else _v3_starts(kinds)


def settled(found: np.ndarray, kinds: np.ndarray, rules: Rules) -> int:
    """Where a text must be taken up again if it goes on after these characters: the last start that is sure; 0: none.

    A start depends on the character after it, and in white space on where that ends.
    """
    last = len(kinds) - 1  # the END
    space = (kinds == V1_SPACE) if rules == "v1" else (kinds >> 1 == BLANK >> 1) | (kinds == BREAK)
    solid = np.flatnonzero(~space[:last])
    sure = np.flatnonzero(found[: max(0, int(solid[-1]) - 1)]) if len(solid) else solid
    return int(sure[-1]) if len(sure) else 0


def _v1_starts(kinds: np.ndarray) -> np.ndarray:
    found = np.empty(len(kinds), dtype=bool)
    found[0] = True
    np.not_equal(kinds[1:], kinds[:-1], out=found[1:])
    found |= kinds >= V1_SINGLE
    word = (kinds == V1_LETTER) | (kinds == V1_PUNCTUATION)
    before = np.flatnonzero(word[1:] & (kinds[:-1] == V1_SPACE))  # the last space belongs to the word after it
    found[before] = True
    found[before + 1] = False
    return found


def _v3_starts(kinds: np.ndarray) -> np.ndarray:
    groups = kinds >> 1
    changes = np.empty(len(kinds), dtype=bool)
    changes[0] = True
    np.not_equal(groups[1:], groups[:-1], out=changes[1:])
    found = changes.copy()
    at = np.flatnonzero(changes)
    group, kind_before, group_before = groups[at], kinds[at - 1], groups[at - 1]  # at[0] = 0 wraps to the last END
    _cut_numbers(found, groups, changes)

    words = group == LETTER_OR_MARK >> 1
    joins = at[words & ((group_before == BLANK >> 1) | (group_before == OTHER >> 1))]  # "x word": " word"
    found[joins], found[joins - 1] = False, True
    symbols = group == SYMBOL >> 1
    joins = at[symbols & (kind_before == PLAIN_SPACE)]  # only the plain space joins a symbol
    found[joins], found[joins - 1] = False, True
    _join_ascii_words(found, kinds, changes, at[words & (kind_before == ASCII_SYMBOL)])
    _cut_white_space(found, groups, at)
    return found


def _cut_numbers(found: np.ndarray, groups: np.ndarray, changes: np.ndarray) -> None:
    """Numbers in threes from where they begin."""
    digits = np.flatnonzero(groups == NUMBER >> 1)
    first = changes[digits]
    begin = digits[first][np.cumsum(first) - 1]
    found[digits] = (digits - begin) % 3 == 0


def _join_ascii_words(found: np.ndarray, kinds: np.ndarray, changes: np.ndarray, words: np.ndarray) -> None:
    """A single ASCII symbol takes the ASCII letters after it, unless the symbol follows a plain space."""
    words = words[kinds[words] == ASCII_LETTER]
    words = words[changes[words - 1] & (kinds[words - 2] != PLAIN_SPACE)]
    found[words] = False
    ends = np.flatnonzero((kinds[1:] == LETTER_OR_MARK) & (kinds[:-1] == ASCII_LETTER)) + 1
    if len(ends) and len(words):  # where the ASCII letters end, the letters after them are a piece of their own
        is_ascii = kinds == ASCII_LETTER
        runs = np.flatnonzero(is_ascii[1:] & ~is_ascii[:-1]) + 1
        run_of_end = runs[np.searchsorted(runs, ends) - 1]
        found[ends[np.isin(run_of_end, words)]] = True


def _cut_white_space(found: np.ndarray, groups: np.ndarray, at: np.ndarray) -> None:
    """Up to the last line break of a run; then all but the last space; then, if nothing joined it, that space."""
    group, before = groups[at], groups[at - 1]
    ends = np.append(at[1:], len(groups))
    after = groups[np.minimum(ends, len(groups) - 1)]

    breaks = group == BREAK >> 1
    taken = breaks & (before == SYMBOL >> 1)  # by the symbols before them
    found[at[breaks & ((before == SYMBOL >> 1) | (before == BLANK >> 1))]] = False

    spaces = group == BLANK >> 1
    free_break_before = np.append(False, (breaks & ~taken)[:-1])
    found[at[spaces & (after == BREAK >> 1) & free_break_before]] = False
    follows = (after == LETTER_OR_MARK >> 1) | (after == SYMBOL >> 1) | (after == OTHER >> 1)
    found[ends[spaces & follows] - 1] = True


def _v1_table() -> np.ndarray:
    characters = "".join(map(chr, range(0x10000)))  # the classes have no member above
    table = np.full(PROBED, V1_OTHER, dtype=np.uint8)
    for ranges, kind in (
        (CJK, V1_CJK),
        (LETTER, V1_LETTER),
        (PUNCTUATION, V1_PUNCTUATION),
        (SPACE, V1_SPACE),
        (rf"\r\n{DIGIT}", V1_SINGLE),
    ):
        for match in re.finditer(f"[{ranges}]+", characters):
            table[match.start() : match.end()] = kind
    return table


def _v3_table() -> np.ndarray:
    table = np.full(PROBED, OTHER, dtype=np.uint8)
    ascii_letter, ascii_symbol = _members("[A-Za-z]"), _members(r"[!-/:-@\[-`{-~]")
    for members, kind in (  # a later line wins
        (_members(r"[\p{L}\p{M}]"), LETTER_OR_MARK),
        (_members(r"[\p{P}\p{S}]"), SYMBOL),
        (_members(r"\s"), BLANK),
        (_members(r"[\r\n]"), BREAK),
        (_members(f"[{CJK_V3}]"), IDEOGRAPH),
        (_members(r"\p{N}"), NUMBER),
        (ascii_letter, ASCII_LETTER),
        (ascii_symbol, ASCII_SYMBOL),
    ):
        table[members] = kind
    table[ord(" ")] = PLAIN_SPACE
    return table


def _members(pattern: str) -> np.ndarray:
    """Characters below PROBED that match, as the library's own regular expressions and Unicode tables see it."""
    points = np.r_[0:0xD800, 0xE000:PROBED]  # no surrogates in a text
    text = points.astype("<u4").tobytes().decode("utf-32-le")
    others = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed").pre_tokenize_str(text)
    matches = np.ones(len(points), dtype=bool)
    for _, (begin, end) in others:
        matches[begin:end] = False
    return points[matches]
