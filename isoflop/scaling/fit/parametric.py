"""The three-term law L(N, D) = E + A/N^alpha + B/D^beta on measurements: its objectives, minimised from many starts.

The law is written as ln L = logsumexp(e, a - alpha x, b - beta y) with x = ln N and y = ln D measured from their means:
at the centre of the data the three terms are of one size, which takes away most of the collinearity between A and
alpha and between B and beta. `log_huber` is Hoffmann's objective (typical relative error, robust); `raw_huber` and
`mse` give high losses more weight.

Source: Hoffmann et al. 2022, approach 3 (arXiv 2203.15556); Besiroglu et al. 2024 for the sum instead of the mean
(arXiv 2404.10102). Shapes: R problems (starts or resamples), S rows; parameters e, a, b, alpha, beta in this order.
"""

import dataclasses
import itertools

import numpy as np
import scipy.optimize

from isoflop.errors import FitError
from isoflop.scaling.fit.solver import Damping, descend
from isoflop.scaling.fit.table import Table

HUBER_DELTA = 1e-3  # paper: Hoffmann et al. 2022, appendix D.3 (arXiv 2203.15556)
EXPONENT_BOUNDS = (0.02, 2.5)  # assumption: wider than any published exponent
PACE = Damping(start=1.0, shrink=0.3, grow=5.0, least=1e-3, most=1e9, longest_step=2.0, patience=8)
START_EXPONENTS = (0.1, 0.25, 0.4, 0.6, 0.9, 1.4)
START_FLOORS = (0.1, 0.5, 0.8, 0.95)  # E as a share of the lowest loss
SCOUTING_STEPS, FINALISTS = 40, 24  # every start goes some way, the best go to the end


@dataclasses.dataclass(frozen=True)
class Points:
    """The measurements of a fit: model scale, tokens, loss, weight per row, and the setting each row belongs to."""

    scale: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    setting: np.ndarray

    @property
    def x(self) -> np.ndarray:
        return np.log(self.scale) - np.log(self.scale).mean()

    @property
    def y(self) -> np.ndarray:
        return np.log(self.tokens) - np.log(self.tokens).mean()

    def constants(self, theta_R5: np.ndarray) -> np.ndarray:
        """E, A, B, alpha, beta from the solver's centred logarithms, shape R5."""
        found = np.array(theta_R5, dtype=float)
        found[:, 1] += found[:, 3] * np.log(self.scale).mean()
        found[:, 2] += found[:, 4] * np.log(self.tokens).mean()
        found[:, :3] = np.exp(found[:, :3])
        return found


