"""Repeated lines: boilerplate that many documents carry, and what training documents quote from validation ones.

A line counts from `min_line_chars` characters on, white space at its ends left out. Of equal lines the first
`max_line_copies` stay, in the order dump, rank, document, place; later ones are cut out. A training document more than
`max_shared_share` of which lies in lines of reference documents (those of the split `valid`) is dropped: near-duplicate
search compares whole documents, this finds the passage that one quotes from another.
"""

import hashlib

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
    write_split,
)
from isoflop.corpus.dedup.near import kept_rows


def write_lines(job: Job, partition: int) -> None:
    """Task per partition: `lines/run-*`, the lines of the kept rows, cut up by hash."""
    path = job.path("lines/run.arrow", partition)
    if path.is_file():
        return
    kept = kept_rows(job, partition)
    _, rank = job.ranked(partition)
    names = job.names(partition)
    split = job.documents(partition, ["split"]).column("split").to_numpy() if "split" in names else None
    reference = split == "valid" if split is not None else np.zeros(len(rank), bool)
    hashes, rows, starts, lengths = [], [], [], []
    for row, text in zip(kept.tolist(), job.documents(partition, ["text"]).column("text").take(kept).to_pylist()):
        start = 0
        for line in text.split("\n"):
            stripped, whole = line.strip(), len(line.encode()) + 1
            if len(stripped) >= job.options.min_line_chars:
                hashes.append(hashlib.blake2b(stripped.encode(), digest_size=8).digest())
                rows.append(row)
                starts.append(start)
                lengths.append(whole)
            start += whole
    found = np.frombuffer(b"".join(hashes), np.uint64)
    row = np.array(rows, np.int64)
    columns = {
        "hash": found,
        "document": number(job.new, partition, row),
        "rank": rank[row],
        "reference": reference[row],
        "start": np.array(starts, np.int64),
        "length": np.array(lengths, np.int64),
    }
    write_split(path, columns, bucket_of(found, job.n_partitions), job.n_partitions)


def write_repeated_lines(job: Job, bucket: int) -> None:
    """Task per bucket: `lines/cut-*`, lines past their number of copies, and `lines/shared-*`, lines of training
    documents that the reference has too; both cut up by partition."""
    cut, shared = job.path("lines/cut.arrow", bucket), job.path("lines/shared.arrow", bucket)
    if shared.is_file():
        return
    rows = read_split(job.paths_of_all("lines/run.arrow"), bucket)
    values = {name: column(rows, name) for name in ("hash", "document", "rank", "reference", "start", "length")}
    keys = ("start", "document", "rank")
    order = np.lexsort((*(values[name] for name in keys), dump_of(values["document"]), values["hash"]))
    values = {name: array[order] for name, array in values.items()}
    first = first_of_runs(values["hash"])
    new = dump_of(values["document"]) == job.new
    copies = job.options.max_line_copies
    late = new & (np.arange(len(first)) - first >= copies) if copies else np.zeros(len(first), bool)
    known = np.zeros(len(first), bool)
    known[first[values["reference"]]] = True
    quoted = new & known[first] & ~values["reference"]
    for path, here in ((cut, late), (shared, quoted)):
        columns = {name: values[name][here] for name in ("document", "start", "length")}
        write_split(path, columns, partition_of(columns["document"]), job.n_partitions)


def late_lines(job: Job, partition: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, start, stop) in bytes of the lines to cut out."""
    rows = read_split(job.paths("lines/cut.arrow"), partition)
    start = column(rows, "start")
    return row_of(column(rows, "document")), start, start + column(rows, "length")


def shared_bytes(job: Job, partition: int, n_rows: int) -> np.ndarray:
    """Bytes of each row in lines of reference documents, int64 (n_rows,)."""
    rows = read_split(job.paths("lines/shared.arrow"), partition)
    return np.bincount(row_of(column(rows, "document")), column(rows, "length"), n_rows).astype(np.int64)
