"""Repeated passages inside and between documents: byte strings that occur before, wherever they lie in a line.

A passage is `min_passage_bytes` = t consecutive bytes of UTF-8. Every passage that also occurs earlier (in a document
of an earlier dump, of lower rank, of a lower number, or earlier in the same document) is cut out; overlapping ones
merge, and cuts keep whole characters. So all repeats of length t or more are found, exactly, but for collisions of
64-bit hashes. Two rounds through buckets on disk:

    seeds    of the hashes of all t/2 bytes, those that are the smallest of some window of t - t/2 + 1: any t bytes
             contain one, and equal bytes contain the same one (winnowing); about 4 in t positions
    passages where a seed occurs twice, the hashes of all t bytes around it, and which of them occur earlier

Source: Schleimer, Wilkerson, Aiken 2003 (winnowing); Lee et al. 2021, arXiv 2107.06499 (removing repeated substrings,
there with a suffix array and 50 tokens, about 200 bytes of English).
"""

from collections.abc import Iterator

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
from isoflop.corpus.dedup.words import window_hashes

BLOCK_BYTES = 2_000_000  # assumption: working arrays of one block take about 100 MB


def write_seeds(job: Job, partition: int) -> None:
    """Task per partition: `passages/seeds-*` of the kept rows, cut up by hash."""
    path = job.path("passages/seeds.arrow", partition)
    if path.is_file():
        return
    kept = kept_rows(job, partition)
    texts = job.documents(partition, ["text"]).column("text").take(kept).to_pylist()
    hashes, documents, positions = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    numbers = number(job.new, partition, kept)
    for first, data, bounds in _blocks(texts):
        found, at = seeds(data, bounds, job.options.min_passage_bytes)
        here = np.searchsorted(bounds, at, side="right") - 1
        hashes.append(found)
        documents.append(numbers[first + here])
        positions.append(at - bounds[here])
    found, where = np.concatenate(hashes), np.concatenate(documents)
    columns = {"hash": found, "document": where, "position": np.concatenate(positions)}
    write_split(path, columns, bucket_of(found, job.n_partitions), job.n_partitions)


def write_repeated_seeds(job: Job, bucket: int) -> None:
    """Task per bucket: `passages/hits-*`, the seeds that occur more than once, cut up by dump and partition."""
    path = job.path("passages/hits.arrow", bucket)
    if path.is_file():
        return
    rows = read_split(job.paths_of_all("passages/seeds.arrow"), bucket)
    hashes, documents, positions = (column(rows, name) for name in ("hash", "document", "position"))
    order = np.argsort(hashes, kind="stable")
    hashes, documents, positions = hashes[order], documents[order], positions[order]
    first = first_of_runs(hashes)
    sizes = np.bincount(first, minlength=len(first))[first]
    has_new = np.zeros(len(first), bool)
    has_new[first[dump_of(documents) == job.new]] = True
    hit = (sizes > 1) & has_new[first]
    columns = {"document": documents[hit], "position": positions[hit]}
    write_split(path, columns, job.part_of(columns["document"]), job.n_parts)


def write_passages(job: Job, part: int) -> None:
    """Task per dump and partition: `passages/dense-*`, hashes of all passages around repeated seeds, cut up by hash."""
    path = job.path("passages/dense.arrow", part)
    if path.is_file():
        return
    dump, partition = divmod(part, job.n_partitions)
    rows = read_split(job.paths("passages/hits.arrow"), part)
    documents, positions = column(rows, "document"), column(rows, "position")
    numbers, owner = np.unique(documents, return_inverse=True)
    texts = job.documents(partition, ["text"], dump=dump).column("text").take(row_of(numbers)).to_pylist()
    _, rank = job.ranked(partition, dump=dump)
    length, reach = job.options.min_passage_bytes, _reach(job.options.min_passage_bytes)
    hashes, found, starts = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, data, bounds in _blocks(texts):
        here = (owner >= first) & (owner < first + len(bounds) - 1)
        begin, end = bounds[owner[here] - first], bounds[owner[here] - first + 1]
        at = begin + positions[here]
        # a passage that contains the seed starts at most `reach` before it, and ends in the document
        wanted = _covered(np.maximum(at - reach, begin), np.minimum(at, end - length) + 1, len(data))
        here = np.searchsorted(bounds, wanted, side="right") - 1
        hashes.append(window_hashes(data, length)[wanted])
        found.append(numbers[first + here])
        starts.append(wanted - bounds[here])
    columns = {"hash": np.concatenate(hashes), "document": np.concatenate(found), "position": np.concatenate(starts)}
    columns["rank"] = rank[row_of(columns["document"])]
    write_split(path, columns, bucket_of(columns["hash"], job.n_partitions), job.n_partitions)


