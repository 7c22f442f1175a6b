"""Files as other programs write tables -> rows of cells, with the place of each and what was inferred on the way.

Delimited text, JSON, Excel and OpenDocument sheets (python-calamine), Parquet (pyarrow): the first bytes of a file say
what it is, not its name. Cells stay as they are; `isoflop.columns` makes numbers of them.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.errors import DataError
from isoflop.run import read_json_lines

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
COMMENTS = ("#", "%", "//")
RULE = re.compile(r"[|+:= -]*---[|+:= -]*|[|+:= -]*===[|+:= -]*")
"""A line drawn between the rows of a table in Markdown or plain text."""
MOST_TITLES = 3
INSTALL = "needs {}: pip install 'isoflop[tables]', or save it as CSV"

Lines = Sequence[tuple[str, Sequence[object]]]
"""Place and cells of every line that holds anything."""


@dataclass(frozen=True)
class Rows:
    """The rows of one file, and where each stands."""

    rows: Sequence[Mapping[str, object]]
    places: Sequence[str]
    notes: list[str] = field(default_factory=list)
    """What was inferred."""


def read_rows(path: Path) -> Rows:
    """Read one file. Raises DataError: missing, no table, two columns of one name, lines of unequal length."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"table {path} {problem}; give a file of runs: .csv, .jsonl, .xlsx or .parquet")
    raw = path.read_bytes()
    if raw.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return _read_sheet(path)
    if raw.startswith(b"PAR1"):
        return _read_parquet(path)
    if raw.startswith((b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")):
        raise DataError(f"table {path} is compressed; unpack it and give the file inside")
    text, notes = _decoded(path, raw)
    start = text.lstrip()[:1]
    named = path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    if named or start == "{" or (start == "[" and path.suffix.lower() not in (".csv", ".tsv")):
        return _read_json(path, text)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    separator, lines = _split(path, text, usual, notes)
    if separator != usual:
        notes.insert(0, f"{path.name}: columns are separated by {SEPARATORS[separator]}")
    return _under_header(path, lines, notes, f" (separated by {SEPARATORS[separator]})")


def _decoded(path: Path, raw: bytes) -> tuple[str, list[str]]:
    start = raw[:4096]
    first = "utf-8-sig"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        first = "utf-16"
    elif start.count(0) > len(start) / 3:  # every other byte of Latin letters
        first = "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
    elif b"\0" in start:
        raise DataError(f"table {path} is not a table of text; save it as .csv, .xlsx or .parquet")
    for encoding in (first, "cp1252"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        name = {"cp1252": "Windows-1252"}.get(encoding, "UTF-16")
        return text, [] if encoding == "utf-8-sig" else [f"{path.name}: read as {name} text"]
    raise DataError(f"table {path} is text in no encoding that is known here; save it as UTF-8 CSV")


def _read_json(path: Path, text: str) -> Rows:
    """Objects one a line; one array of objects; or one object of columns, or of `columns` and `data`."""
    twice: list[str] = []

    def row_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        row = {name.strip(): value for name, value in pairs}
        if len(row) < len(pairs):
            twice.extend(name for name, count in Counter(name.strip() for name, _ in pairs).items() if count > 1)
        return row

    try:
        tree = json.loads(text, object_pairs_hook=row_of)
    except (ValueError, RecursionError) as error:
        tree = None
        if text.lstrip().startswith("[") or "\n" not in text.strip():
            raise DataError(f"table {path} is not JSON ({error}); export it again") from error
    if isinstance(tree, dict) and {"columns", "data"} <= {*tree}:
        tree = _of_columns_and_data(path, tree["columns"], tree["data"])
    elif isinstance(tree, dict) and tree and all(isinstance(value, (dict, list)) for value in tree.values()):
        columns = [[*column.values()] if isinstance(column, dict) else column for column in tree.values()]
        tree = [dict(zip(tree, row)) for row in zip(*columns)] if len({*map(len, columns)}) == 1 else tree
    if isinstance(tree, list):
        if not all(isinstance(row, dict) for row in tree):
            raise DataError(f"table {path} is a list of something else than objects; one run is one object")
        rows, places = tree, [f"{path.name} row {number}" for number in range(1, len(tree) + 1)]
    else:
        twice.clear()
        data = text.encode()  # the file itself may be UTF-16
        rows = read_json_lines(path, pairs=row_of, data=data)
        lines = (number for number, line in enumerate(data.split(b"\n"), start=1) if line.strip())
        places = [f"{path.name} line {number}" for number, _ in zip(lines, rows)]
    if twice:
        raise DataError(f"table {path} has a row that names {twice[0]} twice; rename or remove one of the two")
    return Rows(rows, places)


def _of_columns_and_data(path: Path, names: object, data: object) -> list[dict[str, object]]:
    """What pandas writes with orient="split"."""
    if not isinstance(names, list) or not isinstance(data, list):
        raise DataError(f"table {path} has columns and data that are no lists; export it again as CSV")
    texts = [str(name).strip() for name in names]
    for name, count in Counter(texts).items():
        if count > 1:
            raise DataError(f"table {path} has two columns named {name}; rename or remove one of them")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, list) or len(row) != len(texts):
            n = len(row) if isinstance(row, list) else "no list of"
            raise DataError(f"table {path}: row {number} of data has {n} values, columns {len(texts)}; repair it")
    return [dict(zip(texts, row)) for row in data]


def _read_sheet(path: Path) -> Rows:
    try:
        from python_calamine import CalamineError, CalamineWorkbook, PasswordError
    except ImportError as error:
        raise DataError(f"table {path} is a workbook, which {INSTALL.format('python-calamine')}") from error
    try:
        book = CalamineWorkbook.from_path(path)
        sheets = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in book.sheet_names}
    except PasswordError as error:
        raise DataError(f"table {path} is locked by a password; save it without one, or as CSV") from error
    except CalamineError as error:
        raise DataError(f"table {path} is no workbook that can be read ({error}); save it as .xlsx or CSV") from error
    tables = {
        name: [
            (f"{path.name} sheet {name!r} row {number}", row)
            for number, row in enumerate(rows, start=1)
            if any(map(_filled, row))
        ]
        for name, rows in sheets.items()
    }
    named = sorted((name for name in tables if tables[name]), key=lambda name: -_n_filled(tables[name]))
    if not named:
        return Rows([], [])
    others = ", ".join(map(repr, named[1:]))
    notes = [f"{path.name}: sheet {named[0]!r} is read, the fullest, not {others}: save one as CSV to read it"]
    return _under_header(path, tables[named[0]], notes if others else [])


def _read_parquet(path: Path) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"table {path} is Parquet, which {INSTALL.format('pyarrow')}") from error
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"table {path} is damaged Parquet ({str(error).splitlines()[0][:80]}); write it again"
        ) from error
    return Rows(rows, [f"{path.name} row {number}" for number in range(1, len(rows) + 1)])


