"""One descent for every fit: damped Newton steps for many starts or bootstrap resamples at once, in numpy.

The caller says what value, gradient and curvature its objective has at given parameters; every row walks downhill
inside the bounds on its own. `Damping` says how boldly: less after a step that gained, more after one that did not.
`least_squares` needs no formulas: it evaluates the residuals at complex parameters, a hair off the real axis
(complex-step differentiation), so they must be analytic in the parameters (no abs, max or comparisons).

Shapes: R problems (starts or resamples), P parameters, S rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Derivatives = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(theta of some rows, which rows) -> value (R), gradient (RP), curvature (RPP, or what `Damped` makes a system of)."""
Damped = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(curvature, damping (R)) -> the matrix of the step, RPP."""
Residuals = Callable[[np.ndarray], np.ndarray]
"""Parameters (R, P), real or complex -> residuals (R, S)."""

_HAIR = 1e-30  # complex steps have no cancellation, so the step may be as small as floats allow


@dataclass(frozen=True)
class Damping:
    """How a descent moves; parameters are logarithms or exponents, so steps are of order 1."""

    start: float
    shrink: float
    """Factor after a step that gained."""
    grow: float
    """Factor after one that did not."""
    most: float
    longest_step: float
    """Of any parameter at once."""
    patience: int
    """A row rests after so many steps in a row that gained next to nothing."""
    least: float = 0.0
    """Damping grows from here at least."""


_PACE = Damping(start=1e-2, shrink=0.2, grow=6.0, most=1e12, longest_step=3.0, patience=5)


def ridge(curvature_RPP: np.ndarray, damping_R: np.ndarray) -> np.ndarray:
    """Levenberg and Marquardt's system: the diagonal grows by a share of itself."""
    diagonal = np.arange(curvature_RPP.shape[-1])
    scale = curvature_RPP[:, diagonal, diagonal]
    system = curvature_RPP.copy()
    system[:, diagonal, diagonal] += damping_R[:, None] * scale + 1e-12 * scale.max(1, keepdims=True) + 1e-300
    return system


