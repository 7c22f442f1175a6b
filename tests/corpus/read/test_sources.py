import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard
from reading import read, write_parquet

from isoflop.corpus.document import SourceOptions
from isoflop.corpus.read.bytes import ReadLimits
from isoflop.corpus.read.sources import find_files
from isoflop.errors import DataError

LINES = [{"text": "one\u2028still one\u0085", "license": "MIT"}, {"text": "two", "id": "x"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines_are_split_on_line_feeds_only(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES).encode()
    packed = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix](data)
    (tmp_path / f"a{suffix}").write_bytes(packed)
    documents, bad = read(tmp_path, license="CC0")
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
    documents, bad = read(tmp_path)
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
    documents, bad = read(tmp_path)
    assert 0 < len(documents) < 20_000
    assert len(bad) >= 1


def test_not_compressed_at_all_is_read_as_it_is_or_one_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b'{"text": "plain text"}\n')
    (tmp_path / "b.jsonl.zst").write_bytes(bytes(range(256)))
    documents, bad = read(tmp_path)
    assert [item.text for item in documents] == ["plain text"]
    assert [item.reason for item in bad] == ["can't be read: is not compressed as .zst says, and is no text"]


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"body": ["one", None, "three"]})
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    documents, bad = read(tmp_path, text_key="body")
    assert [item.text for item in documents] == ["one", "three"]
    assert [item.origin for item in bad] == ["s/a.parquet:2", "s/b.parquet:1"]


def test_folder_of_sources_and_texts_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfHello")
    (tmp_path / "c.txt").write_bytes(b"\x00\x01\x02 binary")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    documents, bad = read(tmp_path, domain="mixed")
    assert [(item.id, item.text, item.domain) for item in documents] == [
        ("s/a.md", "Hello", "mixed"),
        ("s/deep/b.py", "x = 1\n", "mixed"),
    ]
    assert [(item.origin, item.reason) for item in bad] == [
        ("s/image.png", "left out: 1 files, this one first: .png is no known kind"),
        ("s/c.txt", "binary: 1 NUL bytes"),
    ]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16", "\u4e2d\u6587\u53e5\u5b50"),
        ("utf-16-le", "without a mark, in Latin letters"),
        ("utf-8-sig", "marked"),
        ("latin-1", "Les \u00e9l\u00e8ves fran\u00e7ais \u00e9taient l\u00e0, et le ma\u00eetre aussi."),
        (
            "gb18030",
            "\u7384\u5fb7\u6325\u519b\u8ffd\u8d76\uff0c\u6295\u964d\u8005\u4e0d\u8ba1\u5176\u6570\uff0c\u5927\u80dc\u800c\u56de\u3002"
            * 5,
        ),
        ("big5", "\u7e41\u9ad4\u4e2d\u6587\u7684\u6587\u7ae0\uff0c\u9019\u662f\u4e00\u500b\u6e2c\u8a66\u3002" * 5),
        (
            "koi8-r",
            "\u042d\u0442\u043e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442. " * 9,
        ),
    ],
)
def test_encodings_are_found_out(tmp_path: Path, encoding: str, text: str) -> None:
    if encoding in ("gb18030", "big5", "koi8-r"):
        pytest.importorskip("resiliparse", reason="detection needs the corpus extra")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    documents, bad = read(tmp_path)
    assert [item.text for item in documents] == [text]
    assert not bad


def test_damaged_utf8_is_repaired_and_reported(tmp_path: Path) -> None:
    data = ("\u4e2d\u6587" * 100).encode()
    (tmp_path / "a.txt").write_bytes(data[:90] + b"\xff" + data[90:-1])
    documents, bad = read(tmp_path)
    assert documents[0].text.count("\ufffd") == 2
    assert [(item.reason, item.kept) for item in bad] == [("repaired: 2 damaged places in utf-8", True)]


def test_text_longer_than_a_record_is_cut_at_line_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = [f"line {i} of a long book\n" for i in range(30_000)]
    long = "x" * 200_000 + "\n"
    text = "".join(lines[:10_000]) + long + "".join(lines[10_000:])
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    documents, bad = read(tmp_path, limits=ReadLimits(max_record_mb=0.1))
    assert "".join(item.text for item in documents) == text.replace(long, "")
    assert [item.n_bytes for item in bad] == [200_000]
    assert max(len(item.text) for item in documents) <= 100_000
    assert len({item.id for item in documents}) == len(documents)
    assert {item.source for item in documents} == {"s/a.txt.gz"}


