"""Long documents -> pieces, cut at paragraph ends so that two editions of a book fall into the same pieces again."""

import zlib
from collections.abc import Iterator


def cut_pieces(text: str, max_bytes: int) -> list[str]:
    """Cut at paragraph ends into pieces of at most `max_bytes`; joined they are the text.

    Where to cut depends on the paragraph just passed (one in eight may end a piece, by its hash), so two editions of
    a book fall into the same pieces again after they differed, and the near-duplicate search can find them.
    """
    if len(text) * 4 <= max_bytes or len(text.encode()) <= max_bytes:
        return [text]
    pieces, piece, size = [], [], 0
    for paragraph in _paragraphs(text, max_bytes):
        n_bytes = len(paragraph.encode())
        if size + n_bytes > max_bytes:
            pieces.append("".join(piece))
            piece, size = [], 0
        piece.append(paragraph)
        size += n_bytes
        if size > max_bytes // 4 and zlib.crc32(paragraph.strip().encode()) % 8 == 0:
            pieces.append("".join(piece))
            piece, size = [], 0
    if piece:
        pieces.append("".join(piece))
    return pieces


def _paragraphs(
    text: str, max_bytes: int, separators: tuple[str, ...] = ("\n\n", "\n", ". ", "\u3002")
) -> Iterator[str]:
    """Paragraphs with the blank line after them; what is longer than `max_bytes` is cut at line or sentence ends."""
    if not separators:
        step = max(1, max_bytes // 4)  # a character has at most four bytes
        yield from (text[start : start + step] for start in range(0, len(text), step))
        return
    first, *others = separators
    *parts, last = text.split(first)
    for part in [part + first for part in parts] + [last] * bool(last):
        if len(part.encode()) <= max_bytes:
            yield part
        else:
            yield from _paragraphs(part, max_bytes, tuple(others))
