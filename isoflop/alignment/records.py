"""Files of conversations or pairs as plain records with their places; what cannot be read is reported, never fatal.

JSON lists, JSON lines and Parquet, the first two also with .gz or .zst behind. Lines end at "\n" only: texts may hold
U+0085 or U+2028. A place is FILE:LINE, of Parquet FILE:ROW.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from isoflop.corpus.document import BadRecord, OnBad
from isoflop.corpus.read.bytes import COMPRESSED_SUFFIXES, BrokenStream, ByteStream, ReadLimits, open_bytes, split_lines
from isoflop.errors import DataError
from isoflop.recipe import write_text

Record = tuple[str, dict[str, Any]]
"""(place, keys)."""

LIMITS = ReadLimits()
MAX_LIST_BYTES = 4_000_000_000
"""A JSON list is held in memory as a whole (assumption: larger sets come as lines or Parquet)."""
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_BATCH_ROWS = 256
_KIND, _QUOTED = re.compile(r"\d+"), re.compile(r"'[^']*'")
_BLANK = re.compile(r"[\s,]*")


class Quarantine:
    """Collects what was set aside: counts by reason for the summary, each record for the file."""

    def __init__(self) -> None:
        self.records: list[BadRecord] = []

    def __call__(self, record: BadRecord) -> None:
        self.records.append(record)

    def counts(self) -> dict[str, int]:
        """How many by reason, the most frequent first; what differs from record to record is left out."""
        found = Counter(_KIND.sub("N", _QUOTED.sub("'...'", record.reason.split(";")[0])) for record in self.records)
        return dict(found.most_common())

    def write(self, path: Path) -> None:
        """One JSON object a line: origin and reason."""
        lines = [json.dumps({"origin": r.origin, "reason": r.reason}, ensure_ascii=True) for r in self.records]
        write_text(path, "".join(f"{line}\n" for line in lines))


def find_files(paths: list[str] | tuple[str, ...], key: str) -> list[Path]:
    """Files of a list of files and folders, folders in the order of names.

    Raises:
        DataError: naming `key`, a path that is missing or holds nothing readable.
    """
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
            if not inside:
                raise DataError(f"{key}: {path} has no .json, .jsonl or .parquet file; give another folder")
            found += inside
        elif not path.exists():
            raise DataError(f"{key}: {path} does not exist; give a .json, .jsonl or .parquet file, or a folder of them")
        elif not _kind(path):
            raise DataError(f"{key}: {path} is of no known kind; known: .json, .jsonl (also .gz, .zst), .parquet")
        else:
            found.append(path)
    return found


def read_records(path: Path, on_bad: OnBad) -> Iterator[Record]:
    """All records of a file that are JSON objects, or rows of a table. Raises DataError without pyarrow."""
    try:
        if _kind(path) == ".parquet":
            yield from _rows(path, on_bad)
            return
        with open_bytes(path, LIMITS) as stream:
            head = stream.read()
            joined = ByteStream(chain([head], iter(stream.read, b"")))
            is_list = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
            yield from (_items if is_list else _lines)(joined, path.name, on_bad)
    except OSError as error:
        on_bad(BadRecord(path.name, f"can't be read: {error.strerror or error}"[:300]))


def _kind(path: Path) -> str:
    name = Path(path.name.lower())
    plain = name.with_suffix("") if name.suffix in COMPRESSED_SUFFIXES else name
    compressed = plain != name
    return plain.suffix if plain.suffix in _SUFFIXES and not (compressed and plain.suffix == ".parquet") else ""


def _lines(stream: ByteStream, name: str, on_bad: OnBad) -> Iterator[Record]:
    number = 0
    for line in split_lines(stream, LIMITS.max_record_bytes):
        where = f"{name}:{number + 1}"
        if isinstance(line, BrokenStream):
            on_bad(BadRecord(where, f"file ends here: {line}"[:300]))
            return
        number = line.number
        where = f"{name}:{number}"
        if line.data is None:
            on_bad(BadRecord(where, f"line is longer than {LIMITS.max_record_mb:g} MB", line.n_bytes))
        elif line.data.strip():
            try:
                record = json.loads(line.data.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                on_bad(BadRecord(where, f"bad JSON: {error}"[:200], line.n_bytes))
                continue
            yield from _if_object(where, record, on_bad)


def _items(stream: ByteStream, name: str, on_bad: OnBad) -> Iterator[Record]:
    """Elements of one JSON list; behind a broken one nothing can be told apart, so reading ends there."""
    data = stream.read_all(MAX_LIST_BYTES)
    if data is None:
        on_bad(BadRecord(name, f"a JSON list of more than {MAX_LIST_BYTES} bytes; write it as lines"))
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        on_bad(BadRecord(name, f"not UTF-8 at byte {error.start}", len(data)))
        return
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        skipped = _BLANK.match(text, at)
        assert skipped is not None
        at = skipped.end()
        line, counted = line + text.count("\n", counted, at), at
        where = f"{name}:{line}"
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                on_bad(BadRecord(where, "text behind the end of the JSON list"))
            return
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            on_bad(BadRecord(where, f"file ends here: bad JSON: {error}"[:200]))
            return
        yield from _if_object(where, record, on_bad)


def _rows(path: Path, on_bad: OnBad) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install isoflop[corpus]") from error
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", {key: value for key, value in record.items() if value is not None}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        on_bad(BadRecord(f"{path.name}:{number + 1}", f"not readable Parquet: {error}"[:300]))


def _if_object(where: str, record: Any, on_bad: OnBad) -> Iterator[Record]:
    if isinstance(record, dict):
        yield where, record
    else:
        on_bad(BadRecord(where, "not a JSON object"))
