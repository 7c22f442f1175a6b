"""Two fits against each other: how much compute a change is worth, and whether that is known yet.

Two laws files go in (A the base, B the change: other data, architecture, optimizer, numerics), a verdict comes out. B's
compute multiplier m at a budget C solves L_A*(m C) = L_B*(C): A needs m times the compute to reach what B reaches at C.
It is solved for every law and every bootstrap resample, row i of one against row i of the other. Sweeps over the same
cells, fitted with the same seed, weigh each cell alike in row i, so what their runs have in common (shape, seed, order
of the data) cancels; other sweeps are resampled independently. If the interval holds 1, the cells that would shrink it
most are named.

Losses of two texts say nothing about each other, so both laws must name the same held-out text by hash and bytes.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.errors import PlanError
from isoflop.numerics.section import by_rule
from isoflop.recipe import Tree
from isoflop.scaling.fit.checks import held_out as held_out_of
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import Laws
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.held_out import HeldOut, check_held_out, check_tokenizers
from isoflop.scaling.plan.next_cells import choose
from isoflop.scaling.plan.paired import CELL, PairedDifference, cells_by_setting, paired_differences
from isoflop.scaling.published import load_laws

WIDEST_MULTIPLIER = 1e4
"""The search for a multiplier covers this factor both ways; resamples beyond it count as its ends."""
NEXT_CELLS = 4
"""How many further runs a verdict without a decision asks for."""
SIGNIFICANT = 0.05
"""Chance of calling any exponent different when none is; divided by the number of tests (Bonferroni)."""
FAMILY_KEYS = ("family", "experts", "numerics")
"""Conventions that say what kind of model was trained: a difference there is what is compared, not a warning."""
WIDE = 3.0
"""An interval whose ends differ more than this deserves more runs even if it decides who is better."""


@dataclass(frozen=True)
class Multiplier:
    """B's compute multiplier over A at the budget."""

    center: float
    low: float
    high: float
    by_law: dict[str, float]
    resamples: int
    at_limit: float
    """Share of resamples at the end of the search."""


@dataclass(frozen=True)
class LossPair:
    a: float
    b: float
    unit: str


@dataclass(frozen=True)
class ExponentTest:
    """One exponent on both sides; `difference` is B - A."""

    exponent: str
    law: str
    a: float
    b: float
    difference: float
    interval: list[float]
    p: float
    differs: bool = False


@dataclass(frozen=True)
class NextCell:
    """A further run that would narrow the interval, the ones before it counted."""

    side: str
    budget_flops: float
    scale_name: str
    scale: float
    n_tokens: float
    interval_width_left: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """What B is worth over A."""

    budget_flops: float
    level: float
    multiplier: Multiplier
    needed: float
    """B's compute over A's at A's loss: 1 / m where exponents agree."""
    loss: LossPair
    """At the budget."""
    exponents: list[ExponentTest]
    held_out: HeldOut
    families: dict[str, str | None]
    """The kind of model on each side, where the records say it."""
    decided: bool
    next_cells: list[NextCell]
    warnings: list[str]
    verdict: str = ""
    paired: list[PairedDifference] = dataclasses.field(default_factory=list)
    """Of equal cells, where the records were given: in all, by budget, by domain."""

    def tree(self) -> Tree:
        """Plain data for `--json`."""
        tree = dataclasses.asdict(self)
        for cell in tree["next_cells"]:
            cell[cell.pop("scale_name")] = cell.pop("scale")
        return tree


