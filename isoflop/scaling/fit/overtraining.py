"""Runs far beyond the optimal tokens: one exponent for every ratio of tokens to size, and from loss to benchmark error.

`isoflop fit --law overtraining` and `--law error`. Both laws are linear in all constants but one, which is searched.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from isoflop.errors import FitError
from isoflop.scaling.fit.one_law import OneLaw
from isoflop.scaling.fit.table import Table

EXPONENTS, DECAYS = (0.02, 1.5), (0.05, 5.0)
"""Where the one constant is searched (assumption)."""


def fit_overtraining(table: Table, *, bootstrap: int, seed: int) -> OneLaw:
    """L = E + alpha N^b + beta 6^(b/2) D^b by least squares; with M = D/N it is E + (p M^h + q M^-h) C^-h, h = -b/2.

    Raises:
        FitError: fewer than five runs.

    Source: Gadre et al., arXiv 2403.08540, equations 4 and 5.
    """
    law = "law overtraining"
    scale, tokens = table.numbers("n_params", law), table.tokens(law)
    name, losses = table.loss(law)

    def terms(b: float) -> np.ndarray:
        return np.stack([np.ones_like(scale), scale**-b, 6 ** (-b / 2) * tokens**-b], axis=1)

    rows, warnings = _resampled(law, terms, losses, 4, EXPONENTS, bootstrap, seed)
    (b, E, alpha, beta), drawn = rows[0], rows[1:]
    found = {"E": E, "alpha": alpha, "beta": beta, "exponent": -b, "h": b / 2, "n_rows": len(losses)}
    intervals = _intervals(("exponent", "E"), np.stack([-drawn[:, 0], drawn[:, 1]], axis=1))
    conventions = {"law": "L = E + alpha N^b + beta 6^(b/2) D^b, b = exponent, least squares", "loss": name}
    return OneLaw({**found, **intervals}, warnings, conventions)


def fit_error(table: Table, *, bootstrap: int, seed: int) -> OneLaw:
    """Error of benchmarks from loss, eps - k exp(-gamma L), by least squares.

    Raises:
        FitError: no column `error`, or fewer than four runs.

    Source: Gadre et al., arXiv 2403.08540, equation 6.
    """
    law = "law error"
    error = table.numbers("error", law)
    name, losses = table.loss(law)

    def terms(gamma: float) -> np.ndarray:
        return np.stack([np.ones_like(losses), -np.exp(-gamma * losses)], axis=1)

    rows, warnings = _resampled(law, terms, error, 3, DECAYS, bootstrap, seed)
    (gamma, eps, k), drawn = rows[0], rows[1:]
    found = {"eps": eps, "k": k, "gamma": gamma, "n_rows": len(error)}
    conventions = {"law": "error = eps - k exp(-gamma L), least squares", "loss": name}
    return OneLaw({**found, **_intervals(("gamma", "eps", "k"), drawn)}, warnings, conventions)


def _resampled(
    law: str,
    terms: Callable[[float], np.ndarray],
    values: np.ndarray,
    n_constants: int,
    bounds: tuple[float, float],
    bootstrap: int,
    seed: int,
) -> tuple[np.ndarray, list[str]]:
    """The searched constant and the linear ones: first for the runs, then for resamples of their weights."""
    if len(values) <= n_constants:
        raise FitError(f"{law}: {len(values)} runs must be more than its {n_constants} constants; add some")
    warnings = []
    if len(values) < n_constants + 3:  # residuals of one or two spare points say nothing
        bootstrap = 0
        warnings.append(f"{len(values)} runs and {n_constants} constants: no interval follows; add runs")

    def solved(x: float, root: np.ndarray) -> tuple[float, np.ndarray]:
        design = terms(x) * root[:, None]
        size = np.abs(design).max(axis=0)
        constants = np.linalg.lstsq(design / size, values * root, rcond=None)[0] / size
        return float(((design @ constants - values * root) ** 2).sum()), constants

    drawn = np.random.default_rng(seed).exponential(size=(bootstrap, len(values)))
    grid = np.geomspace(*bounds, 60)
    rows = []
    for weight in (np.ones(len(values)), *drawn):
        root = np.sqrt(weight)
        start = int(np.argmin([solved(x, root)[0] for x in grid]))
        around = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
        found: Any = minimize_scalar(
            lambda x, root=root: solved(x, root)[0], bounds=around, method="bounded", options={"xatol": 1e-9}
        )
        rows.append([float(found.x), *solved(float(found.x), root)[1]])
    return np.array(rows), warnings


def _intervals(names: tuple[str, ...], drawn: np.ndarray) -> dict[str, object]:
    return {"interval_95": dict(zip(names, np.percentile(drawn, [2.5, 97.5], axis=0).T.tolist()))} if len(drawn) else {}
