"""A memory of pieces: bytes of a piece -> its tokens, for hundreds of thousands of pieces in a few numpy calls.

A piece of up to 15 bytes is its own key: eight bytes in one 64-bit number, seven and the length in another, so equal
keys are equal pieces. Keys lie in an open-addressing hash table of numpy arrays. Longer pieces are in a dictionary.
Rows are numbers of pieces; the tokens of row r are `ids[first[r] : first[r] + count[r]]`.
"""

from collections.abc import Callable

import numpy as np

PACKED = 15
"""Bytes that fit beside the length in two 64-bit numbers."""
MAX_KEPT_BYTES = 128  # assumption: a longer piece is rarely met again and not remembered
PADDING = bytes(PACKED + 1)
"""What `data` must end with, so that keys can be read at the last piece."""

_SIZES = np.arange(PACKED + 1)
_MASK_LOW, _MASK_HIGH = (
    np.array([(1 << 8 * int(n)) - 1 for n in np.clip(_SIZES - skipped, 0, 8)], dtype=np.uint64) for skipped in (0, 8)
)
_SIZE_BYTE = _SIZES.astype(np.uint64) << np.uint64(56)
_MIX_LOW, _MIX_HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class PieceTable:
    """Pieces and their tokens. `encode` gives the tokens of pieces that are not known yet."""

    def __init__(self, encode: Callable[[list[bytes]], list[list[int]]]):
        self._encode = encode
        self.clear()

    def clear(self) -> None:
        self._low, self._high = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
        self._row = np.zeros(0, dtype=np.int32)
        self._n_keys = 0
        self._grow(1 << 12)
        self._long: dict[bytes, int] = {}
        self._n_rows = self._n_ids = 0
        self._first, self._count = np.zeros(1 << 12, dtype=np.int32), np.zeros(1 << 12, dtype=np.int32)
        self._ids = np.zeros(1 << 14, dtype=np.int32)

    def __len__(self) -> int:
        return self._n_rows

    def tokens(self, data: bytes, begins: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the pieces data[begin : begin + size] one after the other, and the number of tokens of each.

        `data` ends with PADDING.
        """
        rows = np.empty(len(begins), dtype=np.int32)
        short = sizes <= PACKED
        all_short = bool(short.all())
        rows[short] = self._rows_of_short(
            data, begins if all_short else begins[short], sizes if all_short else sizes[short]
        )
        if not all_short:
            rows[~short] = self._rows_of_long(data, begins[~short], sizes[~short])
        counts = self._count[rows]
        ends = np.cumsum(counts, dtype=np.int64)
        if not len(ends):
            return np.zeros(0, dtype=np.int32), counts
        places = np.repeat(self._first[rows] - (ends - counts), counts)
        places += np.arange(ends[-1])
        return self._ids[places], counts

    def _rows_of_short(self, data: bytes, begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        words = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))  # eight bytes from every byte on
        low, high = words[begins] & _MASK_LOW[sizes], words[begins + 8] & _MASK_HIGH[sizes] | _SIZE_BYTE[sizes]
        rows = self._find(low, high)
        new = np.flatnonzero(rows < 0)
        if len(new):
            order = new[np.lexsort((low[new], high[new]))]
            is_first = np.append(True, (low[order[1:]] != low[order[:-1]]) | (high[order[1:]] != high[order[:-1]]))
            one_each = order[is_first]
            pieces = [data[b : b + n] for b, n in zip(begins[one_each].tolist(), sizes[one_each].tolist())]
            added = self._learn(pieces)
            self._insert(low[one_each], high[one_each], added)
            rows[order] = added[np.cumsum(is_first) - 1]
        return rows

    def _rows_of_long(self, data: bytes, begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        pieces = [data[b : b + n] for b, n in zip(begins.tolist(), sizes.tolist())]
        new = list({piece: None for piece in pieces if piece not in self._long})
        added = dict(zip(new, self._learn(new).tolist()))
        rows = [self._long[piece] if piece in self._long else added[piece] for piece in pieces]
        self._long.update((piece, row) for piece, row in added.items() if len(piece) <= MAX_KEPT_BYTES)
        return np.array(rows, dtype=np.int32)

    def _learn(self, pieces: list[bytes]) -> np.ndarray:
        """New rows for the pieces."""
        found = self._encode(pieces)
        counts = np.fromiter(map(len, found), dtype=np.int32, count=len(found))
        rows = np.arange(self._n_rows, self._n_rows + len(found), dtype=np.int32)
        n_rows, n_ids = self._n_rows + len(found), self._n_ids + int(counts.sum())
        self._first, self._count = _roomy(self._first, n_rows), _roomy(self._count, n_rows)
        self._ids = _roomy(self._ids, n_ids)
        self._count[rows] = counts
        self._first[rows] = self._n_ids + np.cumsum(counts) - counts
        self._ids[self._n_ids : n_ids] = np.fromiter((i for ids in found for i in ids), dtype=np.int32)
        self._n_rows, self._n_ids = n_rows, n_ids
        return rows

    def _slots(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return (((low ^ high * _MIX_HIGH) * _MIX_LOW) >> self._shift).astype(np.int64)

    def _find(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Row of each key, -1 where there is none."""
        slots = self._slots(low, high)
        rows = self._row[slots]
        wrong = np.flatnonzero((rows >= 0) & ((self._low[slots] != low) | (self._high[slots] != high)))
        while len(wrong):  # the slot has another key: it may lie in the next
            slots[wrong] = (slots[wrong] + 1) % len(self._row)
            here = slots[wrong]
            rows[wrong] = self._row[here]
            same = (self._low[here] == low[wrong]) & (self._high[here] == high[wrong])
            wrong = wrong[~same & (rows[wrong] >= 0)]
        return rows

    def _insert(self, low: np.ndarray, high: np.ndarray, rows: np.ndarray) -> None:
        """Keys that are not there yet, each once."""
        if 2 * (self._n_keys + len(rows)) > len(self._row):
            self._grow(4 * (self._n_keys + len(rows)))
        self._n_keys += len(rows)
        slots = self._slots(low, high)
        left = np.arange(len(rows))
        while len(left):
            free = self._row[slots[left]] < 0
            self._row[slots[left[free]]] = rows[left[free]]  # of several keys for one slot the last stays
            placed = self._row[slots[left]] == rows[left]
            here = left[placed]
            self._low[slots[here]], self._high[slots[here]] = low[here], high[here]
            left = left[~placed]
            slots[left] = (slots[left] + 1) % len(self._row)

    def _grow(self, at_least: int) -> None:
        low, high, row = self._low, self._high, self._row
        size = 1 << (at_least - 1).bit_length()
        self._shift = np.uint64(65 - size.bit_length())
        self._low, self._high = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint64)
        self._row = np.full(size, -1, dtype=np.int32)
        kept = np.flatnonzero(row >= 0)
        self._n_keys = 0
        if len(kept):
            self._insert(low[kept], high[kept], row[kept])


def _roomy(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a copy with twice the room needed."""
    if size <= len(array):
        return array
    larger = np.zeros(2 * size, dtype=array.dtype)
    larger[: len(array)] = array
    return larger
