"""Small tables of documents for the tests of deduplication, and what a plain reading of the definitions finds."""

import random
import unicodedata
from pathlib import Path

from isoflop.corpus.dedup.words import UNSPACED
from isoflop.corpus.tables import partitions as tables

N_PARTITIONS = 5


def write_table(folder: Path, documents, n_partitions: int = N_PARTITIONS, seed: int = 0):
    """(origin, text), (origin, text, split) or (origin, text, split, priority) -> a table, rows in a random order."""
    import pyarrow as pa

    rows = []
    for origin, text, *more in documents:
        split, priority = (*more, "train", 0)[:2] if len(more) < 2 else more
        key = tables.document_key("d", text)
        rows.append([key, origin, origin.split("/")[0], "d", "en", "", text, split, priority])
    random.Random(seed).shuffle(rows)
    schema = tables.document_schema().append(pa.field("split", pa.string())).append(pa.field("priority", pa.int32()))
    columns = [list(column) for column in zip(*rows)] or [[] for _ in schema.names]
    run = folder / "runs" / "0.arrow"
    tables.write_run(run, pa.table(columns, schema=schema), n_partitions)
    for partition in range(n_partitions):
        tables.write_partition(folder / "documents", partition, tables.read_runs([run], partition))
    tables.finish(folder / "documents", n_partitions)
    return folder / "documents"


def rows_of(folder: Path, n_partitions: int = N_PARTITIONS):
    """All rows of a table as dicts."""
    return [row for index in range(n_partitions) for row in tables.read_partition(folder, index).to_pylist()]


def words(text: str) -> list[str]:
    """The words of a text, character by character as the documentation defines them."""
    found, word = [], ""
    for char in text.lower():
        alone = any(first <= ord(char) <= last for first, last in UNSPACED)
        wordlike = unicodedata.category(char)[0] in "LMN" or char == "_"
        if wordlike and not alone:
            word += char
            continue
        if word:
            found.append(word)
        word = ""
        if wordlike:
            found.append(char)
    return [*found, word] if word else found


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """Sets of n consecutive words; a shorter text is one shingle."""
    found = words(text)
    if len(found) < n:
        return {tuple(found)} if found else set()
    return set(zip(*(found[offset:] for offset in range(n))))


def jaccard(left: str, right: str, n: int = 5) -> float:
    """Similarity of the shingles of two texts."""
    a, b = shingles(left, n), shingles(right, n)
    return len(a & b) / max(1, len(a | b))
