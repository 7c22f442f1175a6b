"""What a stage kept and dropped: counts by rule, domain and language, lengths, and a few samples of each rule.

A `Tally` is filled by one task, written as plain data, and merged with those of the others. Samples are the documents
with the smallest hash of (rule, key): the same ones in any process, and as good as drawn at random.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

MAX_SAMPLES = 20
EXCERPT_CHARS = 600
KEPT = "kept"
"""Samples under this name are of documents that stay."""


class Tally:
    """Counts and samples of one stage."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        """(domain, lang) -> documents, bytes."""
        self.dropped: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        """(rule, domain, lang) -> documents, bytes."""
        self.lengths: Counter[tuple[str, int]] = Counter()
        """(domain, log2 of bytes rounded down) -> kept documents."""
        self.samples: dict[str, list[list[str]]] = defaultdict(list)
        """Rule -> [hash, origin, domain, lang, detail, excerpt], smallest hash first."""

    def keep(self, row: Mapping[str, str], n_bytes: int, *, sample: bool = False) -> None:
        """Count a document that stays."""
        count = self.kept[row["domain"], row["lang"]]
        count[0] += 1
        count[1] += n_bytes
        self.lengths[row["domain"], max(0, n_bytes.bit_length() - 1)] += 1
        if sample:
            self._sample(KEPT, row, "")

    def drop(self, rule: str, row: Mapping[str, str], n_bytes: int, detail: str = "") -> None:
        """Count a document that goes, with the rule that it broke."""
        count = self.dropped[rule, row["domain"], row["lang"]]
        count[0] += 1
        count[1] += n_bytes
        self._sample(rule, row, detail)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, in one order."""
        return {
            "kept": [[*key, *count] for key, count in sorted(self.kept.items())],
            "dropped": [[*key, *count] for key, count in sorted(self.dropped.items())],
            "lengths": [[*key, count] for key, count in sorted(self.lengths.items())],
            "samples": dict(sorted(self.samples.items())),
        }

    def add(self, found: Mapping[str, Any]) -> None:
        """Add what another tally wrote."""
        for domain, lang, documents, n_bytes in found["kept"]:
            count = self.kept[domain, lang]
            count[0], count[1] = count[0] + documents, count[1] + n_bytes
        for rule, domain, lang, documents, n_bytes in found["dropped"]:
            count = self.dropped[rule, domain, lang]
            count[0], count[1] = count[0] + documents, count[1] + n_bytes
        for domain, size, documents in found["lengths"]:
            self.lengths[domain, size] += documents
        for rule, samples in found["samples"].items():
            self.samples[rule] = sorted([*self.samples[rule], *samples])[:MAX_SAMPLES]

    @property
    def n_documents(self) -> int:
        return sum(count[0] for count in self.kept.values())

    @property
    def n_bytes(self) -> int:
        return sum(count[1] for count in self.kept.values())

    def _sample(self, rule: str, row: Mapping[str, str], detail: str) -> None:
        mark = hashlib.blake2b(f"{rule}\0{row['key']}\0{row['origin']}".encode(), digest_size=8).hexdigest()
        samples = self.samples[rule]
        if len(samples) == MAX_SAMPLES and mark >= samples[-1][0]:
            return
        samples.append([mark, row["origin"], row["domain"], row["lang"], detail, row["text"][:EXCERPT_CHARS]])
        samples.sort()
        del samples[MAX_SAMPLES:]


def merged(tallies: Iterable[Mapping[str, Any]]) -> Tally:
    """The tally of all tasks together."""
    whole = Tally()
    for found in tallies:
        whole.add(found)
    return whole
