"""Clusters of near-duplicates for the report: how many of which size, and the largest ones with their texts.

All documents that one survivor stands for lie in one bucket of the deduplication, so each bucket is counted by itself.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.corpus.dedup.job import column, partition_of, read_split, row_of
from isoflop.corpus.report.tally import EXCERPT_CHARS
from isoflop.corpus.tables.partitions import read_partition

N_EXAMPLES = 8
"""Largest clusters that are shown."""
N_MEMBERS = 4
"""Documents of each, the survivor first."""


def count_clusters(bucket: int, work: Path, n_partitions: int) -> dict[str, Any]:
    """Task: sizes of the clusters of a bucket, and its largest ones as numbers of documents."""
    path = work / "near" / f"drop-{bucket:05d}.arrow"
    rows = [read_split([path], partition) for partition in range(n_partitions)]
    documents = np.concatenate([column(part, "document") for part in rows])
    survivors = np.concatenate([column(part, "survivor") for part in rows])
    order = np.lexsort((documents, survivors))
    documents, survivors = documents[order], survivors[order]
    heads, starts, counts = np.unique(survivors, return_index=True, return_counts=True)
    largest = np.lexsort((heads, -counts))[:N_EXAMPLES].tolist()
    members = [
        [int(counts[at]) + 1, int(heads[at]), documents[starts[at] : starts[at] + N_MEMBERS - 1].tolist()]
        for at in largest
    ]
    return {"sizes": sorted(Counter((counts + 1).tolist()).items()), "largest": members}


def cluster_examples(summaries: list[dict[str, Any]], documents: Path) -> dict[str, Any]:
    """Sizes over all buckets, and the largest clusters with excerpts of their documents."""
    sizes: Counter[int] = Counter()
    for found in summaries:
        sizes.update(dict(found["sizes"]))
    largest = sorted((item for found in summaries for item in found["largest"]), key=lambda item: (-item[0], item[1]))
    largest = largest[:N_EXAMPLES]
    wanted = np.array(sorted({n for _, head, others in largest for n in (head, *others)}), np.uint64)
    excerpts: dict[int, list[str]] = {}
    for partition in np.unique(partition_of(wanted)).tolist():
        here = wanted[partition_of(wanted) == partition]
        names = ["key", "origin", "domain", "lang", "text"]
        for number, row in zip(
            here.tolist(), read_partition(documents, partition, names).take(row_of(here)).to_pylist()
        ):
            texts = row["text"][:EXCERPT_CHARS]
            excerpts[number] = [row["key"], row["origin"], row["domain"], row["lang"], "", texts]
    return {
        "cluster_sizes": sorted(sizes.items()),
        "examples": [
            {"size": size, "members": [excerpts[number] for number in (head, *others)]}
            for size, head, others in largest
        ],
    }
