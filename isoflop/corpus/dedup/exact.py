"""Exact duplicates: documents whose text is the same but for white space.

Each document becomes a row (fingerprint, rank, origin); rows of equal fingerprint meet in one bucket, where the
first by (dump, rank, origin) stays and the others are dropped, each naming who stays in its place.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoflop.corpus.dedup.job import (
    Job,
    bucket_of,
    column,
    dump_of,
    first_of_runs,
    number,
    partition_of,
    read_split,
    row_of,
    save,
    write_split,
)

if TYPE_CHECKING:
    import pyarrow as pa

WHITE_SPACE = b" \t\n\r\v\f"


def write_fingerprints(job: Job, partition: int) -> None:
    """Task per partition: `exact/run-*`, cut up by fingerprint, and `exact/lengths-*`, bytes of each text."""
    path = job.path("exact/run.arrow", partition)
    if path.is_file():
        return
    rows, rank = job.ranked(partition)
    digests, lengths = [], []
    for text in job.documents(partition, ["text"]).column("text").cast("large_binary").to_pylist():
        digests.append(hashlib.sha256(text.translate(None, WHITE_SPACE)).digest()[:16])
        lengths.append(len(text))
    save(job.path("exact/lengths.npy", partition), np.array(lengths, np.int64))
    prints = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    columns = {
        "high": prints[:, 0],
        "low": prints[:, 1],
        "document": number(job.new, partition, np.arange(rows.num_rows)),
        "rank": rank,
        "origin": rows.column("origin").combine_chunks(),
    }
    write_split(path, columns, bucket_of(prints[:, 0], job.n_partitions), job.n_partitions)


def choose_exact(job: Job, bucket: int) -> None:
    """Task per bucket: `exact/drop-*`, cut up by the partition of the dropped document."""
    path = job.path("exact/drop.arrow", bucket)
    if path.is_file():
        return
    write_drops(path, read_split(job.paths_of_all("exact/run.arrow"), bucket), ("high", "low"), job)


def distinct_rows(job: Job, partition: int, n_rows: int) -> np.ndarray:
    """Rows of a partition that are not exact duplicates, ascending."""
    keep = np.ones(n_rows, bool)
    keep[row_of(column(job.drops("exact", partition), "document"))] = False
    return np.flatnonzero(keep)


def write_drops(path: Path, rows: "pa.Table", group: tuple[str, ...], job: Job) -> None:
    """Keep the first by (dump, rank, origin) of rows that agree in the `group` columns; write the others of the new
    dump, each with the one that stays."""
    import pyarrow as pa

    rows = rows.append_column("age", pa.array(dump_of(column(rows, "document"))))
    rows = rows.sort_by([(name, "ascending") for name in (*group, "age", "rank", "origin")])
    first = first_of_runs(*(column(rows, name) for name in group))
    documents = column(rows, "document")
    dropped = np.flatnonzero((first != np.arange(len(first))) & (dump_of(documents) == job.new))
    survivors = pa.array(first[dropped])
    columns = {
        "document": documents[dropped],
        "survivor": documents[first[dropped]],
        "survivor_origin": rows.column("origin").take(survivors).combine_chunks(),
    }
    write_split(path, columns, partition_of(documents[dropped]), job.n_partitions)
