"""A linear classifier on hashed word pairs: how much a document is like the seed documents rather than the rest.

Source: the fastText classifiers of CCNet, GPT-3 and DeepSeekMath (arXiv 2402.03300, section 2.1): a bag of words and
word runs, one linear layer. Here: logistic regression on words and pairs hashed into 2**20 places, log counts of unit
length per document, trained by L-BFGS to the optimum of a convex loss, so that the same seeds give the same scores.

The "other" documents are a sample of those that are judged afterwards, and some of them are as good as the seeds. So
two models are trained, each against one half of them, and a document is judged by the one that has not seen it as an
example of the rest: a model with a million weights remembers what it was shown.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.corpus.blocks import blocks
from isoflop.corpus.filter.gopher import Finding, below
from isoflop.corpus.filter.text_block import TextBlock, runs_of
from isoflop.corpus.tables.partitions import replacing
from isoflop.errors import DataError
from isoflop.recipe import NotNegative, PositiveInt, Share

PLACES_BITS = 20
_SCORE_DIGITS = 4  # rounding hides the last bits, in which machines differ
_BLOCK_CHARS = 500_000


@dataclass(frozen=True)
class QualityOptions:
    """Training of the classifier, and the score that a document needs."""

    enabled: bool = False
    """Apply the rule."""
    seed_domains: tuple[str, ...] = ()
    """Domains whose documents are the seed: what good documents look like."""
    min_score: Share = 0.5
    """Documents of other domains with a lower score are dropped."""
    max_documents: PositiveInt = 20_000
    """Seed documents to train on, and as many others."""
    penalty: NotNegative = 1e-6
    """Weight of the squared weights in the loss. Assumption."""


@dataclass(frozen=True)
class Classifier:
    """Two models; `half_of` a document says which one judges it."""

    weights: np.ndarray
    """float32 (2, 2**20)"""
    biases: np.ndarray
    """float64 (2,)"""
    accuracy: float
    """On a tenth of the documents that was held out, both sides weighing the same; mean of the two models."""

    def scores(self, block: TextBlock) -> np.ndarray:
        """Probability of being a seed, for each document, float64, rounded."""
        margins = features(block) @ self.weights.T + self.biases
        judge = 1 - np.fromiter(map(half_of, block.texts), dtype=np.int64, count=block.n_docs)
        margin = margins[np.arange(block.n_docs), judge].astype(np.float64)
        return np.round(1.0 / (1.0 + np.exp(-margin)), _SCORE_DIGITS)

    def save(self, path: Path) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, weights=self.weights, biases=self.biases, accuracy=self.accuracy)

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """Read what `save` wrote. Raises DataError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["weights"], file["biases"], float(file["accuracy"]))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is no classifier ({error}); delete it, it is trained again") from error


def half_of(text: str) -> int:
    """0 or 1, by a checksum of the text."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) & 1


def features(block: TextBlock):
    """Sparse (documents, 2**20) float32: log(1 + count) of hashed words and pairs, rows of length 1."""
    from scipy.sparse import csr_array

    hashes = block.token_hashes[block.is_word]
    offsets = np.concatenate([[0], np.cumsum(block.is_word)])[block.tokens.offsets]
    docs = np.repeat(np.arange(block.n_docs), np.diff(offsets))
    first, pairs = runs_of(hashes, offsets, 2)
    keys = np.concatenate([_cell(docs, hashes), _cell(docs[first], pairs)])
    cells, counts = np.unique(keys, return_counts=True)
    rows, columns = cells >> PLACES_BITS, cells & ((1 << PLACES_BITS) - 1)
    values = np.log1p(counts)
    norms = np.sqrt(np.bincount(rows, values * values, minlength=block.n_docs))
    values = (values / norms[rows]).astype(np.float32)
    starts = np.searchsorted(rows, np.arange(block.n_docs + 1))
    return csr_array((values, columns.astype(np.int32), starts), shape=(block.n_docs, 1 << PLACES_BITS))


def train_classifier(seeds: Sequence[str], others: Sequence[str], penalty: float = 1e-6) -> Classifier:
    """Train on seed documents against others; every tenth document of each side is held out to measure accuracy.

    Raises:
        DataError: fewer than 10 documents on a side.
    """
    halves = [[text for text in others if half_of(text) == half] for half in (0, 1)]
    models = [_train(seeds, half or others, penalty) for half in halves]
    weights, biases, accuracies = zip(*models)
    return Classifier(np.stack(weights), np.array(biases), float(np.mean(accuracies)))


def _train(seeds: Sequence[str], others: Sequence[str], penalty: float) -> tuple[np.ndarray, float, float]:
    from scipy.optimize import minimize
    from scipy.sparse import csr_array, vstack

    if min(len(seeds), len(others)) < 10:
        raise DataError(
            f"quality.seed_domains: {len(seeds)} seed and {len(others)} other documents; a classifier needs 10 of each"
        )
    parts = [features(block) for texts in (seeds, others) for block in blocks_of(texts)]
    data = csr_array(vstack(parts, format="csr"))
    target = np.concatenate([np.ones(len(seeds)), np.zeros(len(others))])
    held_out = np.concatenate([np.arange(len(seeds)) % 10 == 9, np.arange(len(others)) % 10 == 9])
    rows, wanted = data[~held_out], target[~held_out]
    balance = np.where(wanted == 1, 0.5 / wanted.sum(), 0.5 / (len(wanted) - wanted.sum()))
    columns = np.unique(rows.indices)  # the others stay zero
    rows = rows[:, columns]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = rows @ weights[:-1] + weights[-1]
        value = balance @ (np.logaddexp(0.0, margin) - wanted * margin) + penalty / 2 * weights[:-1] @ weights[:-1]
        error = balance * (1.0 / (1.0 + np.exp(-margin)) - wanted)
        return value, np.append(rows.T @ error + penalty * weights[:-1], error.sum())

    found = minimize(loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    weights = np.zeros(1 << PLACES_BITS, dtype=np.float32)
    weights[columns] = found[:-1]
    right = (data[held_out] @ weights + found[-1] > 0) == (target[held_out] == 1)
    half = [right[target[held_out] == side].mean() for side in (0, 1)]
    return weights, float(found[-1]), float(np.mean(half))


def quality(block: TextBlock, classifier: Classifier, options: QualityOptions) -> list[Finding]:
    """One rule: the score is below `min_score`."""
    return [below("quality_score", classifier.scores(block), options.min_score)]


def blocks_of(texts: Iterable[str], max_chars: int = _BLOCK_CHARS) -> Iterable[TextBlock]:
    """Consecutive texts in blocks of about `max_chars`."""
    return map(TextBlock, blocks(texts, len, max_chars))


def _cell(docs: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    return (docs.astype(np.int64) << PLACES_BITS) | (hashes >> np.uint64(64 - PLACES_BITS)).astype(np.int64)
