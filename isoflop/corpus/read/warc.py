"""WARC and WET archives -> records, accounted for to the byte: each byte is in a record or in a range that is named.

The archive is cut here by its own lengths, and a record is returned when what follows it shows that its length is
right: a separator and the next record, or the end. One that lies costs itself alone: reading goes on where the next
record begins. The HTTP response in a record is read by the standard library, its body decoded (chunks, gzip,
deflate, br, zstd) record by record.

Source: ISO 28500:2017 (WARC 1.1), sections 4 to 6; RFC 9112, section 7.1; RFC 9110, section 8.4.
"""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import Any

import zstandard

from isoflop.corpus.read.bytes import ByteStream
from isoflop.corpus.read.compressed import BrokenStream

_BEGIN = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
_MAX_HEAD_BYTES = 1 << 18  # assumption: headers of real records take a few hundred bytes
_MAX_SEPARATOR_BYTES = 64  # the standard has four; writers differ


@dataclass(frozen=True, slots=True)
class WarcRecord:
    """One record: what its headers say, and its block."""

    headers: dict[str, str]
    """By name in lower case."""
    block: bytes | None
    """None: longer than allowed, and passed over."""
    n_bytes: int
    """Length of the block."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A range of bytes of the unpacked archive that is in no record."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response with its body decoded."""

    status: int
    kind: str
    charset: str
    body: bytes | None
    """None: longer than allowed."""


def read_records(stream: ByteStream, max_bytes: int) -> Iterator[WarcRecord | Unreadable]:
    """Records of an archive in order; blocks longer than `max_bytes` are passed over without holding them."""
    reader = _Reader(stream)
    reader.skip_separator()
    while not reader.at_end():
        start, problem = reader.at, ""
        if reader.peek(1):
            record, problem = _record(reader, max_bytes)
            if record:
                yield record
            else:
                reader.skip_to_record()
        if gap := reader.pass_gap():
            problem = f"file ends here: {gap}" + (f" ({problem})" if problem else "")
        elif problem and reader.at_end():
            problem = f"file ends here: {problem}"
        if problem:
            yield Unreadable(start, reader.at, problem)
        reader.skip_separator()


def _record(reader: "_Reader", max_bytes: int) -> tuple[WarcRecord | None, str]:
    """The record that begins here, or what is wrong with it; then only its first line is consumed."""
    head = reader.head()
    if head is None:
        begun = _BEGIN.match(reader.peek(64))
        reader.take(1)
        return None, "headers of a record without their end" if begun else "no record begins here"
    headers = _headers(head)
    length = headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        reader.take(1)
        return None, f"Content-Length = {length[:40]!r} is no number"
    reader.take(len(head))
    n_bytes = int(length)
    block = reader.take(n_bytes) if n_bytes <= max_bytes else None
    n_read = reader.skip(n_bytes) if block is None else len(block)
    if n_read == n_bytes and reader.block_ends():
        return WarcRecord(headers, block, n_bytes), ""
    if n_read < n_bytes:
        problem = f"record cut off: {n_read} of {n_bytes} bytes"
    else:
        problem = f"Content-Length = {n_bytes} is not where the record ends"
    if block is not None:
        reader.give_back(head[1:] + block)
    return None, problem