def _split(path: Path, text: str, usual: str, notes: list[str]) -> tuple[str, Lines]:
    """The separator, and each line that holds anything with its place, split by it; comments and rules are left out.

    The separator is the one that splits the header furthest and every line below a title into as many values; where
    none does, the one that splits the header furthest, so that the error names the line.
    """
    stated = re.match(r"sep=([,;\t|])\r?\n", text)  # a first line that spreadsheets write and understand
    plain, comments = _without_comments(list(io.StringIO(text, newline="")), notes, path)
    tried: dict[str, list[tuple[str, list[str]]]] = {}
    broken = ""
    for separator in stated[1] if stated else dict.fromkeys([usual, *SEPARATORS]):
        given = (re.sub(r"[ \t]+", " ", line).strip(" ") for line in plain) if separator == " " else iter(plain)
        reader = csv.reader(given, delimiter=separator, strict=True, skipinitialspace=True)
        lines = []
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    lines.append((f"{path.name} line {reader.line_num}", [*row]))
        except csv.Error as error:
            broken = broken or f"line {reader.line_num} is not CSV text ({error}); close the quotes"
            continue
        tried[separator] = lines[1:] if stated else lines
    below = {separator: _below_titles(lines) for separator, lines in tried.items()}
    even = [s for s, lines in below.items() if lines and {len(row) for _, row in lines} == {len(lines[0][1])}]
    several = [s for s in even if len(below[s][0][1]) > 1]
    if broken and not several:
        raise DataError(f"table {path} {broken}, or save it as UTF-8 CSV")
    marked = [s for s in several if s != " "] or several or [s for s in tried if s != " "]  # spaces as a last resort
    untitled = [s for s in marked if len(below[s]) == len(tried[s])] or marked
    best = max(untitled, key=lambda s: len(below[s][0][1]) if below[s] else 0)
    lines = tried[best]
    if comments and below[best] and all(map(_is_number, below[best][0][1])):
        header = next(csv.reader([re.sub(r"[ \t]+", " ", comments[-1])], delimiter=best))
        if len(header) == len(below[best][0][1]):
            notes.append(f"{path.name}: the comment above the numbers is read as their header")
            lines = [(f"{path.name} header", [*header]), *below[best]]
    return best, lines


