import gzip
import io
import time
import zlib
from pathlib import Path

import pytest
import zstandard
from places import SHARED
from reading import read

from isoflop.corpus.read.bytes import ReadLimits

pytest.importorskip("resiliparse", reason="HTML and WARC need the corpus extra")

SAMPLES = SHARED / "pretrain" / "raw_samples"
PAGE = """<html><head><title>T</title><meta charset="{charset}"><script>var x = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/a">About</a></li></ul></nav>
<main><h1>Caf\u00e9 and bread</h1><p>The first paragraph, which says something.</p><p>The second one.</p></main>
<footer>Copyright 2020 all rights reserved</footer></body></html>"""


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252"])
def test_main_text_of_a_page_is_kept_and_its_frame_left_out(tmp_path: Path, charset: str) -> None:
    (tmp_path / "a.html").write_bytes(PAGE.format(charset=charset).encode(charset))
    documents, bad = read(tmp_path)
    assert not bad
    assert documents[0].text == "Caf\u00e9 and bread\n\nThe first paragraph, which says something.\n\nThe second one."


def test_pages_without_text_or_too_deep_or_too_long_are_set_aside_at_once(tmp_path: Path) -> None:
    (tmp_path / "deep.html").write_text("<div>" * 200_000 + "text", encoding="utf-8")
    (tmp_path / "empty.html").write_text("<html><script>x</script></html>", encoding="utf-8")
    (tmp_path / "long.html.gz").write_bytes(gzip.compress(b"<p>word</p>" * 20_000))
    (tmp_path / "wide.html").write_text("<p>word<br>" * 5_000, encoding="utf-8")
    started = time.process_time()
    documents, bad = read(tmp_path, limits=ReadLimits(max_record_mb=0.21))
    bad_long = read(tmp_path / "deep.html")[1]
    assert time.process_time() - started < 5
    assert [item.id for item in documents] == ["s/wide.html"]
    assert [(item.origin, item.reason) for item in bad] == [
        ("s/deep.html", "page is longer than limits.max_record_mb = 0.21"),
        ("s/empty.html", "page without text"),
        ("s/long.html.gz", "page is longer than limits.max_record_mb = 0.21"),
    ]
    assert [item.reason for item in bad_long] == ["more than 1000 tags open at once"]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs the shared data beside the checkout")
def test_book_page_of_the_shared_data_is_extracted_whole() -> None:
    documents, bad = read(SAMPLES / "1342-h.htm")
    text = documents[0].text
    assert not [item for item in bad if not item.kept]
    assert "It is a truth universally acknowledged, that a single man in possession" in text.replace("\n", " ")
    assert "<p" not in text


