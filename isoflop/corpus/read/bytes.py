"""Bytes of files, plain or compressed, in bounded memory: whatever the file holds, a piece of it is handed on or named.

`open_bytes` gives a stream whose `read` never returns more than asked for, so a small file that expands to terabytes
cannot fill the memory, and that ends with `BrokenStream` after the last good byte where a file is truncated, damaged
or expands beyond `max_expansion`. `split_lines` cuts such a stream at line feeds and passes over lines that are too
long without holding them.
"""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import zstandard

from isoflop.recipe import Positive, Range

CHUNK_BYTES = 1 << 20
COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd")
_FREE_BYTES = 64_000_000  # assumption: expansion is not looked at before this much came out
_ZSTD_MAGIC = 0xFD2FB528


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on what one file or record may take; beyond them a record is set aside, never read into memory."""

    max_record_mb: Positive = 16.0
    """Longest JSON line, document, page or table cell, in MB; longer ones are set aside. Longer text files are cut."""
    max_expansion: Annotated[float, Range(at_least=1)] = 300.0
    """A compressed file may expand to this many times its size (text: 3 to 30 times); reading stops there."""

    @property
    def max_record_bytes(self) -> int:
        """`max_record_mb` in bytes."""
        return int(self.max_record_mb * 1e6)


class BrokenStream(OSError):
    """The file is not readable from here on; what came before is good."""


@contextmanager
def open_bytes(path: Path, limits: ReadLimits) -> Iterator["ByteStream"]:
    """A stream of the content of a file, decompressed by its suffix (.gz, .zst)."""
    with path.open("rb", buffering=0) as raw:
        suffix = path.suffix.lower()
        if suffix == ".gz":
            pieces = _gunzip(raw)
        elif suffix in COMPRESSED_SUFFIXES:
            pieces = _unzstd(raw)
        else:
            yield ByteStream(iter(lambda: raw.read(CHUNK_BYTES), b""))
            return
        largest = max(_FREE_BYTES, limits.max_expansion * path.stat().st_size)
        yield ByteStream(_bounded(pieces, largest, limits))


class ByteStream:
    """Pieces of bytes as a file to read from, without seeking; `read(n)` returns at most n bytes, b"" at the end."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; with -1 one piece. Raises BrokenStream."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        size = len(self._rest) if size < 0 else size
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

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
    """Lines of a stream in order; where it breaks, the unfinished line and then the error are the last items."""
    number, held, size = 1, [], 0
    error = None
    while True:
        try:
            data = stream.read()
        except OSError as problem:
            error = problem if isinstance(problem, BrokenStream) else BrokenStream(str(problem))
            break
        if not data:
            break
        first, *others = data.split(b"\n")
        for part in (first, *others[:-1]) if others else ():
            size += len(part)
            held.append(part)
            yield Line(number, b"".join(held) if size <= max_bytes else None, size)
            number, held, size = number + 1, [], 0
        rest = others[-1] if others else first
        size += len(rest)
        if size <= max_bytes:
            held.append(rest)
        else:
            held = []  # passed over: only its length is kept
    if size:
        yield Line(number, b"".join(held) if size <= max_bytes else None, size, ended=False)
    if error is not None:
        yield error


def _bounded(pieces: Iterator[bytes], largest: float, limits: ReadLimits) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > largest:
            raise BrokenStream(
                f"expands to more than max_expansion = {limits.max_expansion:g} times its size; if it is no bomb, "
                "raise limits.max_expansion"
            )
        yield piece


def _gunzip(raw: io.FileIO) -> Iterator[bytes]:
    data = raw.read(CHUNK_BYTES) or b""
    while data:
        member = zlib.decompressobj(31)
        while not member.eof:
            try:
                piece = member.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise BrokenStream(f"damaged gzip: {error}") from error
            if piece:
                yield piece
            data = member.unconsumed_tail or (b"" if member.eof else raw.read(CHUNK_BYTES) or b"")
            if not data and not piece and not member.eof:
                raise BrokenStream("truncated gzip")
        data = member.unused_data or raw.read(CHUNK_BYTES) or b""
        data = data.lstrip(b"\0")  # zero padding behind the last member is allowed


def _unzstd(raw: io.FileIO) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
    try:
        while data := reader.read1(CHUNK_BYTES):
            yield data
    except zstandard.ZstdError as error:
        raise BrokenStream(f"damaged zstandard: {error}") from error
    if not _zstd_complete(raw):  # the library ends quietly where a frame is cut
        raise BrokenStream("truncated zstandard")


def _zstd_complete(raw: io.FileIO) -> bool:
    """Walk over the frames by their block headers. Source: RFC 8878, sections 3.1.1 and 3.1.2."""
    size = raw.seek(0, io.SEEK_END)
    at = 0
    while at < size:
        raw.seek(at)
        head = raw.read(18)
        magic = int.from_bytes(head[:4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # skippable frame
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        if magic != _ZSTD_MAGIC or len(head) < 6:
            return False
        at += zstandard.frame_header_size(head)
        last = False
        while not last:
            raw.seek(at)
            block = raw.read(3)
            if len(block) < 3:
                return False
            bits = int.from_bytes(block, "little")
            last = bool(bits & 1)
            at += 3 + (1 if bits >> 1 & 3 == 1 else bits >> 3)  # a run of one byte is stored as that byte
        at += 4 if head[4] & 4 else 0  # checksum
    return at == size
