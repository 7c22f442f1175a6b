"""Random damage to valid files of every reader: each record is returned exactly, or named, or in a range that is named.

ISOFLOP_CORRUPTION_SEED sets the seed, which every failure prints. 25 damages a reader, 200 as `slow`.
"""

import gzip
import io
import json
import lzma
import os
import random
import zlib
from pathlib import Path

import pytest
import zstandard

from isoflop.corpus.document import BadRecord, SourceOptions
from isoflop.corpus.read.sources import read_file

pa = pytest.importorskip("pyarrow", reason="Parquet and Arrow need the corpus extra")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("resiliparse", reason="HTML and WARC need the corpus extra")

SEED = int(os.environ.get("ISOFLOP_CORRUPTION_SEED", "20261129"))
WORDS = ["river", "mill", "children", "count", "boats", "every", "evening", "ledger", "lamp", "été", "中文"]


def texts(rng: random.Random, n: int = 24) -> list[str]:
    """Texts that show whether they are whole: each ends with a checksum of itself."""
    made = []
    for number in range(n):
        text = f"Document {number}. " + " ".join(rng.choice(WORDS) for _ in range(40)) + "."
        made.append(f"{text} {zlib.crc32(text.encode()):08x}")
    return made


def json_lines(texts: list[str]) -> list[bytes]:
    return [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]


def warc(texts: list[str]) -> list[bytes]:
    made = []
    for number, text in enumerate(texts):
        page = f"<html><body><article><p>{text}</p></article></body></html>".encode()
        if number % 3 == 1:
            page = gzip.compress(page)
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
        http += (b"Content-Encoding: gzip\r\n" if number % 3 == 1 else b"") + b"\r\n" + page
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://s{number}.example/\r\n"
        head += f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        made.append(head.encode() + http + b"\r\n\r\n")
    return made


def members(pack, parts: list[bytes], n: int = 3) -> list[bytes]:
    return [pack(b"".join(parts[at : at + n])) for at in range(0, len(parts), n)]


def checked_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def as_parquet(texts: list[str]) -> list[bytes]:
    out = io.BytesIO()
    table = pa.table({"text": texts})
    parquet.write_table(table, out, row_group_size=6, compression="zstd", write_page_checksum=True)
    return [out.getvalue()]


def as_arrow(texts: list[str]) -> list[bytes]:
    out = io.BytesIO()
    table = pa.table({"text": texts})
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)
    return [out.getvalue()]


def as_csv(texts: list[str]) -> list[bytes]:
    return [b"id,text\n", *(f'{number},"{text}"\n'.encode() for number, text in enumerate(texts))]


FORMATS = {
    # name of the file -> (parts that stand one behind the other, whether a checksum guards them, records in a part)
    "a.jsonl": (json_lines, False, 1),
    "a.jsonl.gz": (lambda t: members(gzip.compress, json_lines(t)), True, 3),
    "a.jsonl.zst": (lambda t: members(checked_zstd, json_lines(t)), True, 3),
    "a.jsonl.xz": (lambda t: members(lzma.compress, json_lines(t)), True, 3),
    "a.json": (lambda t: [b"[" + b",".join(line[:-1] for line in json_lines(t)) + b"]"], False, 0),
    "a.csv": (as_csv, False, 0),
    "a.warc": (warc, False, 1),
    "a.warc.gz": (lambda t: members(gzip.compress, warc(t), 1), True, 1),
    "a.parquet": (as_parquet, False, 0),
    "a.arrow": (as_arrow, False, 0),
    "a.html": (lambda t: [f"<html><body><p>{' '.join(t)}</p></body></html>".encode()], False, 0),
    "a.txt": (lambda t: ["\n".join(t).encode()], False, 0),
}


def flip(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(1, len(data))]


def hole(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 400) :]


def doubled(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    part = data[start : start + rng.randrange(1, 400)]
    return data[:start] + part + data[start:]


def swapped(rng: random.Random, data: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def noise(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randrange(1, 60)) + data[start:]


DAMAGES = [flip, flip, cut, hole, doubled, swapped, noise]


def check(folder: Path, name: str, number: int) -> None:
    rng = random.Random(f"{SEED} {name} {number}")
    make, guarded, n_records = FORMATS[name]
    whole = texts(rng)
    parts = make(whole)
    damage = rng.choice(DAMAGES)
    data = damage(rng, b"".join(parts))
    path = folder / name
    path.write_bytes(data)
    bad: list[BadRecord] = []
    documents = list(read_file(path, "s", SourceOptions(path=str(path), name="s"), bad.append))
    case = f"seed {SEED}, {name}, number {number}, {damage.__name__}: {[item.reason for item in bad]}"
    found = [item.text for item in documents]
    exact = [text for text in found if text in whole]
    if guarded and not any("truncated" in item.reason for item in bad):  # a cut member has lost its checksum
        assert found == exact, f"{case}: text that no file held: {[t for t in found if t not in whole][:1]}"
    if n_records:  # what lies whole in the file is read, whatever happened to its neighbours
        for at, part in enumerate(parts):
            if part in data and (name != "a.jsonl" or b"\n" + part in b"\n" + data):
                for text in whole[at * n_records : (at + 1) * n_records]:
                    assert text in exact or bad, f"{case}: {text[:12]} is whole, neither read nor named"
                    if n_records == 1 and damage in (flip, noise):
                        assert text in exact, f"{case}: {text[:12]} is whole and was not read"
    if set(whole) - set(found) and damage not in (cut, hole):  # what was taken out whole leaves no trace
        altered = len(found) - len(exact)
        assert bad or altered, f"{case}: {len(set(whole) - set(found))} records are gone without a word"


@pytest.mark.parametrize("name", FORMATS)
def test_random_damage_is_read_around_or_named(tmp_path, name):
    for number in range(25):
        check(tmp_path, name, number)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_much_random_damage_is_read_around_or_named(tmp_path, name):
    for number in range(25, 225):
        check(tmp_path, name, number)


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_file_is_read_whole(tmp_path, name):
    whole = texts(random.Random(1))
    (tmp_path / name).write_bytes(b"".join(FORMATS[name][0](whole)))
    bad: list[BadRecord] = []
    documents = read_file(tmp_path / name, "s", SourceOptions(path=name, name="s"), bad.append)
    found = " ".join(item.text for item in documents).replace("\n", " ")
    assert found == " ".join(whole) and bad == []
