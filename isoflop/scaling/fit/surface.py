"""The three-term law alone, fitted to any table by four objectives: `isoflop fit TABLE --law surface`.

The objectives answer different questions, so they stand side by side: those of isoflop.scaling.fit.parametric, and
`varpro` (least squares as a search over the two exponents alone, the other three constants by non-negative least
squares). N is parameters or FLOPs per token; C = factor N D.

Source: as isoflop.scaling.fit.parametric; Czech 2026 for variable projection (arXiv 2603.22339).
"""

import dataclasses

import numpy as np
import scipy.optimize

from isoflop.errors import FitError
from isoflop.scaling.fit.one_law import OneLaw
from isoflop.scaling.fit.parametric import (
    EXPONENT_BOUNDS,
    FINALISTS,
    START_EXPONENTS,
    START_FLOORS,
    Objective,
    Points,
    fit_centre,
    make_objective,
    minimise,
    surface_points,
)
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import CONSTANTS, FLOPS_FACTOR, Surface

OBJECTIVES = ("log_huber", "raw_huber", "mse", "varpro")
RESAMPLE_TOLERANCE = 1e-9  # relative gain per step below which a resample is done; the centre uses 1e-12
ONE_DIRECTION = 0.02  # assumption: spread of ln N and ln D across their main direction, as a share of that along it
LARGE_RESIDUAL_SD = 8.0  # assumption: robust standard deviations beyond which a run is named as suspect


def fit_surface(
    table: Table,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    group: str = "setting",
    objectives: tuple[str, ...] = OBJECTIVES,
    at_flops: float | None = None,
) -> OneLaw:
    """Fit the surface by every objective; the result of `isoflop fit --law surface` less the import checks.

    Resamples draw settings with replacement, the same draws for all objectives, each started at the centre.

    Raises:
        FitError: a column is missing, or fewer than 6 rows, 3 scales or 3 token counts.
    """
    scale_name = table.scale("law surface")[0]
    points = _regrouped(surface_points(table), table, group)
    draws_RS = draw_settings(points.setting, bootstrap, np.random.default_rng(seed)) * points.weight
    compute = FLOPS_FACTOR[scale_name] * points.scale * points.tokens
    at_flops = at_flops or 10 * float(compute.max())
    fits: dict[str, dict[str, object]] = {}
    laws: list[Surface] = []
    warnings: list[str] = []
    for name in objectives:
        objective = make_objective(points, name)
        if name == "varpro":
            (theta, value), reached = _variable_projection(points), 1
        else:
            theta, value, reached = fit_centre(points, name, objective)
        resamples_R5 = np.empty((0, 5))
        if bootstrap:
            resamples_R5, _, converged = minimise(
                objective, np.tile(theta, (bootstrap, 1)), draws_RS, relative_decrease=RESAMPLE_TOLERANCE
            )
            if not converged.all():
                warnings.append(f"surface.{name}: {int((~converged).sum())} of {bootstrap} resamples did not converge")
        warnings.extend(_boundary_warnings(name, theta, objective))
        laws.append(Surface.of(points.constants(theta[None])[0]))
        fits[name] = _summary(points, theta, value, resamples_R5, scale_name, at_flops)
        fits[name]["finalists_at_minimum"] = reached
    warnings.extend(suspect_rows(points, laws[0]))
    warnings.extend(_one_direction(points))
    found = {
        "fits": fits,
        "scale": scale_name,
        "n_rows": len(points.loss),
        "n_settings": int(points.setting.max()) + 1,
        "starts": len(START_EXPONENTS) ** 2 * len(START_FLOORS),
        "finalists": FINALISTS,
        "bootstrap": {"resamples": bootstrap, "seed": seed, "group": group},
    }
    conventions = {
        "law": "L = E + A/N^alpha + B/D^beta",
        "N": scale_name,
        "compute": "C = 6 N D" if scale_name == "n_params" else "C = M D, M = flops_per_token",
        "log_huber": "sum of weight x Huber(1e-3) of ln L residuals",
        "raw_huber": "sum of weight x Huber(1e-3) of L residuals; objective_mean_x1e6 is its mean x 1e6",
        "mse": "sum of weight x squared L residuals",
        "varpro": "as mse; search over alpha and beta, non-negative E, A, B inside",
        "objective": "the sum; objective_mean_x1e6 = 1e6 x sum / rows",
    }
    return OneLaw(found, warnings, conventions)


def _regrouped(points: Points, table: Table, group: str) -> Points:
    """Points whose setting is what one bootstrap draw is: row, setting or budget."""
    if group == "setting":
        return points
    if group == "row":
        return dataclasses.replace(points, setting=np.arange(len(points.loss)))
    if group != "budget":
        raise FitError(f"group = {group!r} must be row, setting or budget; setting (equal N and D) is the default")
    name = "budget_flops" if table.has("budget_flops") else "total_flops"
    budget = np.unique(table.numbers(name, "bootstrap by budget"), return_inverse=True)[1].reshape(-1)
    return dataclasses.replace(points, setting=budget)


