"""Equal cells of two sweeps against each other: their losses differ by what was changed and little else.

`compare` answers by the laws, at any budget. Where both sweeps ran the same cells (shape, tokens, seed) the mean
difference is known more exactly; it holds for these budgets only. Cells of one shape and seed share a trunk and count
as one witness.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t

from isoflop.errors import PlanError
from isoflop.scaling.laws import Laws
from isoflop.scaling.sweep.records import RunRecord, read_records

CELL = ("d_model", "n_layers", "n_tokens", "seed")
"""What makes two cells equal; shape and seed alone make a witness."""
STEP = 1e-3
"""Of ln C, for the slope of a law."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of ln(loss of B / loss of A) over equal cells."""

    group: str
    """all, a budget, or a domain."""
    mean: float
    low: float
    """Of Student's interval over witnesses; NaN for one witness."""
    high: float
    level: float
    n_cells: int
    witnesses: int
    budget_flops: float | None = None
    multiplier: tuple[float, float, float] | None = None
    """Of a budget: the same difference as compute, by the slope of A's laws there (centre, low, high)."""

    @property
    def text(self) -> str:
        span = "" if math.isnan(self.low) else f" ({self.level:.0%} {self.low:+.2%} to {self.high:+.2%})"
        return (
            f"Of {self.n_cells} equal cells ({self.witnesses} shapes and seeds) B's loss differs by "
            f"{self.mean:+.2%}{span}."
        )


def cells_by_setting(path: str | Path, loss: str) -> dict[tuple[Any, ...], RunRecord]:
    """Finished cells of a sweep by shape, tokens and seed.

    Raises:
        PlanError: two cells of one setting, such as a grid of rates.
    """
    found: dict[tuple[Any, ...], RunRecord] = {}
    for record in read_records(path):
        if record.kind != "cell" or record.status != "finished" or getattr(record, loss) is None:
            continue
        setting = tuple(getattr(record, name) for name in CELL)
        if setting in found:
            pairs = ", ".join(f"{name} {value}" for name, value in zip(CELL, setting))
            raise PlanError(f"--records {path} holds two finished cells of {pairs}; give a sweep with one run per cell")
        found[setting] = record
    return found


def paired_differences(
    a: Mapping[tuple[Any, ...], RunRecord], b: Mapping[tuple[Any, ...], RunRecord], laws_a: Laws, level: float
) -> list[PairedDifference]:
    """Differences of equal cells: of all, then by budget, then by domain; nothing where no cell is common."""
    groups: dict[str, dict[tuple[Any, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    budgets: dict[str, float] = {}
    common = sorted(a.keys() & b.keys(), key=lambda setting: a[setting].budget_flops or 0.0)
    for setting in common:
        one, other, witness = a[setting], b[setting], (*setting[:2], setting[3])
        ratio = math.log(getattr(other, laws_a.loss) / getattr(one, laws_a.loss))
        groups["all"][witness].append(ratio)
        if one.budget_flops:
            name = f"{one.budget_flops:.3g} FLOPs"
            budgets[name] = one.budget_flops
            groups[name][witness].append(ratio)
    for setting in common:
        theirs, witness = b[setting].bits_per_byte_by_domain or {}, (*setting[:2], setting[3])
        for domain, loss in (a[setting].bits_per_byte_by_domain or {}).items():
            if domain in theirs:
                groups[domain][witness].append(math.log(theirs[domain] / loss))
    return [_difference(name, witnesses, budgets.get(name), laws_a, level) for name, witnesses in groups.items()]


def _difference(
    group: str, witnesses: Mapping[tuple[Any, ...], list[float]], budget: float | None, laws_a: Laws, level: float
) -> PairedDifference:
    means = [statistics.fmean(ratios) for ratios in witnesses.values()]
    mean, n = statistics.fmean(means), len(means)
    half = math.nan if n == 1 else float(t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(means) / math.sqrt(n)
    multiplier = None
    if budget:
        slope = _slope(laws_a, budget)  # below 0: a lower loss is worth more compute
        multiplier = (math.exp(mean / slope), math.exp((mean + half) / slope), math.exp((mean - half) / slope))
    return PairedDifference(
        group, mean, mean - half, mean + half, level, sum(map(len, witnesses.values())), n, budget, multiplier
    )


def _slope(laws: Laws, total_flops: float) -> float:
    """d ln L* / d ln C, mean over the laws."""
    ends = (laws.optimum_losses(laws.constants(), total_flops * math.exp(step)) for step in (-STEP, STEP))
    low, high = (statistics.fmean(math.log(float(loss)) for loss in found.values()) for found in ends)
    return (high - low) / (2 * STEP)