def descend(
    derivatives: Derivatives,
    theta_RP: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    pace: Damping,
    *,
    damped: Damped = ridge,
    max_steps: int,
    relative_decrease: float,
    chunk_rows: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descend from every row of `theta_RP`; returns theta (RP), the value (R) and whether each row converged (R).

    `relative_decrease`: a step that gains less than this share of the value gained next to nothing. `chunk_rows`: rows
    that are worked on at a time (0: all), which keeps large problems in cache.
    """
    theta = np.clip(np.array(theta_RP, dtype=float), *bounds)
    value, converged = np.empty(len(theta)), np.zeros(len(theta), dtype=bool)
    chunk_rows = max(1, chunk_rows or len(theta))
    for start in range(0, len(theta), chunk_rows):
        rows = np.arange(start, min(start + chunk_rows, len(theta)))
        found = _descend(derivatives, theta[rows], rows, bounds, pace, damped, max_steps, relative_decrease)
        theta[rows], value[rows], converged[rows] = found
    return theta, value, converged


def least_squares(
    residuals: Residuals,
    theta_RP: np.ndarray,
    weight_RS: np.ndarray,
    *,
    bounds: tuple[np.ndarray, np.ndarray],
    free: np.ndarray | None = None,
    target_RS: np.ndarray | None = None,
    max_steps: int = 200,
    relative_decrease: float = 1e-11,
) -> tuple[np.ndarray, np.ndarray]:
    """Descend from every row of `theta_RP` inside `bounds` (lower, upper); `free` (P, bool) says what moves.

    Weights may be one row for all; `target_RS` is taken from what `residuals` returns. Returns theta (R, P) and the
    weighted sum of squares (R,); where residuals are not finite the cost is infinity.
    """
    whole = np.clip(np.array(theta_RP, dtype=float), *bounds)
    moving = np.flatnonzero(np.ones(whole.shape[1], dtype=bool) if free is None else free)
    n_rows = weight_RS.shape[-1]
    weight_RS = np.broadcast_to(weight_RS, (len(whole), n_rows))
    target_RS = np.broadcast_to(0.0 if target_RS is None else target_RS, (len(whole), n_rows))

    def derivatives(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = whole[rows]
        at[:, moving] = theta
        return _derivatives(residuals, at, weight_RS[rows], target_RS[rows], moving)

    lower, upper = (np.broadcast_to(bound, whole.shape[1:])[moving] for bound in bounds)
    whole[:, moving], cost, _ = descend(
        derivatives,
        whole[:, moving],
        (lower, upper),
        _PACE,
        max_steps=max_steps,
        relative_decrease=relative_decrease,
        chunk_rows=max(1, 100_000 // (n_rows * max(1, len(moving)))),
    )
    return whole, cost


def _descend(
    derivatives: Derivatives,
    theta: np.ndarray,
    rows: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    pace: Damping,
    damped: Damped,
    max_steps: int,
    relative_decrease: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value, gradient, curvature = derivatives(theta, rows)
    damping = np.full(len(theta), pace.start)
    still = np.zeros(len(theta), dtype=int)  # steps in a row that gained next to nothing
    active = np.arange(len(theta))
    for _ in range(max_steps):
        step = _steps(theta[active], gradient[active], damped(curvature[active], damping[active]), bounds)
        trial = np.clip(theta[active] + np.clip(step, -pace.longest_step, pace.longest_step), *bounds)
        new = derivatives(trial, rows[active])
        gain = np.where(np.isfinite(new[0]), value[active] - np.nan_to_num(new[0], posinf=0.0), 0.0)
        better = gain > 0
        moved = active[better]
        theta[moved] = trial[better]
        value[moved], gradient[moved], curvature[moved] = (part[better] for part in new)
        grown = np.minimum(np.maximum(damping[active], pace.least) * pace.grow, pace.most)
        damping[active] = np.where(better, damping[active] * pace.shrink, grown)
        small = gain <= relative_decrease * np.abs(value[active])
        still[active] = np.where(small, still[active] + 1, 0)
        active = active[still[active] < pace.patience]
        if not len(active):
            break
    converged = np.ones(len(theta), dtype=bool)
    converged[active[still[active] == 0]] = False  # the last step still gained
    return theta, value, converged


def _steps(
    theta: np.ndarray, gradient: np.ndarray, system: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Newton steps; parameters that press against a bound stay."""
    lower, upper = bounds
    blocked = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    diagonal = np.arange(theta.shape[1])
    system = np.where(blocked[:, :, None] | blocked[:, None, :], 0.0, system)
    system[:, diagonal, diagonal] += blocked
    wanted = np.where(blocked, 0.0, gradient)[:, :, None]
    try:
        return -np.linalg.solve(system, wanted)[:, :, 0]
    except np.linalg.LinAlgError:  # damping below rounding on rows that leave a direction open: the shortest step
        return -(np.linalg.pinv(system, hermitian=True) @ wanted)[:, :, 0]


def _derivatives(
    residuals: Residuals, theta: np.ndarray, weight: np.ndarray, target: np.ndarray, moving: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost (R), half its gradient (R, P') and half its Gauss-Newton Hessian (R, P', P') in the moving parameters."""
    n_problems, n_moving = len(theta), len(moving)
    shifted = np.repeat(theta[None].astype(complex), n_moving, axis=0)
    shifted[np.arange(n_moving), :, moving] += 1j * _HAIR
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = residuals(shifted.reshape(n_moving * n_problems, -1)).reshape(n_moving, n_problems, -1)
    slope_PRS, residual_RS = np.imag(found) / _HAIR, np.real(found[0]) - target
    fine = np.isfinite(residual_RS).all(axis=1) & np.isfinite(slope_PRS).all(axis=(0, 2))
    residual_RS = np.where(fine[:, None], residual_RS, 0.0)
    slope_PRS = np.where(fine[None, :, None], slope_PRS, 0.0)
    cost = np.where(fine, (weight * residual_RS**2).sum(axis=1), np.inf)
    weighted_PRS = slope_PRS * weight
    gradient = np.einsum("prs,rs->rp", weighted_PRS, residual_RS)
    curvature = np.einsum("prs,qrs->rpq", weighted_PRS, slope_PRS, optimize=True)
    return cost, gradient, curvature
