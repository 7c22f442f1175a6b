"""The filter stage: one partition of documents, less the duplicates, through every rule, into frames of the output."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from isoflop.corpus.clean import CleanOptions, reason_to_drop
from isoflop.corpus.output import Frames
from isoflop.corpus.passkey import PasskeyOptions, passkey_documents
from isoflop.corpus.split import SplitRule
from isoflop.corpus.summary import Tally
from isoflop.corpus.tables import read_partition


def filter_partition(
    partition: int, documents: Path, frames: Path, clean: CleanOptions, rule: SplitRule
) -> dict[str, Any]:
    """Task: keep what breaks no rule, count and sample what does."""
    tally, licenses = Tally(), Counter[str]()
    written = Frames(frames, partition)
    rows = read_partition(documents, partition)
    splits = iter(rule.splits(rows))
    for batch in rows.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            row["split"], n_bytes = next(splits), len(row["text"].encode())
            reason = reason_to_drop(row["text"], row["domain"], clean)
            if reason:
                tally.drop(reason, row, n_bytes)
                continue
            tally.keep(row, n_bytes, sample=True)
            licenses[row["license"] or "not stated"] += 1
            written.add(row)
    return {"frames": written.close(), "tally": tally.plain(), "licenses": dict(sorted(licenses.items()))}


def made_documents(options: PasskeyOptions, number: int, frames: Path) -> dict[str, Any]:
    """Task: the documents of one `[[passkey]]` entry as frames; no rule drops any of them."""
    tally, licenses = Tally(), Counter[str]()
    written = Frames(frames, number)
    for row in _made_rows(options):
        tally.keep(row, len(row["text"].encode()))
        licenses[row["license"] or "not stated"] += 1
        written.add(row)
    return {"frames": written.close(), "tally": tally.plain(), "licenses": dict(sorted(licenses.items()))}


def _made_rows(options: PasskeyOptions) -> Iterator[dict[str, str]]:
    for split, document in passkey_documents(options):
        yield {
            "key": "",
            "origin": document.id,
            "source": document.source,
            "domain": document.domain,
            "lang": "en",
            "license": document.license,
            "text": document.text,
            "split": split,
        }


def all_licenses(summaries: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Documents by licence."""
    counts: Counter[str] = Counter()
    for found in summaries:
        counts.update(found["licenses"])
    return dict(sorted(counts.items()))
