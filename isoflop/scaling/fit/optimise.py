"""Minimise the three-term law for many starts or many bootstrap resamples at once, in numpy.

The law is written as ln L = logsumexp(e, a - alpha x, b - beta y) with x = ln N and y = ln D measured from their means:
at the centre of the data the three terms are of one size, which takes away most of the collinearity between A and
alpha and between B and beta. Each step mixes the exact Hessian with one that bounds the objective from above
(iteratively reweighted least squares): far away the bound makes every step a descent, near the minimum the exact one
converges in a few steps, also where Huber's 1e-3 leaves only some rows in the quadratic part.

Shapes: R problems (starts or resamples), S settings (rows); parameters e, a, b, alpha, beta in this order.
"""

import dataclasses

import numpy as np

HUBER_DELTA = 1e-3  # paper: Hoffmann et al. 2022, appendix D.3 (arXiv 2203.15556)
EXPONENT_BOUNDS = (0.02, 2.5)  # assumption: wider than any published exponent


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
    huber_delta: float | None = HUBER_DELTA
    """None: squares."""
    lower: np.ndarray = dataclasses.field(default_factory=lambda: np.array([-np.inf] * 3 + [EXPONENT_BOUNDS[0]] * 2))
    upper: np.ndarray = dataclasses.field(default_factory=lambda: np.array([np.inf] * 3 + [EXPONENT_BOUNDS[1]] * 2))
    prior_mean: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(5))
    prior_precision: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(5))

    def residuals(self, theta_R5: np.ndarray) -> np.ndarray:
        """Predicted minus measured, in the unit of the objective, shape RS."""
        log_loss_RS = np.logaddexp.reduce(self._terms(theta_R5), axis=0)
        return log_loss_RS - np.log(self.loss) if self.log_residuals else np.exp(log_loss_RS) - self.loss

    def value(self, theta_R5: np.ndarray, weight_RS: np.ndarray) -> np.ndarray:
        """The objective, shape R."""
        return (self._rho(self.residuals(theta_R5)) * weight_RS).sum(1) + self._prior(theta_R5)

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
        slope_RS, bound_RS, bend_RS = self._rho_slopes(residual_RS)
        slope_RS, bound_RS, bend_RS = slope_RS * weight_RS, bound_RS * weight_RS, bend_RS * weight_RS

        value_R = (self._rho(residual_RS) * weight_RS).sum(1) + self._prior(theta_R5)
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
        gradient_R5 += self.prior_precision * (theta_R5 - self.prior_mean)
        diagonal = np.arange(5)
        exact_R55[:, diagonal, diagonal] += self.prior_precision
        bounding_R55[:, diagonal, diagonal] += self.prior_precision
        return value_R, gradient_R5, exact_R55, bounding_R55

    def _terms(self, theta_R5: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta = (theta_R5[:, [k]] for k in range(5))
        return np.stack([np.broadcast_to(e, (len(theta_R5), len(self.x))), a - alpha * self.x, b - beta * self.y])

    def _rho(self, residual: np.ndarray) -> np.ndarray:
        if self.huber_delta is None:
            return residual**2
        size = np.abs(residual)
        return np.where(size <= self.huber_delta, 0.5 * residual**2, self.huber_delta * (size - 0.5 * self.huber_delta))

    def _rho_slopes(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First derivative, the bounding second one (first / residual), the exact second one."""
        if self.huber_delta is None:
            two = np.full_like(residual, 2.0)
            return 2.0 * residual, two, two
        size = np.abs(residual)
        inside = size <= self.huber_delta
        slope = np.clip(residual, -self.huber_delta, self.huber_delta)
        return slope, np.where(inside, 1.0, self.huber_delta / np.maximum(size, 1e-300)), inside.astype(float)

    def _prior(self, theta_R5: np.ndarray) -> np.ndarray:
        return 0.5 * (self.prior_precision * (theta_R5 - self.prior_mean) ** 2).sum(1)


def minimise(
    objective: Objective,
    theta_R5: np.ndarray,
    weight_RS: np.ndarray,
    *,
    max_steps: int = 300,
    relative_decrease: float = 1e-12,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descend from every row of `theta_R5`; weights may be one row for all.

    Returns theta (R5), the objective's value (R) and whether each converged (R).
    """
    theta_R5 = np.clip(np.array(theta_R5, dtype=float), objective.lower, objective.upper)
    weight_RS = np.broadcast_to(weight_RS, (len(theta_R5), len(objective.x)))
    value_R, converged_R = np.empty(len(theta_R5)), np.zeros(len(theta_R5), dtype=bool)
    rows = max(1, 120_000 // len(objective.x))  # chunks that stay in cache: three times faster than one large array
    for start in range(0, len(theta_R5), rows):
        part = slice(start, start + rows)
        found = _minimise_chunk(objective, theta_R5[part], weight_RS[part], max_steps, relative_decrease)
        theta_R5[part], value_R[part], converged_R[part] = found
    return theta_R5, value_R, converged_R


def _minimise_chunk(
    objective: Objective,
    theta_R5: np.ndarray,
    weight_RS: np.ndarray,
    max_steps: int,
    relative_decrease: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    theta = theta_R5.copy()
    value, gradient, exact, bounding = objective.derivatives(theta, weight_RS)
    mix = np.full(len(theta), 1.0)  # share of the bounding Hessian; above 1 it also shortens the step
    still = np.zeros(len(theta), dtype=int)  # steps in a row that gained next to nothing
    active = np.arange(len(theta))
    for _ in range(max_steps):
        step = _steps(objective, theta[active], gradient[active], exact[active], bounding[active], mix[active])
        trial = np.clip(theta[active] + step, objective.lower, objective.upper)
        new = objective.derivatives(trial, weight_RS[active])
        gain = value[active] - new[0]
        better = gain > 0
        moved = active[better]
        theta[moved], value[moved] = trial[better], new[0][better]
        gradient[moved], exact[moved], bounding[moved] = (part[better] for part in new[1:])
        mix[active] = np.where(better, mix[active] * 0.3, np.minimum(np.maximum(mix[active], 1e-3) * 5, 1e9))
        small = gain <= relative_decrease * np.abs(value[active])
        still[active] = np.where(small, still[active] + 1, 0)
        active = active[still[active] < 8]
        if not len(active):
            break
    converged = np.ones(len(theta), dtype=bool)
    converged[active[still[active] == 0]] = False  # the last step still gained
    return theta, value, converged


def _steps(
    objective: Objective,
    theta: np.ndarray,
    gradient: np.ndarray,
    exact: np.ndarray,
    bounding: np.ndarray,
    mix: np.ndarray,
) -> np.ndarray:
    """Newton steps with a mixed Hessian; parameters that press against a bound stay."""
    blocked = ((theta <= objective.lower) & (gradient > 0)) | ((theta >= objective.upper) & (gradient < 0))
    share = np.minimum(mix, 1.0)[:, None, None]
    hessian = (1 - share) * exact + np.maximum(mix, 1e-12)[:, None, None] * bounding
    diagonal = np.arange(5)
    scale = np.maximum(bounding[:, diagonal, diagonal], 1e-300)
    hessian[:, diagonal, diagonal] += 1e-10 * scale + 1e-12 * scale.max(1, keepdims=True)
    hessian = np.where(blocked[:, :, None] | blocked[:, None, :], 0.0, hessian)
    hessian[:, diagonal, diagonal] += blocked * 1.0
    step = -np.linalg.solve(hessian, np.where(blocked, 0.0, gradient)[:, :, None])[:, :, 0]
    return np.clip(step, -2.0, 2.0)  # in logarithms: never more than a factor e^2 at once
