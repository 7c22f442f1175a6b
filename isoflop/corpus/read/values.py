"""JSON that is not one record a line, and CSV, as records: in bounded memory, one bad record at the cost of itself.

JSON files are lists of records, records one behind the other, or one record over many lines, from any program.
Where a record is damaged, reading continues at the next line that begins with a brace, and the bytes between are named.
"""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from isoflop.corpus.document import BadRecord, OnBad, SourceOptions
from isoflop.corpus.read.bytes import ByteStream, Line, split_lines
from isoflop.corpus.read.compressed import BrokenStream

_BETWEEN = b" \t\r\n,[]"
"""What stands between records, and around a list of them."""
_NEXT = re.compile(rb"\n[ \t]*\{|\},[ \t]*\{")

Records = Iterator[tuple[str, dict[str, Any]]]


def read_json(stream: ByteStream, origin: str, source: SourceOptions, on_bad: OnBad) -> Records:
    """(place, record) of every object at the top of a JSON file or in the list that it is."""
    reader, number = _Values(stream, source.limits.max_record_bytes), 0
    while (found := reader.next_value()) is not None:
        number += 1
        where = f"{origin}:{number}"
        if isinstance(found, str):
            on_bad(BadRecord(where, found[:300], reader.n_bytes))
        elif isinstance(found, dict):
            yield where, found
        else:
            on_bad(BadRecord(where, "not a JSON object", reader.n_bytes))
    if reader.broken:
        on_bad(BadRecord(f"{origin}:{number + 1}", f"file ends here: {reader.broken}"[:300]))


class _Values:
    """Values cut out of a stream of JSON text."""

    def __init__(self, stream: ByteStream, max_bytes: int):
        self._stream, self._max = stream, max_bytes
        self._held, self._at, self._ended = b"", 0, False
        self.n_bytes = 0
        """Of the value or the damaged range that came last."""
        self.broken: BrokenStream | None = None

    def next_value(self) -> Any:
        """The next value; a sentence (str) for bytes that are none; None at the end."""
        while not (rest := self._held.lstrip(_BETWEEN)):
            self._at, self._held = self._at + len(self._held), b""
            if not self._more():
                return None
        self._at, self._held = self._at + len(self._held) - len(rest), rest
        if rest[:1] != b"{":
            return self._damaged("no JSON object begins here")
        size = 1 << 16
        while True:
            while len(self._held) < size and self._more():
                pass
            try:
                text = self._held[:size].decode("utf-8", "surrogateescape")
                value, end = json.JSONDecoder().raw_decode(text)
                self._consume(len(text[:end].encode("utf-8", "surrogateescape")))
                return value if _clean(value) else "text is not UTF-8"
            except RecursionError:
                return self._damaged("nested too deep")
            except ValueError as error:
                if size >= len(self._held) and self._ended:
                    return self._damaged(f"bad JSON: {error}")
                if size > self._max:
                    return self._damaged("record is damaged, or longer than limits.max_record_mb")
                if _settled(error, self._held[:size]):
                    return self._damaged(f"bad JSON: {error}")
                size *= 4

    def _more(self) -> bool:
        if self._ended:
            return False
        try:
            data = self._stream.read()
        except BrokenStream as problem:
            self.broken, data = problem, b""
        self._ended = not data
        self._held += data
        return bool(data)

    def _consume(self, size: int) -> None:
        self.n_bytes = size
        self._at, self._held = self._at + size, self._held[size:]

    def _damaged(self, reason: str) -> str:
        """Pass over what is none, to the next line (or place in a list) that begins an object."""
        start = self._at
        self._consume(1)
        while True:
            found = _NEXT.search(self._held)
            if found:
                self._consume(found.end() - 1)
                break
            self._consume(max(0, len(self._held) - 64))
            if not self._more():
                self._consume(len(self._held))
                break
        self.n_bytes = self._at - start
        return f"bytes {start} to {self._at}: {reason}"


def _clean(value: Any) -> bool:
    """Whether no byte stood in the text that is not UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return not 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF
    return True


def _settled(error: ValueError, held: bytes) -> bool:
    """Whether more text could not mend it: the error lies well before the end of what was looked at."""
    position = getattr(error, "pos", None)
    return position is not None and "Unterminated string" not in str(error) and position < len(held) // 2


def read_csv(stream: ByteStream, origin: str, source: SourceOptions, on_bad: OnBad) -> Records:
    """(place, record) of every row, its values under the names of the first one. The place is the row's first line."""
    lines = _TextLines(stream, origin, source, on_bad)
    try:
        first = next(lines)
    except StopIteration:
        on_bad(BadRecord(origin, "empty"))
        return
    names = next(csv.reader([first], delimiter=(delimiter := _delimiter(first, source.text_key))))
    if source.text_key not in names:
        on_bad(BadRecord(origin, f"no column text_key = {source.text_key!r}; the file has: {', '.join(names[:20])}"))
        return
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated in (source.text_key, source.lang_key):
        on_bad(BadRecord(origin, f"two columns are named {repeated!r}; rename one"))
        return
    before = csv.field_size_limit(source.limits.max_record_bytes)
    try:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            number = lines.number + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                on_bad(BadRecord(f"{origin}:{number}", f"bad CSV, lines {number} to {lines.number}: {error}"[:300]))
                continue
            if len(row) == len(names):
                yield f"{origin}:{number}", dict(zip(names, row, strict=True))
            elif row:
                on_bad(BadRecord(f"{origin}:{number}", f"{len(row)} values for {len(names)} columns", len(str(row))))
    finally:
        csv.field_size_limit(before)


def _delimiter(first: str, text_key: str) -> str:
    """The sign at which the first line falls into names with the text's among them."""
    for sign in (",", "\t", ";", "|"):
        if text_key in next(csv.reader([first], delimiter=sign)):
            return sign
    return ","


class _TextLines:
    """Lines of a stream as text with their line ends, for the csv module; `number` is that of the last one."""

    def __init__(self, stream: ByteStream, origin: str, source: SourceOptions, on_bad: OnBad):
        self._lines = split_lines(stream, source.limits.max_record_bytes)
        self._origin, self._on_bad = origin, on_bad
        self.number = 0

    def __iter__(self) -> "_TextLines":
        return self

    def __next__(self) -> str:
        for line in self._lines:
            where = f"{self._origin}:{self.number + 1}"
            if isinstance(line, BrokenStream):
                self._on_bad(BadRecord(where, f"file ends here: {line}"[:300]))
                continue
            self.number = line.number
            text = self._text(line, where)
            if text is not None:
                return text
        raise StopIteration

    def _text(self, line: Line, where: str) -> str | None:
        if line.data is None:
            self._on_bad(BadRecord(where, "line is longer than limits.max_record_mb", line.n_bytes))
            return None
        try:
            return line.data.decode("utf-8") + ("\n" if line.ended else "")
        except UnicodeDecodeError as error:
            self._on_bad(BadRecord(where, f"not UTF-8 at byte {error.start}", line.n_bytes))
            return None
