"""Documents that contain pieces of evaluation sets: found by shared runs of words, reported per benchmark.

Source: runs of 13 words as in GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C); in Chinese and Japanese runs of
20 characters (assumption). Texts of a benchmark that are shorter are looked for as a whole, down to `min_words` or
`min_chars`, as DeepSeekMath does (arXiv 2402.03300, section 2.1: exact match below its 10 words); still shorter ones
are counted, not looked for. Case and signs are ignored.
"""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from isoflop.corpus.filter.gopher import Finding
from isoflop.corpus.filter.quality import blocks_of
from isoflop.corpus.filter.text_block import ALONE, TextBlock, join_hashes, runs_of
from isoflop.corpus.filter.toxicity import contains
from isoflop.corpus.read.bytes import ReadLimits, open_bytes
from isoflop.corpus.read.encoding import NotText, decode_text
from isoflop.errors import DataError
from isoflop.recipe import PositiveInt

_MAX_FILE_BYTES = 1 << 30
_HEAD_BITS = 25
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".dev", ".devtest")


@dataclass(frozen=True)
class BenchmarkOptions:
    """One evaluation set."""

    name: str
    """Name in the report."""
    path: str
    """File, folder or .tar.gz with .jsonl, .json, .csv, .tsv or .txt inside (also .gz)."""
    keys: tuple[str, ...] = ()
    """Only texts under these keys or column names; empty: all texts."""


@dataclass(frozen=True)
class DecontaminateOptions:
    """What counts as overlap."""

    benchmarks: tuple[BenchmarkOptions, ...] = ()
    """Evaluation sets; empty: nothing is looked for."""
    n_words: PositiveInt = 13
    """Length of a run in words."""
    n_chars: PositiveInt = 20
    """Length of a run in characters, for texts that are mostly of an unspaced script."""
    min_words: PositiveInt = 8
    """Shortest text that is looked for as a whole, in words."""
    min_chars: PositiveInt = 12
    """The same in characters."""
    min_overlaps: PositiveInt = 1
    """Documents with fewer runs in common with a benchmark stay."""


@dataclass(frozen=True)
class Benchmarks:
    """Hashes of all runs, by length, with the text and the set they come from."""

    names: tuple[str, ...]
    n_texts: tuple[int, ...]
    """Texts that are looked for, per set."""
    n_short: tuple[int, ...]
    """Texts that are too short."""
    by_length: dict[int, tuple[np.ndarray, np.ndarray]] = field(repr=False)
    """Length -> (sorted hashes, number of the text). Texts are numbered through all sets."""
    head: int
    """Words of the shortest run."""
    heads: np.ndarray = field(repr=False)
    """bool, by the first bits of a hash: some run may begin with these `head` words. Most words of a corpus are
    passed over by this one look-up."""

    def benchmark_of(self, texts: np.ndarray) -> np.ndarray:
        """Set of each text number."""
        return np.searchsorted(np.cumsum(self.n_texts), texts, side="right")


@dataclass(frozen=True)
class Overlap:
    """What a block of documents shares with the benchmarks."""

    counts: np.ndarray
    """Shared runs, int64 (documents, benchmarks)."""
    texts: np.ndarray
    """Numbers of the benchmark texts that occur."""


def load_benchmarks(options: DecontaminateOptions) -> Benchmarks:
    """Read the evaluation sets. Raises DataError where one can't be read or holds no text."""
    return index_texts(_benchmark_texts(options), options)[0]


def _benchmark_texts(options: DecontaminateOptions) -> Iterator[tuple[str, list[str]]]:
    for item in options.benchmarks:
        texts = list(dict.fromkeys(read_benchmark(item)))
        if not texts:
            raise DataError(f"decontaminate.benchmarks: {item.path} holds no text under keys {list(item.keys)}")
        yield item.name, texts


def index_texts(
    sets: Iterable[tuple[str, Sequence[str]]], options: DecontaminateOptions
) -> tuple[Benchmarks, list[np.ndarray]]:
    """Sets of different texts -> what `overlap` looks for, and for each set the number of each text, -1: too short."""
    names, n_texts, n_short, places = [], [], [], []
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    head = min(options.min_words, options.min_chars, options.n_words, options.n_chars)
    heads = np.zeros(1 << _HEAD_BITS, dtype=bool)
    for name, texts in sets:
        kept, parts = 0, [np.empty(0, dtype=np.int64)]
        for block in blocks_of(texts):
            numbers = np.full(block.n_docs, -1, dtype=np.int64)
            for length, docs in _lengths(block, options):
                numbers[docs] = sum(n_texts) + kept + np.arange(len(docs))
                kept += len(docs)
                hashes, offsets, _ = _words(block)
                sizes = offsets[docs + 1] - offsets[docs] - length + 1  # runs in each of these documents
                first = _ranges(offsets[docs], sizes)
                found.setdefault(length, []).append((_chain(hashes, first, length), np.repeat(numbers[docs], sizes)))
                heads[_chain(hashes, first, head) >> np.uint64(64 - _HEAD_BITS)] = True
            parts.append(numbers)
        names.append(name)
        n_texts.append(kept)
        n_short.append(len(texts) - kept)
        places.append(np.concatenate(parts))
    by_length = {}
    for length, parts in sorted(found.items()):
        hashes, owners = (np.concatenate(arrays) for arrays in zip(*parts))
        order = np.lexsort((owners, hashes))
        by_length[length] = (hashes[order], owners[order])
    return Benchmarks(tuple(names), tuple(n_texts), tuple(n_short), by_length, head, heads), places


