"""IsoFLOP curves: the best model scale of each compute budget, and its law N* = k C^a, D* = k' C^b.

Runs are grouped into budgets of equal compute. Inside a budget the loss is a bowl over ln N; its vertex is the optimum
for that compute. A quadratic describes the bowl near its bottom; where a table also climbs the walls, interpolation
(Akima in ln N, ln L) finds the bottom better. A vertex outside the tested sizes is an extrapolation, not a measurement:
such budgets are left out, and named.

Source: Hoffmann et al. 2022, approach 2 (arXiv 2203.15556); Porian et al. 2024 for the interpolation (2406.19146).
Shapes: R resamples, S rows of a budget.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.interpolate

from isoflop.errors import FitError
from isoflop.scaling.fit.power_law import fit_allocation
from isoflop.scaling.fit.table import Table

LAW = "law parabola"
SAME_BUDGET = 1.10  # rows belong to one budget while neighbours in compute differ by less than this factor
WIDEST_BUDGET = 1.5  # a chain of neighbours wider than this is a cloud of runs, not a budget
WALL = 1 / 3  # assumption: a quadratic in log N holds up to this much above the best loss
WALLED_SHARE = 1 / 4  # assumption: with this share of budgets beyond it, "auto" interpolates
EDGE_SLACK = 0.25  # of the tested width; further outside, no standard error excuses a vertex
FEW_SIZES = 5  # scaling-laws.md section 2: keep at least five sizes near the vertex


@dataclasses.dataclass(frozen=True)
class Budget:
    """The runs of one compute budget."""

    budget_flops: float
    """The label the runs share; their compute where there is no label."""
    total_flops: float
    """Geometric mean of the rows' compute: the x axis of every law."""
    scale: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    rows: np.ndarray

    @property
    def n_sizes(self) -> int:
        return len(np.unique(self.scale))


@dataclasses.dataclass(frozen=True)
class Vertex:
    """The bottom of one bowl, in log10 of the abscissa."""

    position: float
    loss: float
    inside: bool
    used: bool
    """Inside the tested range, or outside by no more than its standard error."""
    note: str = ""


def group_budgets(table: Table, law: str = LAW, *, loss: str | None = None, scale: str | None = None) -> list[Budget]:
    """Group rows of equal compute: first by label, where there is one, then by what was counted.

    Raises:
        FitError: the compute of the rows is spread out continuously.
    """
    _, scales = table.scale(law, scale)
    tokens = table.tokens(law)
    _, losses = table.loss(law, loss)
    _, compute = table.compute(law)
    labels = table.columns["budget_flops"] if table.has("budget_flops") else compute
    labels = np.where(np.isfinite(labels), labels, compute)
    budgets = []
    for same_label in _clusters(np.arange(len(labels)), labels):
        for rows in _clusters(same_label, compute):
            if compute[rows].max() > WIDEST_BUDGET * compute[rows].min():
                raise FitError(
                    f"{law}: {len(rows)} runs spread from {compute[rows].min():.3g} to {compute[rows].max():.3g} FLOPs "
                    "without a gap; runs of one budget share their compute: map budget_flops, or use --law surface"
                )
            label = labels[rows[0]] if np.ptp(labels[rows]) == 0 else float(np.exp(np.log(labels[rows]).mean()))
            budgets.append(
                Budget(
                    float(label),
                    float(np.exp(np.log(compute[rows]).mean())),
                    scales[rows],
                    tokens[rows],
                    losses[rows],
                    table.weights()[rows],
                    rows,
                )
            )
    return sorted(budgets, key=lambda budget: budget.total_flops)


def check_sizes(budgets: list[Budget], law: str = LAW) -> None:
    """Refuse budgets that cannot have a vertex. Raises FitError when one has fewer than three sizes."""
    thin = [budget for budget in budgets if budget.n_sizes < 3]
    if thin:
        named = ", ".join(f"{b.budget_flops:.3g} ({b.n_sizes})" for b in thin[:6]) + (" ..." if len(thin) > 6 else "")
        raise FitError(
            f"{law}: {len(thin)} of {len(budgets)} budgets have fewer than three model sizes: {named}; a vertex needs "
            "at least three, better five: add sizes, or leave the budget out with --where"
        )


def choose_interpolation(budgets: list[Budget], asked: str = "auto") -> tuple[str, str]:
    """`parabola` or `akima`, and why."""
    if asked in ("parabola", "akima"):
        return asked, "as asked"
    if asked != "auto":
        raise FitError(
            f"interpolation = {asked!r} must be auto, parabola or akima; auto decides by the height of walls"
        )
    walled = sum(bool(budget.loss.max() > (1 + WALL) * budget.loss.min()) for budget in budgets)
    reason = f"{walled} of {len(budgets)} budgets reach more than a third above their best loss"
    return ("akima" if walled >= WALLED_SHARE * len(budgets) else "parabola"), reason


