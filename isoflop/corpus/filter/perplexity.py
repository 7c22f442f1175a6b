"""A small n-gram model, trained on the spot on reference text, and the perplexity of documents under it.

Source: CCNet (Wenzek et al. 2020, arXiv 1911.00359, section 3.4) trains a 5-gram Kneser-Ney model on Wikipedia per
language and keeps web pages by thirds of perplexity. Here: interpolated Kneser-Ney (Kneser and Ney 1995; discounts
n1 / (n1 + 2 n2) per order), 3 tokens long, over tokens of `TextBlock` (characters in unspaced scripts) instead of
sentence pieces. Counts lie in sorted arrays of hashes, so that a block is scored without a loop over words.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np

from isoflop.corpus.dedup.words import mix
from isoflop.corpus.filter.gopher import Finding, above
from isoflop.corpus.filter.text_block import SortedIndex, TextBlock, join_hashes
from isoflop.corpus.filter.toxicity import contains
from isoflop.corpus.tables.partitions import replacing
from isoflop.errors import DataError
from isoflop.recipe import Positive, PositiveInt, Range, Share

_START = mix(np.array([1], dtype=np.uint64) << np.uint64(60))[0]
_UNKNOWN = mix(np.array([3], dtype=np.uint64) << np.uint64(60))[0]


@dataclass(frozen=True)
class PerplexityOptions:
    """How the model is trained and where documents are cut off."""

    enabled: bool = False
    """Apply the rule."""
    seed_domains: tuple[str, ...] = ()
    """Domains whose documents are trusted: the model is trained on a sample of them, one model per language."""
    order: Annotated[int, Range(at_least=1, at_most=5)] = 3
    """Tokens of the longest counted run, 1 to 5."""
    train_mb: Positive = 20.0
    """Text to train on, per language, MB."""
    min_count: PositiveInt = 2
    """Rarer tokens are one unknown token."""
    drop_share: Share = 0.3
    """Share of the documents of a sample, those with the highest perplexity, beyond which all are dropped (CCNet's
    tail is a third)."""


@dataclass(frozen=True)
class NgramModel:
    """Adjusted counts by order. `keys[n]`: sorted hashes of runs of n + 1 tokens; `contexts[n]`: of what precedes."""

    vocabulary: np.ndarray
    keys: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    contexts: tuple[np.ndarray, ...]
    totals: tuple[np.ndarray, ...]
    """Sum of the adjusted counts that follow a context."""
    kinds: tuple[np.ndarray, ...]
    """Different tokens that follow a context."""
    discounts: tuple[float, ...]

    @property
    def order(self) -> int:
        """Tokens of the longest counted run."""
        return len(self.keys)

    @cached_property
    def indexes(self) -> tuple[SortedIndex, list[SortedIndex], list[SortedIndex]]:
        """Of vocabulary, keys and contexts."""
        return SortedIndex(self.vocabulary), list(map(SortedIndex, self.keys)), list(map(SortedIndex, self.contexts))

    def save(self, path: Path) -> None:
        fields = {"vocabulary": self.vocabulary, "discounts": np.array(self.discounts)}
        for name in ("keys", "counts", "contexts", "totals", "kinds"):
            fields.update({f"{name}{n}": array for n, array in enumerate(getattr(self, name))})
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **fields)

    @classmethod
    def load(cls, path: Path) -> "NgramModel":
        """Read what `save` wrote. Raises DataError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                order = len(file["discounts"])
                parts = {
                    name: tuple(file[f"{name}{n}"] for n in range(order))
                    for name in ("keys", "counts", "contexts", "totals", "kinds")
                }
                return cls(file["vocabulary"], discounts=tuple(file["discounts"].tolist()), **parts)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is no n-gram model ({error}); delete it, it is trained again") from error


