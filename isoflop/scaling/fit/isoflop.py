"""IsoFLOP curves: the best model scale of each compute budget, and its law N* = k C^a, D* = k' C^b.

Runs are grouped into budgets of equal compute. Inside a budget the loss is a bowl over ln N; its vertex is the optimum
for that compute. A quadratic describes the bowl near its bottom; where a table also climbs the walls, interpolation
(Akima in ln N, ln L) finds the bottom better. A vertex outside the tested sizes is an extrapolation, not a measurement:
such budgets are left out, and named.

Source: Hoffmann et al. 2022, approach 2 (arXiv 2203.15556); Porian et al. 2024 for the interpolation (2406.19146).
Shapes: R resamples, S rows of a budget.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from isoflop.errors import FitError
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import Vertex

LAW = "law parabola"
SAME_BUDGET = 1.10  # rows belong to one budget while neighbours in compute differ by less than this factor
WIDEST_BUDGET = 1.5  # a chain of neighbours wider than this is a cloud of runs, not a budget
FLAT = 1e-9  # losses that differ by less than this share are equal but for rounding
LEAST_SPREAD = 0.02  # decades (5%) that sizes must span before a bowl over them means anything
NEAR = 4.0  # sizes within this factor of the trend of optima: there a bowl is a parabola, and laws of loss agree
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

    def select(self, keep: np.ndarray) -> "Budget":
        """The runs where `keep` is true."""
        parts = {name: getattr(self, name)[keep] for name in ("scale", "tokens", "loss", "weight", "rows")}
        return dataclasses.replace(self, **parts)

    def among(self, rows: np.ndarray) -> "Budget":
        """The same runs, `rows` being indices into these (sorted) rows of the table."""
        return dataclasses.replace(self, rows=np.searchsorted(rows, self.rows))


@dataclasses.dataclass(frozen=True)
class Bottom:
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
    scales, tokens, losses = table.scale(law, scale)[1], table.tokens(law), table.loss(law, loss)[1]
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
            parts = [*(column[rows] for column in (scales, tokens, losses, table.weights())), rows]
            budgets.append(Budget(float(label), float(np.exp(np.log(compute[rows]).mean())), *parts))
    return sorted(budgets, key=lambda budget: budget.total_flops)


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


def no_bowl(x: np.ndarray, loss: np.ndarray) -> Bottom | None:
    """A bottom that may not be used, where points have no spread to find one in; None where they have."""
    if np.ptp(x) < LEAST_SPREAD:
        return Bottom(np.nan, np.nan, False, False, f"all points lie within a factor {10 ** np.ptp(x):.3g}")
    if np.ptp(loss) <= FLAT * np.abs(loss).max():
        return Bottom(np.nan, np.nan, False, False, f"all losses are equal ({loss[0]:.6g}), so there is no lowest")
    return None


def find_vertex(x: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Bottom:
    """The bottom of one bowl over x = log10 of scale or tokens by a quadratic, and whether it may be used."""
    if flat := no_bowl(x, loss):
        return flat
    position, bottom = (float(part[0]) for part in quadratic_vertices(x, loss, weight[None]))
    low, high = float(x.min()), float(x.max())
    if not abs(position) < 300:  # none, or, of a straight line, beyond what a number can hold
        return Bottom(np.nan, np.nan, False, False, "the loss does not bend upwards")
    error, bends = _vertex_errors(x, loss, weight, position)
    if low <= position <= high:
        doubt = f"the curve hardly bends: its curvature is {bends:.1f} times its standard error"
        return Bottom(position, bottom, True, True, doubt if bends < 2 else "")
    outside = low - position if position < low else position - high
    side = "below" if position < low else "above"
    note = f"the vertex 10^{position:.2f} lies {side} the tested 10^{low:.2f} to 10^{high:.2f}"
    if outside <= min(error, EDGE_SLACK * (high - low)):
        note += f", by {outside:.2f} decades, within its standard error of {error:.2f}"
        return Bottom(position, bottom, False, True, note)
    return Bottom(position, bottom, False, False, note)


FindBottom = Callable[[np.ndarray, np.ndarray, np.ndarray], Bottom]
"""(log10 of scale or tokens, loss, weight) -> the bottom of the bowl."""


def find_vertices(budgets: list[Budget], bottom: FindBottom = find_vertex) -> tuple[list[Vertex], list[str]]:
    """The optimum of every budget in scale and in tokens, whether it is used; and a warning per problem."""
    vertices, warnings = [], []
    for budget in budgets:
        by_scale = bottom(np.log10(budget.scale), budget.loss, budget.weight)
        by_tokens = bottom(np.log10(budget.tokens), budget.loss, budget.weight)
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
        rows = sorted(zip(budget.scale, budget.tokens, budget.loss))
        vertices.append(
            Vertex(
                budget.budget_flops,
                budget.total_flops,
                scale_opt=10**by_scale.position,
                tokens_opt=10**by_tokens.position,
                loss=by_scale.loss,
                inside=by_scale.inside and by_tokens.inside,
                used=used,
                points=[dict(zip(("scale", "tokens", "loss"), map(float, row))) for row in rows],
            )
        )
    return vertices, warnings


def near_optimum(budgets: list[Budget], factor: float = NEAR) -> list[Budget]:
    """The runs of each budget within `factor` of the optimal size, or the three sizes nearest to it.

    The optimum is a straight line through the bottoms over ln C, found in turn with the runs near it; at first, through
    the sizes of lowest loss.
    """
    ln_c = np.log([budget.total_flops for budget in budgets])
    places = np.log([budget.scale[budget.loss.argmin()] for budget in budgets])
    near = budgets
    for _ in range(3):
        fine = np.isfinite(places)
        if fine.sum() < 2:
            break
        slope, intercept = lines(ln_c[fine], places[None, fine], np.ones((1, fine.sum())))
        places, near = np.full(len(budgets), np.nan), []
        for index, (budget, optimum) in enumerate(zip(budgets, slope[0] * ln_c + intercept[0])):
            off = np.abs(np.log(budget.scale) - optimum)
            keep = off <= max(np.log(factor), np.sort(off[np.unique(budget.scale, return_index=True)[1]])[:3][-1])
            near.append(budget.select(keep))
            place = quadratic_vertices(np.log(near[-1].scale), near[-1].loss, near[-1].weight[None])[0][0]
            if abs(place - optimum) <= np.log(factor):
                places[index] = place
    return near


def lines(x: np.ndarray, y_RB: np.ndarray, weight_RB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of weighted straight lines, each R; missing points (NaN) count nothing."""
    weight_RB = np.where(np.isfinite(y_RB), weight_RB, 0.0)
    y_RB = np.where(np.isfinite(y_RB), y_RB, 0.0)
    total = weight_RB.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_mean, y_mean = weight_RB @ x / total, (weight_RB * y_RB).sum(1) / total
        offset = x - x_mean[:, None]
        spread = (weight_RB * offset**2).sum(1)
        spread = np.where(spread > 1e-9 * total * np.ptp(x) ** 2, spread, np.nan)  # all weight on one budget
        slope = (weight_RB * offset * (y_RB - y_mean[:, None])).sum(1) / spread
        return slope, y_mean - slope * x_mean


