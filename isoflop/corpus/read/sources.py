"""Sources of a recipe -> iterator of Document. A record that can't be read is set aside with its place, never fatal.

    folder --find_files--> files --read_file--> Document ...      and BadRecord ... through `on_bad`

Kinds, by name (compressed by content, save the last two): JSON lines, JSON, CSV, HTML, WARC, plain text, Markdown,
source code; Parquet, Arrow. A file of another name that a recipe names itself is read as what its first bytes say, or
set aside; in a folder such files are left out, and counted. JSON lines are split on \\n only: documents may hold U+0085
or U+2028. Memory is bounded by `ReadLimits`, whatever the files hold.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from isoflop.corpus.document import BadRecord, Document, OnBad, SourceOptions
from isoflop.corpus.read.bytes import COMPRESSED_SUFFIXES, ByteStream, ReadLimits, as_utf8, open_bytes, split_lines
from isoflop.corpus.read.code import LANGUAGES, licence_of, programming_language
from isoflop.corpus.read.compressed import BrokenStream
from isoflop.corpus.read.encoding import NotText, decode_text, is_encodable
from isoflop.corpus.read.tables import read_arrow, read_parquet
from isoflop.corpus.read.values import Records, read_csv, read_json
from isoflop.corpus.read.web import read_html, read_warc
from isoflop.errors import DataError

Kind = Literal["jsonl", "json", "csv", "parquet", "arrow", "html", "warc", "code", "text"]

_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv", ".tsv"),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".wet"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "code": tuple(f".{suffix}" for suffix in LANGUAGES),
    "text": (".txt", ".md", ".rst", ".tex", ".text", ".markdown", ".org"),
}
_LEFT_OUT_FOLDERS = frozenset(["__pycache__", "node_modules"])


def find_files(source: SourceOptions, on_bad: OnBad | None = None) -> list[Path]:
    """Readable files of a source in reading order; links are followed, each file and folder is taken once.

    Raises:
        DataError: the path is missing, or nothing in it is of a known kind.
    """
    root = Path(source.path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"sources.path = {source.path!r} does not exist; give a file or a folder with text")
    found, bad, status = [], [], root.stat()
    _walk(root, root, source.label, {(status.st_dev, status.st_ino)}, found, bad)
    known = [path for path in found if kind_of(path)]
    left_out = [path for path in found if not kind_of(path)]
    if not known:
        raise DataError(
            f"sources.path = {source.path!r} has {len(found)} files, none of a known kind"
            + (f" ({len(bad)} can't be read; first: {bad[0].origin}: {bad[0].reason})" if bad else "")
            + "; known: .jsonl, .json, .csv, .html, .warc, .txt, .md, .rst, .tex, source code (also .gz, .zst, .bz2, "
            + ".xz), .parquet, .arrow"
        )
    bad += _left_out(left_out, root, source.label)
    for problem in bad:
        if on_bad:
            on_bad(problem)
    return known


def _left_out(paths: list[Path], root: Path, label: str) -> Iterator[BadRecord]:
    """Files of unknown kind, a record for each ending: they stand in quarantine, manifest and report."""
    by_ending: dict[str, list[Path]] = {}
    for path in paths:
        by_ending.setdefault(path.suffix.lower(), []).append(path)
    for ending, group in sorted(by_ending.items()):
        first = group[0].relative_to(root).as_posix()
        n_bytes = sum(path.stat().st_size for path in group)
        what = f"{ending} is no known kind" if ending else "no ending says what they are"
        yield BadRecord(f"{label}/{first}", f"left out: {len(group)} files, this one first: {what}", n_bytes)


def read_file(path: Path, origin: str, source: SourceOptions, on_bad: OnBad) -> Iterator[Document]:
    """Documents of one file. `origin` names it in ids and in the quarantine."""
    try:
        kind = kind_of(path) or kind_by_content(path, source.limits)
        if kind in ("parquet", "arrow"):
            records = (read_parquet if kind == "parquet" else read_arrow)(path, origin, source, on_bad)
            yield from _documents(records, source, on_bad)
            return
        with open_bytes(path, source.limits) as stream:
            if kind in ("jsonl", "json", "csv"):
                read = {"jsonl": _json_records, "json": read_json, "csv": read_csv}[kind]
                yield from _documents(read(as_utf8(stream), origin, source, on_bad), source, on_bad)
            elif kind in ("html", "warc"):
                yield from (read_html if kind == "html" else read_warc)(stream, origin, source, on_bad)
            else:
                yield from _text_documents(stream, path, origin, source, on_bad)
    except OSError as error:
        on_bad(BadRecord(origin, f"can't be read: {error.strerror or error}"[:300]))


def kind_of(path: Path) -> Kind | None:
    """How a file is read, from its name; None when unknown."""
    path = Path(path.name.lower())
    plain = path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path
    kind: Kind | None = next((kind for kind, suffixes in _SUFFIXES.items() if plain.suffix in suffixes), None)
    return None if kind in ("parquet", "arrow") and plain != path else kind


_SIGNS: tuple[tuple[bytes, Kind | None, str], ...] = (
    (b"PAR1", "parquet", ""),
    (b"ARROW1", "arrow", ""),
    (b"WARC/", "warc", ""),
    (b"%PDF", None, "a PDF"),
    (b"PK\x03\x04", None, "a zip archive or an Office document"),
    (b"\x89PNG", None, "an image"),
    (b"\xff\xd8\xff", None, "an image"),
    (b"SQLite format 3", None, "a database"),
    (b"\x80\x02", None, "a pickle, which is never opened"),
)


def kind_by_content(path: Path, limits: ReadLimits) -> Kind:
    """How a file is read whose name does not say it.

    Raises:
        BrokenStream: what it is can't be read as text.
    """
    with open_bytes(path, limits) as stream:
        head = as_utf8(stream).read(4096)
    for sign, kind, what in _SIGNS:
        if head.startswith(sign):
            if kind is None:
                raise BrokenStream(f"is {what}; convert it to text, JSON lines or Parquet")
            return kind
    if head[257:262] == b"ustar":
        raise BrokenStream("is a tar archive; unpack it")
    start = head.lstrip()
    if start[:1] in (b"{", b"["):
        with contextlib.suppress(ValueError):
            json.JSONDecoder().raw_decode(start.decode("utf-8", "ignore").partition("\n")[0])
            return "json"
    return "html" if start[:15].lower().startswith((b"<!doctype html", b"<html")) else "text"


def decode(data: bytes, origin: str, on_bad: OnBad, declared: str = "") -> str | None:
    """Text of a whole file in whatever encoding it is; None (and a bad record) where it is no text."""
    try:
        found = decode_text(data, declared)
    except NotText as error:
        on_bad(BadRecord(origin, str(error), len(data)))
        return None
    if found.n_repaired:
        on_bad(BadRecord(origin, f"repaired: {found.n_repaired} damaged places in {found.encoding}", kept=True))
    if not found.text.strip():
        on_bad(BadRecord(origin, "empty", len(data)))
        return None
    return found.text


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a file of a finished corpus."""
    with open_bytes(path, ReadLimits(max_expansion=float("inf"))) as stream:
        for line in split_lines(stream, 1 << 40):
            if isinstance(line, BrokenStream):
                raise DataError(f"{path} is damaged ({line}); delete its folder and build the corpus again")
            yield json.loads(line.data or b"")["text"]


