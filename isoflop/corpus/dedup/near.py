"""Near-duplicates: MinHash signatures, bands that meet in buckets on disk, pairs, and what joins them into clusters.

A pair that shares a band is a candidate. Its similarity is estimated from all hash values; where the estimate leaves
no doubt on which side of the threshold the pair lies (six standard errors) it decides, and otherwise the two sets of
shingles are compared. So the pairs that join are the candidates whose Jaccard similarity reaches the threshold: the
search misses a pair with the chance that LSH has of missing it, and joins none in error. threshold = 0 joins all
candidates. Clusters are the connected components; of each the first by (dump, rank, origin) stays.
Source: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

import logging
from collections.abc import Iterator

import numpy as np

from isoflop.corpus.dedup.exact import distinct_rows, write_drops
from isoflop.corpus.dedup.job import (
    DUMP,
    Job,
    Run,
    bucket_of,
    column,
    dump_of,
    number,
    read_split,
    row_of,
    save,
    write_split,
)
from isoflop.corpus.dedup.words import minhash, mix, shingle_sets, spaced
from isoflop.corpus.tables.partitions import replacing

log = logging.getLogger(__name__)

GROUP = 32  # assumption: each member of a band's group is paired with so many before it, and with the first
PAIRS = 50_000  # pairs whose signatures are in memory at a time: 50 MB


def write_signatures(job: Job, partition: int) -> None:
    """Task per partition: signatures of documents that are not exact duplicates, and their bands, cut up by hash."""
    import pyarrow.compute as pc

    path = job.path("near/bands.arrow", partition)
    if path.is_file():
        return
    texts = job.documents(partition, ["text"]).column("text").combine_chunks()
    rows = distinct_rows(job, partition, len(texts))
    options = job.options
    if len(rows) < len(texts):
        texts = texts.take(rows)
    n_hashes = options.bands * options.rows
    found, has_words = [np.empty((0, n_hashes), np.uint32)], [np.empty(0, bool)]
    for words in [texts] if options.presplit else spaced(texts.to_pylist()):
        found.append(minhash(words, n_hashes=n_hashes, n_words=options.shingle_words, seed=options.seed))
        has_words.append(pc.call_function("binary_length", [words]).to_numpy() > 0)
    # texts without a word would all look alike
    rows, values = rows[np.concatenate(has_words)], np.concatenate(found)[np.concatenate(has_words)]
    save(job.path("near/rows.npy", partition), rows)
    save(job.path("near/signatures.npy", partition), values)
    bands = band_hashes(values, options.bands, options.rows).ravel()
    documents = np.repeat(number(job.new, partition, rows), options.bands)
    columns = {"band": bands, "document": documents}
    write_split(path, columns, bucket_of(bands, job.n_partitions), job.n_partitions)


def band_hashes(values: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One 64-bit hash for each band of a signature, uint64 (n, bands); two bands never share one but by accident."""
    hashes = np.empty((len(values), bands), np.uint64)
    for band in range(bands):
        hashed = np.full(len(values), band + 1, np.uint64)
        for row in range(rows):
            hashed = mix(hashed + values[:, band * rows + row])
        hashes[:, band] = hashed
    return hashes


def write_pairs(job: Job, bucket: int) -> None:
    """Task per bucket: `near/sure-*` and `near/open-*`, pairs that join and pairs to be compared, uint64 (n, 2)."""
    sure, undecided = job.path("near/sure.npy", bucket), job.path("near/open.npy", bucket)
    if undecided.is_file():
        return
    rows = read_split(job.paths_of_all("near/bands.arrow"), bucket)
    pairs = candidate_pairs(column(rows, "band"), column(rows, "document"))
    pairs = pairs[dump_of(pairs[:, 1]) == job.new]  # what was settled between earlier dumps stays so
    if job.options.threshold > 0:
        margin = 3.0 / (job.options.bands * job.options.rows) ** 0.5
        similarity = estimated_similarity(job, pairs)
        high = similarity >= min(1.0, job.options.threshold + margin)
        save(sure, pairs[high])
        save(undecided, pairs[~high & (similarity > job.options.threshold - margin)])
    else:
        save(sure, pairs)
        save(undecided, pairs[:0])


