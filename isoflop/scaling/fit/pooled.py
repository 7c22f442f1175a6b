"""Loss at the optimum against compute: through the bottoms of IsoFLOP curves, or of all curves as one.

    L(M, C) = E + k c^-g (1 + q (ln m - p - r ln c)^2),   c = C / C0 and m = M / M0 at the geometric means of the runs

A parabola per budget spends three constants on four or five noisy sizes; six constants for all budgets leave the loss
at the bottom about 1.4 times more certain (tests/scaling/fit/test_isoflop.py measures it). Nothing is said about how
model scale and tokens act apart, so this stays right where the three-term law's separate terms are wrong. Through
given bottoms only E, k and g move.

Source: our own choice; the bowl of a three-term law is proportional to its reducible loss in just this way, up to third
order in ln M. Shapes: R problems (starts or resamples), S runs.
"""

import dataclasses

import numpy as np

from isoflop.scaling.fit.solver import least_squares

LOWER = np.array([-np.inf, -np.inf, np.log(0.01), np.log(1e-3), -5.0, 0.0])
UPPER = np.array([np.inf, np.inf, np.log(1.5), np.log(3.0), 5.0, 1.0])
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
    scale: np.ndarray | None,
    loss_RS: np.ndarray,
    weight_RS: np.ndarray,
    start: PooledCurve | None = None,
    prior: FloorPrior = NO_PRIOR,
) -> PooledCurve:
    """Least squares of ln L over all runs, one fit per row of weights; without `start`, the best of a grid.

    `scale` None: the runs are bottoms. `loss_RS` may be one row for all fits.
    """
    bowl = scale is not None
    scale = np.ones_like(flops) if scale is None else scale
    reference_flops, reference_scale = float(np.exp(np.log(flops).mean())), float(np.exp(np.log(scale).mean()))
    ln_c, ln_m = np.log(flops / reference_flops), np.log(scale / reference_scale)
    loss_RS = np.atleast_2d(loss_RS)
    lowest = float(loss_RS.min())
    if start is None:
        grid = np.array([
            [np.log(floor * lowest), np.log((1 - floor) * loss_RS.mean()), np.log(g), np.log(0.08), 0.0, 0.5 * bowl]
            for floor in (0.1, 0.4, 0.7)
            for g in (0.07, 0.15, 0.3)
        ])  # fmt: skip
    else:
        grid = np.tile(start.theta_R6[0], (len(weight_RS), 1))
    lower = LOWER.copy()
    lower[0] = np.log(lowest) - FLOOR_RANGE
    size = max(len(grid), len(weight_RS))
    column = np.ones((size, 1))
    target = np.hstack([np.broadcast_to(np.log(loss_RS), (size, len(flops))), prior.mean_R.reshape(-1, 1) * column])
    weight = np.hstack([np.broadcast_to(weight_RS, (size, len(flops))), prior.precision * column])
    theta, value = least_squares(
        lambda theta: np.hstack([_log_loss(theta, ln_c, ln_m), theta[:, :1]]),
        grid,
        weight,
        target_RS=target,
        free=np.array([True] * 3 + [bowl] * 3),
        bounds=(lower, UPPER),
        max_steps=120,
        relative_decrease=1e-8,
    )
    return PooledCurve(reference_flops, reference_scale, theta if start else theta[[value.argmin()]])


def _log_loss(theta: np.ndarray, ln_c: np.ndarray, ln_m: np.ndarray) -> np.ndarray:
    """ln L, shape RS."""
    floor, rate, decay, bowl = (np.exp(theta[:, [k]]) for k in range(4))
    offset = ln_m - theta[:, [4]] - theta[:, [5]] * ln_c
    return np.log(floor + rate * np.exp(-decay * ln_c) * (1 + bowl * offset**2))
