"""Which sources are validation, and which of two equal documents stays. Decided for whole sources."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from isoflop.corpus.document import SourceOptions
from isoflop.corpus.read.environment import choose_held_out

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PRIORITY = 1 << 20
"""Priorities lie below it: subtracted for validation, so that its documents survive those of training."""


@dataclass(frozen=True)
class SplitRule:
    """How sources are split between training and validation, and who survives; plain data for the tasks."""

    valid_fraction: float = 0.05
    held_out: tuple[str, ...] = ()
    """Packages of the environment that are validation."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """Label of a source -> auto, train or valid; what is not there is a package of the environment."""
    priorities: Mapping[str, int] = field(default_factory=dict)

    def split_of(self, origin: str, source: str) -> str:
        """`train` or `valid`, the same for all documents of a source."""
        rule = self.rules.get(origin.partition("/")[0], "package")
        if rule == "package":
            return "valid" if source in self._held_out else "train"
        if rule != "auto":
            return rule
        number = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "big")
        return "valid" if number < int(self.valid_fraction * 2**64) else "train"

    def splits_and_priorities(self, rows: "pa.Table") -> tuple[list[str], list[int]]:
        """Both of each row: of duplicates the smallest (priority, origin) stays; that of validation is negative."""
        splits, priorities = [], []
        for origin, source in zip(rows["origin"].to_pylist(), rows["source"].to_pylist(), strict=True):
            splits.append(self.split_of(origin, source))
            offset = MAX_PRIORITY if splits[-1] == "valid" else 0
            priorities.append(self.priorities.get(origin.partition("/")[0], 0) - offset)
        return splits, priorities

    @property
    def given(self) -> frozenset[str]:
        """Labels of sources that are validation as a whole: no rule drops any of their documents."""
        return frozenset(label for label, rule in self.rules.items() if rule == "valid")

    @cached_property
    def _held_out(self) -> frozenset[str]:
        return frozenset(self.held_out)


def split_rule(
    packages: Iterable[tuple[str, str, int]],
    sources: Iterable[SourceOptions],
    valid_fraction: float,
    valid_share: float,
) -> SplitRule:
    """The rule for these sources; `packages` are (package, domain, bytes) of the environment."""
    n_bytes: dict[tuple[str, str], int] = defaultdict(int)
    for package, domain, count in packages:
        n_bytes[package, domain] += count
    held_out = choose_held_out(n_bytes, valid_share) if n_bytes else set()
    sources = sorted(sources, key=lambda source: source.label)
    return SplitRule(
        valid_fraction,
        tuple(sorted(held_out)),
        {source.label: source.split for source in sources},
        {source.label: source.priority for source in sources},
    )
