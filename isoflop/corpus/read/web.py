"""Web pages and crawls -> text: HTML files, and WARC and WET archives record by record (pages by resiliparse).

Extraction keeps the main content with its paragraphs, lists and preformatted blocks, and leaves menus, footers,
scripts and forms out. A record of a crawl that is no page (an image, a redirect, an error) is set aside with its type
or status, like everything that can't be read.
"""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from isoflop.corpus.document import BadRecord, Document, OnBad, SourceOptions
from isoflop.corpus.read.bytes import ByteStream
from isoflop.corpus.read.encoding import NotText, decode_text
from isoflop.corpus.read.warc import Unreadable, WarcRecord, read_records, read_response
from isoflop.errors import DataError

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_PAGES = ("response", "conversion", "resource")
_NO_PAGES = ("warcinfo", "request", "metadata", "revisit", "continuation")
"""WARC-Type of records with pages, and of those that speak of others. Source: ISO 28500:2017, section 6."""
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
    number = 0
    room = 1 << 18  # for the headers of a page's response
    for found in read_records(stream, source.limits.max_record_bytes + room):
        if isinstance(found, Unreadable):
            where = f"bytes {found.start} to {found.stop} of the archive, behind record {number}"
            on_bad(BadRecord(f"{origin}#{number}+", f"{where}: {found.reason}"[:300], found.stop - found.start))
            continue
        kind = found.headers.get("warc-type", "")
        if kind in _NO_PAGES:
            continue
        number += 1
        where = f"{origin}#{number}"
        if kind not in _PAGES:
            on_bad(BadRecord(where, f"record of unknown type {kind[:40]!r}", found.n_bytes))
            continue
        try:
            text = _record_text(found, where, source, on_bad)
        except ValueError as error:
            on_bad(BadRecord(where, f"damaged content: {error}"[:300], found.n_bytes))
            continue
        if text:
            url = found.headers.get("warc-target-uri", "").strip("<>")
            site = f"{source.label}/{_host(url)}"
            yield Document(where, text, source.domain, site, source.license, source.lang)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "unknown"
    except ValueError:  # an address with broken brackets
        return "unknown"


def _record_text(record: WarcRecord, where: str, source: SourceOptions, on_bad: OnBad) -> str | None:
    too_long = f"page is longer than limits.max_record_mb = {source.limits.max_record_mb:g}"
    if record.block is None:
        on_bad(BadRecord(where, too_long, record.n_bytes))
        return None
    data, charset = record.block, ""
    kind = record.headers.get("content-type", "")
    if kind.replace(" ", "").lower().startswith("application/http"):
        response = read_response(record.block, source.limits.max_record_bytes)
        if response.status != 200:
            on_bad(BadRecord(where, f"HTTP status {response.status}"))
            return None
        kind, charset, data = response.kind, response.charset, response.body
    kind = kind.partition(";")[0].strip().lower()
    if kind not in (*_HTML_TYPES, "text/plain"):
        on_bad(BadRecord(where, f"not a page: {kind or 'no content type'}"))
        return None
    if data is None or len(data) > source.limits.max_record_bytes:
        on_bad(BadRecord(where, too_long, record.n_bytes))
        return None
    if kind in _HTML_TYPES:
        return extract_html(data, where, on_bad, charset)
    try:
        text = decode_text(data, charset).text.strip()
    except NotText as error:
        on_bad(BadRecord(where, str(error), len(data)))
        return None
    if not text:
        on_bad(BadRecord(where, "page without text", len(data)))
    return text


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
        import resiliparse  # noqa: F401
    except ImportError as error:
        raise DataError(f"{origin}: reading HTML and WARC needs resiliparse; pip install isoflop[corpus]") from error