def fit_allocation(
    flops: np.ndarray,
    best: np.ndarray,
    letter: str,
    *,
    draws_RB: np.ndarray,
    weight_RB: np.ndarray,
    weight: np.ndarray | None = None,
) -> tuple[dict[str, float | list[float]], np.ndarray]:
    """`{letter}_exponent`, `{letter}_coefficient` with intervals, and both resampled (coefficient first, R2).

    `draws_RB` are resampled log10 optima.
    """
    weight = np.ones(len(flops)) if weight is None else weight
    x = np.log10(flops)
    slope, intercept = (float(part[0]) for part in lines(x, np.log10(best)[None], weight[None]))
    result: dict[str, float | list[float]] = {f"{letter}_exponent": slope, f"{letter}_coefficient": 10**intercept}
    slopes, intercepts = lines(x, draws_RB, weight_RB * weight)
    rows_R2, fine = np.stack([10**intercepts, slopes], axis=1), np.isfinite(slopes)
    if fine.sum() < 2:
        return result, rows_R2
    coefficients, slopes = rows_R2[fine].T
    result[f"{letter}_exponent_sd"] = float(slopes.std(ddof=1))
    result[f"{letter}_exponent_interval_95"] = np.percentile(slopes, [2.5, 97.5]).tolist()
    result[f"{letter}_coefficient_interval_95"] = np.percentile(coefficients, [2.5, 97.5]).tolist()
    return result, rows_R2


def resampled_vertices(budgets: list[Budget], weight_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices under resampled row weights: log10 scale, log10 tokens and loss, each R x budgets.

    NaN where a resample's vertex leaves the tested range by more than its width.
    """
    found = np.full((3, len(weight_RN), len(budgets)), np.nan)
    for index, budget in enumerate(budgets):
        for part, x in enumerate((np.log10(budget.scale), np.log10(budget.tokens))):
            position, bottom = quadratic_vertices(x, budget.loss, weight_RN[:, budget.rows])
            with np.errstate(invalid="ignore"):
                fine = (position >= x.min() - np.ptp(x)) & (position <= x.max() + np.ptp(x))
            found[part, :, index] = np.where(fine, position, np.nan)
            if part == 0:
                found[2, :, index] = np.where(fine, bottom, np.nan)
    return found[0], found[1], found[2]


def _clusters(rows: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Split rows where neighbours in sorted order differ by more than `SAME_BUDGET`."""
    order = rows[np.argsort(values[rows], kind="stable")]
    gaps = np.flatnonzero(values[order][1:] > SAME_BUDGET * values[order][:-1]) + 1
    return [np.sort(part) for part in np.split(order, gaps)]


def _vertex_errors(x: np.ndarray, loss: np.ndarray, weight: np.ndarray, position: float) -> tuple[float, float]:
    """Standard error of a quadratic's vertex, from its residuals, and its curvature in standard errors.

    0 and infinite when three points leave no residual.
    """
    degrees = len(x) - 3
    if degrees <= 0:
        return 0.0, np.inf
    terms = np.stack([np.ones_like(x), x - position, (x - position) ** 2], axis=1)
    root = np.sqrt(weight / weight.mean())
    coefficients, *_ = np.linalg.lstsq(terms * root[:, None], loss * root, rcond=None)
    residual = (terms @ coefficients - loss) * root
    try:
        inverse = np.linalg.inv((terms * root[:, None]).T @ (terms * root[:, None]))
    except np.linalg.LinAlgError:  # a straight line: its vertex is too far away to be told from any other
        return 0.0, 0.0
    covariance = inverse * (residual @ residual) / degrees
    bends = abs(coefficients[2]) / max(float(np.sqrt(covariance[2, 2])), 1e-300)
    return float(np.sqrt(covariance[1, 1]) / abs(2 * coefficients[2])), float(bends)