def candidate_pairs(bands: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Pairs (smaller, larger) of documents that share a band, uint64 (n, 2), sorted and distinct.

    All pairs of a group of up to `GROUP` + 1 documents; in larger ones each is paired with the `GROUP` before it and
    with the first, which joins the same documents into one cluster.
    """
    order = np.lexsort((documents, bands))
    bands, documents = bands[order], documents[order]
    left, right = [], []
    for distance in range(1, GROUP + 1):
        same = np.flatnonzero(bands[distance:] == bands[:-distance])
        if not len(same):
            break
        left.append(documents[same])
        right.append(documents[same + distance])
    else:
        starts = np.concatenate([[True], bands[1:] != bands[:-1]])
        first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        far = np.flatnonzero(np.arange(len(first)) - first > GROUP)
        left.append(documents[first[far]])
        right.append(documents[far])
    if not left:
        return np.empty((0, 2), np.uint64)
    pairs = np.stack([np.concatenate(left), np.concatenate(right)], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return _distinct(pairs)


def estimated_similarity(job: Job, pairs: np.ndarray) -> np.ndarray:
    """Share of equal hash values of each pair, float64 (n,)."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), PAIRS):
        part = pairs[start : start + PAIRS]
        documents, places = np.unique(part, return_inverse=True)
        values = np.empty((len(documents), job.options.bands * job.options.rows), np.uint32)
        for dump, partition, here in _by_partition(documents):
            # mapped, so that only the rows that are asked for are read, and let go at once
            rows = np.load(job.path("near/rows.npy", partition, dump=dump))
            at = np.searchsorted(rows, row_of(documents[here]))
            values[here] = np.load(job.path("near/signatures.npy", partition, dump=dump), mmap_mode="r")[at]
        places = places.reshape(-1, 2)
        found[start : start + PAIRS] = np.mean(values[places[:, 0]] == values[places[:, 1]], axis=1)
    return found


def write_clusters(job: Job, run: Run) -> None:
    """One task: connected components of all pairs that join. `near/clusters.arrow`: (document, root) of every document
    in a component, cut up by dump and partition. Takes 50 bytes of memory per candidate pair."""
    path = job.work / "near" / "clusters.arrow"
    if path.is_file():
        return
    edges = np.concatenate([_earlier_clusters(job), *map(np.load, job.paths("near/sure.npy"))])
    pairs = _distinct(np.concatenate(list(map(np.load, job.paths("near/open.npy")))))
    documents, roots = components(edges)
    pairs = pairs[~_joined(documents, roots, pairs)]
    similarity = exact_similarity(job, pairs, run)
    documents, roots = components(np.concatenate([edges, pairs[similarity >= job.options.threshold]]))
    log.info("%d documents in clusters of near-duplicates", len(documents))
    write_split(path, {"document": documents, "root": roots}, job.part_of(documents), job.n_parts)


def components(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents that have an edge, ascending, and the smallest document of the component of each.

    Each edge hangs the root of one end below that of the other, then every document looks where its root hangs; as
    many rounds as the logarithm of the longest chain.
    """
    documents, places = np.unique(edges, return_inverse=True)
    left, right = places.reshape(-1, 2).T
    root, before = np.arange(len(documents)), np.empty(0, np.int64)
    while not np.array_equal(root, before):
        before = root.copy()
        for ends in (before[left], before[right]):
            np.minimum.at(root, ends, np.minimum(before[left], before[right]))
        root = root[root]
    return documents, documents[root]


def exact_similarity(job: Job, pairs: np.ndarray, run: Run) -> np.ndarray:
    """Jaccard similarity of the shingles of each pair, float64 (n,). Sets of shingles pass through disk."""
    documents = np.unique(pairs)
    parts = job.part_of(documents)
    write_split(job.work / "near" / "compare.arrow", {"document": documents}, parts, job.n_parts)
    counts, starts = np.zeros(len(documents), np.int64), np.zeros(len(documents), np.int64)
    for part in run(write_shingles, [(job, part) for part in np.unique(parts).tolist()]):
        sizes = np.load(job.path("near/shingles.npy", part))
        counts[parts == part] = sizes
        starts[parts == part] = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def shingles_of(place: int) -> np.ndarray:
        path = job.path("near/shingles.bin", int(parts[place]))
        return np.fromfile(path, np.uint64, int(counts[place]), offset=int(starts[place]) * 8)

    found = np.empty(len(pairs))
    last, left = -1, np.empty(0, np.uint64)
    for index, (a, b) in enumerate(np.searchsorted(documents, pairs).tolist()):
        if a != last:
            last, left = a, shingles_of(a)
        found[index] = jaccard(left, shingles_of(b))
    for part in np.unique(parts).tolist():
        job.path("near/shingles.bin", part).unlink()
    return found


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Similarity of two sets, given as sorted distinct values."""
    at = np.searchsorted(right, left)
    shared = int(np.count_nonzero(right[np.minimum(at, len(right) - 1)] == left)) if len(right) else 0
    return shared / max(1, len(left) + len(right) - shared)


def write_shingles(job: Job, part: int) -> int:
    """Task per dump and partition: the sets of shingles of the documents in `near/compare.arrow`."""
    dump, partition = divmod(part, job.n_partitions)
    rows = row_of(column(read_split([job.work / "near" / "compare.arrow"], part), "document"))
    texts = job.documents(partition, ["text"], dump=dump).column("text").take(rows).to_pylist()
    sizes = []
    with replacing(job.path("near/shingles.bin", part)) as temporary, open(temporary, "wb") as file:
        for shingles in shingle_sets(texts, job.options.shingle_words, presplit=job.options.presplit):
            file.write(shingles.tobytes())
            sizes.append(len(shingles))
    save(job.path("near/shingles.npy", part), np.array(sizes, np.int64))
    return part


def write_members(job: Job, part: int) -> None:
    """Task per dump and partition: give the documents of clusters their rank and origin, cut up by cluster."""
    path = job.path("near/members.arrow", part)
    if path.is_file():
        return
    dump, partition = divmod(part, job.n_partitions)
    rows = read_split([job.work / "near" / "clusters.arrow"], part)
    documents, roots = column(rows, "document"), column(rows, "root")
    known, rank = job.ranked(partition, dump=dump)
    at = row_of(documents)
    columns = {
        "root": roots,
        "document": documents,
        "rank": rank[at],
        "origin": known.column("origin").take(at).combine_chunks(),
    }
    write_split(path, columns, bucket_of(mix(roots), job.n_partitions), job.n_partitions)


def choose_near(job: Job, bucket: int) -> None:
    """Task per bucket: `near/drop-*`, cut up by the partition of the dropped document."""
    path = job.path("near/drop.arrow", bucket)
    if path.is_file():
        return
    write_drops(path, read_split(job.paths_of_parts("near/members.arrow"), bucket), ("root",), job)


def kept_rows(job: Job, partition: int) -> np.ndarray:
    """Rows of a partition that neither search drops, ascending."""
    rows, _ = job.ranked(partition)
    kept = distinct_rows(job, partition, rows.num_rows)
    if not job.options.near:
        return kept
    return np.setdiff1d(kept, row_of(column(job.drops("near", partition), "document")))


def _earlier_clusters(job: Job) -> np.ndarray:
    """(root, document) of the clusters that earlier dumps ended with."""
    edges = [np.empty((0, 2), np.uint64)]
    for age in range(job.new):
        path = job.dumps[age].work / "near" / "clusters.arrow"
        for part in range((age + 1) * job.n_partitions):
            rows = read_split([path], part)
            edges.append(np.stack([column(rows, "root"), column(rows, "document")], axis=1))
    return np.concatenate(edges)


def _joined(documents: np.ndarray, roots: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether the two documents of each pair are in one component already."""
    if not len(documents):
        return np.zeros(len(pairs), bool)
    at = np.minimum(np.searchsorted(documents, pairs), len(documents) - 1)
    known = documents[at] == pairs
    return known.all(axis=1) & (roots[at[:, 0]] == roots[at[:, 1]])


def _by_partition(documents: np.ndarray) -> Iterator[tuple[int, int, slice]]:
    """(dump, partition, slice of the sorted documents that lie there)."""
    where = documents >> np.uint64(32)
    starts = np.flatnonzero(np.concatenate([[True], where[1:] != where[:-1]])) if len(where) else np.empty(0, int)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(where)]):
        place = int(where[start])
        yield place >> (DUMP - 32), place & ((1 << (DUMP - 32)) - 1), slice(start, stop)


def _distinct(pairs: np.ndarray) -> np.ndarray:
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    keep = np.ones(len(pairs), bool)
    keep[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[keep]