def surface_points(table: Table, *, loss: str | None = None, scale: str | None = None) -> Points:
    """The columns that the surface needs; a setting is what has the same scale and tokens."""
    law = "law surface"
    scales, tokens, losses = table.scale(law, scale)[1], table.tokens(law), table.loss(law, loss)[1]
    setting = np.unique(np.stack([scales, tokens]), axis=1, return_inverse=True)[1].reshape(-1)
    n_sizes, n_counts = len(np.unique(scales)), len(np.unique(tokens))
    if min(n_sizes, n_counts) < 3 or len(losses) < 6:
        raise FitError(
            f"{law}: {len(losses)} rows with {n_sizes} model scales and {n_counts} token counts; five constants need "
            "at least 6 rows, 3 scales and 3 token counts: add runs"
        )
    if (scales <= 0).any() or (tokens <= 0).any() or (losses <= 0).any():
        raise FitError(f"{law}: model scale, tokens and loss must be above 0; drop the others with --where")
    if np.ptp(losses) <= 1e-9 * losses.max():
        raise FitError(f"{law}: all {len(losses)} losses are equal ({losses[0]:.6g}); no law follows from them")
    return Points(scales, tokens, losses, table.weights(), setting)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised: sum of weight x rho(residual) plus an optional Gaussian prior on the parameters."""

    x: np.ndarray
    """ln of the model scale, centred."""
    y: np.ndarray
    """ln of the tokens, centred."""
    loss: np.ndarray
    log_residuals: bool
    """Residuals of ln L (relative) or of L (raw)."""
    huber_delta: float | None
    """None: squares."""
    lower: np.ndarray
    upper: np.ndarray
    prior_mean: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(5))
    prior_precision: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(5))

    def derivatives(
        self, theta_R5: np.ndarray, weight_RS: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Value (R), gradient (R5), exact Hessian and bounding Hessian (R55)."""
        terms_3RS = self._terms(theta_R5)
        top_RS = terms_3RS.max(axis=0)
        shares_3RS = np.exp(terms_3RS - top_RS)
        total_RS = shares_3RS.sum(axis=0)
        shares_3RS /= total_RS
        log_loss_RS = top_RS + np.log(total_RS)
        n_problems, n_settings = log_loss_RS.shape
        jacobian_R5S = np.empty((n_problems, 5, n_settings))
        jacobian_R5S[:, 0], jacobian_R5S[:, 1], jacobian_R5S[:, 2] = shares_3RS
        jacobian_R5S[:, 3] = -shares_3RS[1] * self.x
        jacobian_R5S[:, 4] = -shares_3RS[2] * self.y
        if self.log_residuals:
            residual_RS, spread_RS = log_loss_RS - np.log(self.loss), np.ones_like(log_loss_RS)
        else:
            spread_RS = np.exp(log_loss_RS)
            residual_RS = spread_RS - self.loss
        rho_RS, slope_RS, bound_RS, bend_RS = (part_RS * weight_RS for part_RS in self._rho(residual_RS))
        off_R5 = theta_R5 - self.prior_mean
        value_R = rho_RS.sum(1) + 0.5 * (self.prior_precision * off_R5**2).sum(1)
        pull_RS = slope_RS * spread_RS
        gradient_R5 = np.einsum("rks,rs->rk", jacobian_R5S, pull_RS)
        transposed_RS5 = jacobian_R5S.transpose(0, 2, 1)
        bounding_R55 = (jacobian_R5S * (bound_RS * spread_RS**2)[:, None]) @ transposed_RS5
        # Curvature of the law itself: sum over terms of share * u u^T, minus J J^T where the residual is of ln L.
        inner_RS = bend_RS * spread_RS**2 - (pull_RS if self.log_residuals else 0.0)
        exact_R55 = (jacobian_R5S * inner_RS[:, None]) @ transposed_RS5
        pulled_3RS = shares_3RS * pull_RS
        exact_R55[:, 0, 0] += pulled_3RS[0].sum(1)
        for k, position in ((1, self.x), (2, self.y)):
            first_R, second_R = pulled_3RS[k] @ position, pulled_3RS[k] @ position**2
            exact_R55[:, k, k] += pulled_3RS[k].sum(1)
            exact_R55[:, k + 2, k + 2] += second_R
            exact_R55[:, k, k + 2] -= first_R
            exact_R55[:, k + 2, k] -= first_R
        gradient_R5 += self.prior_precision * off_R5
        diagonal = np.arange(5)
        exact_R55[:, diagonal, diagonal] += self.prior_precision
        bounding_R55[:, diagonal, diagonal] += self.prior_precision
        return value_R, gradient_R5, exact_R55, bounding_R55

    def _terms(self, theta_R5: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta = (theta_R5[:, [k]] for k in range(5))
        return np.stack([np.broadcast_to(e, (len(theta_R5), len(self.x))), a - alpha * self.x, b - beta * self.y])

    def _rho(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Value, first derivative, the bounding second one (first / residual), the exact second one."""
        if self.huber_delta is None:
            two = np.full_like(residual, 2.0)
            return residual**2, 2.0 * residual, two, two
        delta, size = self.huber_delta, np.abs(residual)
        inside = size <= delta
        value = np.where(inside, 0.5 * residual**2, delta * (size - 0.5 * delta))
        bound = np.where(inside, 1.0, delta / np.maximum(size, 1e-300))
        return value, np.clip(residual, -delta, delta), bound, inside.astype(float)


def make_objective(points: Points, name: str) -> Objective:
    """The solver's objective called `name`; varpro minimises the same sum of squares as mse, by another path."""
    low, high = EXPONENT_BOUNDS
    floor, ceiling = np.log(points.loss.min()) - 12.0, np.log(points.loss.max()) + 12.0
    return Objective(
        points.x,
        points.y,
        points.loss,
        name == "log_huber",
        HUBER_DELTA if "huber" in name else None,
        lower=np.array([floor, floor, floor, low, low]),
        upper=np.array([np.log(points.loss.min()) + 1.0, ceiling, ceiling, high, high]),
    )


def minimise(
    objective: Objective,
    theta_R5: np.ndarray,
    weight_RS: np.ndarray,
    *,
    max_steps: int = 300,
    relative_decrease: float = 1e-12,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descend from every row of `theta_R5`; weights may be one row for all.

    Returns theta (R5), the objective's value (R) and whether each converged (R). Each step mixes the exact Hessian with
    one that bounds the objective from above (iteratively reweighted least squares): far away the bound makes every step
    a descent, near the minimum the exact one converges in a few steps, also where Huber's 1e-3 leaves only some rows in
    the quadratic part.
    """
    weight_RS = np.broadcast_to(weight_RS, (len(theta_R5), len(objective.x)))

    def derivatives(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, gradient, exact, bounding = objective.derivatives(theta, weight_RS[rows])
        return value, gradient, np.stack([exact, bounding], axis=1)

    return descend(
        derivatives,
        theta_R5,
        (objective.lower, objective.upper),
        PACE,
        damped=_mixed,
        max_steps=max_steps,
        relative_decrease=relative_decrease,
        chunk_rows=120_000 // len(objective.x),  # stays in cache: three times faster than one large array
    )


def _mixed(both_R255: np.ndarray, mix_R: np.ndarray) -> np.ndarray:
    """The exact Hessian and a share of the bounding one; above 1 the share also shortens the step."""
    exact, bounding = both_R255[:, 0], both_R255[:, 1]
    share = np.minimum(mix_R, 1.0)[:, None, None]
    hessian = (1 - share) * exact + np.maximum(mix_R, 1e-12)[:, None, None] * bounding
    diagonal = np.arange(5)
    scale = np.maximum(bounding[:, diagonal, diagonal], 1e-300)
    hessian[:, diagonal, diagonal] += 1e-10 * scale + 1e-12 * scale.max(1, keepdims=True)
    return hessian


def fit_centre(points: Points, name: str, objective: Objective | None = None) -> tuple[np.ndarray, float, int]:
    """The best minimum over a grid of starts, polished by a second optimiser.

    Returns theta, the objective, and how many of the finalists ended there.
    """
    objective = objective or make_objective(points, name)
    theta_R5, value_R, _ = minimise(
        objective, start_grid(points), points.weight[None], max_steps=SCOUTING_STEPS, relative_decrease=1e-6
    )
    finalists = np.argsort(value_R, kind="stable")[:FINALISTS]
    theta_R5, value_R, _ = minimise(objective, theta_R5[finalists], points.weight[None])
    best = int(value_R.argmin())
    theta, value = theta_R5[best], float(value_R[best])
    reached = int((value_R <= value * (1 + 1e-6)).sum())

    def scaled(trial: np.ndarray) -> tuple[float, np.ndarray]:
        found, gradient, _, _ = objective.derivatives(trial[None], points.weight[None])
        return float(found[0] / value), gradient[0] / value  # of order 1, so that stopping tolerances bite

    if value > 0:
        bounds = list(zip(objective.lower, objective.upper))
        polished = scipy.optimize.minimize(
            scaled, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-10}
        )
        if polished.fun < 1:
            theta, value = polished.x, float(polished.fun * value)
    return theta, value, reached


def start_grid(points: Points) -> np.ndarray:
    """A grid over both exponents and E; A and B share what E leaves of the mean loss."""
    alpha, beta, floor = np.array(list(itertools.product(START_EXPONENTS, START_EXPONENTS, START_FLOORS))).T
    base = floor * points.loss.min()
    rest = np.log((points.loss.mean() - base) / 2)
    return np.stack([np.log(base), rest, rest, alpha, beta], axis=1)
