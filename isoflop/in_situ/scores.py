"""How good a grouping is (matched accuracy, mutual information, adjusted Rand index), and intervals of differences."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def contingency(found: Tensor, truth: Tensor) -> np.ndarray:
    """Items in each found group (rows) of each true class (columns)."""
    table = np.zeros((int(found.max()) + 1, int(truth.max()) + 1), dtype=np.int64)
    np.add.at(table, (found.cpu().numpy(), truth.cpu().numpy()), 1)
    return table


def matched_accuracy(found: Tensor, truth: Tensor) -> float:
    """Share of items in the right group once groups are named in the best way (Hungarian matching)."""
    table = contingency(found, truth)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def normalised_mutual_information(found: Tensor, truth: Tensor) -> float:
    """Mutual information over the mean of both entropies, 0 to 1."""
    joint = contingency(found, truth) / len(found)
    rows, columns = joint.sum(1), joint.sum(0)
    inside = joint > 0
    mutual = float((joint[inside] * np.log(joint[inside] / np.outer(rows, columns)[inside])).sum())
    mean = (_entropy(rows) + _entropy(columns)) / 2
    return mutual / mean if mean > 0 else 1.0


def adjusted_rand_index(found: Tensor, truth: Tensor) -> float:
    """Share of pairs that both groupings treat alike, 0 for chance and 1 for equal groupings."""
    table = contingency(found, truth)
    both, a, b = (_pairs(counts) for counts in (table, table.sum(1), table.sum(0)))
    expected, largest = a * b / math.comb(len(found), 2), (a + b) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences by Student's t."""
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) // 2).sum())
