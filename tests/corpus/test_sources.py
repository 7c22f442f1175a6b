import gzip
import json
from pathlib import Path

import pytest
import zstandard

from isoflop.corpus.sources import (
    BadRecord,
    Document,
    SourceOptions,
    find_files,
    read_source,
    read_texts,
    write_documents,
)
from isoflop.errors import DataError

LINES = [{"text": "one\u2028still one\u0085", "license": "MIT"}, {"text": "two", "id": "x"}]


def _read(path: Path, **options: str) -> tuple[list[Document], list[BadRecord]]:
    bad: list[BadRecord] = []
    return list(read_source(SourceOptions(path=str(path), name="s", **options), bad.append)), bad  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines_are_split_on_line_feeds_only(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES).encode()
    packed = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix](data)
    (tmp_path / f"a{suffix}").write_bytes(packed)
    documents, bad = _read(tmp_path, license="CC0")
    assert not bad
    assert [item.text for item in documents] == [line["text"] for line in LINES]
    assert [item.license for item in documents] == ["MIT", "CC0"]
    assert [item.id for item in documents] == [f"s/a{suffix}:1", f"s/a{suffix}:2"]


def test_bad_records_are_set_aside_with_their_place(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"other": 1}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": ""}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    documents, bad = _read(tmp_path)
    assert [item.text for item in documents] == ["good"]
    assert [item.origin for item in bad] == [f"s/a.jsonl:{number}" for number in range(2, 8)]
    assert [item.reason.split(":")[0] for item in bad] == [
        *("bad JSON", "no text under 'text'", "not a JSON object", "bad JSON"),
        *("text has unpaired surrogates", "no text under 'text'"),
    ]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_truncated_file_keeps_what_came_before(tmp_path: Path, compress: object) -> None:
    generator_text = "".join(f'{{"text": "document number {i} {hash(str(i))}"}}\n' for i in range(20_000)).encode()
    packed = compress(generator_text)  # type: ignore[operator]
    name = "a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst"
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    documents, bad = _read(tmp_path)
    assert 0 < len(documents) < 20_000
    assert len(bad) >= 1


def test_not_compressed_at_all_is_one_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"plain text")
    documents, bad = _read(tmp_path)
    assert not documents
    assert len(bad) == 1
    assert "file ends here" in bad[0].reason


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the corpus extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"body": ["one", None, "three"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    documents, bad = _read(tmp_path, text_key="body")
    assert [item.text for item in documents] == ["one", "three"]
    assert [item.origin for item in bad] == ["s/a.parquet:2", "s/b.parquet:1"]


def test_folder_of_sources_and_texts_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfHello")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe latin")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    documents, bad = _read(tmp_path, domain="mixed")
    assert [(item.id, item.text, item.domain) for item in documents] == [
        ("s/a.md", "Hello", "mixed"),
        ("s/deep/b.py", "x = 1\n", "mixed"),
    ]
    assert [(item.origin, item.reason) for item in bad] == [("s/c.txt", "not UTF-8 at byte 0")]


def test_missing_or_useless_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give a file or a folder"):
        find_files(SourceOptions(path=str(tmp_path / "none")))
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="has 1 files, none of a known kind"):
        find_files(SourceOptions(path=str(tmp_path)))


def test_written_documents_read_back(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", f"text {i}\u2028\n\u4e2d", "prose", "s", "MIT") for i in range(3)]
    write_documents(tmp_path / "out" / "prose.jsonl.zst", documents)
    assert list(read_texts(tmp_path / "out" / "prose.jsonl.zst")) == [item.text for item in documents]
