"""The different pieces of a stream of texts and how often each occurs: all that a tokenizer is trained on.

The encoder does the work: a piece's "token" is its number. Memory is that of the different pieces, and bounded: a text
that is too varied is refused, and its owner takes a thinner sample of it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tokenizers

from isoflop.corpus.blocks import blocks
from isoflop.errors import DataError
from isoflop.tokens.fast.encoder import WINDOW_CHARS, Encoder
from isoflop.tokens.rules import Rules, byte_symbols

MAX_PIECES = 1 << 22
"""Pieces that are recognised: beyond, counting starts anew, and a piece may be there twice, which changes nothing but
its memory."""


class TooVaried(DataError):
    """More different pieces than the memory is for."""


class Pieces(NamedTuple):
    """Different pieces one after the other, and, for each, its bytes and how often it occurs."""

    data: bytes
    sizes: np.ndarray
    counts: np.ndarray


def count_pieces(texts: Iterable[str], backend: tokenizers.Tokenizer, rules: Rules, max_bytes: int) -> Pieces:
    """Cut the texts as `backend` does by `rules`, count the pieces. Raises TooVaried."""
    byte_of_symbol = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    data, sizes = bytearray(), [np.zeros(0, dtype=np.int64)]
    n_pieces = 0

    def number(pieces: list[bytes]) -> list[list[int]]:
        nonlocal n_pieces
        data.extend(b"".join(pieces))
        if len(data) > max_bytes:
            raise TooVaried(f"the texts have more than {max_bytes / 1e6:.0f} MB of different pieces; give fewer texts")
        sizes.append(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)))
        n_pieces += len(pieces)
        return [[index] for index in range(n_pieces - len(pieces), n_pieces)]

    def whole(text: str) -> list[int]:
        assert backend.pre_tokenizer is not None
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [index for (index,) in number([bytes(map(byte_of_symbol.__getitem__, piece)) for piece in pieces])]

    encoder = Encoder(rules, number, whole, max_pieces=MAX_PIECES)
    counts = np.zeros(1 << 16, dtype=np.int64)
    for group in blocks(texts, len, WINDOW_CHARS):
        for numbers in encoder.encode(group):
            if n_pieces > len(counts):
                counts = np.concatenate([counts, np.zeros(2 * n_pieces - len(counts), dtype=np.int64)])
            found, n = np.unique(numbers, return_counts=True)
            counts[found] += n
    return Pieces(bytes(data), np.concatenate(sizes), counts[:n_pieces])