def train_ngrams(blocks: Iterable[TextBlock], order: int = 3, min_count: int = 2) -> NgramModel:
    """Train on all documents of the blocks.

    Raises:
        DataError: no token in the blocks.
    """
    held = [(block.token_hashes, block.tokens.counts) for block in blocks]
    tokens = np.concatenate([np.empty(0, np.uint64), *(tokens for tokens, _ in held)])
    lengths = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in held)])
    if not len(tokens):
        raise DataError("perplexity.seed_domains: no text to train the model on; name domains that have documents")
    values, counts = np.unique(tokens, return_counts=True)
    vocabulary = values[counts >= min_count]
    sequence, real = _padded(np.where(contains(vocabulary, tokens), tokens, _UNKNOWN), lengths, order)
    runs = _runs(sequence, order)  # hash of the run of n + 1 tokens that ends at each position
    levels = []
    ends, adjusted = _distinct(runs[order - 1], real)
    for n in range(order - 1, -1, -1):
        context = runs[n - 1][ends - 1] if n else np.zeros(len(ends), dtype=np.uint64)
        levels.append((runs[n][ends], adjusted, *_context_sums(context, adjusted), _discount(adjusted)))
        if n:  # the count of a shorter run is in how many different longer runs it is the end
            ends, adjusted = _distinct(runs[n - 1], ends)
    keys, counts, contexts, totals, kinds, discounts = zip(*reversed(levels))
    return NgramModel(vocabulary, *zip(*map(_sorted, keys, counts)), contexts, totals, kinds, discounts)  # type: ignore[arg-type]


def token_log_probabilities(model: NgramModel, block: TextBlock) -> np.ndarray:
    """Natural logarithm of the probability of each token given those before it in its document."""
    vocabulary, keys, contexts = model.indexes
    tokens = np.where(vocabulary.find(block.token_hashes)[1], block.token_hashes, _UNKNOWN)
    sequence, real = _padded(tokens, block.tokens.counts, model.order)
    runs = _runs(sequence, model.order)
    probability = np.full(len(real), 1.0 / (len(model.vocabulary) + 1))
    for n in range(model.order):
        context = runs[n - 1][real - 1] if n else np.zeros(len(real), dtype=np.uint64)
        place, known = contexts[n].find(context)
        total = np.where(known, model.totals[n][place], 1)
        at, seen = keys[n].find(runs[n][real])
        count = np.where(seen, model.counts[n][at], 0)
        discount = model.discounts[n]
        back_off = discount * model.kinds[n][place] / total * probability
        probability = np.where(known, np.maximum(count - discount, 0.0) / total + back_off, probability)
    return np.log(probability)


def perplexities(model: NgramModel, block: TextBlock) -> np.ndarray:
    """exp(-mean log probability) of each document; NaN for documents without tokens."""
    sums = block.tokens.per_doc(token_log_probabilities(model, block))
    counts = block.tokens.counts
    return np.where(counts > 0, np.exp(-sums / np.maximum(counts, 1)), np.nan)


def perplexity(block: TextBlock, model: NgramModel, limit: float) -> list[Finding]:
    """One rule: perplexity above `limit`, which `cut_off` takes from a sample."""
    return [above("perplexity", perplexities(model, block), limit)]


def cut_off(model: NgramModel, blocks: Iterable[TextBlock], drop_share: float) -> float:
    """Perplexity above which `drop_share` of the documents of a sample lie."""
    values = np.concatenate([perplexities(model, block) for block in blocks])
    values = values[np.isfinite(values)]
    return float(np.quantile(values, 1.0 - drop_share)) if len(values) else float("inf")


def _padded(tokens: np.ndarray, lengths: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Each document behind `order` start signs: (sequence, positions of the tokens in it)."""
    real = np.arange(len(tokens)) + np.repeat(np.arange(1, len(lengths) + 1) * order, lengths)
    sequence = np.full(len(tokens) + len(lengths) * order, _START, dtype=np.uint64)
    sequence[real] = tokens
    return sequence, real


def _runs(sequence: np.ndarray, order: int) -> list[np.ndarray]:
    runs = [mix(sequence)]
    for _ in range(1, order):
        longer = runs[-1].copy()
        longer[1:] = join_hashes(runs[-1][:-1], sequence[1:])
        runs.append(longer)
    return runs


def _distinct(keys: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One position of each different key among `ends`, and how often it is there."""
    _, first, counts = np.unique(keys[ends], return_index=True, return_counts=True)
    return ends[first], counts.astype(np.int32)


def _context_sums(context: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(context)
    ranked = context[order]
    begin = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    totals = np.add.reduceat(counts[order].astype(np.int64), begin)
    return ranked[begin], totals, np.diff(np.append(begin, len(ranked))).astype(np.int32)


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2): Ney, Essen and Kneser 1994. Half where a level has no run that occurs once or twice."""
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    return ones / (ones + 2 * twos) if ones and twos else 0.5


def _sorted(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys)
    return keys[order], counts[order]
