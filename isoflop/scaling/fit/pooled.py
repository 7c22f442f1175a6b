"""All IsoFLOP curves of a sweep as one: loss at the optimum, its place and the bowls' shape share their constants.

    L(M, C) = E + k c^-g (1 + q (ln m - p - r ln c)^2),   c = C / C0 and m = M / M0 at the geometric means of the runs

A parabola per budget spends three constants on four or five noisy sizes; six constants for all budgets leave the loss
at the bottom about 1.4 times more certain (tests/scaling/fit/test_isoflop.py measures it). Nothing is said about how
model scale and tokens act apart, so this stays right where the three-term law's separate terms are wrong.

Source: our own choice; the bowl of a three-term law is proportional to its reducible loss in just this way, up to third
order in ln M. Shapes: R problems (starts or resamples), S runs.
"""

import dataclasses

import numpy as np

from isoflop.scaling.fit.solver import Damping, descend

LOWER = np.array([-np.inf, -np.inf, np.log(0.01), np.log(1e-3), -5.0, 0.0])
UPPER = np.array([np.inf, np.inf, np.log(1.5), np.log(3.0), 5.0, 1.0])
PACE = Damping(start=1e-2, shrink=0.3, grow=6.0, most=1e8, longest_step=1.0, patience=6, together=True)
FLOOR_RANGE = 6.0  # E is at least e^-6 of the lowest loss: 0 in practice


@dataclasses.dataclass(frozen=True)
class PooledCurve:
    """Constants in the order ln E, ln k, ln g, ln q, p, r; each row of `theta_R6` is one fit."""

    reference_flops: float
    reference_scale: float
    theta_R6: np.ndarray

    def lstar(self) -> np.ndarray:
        """E, k, g of L* = E + k C^-g with C in FLOPs (reference 1), shape R3."""
        floor, rate, decay = np.exp(self.theta_R6[:, :3]).T
        return np.stack([floor, rate * self.reference_flops**decay, decay], axis=1)

    def residuals(self, flops: np.ndarray, scale: np.ndarray, loss: np.ndarray) -> np.ndarray:
        """ln L predicted minus measured, shape RS."""
        ln_c, ln_m = np.log(flops / self.reference_flops), np.log(scale / self.reference_scale)
        return _residual(self.theta_R6, ln_c, ln_m, np.log(loss))[0]

    def loss(self, flops: float, scale: float) -> np.ndarray:
        """Predicted loss of one run, shape R."""
        ln_c, ln_m = np.log(flops / self.reference_flops), np.log(scale / self.reference_scale)
        residual, _ = _residual(self.theta_R6, np.array([ln_c]), np.array([ln_m]), np.zeros(1))
        return np.exp(residual[:, 0])

    def allocation(self) -> np.ndarray:
        """Coefficient and exponent of M* = coefficient x C^exponent, shape R2."""
        place, slope = self.theta_R6[:, 4], self.theta_R6[:, 5]
        return np.stack([np.exp(place) * self.reference_scale * self.reference_flops**-slope, slope], axis=1)


@dataclasses.dataclass(frozen=True)
class FloorPrior:
    """What is known of ln E before a run is seen, as a penalty: precision x (ln E - mean)^2 beside the squares."""

    mean_R: np.ndarray
    """One per fit, or one for all."""
    precision: float


NO_PRIOR = FloorPrior(np.zeros(1), 0.0)


def fit_pooled(
    flops: np.ndarray,
    scale: np.ndarray,
    loss: np.ndarray,
    weight_RS: np.ndarray,
    start: PooledCurve | None = None,
    prior: FloorPrior = NO_PRIOR,
) -> PooledCurve:
    """Least squares of ln L over all runs, one fit per row of weights; without `start`, the best of a grid."""
    reference_flops, reference_scale = float(np.exp(np.log(flops).mean())), float(np.exp(np.log(scale).mean()))
    ln_c, ln_m = np.log(flops / reference_flops), np.log(scale / reference_scale)
    if start is None:
        grid = [
            [np.log(floor * loss.min()), np.log((1 - floor) * loss.mean()), np.log(g), np.log(0.08), 0.0, 0.5]
            for floor in (0.1, 0.4, 0.7)
            for g in (0.07, 0.15, 0.3)
        ]
        found = []
        for weight in weight_RS:
            theta, value = _descend(np.array(grid), ln_c, ln_m, np.log(loss), weight[None], prior)
            found.append(theta[value.argmin()])
        return PooledCurve(reference_flops, reference_scale, np.array(found))
    theta = np.tile(start.theta_R6[0], (len(weight_RS), 1))
    theta, _ = _descend(theta, ln_c, ln_m, np.log(loss), weight_RS, prior)
    return PooledCurve(reference_flops, reference_scale, theta)


def _descend(
    theta: np.ndarray,
    ln_c: np.ndarray,
    ln_m: np.ndarray,
    ln_loss: np.ndarray,
    weight: np.ndarray,
    prior: FloorPrior,
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt from every row at once: theta (R6) and the penalised squares (R)."""
    lower = LOWER.copy()
    lower[0] = ln_loss.min() - FLOOR_RANGE
    weight = np.broadcast_to(weight, (len(theta), len(ln_c)))
    mean = np.broadcast_to(prior.mean_R, len(theta))

    def derivatives(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        residual, jacobian = _residual(theta, ln_c, ln_m, ln_loss)
        off = theta[:, 0] - mean[rows]
        value = (weight[rows] * residual**2).sum(1) + prior.precision * off**2
        weighted = (jacobian * weight[rows][:, None]).transpose(0, 2, 1)
        gradient = np.einsum("rsk,rs->rk", weighted, residual)
        curvature = jacobian @ weighted
        gradient[:, 0] += prior.precision * off
        curvature[:, 0, 0] += prior.precision
        return value, gradient, curvature

    theta, value, _ = descend(derivatives, theta, (lower, UPPER), PACE, max_steps=120, relative_decrease=1e-10)
    return theta, value


def _residual(
    theta: np.ndarray, ln_c: np.ndarray, ln_m: np.ndarray, ln_loss: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln L predicted minus measured (RS) and its derivatives (R6S)."""
    floor, rate, decay, bowl = (np.exp(theta[:, [k]]) for k in range(4))
    offset = ln_m - theta[:, [4]] - theta[:, [5]] * ln_c
    reducible = rate * np.exp(-decay * ln_c)
    total = reducible * (1 + bowl * offset**2)
    loss = floor + total
    tilt = -2 * reducible * bowl * offset
    parts = [
        floor * np.ones_like(loss),
        total,
        -decay * ln_c * total,
        reducible * bowl * offset**2,
        tilt,
        tilt * ln_c,
    ]
    return np.log(loss) - ln_loss, np.stack(parts, axis=1) / loss[:, None]
