"""Weighted mix of sources as a pure function: the source of the i-th draw, and its index among that source's draws.

Draws come in blocks of `BLOCK`; each block holds the same number of draws of each source (weights rounded to
1/BLOCK, at least one each) in an order that depends on the seed and the block's number alone. So any position is found
without replaying those before it, and shares are exact in every block.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from isoflop.errors import RecipeError

BLOCK = 4096  # assumption: shares are right to 0.02 %, and a block's order is made in 0.1 ms


def shares_per_block(weights: Mapping[str, float]) -> dict[str, int]:
    """Draws of each source in one block, by largest remainder; a source with positive weight has at least one.

    Raises:
        RecipeError: no weight, a negative one, or all of them zero.
    """
    total = sum(weights.values())
    negative = [name for name, weight in weights.items() if not weight >= 0]
    if negative or not 0 < total < float("inf"):
        raise RecipeError(
            f"weights = {dict(weights)} must be numbers >= 0 with a positive sum; "
            f"change {', '.join(negative) or 'them'} or leave weights out for natural proportions"
        )
    exact = {name: BLOCK * weight / total for name, weight in weights.items() if weight > 0}
    counts = {name: max(1, int(share)) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for index in range(BLOCK - sum(counts.values())):
        counts[by_remainder[index % len(by_remainder)]] += 1
    while sum(counts.values()) > BLOCK:  # many tiny weights were lifted to one draw each
        counts[max(counts, key=lambda name: counts[name])] -= 1
    return counts


class Mixture:
    """Random access to an endless weighted sequence of draws."""

    def __init__(self, weights: Mapping[str, float], *, seed: int):
        counts = shares_per_block(weights)
        self.names = list(counts)
        self.seed = seed
        self._counts = np.array([counts[name] for name in self.names], dtype=np.int64)
        self._block = lru_cache(maxsize=8)(self._make_block)

    @property
    def shares(self) -> dict[str, float]:
        """Share of all draws that each source has."""
        return {name: int(count) / BLOCK for name, count in zip(self.names, self._counts)}

    def draws(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, index among that source's draws) for each index, both int64 like `indices`."""
        sources, ranks = np.empty_like(indices), np.empty_like(indices)
        blocks, places = np.divmod(indices, BLOCK)
        for block in np.unique(blocks):
            here = blocks == block
            source_of_place, rank_of_place = self._block(int(block))
            sources[here] = source_of_place[places[here]]
            ranks[here] = rank_of_place[places[here]] + block * self._counts[sources[here]]
        return sources, ranks

    def counts_before(self, n: int) -> np.ndarray:
        """How many of the first `n` draws each source has, int64."""
        blocks, rest = divmod(n, BLOCK)
        partial = self._block(blocks)[0][:rest]
        return blocks * self._counts + np.bincount(partial, minlength=len(self._counts))

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 0x6D6978, block])))
        sources = generator.permutation(np.repeat(np.arange(len(self._counts)), self._counts))
        ranks = np.empty(BLOCK, dtype=np.int64)
        for number, count in enumerate(self._counts):
            ranks[sources == number] = np.arange(count)
        return sources, ranks


class Curriculum:
    """Mixtures one after the other, with the interface of one: a source continues where it was when shares change."""

    def __init__(self, stages: Sequence[tuple[int, Mapping[str, float]]], *, seed: int):
        starts = [start for start, _ in stages]
        if not stages or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise RecipeError(
                f"curriculum: stages begin at draws {starts}; the first must begin at 0 and each must last at least "
                "one draw: check from_share, or train longer"
            )
        mixtures = [Mixture(weights, seed=seed) for _, weights in stages]
        self.names = list(dict.fromkeys(name for mixture in mixtures for name in mixture.names))
        self._starts = np.array(starts, dtype=np.int64)
        self._mixtures = mixtures
        self._numbers = [np.array([self.names.index(name) for name in mixture.names]) for mixture in mixtures]
        self._offsets = [np.zeros(len(self.names), dtype=np.int64)]
        for index in range(len(stages) - 1):
            self._offsets.append(self._offsets[-1] + self._counts(index, starts[index + 1] - starts[index]))

    def draws(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, index among that source's draws) for each index, both int64 like `indices`."""
        sources, ranks = np.empty_like(indices), np.empty_like(indices)
        stages = np.searchsorted(self._starts, indices, side="right") - 1
        for stage in np.unique(stages):
            here = stages == stage
            found, rank = self._mixtures[stage].draws(indices[here] - self._starts[stage])
            sources[here] = self._numbers[stage][found]
            ranks[here] = rank + self._offsets[stage][sources[here]]
        return sources, ranks

    def counts_before(self, n: int) -> np.ndarray:
        """How many of the first `n` draws each source has, int64."""
        stage = int(np.searchsorted(self._starts, n, side="right")) - 1
        return self._offsets[stage] + self._counts(stage, n - int(self._starts[stage]))

    def _counts(self, stage: int, n: int) -> np.ndarray:
        counts = np.zeros(len(self.names), dtype=np.int64)
        counts[self._numbers[stage]] = self._mixtures[stage].counts_before(n)
        return counts
