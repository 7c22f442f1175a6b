"""The filter stage: one partition of documents, less the duplicates, through every rule, into frames of the output.

The rules of `clean` come first: they are cheap and say what is no text at all. Then the families of `filters`, where
the recipe has that section (isoflop.corpus.filter.rules). Documents of sources that are validation as a whole are
taken as they are, so that corpora made by different rules can be measured on the same text.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.corpus.dedup.table import survivors
from isoflop.corpus.filter.decontaminate import report
from isoflop.corpus.filter.rules import FilterModels, FilterOptions, decide, load_models, train_models
from isoflop.corpus.passkey import PasskeyOptions, passkey_documents
from isoflop.corpus.read.clean import CleanOptions, reason_to_drop
from isoflop.corpus.report.tally import Tally
from isoflop.corpus.tables.output import Frames
from isoflop.corpus.tables.partitions import read_partition
from isoflop.recipe import from_tree, to_tree

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 512  # assumption: rows that are Python objects at a time
SAMPLE_BYTES = 40_000_000  # assumption: text of a domain that filters are trained on, those of the smallest keys
CONTAMINATED = "contaminated"


@dataclass(frozen=True)
class FilterJob:
    """What all tasks of the stage need to know."""

    documents: Path
    duplicates: Path | None
    """Work folder of the deduplication; None: nothing was compared and nothing is dropped."""
    frames: Path
    clean: CleanOptions
    filters: FilterOptions | None
    models: Path
    """Folder of what the filters learnt."""
    given: frozenset[str]
    """Labels of sources whose documents are taken as they are."""

    def rows(self, partition: int) -> "pa.Table":
        """What deduplication left of a partition."""
        if self.duplicates is None:
            return read_partition(self.documents, partition)
        return survivors(self.documents, self.duplicates, partition)


@dataclass
class _Counts:
    """What a task found, stage by stage."""

    distinct: Tally
    filtered: Tally
    uncontaminated: Tally
    licenses: Counter[str]
    hits: Counter[tuple[str, str, str]]
    edits: Counter[tuple[str, str, str]]
    benchmark_texts: np.ndarray
    benchmark_documents: Counter[int]


def train_filters(job: FilterJob, n_partitions: int) -> dict[str, Any]:
    """Train what the filters need on documents of the smallest keys, a fixed amount of each domain."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if job.filters is None:
        return {}
    left: dict[str, int] = defaultdict(lambda: SAMPLE_BYTES)
    parts = []
    for partition in range(n_partitions):
        rows = job.rows(partition).select(["domain", "lang", "text"])
        sizes = pc.call_function("binary_length", [rows["text"]]).to_pylist()
        taken = []
        for domain, size in zip(rows["domain"].to_pylist(), sizes, strict=True):
            taken.append(left[domain] > 0)
            left[domain] -= size if taken[-1] else 0
        parts.append(rows.filter(pa.array(taken, pa.bool_())))
    sample = pa.concat_tables(parts)
    train_models(job.filters, sample, job.models)
    return {"n_documents": sample.num_rows, "domains": sorted(left)}


def filter_partition(partition: int, job: FilterJob) -> dict[str, Any]:
    """Task: what stays of the duplicates, through the rules, into frames; counts and samples of what goes where."""
    none = np.empty(0, dtype=np.int64)
    counts = _Counts(Tally(), Tally(), Tally(), Counter(), Counter(), Counter(), none, Counter())
    similarities = _tally_duplicates(partition, job, counts.distinct)
    written = Frames(job.frames, partition)
    rows = job.rows(partition)
    for start in range(0, rows.num_rows, BATCH_ROWS):
        for row in _through_rules(rows.slice(start, BATCH_ROWS), job, counts):
            counts.uncontaminated.keep(row, len(row["text"].encode()), sample=True)
            counts.licenses[row["license"] or "not stated"] += 1
            written.add(row)
    return {
        "frames": written.close(),
        "tallies": [counts.distinct.plain(), counts.filtered.plain(), counts.uncontaminated.plain()],
        "similarities": similarities,
        "licenses": dict(sorted(counts.licenses.items())),
        "hits": [[*key, n] for key, n in sorted(counts.hits.items()) if n],
        "edits": [[*key, n] for key, n in sorted(counts.edits.items()) if n],
        "benchmark_texts": counts.benchmark_texts.tolist(),
        "benchmark_documents": sorted(counts.benchmark_documents.items()),
    }


