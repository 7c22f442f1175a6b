"""Compressed files -> pieces of their content, in bounded memory, and only what their checksums vouch for.

A file is gone through twice. The first pass finds members (gzip members, zstandard frames, bzip2 and xz streams) that
are damaged; the second yields the others, and in place of a damaged one a `BrokenStream` that names its bytes. So one
bad member of a crawl costs the records in it and nothing behind it, and no text comes from a member that fails its
checksum. Of a file that was cut off, what is there is kept, its last part without a checksum to hold it against.

The format is recognised by content: names lie in both directions (a browser unpacks a .gz and keeps its name).
"""

import bz2
import contextlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import zstandard

CHUNK_BYTES = 1 << 20
ZSTD_MAX_WINDOW = 1 << 31
"""As `zstd --long=31` writes; memory is taken as far as the content fills it."""
_ZSTD_FRAME, _ZSTD_SKIPPABLE = b"\x28\xb5\x2f\xfd", 0x184D2A50


class BrokenStream(OSError):
    """The content is not readable at this place; what came before is good."""

    def __init__(self, reason: str, *, cut: bool = False):
        super().__init__(reason)
        self.cut = cut
        """The file ends too early; what was decoded is as good as the rest."""


class Codec(NamedTuple):
    """One format: the bytes that a member begins with, and a decoder that leaves the file behind the member."""

    name: str
    magic: bytes
    decode: Callable[[io.FileIO], Iterator[bytes]]


class Damage(NamedTuple):
    """A member that is not readable."""

    resume: int | None
    """Where the next one begins; None: nowhere, the file is not readable from here on."""
    problem: BrokenStream


def codec_of(head: bytes) -> Codec | None:
    """The format that a file with these first bytes is in; None: it is not compressed."""
    if len(head) >= 4 and int.from_bytes(head[:4], "little") & 0xFFFFFFF0 == _ZSTD_SKIPPABLE:
        return next(codec for codec in CODECS if codec.name == "zstandard")
    return next((codec for codec in CODECS if head.startswith(codec.magic)), None)


def find_damages(raw: io.FileIO, codec: Codec, largest: float) -> dict[int, Damage]:
    """Damaged members by the place where they begin; looks at no more than `largest` bytes of content."""
    found: dict[int, Damage] = {}
    total, start = 0, _next_member(raw, codec, 0, found)
    while start is not None:
        if start in found:
            start = found[start].resume
            continue
        raw.seek(start)
        try:
            for piece in codec.decode(raw):
                total += len(piece)
                if total > largest:
                    return found
            start = _next_member(raw, codec, raw.tell(), found)
        except BrokenStream as problem:
            resume = None if problem.cut else _resume(raw, codec, start + 1)
            end = raw.seek(0, io.SEEK_END) if resume is None else resume
            reason = f"{problem}; bytes {start} to {end} of the file are not readable"
            found[start] = Damage(resume, problem if problem.cut else BrokenStream(reason))
            start = resume
    return found


def read_members(raw: io.FileIO, codec: Codec, damages: dict[int, Damage]) -> Iterator[bytes | BrokenStream]:
    """Content of the good members in order, and a `BrokenStream` where a damaged one was."""
    start = _next_member(raw, codec, 0, damages)
    while start is not None:
        raw.seek(start)
        damage = damages.get(start)
        if damage is None:
            yield from codec.decode(raw)
            start = _next_member(raw, codec, raw.tell(), damages)
        else:
            if damage.problem.cut:
                with contextlib.suppress(BrokenStream):  # what was found before
                    yield from codec.decode(raw)
            yield damage.problem
            start = damage.resume


def _next_member(raw: io.FileIO, codec: Codec, at: int, found: dict[int, Damage]) -> int | None:
    """Where the next member begins, zero padding passed over; bytes that are none are a damage in `found`."""
    raw.seek(at)
    while data := raw.read(CHUNK_BYTES):
        rest = data.lstrip(b"\0")
        at += len(data) - len(rest)
        if rest:
            raw.seek(at)
            if at in found or codec_of(raw.read(8)) is codec:
                return at
            end = raw.seek(0, io.SEEK_END)
            resume = _resume(raw, codec, at + 1)
            found[at] = Damage(resume, BrokenStream(f"bytes {at} to {resume or end} of the file are no {codec.name}"))
            return at
    return None