def _without_comments(lines: list[str], notes: list[str], path: Path) -> tuple[list[str], list[str]]:
    """Lines with comments, rules and outer bars made empty (numbers of lines stay), and comments before any other line.

    Where most lines begin with the mark it is part of a name.
    """
    filled = [index for index, line in enumerate(lines) if line.strip() and not RULE.fullmatch(line.strip())]
    marked = [index for index in filled if lines[index].lstrip().startswith(COMMENTS)]
    others = [index for index in filled if index not in set(marked)]
    before: list[str] = []
    if marked and others and (len(marked) < len(others) or marked[-1] < others[0]):
        notes.append(f"{path.name}: {len(marked)} comment lines left out, the first is line {marked[0] + 1}")
        before = [lines[index].strip().lstrip("#%/").strip() for index in marked if index < others[0]]
        filled = others
    kept = ["\n"] * len(lines)
    barred = bool(filled) and all(lines[i].strip()[:1] + lines[i].strip()[-1:] == "||" for i in filled)
    for index in filled:
        kept[index] = f"{lines[index].strip()[1:-1]}\n" if barred else lines[index]
    return kept, before


def _below_titles(lines: Lines) -> Lines:
    """Without the first lines of one filled cell where a line below has more."""
    widest = max((sum(map(_filled, row)) for _, row in lines), default=0)
    start = next((i for i, (_, row) in enumerate(lines) if widest == 1 or sum(map(_filled, row)) > 1), 0)
    return lines[start:] if start <= MOST_TITLES else lines


def _under_header(path: Path, lines: Lines, notes: list[str], split_by: str = "") -> Rows:
    """Rows by name from lines whose first one holds the names."""
    below = _below_titles(lines)
    if not below:
        return Rows([], [])
    if len(below) < len(lines):
        n_titles = len(lines) - len(below)
        notes.append(f"{path.name}: {n_titles} lines of a title left out, the first is {_text(lines[0][1])!r}")
    header = [_text([cell]) for cell in below[0][1]]
    if all(map(_is_number, filter(None, header))):
        raise DataError(
            f"table {path} has no header: its first line is {', '.join(header[:4])}; add a line of column names"
        )
    for place, row in below[1:]:
        if len(row) != len(header):
            raise DataError(
                f"table {path}: {place} has {len(row)} values, the header {len(header)}{split_by}; repair it"
            )
    wanted = [
        index for index in range(len(header)) if header[index] or any(_filled(row[index]) for _, row in below[1:])
    ]
    names = {index: header[index] or f"column {index + 1}" for index in wanted}
    for name, count in Counter(names.values()).items():
        if count > 1:
            places = " and ".join(str(index + 1) for index in wanted if names[index] == name)
            raise DataError(f"table {path} has two columns named {name} ({places}); rename or remove one of them")
    rows = [{names[i]: _stripped(row[i]) for i in wanted} for _, row in below[1:]]
    return Rows(rows, [place for place, _ in below[1:]], notes)


def _n_filled(lines: Lines) -> int:
    return sum(map(_filled, (cell for _, row in lines for cell in row)))


def _stripped(cell: object) -> object:
    return cell.strip() if isinstance(cell, str) else cell


def _filled(cell: object) -> bool:
    return cell is not None and str(cell).strip() != ""


def _text(cells: Sequence[object]) -> str:
    return " ".join(str(cell).strip() for cell in cells if _filled(cell))


def _is_number(cell: object) -> bool:
    try:
        return float(str(cell)) is not None
    except ValueError:
        return False
