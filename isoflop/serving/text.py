"""Bytes of tokens to text, piece by piece: whole characters only, and nothing that may be the beginning of a stop.

The pieces joined are the text of all bytes up to the first stop. A character that is cut at the very end is left out;
bytes that are no UTF-8 become U+FFFD as soon as that is certain.
"""

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one continuation as it grows."""

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = [stop.encode() for stop in stops]
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._data = bytearray()
        self._given = 0
        self._text: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._text)

    def push(self, data: bytes) -> str:
        """Take in the bytes of the next token; returns the text that is certain by now. Sets `stopped` at a stop."""
        assert not self.stopped
        searched = max(0, len(self._data) - self._longest + 1)
        self._data += data
        found = [at for stop in self._stops if (at := self._data.find(stop, searched)) >= 0]
        if found:
            self.stopped = True
            del self._data[min(found) :]
            return self._give(len(self._data))
        return self._give(len(self._data) - self._held_back())

    def finish(self) -> str:
        """No more tokens: what was held back for a stop that did not come."""
        return "" if self.stopped else self._give(len(self._data))

    def _held_back(self) -> int:
        """Bytes at the end that a stop could begin with."""
        for n in range(min(self._longest - 1, len(self._data)), 0, -1):
            tail = bytes(self._data[-n:])
            if any(stop.startswith(tail) for stop in self._stops):
                return n
        return 0

    def _give(self, end: int) -> str:
        piece = self._decoder.decode(bytes(self._data[self._given : end]))
        self._given = end
        if piece:
            self._text.append(piece)
        return piece