def _record(kind: str, body: bytes, url: str = "http://site.example/a", content_type: str = "") -> bytes:
    content_type = content_type or "application/http; msgtype=response"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def _http(body: bytes, content_type: str = "text/html", status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def _archive() -> list[bytes]:
    page = PAGE.format(charset="utf-8").encode()
    packed = gzip.compress(page)
    bomb = gzip.compress(bytes(50_000_000))
    return [
        _record("warcinfo", b"software: x\r\n", content_type="application/warc-fields"),
        _record("response", _http(page)),
        _record("response", _http(page, status="404 Not Found")),
        _record("response", _http(b"\x89PNG", "image/png"), "http://other.example/i.png"),
        _record("response", _http(packed, extra="Content-Encoding: gzip\r\n"), "https://other.example/z"),
        _record("response", _http("Caf\u00e9 noir".encode("latin-1"), "text/plain; charset=iso-8859-1")),
        _record("conversion", b"text of a page", content_type="text/plain"),
        _record("response", _http(bomb, extra="Content-Encoding: gzip\r\n")),
        _record("response", _http(page), "http://last.example/"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_archive_is_read_record_by_record(tmp_path: Path, packed: bool) -> None:
    records = _archive()
    data = b"".join(map(gzip.compress, records)) if packed else b"".join(records)
    (tmp_path / ("a.warc.gz" if packed else "a.warc")).write_bytes(data)
    documents, bad = read(tmp_path)
    name = "s/a.warc.gz" if packed else "s/a.warc"
    assert [(item.id, item.source, item.text[:12]) for item in documents] == [
        (f"{name}#1", "s/site.example", "Caf\u00e9 and bre"),
        (f"{name}#4", "s/other.example", "Caf\u00e9 and bre"),
        (f"{name}#5", "s/site.example", "Caf\u00e9 noir"),
        (f"{name}#6", "s/site.example", "text of a pa"),
        (f"{name}#8", "s/last.example", "Caf\u00e9 and bre"),
    ]
    assert [(item.origin, item.reason) for item in bad] == [
        (f"{name}#2", "HTTP status 404"),
        (f"{name}#3", "not a page: image/png"),
        (f"{name}#7", "page is longer than limits.max_record_mb = 16"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_archive_keeps_whole_records_and_says_where_it_ends(tmp_path: Path, packed: bool) -> None:
    records = [_record("response", _http(PAGE.format(charset="utf-8").encode())) for _ in range(20)]
    data = b"".join(map(gzip.compress, records)) if packed else b"".join(records)
    (tmp_path / ("a.warc.gz" if packed else "a.warc")).write_bytes(data[: len(data) // 2 + 100])
    documents, bad = read(tmp_path)
    assert len(documents) in (10, 11)
    assert len(bad) == 1
    assert "file ends here" in bad[0].reason


def test_garbage_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(io.BytesIO(b"no archive at all\r\n" * 50).read())
    documents, bad = read(tmp_path)
    assert not documents
    assert len(bad) == 1


def _chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 300] for at in range(0, len(body), 300)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CODED = {
    "chunks": ("Transfer-Encoding: chunked\r\n", _chunked),
    "gzip in chunks": (
        "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        lambda page: _chunked(gzip.compress(page)),
    ),
    "deflate with its header": ("Content-Encoding: deflate\r\n", zlib.compress),
    "deflate without": ("Content-Encoding: deflate\r\n", lambda page: zlib.compress(page)[2:-4]),
    "zstd in chunks": (
        "Content-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n",
        lambda page: _chunked(zstandard.compress(page)),
    ),
    "two codings": ("Content-Encoding: deflate, gzip\r\n", lambda page: gzip.compress(zlib.compress(page))),
    "stored unpacked, with the header left": ("Content-Encoding: gzip\r\n", lambda page: page),
    "stored joined, with the header left": ("Transfer-Encoding: chunked\r\n", lambda page: page),
}


@pytest.mark.parametrize("case", CODED)
def test_coded_pages_are_read_and_so_is_all_behind_them(tmp_path: Path, case: str) -> None:
    headers, pack = CODED[case]
    page = PAGE.format(charset="utf-8").encode()
    body = pack(page)
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{headers}\r\n".encode() + body
    (tmp_path / "a.warc").write_bytes(_record("response", http) + _record("response", _http(page)))
    documents, bad = read(tmp_path)
    assert [item.text[:12] for item in documents] == ["Caf\u00e9 and bre"] * 2 and bad == []


@pytest.mark.parametrize("separator", [b"\r\n\r\n", b"\n\n", b"\r\n", b"", b"\r\n\r\n\r\n"])
def test_separators_of_other_writers(tmp_path: Path, separator: bytes) -> None:
    record = _record("response", _http(PAGE.format(charset="utf-8").encode()))[:-4]
    (tmp_path / "a.warc").write_bytes((record + separator) * 3)
    documents, bad = read(tmp_path)
    assert len(documents) == 3 and bad == []


LIES = {"too short": -7, "too long": 9, "into the next record": 200, "beyond the file": 100_000}


@pytest.mark.parametrize("case", LIES)
def test_a_record_whose_length_lies_costs_itself_alone(tmp_path: Path, case: str) -> None:
    whole = _record("response", _http(PAGE.format(charset="utf-8").encode()))
    length = int(whole.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    lying = whole.replace(b"Content-Length: %d" % length, b"Content-Length: %d" % (length + LIES[case]), 1)
    (tmp_path / "a.warc").write_bytes(whole + lying + whole + whole)
    documents, bad = read(tmp_path)
    assert [item.id for item in documents] == ["s/a.warc#1", "s/a.warc#2", "s/a.warc#3"]
    assert len(bad) == 1
    assert bad[0].reason.startswith(f"bytes {len(whole)} to {len(whole) + len(lying)} of the archive, behind record 1")
