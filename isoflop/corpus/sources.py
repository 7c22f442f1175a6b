"""Readers: files of any supported kind -> iterator of Document. A record that can't be read is set aside, never fatal.

Kinds, by name: JSON lines (.jsonl, also .gz and .zst), Parquet, source code, plain text. A folder is read file by file
in sorted order; files of unknown kinds are counted and left alone. JSON lines are split on \\n only: documents may hold
U+0085 or U+2028.
"""

import gzip
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import zstandard

from isoflop.errors import DataError

log = logging.getLogger(__name__)

CODE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "cuh", "rs", "go", "java", "js", "jsx", "ts", "tsx", "sh"),
        *("sql", "r", "jl", "scala", "kt", "swift", "rb", "php", "lua"),
    )
)
TEXT_SUFFIXES = frozenset([".txt", ".md", ".rst", ".tex", ".text", ".markdown"])
JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zstd", ".ndjson")


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it comes from."""

    id: str
    """Unique and the same on every machine: source name, path inside it, record."""
    text: str
    domain: str
    source: str
    """What is split as a whole between train and valid: a package, or a document of a user's corpus."""
    license: str = ""
    lang: str = ""
    """Of its record; empty: not stated."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that was set aside."""

    origin: str
    reason: str


@dataclass(frozen=True)
class SourceOptions:
    """One `[[sources]]` entry of a corpus recipe."""

    path: str
    """File or folder, relative to the folder in which the command runs."""
    domain: str = "text"
    """Domain of its documents; several sources may share one."""
    name: str = ""
    """Short unique name used in document ids; empty: the last part of `path`."""
    text_key: str = "text"
    """Key or column that holds the text, for JSON lines and Parquet."""
    license: str = ""
    """Licence of documents that state none themselves."""
    split: Literal["auto", "train", "valid"] = "auto"
    """auto: `split.valid_fraction` of the documents go to validation; or all of them to one side."""
    priority: int = 0
    """Of equal or nearly equal documents the one with the smallest priority stays, then the first by origin."""

    @property
    def label(self) -> str:
        """`name`, or the last part of the path."""
        return self.name or Path(self.path).name


OnBad = Callable[[BadRecord], None]


def find_files(source: SourceOptions) -> list[Path]:
    """Readable files of a source in reading order.

    Raises:
        DataError: the path is missing, or nothing in it is of a known kind.
    """
    root = Path(source.path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"sources.path = {source.path!r} does not exist; give a file or a folder with text")
    found = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    known = [path for path in found if kind_of(path)]
    if not known:
        raise DataError(
            f"sources.path = {source.path!r} has {len(found)} files, none of a known kind; "
            "known: .jsonl(.gz, .zst), .parquet, source code, .txt, .md, .rst, .tex"
        )
    if len(known) < len(found):
        log.info("%s: %d files of unknown kind left out", source.path, len(found) - len(known))
    return known


def read_source(source: SourceOptions, on_bad: OnBad) -> Iterator[Document]:
    """All documents of a source; what can't be read is passed to `on_bad`."""
    root = Path(source.path)
    for path in find_files(source):
        relative = path.relative_to(root).as_posix() if root.is_dir() else path.name
        yield from read_file(path, f"{source.label}/{relative}", source, on_bad)


def read_file(path: Path, origin: str, source: SourceOptions, on_bad: OnBad) -> Iterator[Document]:
    """Documents of one file. `origin` names it in ids and in the quarantine."""
    kind = kind_of(path) or "text"
    if kind in ("text", "code"):
        text = decode(path.read_bytes(), origin, on_bad)
        if text is not None:
            yield Document(origin, text, source.domain, origin, source.license)
        return
    records = _json_records(path, origin, on_bad) if kind == "jsonl" else _parquet_records(path, origin, on_bad)
    for where, record in records:
        text = record.get(source.text_key)
        if not isinstance(text, str) or not text.strip():
            on_bad(BadRecord(where, f"no text under {source.text_key!r}"))
        elif not _encodable(text):
            on_bad(BadRecord(where, "text has unpaired surrogates"))
        else:
            licence = record.get("license") or record.get("licence") or source.license
            # the record's own id may repeat, its place in the file can't
            yield Document(where, text, source.domain, where, str(licence))


def kind_of(path: Path) -> Literal["jsonl", "parquet", "code", "text"] | None:
    """How a file is read, from its name; None when unknown."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.endswith(JSON_SUFFIXES):
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    if suffix in CODE_SUFFIXES:
        return "code"
    return "text" if suffix in TEXT_SUFFIXES else None


def decode(data: bytes, origin: str, on_bad: OnBad) -> str | None:
    """UTF-8 text of a whole file, without byte order mark; None (and a bad record) where it is something else."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        on_bad(BadRecord(origin, f"not UTF-8 at byte {error.start}"))
        return None
    if not text.strip():
        on_bad(BadRecord(origin, "empty"))
        return None
    return text


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a file that `write_documents` wrote."""
    with open_binary(path) as file:
        for line in file:
            yield json.loads(line)["text"]


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """JSON lines of documents, zstandard compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as file:
        for document in documents:
            record = {
                "id": document.id,
                "text": document.text,
                "source": document.source,
                "license": document.license,
            }
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def open_binary(path: Path) -> BinaryIO:
    """Open for reading, decompressing .gz and .zst."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix in (".zst", ".zstd"):
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True, read_across_frames=True)
        return io.BufferedReader(reader, 1 << 20)  # type: ignore[arg-type]
    return path.open("rb")


def _json_records(path: Path, origin: str, on_bad: OnBad) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):  # bytes: split on \n only
                where = f"{origin}:{number}"
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    on_bad(BadRecord(where, f"bad JSON: {error}"[:200]))
                    continue
                if isinstance(record, dict):
                    yield where, record
                else:
                    on_bad(BadRecord(where, "not a JSON object"))
    except (zstandard.ZstdError, gzip.BadGzipFile, EOFError, OSError) as error:
        on_bad(BadRecord(f"{origin}:{number + 1}", f"file ends here: {error}"[:200]))


def _parquet_records(path: Path, origin: str, on_bad: OnBad) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install isoflop[corpus]") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{origin}:{number}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        on_bad(BadRecord(f"{origin}:{number + 1}", f"not readable Parquet: {error}"[:200]))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
