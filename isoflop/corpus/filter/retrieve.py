"""Growing a domain from a few seed documents: seed -> classifier -> retrieve -> extend, round after round.

Source: DeepSeekMath (Shao et al. 2024, arXiv 2402.03300, section 2.1). A classifier is trained on the seed against
documents of the pool; the best-scored documents of the pool are taken; web sites of which more than a tenth was taken
are looked at, and their other pages join the seed; the next round begins, until little new is found. Where we deviate:
people chose the address patterns of such sites there; here a page of such a site joins the seed if the classifier
gives it an even chance. A site is the `source` of a document.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoflop.corpus.filter.quality import Classifier, blocks_of, train_classifier
from isoflop.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RetrieveOptions:
    """How far a seed is grown."""

    max_rounds: int = 4
    """Rounds (paper: 4)."""
    take_mb: float = 10.0
    """Text taken from the pool in the first round, best scores first; grows by as much each round (paper: 40, 80, 120,
    160 billion tokens)."""
    min_score: float = 0.5
    """Nothing with a lower score is taken."""
    min_site_share: float = 0.1
    """Sites of which more was taken extend the seed (paper)."""
    stop_share: float = 0.02
    """Stop when a round takes less new text than this share of all it takes (paper: 2%)."""
    max_documents: int = 20_000
    """Documents of each side that the classifier is trained on (paper: 500,000)."""
    penalty: float = 1e-6
    """As in `QualityOptions`."""


@dataclass(frozen=True)
class Round:
    """What one round found."""

    n_seeds: int
    accuracy: float
    n_taken: int
    n_bytes: int
    new_share: float
    """Bytes that the round before had not taken."""
    sites: tuple[str, ...]
    """Sites that extended the seed."""


Pool = Callable[[], "Iterable[pa.Table]"]
"""Called for each pass: tables with key, source and text, in the same order each time."""


def retrieve(
    seeds: list[str], pool: Pool, options: RetrieveOptions
) -> tuple[list[Round], dict[str, float], Classifier]:
    """(rounds, key -> score of what the last round took, the last classifier). Memory: scores, not texts.

    Raises:
        DataError: an empty pool, or too few seeds.
    """
    rounds: list[Round] = []
    taken: dict[str, float] = {}
    seeds = list(seeds)
    known: set[str] = set()
    while True:
        classifier = train_classifier(
            seeds[: options.max_documents], _others(pool, taken, known, options), options.penalty
        )
        keys, sites, sizes, scores = _score(pool, classifier)
        chosen = _best(keys, sizes, scores, options, 1 + len(rounds))
        before, taken = taken, {keys[i]: float(scores[i]) for i in chosen}
        new = sum(int(sizes[i]) for i in chosen if keys[i] not in before)
        total = int(sizes[chosen].sum())
        hot = _hot_sites(sites, chosen, options)
        rounds.append(Round(len(seeds), classifier.accuracy, len(chosen), total, new / max(1, total), hot))
        if len(rounds) >= options.max_rounds or new <= options.stop_share * total:
            return rounds, taken, classifier
        wanted = {
            key for key, site, score in zip(keys, sites, scores) if site in hot and score >= 0.5 and key not in known
        }
        known |= wanted
        seeds += _texts(pool, wanted)


def _others(pool: Pool, taken: dict[str, float], known: set[str], options: RetrieveOptions) -> list[str]:
    """Documents of the pool against which the seed stands: those with the smallest keys, which are hashes."""
    best: list[tuple[str, str]] = []
    for rows in pool():
        for key, text in zip(rows.column("key").to_pylist(), rows.column("text").to_pylist()):
            if key not in taken and key not in known:
                best.append((key, text))
        best = sorted(best)[: options.max_documents]
    if not best:
        raise DataError("retrieve: the pool has no document that is not taken already; give more text")
    return [text for _, text in best]


def _score(pool: Pool, classifier: Classifier) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    keys: list[str] = []
    sites: list[str] = []
    sizes: list[int] = []
    scores = [np.empty(0)]
    for rows in pool():
        texts = rows.column("text").to_pylist()
        keys += rows.column("key").to_pylist()
        sites += rows.column("source").to_pylist()
        sizes += [len(text.encode()) for text in texts]
        scores += [classifier.scores(block) for block in blocks_of(texts)]
    return keys, sites, np.array(sizes, dtype=np.int64), np.concatenate(scores)


def _best(keys: list[str], sizes: np.ndarray, scores: np.ndarray, options: RetrieveOptions, n_round: int) -> np.ndarray:
    order = np.array(
        sorted(np.flatnonzero(scores >= options.min_score), key=lambda i: (-scores[i], keys[i])), dtype=int
    )
    return order[np.cumsum(sizes[order]) <= n_round * options.take_mb * 1e6]


def _hot_sites(sites: list[str], chosen: np.ndarray, options: RetrieveOptions) -> tuple[str, ...]:
    names, place = np.unique(np.array(sites), return_inverse=True)
    pages = np.bincount(place, minlength=len(names))
    hits = np.bincount(place[chosen], minlength=len(names))
    hot = (hits > options.min_site_share * pages) & (pages > 1)
    return tuple(str(name) for name in names[hot])


def _texts(pool: Pool, wanted: set[str]) -> list[str]:
    found = {
        key: text
        for rows in pool()
        for key, text in zip(rows.column("key").to_pylist(), rows.column("text").to_pylist())
        if key in wanted
    }
    return [found[key] for key in sorted(found)]
