"""The filter stage: one partition of documents, less the duplicates, through every rule, into frames of the output."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from isoflop.corpus.clean import CleanOptions, reason_to_drop
from isoflop.corpus.dedup_table import survivors
from isoflop.corpus.output import Frames
from isoflop.corpus.passkey import PasskeyOptions, passkey_documents
from isoflop.corpus.summary import Tally
from isoflop.corpus.tables import read_partition

BATCH_ROWS = 512  # assumption: rows that are Python objects at a time


def filter_partition(
    partition: int, documents: Path, duplicates: Path, frames: Path, clean: CleanOptions
) -> dict[str, Any]:
    """Task: what stays of the duplicates, through the rules, into frames; counts and samples of what goes where."""
    distinct, tally, licenses = Tally(), Tally(), Counter[str]()
    similarities = _tally_duplicates(partition, documents, duplicates, distinct)
    written = Frames(frames, partition)
    for batch in survivors(documents, duplicates, partition).to_batches(max_chunksize=BATCH_ROWS):
        for row in batch.to_pylist():
            n_bytes = len(row["text"].encode())
            distinct.keep(row, n_bytes)
            reason = reason_to_drop(row["text"], row["domain"], clean)
            if reason:
                tally.drop(reason, row, n_bytes)
                continue
            tally.keep(row, n_bytes, sample=True)
            licenses[row["license"] or "not stated"] += 1
            written.add(row)
    return {
        "frames": written.close(),
        "distinct": distinct.plain(),
        "tally": tally.plain(),
        "similarities": similarities,
        "licenses": dict(sorted(licenses.items())),
    }


def _tally_duplicates(partition: int, documents: Path, duplicates: Path, tally: Tally) -> list[list[int]]:
    """Count what deduplication dropped; similarity of near-duplicates to what stays, in twentieths."""
    similarities: Counter[int] = Counter()
    drops = read_partition(duplicates / "drops", partition, ["row", "rule", "survivor", "detail", "n_bytes"])
    rows = read_partition(documents, partition, ["key", "origin", "domain", "lang", "text"]).take(drops["row"])
    for drop, row in zip(drops.to_pylist(), rows.to_pylist(), strict=True):
        detail = f"{drop['detail']:.0%}" + (f" like {drop['survivor']}" if drop["survivor"] else "")
        tally.drop(drop["rule"], row, drop["n_bytes"], detail)
        if drop["rule"] == "near_duplicate":
            similarities[min(19, int(drop["detail"] * 20))] += 1
    return [[place, count] for place, count in sorted(similarities.items())]


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
