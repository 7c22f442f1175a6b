"""Official files: JSON lines, JSON, tables and archives, plain or compressed, each row with its file and line."""

import csv
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from isoflop.errors import DataError
from isoflop.evaluation.tasks.task import Item, Loaded, Row, load


def find(folder: Path, *names: str) -> Path:
    """The first of these files that is there.

    Raises:
        DataError: none is.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz", folder / f"{name}.zst"):
            if path.is_file():
                return path
    raise DataError(f"{folder} has no {' or '.join(names)}; give the folder of official files with --data")


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        DataError: not UTF-8, or a broken archive.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(data) as stream:
                data = stream.read()
        return data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error


def json_lines(path: Path, text: str | None = None) -> Iterator[Row]:
    """Objects, one a line; lines end with a line feed and nothing else."""
    for number, line in enumerate((read_text(path) if text is None else text).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"{path}:{number}", _Bad(f"no JSON ({error})")
            continue
        yield f"{path}:{number}", row if isinstance(row, dict) else _Bad("no object")


class _Bad(dict):
    """A row that could not be parsed: any use of it says why."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def __missing__(self, key: str) -> Any:
        raise ValueError(self.why)

    def get(self, key: str, default: Any = None) -> Any:
        raise ValueError(self.why)

    def __contains__(self, key: object) -> bool:
        raise ValueError(self.why)


def each_line(make: Callable[[str, Any], Iterable[Item]], folder: str, *names: str) -> Callable[[Path, int], Loaded]:
    """How a task without worked examples is read: `make` gets every line of the first of these files that is there."""
    return lambda data, n_shots: load(json_lines(find(data / folder, *names)), make)


def whole_json(path: Path) -> Any:
    """One JSON document.

    Raises:
        DataError: it is none.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}); fetch it again") from error


def table(path: Path, text: str, *, header: bool, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a table: dicts with a header, lists without."""
    file = io.StringIO(text, newline="")
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = csv.reader(file, delimiter=delimiter, quoting=quoting)
    try:
        names = next(lines, []) if header else []
        for row in lines:
            if row:
                yield f"{path}:{lines.line_num}", dict(zip(names, row)) if header else row
    except csv.Error as error:  # such as an open quote: the rest of the file is one cell
        raise DataError(f"{path}:{lines.line_num} is no table ({error}); fetch it again") from error


def members(folder: Path, archive: str, inside: str, ending: str) -> Iterator[tuple[Path, str]]:
    """(path, text) of the files below `inside`, from the archive or from its unpacked copy; sorted by name.

    Raises:
        DataError: neither is there, or the archive is broken.
    """
    path = folder / archive
    if path.is_file():
        try:
            data = path.read_bytes()  # unpacked as a whole: only then gzip compares its checksum
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            with tarfile.open(fileobj=io.BytesIO(data)) as opened:
                names = sorted(n for n in opened.getnames() if n.startswith(f"{inside}/") and n.endswith(ending))
                for name in names:
                    file = opened.extractfile(name)
                    if file is not None:
                        yield path / name, file.read().decode("utf-8-sig")
        except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
        return
    found = sorted((folder / inside).glob(f"*{ending}"))
    if not found:
        raise DataError(f"{folder} has no {archive} and no {inside}/*{ending}; give the official files with --data")
    for found_path in found:
        yield found_path, read_text(found_path)
