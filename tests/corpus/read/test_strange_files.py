"""Files as other people's programs write them: read right, or refused by name. Three and more of each kind."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib

import pytest
import zstandard
from reading import read, write_parquet

from isoflop.corpus.document import BadRecord, SourceOptions
from isoflop.corpus.read.bytes import ReadLimits
from isoflop.corpus.read.sources import find_files

TEXTS = [f'Document {i}: a river, \u00e9t\u00e9, \u4e2d\u6587, "quoted",\nsecond line.' for i in range(12)]
RECORDS = [{"text": text} for text in TEXTS]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
DATA = LINES.encode()


def as_csv(delimiter: str = ",", **options) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, **options)
    writer.writerow(["id", "text"])
    writer.writerows([[i, text] for i, text in enumerate(TEXTS)])
    return out.getvalue().encode()


def long_window(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, window_log=31, enable_ldm=True, write_content_size=False
    )
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as file:
        file.write(data)
    return out.getvalue()


RIGHT = {
    # marks and line ends of other writers
    "jsonl with a mark": ("a.jsonl", b"\xef\xbb\xbf" + DATA),
    "jsonl with a mark, packed": ("a.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + DATA)),
    "jsonl in UTF-16 with a mark": ("a.jsonl", LINES.encode("utf-16")),
    "jsonl in big-endian UTF-16, packed": ("a.jsonl.zst", zstandard.compress(b"\xfe\xff" + LINES.encode("utf-16-be"))),
    "jsonl in UTF-32": ("a.jsonl", LINES.encode("utf-32")),
    "jsonl with line ends of Windows": ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
    "jsonl without a last line end": ("a.ndjson", LINES.rstrip("\n").encode()),
    # formats that the name does not decide
    "lines named json": ("a.json", DATA),
    "lines named json, packed": ("a.json.gz", gzip.compress(DATA)),
    "lines named json, by zstd": ("a.json.zst", zstandard.compress(DATA)),
    "a list of records": ("a.json", json.dumps(RECORDS).encode()),
    "a list of records, indented, with a mark": ("a.json", json.dumps(RECORDS, indent=2).encode("utf-8-sig")),
    "records behind each other": ("a.json", "".join(json.dumps(record, indent=1) for record in RECORDS).encode()),
    "lines without an ending": ("corpus", DATA),
    "lines of an unknown ending": ("corpus.data", DATA),
    "packed lines whose name says nothing": ("a.jsonl", gzip.compress(DATA)),
    "plain lines named gz": ("a.jsonl.gz", DATA),
    "zstd named gz": ("a.jsonl.gz", zstandard.compress(DATA)),
    "csv": ("a.csv", as_csv()),
    "csv, packed, with a mark": ("a.csv.gz", gzip.compress(b"\xef\xbb\xbf" + as_csv())),
    "csv of a spreadsheet with semicolons": ("a.csv", as_csv(";", lineterminator="\r\n")),
    "values between tabs": ("a.tsv", as_csv("\t")),
    # decoders
    "zstd with a window of 2 GiB": ("a.jsonl.zst", long_window(DATA)),
    "zstd of several frames": ("a.jsonl.zst", b"".join(map(zstandard.compress, DATA.splitlines(True)))),
    "gzip members with padding": ("a.jsonl.gz", gzip.compress(DATA[:200]) + bytes(600) + gzip.compress(DATA[200:])),
    "bzip2": ("a.jsonl.bz2", bz2.compress(DATA)),
    "bzip2 of several streams": ("a.jsonl.bz2", bz2.compress(DATA[:300]) + bz2.compress(DATA[300:])),
    "xz": ("a.jsonl.xz", lzma.compress(DATA)),
}


@pytest.mark.parametrize("case", RIGHT)
def test_every_document_is_read_and_nothing_is_set_aside(tmp_path, case):
    name, data = RIGHT[case]
    (tmp_path / name).write_bytes(data)
    documents, bad = read(tmp_path / name)
    assert [item.text for item in documents] == TEXTS
    assert bad == []


def tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def packed_folder(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.jsonl", data)
    return out.getvalue()


NAMED = {
    "a PDF": ("a.bin", b"%PDF-1.7 rest", "is a PDF; convert it"),
    "a zip archive": ("a.docx", packed_folder(DATA), "zip archive or an Office document"),
    "a tar archive": ("a.tar", tar(DATA), "is a tar archive; unpack it"),
    "a packed tar archive": ("a.tar.gz", gzip.compress(tar(DATA)), "is a tar archive; unpack it"),
    "csv without the column": ("a.csv", b"id,body\n1,x\n", "no column text_key = 'text'; the file has: id, body"),
    "csv with two columns of the name": ("a.csv", b"text,text\na,b\n", "two columns are named 'text'"),
    "json that is a number": ("a.json", b"12345", "no JSON object begins here"),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_is_no_text_is_named_and_never_becomes_training_text(tmp_path, case):
    name, data, reason = NAMED[case]
    (tmp_path / name).write_bytes(data)
    documents, bad = read(tmp_path / name)
    assert documents == []
    assert len(bad) == 1 and reason in bad[0].reason


def test_one_bad_value_of_a_list_costs_itself_and_its_bytes_are_named(tmp_path):
    parts = [json.dumps({"text": text}) for text in TEXTS]
    parts[4] = parts[4][:-1] + ", oops}"
    (tmp_path / "a.json").write_text("[" + ",\n".join(parts) + "]", encoding="utf-8")
    documents, bad = read(tmp_path / "a.json")
    assert [item.text for item in documents] == TEXTS[:4] + TEXTS[5:]
    start = len("[" + ",\n".join(parts[:4]) + ",\n")
    assert len(bad) == 1 and bad[0].reason.startswith(f"bytes {start} to {start + len(parts[4]) + 2}: bad JSON")


def test_rows_of_a_table_that_do_not_fit_are_named_by_line(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"two\nlines"\n3,too,many\n4,four\n', encoding="utf-8")
    documents, bad = read(tmp_path / "a.csv")
    assert [(item.id, item.text) for item in documents] == [
        ("s/a.csv:2", "one"),
        ("s/a.csv:3", "two\nlines"),
        ("s/a.csv:6", "four"),
    ]
    assert [(item.origin, item.reason) for item in bad] == [("s/a.csv:5", "3 values for 2 columns")]


def test_files_of_a_folder_that_are_left_out_are_counted_by_ending(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    for name in ("x.png", "y.PNG", "z.pdf", "Makefile"):
        (tmp_path / name).write_bytes(b"12345")
    bad: list[BadRecord] = []
    assert [path.name for path in find_files(SourceOptions(path=str(tmp_path), name="s"), bad.append)] == ["a.jsonl"]
    assert [(item.origin, item.reason.partition(":")[0], item.n_bytes) for item in bad] == [
        ("s/Makefile", "left out", 5),
        ("s/z.pdf", "left out", 5),
        ("s/x.png", "left out", 10),
    ]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zlib.compress], ids=["gzip", "bzip2", "none of both"])
def test_a_damaged_member_costs_its_own_lines_and_no_wrong_text_comes_out(tmp_path, pack):
    if pack is zlib.compress:
        pack = lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data)
    members = [pack("".join(LINES.splitlines(True)[at : at + 3]).encode()) for at in range(0, 12, 3)]
    for at in range(12, len(members[1]) - 4, 7):
        broken = bytearray(members[1])
        broken[at] ^= 0x10
        (tmp_path / "a.jsonl").write_bytes(b"".join([members[0], bytes(broken), *members[2:]]))
        documents, bad = read(tmp_path / "a.jsonl", limits=ReadLimits(max_record_mb=1.0))
        assert {item.text for item in documents} <= set(TEXTS)
        assert [item.text for item in documents][:3] == TEXTS[:3]
        assert bad or len(documents) == 12


PARQUET = {
    "a struct before it": [{"n": i, "html": "x" * 9000 + str(i)} for i in range(12)],
    "a list of structs before it": [[{"role": "u", "content": "x" * 9000}]] * 12,
    "a list of lists before it": [[["x" * 9000] * 2] * 2] * 12,
}


@pytest.mark.parametrize("case", PARQUET)
def test_limits_of_a_table_look_at_the_text_and_at_no_other_column(tmp_path, case):
    write_parquet(tmp_path / "a.parquet", {"meta": PARQUET[case], "text": TEXTS}, use_dictionary=False)
    documents, bad = read(tmp_path, limits=ReadLimits(max_record_mb=0.005))
    assert [item.text for item in documents] == TEXTS and bad == []


def test_long_text_behind_a_nested_column_is_still_set_aside(tmp_path):
    columns = {"meta": [{"a": 1, "b": 2}] * 3, "text": ["y" * 9000] * 3}
    write_parquet(tmp_path / "a.parquet", columns, use_dictionary=False)
    documents, bad = read(tmp_path, limits=ReadLimits(max_record_mb=0.005))
    assert documents == [] and "longer on average" in bad[0].reason