def compare_files(
    a: str | Path,
    b: str | Path,
    *,
    budget_flops: float | None = None,
    level: float = 0.9,
    same_held_out: bool = False,
    records: tuple[str | Path, str | Path] | None = None,
) -> Comparison:
    """`compare` of two laws files; without a budget at the larger of their largest sweep budgets.

    With the records of both sweeps (A, B) it also states the mean difference of equal cells.

    Raises:
        PlanError: a file is missing or no laws file, and whatever `compare` refuses; records that hold a cell twice.
    """
    laws_a, laws_b = load_laws(a), load_laws(b)
    if budget_flops is None:
        known = [laws.largest_budget_flops for laws in (laws_a, laws_b) if laws.largest_budget_flops]
        if not known:
            raise PlanError(f"neither {a} nor {b} states its largest budget; give the budget to compare at")
        budget_flops = max(known)
    found = compare(laws_a, laws_b, budget_flops=budget_flops, level=level, same_held_out=same_held_out)
    if records is None:
        return found
    cells_a, cells_b = (cells_by_setting(path, laws_a.loss) for path in records)
    tables = (Table.of(cells.values()) for cells in (cells_a, cells_b))
    measured = {f"records {path}": held_out_of(table) for path, table in zip(records, tables)}
    check_held_out(_sides(laws_a, laws_b) | measured, stated=same_held_out)
    paired = paired_differences(cells_a, cells_b, laws_a, level)
    if not paired:
        none = f"the records have no finished cell in common (same {', '.join(CELL)}): only the laws are compared"
        return dataclasses.replace(found, warnings=[*found.warnings, none])
    return dataclasses.replace(found, paired=paired, verdict=f"{found.verdict} {paired[0].text}")


def compare(
    laws_a: Laws, laws_b: Laws, *, budget_flops: float, level: float = 0.9, same_held_out: bool = False
) -> Comparison:
    """Compute multiplier of B over A at a budget, its interval, tests of the exponents, and a plain verdict.

    `same_held_out` states that both were measured on one text where the laws do not say it themselves.

    Raises:
        PlanError: no law in common, no resamples, laws that measure loss or scale differently or on other text, or
            that do not say on which.
    """
    if not (math.isfinite(budget_flops) and budget_flops > 0):
        raise PlanError(f"budget_flops = {budget_flops} must be a finite number above 0")
    for key in ("loss", "scale"):
        a, b = getattr(laws_a, key), getattr(laws_b, key)
        if a != b:
            raise PlanError(
                f"{key} = {a!r} of A ({laws_a.name}) and {b!r} of B ({laws_b.name}) cannot be compared; fit both with "
                "the same columns"
            )
    draws_a, draws_b = laws_a.draws(), laws_b.draws()
    check_tokenizers(laws_a, laws_b)
    held_out = check_held_out(_sides(laws_a, laws_b), stated=same_held_out)
    warnings = _check_conventions(laws_a, laws_b, budget_flops)
    rows = min(len(next(iter(draws_a.values()))), len(next(iter(draws_b.values()))))
    center_a, center_b = laws_a.constants(), laws_b.constants()
    common = [name for name in draws_a if name in draws_b and name in center_a and name in center_b]
    if not common:
        raise PlanError(f"laws have no fit in common ({', '.join(draws_a)}; {', '.join(draws_b)}); fit both alike")
    draws_a = {name: draws_a[name][:rows] for name in common}
    draws_b = {name: draws_b[name][:rows] for name in common}
    center_a, center_b = ({name: c[name][None] for name in common} for c in (center_a, center_b))  # one row

    loss_a = laws_a.optimum_losses(center_a, budget_flops)
    loss_b = laws_b.optimum_losses(center_b, budget_flops)
    forward = {name: float(ln[0]) for name, ln in _solve(laws_a, center_a, loss_b, budget_flops).items()}
    needed = {name: float(ln[0]) for name, ln in _solve(laws_b, center_b, loss_a, budget_flops).items()}
    ln_by_law = _solve(laws_a, draws_a, laws_b.optimum_losses(draws_b, budget_flops), budget_flops)
    ln_pooled = np.concatenate([ln_by_law[name] for name in common])
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (float(v) for v in np.exp(np.quantile(ln_pooled, tails)))
    limit = math.log(WIDEST_MULTIPLIER)
    at_limit = float((np.abs(ln_pooled) > limit - 1e-6).mean())
    if at_limit > (1 - level) / 2:
        warnings.append(
            f"in {at_limit:.0%} of resamples one side never reaches the other's loss within a factor "
            f"{WIDEST_MULTIPLIER:g} of the compute"
        )
    exponents = _exponents(laws_a, laws_b, rows, level)
    decided = low > 1 or high < 1
    spread = float(np.ptp(list(forward.values())))
    if spread > math.log(2):
        warnings.append(
            f"the laws' multipliers differ by a factor {math.exp(spread):.3g}: the budget is far from the data"
        )
    cells: list[NextCell] = []
    if not decided or high >= WIDE * low:
        try:
            cells = _next_cells(laws_a, laws_b, draws_a, draws_b, ln_by_law, budget_flops)
        except PlanError as error:  # a sweep whose optima lie outside its sizes can be compared, but places no cells
            warnings.append(f"no further cells were placed: {error}")
    result = Comparison(
        budget_flops=budget_flops,
        level=level,
        multiplier=Multiplier(
            center=math.exp(float(np.median(list(forward.values())))),
            low=low,
            high=high,
            by_law={name: math.exp(ln) for name, ln in forward.items()},
            resamples=rows,
            at_limit=at_limit,
        ),
        needed=math.exp(float(np.median(list(needed.values())))),
        loss=LossPair(float(np.mean(list(loss_a.values()))), float(np.mean(list(loss_b.values()))), laws_a.loss),
        exponents=exponents,
        held_out=held_out,
        families={side: _family(laws) for side, laws in (("a", laws_a), ("b", laws_b))},
        decided=decided,
        next_cells=cells,
        warnings=warnings,
    )
    return dataclasses.replace(result, verdict=_verdict(result))