def quadratic_vertices(x: np.ndarray, loss: np.ndarray, weight_RS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertex and minimum of the weighted quadratic through the points, each R; NaN where it has no minimum."""
    centre, width = x.mean(), max(float(np.ptp(x)), 1e-12)
    terms_S3 = np.stack([np.ones_like(x), (x - centre) / width, ((x - centre) / width) ** 2], axis=1)
    normal_R33 = np.einsum("rs,si,sj->rij", weight_RS, terms_S3, terms_S3)
    normal_R33 += 1e-13 * np.trace(normal_R33, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    c_R3 = np.linalg.solve(normal_R33, np.einsum("rs,si->ri", weight_RS * loss, terms_S3)[:, :, None])[:, :, 0]
    bends_up = c_R3[:, 2] > 0
    curvature = np.where(bends_up, c_R3[:, 2], np.nan)
    position = -c_R3[:, 1] / (2 * curvature)
    return centre + width * position, c_R3[:, 0] + c_R3[:, 1] * position + curvature * position**2


def find_vertex(x: np.ndarray, loss: np.ndarray, weight: np.ndarray, interpolation: str) -> Vertex:
    """The bottom of one bowl over x = log10 of scale or tokens, and whether it may be used."""
    if interpolation == "akima":
        return _akima_vertex(x, loss, weight)
    position, bottom = (float(part[0]) for part in quadratic_vertices(x, loss, weight[None]))
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(position):
        return Vertex(position, bottom, False, False, "the loss does not bend upwards")
    if low <= position <= high:
        return Vertex(position, bottom, True, True)
    outside = low - position if position < low else position - high
    side = "below" if position < low else "above"
    note = f"the vertex 10^{position:.2f} lies {side} the tested 10^{low:.2f} to 10^{high:.2f}"
    error = _vertex_error(x, loss, weight, position)
    if outside <= min(error, EDGE_SLACK * (high - low)):
        note += f", by {outside:.2f} decades, within its standard error of {error:.2f}"
        return Vertex(position, bottom, False, True, note)
    return Vertex(position, bottom, False, False, note)


def vertex_table(budgets: list[Budget], interpolation: str) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per budget: optimum in scale and in tokens, loss, whether it is used; and a warning per problem."""
    rows, warnings = [], []
    for budget in budgets:
        by_scale = find_vertex(np.log10(budget.scale), budget.loss, budget.weight, interpolation)
        by_tokens = find_vertex(np.log10(budget.tokens), budget.loss, budget.weight, interpolation)
        used = by_scale.used and by_tokens.used
        for vertex, what, better in ((by_scale, "model scale", "sizes"), (by_tokens, "tokens", "token counts")):
            if vertex.note:
                state = "kept" if used else "budget left out"
                more = "larger" if "above" in vertex.note else "smaller" if "below" in vertex.note else "more"
                warnings.append(
                    f"budget {budget.budget_flops:.4g}: over {what}, {vertex.note}; {state}: add {more} {better}"
                )
        if budget.n_sizes < FEW_SIZES and used:
            warnings.append(
                f"budget {budget.budget_flops:.4g} has only {budget.n_sizes} model sizes; better five or more"
            )
        rows.append(
            {
                "budget_flops": budget.budget_flops,
                "total_flops": budget.total_flops,
                "scale_opt": 10**by_scale.position,
                "tokens_opt": 10**by_tokens.position,
                "loss": by_scale.loss,
                "inside": by_scale.inside and by_tokens.inside,
                "used": used,
                "points": [
                    {"scale": float(s), "tokens": float(d), "loss": float(y)}
                    for s, d, y in sorted(zip(budget.scale, budget.tokens, budget.loss))
                ],
            }
        )
    return rows, warnings


def resampled_vertices(budgets: list[Budget], weight_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices under resampled row weights: log10 scale, log10 tokens and loss, each R x budgets.

    NaN where a resample's vertex leaves the tested range by more than its width.
    """
    found = np.full((3, len(weight_RN), len(budgets)), np.nan)
    for index, budget in enumerate(budgets):
        weight_RS = weight_RN[:, budget.rows]
        for part, values in ((0, budget.scale), (1, budget.tokens)):
            x = np.log10(values)
            position, bottom = quadratic_vertices(x, budget.loss, weight_RS)
            with np.errstate(invalid="ignore"):
                fine = (position >= x.min() - np.ptp(x)) & (position <= x.max() + np.ptp(x))
            found[part, :, index] = np.where(fine, position, np.nan)
            if part == 0:
                found[2, :, index] = np.where(fine, bottom, np.nan)
    return found[0], found[1], found[2]


def fit_parabola(
    table: Table,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    interpolation: str = "auto",
    loss: str | None = None,
    scale: str | None = None,
) -> dict[str, Any]:
    """Fit N* = k C^a and D* = k' C^b through the bottoms of the IsoFLOP curves.

    Intervals: runs inside each budget are resampled by exponential weights (the Bayesian bootstrap: no resample loses
    the third size of a budget); interpolated bottoms are resampled as whole budgets, likewise.

    Raises:
        FitError: a budget with fewer than three sizes, or fewer than two budgets with a vertex in the tested range.
    """
    return fit_curves(table, bootstrap=bootstrap, seed=seed, interpolation=interpolation, loss=loss, scale=scale)[0]


def fit_curves(
    table: Table,
    *,
    bootstrap: int,
    seed: int,
    interpolation: str,
    loss: str | None = None,
    scale: str | None = None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """`fit_parabola`, and the resampled losses at the used vertices (R x budgets; None where budgets are resampled)."""
    scale_name = table.scale(LAW, scale)[0]
    budgets = group_budgets(table, loss=loss, scale=scale)
    check_sizes(budgets)
    method, reason = choose_interpolation(budgets, interpolation)
    vertices, warnings = vertex_table(budgets, method)
    used = [index for index, vertex in enumerate(vertices) if vertex["used"]]
    if len(used) < 2:
        raise FitError(
            f"{LAW}: vertex outside the tested range in {len(budgets) - len(used)} of {len(budgets)} budgets; two "
            f"usable budgets are the least: {'; '.join(warnings[:4])}"
        )
    flops = np.array([vertices[i]["total_flops"] for i in used])
    generator = np.random.default_rng(seed)
    draws = None
    budget_weight_RB = np.ones((bootstrap, len(used)))
    if bootstrap and method == "parabola":
        weight_RN = generator.exponential(size=(bootstrap, table.n_rows)) * table.weights()
        draws = resampled_vertices([budgets[i] for i in used], weight_RN)
    elif bootstrap:
        budget_weight_RB = generator.exponential(size=(bootstrap, len(used)))
    result: dict[str, Any] = {}
    for letter, key, part in (("n", "scale_opt", 0), ("d", "tokens_opt", 1)):
        best = np.array([vertices[i][key] for i in used])
        moved = np.tile(np.log10(best), (bootstrap, 1)) if draws is None else draws[part]
        result |= fit_allocation(flops, best, letter, draws_RB=moved, weight_RB=budget_weight_RB)
    return result | {
        "vertices": vertices,
        "n_budgets": len(budgets),
        "n_budgets_used": len(used),
        "n_rows": table.n_rows,
        "scale": scale_name,
        "interpolation": method,
        "bootstrap": {"resamples": bootstrap, "seed": seed, "group": "budget" if draws is None else "row in budget"},
        "warnings": warnings,
        "conventions": {
            "law": "N* = n_coefficient C^n_exponent, D* = d_coefficient C^d_exponent, unweighted in log10",
            "N": scale_name,
            "interpolation": f"{method} ({reason})",
            "vertex": "quadratic in log10 N and, separately, log10 D, through all points of a budget"
            if method == "parabola"
            else "Akima through ln loss over ln N and, separately, ln D; the lowest point between the tested sizes",
        },
    }, None if draws is None else draws[2]


def _clusters(rows: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Split rows where neighbours in sorted order differ by more than `SAME_BUDGET`."""
    order = rows[np.argsort(values[rows], kind="stable")]
    gaps = np.flatnonzero(values[order][1:] > SAME_BUDGET * values[order][:-1]) + 1
    return [np.sort(part) for part in np.split(order, gaps)]


def _akima_vertex(x: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Vertex:
    positions, index = np.unique(x, return_inverse=True)
    mean_loss = np.bincount(index, weight * loss) / np.bincount(index, weight)
    lowest = int(mean_loss.argmin())
    if lowest in (0, len(positions) - 1):
        side = "below" if lowest == 0 else "above"
        note = (
            f"the lowest loss is at the edge, so the vertex lies {side} 10^{positions[0]:.2f} to 10^{positions[-1]:.2f}"
        )
        return Vertex(float(positions[lowest]), float(mean_loss[lowest]), False, False, note)
    curve = scipy.interpolate.Akima1DInterpolator(positions, np.log(mean_loss))
    fine = np.linspace(positions[lowest - 1], positions[lowest + 1], 4001)
    values = curve(fine)
    best = int(values.argmin())
    return Vertex(float(fine[best]), float(np.exp(values[best])), True, True)


def _vertex_error(x: np.ndarray, loss: np.ndarray, weight: np.ndarray, position: float) -> float:
    """Standard error of a quadratic's vertex, from its residuals; 0 when three points leave no residual."""
    degrees = len(x) - 3
    if degrees <= 0:
        return 0.0
    terms = np.stack([np.ones_like(x), x - position, (x - position) ** 2], axis=1)
    root = np.sqrt(weight / weight.mean())
    coefficients, *_ = np.linalg.lstsq(terms * root[:, None], loss * root, rcond=None)
    residual = (terms @ coefficients - loss) * root
    covariance = np.linalg.inv((terms * root[:, None]).T @ (terms * root[:, None])) * (residual @ residual) / degrees
    return float(np.sqrt(covariance[1, 1]) / abs(2 * coefficients[2]))
