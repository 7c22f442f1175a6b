"""What repeated tokens and excess size are worth: `isoflop fit --law repeated`.

A surface of fresh tokens stays fixed; two decay constants are fitted to runs that read their tokens several times. They
are poorly determined together, so the objective is searched on a grid, for the runs and for every resample.

Shapes: R resamples, S runs, G grid points.
"""

import numpy as np
from scipy.optimize import minimize

from isoflop.errors import FitError
from isoflop.scaling.fit.one_law import OneLaw
from isoflop.scaling.fit.parametric import fit_centre, surface_points
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import CONSTANTS, REPEAT_SCALE, REPEAT_TOKENS, Laws, Surface, repeated_loss

LAW = "law repeated"
HUBER = 1e-3  # paper (arXiv 2305.16264, section 5)
LEAST_FRESH = 8  # runs of one pass that a surface of one's own needs
GRID = np.geomspace(0.3, 1000, 41)
NAMES = ("repeat_tokens", "repeat_scale")


def fit_repeated(table: Table, *, base: Laws | None, bootstrap: int, seed: int) -> OneLaw:
    """Decay constants of repeated tokens and of size beyond what the unique tokens feed, by Huber(1e-3) of ln L.

    `base`: laws of fresh tokens; None: a surface is fitted to the runs of one pass.

    Raises:
        FitError: no column unique_tokens, no repeated run, or too few runs of one pass for a base.

    Source: Muennighoff et al., arXiv 2305.16264, equation 5.
    """
    unique = table.numbers("unique_tokens", LAW)
    points = surface_points(table, scale="n_params")
    repeated = points.tokens > 1.001 * unique
    if not repeated.any():
        raise FitError(f"{LAW}: no row has n_tokens above unique_tokens; every token is fresh: use --law surface")
    if base is None and (~repeated).sum() < LEAST_FRESH:
        raise FitError(
            f"{LAW}: {int((~repeated).sum())} rows of one pass must be at least {LEAST_FRESH} for a surface of fresh "
            "tokens; give laws with --base, as --base muennighoff"
        )
    if base is None:
        fresh = surface_points(table.select(~repeated), scale="n_params")
        surface = Surface.of(fresh.constants(fit_centre(fresh, "log_huber")[0][None])[0])
    else:
        surface = next(iter(base.surfaces.values()))
    constants, measured = surface.constants, np.log(points.loss)

    def losses(tokens: float, scale: float) -> np.ndarray:
        sizes = (points.scale, points.tokens, unique)
        return repeated_loss(constants, *sizes, repeat_tokens=tokens, repeat_scale=scale)  # type: ignore[arg-type]

    def cost(tokens: float, scale: float) -> np.ndarray:
        size = np.abs(np.log(losses(tokens, scale)) - measured)
        return np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2))

    pairs_G = [(tokens, scale) for tokens in GRID for scale in GRID]
    cost_GS = np.array([cost(*pair) for pair in pairs_G])
    order = np.argsort(cost_GS @ points.weight)
    found = [
        minimize(
            lambda ln: 1e3 * float(cost(*np.exp(ln)) @ points.weight),
            np.log(pairs_G[start]),
            method="Nelder-Mead",
            options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000},
        )
        for start in order[:3]
    ]
    best = min(found, key=lambda one: one.fun)
    centre = np.exp(best.x)

    def r2(values: np.ndarray) -> float:
        return float(1 - ((points.loss - values) ** 2).sum() / ((points.loss - points.loss.mean()) ** 2).sum())

    published = (REPEAT_TOKENS, REPEAT_SCALE)
    result = {
        **dict(zip(NAMES, map(float, centre))),
        "objective": float(best.fun) / 1e3,
        "r2": r2(losses(*centre)),
        "r2_all_fresh": r2(surface.loss(points.scale, points.tokens)),
        "published": {
            **dict(zip(NAMES, published)),
            "objective": float(cost(*published) @ points.weight),
            "r2": r2(losses(*published)),
        },
        "base": dict(zip(CONSTANTS, map(float, constants))),
        "n_rows": len(points.loss),
    }
    warnings = []
    if bootstrap:
        drawn_RS = np.random.default_rng(seed).exponential(size=(bootstrap, len(points.loss))) * points.weight
        chosen_R2 = np.array(pairs_G)[(drawn_RS @ cost_GS.T).argmin(axis=1)]
        ends = np.percentile(chosen_R2, [2.5, 97.5], axis=0).T
        result["interval_95"] = dict(zip(NAMES, ends.tolist()))
        open_ended = [name for name, (low, high) in zip(NAMES, ends) if low <= GRID[0] or high >= GRID[-1]]
        if open_ended:
            warnings.append(f"{' and '.join(open_ended)} reaches the end of {GRID[0]:g} to {GRID[-1]:g}: hardly fixed")
    conventions = {
        "law": "L(N', D'), D' = U + U R (1 - exp(-(D/U - 1)/R)), N' likewise",
        "base": base.name if base else "log-Huber surface of the rows of one pass",
    }
    return OneLaw(result, warnings, conventions)