def draw_settings(setting: np.ndarray, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each row occurs in each bootstrap resample of whole settings, shape RS."""
    n_settings = int(setting.max()) + 1
    counts = generator.multinomial(n_settings, np.full(n_settings, 1 / n_settings), size=n_resamples)
    return counts[:, setting].astype(float)


def suspect_rows(points: Points, law: Surface) -> list[str]:
    """Name the rows that lie far off the fitted surface, in robust standard deviations of ln L."""
    residual = np.log(points.loss) - np.log(law.loss(points.scale, points.tokens))
    spread = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    far = np.flatnonzero(np.abs(residual) > LARGE_RESIDUAL_SD * max(spread, 1e-4))
    if not len(far):
        return []
    far = far[np.argsort(-np.abs(residual[far]))]
    excess = np.expm1(residual)
    shown = "; ".join(
        f"N {points.scale[i]:.3g}, D {points.tokens[i]:.3g}: loss {points.loss[i]:.4g} is {100 * excess[i]:+.1f}%"
        for i in far[:5]
    )
    return [
        f"{len(far)} of {len(residual)} rows lie more than {LARGE_RESIDUAL_SD:g} robust standard deviations "
        f"({100 * spread:.2f}% each) off the surface ({shown}); check them, or leave them out with --where"
    ]


def _one_direction(points: Points) -> list[str]:
    """A warning where sizes and tokens change only together, so that their two terms cannot be told apart."""
    spread = np.linalg.svd(np.stack([points.x, points.y]), compute_uv=False)
    if spread[1] > ONE_DIRECTION * spread[0]:
        return []
    return [
        "model sizes and token counts change only together (one budget, one ratio, or one of them fixed): A, alpha, B "
        "and beta cannot be told apart, and the optimum is a guess; add runs off that line"
    ]


def _variable_projection(points: Points) -> tuple[np.ndarray, float]:
    """Search alpha and beta; E, A, B by non-negative least squares. Inputs are scaled to their geometric means."""
    root = np.sqrt(points.weight)

    def project(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, beta = np.clip(exponents, *EXPONENT_BOUNDS)
        terms = np.stack([np.ones_like(points.loss), np.exp(-alpha * points.x), np.exp(-beta * points.y)], axis=1)
        linear, norm = scipy.optimize.nnls(terms * root[:, None], points.loss * root)
        return float(norm**2), linear

    grid = np.geomspace(0.05, 1.8, 16)
    values = {(alpha, beta): project(np.array([alpha, beta]))[0] for alpha in grid for beta in grid}

    def search(start: tuple[float, float]) -> np.ndarray:
        unit = max(values[start], 1e-300)
        options = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 2000}
        return scipy.optimize.minimize(lambda x: project(x)[0] / unit, start, method="Nelder-Mead", options=options).x

    found = map(search, sorted(values, key=values.__getitem__)[:3])
    best = min(found, key=lambda exponents: project(exponents)[0])
    value, linear = project(best)
    floor = points.loss.min() * np.exp(-12.0)
    return np.concatenate([np.log(np.maximum(linear, floor)), np.clip(best, *EXPONENT_BOUNDS)]), value


def _summary(
    points: Points, theta: np.ndarray, value: float, resamples_R5: np.ndarray, scale_name: str, at_flops: float
) -> dict[str, object]:
    centre = points.constants(theta[None])[0]
    law, factor = Surface.of(centre), FLOPS_FACTOR[scale_name]
    result: dict[str, object] = dict(zip(CONSTANTS, map(float, centre)))
    result["a"] = law.beta / (law.alpha + law.beta)
    result["ln_A"], result["ln_B"] = float(np.log(law.A)), float(np.log(law.B))
    result["objective"] = value
    result["objective_mean_x1e6"] = 1e6 * value / len(points.loss)
    optimum: dict[str, object] = dict(zip(("scale", "tokens", "loss"), law.optimum(at_flops, factor)))
    result["optimum"] = optimum | {"total_flops": at_flops}
    if not len(resamples_R5):
        return result
    constants = points.constants(resamples_R5)
    spread = dict(zip(CONSTANTS, constants.T))
    spread |= {"a": constants[:, 4] / (constants[:, 3] + constants[:, 4])}
    spread |= {"ln_A": np.log(constants[:, 1]), "ln_B": np.log(constants[:, 2])}
    result["bootstrap_sd"] = {name: float(values.std(ddof=1)) for name, values in spread.items()}
    result["interval_95"] = {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in spread.items()}
    order = ("E", "ln_A", "ln_B", "alpha", "beta")
    stacked = np.stack([spread[name] for name in order])
    result["covariance"] = {"order": list(order), "matrix": np.cov(stacked).tolist()}
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant held at its bound has no variance
        result["correlation"] = {"order": list(order), "matrix": np.corrcoef(stacked).tolist()}
    best = np.array([Surface.of(row).optimum(at_flops, factor) for row in constants])
    intervals = np.percentile(best, [2.5, 97.5], axis=0).T.tolist()
    result["optimum"]["interval_95"] = dict(zip(("scale", "tokens", "loss"), intervals))
    return result


def _boundary_warnings(name: str, theta: np.ndarray, objective: Objective) -> list[str]:
    found = []
    for index, constant in enumerate(CONSTANTS):
        low, high = objective.lower[index], objective.upper[index]
        if min(theta[index] - low, high - theta[index]) < 1e-6:
            state = (
                f"= {theta[index]:.3g} stands at the edge of its range" if index >= 3 else "is at its bound (near 0)"
            )
            found.append(f"surface.{name}: {constant} {state}; the data does not fix it, add budgets or sizes")
    return found