def test_truncated_text_is_kept_up_to_the_break(tmp_path: Path) -> None:
    text = "".join(f"{i * 7919 % 10007} bottles\n" for i in range(50_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode())[:-500])
    documents, bad = read(tmp_path)
    assert len(documents[0].text) > 100_000
    assert text.startswith(documents[0].text)
    assert [item.reason for item in bad] == ["file ends here: truncated gzip"]


def test_links_in_a_circle_broken_links_and_pipes_are_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("once", encoding="utf-8")
    (tmp_path / "deep" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "twin.txt").symlink_to(tmp_path / "deep" / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, bad = read(tmp_path)
    assert [(item.id, item.text) for item in documents] == [("s/deep/a.txt", "once")]
    assert {item.origin: item.reason for item in bad} == {
        "s/deep/circle": "link to what is read already",
        "s/self": "can't be followed: Too many levels of symbolic links",
        "s/gone.txt": "can't be followed: No such file or directory",
        "s/twin.txt": "link to what is read already",
        "s/pipe.txt": "not a regular file (pipe, socket or device)",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "a.txt").chmod(0)
    assert [item.reason for item in read(tmp_path)[1]] == ["can't be read: Permission denied"]


def test_failing_disk_is_named_and_the_next_fileread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text('{"text": "good"}', encoding="utf-8")
    opened = Path.open

    def fail(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "c.txt":
            return opened(path, *arguments, **options)  # type: ignore[call-overload]
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", fail)
    documents, bad = read(tmp_path)
    assert [item.id for item in documents] == ["s/c.txt"]
    assert {item.reason for item in bad} == {"can't be read: Input/output error"}


def test_parquet_cells_and_row_groups_that_are_too_long_are_set_aside(tmp_path: Path) -> None:
    cells = ["good", "x" * 300_000, "fine\0", "last"]
    write_parquet(tmp_path / "a.parquet", {"text": cells, "lang": ["en"] * 4})
    bomb = {"text": ["y" * 90_000_000] * 3}
    write_parquet(tmp_path / "b.parquet", bomb, compression="zstd", use_dictionary=False)
    documents, bad = read(tmp_path, limits=ReadLimits(max_record_mb=0.1))
    assert [(item.id, item.lang) for item in documents] == [(f"s/a.parquet:{i}", "en") for i in (1, 3, 4)]
    assert next((item.origin, item.n_bytes) for item in bad) == ("s/a.parquet:2", 300_000)
    assert bad[1].reason.startswith("3 rows: column expands")


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_file_and_stream_areread(tmp_path: Path, stream: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Arrow needs the corpus extra")
    table = pyarrow.table({"text": ["one", None, "z" * 200_000, "four"], "license": ["MIT", "", "", ""]})
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with make(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (tmp_path / "b.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:200])
    documents, bad = read(tmp_path, limits=ReadLimits(max_record_mb=0.1))
    assert [(item.id, item.text, item.license) for item in documents] == [
        ("s/a.arrow:1", "one", "MIT"),
        ("s/a.arrow:4", "four", ""),
    ]
    assert [item.origin for item in bad] == ["s/a.arrow:2", "s/a.arrow:3", "s/b.arrow:1"]


def test_source_tree_tells_language_and_licence(tmp_path: Path) -> None:
    mit = "Permission is hereby granted, free of charge, to any person\nobtaining a copy of this software"
    for name, text in {
        "LICENSE": mit,
        "src/a.py": "x = 1",
        "src/b.rs": "// SPDX-License-Identifier: GPL-2.0 OR MIT\nfn main() {}",
        "vendor/COPYING": "Apache License\n Version 2.0, January 2004",
        "vendor/c.go": "package c",
        "vendor/LICENSE-notes": "whatever",
        "node_modules/d.js": "left out",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    documents, bad = read(tmp_path)
    assert {item.id: (item.lang, item.license) for item in documents} == {
        "s/src/a.py": ("python", "MIT"),
        "s/src/b.rs": ("rust", "GPL-2.0 OR MIT"),
        "s/vendor/c.go": ("go", "Apache-2.0"),
    }
    assert [item.reason for item in bad] == ["left out: 3 files, this one first: no ending says what they are"]


def test_missing_or_useless_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give a file or a folder"):
        find_files(SourceOptions(path=str(tmp_path / "none")))
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="has 1 files, none of a known kind"):
        find_files(SourceOptions(path=str(tmp_path)))
