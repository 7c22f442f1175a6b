"""What the phases of deduplication share: the job, numbers of documents, and who is preferred.

Documents are numbered by where they lie: dump << 56 | partition << 32 | row. The last dump is the one at work, the
ones before it were deduplicated earlier and stay as they are. Every phase is a set of tasks, one per partition, that
read files of earlier phases and write one file each; a file that is there is not made again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.tables.partitions import partition_path, read_partition, read_runs, replacing, write_batches

if TYPE_CHECKING:
    import pyarrow as pa

Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""run(function, arguments of each call): results in any order, from this process or from others on the same disk."""

DUMP, PARTITION = 56, 32
"""Bits to the left of which a document number holds its dump, its partition."""


@dataclass(frozen=True)
class Dump:
    """A table of documents, and the folder in which deduplication keeps what it knows of them."""

    documents: Path
    work: Path


@dataclass(frozen=True)
class Job:
    """One deduplication: the dumps, the one at work last, and what all tasks need to know."""

    dumps: tuple[Dump, ...]
    n_partitions: int
    options: DedupOptions

    @property
    def work(self) -> Path:
        """Folder of the dump at work."""
        return self.dumps[-1].work

    @property
    def new(self) -> int:
        """Number of the dump at work."""
        return len(self.dumps) - 1

    @property
    def n_parts(self) -> int:
        """Partitions of all dumps."""
        return len(self.dumps) * self.n_partitions

    def part_of(self, documents: np.ndarray) -> np.ndarray:
        """Which of the partitions of all dumps each document lies in."""
        return dump_of(documents) * self.n_partitions + partition_of(documents)

    def path(self, name: str, index: int, *, dump: int = -1) -> Path:
        """File `index` of those that a phase writes under a name, as "near/bands.arrow"."""
        stem, _, ending = name.rpartition(".")
        return self.dumps[dump].work / f"{stem}-{index:05d}.{ending}"

    def paths(self, name: str) -> list[Path]:
        """These files of the dump at work, one per partition or bucket."""
        return [self.path(name, index) for index in range(self.n_partitions)]

    def paths_of_all(self, name: str) -> list[Path]:
        """These files of every dump."""
        dumps = range(len(self.dumps))
        return [self.path(name, index, dump=dump) for dump in dumps for index in range(self.n_partitions)]

    def paths_of_parts(self, name: str) -> list[Path]:
        """Files of the dump at work, one per partition of every dump."""
        return [self.path(name, part) for part in range(self.n_parts)]

    def documents(self, partition: int, columns: Sequence[str] | None = None, *, dump: int = -1) -> "pa.Table":
        """A partition of a dump, the one at work unless told otherwise."""
        return read_partition(self.dumps[dump].documents, partition, columns)

    def ranked(self, partition: int, *, dump: int = -1) -> "tuple[pa.Table, np.ndarray]":
        """(key, origin) of a partition, and the priority of each row: 0 where the table has no such column."""
        names = self.names(partition, dump=dump)
        rows = self.documents(partition, [name for name in ("key", "origin", "priority") if name in names], dump=dump)
        rank = column(rows, "priority") if "priority" in names else np.zeros(rows.num_rows)
        return rows, rank.astype(np.int64)

    def drops(self, search: str, partition: int) -> "pa.Table":
        """What "exact" or "near" drops of a partition: (document, survivor, survivor_origin), by document."""
        return read_split(self.paths(f"{search}/drop.arrow"), partition, ["document"])

    def names(self, partition: int, *, dump: int = -1) -> list[str]:
        import pyarrow.parquet as pq

        return pq.read_schema(partition_path(self.dumps[dump].documents, partition)).names


@dataclass(frozen=True)
class Threads:
    """Runs tasks in this process. Hashing, sorting, Daft and Parquet release the interpreter, so threads do help."""

    n: int = 1

    def __call__(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Results in order."""
        if self.n == 1 or len(arguments) < 2:
            yield from (function(*given) for given in arguments)
            return
        with ThreadPoolExecutor(self.n) as pool:
            yield from pool.map(lambda given: function(*given), arguments)


def number(dump: int, partition: int, rows: np.ndarray) -> np.ndarray:
    """Numbers of documents, uint64."""
    return rows.astype(np.uint64) + np.uint64((dump << DUMP) | (partition << PARTITION))


def dump_of(documents: np.ndarray) -> np.ndarray:
    return (documents >> np.uint64(DUMP)).astype(np.int64)


def partition_of(documents: np.ndarray) -> np.ndarray:
    return ((documents >> np.uint64(PARTITION)) & np.uint64(0xFFFFFF)).astype(np.int64)


def row_of(documents: np.ndarray) -> np.ndarray:
    return (documents & np.uint64(0xFFFFFFFF)).astype(np.int64)


def bucket_of(hashes: np.ndarray, n: int) -> np.ndarray:
    """Bucket of each 64-bit hash: ranges of its upper half."""
    return ((hashes >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


def write_split(path: Path, columns: dict[str, Any], parts: np.ndarray, n: int) -> None:
    """Write columns as a run whose batch i holds the rows with `parts == i`."""
    import pyarrow as pa

    order = np.argsort(parts, kind="stable").astype(np.int64)
    write_batches(path, pa.table(columns).take(pa.array(order)), np.bincount(parts, minlength=n))


def read_split(paths: Iterable[Path], part: int, sort_by: Sequence[str] = ()) -> "pa.Table":
    """The rows of one part out of all runs."""
    return read_runs(paths, part, sort_by=sort_by)


def column(rows: "pa.Table", name: str) -> np.ndarray:
    """A column of numbers."""
    return rows.column(name).combine_chunks().to_numpy(zero_copy_only=False)


def save(path: Path, values: np.ndarray) -> None:
    """`np.save` under a temporary name, then renamed."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


def first_of_runs(*columns: np.ndarray) -> np.ndarray:
    """For sorted columns: the index of the first row that equals each row, int64 (n,)."""
    n = len(columns[0])
    starts = np.zeros(n, bool)
    starts[:1] = True
    for values in columns:
        starts[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(starts)[np.cumsum(starts) - 1] if n else np.zeros(0, np.int64)