def write_repeats(job: Job, bucket: int) -> None:
    """Task per bucket: `passages/repeats-*`, passages of the new dump that occur earlier, cut up by partition."""
    path = job.path("passages/repeats.arrow", bucket)
    if path.is_file():
        return
    rows = read_split(job.paths_of_parts("passages/dense.arrow"), bucket)
    hashes, documents, positions, rank = (column(rows, name) for name in ("hash", "document", "position", "rank"))
    order = np.lexsort((positions, documents, rank, dump_of(documents), hashes))
    first = first_of_runs(hashes[order])
    again = order[first != np.arange(len(first))]
    again = again[dump_of(documents[again]) == job.new]
    columns = {"document": documents[again], "position": positions[again]}
    write_split(path, columns, partition_of(columns["document"]), job.n_partitions)


def repeated_spans(job: Job, partition: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, start, stop) in bytes of what the partition repeats, by row and start; spans don't touch each other."""
    rows = read_split(job.paths("passages/repeats.arrow"), partition)
    row, start = row_of(column(rows, "document")), column(rows, "position")
    return merged(row, start, start + job.options.min_passage_bytes)


def merged(row: np.ndarray, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join spans of a row that overlap or touch."""
    order = np.lexsort((start, row))
    row, start, stop = row[order], start[order], stop[order]
    far = np.int64(1) << 40  # longer than any text: rows are laid end to end, so one running maximum serves all
    reach = np.maximum.accumulate(row * far + stop) if len(row) else stop
    fresh = np.ones(len(row), bool)
    fresh[1:] = row[1:] * far + start[1:] > reach[:-1]
    last = np.append(np.flatnonzero(fresh)[1:] - 1, len(row) - 1) if len(row) else np.empty(0, np.int64)
    return row[fresh], start[fresh], reach[last] - row[last] * far


def seeds(data: np.ndarray, bounds: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and positions of the seeds of documents that lie end to end in `data`."""
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    width = length // 2
    hashes = window_hashes(data, width)
    window = _reach(length) + 1
    if not len(hashes):
        return hashes, np.empty(0, np.int64)
    score = (hashes >> np.uint64(11)).astype(np.float64)  # 53 bits: exact in a float, which the filters work in
    for bound in bounds[1:-1].tolist():
        score[max(0, bound - width + 1) : bound] = np.inf
    # position i is a seed if it holds the smallest value of any window that it lies in
    lowest = minimum_filter1d(score, window, mode="constant", cval=np.inf, origin=-(window // 2))
    highest = maximum_filter1d(lowest, window, mode="constant", cval=-np.inf, origin=(window - 1) // 2)
    at = np.flatnonzero((score == highest) & np.isfinite(score))
    return hashes[at], at


def _reach(length: int) -> int:
    """How far before a seed a passage that contains it can start."""
    return length - length // 2


def _covered(starts: np.ndarray, stops: np.ndarray, n: int) -> np.ndarray:
    """Positions that lie in any of the spans, ascending."""
    inside = stops > starts
    change = np.bincount(starts[inside], minlength=n + 1) - np.bincount(stops[inside], minlength=n + 1)
    return np.flatnonzero(np.cumsum(change)[:-1] > 0)


def _blocks(texts: list[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index of the first text, bytes of some texts end to end, where each begins and the last ends)."""
    first, parts, size = 0, [], 0
    for index, text in enumerate(texts):
        parts.append(text.encode())
        size += len(parts[-1])
        if size >= BLOCK_BYTES or index == len(texts) - 1:
            bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            yield first, np.frombuffer(b"".join(parts), np.uint8), bounds
            first, parts, size = index + 1, [], 0
