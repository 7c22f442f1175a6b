"""Safetensors files read and written piece by piece, so that no tensor has to fit in memory.

A file is eight bytes (length of the header), a JSON header (name -> dtype, shape, byte range) and the values. Reading
here takes a range of rows at a time and never maps the file, writing appends rows in the order of the header. Every
number of the header is checked before a value is read.

A tensor is seen as rows: all dimensions but the last are flattened. A vector is one column.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
"""As in the format's own library: a longer header is damage."""
CHUNK_BYTES = 4 << 20
"""Rows are moved in portions of about this many bytes (assumption: fast on any disk, small beside a shard)."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, from the beginning of the file."""

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def n_columns(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file, opened for reading: `entries` by name, `rows` of one of them."""

    def __init__(self, path: Path):
        """Raises CheckpointError: not there, truncated, or a header that contradicts itself or the file's length."""
        self.path = path
        self.entries, self.metadata = _read_header(path)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows first..last of a tensor, [rows, columns], in memory of their own."""
        entry = self.entries[name]
        row_bytes = entry.n_columns * entry.dtype.itemsize
        content = bytearray((last - first) * row_bytes)
        with self.path.open("rb") as file:
            file.seek(entry.start + first * row_bytes)
            if file.readinto(content) < len(content):
                raise CheckpointError(
                    f"{self.path} ends inside {name}: it was cut while being read; get the file again"
                )
        if not content:
            return torch.empty(last - first, entry.n_columns, dtype=entry.dtype)
        return torch.frombuffer(content, dtype=entry.dtype).view(last - first, entry.n_columns)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor in its shape."""
        entry = self.entries[name]
        return self.rows(name, 0, entry.n_rows).view(entry.shape)


def chunks(n_rows: int, row_bytes: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about CHUNK_BYTES, each but the last a multiple of `multiple` rows."""
    step = max(1, CHUNK_BYTES // max(1, row_bytes) // multiple) * multiple
    for first in range(0, n_rows, step):
        yield first, min(n_rows, first + step)


class TensorWriter:
    """Writes a safetensors file whose tensors are all known beforehand; rows come in the order of `plan`.

    Use as a context: leaving it flushes to disk and checks that everything promised was written. `sha256` is the hash
    of the file after that.
    """

    def __init__(
        self, path: Path, plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
    ):
        self.path, self._hash, self.sha256 = path, hashlib.sha256(), ""
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        position = 0
        for name, (dtype, shape) in plan.items():
            end = position + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAME_OF[dtype], "shape": list(shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # values start at a multiple of eight, as the format's own library writes them
        self._head = len(text).to_bytes(8, "little") + text
        self._left, self._plan = position, plan

    def __enter__(self) -> "TensorWriter":
        self._file = self.path.open("wb")
        self._put(self._head)
        return self

    def write(self, rows: Tensor, name: str) -> None:
        """Append values of tensor `name`, which must be the one whose turn it is."""
        assert rows.dtype == self._plan[name][0], f"{name} is {rows.dtype}, planned {self._plan[name][0]}"
        content = rows.contiguous().reshape(-1).view(torch.uint8).numpy()
        self._left -= content.nbytes
        self._put(content.data)

    def _put(self, content: bytes | memoryview) -> None:
        self._hash.update(content)
        self._file.write(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._left == 0, f"{self.path}: {self._left} bytes were planned and not written"
                self._file.flush()
                os.fsync(self._file.fileno())
                self.sha256 = self._hash.hexdigest()
        finally:
            self._file.close()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write in, which appears as `out` if the block ends well and vanishes if it does not.

    Raises:
        CheckpointError: an `out` that exists, unless it is an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"--out {out} exists already; delete it or give another folder")
    out = Path(os.path.realpath(out)) if out.is_symlink() else out  # an empty folder behind a link is filled
    work = out.parent / f".{out.name}.writing-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if out.exists():
            out.rmdir()
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path} is truncated or not safetensors: {size} bytes, the header alone would need {8 + length}; "
                    f"get the file again"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; get the missing file, or correct the index") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not safetensors: its header is not JSON; get the file again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not safetensors: its header is not a table; get the file again")
    metadata = header.pop("__metadata__", {})
    entries, position = {}, 8 + length
    for name, item in sorted(header.items(), key=lambda pair: _offset(pair[1])):
        entries[name] = _entry(path, name, item, 8 + length)
        if entries[name].start != position:
            raise CheckpointError(f"{path}: the values of {name} overlap others or leave a gap; get the file again")
        position += entries[name].n_bytes
    if position != size:
        raise CheckpointError(
            f"{path} has {size} bytes, its header describes {position}: "
            f"{'truncated' if size < position else 'something follows the last tensor'}; get the file again"
        )
    return entries, metadata if isinstance(metadata, dict) else {}


def _offset(item: Any) -> tuple[int, int]:
    try:
        return int(item["data_offsets"][0]), int(item["data_offsets"][1])
    except (TypeError, KeyError, IndexError, ValueError):
        return 0, 0  # _entry says what is wrong


def _entry(path: Path, name: str, item: Any, base: int) -> Entry:
    try:
        dtype, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        sound = all(isinstance(n, int) and n >= 0 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry of {name} is incomplete; get the file again") from error
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype}; readable are {', '.join(DTYPES)}")
    if not sound or end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"{path}: {name} of shape {list(shape)} and dtype {dtype} does not fit its bytes {start}..{end}; "
            f"get the file again"
        )
    return Entry(DTYPES[dtype], shape, base + start)