def _through_rules(rows: "pa.Table", job: FilterJob, counts: _Counts) -> Iterator[dict[str, Any]]:
    """Rows that stay, with their new texts, in their order."""
    import pyarrow as pa

    documents, rule_of, asked = rows.to_pylist(), dict[int, str](), list[int]()
    for place, row in enumerate(documents):
        n_bytes = len(row["text"].encode())
        counts.distinct.keep(row, n_bytes)
        given = job.duplicates is None or row["origin"].partition("/")[0] in job.given
        reason = None if given else reason_to_drop(row["text"], row["domain"], job.clean)
        if reason:
            counts.filtered.drop(reason, row, n_bytes)
            continue
        rule_of[place] = ""
        if not given:
            asked.append(place)
    if job.filters and asked:
        table = rows.take(pa.array(asked, pa.int64()))
        rules = _ask_filters(table, [documents[place] for place in asked], job, counts)
        rule_of.update(zip(asked, rules, strict=True))
    for place, rule in rule_of.items():
        row = documents[place]
        if rule in ("", CONTAMINATED):
            counts.filtered.keep(row, len(row["text"].encode()))
        if not rule:
            yield row


def _ask_filters(table: "pa.Table", rows: list[dict[str, Any]], job: FilterJob, counts: _Counts) -> list[str]:
    """Rule that takes each row, or nothing; texts and languages of those that stay are changed in place."""
    assert job.filters is not None
    found = decide(table, job.filters, _models(str(job.models), json.dumps(to_tree(job.filters), sort_keys=True)))
    counts.hits.update(found.hits)
    counts.edits.update(found.edits)
    counts.benchmark_texts = np.union1d(counts.benchmark_texts, found.benchmark_texts)
    if found.benchmark_documents is not None:
        counts.benchmark_documents.update(dict(enumerate(found.benchmark_documents.tolist())))
    for row, rule, value, text, lang in zip(rows, found.rules, found.values, found.texts, found.langs, strict=True):
        row["lang"] = lang
        if rule:
            tally = counts.uncontaminated if rule == CONTAMINATED else counts.filtered
            tally.drop(rule, row, len(row["text"].encode()), f"{value:.4g}")
        else:
            row["text"] = text
    return found.rules


@lru_cache(maxsize=2)  # the tasks of a process share what is loaded
def _models(folder: str, options: str) -> FilterModels:
    return load_models(from_tree(json.loads(options), FilterOptions), Path(folder))


def _tally_duplicates(partition: int, job: FilterJob, tally: Tally) -> list[list[int]]:
    """Count what deduplication dropped; similarity of near-duplicates to what stays, in twentieths."""
    if job.duplicates is None:
        return []
    similarities: Counter[int] = Counter()
    drops = read_partition(job.duplicates / "drops", partition, ["row", "rule", "survivor", "detail", "n_bytes"])
    rows = read_partition(job.documents, partition, ["key", "origin", "domain", "lang", "text"]).take(drops["row"])
    for drop, row in zip(drops.to_pylist(), rows.to_pylist(), strict=True):
        detail = f"{drop['detail']:.0%}" + (f" like {drop['survivor']}" if drop["survivor"] else "")
        tally.drop(drop["rule"], row, drop["n_bytes"], detail)
        if drop["rule"] == "near_duplicate":
            similarities[min(19, int(drop["detail"] * 20))] += 1
    return [[place, count] for place, count in sorted(similarities.items())]


def contamination(job: FilterJob, summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per benchmark: its texts, how many of them occur, and the documents that hold them."""
    if job.filters is None or not job.filters.decontaminate.benchmarks:
        return []
    benchmarks = load_models(job.filters, job.models).benchmarks
    assert benchmarks is not None
    documents = np.zeros(len(benchmarks.names), dtype=np.int64)
    for found in summaries:
        for number, count in found["benchmark_documents"]:
            documents[number] += count
    texts = np.unique(np.concatenate([np.array(found["benchmark_texts"], dtype=np.int64) for found in summaries]))
    return report(benchmarks, texts, documents)


def summed(summaries: Iterable[dict[str, Any]], name: str) -> list[list[Any]]:
    """Counts under (name, domain, language) of all tasks together."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for found in summaries:
        counts.update({(rule, domain, lang): n for rule, domain, lang, n in found[name]})
    return [[*key, n] for key, n in sorted(counts.items())]


def made_documents(options: PasskeyOptions, number: int, frames: Path) -> dict[str, Any]:
    """Task: the documents of one `[[passkey]]` entry as frames; no rule drops any of them."""
    licenses = Counter[str]()
    written = Frames(frames, number)
    for split, document in passkey_documents(options):
        licenses[document.license or "not stated"] += 1
        written.add(
            {
                "origin": document.id,
                "source": document.source,
                "domain": document.domain,
                "lang": "en",
                "license": document.license,
                "text": document.text,
                "split": split,
            }
        )
    return {"frames": written.close(), "licenses": dict(sorted(licenses.items()))}


def all_licenses(summaries: Iterable[dict[str, Any]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for found in summaries:
        counts.update(found["licenses"])
    return dict(sorted(counts.items()))
