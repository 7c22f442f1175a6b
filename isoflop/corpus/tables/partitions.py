"""Tables on disk: folders of Parquet partitions, through which every stage of the corpus reads and writes.

A row belongs to the partition that the first hex digits of its key name, and lies there in the order of the sort
columns. The number of partitions comes from the recipe, never from the machine; so the same rows give the same files,
byte for byte, whatever the order they came in and however many workers wrote them.

    rows --write_run--> RUN.arrow, one batch per partition --read_runs--> rows of one partition, sorted
         --write_partition--> FOLDER/part-00007.parquet --finish--> FOLDER/table.json: complete

A run is a bounded piece of the input, cut up by partition; it stays on disk, so a shuffle of any size needs the memory
of one run, then of one partition. Runs and partitions appear under their names when complete: what exists need not be
made again. That is all there is to resuming a stage.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import DataError
from isoflop.recipe import write_json
from isoflop.run import file_sha256

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENT_COLUMNS = ("key", "origin", "source", "domain", "lang", "license", "text")
"""All strings; see the corpus page of the documentation for what each holds."""

SORT_COLUMNS = ("key", "origin")
KEY_DIGITS = 32
ROW_GROUP = 4096  # assumption: rows of a Parquet row group; small, so that one can be read without the others


@dataclass(frozen=True)
class TableInfo:
    """What `table.json` says of a complete folder."""

    n_partitions: int
    n_rows: int
    n_text_bytes: int
    """UTF-8 bytes in the column `text`, 0 where there is none."""
    sha256: str
    """Of the hashes of all partition files."""
    files: tuple[dict[str, Any], ...]
    """Per partition: name, n_rows, n_text_bytes, sha256."""


def document_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([(name, pa.large_string() if name == "text" else pa.string()) for name in DOCUMENT_COLUMNS])


def document_key(domain: str, text: str) -> str:
    """32 hex digits that depend on domain and text alone: equal documents have equal keys on every machine."""
    return hashlib.sha256(f"{domain}\0{text}".encode()).hexdigest()[:KEY_DIGITS]


def partition_of(keys: "pa.ChunkedArray | pa.Array", n_partitions: int) -> np.ndarray:
    """Partition of each key, int64 (n,): ranges of the first 8 hex digits, so partitions in order are keys in order."""
    values = np.array([int(key[:8], 16) for key in keys.to_pylist()], dtype=np.int64)
    return values * n_partitions >> 32


def write_run(path: Path, rows: "pa.Table", n_partitions: int) -> None:
    """Write `rows` cut up by partition: batch i of the file has the rows of partition i, in the order they came."""
    parts = partition_of(rows.column("key"), n_partitions)
    order = np.argsort(parts, kind="stable").astype(np.int64)
    write_batches(path, rows.take(order), np.bincount(parts, minlength=n_partitions))


def write_batches(path: Path, rows: "pa.Table", counts: Sequence[int] | np.ndarray) -> None:
    """Write an Arrow file whose batch i holds the next `counts[i]` rows. Appears under its name when complete."""
    import pyarrow as pa

    rows = rows.combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, rows.schema, options=options) as writer,
    ):
        offset = 0
        for count in np.asarray(counts).tolist():
            part = rows.slice(offset, count)
            for batch in part.to_batches() or [pa.RecordBatch.from_pylist([], schema=rows.schema)]:
                writer.write_batch(batch)
            offset += count


def read_runs(paths: Iterable[Path], partition: int, *, sort_by: Sequence[str] = SORT_COLUMNS) -> "pa.Table":
    """Rows of one partition out of all runs, sorted. The order of `paths` does not matter if the sort is total."""
    import pyarrow as pa

    batches, schema = [], None
    for path in paths:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            schema = reader.schema
            batches.append(reader.get_batch(partition))
    if schema is None:
        raise DataError("no run to read: the stage before wrote nothing; run it again")
    rows = pa.Table.from_batches(batches, schema)
    return rows.sort_by([(name, "ascending") for name in sort_by]) if sort_by else rows


def partition_path(folder: Path, partition: int) -> Path:
    return folder / f"part-{partition:05d}.parquet"


def write_partition(folder: Path, partition: int, rows: "pa.Table") -> None:
    """Write one partition, rows as they are. Equal rows give equal bytes; appears under its name when complete."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(partition_path(folder, partition)) as temporary:
        pq.write_table(
            rows.combine_chunks(), temporary, compression="zstd", compression_level=3, row_group_size=ROW_GROUP
        )


def read_partition(folder: Path, partition: int, columns: Sequence[str] | None = None) -> "pa.Table":
    """One partition, or some of its columns. Raises DataError where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = partition_path(folder, partition)
    try:
        with pq.ParquetFile(path) as file:
            return file.read(None if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} can't be read ({error}); delete {folder} and run the stage again") from error


def finish(folder: Path, n_partitions: int) -> TableInfo:
    """Write `table.json`: from here on the folder counts as complete. What a killed writer left is removed.

    Raises:
        DataError: a partition is missing.
    """
    missing = [index for index in range(n_partitions) if not partition_path(folder, index).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} of {n_partitions} partitions, first {missing[0]}; resume it")
    for left_over in folder.glob(".part-*"):
        left_over.unlink()
    files = [_describe(partition_path(folder, index)) for index in range(n_partitions)]
    info = TableInfo(
        n_partitions=n_partitions,
        n_rows=sum(item["n_rows"] for item in files),
        n_text_bytes=sum(item["n_text_bytes"] for item in files),
        sha256=hashlib.sha256("".join(item["sha256"] for item in files).encode()).hexdigest(),
        files=tuple(files),
    )
    write_json(folder / "table.json", info)
    return info


def open_table(folder: Path) -> TableInfo:
    """`table.json` of a complete folder. Raises DataError where there is none."""
    path = folder / "table.json"
    if not path.is_file():
        raise DataError(f"{folder} has no table.json: the stage that writes it did not end; run it again, it resumes")
    tree = json.loads(path.read_text(encoding="utf-8"))
    return TableInfo(**{**tree, "files": tuple(tree["files"])})


def _describe(path: Path) -> dict[str, Any]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        n_rows, n_text_bytes = file.metadata.num_rows, 0
        if "text" in file.schema_arrow.names:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=["text"]):
                n_text_bytes += int(pc.call_function("binary_length", [batch.column(0)]).to_numpy().sum())
    return {"name": path.name, "n_rows": n_rows, "n_text_bytes": n_text_bytes, "sha256": file_sha256(path)}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well, and is gone if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
