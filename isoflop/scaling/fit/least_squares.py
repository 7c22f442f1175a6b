"""Nonlinear least squares for many starts or bootstrap resamples at once, without formulas for derivatives.

A function from parameters to residuals goes in, the parameters of least weighted squares come out. Derivatives are
exact: the function is evaluated at complex parameters, a hair off the real axis (complex-step differentiation), so it
must be made of analytic functions (no abs, max or comparisons of parameters).

Shapes: R problems (starts or resamples), P parameters, S rows.
"""

from collections.abc import Callable

import numpy as np

from isoflop.scaling.fit.solver import Damping, descend

Residuals = Callable[[np.ndarray], np.ndarray]
"""Parameters (R, P), real or complex -> residuals (R, S)."""

_HAIR = 1e-30  # complex steps have no cancellation, so the step may be as small as floats allow
_PACE = Damping(start=1e-2, shrink=0.2, grow=6.0, most=1e12, longest_step=3.0, patience=5)


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
    whole = np.clip(np.array(theta_RP, dtype=float), *bounds)
    moving = np.flatnonzero(np.ones(whole.shape[1], dtype=bool) if free is None else free)
    n_rows = weight_RS.shape[-1]
    weight_RS = np.broadcast_to(weight_RS, (len(whole), n_rows))

    def derivatives(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = whole[rows]
        at[:, moving] = theta
        return _derivatives(residuals, at, weight_RS[rows], moving)

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