def _sides(laws_a: Laws, laws_b: Laws) -> dict[str, tuple[str, int | None]]:
    named = ((f"{side} ({laws.name})", laws) for side, laws in (("A", laws_a), ("B", laws_b)))
    return {name: (laws.held_out_sha256, laws.held_out_bytes) for name, laws in named}


def _solve(
    laws: Laws, constants: Mapping[str, np.ndarray], losses: Mapping[str, np.ndarray], total_flops: float
) -> dict[str, np.ndarray]:
    """ln m with L*(m C) = loss, by law and row. L* falls with C, so bisection on ln m; clipped at the search range."""
    solved = {}
    for name, rows in constants.items():
        low = np.full(len(losses[name]), -math.log(WIDEST_MULTIPLIER))
        high = -low
        for _ in range(60):
            middle = (low + high) / 2
            above = laws.optimum_losses({name: rows}, total_flops * np.exp(middle))[name] > losses[name]
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        solved[name] = (low + high) / 2
    return solved


def _exponents(laws_a: Laws, laws_b: Laws, rows: int, level: float) -> list[ExponentTest]:
    """Difference of each exponent, B - A, with a two-sided bootstrap p that it is zero."""
    found = []
    for law, column, label in (
        ("n_allocation", 1, "optimal scale against compute"),
        ("d_allocation", 1, "optimal tokens against compute"),
        ("lstar", 2, "reducible loss against compute"),
        ("surface_log_huber", 3, "loss against scale (alpha)"),
        ("surface_log_huber", 4, "loss against tokens (beta)"),
    ):
        columns = [laws.resamples[law][:, column] for laws in (laws_a, laws_b) if law in laws.resamples]
        columns = [values[np.isfinite(values)] for values in columns]
        if len(columns) < 2 or min(map(len, columns)) < 20:
            continue
        n = min(rows, *map(len, columns))
        difference = columns[1][:n] - columns[0][:n]
        tail = min((difference <= 0).sum(), (difference >= 0).sum())
        low, high = np.quantile(difference, [(1 - level) / 2, (1 + level) / 2])
        found.append(
            ExponentTest(
                exponent=label,
                law=law,
                a=float(np.median(columns[0])),
                b=float(np.median(columns[1])),
                difference=float(np.median(difference)),
                interval=[float(low), float(high)],
                p=min(1.0, 2 * (int(tail) + 1) / (n + 1)),
            )
        )
    return [dataclasses.replace(row, differs=row.p < SIGNIFICANT / len(found)) for row in found]


