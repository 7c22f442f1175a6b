"""Web pages and crawls -> text: HTML files, and WARC and WET archives record by record (resiliparse, fastwarc).

Extraction keeps the main content with its paragraphs, lists and preformatted blocks, and leaves menus, footers,
scripts and forms out. A record of a crawl that is no page (an image, a redirect, an error) is set aside with its type
or status, like everything that can't be read.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from isoflop.corpus.document import BadRecord, Document, OnBad, SourceOptions
from isoflop.corpus.read.bytes import ByteStream
from isoflop.corpus.read.encoding import NotText, decode_text
from isoflop.errors import DataError

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MAX_DEPTH = 1000  # assumption: real pages nest 50 to 200 deep; 10,000 take 9 s to extract
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_NO_NESTING = frozenset(
    (
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
        *("p", "li", "td", "th", "tr", "dt", "dd", "option"),
    )
)
"""Elements without content, and those that a following one of their kind closes."""


def read_html(stream: ByteStream, origin: str, source: SourceOptions, on_bad: OnBad) -> Iterator[Document]:
    """The document of one HTML file."""
    _require(origin)
    data = stream.read_all(source.limits.max_record_bytes)
    if data is None:
        on_bad(BadRecord(origin, f"page is longer than limits.max_record_mb = {source.limits.max_record_mb:g}"))
        return
    text = extract_html(data, origin, on_bad, source.encoding)
    if text:
        yield Document(origin, text, source.domain, origin, source.license, source.lang)


def extract_html(data: bytes, origin: str, on_bad: OnBad, declared: str = "") -> str | None:
    """Main text of a page; None (and a bad record) where there is none."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree

    declared = declared or detect_encoding(data[:131_072], from_html_meta=True) or ""
    try:
        page = decode_text(data, declared)
    except NotText as error:
        on_bad(BadRecord(origin, str(error), len(data)))
        return None
    if page.n_repaired:
        on_bad(BadRecord(origin, f"repaired: {page.n_repaired} damaged places in {page.encoding}", kept=True))
    if _nests_deep(page.text):
        on_bad(BadRecord(origin, f"more than {_MAX_DEPTH} tags open at once", len(data)))
        return None
    text = extract_plain_text(HTMLTree.parse(page.text), main_content=True, alt_texts=False).strip()
    if not text:
        on_bad(BadRecord(origin, "page without text", len(data)))
        return None
    return text


def read_warc(stream: ByteStream, origin: str, source: SourceOptions, on_bad: OnBad) -> Iterator[Document]:
    """Documents of an archive: responses with HTML or plain text, and conversions (WET). `source` is the web site."""
    _require(origin)
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    number, quiet, held = 0, _QuietStream(stream), []  # held: the last record, until it is known to be whole
    try:
        kinds = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
        for record in ArchiveIterator(quiet, record_types=kinds, parse_http=True, auto_decode="all"):  # type: ignore[arg-type]
            for found in held:
                yield from _handed_on(found, on_bad)
            number += 1
            held = [_record_document(record, f"{origin}#{number}", source)]
    except (OSError, ValueError) as error:
        quiet.problem = quiet.problem or f"damaged record: {error}"
    if not quiet.problem and quiet.tail != b"\r\n\r\n":
        quiet.problem = "truncated record"
    if not quiet.problem:
        for found in held:
            yield from _handed_on(found, on_bad)
    else:
        on_bad(BadRecord(f"{origin}#{max(number, 1)}", f"file ends here: {quiet.problem}"[:300]))


def _handed_on(found: tuple[Document | None, list[BadRecord]], on_bad: OnBad) -> Iterator[Document]:
    for bad in found[1]:
        on_bad(bad)
    if found[0]:
        yield found[0]


def _record_document(
    record: "WarcRecord", where: str, source: SourceOptions
) -> tuple[Document | None, list[BadRecord]]:
    bad: list[BadRecord] = []
    try:
        text = _record_text(record, where, source, bad.append)
    except (OSError, ValueError) as error:
        text = None
        bad.append(BadRecord(where, f"damaged content: {error}"[:300]))
    url = record.headers.get("WARC-Target-URI", "") or ""
    site = f"{source.label}/{urlsplit(url).hostname or 'unknown'}"
    return Document(where, text, source.domain, site, source.license, source.lang) if text else None, bad


class _QuietStream:
    """A stream that ends where it breaks, with the reason kept: the archive reader panics where `read` raises."""

    def __init__(self, stream: ByteStream):
        self.problem = ""
        self.tail = b""
        self._stream, self._at = stream, 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; b"" at the end and after a break."""
        try:
            data = b"" if self.problem else self._stream.read(size)
        except OSError as error:
            self.problem, data = str(error), b""
        self._at += len(data)
        self.tail = (self.tail + data[-4:])[-4:]
        return data

    def tell(self) -> int:
        """Bytes read so far."""
        return self._at


def _record_text(record: "WarcRecord", where: str, source: SourceOptions, on_bad: OnBad) -> str | None:
    kind, declared = record.headers.get("Content-Type", "") or "", ""
    if record.http_headers is not None:
        status = record.http_headers.status_code
        if status not in (200, None):
            on_bad(BadRecord(where, f"HTTP status {status}"))
            return None
        kind, declared = record.http_content_type or "", record.http_charset or ""
    kind = kind.partition(";")[0].strip().lower()
    if kind not in (*_HTML_TYPES, "text/plain"):
        on_bad(BadRecord(where, f"not a page: {kind or 'no content type'}"))
        return None
    limit = source.limits.max_record_bytes
    data = _read_up_to(record.reader, limit)
    if data is None:
        reason = f"page is longer than limits.max_record_mb = {source.limits.max_record_mb:g}"
        on_bad(BadRecord(where, reason, record.content_length))
        return None
    if kind in _HTML_TYPES:
        return extract_html(data, where, on_bad, declared)
    try:
        text = decode_text(data, declared).text.strip()
    except NotText as error:
        on_bad(BadRecord(where, str(error), len(data)))
        return None
    if not text:
        on_bad(BadRecord(where, "page without text", len(data)))
    return text


def _read_up_to(reader: Any, limit: int) -> bytes | None:
    parts, size = [], 0
    while data := reader.read(1 << 16):
        size += len(data)
        if size > limit:
            return None
        parts.append(data)
    return b"".join(parts)


def _nests_deep(page: str) -> bool:
    """Whether more than _MAX_DEPTH tags are open at once: time of extraction grows with the square of that."""
    if page.count("<") <= 2 * _MAX_DEPTH:
        return False
    depth = 0
    for match in _TAG.finditer(page):
        if match.group(2).lower() not in _NO_NESTING:
            depth = max(0, depth - 1) if match.group(1) else depth + 1
            if depth > _MAX_DEPTH:
                return True
    return False


def _require(origin: str) -> None:
    try:
        import fastwarc  # noqa: F401
        import resiliparse  # noqa: F401
    except ImportError as error:
        raise DataError(f"{origin}: reading HTML and WARC needs resiliparse; pip install isoflop[corpus]") from error
