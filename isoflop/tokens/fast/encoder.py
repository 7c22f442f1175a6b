"""Many texts to tokens: the same ids as the library's, many times faster, because each different piece is merged once.

The texts are cut with numpy (cuts.py). A run of characters that are written without spaces is cut further,
at every border that no token of the vocabulary crosses: no merge can cross it, so the ids stay the same, and nearly
every piece becomes one that was met before. Known pieces come from a table (pieces.py); only the others go
to the library. The table starts afresh when it is full, so memory is bounded however long and varied the text is.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise

import numpy as np
import tokenizers

from isoflop.corpus.blocks import blocks
from isoflop.tokens.fast.cuts import END, PROBED, class_table, ideographs, settled, starts
from isoflop.tokens.fast.pieces import PADDING, PieceTable
from isoflop.tokens.rules import Rules, byte_symbols

WINDOW_CHARS = 1 << 18  # measured: the arrays of a window stay in the processor's cache
MAX_PIECES = 1 << 20  # assumption: 100 to 150 MB
_BORDER_BITS = 22


class Encoder:
    """Encodes texts that are cut by `rules`.

    `merge` gives the ids of pieces that are not known yet, `whole` those of a text with characters of planes whose
    classes are not known. `crossed` says at which borders of characters a piece may be cut; without it none is.
    """

    def __init__(
        self,
        rules: Rules,
        merge: Callable[[list[bytes]], list[list[int]]],
        whole: Callable[[str], list[int]],
        crossed: np.ndarray | None = None,
        *,
        max_pieces: int = MAX_PIECES,
    ):
        self._rules: Rules = rules
        self._whole = whole
        self._crossed = crossed
        self.max_pieces = max_pieces
        """Pieces that are remembered; about 100 bytes each."""
        self._known = PieceTable(merge)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, int32."""
        found: list[np.ndarray] = []
        for group in blocks(texts, len, WINDOW_CHARS):
            found += [self._encode_long(group[0])] if len(group) == 1 else self._encode_group(group)
        return found

    def _encode_group(self, texts: list[str]) -> list[np.ndarray]:
        joined = "\0".join(["", *texts, ""])
        codes = _codes(joined)
        if _has_unknown_classes(codes):
            return [self._encode_long(text) for text in texts]
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        borders = np.append(0, np.cumsum(lengths + 1))
        kinds = class_table(self._rules)[codes]
        kinds[borders] = END
        ids, places, totals = self._ids(joined, codes, kinds, len(joined) - 1)
        return np.split(ids, totals[np.searchsorted(places, borders[1:-1])])

    def _encode_long(self, text: str) -> np.ndarray:
        """One text, by windows; where one ends in the middle of a piece, the next begins with that piece."""
        parts, position, width = [np.zeros(0, dtype=np.int32)], 0, WINDOW_CHARS
        while position < len(text):
            window = f"\0{text[position : position + width]}\0"
            codes = _codes(window)
            if _has_unknown_classes(codes):
                return np.array(self._whole(text), dtype=np.int32)
            kinds = class_table(self._rules)[codes]
            kinds[[0, -1]] = END
            end = len(window) - 1
            if position + end - 1 < len(text):
                end = settled(starts(kinds, self._rules), kinds, self._rules)
            if end <= 1:
                width *= 2  # a piece that is longer than the window
                continue
            parts.append(self._ids(window, codes, kinds, end)[0])
            position, width = position + end - 1, WINDOW_CHARS
        return np.concatenate(parts)

    def _ids(
        self, text: str, codes: np.ndarray, kinds: np.ndarray, end: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of text[:end], where pieces begin, and how many tokens come before each of them and after the last."""
        if len(self._known) > self.max_pieces:
            self._known.clear()
        cuts = starts(kinds, self._rules)
        is_ascii = codes.dtype == np.uint8
        if self._crossed is not None and not is_ascii:
            inside = kinds == ideographs(self._rules)
            second = np.flatnonzero(inside[1:] & inside[:-1]) + 1
            cuts[second] |= ~self._crossed[_border(codes[second - 1], codes[second])]
        places = np.flatnonzero(cuts[:end])
        stops = np.append(places[1:], end)
        pieces = kinds[places] != END
        places, stops = places[pieces], stops[pieces]
        begins, ends = places, stops
        if not is_ascii:
            offsets = _byte_offsets(codes)
            begins, ends = offsets[places], offsets[stops]
        ids, counts = self._known.tokens(text.encode() + PADDING, begins, ends - begins)
        return ids, places, np.append(0, np.cumsum(counts))


def library_encoder(backend: tokenizers.Tokenizer, rules: Rules, token_bytes: list[bytes]) -> Encoder:
    """Encodes with the merges of `backend`, whose texts are cut by `rules`; `token_bytes` has the bytes of every id."""
    symbols = dict(enumerate(byte_symbols()))

    def merge(pieces: list[bytes]) -> list[list[int]]:
        merged = backend.model.tokenize  # without what the library does around it: half the time
        text = b"".join(pieces).decode("latin-1").translate(symbols)
        ends = list(accumulate(map(len, pieces), initial=0))
        return [[token.id for token in merged(text[start:end])] for start, end in pairwise(ends)]

    def whole(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    return Encoder(rules, merge, whole, _crossed_borders(token_bytes))


def _codes(text: str) -> np.ndarray:
    """Code points: uint8 where the text is ASCII, else uint32."""
    return np.frombuffer(text.encode(), np.uint8) if text.isascii() else np.frombuffer(text.encode("utf-32-le"), "<u4")


def _has_unknown_classes(codes: np.ndarray) -> bool:
    return codes.dtype != np.uint8 and int(codes.max()) >= PROBED


def _byte_offsets(codes: np.ndarray) -> np.ndarray:
    """Where each character begins in UTF-8."""
    sizes = (codes >= 0x80).view(np.uint8) + (codes >= 0x800).view(np.uint8) + (codes >= 0x10000).view(np.uint8) + 1
    return np.cumsum(sizes, dtype=np.int64) - sizes


def _crossed_borders(token_bytes: list[bytes]) -> np.ndarray:
    """A table of `_border`: whether some token may hold the end of one 3-byte character and the beginning of the next.

    Tokens may begin and end within a character: then all characters with that end or beginning count. A table entry
    that stands for several borders may say yes too often, which costs nothing but a cut.
    """
    crossed = np.zeros(1 << _BORDER_BITS, dtype=bool)
    seen = set()
    for data in token_bytes:
        heads = [place for place, byte in enumerate(data) if byte & 0xC0 != 0x80]
        for before, place, after in zip([0, *heads], heads, [*heads[1:], len(data)]):
            if place:
                seen.add((data[before:place], data[place:after]))
    for left, right in seen:
        ends, begins = _characters_ending(left), _characters_beginning(right)
        if len(ends) * len(begins) > len(crossed):
            crossed[:] = True
        elif len(ends) and len(begins):
            crossed[_border(ends[:, None], begins[None, :])] = True
    return crossed


def _border(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Place of two neighbouring 3-byte characters (uint32) in the table."""
    return ((left << np.uint32(16) | right) * np.uint32(0x9E3779B1)) >> np.uint32(32 - _BORDER_BITS)


def _characters_ending(data: bytes) -> np.ndarray:
    """Characters of 3 bytes that are `data` or end with these one or two continuation bytes."""
    if data[0] & 0xF0 == 0xE0 and len(data) == 3:
        return np.array([ord(data.decode())], dtype=np.uint32)
    if any(byte & 0xC0 != 0x80 for byte in data) or len(data) > 2:
        return np.zeros(0, dtype=np.uint32)
    step = 64 ** len(data)
    tail = sum((byte & 0x3F) * 64 ** (len(data) - 1 - place) for place, byte in enumerate(data))
    return np.arange(tail, 0x10000, step, dtype=np.uint32)


def _characters_beginning(data: bytes) -> np.ndarray:
    """Characters of 3 bytes whose UTF-8 begins with `data`."""
    if data[0] & 0xF0 != 0xE0:
        return np.zeros(0, dtype=np.uint32)
    first = (data[0] & 0x0F) << 12 | sum((byte & 0x3F) << 6 * (1 - place) for place, byte in enumerate(data[1:]))
    return np.arange(first, first + 64 ** (3 - len(data)), dtype=np.uint32)