def overlap(block: TextBlock, benchmarks: Benchmarks) -> Overlap:
    """Runs of each document that occur in a benchmark."""
    hashes, offsets, _ = _words(block)
    counts = np.zeros((block.n_docs, len(benchmarks.names)), dtype=np.int64)
    texts = [np.empty(0, dtype=np.int64)]
    begins, runs = runs_of(hashes, offsets, benchmarks.head)
    begins = begins[benchmarks.heads[runs >> np.uint64(64 - _HEAD_BITS)]]
    docs = np.searchsorted(offsets, begins, side="right") - 1
    for length, (known, owners) in benchmarks.by_length.items():
        fits = begins + length <= offsets[docs + 1]
        runs = _chain(hashes, begins[fits], length)
        hit = contains(known, runs)
        if not hit.any():
            continue
        left, right = (np.searchsorted(known, runs[hit], side=side) for side in ("left", "right"))
        every = _ranges(left, right - left)
        doc = np.repeat(docs[fits][hit], right - left)
        np.add.at(counts, (doc, benchmarks.benchmark_of(owners[every])), 1)
        texts.append(owners[every])
    return Overlap(counts, np.unique(np.concatenate(texts)))


def contaminated(found: Overlap, options: DecontaminateOptions) -> list[Finding]:
    """One rule: some benchmark shares at least `min_overlaps` runs."""
    most = found.counts.max(axis=1, initial=0)
    return [Finding("contaminated", most.astype(np.float64), most >= options.min_overlaps)]


def report(benchmarks: Benchmarks, texts: np.ndarray, n_documents: np.ndarray) -> list[dict[str, Any]]:
    """Per benchmark: its texts, how many occur in the corpus, how many documents hold them. Inputs may be merged."""
    hits = np.bincount(benchmarks.benchmark_of(np.unique(texts)), minlength=len(benchmarks.names))
    columns = zip(
        benchmarks.names, benchmarks.n_texts, benchmarks.n_short, hits.tolist(), np.asarray(n_documents).tolist()
    )
    return [
        {"benchmark": name, "n_texts": total, "n_too_short": short, "n_found": hit, "n_documents": documents}
        for name, total, short, hit, documents in columns
    ]


def read_benchmark(item: BenchmarkOptions) -> Iterator[str]:
    """All texts of an evaluation set. Raises DataError."""
    root = Path(item.path)
    paths = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    for path in paths:
        try:
            with open_bytes(path, ReadLimits()) as stream:
                data = stream.read_all(_MAX_FILE_BYTES)
        except OSError as error:
            raise DataError(f"decontaminate.benchmarks: {path} can't be read ({error}); check the path") from error
        if data is None:
            raise DataError(f"decontaminate.benchmarks: {path} is longer than 1 GiB; split it")
        name = PurePath(path.name.removesuffix(".gz").removesuffix(".zst"))
        if name.suffix == ".tar":
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file:
                        yield from _file_texts(PurePath(member.name), file.read(), item)
        else:
            yield from _file_texts(name, data, item)


def _file_texts(path: PurePath, data: bytes, item: BenchmarkOptions) -> Iterator[str]:
    if path.suffix not in _SUFFIXES or path.name.startswith("."):
        return
    try:
        text = decode_text(data).text
        if path.suffix in (".csv", ".tsv"):
            rows = list(csv.reader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))
            named = bool(item.keys) and bool(rows)
            chosen = [place for place, name in enumerate(rows[0]) if name in item.keys] if named else None
            yield from (cell for row in rows for place, cell in enumerate(row) if chosen is None or place in chosen)
        elif path.suffix in (".json", ".jsonl"):
            yield from strings_of(_json(text), item.keys, not item.keys)
        else:
            yield from text.split("\n")
    except (NotText, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"decontaminate.benchmarks: {path} can't be read ({error})"[:300]) from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]  # one value a line, whatever the suffix


def strings_of(value: Any, keys: tuple[str, ...] = (), wanted: bool = True) -> Iterator[str]:
    """All strings in a value as JSON has them; only those below `keys` where `wanted` is false."""
    if isinstance(value, str):
        if wanted:
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings_of(item, keys, wanted or key in keys)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_of(item, keys, wanted)


def _chain(hashes: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """Hashes of the runs that begin at `first`, as `runs_of` makes them."""
    run = hashes[first]
    for step in range(1, length):
        run = join_hashes(run, hashes[first + step])
    return run


def _ranges(begin: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... sizes[0] numbers, then those from begin[1] on, and so on."""
    return np.repeat(begin - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def _words(block: TextBlock) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes, document offsets, of an unspaced script) of the words of a block, signs left out."""
    word = block.is_word
    offsets = np.concatenate([[0], np.cumsum(word)])[block.tokens.offsets]
    return block.token_hashes[word], offsets, block.classes[block.tokens.start[word]] == ALONE


def _lengths(block: TextBlock, options: DecontaminateOptions) -> Iterable[tuple[int, np.ndarray]]:
    """(length of the runs to look for, documents that have it)."""
    _, offsets, alone = _words(block)
    total = np.diff(offsets)
    sums = np.concatenate([[0], np.cumsum(alone)])
    unspaced = 2 * (sums[offsets[1:]] - sums[offsets[:-1]]) > total
    longest = np.where(unspaced, options.n_chars, options.n_words)
    shortest = np.where(unspaced, options.min_chars, options.min_words)
    length = np.where(total >= shortest, np.minimum(total, longest), 0)
    return [(int(n), np.flatnonzero(length == n)) for n in np.unique(length) if n]
