"""A value with its interval, and that of a share."""

import math
from typing import NamedTuple

from isoflop.errors import DataError

Z90 = 1.6449
Z95 = 1.959964
"""Half widths of 90% and 95% intervals of the normal distribution, in standard errors."""


class Interval(NamedTuple):
    """A value with its interval, from n items."""

    value: float
    low: float
    high: float
    n: int


def wilson(n_right: float, n: int, z: float = Z95) -> Interval:
    """A share of independent items with Wilson's interval, which stays inside 0 to 1 also where all are right.

    Source: E. B. Wilson 1927, as the score interval.
    """
    if not 0 <= n_right <= n or n < 1:
        raise DataError(f"{n_right} of {n} items are right; give at least one item, and not more right ones than items")
    share = n_right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n**2))
    scale = 1 + z * z / n
    return Interval(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), n)