class _Reader:
    """The archive as a buffer that can be looked into, with the offset of what was consumed."""

    def __init__(self, stream: ByteStream):
        self._stream, self._held = stream, b""
        self.at = 0
        self._broken: BrokenStream | None = None
        """Why the stream gives nothing behind what is held; `pass_gap` asks for what comes then."""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end or before a broken place; nothing is consumed."""
        while len(self._held) < size and not self._broken:
            try:
                data = self._stream.read()
            except BrokenStream as problem:
                self._broken = problem
                break
            if not data:
                break
            self._held += data
        return self._held[:size]

    def take(self, size: int) -> bytes:
        """The next `size` bytes, consumed."""
        data = self.peek(size)
        self._held = self._held[len(data) :]
        self.at += len(data)
        return data

    def skip(self, size: int) -> int:
        """Pass over `size` bytes without holding them; how many there were."""
        left = size
        while left and (data := self.take(min(left, 1 << 20))):
            left -= len(data)
        return size - left

    def give_back(self, data: bytes) -> None:
        """Undo `take`."""
        self._held = data + self._held
        self.at -= len(data)

    def at_end(self) -> bool:
        return not self.peek(1) and not self._broken

    def pass_gap(self) -> BrokenStream | None:
        """Why the stream broke, where all before that place is consumed; reading goes on behind it."""
        broken = None if self._held else self._broken
        if broken:
            self._broken = None
        return broken

    def head(self) -> bytes | None:
        """The headers of the record that begins here, with the empty line behind them."""
        size = 4096
        while True:
            held = self.peek(size)
            if not _BEGIN.match(held):
                return None
            end = re.search(rb"\r?\n\r?\n", held)
            if end:
                return held[: end.end()]
            if len(held) < size or size >= _MAX_HEAD_BYTES:
                return None
            size *= 4

    def block_ends(self) -> bool:
        """Whether the block ends here: the separator of the standard, another one and a record, or the end."""
        held = self.peek(_MAX_SEPARATOR_BYTES + 16)
        rest = held.lstrip(b"\r\n")
        at_end = not rest and not self._broken and len(held) <= _MAX_SEPARATOR_BYTES
        return held.startswith(b"\r\n\r\n") or at_end or bool(_BEGIN.match(rest))

    def skip_separator(self) -> None:
        while (held := self.peek(4096)) and held[:1] in b"\r\n":
            self.take(len(held) - len(held.lstrip(b"\r\n")))

    def skip_to_record(self) -> None:
        """To the next place where a record begins, or the end, or a broken place."""
        while held := self.peek(1 << 16):
            found = re.search(_BEGIN.pattern + rb"[A-Za-z-]+:", held)
            if found:
                self.take(found.start())
                return
            self.take(max(1, len(held) - 32))


def _headers(head: bytes) -> dict[str, str]:
    """Names in lower case; a line that begins with white space goes on with the one before."""
    text = head.decode("utf-8", "replace").replace("\r\n", "\n")
    lines = re.sub(r"\n[ \t]+", " ", text).split("\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def read_response(block: bytes, max_bytes: int) -> Response:
    """The HTTP response of a record.

    Crawlers often store a body unpacked and keep the headers that say otherwise: one that is not packed is taken as is.

    Raises:
        ValueError: no HTTP response, or a body that is damaged.
    """
    response = HTTPResponse(_Socket(block))  # type: ignore[arg-type]
    try:
        response.begin()
    except (HTTPException, OSError, ValueError) as error:
        raise ValueError(f"no HTTP response: {error!r}") from error
    head = re.search(rb"\r?\n\r?\n", block)
    raw = block[head.end() :] if head else b""
    if response.chunked:
        raw = _joined_chunks(response, raw)
    elif response.length is not None and 0 < response.length < len(raw):
        raw = raw[: response.length]
    body: bytes | None = raw
    for coding in reversed(
        [part.strip().lower() for part in (response.headers.get("Content-Encoding") or "").split(",")]
    ):
        body = _decoded(coding, body, max_bytes) if body is not None else None
    kind, charset = _content_type(response.headers)
    return Response(response.status, kind, charset, None if body is None or len(body) > max_bytes else body)


class _Socket:
    """What the standard library reads a response from."""

    def __init__(self, data: bytes):
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def _joined_chunks(response: HTTPResponse, raw: bytes) -> bytes:
    if not re.match(rb"[0-9a-fA-F]+[ \t]*(;[^\r\n]*)?\r?\n", raw):
        return raw  # stored joined, with the header that says otherwise
    try:
        return response.read()
    except (HTTPException, OSError, ValueError) as error:
        raise ValueError(f"damaged chunks: {error!r}"[:200]) from error


def _decoded(coding: str, body: bytes, max_bytes: int) -> bytes | None:
    """One content coding taken off; None where more than `max_bytes` come out."""
    if coding in ("", "identity"):
        return body
    if coding in ("gzip", "x-gzip"):
        return _bounded(gzip.GzipFile(fileobj=io.BytesIO(body)), max_bytes) if body[:2] == b"\x1f\x8b" else body
    if coding == "deflate":
        for window in (15, -15):  # with the header of RFC 1950, or without, as many servers send it
            with contextlib.suppress(zlib.error):
                inflater = zlib.decompressobj(window)
                data = inflater.decompress(body, max_bytes + 1)
                if not inflater.eof and len(data) <= max_bytes:
                    raise ValueError("truncated deflate")
                return data if len(data) <= max_bytes else None
        return body
    if coding == "zstd":
        if not body.startswith(b"\x28\xb5\x2f\xfd"):
            return body
        return _bounded(zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True), max_bytes)
    if coding == "br":
        return _unbrotli(body, max_bytes)
    raise ValueError(f"content coding {coding!r} is not known")


def _bounded(file: Any, max_bytes: int) -> bytes | None:
    try:
        data = file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"damaged content: {error}") from error
    return data if len(data) <= max_bytes else None


def _unbrotli(body: bytes, max_bytes: int) -> bytes | None:
    try:
        import brotli
    except ImportError as error:
        raise ValueError("content coding 'br' needs brotli; pip install isoflop[corpus]") from error
    decompressor = brotli.Decompressor()
    try:
        data = decompressor.process(body, output_buffer_limit=max_bytes + 1)
    except brotli.error:
        return body if body.lstrip()[:1] == b"<" else None
    if len(data) > max_bytes:
        return None
    if not decompressor.is_finished():
        raise ValueError("truncated br")
    return data


def _content_type(headers: Message) -> tuple[str, str]:
    """Media type and charset; get_content_type would turn what it does not understand into text/plain."""
    found = headers.get("Content-Type") or ""
    kind = found.partition(";")[0].strip().lower()
    charset = re.search(r"charset\s*=\s*[\"']?([^\s;\"']+)", found, re.IGNORECASE)
    return kind, charset[1] if charset else ""