def _next_cells(
    laws_a: Laws,
    laws_b: Laws,
    draws_a: Mapping[str, np.ndarray],
    draws_b: Mapping[str, np.ndarray],
    ln_by_law: Mapping[str, np.ndarray],
    budget_flops: float,
) -> list[NextCell]:
    """The runs, chosen one after the other, whose outcome would say most about ln m.

    By the covariance of ln m and what the candidates would measure over the resamples, as in `plan.next_cells`.
    Candidates: optimal scale and a factor 2 to both sides, at the tested budgets and 3 times the largest.
    """
    target_R = np.mean(list(ln_by_law.values()), axis=0)
    candidates, outcomes, noises = [], [], []
    for side, laws, draws in (("a", laws_a, draws_a), ("b", laws_b, draws_b)):
        factor = laws.flops_factor
        noise = laws.noise_sd or 0.003
        for budget, spread in itertools.product(_budgets(laws, budget_flops), (0.5, 1.0, 2.0)):
            scale = best_split(laws, budget).scale * spread
            n_tokens = budget / (factor * scale)
            outcome_R = np.mean(list(laws.losses(draws, scale, n_tokens).values()), axis=0)
            candidates.append(NextCell(side, budget, laws.scale, scale, n_tokens))
            outcomes.append(outcome_R)
            noises.append((noise * outcome_R.mean()) ** 2)
    joint = np.cov(np.vstack([target_R, *outcomes]))
    start = float(joint[0, 0])
    steps = choose(joint, np.array(noises), [[index] for index in range(len(candidates))])
    return [
        dataclasses.replace(candidates[index], interval_width_left=math.sqrt(left / start))
        for index, left in itertools.islice(steps, NEXT_CELLS)
    ]


def _family(laws: Laws) -> str | None:
    parts = [laws.conventions.get("family"), by_rule(str(laws.conventions.get("numerics") or ""))]
    return ", ".join(part for part in parts if part) or None


def _budgets(laws: Laws, budget_flops: float) -> list[float]:
    tested = sorted(laws.budgets) or [laws.largest_budget_flops or budget_flops / 10]
    return [*tested, 3 * tested[-1]]


def _check_conventions(laws_a: Laws, laws_b: Laws, budget_flops: float) -> list[str]:
    warnings = []
    a, b = laws_a.conventions, laws_b.conventions
    for key in sorted({*a, *b} - set(FAMILY_KEYS)):
        if a.get(key) != b.get(key):
            warnings.append(f"conventions.{key} differs: {a.get(key)!r} and {b.get(key)!r}")
    for side, laws in (("A", laws_a), ("B", laws_b)):
        largest = laws.largest_budget_flops
        if largest and budget_flops > 30 * largest:
            warnings.append(f"the budget is {budget_flops / largest:.3g} times the largest run of {side}: extrapolated")
    return warnings


def _verdict(result: Comparison) -> str:
    m, level = result.multiplier, f"{result.level:.0%}"
    of = {side: f" ({kind})" if kind else "" for side, kind in result.families.items()}
    if of["a"] == of["b"]:
        of = {"a": "", "b": ""}
    span = f"{level} {_times(m.low)} to {_times(m.high)}"
    budget = f"{result.budget_flops:.3g} FLOPs"
    different = [row.exponent for row in result.exponents if row.differs]
    growth = (
        f" Exponents differ ({', '.join(different)}), so the multiplier changes with scale."
        if different
        else " No exponent differs measurably."
    )
    runs = "; ".join(
        f"{cell.side.upper()} at {cell.budget_flops:.3g} FLOPs with {cell.scale:.3g} "
        f"{'FLOPs per token' if cell.scale_name == 'flops_per_token' else 'parameters'}"
        for cell in result.next_cells
    )
    left = result.next_cells[-1].interval_width_left if result.next_cells else 1.0
    following = (
        f"Run these cells next: {runs} (expected to leave {left:.0%} of the interval)."
        if runs
        else "More sizes around the optimum and seeds at the largest budgets would tell."
    )
    if result.held_out.stated:
        growth += " That both were measured on the same held-out text is your word (--same-held-out), not the records'."
    if result.decided:
        more = f" To narrow it run next: {runs} (expected to leave {left:.0%} of the interval)." if runs else ""
        worth = f"B{of['b']} is worth {_times(m.center)} the compute of A{of['a']} ({span})"
        return f"At {budget}, {worth}.{growth}{more}"
    return (
        f"At {budget}, can't tell yet: B{of['b']} is worth {_times(m.center)} the compute of A{of['a']} ({span}), "
        f"which includes 1. {following}{growth}"
    )


def _times(value: float) -> str:
    if value >= 0.99 * WIDEST_MULTIPLIER:
        return f"over {WIDEST_MULTIPLIER:g} x"
    return f"{value:.3g} x"
