"""Bytes of files, plain or compressed, in bounded memory: whatever the file holds, a piece of it is returned or named.

`open_bytes` gives a stream whose `read` never returns more than asked for, so a small file that expands to terabytes
cannot fill the memory. Where a part is damaged (compressed.py) or expands beyond `max_expansion`, `read` raises
`BrokenStream` once; what can be read behind it comes with the next call. `split_lines` cuts such a stream at line feeds
and passes over lines that are too long without holding them.
"""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from isoflop.corpus.read.compressed import CHUNK_BYTES, BrokenStream, codec_of, find_damages, read_members
from isoflop.corpus.read.encoding import MARKS
from isoflop.recipe import Positive, Range

COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_FREE_BYTES = 64_000_000  # assumption: expansion is not looked at before this much came out


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on what one file or record may take; beyond them a record is set aside, never read into memory."""

    max_record_mb: Positive = 16.0
    """Longest JSON line, document, page or table cell, in MB; longer ones are set aside. Longer text files are cut."""
    max_expansion: Annotated[float, Range(at_least=1)] = 300.0
    """A compressed file may expand to this many times its size (text: 3 to 30 times); reading stops there."""

    @property
    def max_record_bytes(self) -> int:
        return int(self.max_record_mb * 1e6)


@contextmanager
def open_bytes(path: Path, limits: ReadLimits) -> Iterator["ByteStream"]:
    """A stream of the content of a file, decompressed where its first bytes say that it is compressed."""
    with path.open("rb", buffering=0) as raw:
        head = raw.read(8)
        codec = codec_of(head)
        if codec is None:
            if path.suffix.lower() in COMPRESSED_SUFFIXES and head and not _plain(head + (raw.read(4096) or b"")):
                raise BrokenStream(f"is not compressed as {path.suffix} says, and is no text")
            raw.seek(0)
            yield ByteStream(iter(lambda: raw.read(CHUNK_BYTES), b""))
            return
        largest = max(_FREE_BYTES, limits.max_expansion * path.stat().st_size)
        damages = find_damages(raw, codec, largest)
        yield ByteStream(_bounded(read_members(raw, codec, damages), largest, limits))


def _plain(sample: bytes) -> bool:
    """Whether bytes read like UTF-8 text (a last character may be cut)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return "\0" not in decoder.decode(sample)
    except UnicodeDecodeError:
        return False


def as_utf8(stream: "ByteStream") -> "ByteStream":
    """The stream without a byte order mark, brought to UTF-8 where the mark says that it is UTF-16 or UTF-32."""
    head, pieces = b"", stream.pieces()
    for piece in pieces:
        if isinstance(piece, BrokenStream):
            return ByteStream(_chained([head, piece], pieces))
        head += piece
        if len(head) >= 4:
            break
    for mark, encoding in MARKS:
        if head.startswith(mark):
            rest = _chained([head[len(mark) :]], pieces)
            return ByteStream(rest if encoding == "utf-8" else _transcoded(rest, encoding))
    return ByteStream(_chained([head], pieces))


def _chained(first: list["bytes | BrokenStream"], rest: Iterator["bytes | BrokenStream"]):
    yield from (piece for piece in first if piece)
    yield from rest


def _transcoded(pieces: Iterator["bytes | BrokenStream"], encoding: str) -> Iterator["bytes | BrokenStream"]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for piece in pieces:
        text = piece if isinstance(piece, BrokenStream) else decoder.decode(piece).encode("utf-8", "surrogatepass")
        if text:
            yield text
    if rest := decoder.decode(b"", final=True).encode():
        yield rest


class ByteStream:
    """Pieces of bytes as a file to read from, without seeking; `read(n)` returns at most n bytes, b"" at the end."""

    def __init__(self, pieces: Iterator[bytes | BrokenStream] | Iterator[bytes]):
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; with -1 one piece. Raises BrokenStream at a place that is not readable, once."""
        if not self._rest:
            piece = next(self._pieces, b"")
            if isinstance(piece, BrokenStream):
                raise piece
            self._rest = memoryview(piece)
        size = len(self._rest) if size < 0 else size
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    def pieces(self) -> Iterator[bytes | BrokenStream]:
        """All that is left, broken places as values."""
        while True:
            try:
                data = self.read()
            except BrokenStream as problem:
                yield problem
                continue
            if not data:
                return
            yield data

    def read_all(self, limit: int) -> bytes | None:
        """The rest of the stream, or None if it is longer than `limit` bytes. Raises BrokenStream."""
        parts, size = [], 0
        while data := self.read():
            size += len(data)
            if size > limit:
                return None
            parts.append(data)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line feed."""

    number: int
    data: bytes | None
    """None: longer than allowed, and passed over."""
    n_bytes: int
    ended: bool = True
    """A line feed came after it; False for the rest at the end of the stream."""


def split_lines(stream: ByteStream, max_bytes: int) -> Iterator[Line | BrokenStream]:
    """Lines of a stream in order; where it breaks, the unfinished line, the reason, then what is behind the place."""
    number, held, size = 1, [], 0

    def line(ended: bool) -> Line:
        return Line(number, b"".join(held) if size <= max_bytes else None, size, ended)

    for data in stream.pieces():
        if isinstance(data, BrokenStream):
            if size:
                yield line(ended=False)
                number, held, size = number + 1, [], 0
            yield data
            continue
        first, *others = data.split(b"\n")
        for part in (first, *others[:-1]) if others else ():
            size += len(part)
            held.append(part)
            yield line(ended=True)
            number, held, size = number + 1, [], 0
        rest = others[-1] if others else first
        size += len(rest)
        if size <= max_bytes:
            held.append(rest)
        else:
            held = []  # passed over: only its length is kept
    if size:
        yield line(ended=False)


def _bounded(
    pieces: Iterator[bytes | BrokenStream], largest: float, limits: ReadLimits
) -> Iterator[bytes | BrokenStream]:
    total = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            total += len(piece)
        if total > largest:
            yield BrokenStream(
                f"expands to more than max_expansion = {limits.max_expansion:g} times its size; if it is no bomb, "
                "raise limits.max_expansion"
            )
            return
        yield piece
