"""Scores with intervals: shares, means over clusters, differences between two models on the same items, pass@k.

Items of one passage, dialogue or subject are not independent, so errors are computed over clusters where an item has a
group. Two models are compared by the differences on the same items, never by two separate intervals.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from isoflop.errors import DataError
from isoflop.intervals import Z95, Interval, wilson


def clustered_error(scores: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Standard error of the mean where items of one group vary together.

    Source: sums of residuals by cluster, corrected by G / (G - 1) (arXiv 2411.00640, section 2.2). Infinite with one
    cluster: nothing is known about others.
    """
    if len(scores) != len(groups) or not len(scores):
        raise DataError(
            f"{len(scores)} scores for {len(groups)} groups; give one group per item, and at least one item"
        )
    values = np.asarray(scores, dtype=np.float64)
    numbers: dict[Hashable, int] = {}
    labels = [numbers.setdefault(group, len(numbers)) for group in groups]
    n_groups = len(numbers)
    if n_groups < 2:
        return math.inf
    sums = np.bincount(labels, weights=values - values.mean())
    return float(np.sqrt((sums**2).sum() * n_groups / (n_groups - 1)) / len(values))


def mean_of(scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of scores: Wilson's interval for independent yes-or-no items, else the normal one over clusters.

    Scores between 0 and 1 keep their interval inside.
    """
    if not len(scores):
        raise DataError("no item has a score; give at least one")
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"score {values[~np.isfinite(values)][0]} is no number; leave missing items out")
    if groups is None or len(set(groups)) == len(values):
        if np.isin(values, (0.0, 1.0)).all():
            return wilson(float(values.sum()), len(values))
        groups = range(len(values))
    mean, half = float(values.mean()), Z95 * clustered_error(values.tolist(), groups)
    return _around(mean, half, values, len(set(groups)))


def weighted_mean(
    scores: Sequence[float], weights: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Interval:
    """Mean where items count differently, such as shares of instructions weighed by their number; a ratio's error."""
    if len(scores) != len(weights) or not len(scores) or min(weights) < 0 or sum(weights) <= 0:
        raise DataError(f"{len(weights)} weights for {len(scores)} scores; give one of at least 0 per item, not all 0")
    values, heavy = np.asarray(scores, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    mean = float(values @ heavy / heavy.sum())
    residuals = heavy * (values - mean) / heavy.mean()
    groups = groups or range(len(values))
    half = Z95 * clustered_error(residuals.tolist(), groups)
    return _around(mean, half, values, len(set(groups)))


def _around(mean: float, half: float, values: np.ndarray, n_groups: int) -> Interval:
    """The interval of a mean, inside 0 to 1 where all scores are.

    Scores of 0 to 1 that are all equal show no spread and are not certain for that: Wilson's interval over the groups.
    """
    low, high = mean - half, mean + half
    if ((values >= 0) & (values <= 1)).all():
        low, high = max(0.0, low), min(1.0, high)
        if half == 0:
            low, high = wilson(mean * n_groups, n_groups)[1:3]
    return Interval(mean, low, high, len(values))


def paired(first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of `second - first` over the same items, with its interval."""
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} scores are not of the same items; give both in the same order")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    half = Z95 * clustered_error(differences.tolist(), groups or range(len(differences)))
    mean = float(differences.mean())
    return Interval(mean, mean - half, mean + half, len(differences))


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """Chance that one of k samples is right, estimated from n samples without bias.

    Source: arXiv 2107.03374, equation 1.
    """
    if not 0 <= n_right <= n or not 1 <= k <= n:
        raise DataError(f"pass@{k} of {n_right} right among {n} samples; k is between 1 and the number of samples")
    return 1.0 - math.comb(n - n_right, k) / math.comb(n, k)


def accuracy_of(scores: Sequence[float], gold: Sequence[int]) -> float:
    """1 where the best option is right; ties go to the first, as an argmax does."""
    return float(int(np.argmax(np.asarray(scores, dtype=np.float64))) in gold)


def normalised(sums: Sequence[float], options: Sequence[str], by: str, n_tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of options divided by their length in characters, bytes or tokens; lengths as lm-eval counts.

    The leading blank of an option is how it is joined, not part of it.
    """
    texts = [option.removeprefix(" ") for option in options]
    lengths = {
        "sum": [1] * len(texts),
        "character": [len(text) for text in texts],
        "byte": [len(text.encode("utf-8", "surrogatepass")) for text in texts],
        "token": n_tokens,
    }[by]
    if 0 in lengths:
        raise DataError(f"option {lengths.index(0)} is empty, so it has no score by {by}; leave the item out")
    return [value / length for value, length in zip(sums, lengths, strict=True)]
