"""Nonlinear least squares for many starts or bootstrap resamples at once, in numpy: Levenberg and Marquardt's method.

A function from parameters to residuals goes in, the parameters of least weighted squares come out. Derivatives are
exact and cost no formulas: the function is evaluated at complex parameters, a hair off the real axis (complex-step
differentiation), so it must be made of analytic functions (no abs, max or comparisons of parameters).

Shapes: R problems (starts or resamples), P parameters, S rows.
"""

from collections.abc import Callable

import numpy as np

Residuals = Callable[[np.ndarray], np.ndarray]
"""Parameters (R, P), real or complex -> residuals (R, S)."""

_HAIR = 1e-30  # complex steps have no cancellation, so the step may be as small as floats allow
_SETTLED = 5  # steps in a row that gain next to nothing


def least_squares(
    residuals: Residuals,
    theta_RP: np.ndarray,
    weight_RS: np.ndarray,
    *,
    bounds: tuple[np.ndarray, np.ndarray],
    free: np.ndarray | None = None,
    max_steps: int = 200,
    relative_decrease: float = 1e-11,
) -> tuple[np.ndarray, np.ndarray]:
    """Descend from every row of `theta_RP` inside `bounds` (lower, upper); `free` (P, bool) says what moves.

    Weights may be one row for all. Returns theta (R, P) and the weighted sum of squares (R,); where residuals are not
    finite the cost is infinity.
    """
    theta = np.clip(np.array(theta_RP, dtype=float), *bounds)
    moving = np.flatnonzero(np.ones(theta.shape[1], dtype=bool) if free is None else free)
    n_rows = weight_RS.shape[-1]
    weight_RS = np.broadcast_to(weight_RS, (len(theta), n_rows))
    cost = np.empty(len(theta))
    rows = max(1, 100_000 // (n_rows * max(1, len(moving))))  # chunks that stay in cache
    for start in range(0, len(theta), rows):
        part = slice(start, start + rows)
        theta[part], cost[part] = _descend(
            residuals,
            theta[part],
            weight_RS[part],
            bounds=bounds,
            moving=moving,
            max_steps=max_steps,
            relative_decrease=relative_decrease,
        )
    return theta, cost


def _descend(
    residuals: Residuals,
    theta: np.ndarray,
    weight: np.ndarray,
    *,
    bounds: tuple[np.ndarray, np.ndarray],
    moving: np.ndarray,
    max_steps: int,
    relative_decrease: float,
) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = bounds
    damping = np.full(len(theta), 1e-2)
    still = np.zeros(len(theta), dtype=int)
    cost, gradient, curvature = _derivatives(residuals, theta, weight, moving)
    active = np.arange(len(theta))
    diagonal = np.arange(len(moving))
    for _ in range(max_steps):
        at, slope = theta[np.ix_(active, moving)], gradient[active]
        blocked = ((at <= lower[moving]) & (slope > 0)) | ((at >= upper[moving]) & (slope < 0))
        system = np.where(blocked[:, :, None] | blocked[:, None, :], 0.0, curvature[active])
        scale = system[:, diagonal, diagonal]
        ridge = damping[active, None] * scale + 1e-12 * scale.max(axis=1, keepdims=True) + 1e-300
        system[:, diagonal, diagonal] += np.where(blocked, 1.0, ridge)
        step = -np.linalg.solve(system, np.where(blocked, 0.0, slope)[:, :, None])[:, :, 0]
        trial = theta[active]
        trial[:, moving] = np.clip(at + np.clip(step, -3.0, 3.0), lower[moving], upper[moving])
        new = _derivatives(residuals, trial, weight[active], moving)
        gain = np.where(np.isfinite(new[0]), cost[active] - np.nan_to_num(new[0], posinf=0.0), 0.0)
        better = gain > 0
        moved = active[better]
        theta[moved], cost[moved] = trial[better], new[0][better]
        gradient[moved], curvature[moved] = new[1][better], new[2][better]
        damping[active] = np.where(better, damping[active] * 0.2, np.minimum(damping[active] * 6, 1e12))
        small = gain <= relative_decrease * cost[active]
        still[active] = np.where(small, still[active] + 1, 0)
        active = active[still[active] < _SETTLED]
        if not len(active):
            break
    return theta, cost


def _derivatives(
    residuals: Residuals, theta: np.ndarray, weight: np.ndarray, moving: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost (R), half its gradient (R, P') and half its Gauss-Newton Hessian (R, P', P') in the moving parameters."""
    n_problems, n_moving = len(theta), len(moving)
    shifted = np.repeat(theta[None].astype(complex), n_moving, axis=0)
    shifted[np.arange(n_moving), :, moving] += 1j * _HAIR
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = residuals(shifted.reshape(n_moving * n_problems, -1)).reshape(n_moving, n_problems, -1)
    slope_PRS, residual_RS = np.imag(found) / _HAIR, np.real(found[0])
    fine = np.isfinite(residual_RS).all(axis=1) & np.isfinite(slope_PRS).all(axis=(0, 2))
    residual_RS = np.where(fine[:, None], residual_RS, 0.0)
    slope_PRS = np.where(fine[None, :, None], slope_PRS, 0.0)
    cost = np.where(fine, (weight * residual_RS**2).sum(axis=1), np.inf)
    weighted_PRS = slope_PRS * weight
    gradient = np.einsum("prs,rs->rp", weighted_PRS, residual_RS)
    curvature = np.einsum("prs,qrs->rpq", weighted_PRS, slope_PRS, optimize=True)
    return cost, gradient, curvature