def _resume(raw: io.FileIO, codec: Codec, at: int) -> int | None:
    """The next place where a member begins that can be decoded, if only a little."""
    raw.seek(at)
    held, base = b"", at
    while data := raw.read(CHUNK_BYTES):
        held += data
        place = held.find(codec.magic)
        while place >= 0:
            here = raw.tell()
            raw.seek(base + place)
            try:
                next(codec.decode(raw), b"")
                return base + place
            except BrokenStream:
                raw.seek(here)
            place = held.find(codec.magic, place + 1)
        keep = len(codec.magic) - 1
        base, held = base + len(held) - keep, held[-keep:]
    return None


class _Gzip:
    """zlib's decompressor with the manners of bz2's and lzma's."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._member.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._member.decompress(self._member.unconsumed_tail + data, max_length)


def _decode(
    raw: io.FileIO, name: str, member: "_Gzip | bz2.BZ2Decompressor | lzma.LZMADecompressor"
) -> Iterator[bytes]:
    while not member.eof:
        data = (raw.read(CHUNK_BYTES) or b"") if member.needs_input else b""
        if member.needs_input and not data:
            raise BrokenStream(f"truncated {name}", cut=True)
        try:
            piece = member.decompress(data, CHUNK_BYTES)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise BrokenStream(f"damaged {name}: {error}") from error
        if piece:
            yield piece
    raw.seek(-len(member.unused_data), io.SEEK_CUR)


class _Until:
    """A file that ends at a place: the library would go on with the next frame."""

    def __init__(self, raw: io.FileIO, end: int | None):
        self._raw, self._end = raw, end

    def read(self, size: int) -> bytes:
        left = size if self._end is None else min(size, self._end - self._raw.tell())
        return self._raw.read(left) or b""


def _decode_zstd(raw: io.FileIO) -> Iterator[bytes]:
    start = raw.tell()
    end = _zstd_frame_end(raw, start)
    raw.seek(start)
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
    source: Any = _Until(raw, end)
    reader = decompressor.stream_reader(source, read_across_frames=False, closefd=False)
    try:
        while data := reader.read1(CHUNK_BYTES):
            yield data
    except zstandard.ZstdError as error:
        raise BrokenStream(f"damaged zstandard: {error}") from error
    except MemoryError as error:
        raise BrokenStream(
            "zstandard with a window larger than this machine's memory; write it with a smaller one"
        ) from error
    if end is None:  # the library ends quietly where a frame is cut
        raise BrokenStream("truncated zstandard", cut=True)
    raw.seek(end)


def _zstd_frame_end(raw: io.FileIO, at: int) -> int | None:
    """Where the frame ends, by its block headers; None: beyond the file. Source: RFC 8878, 3.1.1 and 3.1.2."""
    size = raw.seek(0, io.SEEK_END)
    raw.seek(at)
    head = raw.read(18)
    if int.from_bytes(head[:4], "little") & 0xFFFFFFF0 == _ZSTD_SKIPPABLE:
        end = at + 8 + int.from_bytes(head[4:8], "little")
        return end if len(head) >= 8 and end <= size else None
    try:
        at += zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        return None
    last = False
    while not last:
        raw.seek(at)
        block = raw.read(3)
        if len(block) < 3:
            return None
        bits = int.from_bytes(block, "little")
        last = bool(bits & 1)
        at += 3 + (1 if bits >> 1 & 3 == 1 else bits >> 3)  # a run of one byte is stored as that byte
    at += 4 if head[4] & 4 else 0  # checksum
    return at if at <= size else None


CODECS = (
    Codec("gzip", b"\x1f\x8b\x08", lambda raw: _decode(raw, "gzip", _Gzip())),
    Codec("zstandard", _ZSTD_FRAME, _decode_zstd),
    Codec("bzip2", b"BZh", lambda raw: _decode(raw, "bzip2", bz2.BZ2Decompressor())),
    Codec("xz", b"\xfd7zXZ\x00", lambda raw: _decode(raw, "xz", lzma.LZMADecompressor(format=lzma.FORMAT_XZ))),
)