def _documents(records: Records, source: SourceOptions, on_bad: OnBad) -> Iterator[Document]:
    for where, record in records:
        text = record.get(source.text_key)
        if not isinstance(text, str) or not text.strip():
            on_bad(BadRecord(where, f"no text under {source.text_key!r}"))
        elif not is_encodable(text):
            on_bad(BadRecord(where, "text has unpaired surrogates", len(text)))
        else:
            licence = record.get("license") or record.get("licence") or source.license
            lang = record.get(source.lang_key) or source.lang
            # the record's own id may repeat, its place in the file can't
            yield Document(where, text, source.domain, where, str(licence), str(lang))


def _json_records(stream: ByteStream, origin: str, source: SourceOptions, on_bad: OnBad) -> Records:
    number, limit = 0, source.limits
    for line in split_lines(stream, limit.max_record_bytes):
        if isinstance(line, BrokenStream):
            on_bad(BadRecord(f"{origin}:{number + 1}", f"file ends here: {line}"[:300]))
            continue
        number = line.number
        where = f"{origin}:{number}"
        if line.data is None:
            on_bad(
                BadRecord(where, f"line is longer than limits.max_record_mb = {limit.max_record_mb:g}", line.n_bytes)
            )
            continue
        if not line.data.strip():
            continue
        try:
            record = json.loads(line.data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            on_bad(BadRecord(where, f"bad JSON: {error}"[:200], line.n_bytes))
            continue
        if isinstance(record, dict):
            yield where, record
        else:
            on_bad(BadRecord(where, "not a JSON object", line.n_bytes))


def _text_documents(
    stream: ByteStream, path: Path, origin: str, source: SourceOptions, on_bad: OnBad
) -> Iterator[Document]:
    """Text, Markdown or code: one document, or pieces cut at line ends where the file is longer than a record."""
    lang = programming_language(path)
    licence = source.license
    for number, (data, problem, n_lost) in enumerate(_pieces(stream, source.limits)):
        where = origin if number == 0 else f"{origin}#{number}"
        if problem:
            on_bad(BadRecord(where, problem, n_lost))
        if not data:
            if not problem:
                on_bad(BadRecord(where, "empty"))
            continue
        text = decode(data, where, on_bad, source.encoding)
        if text is not None:
            if lang:
                licence = licence_of(path, Path(source.path), text) or source.license
            yield Document(where, text, source.domain, origin, licence, lang or source.lang)


def _pieces(stream: ByteStream, limits: ReadLimits) -> Iterator[tuple[bytes, str, int]]:
    """(bytes, what was set aside, its size): the whole file, or pieces at line ends where it is too long for one."""
    held, size = [], 0
    try:
        while size <= limits.max_record_bytes:
            data = stream.read()
            if not data:
                yield b"".join(held), "", 0
                return
            held.append(data)
            size += len(data)
    except OSError as error:
        yield b"".join(held), f"file ends here: {error}"[:300], 0
        return
    lines = split_lines(ByteStream(chain(held, iter(stream.read, b""))), limits.max_record_bytes)
    held, size = [], 0
    for line in lines:
        if isinstance(line, BrokenStream):
            problem, n_lost = f"file ends here: {line}"[:300], 0
        elif line.data is None:
            problem, n_lost = f"line is longer than limits.max_record_mb = {limits.max_record_mb:g}", line.n_bytes
        else:
            if held and size + line.n_bytes > limits.max_record_bytes:
                yield b"".join(held), "", 0
                held, size = [], 0
            held += [line.data, b"\n"] if line.ended else [line.data]
            size += line.n_bytes + 1
            continue
        if held:
            yield b"".join(held), "", 0
            held, size = [], 0
        yield b"", problem, n_lost
    if held:
        yield b"".join(held), "", 0


def _walk(
    folder: Path, root: Path, label: str, seen: set[tuple[int, int]], found: list[Path], bad: list[BadRecord]
) -> None:
    """Files under a folder, sorted; a link to a folder or file that was taken already is passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        bad.append(BadRecord(f"{label}/{folder.relative_to(root).as_posix()}", f"can't be listed: {error.strerror}"))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _LEFT_OUT_FOLDERS:
            continue
        path = folder / entry.name
        origin = f"{label}/{path.relative_to(root).as_posix()}"
        try:
            status = path.stat()
        except OSError as error:
            bad.append(BadRecord(origin, f"can't be followed: {error.strerror}"))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in seen and (entry.is_symlink() or stat.S_ISDIR(status.st_mode)):
            bad.append(BadRecord(origin, "link to what is read already", kept=True))
        elif stat.S_ISDIR(status.st_mode):
            seen.add(identity)
            _walk(path, root, label, seen, found, bad)
        elif stat.S_ISREG(status.st_mode):
            seen.add(identity)
            found.append(path)
        elif kind_of(path):
            bad.append(BadRecord(origin, "not a regular file (pipe, socket or device)"))
