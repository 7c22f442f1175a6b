"""The three-term law L(N, D) = E + A/N^alpha + B/D^beta: fitted by four objectives, with bootstrap intervals.

The objectives answer different questions, so they stand side by side: `log_huber` (Hoffmann's: typical relative error,
robust), `raw_huber` and `mse` (more weight on high losses), `varpro` (least squares as a search over the two exponents
alone, the other three constants by non-negative least squares). N is parameters or FLOPs per token; C = factor N D.

Source: Hoffmann et al. 2022, approach 3 (arXiv 2203.15556); Besiroglu et al. 2024 for the sum instead of the mean
(arXiv 2404.10102); Czech 2026 for variable projection (arXiv 2603.22339).
"""

import dataclasses
import itertools
import logging
from typing import Any

import numpy as np
import scipy.optimize

from isoflop.errors import FitError
from isoflop.scaling.fit.optimise import EXPONENT_BOUNDS, HUBER_DELTA, Objective, minimise
from isoflop.scaling.fit.table import Table

logger = logging.getLogger(__name__)

OBJECTIVES = ("log_huber", "raw_huber", "mse", "varpro")
CONSTANTS = ("E", "A", "B", "alpha", "beta")
FLOPS_FACTOR = {"n_params": 6.0, "flops_per_token": 1.0}
START_EXPONENTS = (0.1, 0.25, 0.4, 0.6, 0.9, 1.4)
START_FLOORS = (0.1, 0.5, 0.8, 0.95)  # E as a share of the lowest loss
SCOUTING_STEPS, FINALISTS = 40, 24  # every start goes some way, the best go to the end
RESAMPLE_TOLERANCE = 1e-9  # relative gain per step below which a resample is done; the centre uses 1e-12
LARGE_RESIDUAL_SD = 8.0  # assumption: robust standard deviations beyond which a run is named as suspect


@dataclasses.dataclass(frozen=True)
class Surface:
    """Constants of one three-term law; `scale` says what N is."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    scale: str = "n_params"

    def loss(self, scale: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Predicted loss at a model scale and a number of tokens."""
        return self.E + self.A * np.asarray(scale) ** -self.alpha + self.B * np.asarray(tokens) ** -self.beta

    def optimum(self, total_flops: float) -> tuple[float, float, float]:
        """The best model scale and tokens at a compute, and the loss there.

        Source: scaling-laws.md section 2: N = G (C/k)^(beta/(alpha+beta)), D = C/(k N), k = 6 for parameters.
        """
        ratio = self.alpha * self.A / (self.beta * self.B)
        product = total_flops / FLOPS_FACTOR[self.scale]  # N D
        scale = ratio ** (1 / (self.alpha + self.beta)) * product ** (self.beta / (self.alpha + self.beta))
        return float(scale), float(product / scale), float(self.loss(scale, product / scale))


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


def surface_points(
    table: Table, *, group: str = "setting", loss: str | None = None, scale: str | None = None
) -> Points:
    """The columns that the surface needs; `group` says what one bootstrap draw is (row, setting or budget)."""
    law = "law surface"
    _, scales = table.scale(law, scale)
    tokens = table.tokens(law)
    _, losses = table.loss(law, loss)
    if group == "row":
        setting = np.arange(len(losses))
    elif group == "setting":
        setting = np.unique(np.stack([scales, tokens]), axis=1, return_inverse=True)[1].reshape(-1)
    elif group == "budget":
        name = "budget_flops" if table.has("budget_flops") else "total_flops"
        setting = np.unique(table.numbers(name, "bootstrap by budget"), return_inverse=True)[1].reshape(-1)
    else:
        raise FitError(f"group = {group!r} must be row, setting or budget; setting (equal N and D) is the default")
    if len(np.unique(scales)) < 3 or len(np.unique(tokens)) < 3 or len(losses) < 6:
        raise FitError(
            f"law surface: {len(losses)} rows with {len(np.unique(scales))} model scales and {len(np.unique(tokens))} "
            "token counts; five constants need at least 6 rows, 3 scales and 3 token counts: add runs"
        )
    if (scales <= 0).any() or (tokens <= 0).any() or (losses <= 0).any():
        raise FitError("law surface: model scale, tokens and loss must be above 0; drop the others with --where")
    return Points(scales, tokens, losses, table.weights(), setting)


def make_objective(points: Points, name: str, **prior: Any) -> Objective:
    """The solver's objective called `name`; varpro minimises the same sum of squares as mse, by another path."""
    low, high = EXPONENT_BOUNDS
    floor, ceiling = np.log(points.loss.min()) - 12.0, np.log(points.loss.max()) + 12.0
    bounds: dict[str, Any] = {
        "lower": np.array([floor, floor, floor, low, low]),
        "upper": np.array([np.log(points.loss.min()) + 1.0, ceiling, ceiling, high, high]),
    }
    delta = HUBER_DELTA if "huber" in name else None
    options = {**bounds, **prior}
    return Objective(points.x, points.y, points.loss, name == "log_huber", delta, **options)


def fit_centre(points: Points, name: str, objective: Objective | None = None) -> tuple[np.ndarray, float, int]:
    """The best minimum over a grid of starts, polished by a second optimiser.

    Returns theta, the objective, and how many of the finalists ended there.
    """
    objective = objective or make_objective(points, name)
    if name == "varpro":
        theta, value = _variable_projection(points)
        return theta, value, 1
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


def fit_surface(
    table: Table,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    group: str = "setting",
    objectives: tuple[str, ...] = OBJECTIVES,
    loss: str | None = None,
    scale: str | None = None,
    at_flops: float | None = None,
) -> dict[str, Any]:
    """Fit the surface by every objective; the JSON of `isoflop fit --law surface` less the import checks.

    Resamples draw settings with replacement, the same draws for all objectives, each started at the centre.

    Raises:
        FitError: a column is missing, or fewer than 6 rows, 3 scales or 3 token counts.
    """
    scale_name = table.scale("law surface", scale)[0]
    points = surface_points(table, group=group, loss=loss, scale=scale)
    draws_RS = draw_settings(points.setting, bootstrap, np.random.default_rng(seed)) * points.weight
    compute = FLOPS_FACTOR[scale_name] * points.scale * points.tokens
    at_flops = at_flops or 10 * float(compute.max())
    fits: dict[str, Any] = {}
    warnings: list[str] = []
    for name in objectives:
        objective = make_objective(points, name)
        theta, value, reached = fit_centre(points, name, objective)
        resamples_R5 = np.empty((0, 5))
        if bootstrap:
            resamples_R5, _, converged = minimise(
                objective, np.tile(theta, (bootstrap, 1)), draws_RS, relative_decrease=RESAMPLE_TOLERANCE
            )
            if not converged.all():
                warnings.append(f"surface.{name}: {int((~converged).sum())} of {bootstrap} resamples did not converge")
        warnings.extend(_boundary_warnings(name, theta, objective))
        fits[name] = _summary(points, theta, value, resamples_R5, scale_name, at_flops)
        fits[name]["finalists_at_minimum"] = reached
    warnings.extend(suspect_rows(table, points, fits[objectives[0]]))
    return {
        "fits": fits,
        "scale": scale_name,
        "n_rows": len(points.loss),
        "n_settings": int(points.setting.max()) + 1,
        "starts": len(START_EXPONENTS) ** 2 * len(START_FLOORS),
        "finalists": FINALISTS,
        "bootstrap": {"resamples": bootstrap, "seed": seed, "group": group},
        "warnings": warnings,
        "conventions": {
            "law": "L = E + A/N^alpha + B/D^beta",
            "N": scale_name,
            "compute": "C = 6 N D" if scale_name == "n_params" else "C = M D, M = flops_per_token",
            "log_huber": "sum of weight x Huber(1e-3) of ln L residuals",
            "raw_huber": "sum of weight x Huber(1e-3) of L residuals; objective_mean_x1e6 is its mean x 1e6",
            "mse": "sum of weight x squared L residuals",
            "varpro": "as mse; search over alpha and beta, non-negative E, A, B inside",
            "objective": "the sum; objective_mean_x1e6 = 1e6 x sum / rows",
        },
    }


def draw_settings(setting: np.ndarray, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each row occurs in each bootstrap resample of whole settings, shape RS."""
    n_settings = int(setting.max()) + 1
    counts = generator.multinomial(n_settings, np.full(n_settings, 1 / n_settings), size=n_resamples)
    return counts[:, setting].astype(float)


def suspect_rows(table: Table, points: Points, fit: dict[str, Any]) -> list[str]:
    """Name the rows that lie far off the fitted surface, in robust standard deviations of ln L."""
    law = Surface(*(fit[name] for name in CONSTANTS))
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


def start_grid(points: Points) -> np.ndarray:
    """A grid over both exponents and E; A and B share what E leaves of the mean loss."""
    rows = []
    for alpha, beta, floor in itertools.product(START_EXPONENTS, START_EXPONENTS, START_FLOORS):
        base = floor * points.loss.min()
        rest = np.log((points.loss.mean() - base) / 2)
        rows.append([np.log(base), rest, rest, alpha, beta])
    return np.array(rows)


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
    best: tuple[float, np.ndarray] | None = None
    for start in sorted(values, key=values.__getitem__)[:3]:
        unit = max(values[start], 1e-300)
        found = scipy.optimize.minimize(
            lambda exponents, unit=unit: project(exponents)[0] / unit,
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 2000},
        )
        value = project(found.x)[0]
        if best is None or value < best[0]:
            best = (value, np.clip(found.x, *EXPONENT_BOUNDS))
    assert best is not None
    linear = project(best[1])[1]
    floor = points.loss.min() * np.exp(-12.0)
    return np.concatenate([np.log(np.maximum(linear, floor)), best[1]]), best[0]


def _summary(
    points: Points, theta: np.ndarray, value: float, resamples_R5: np.ndarray, scale_name: str, at_flops: float
) -> dict[str, Any]:
    centre = points.constants(theta[None])[0]
    law = Surface(*map(float, centre), scale=scale_name)
    result: dict[str, Any] = dict(zip(CONSTANTS, map(float, centre)))
    result["a"] = law.beta / (law.alpha + law.beta)
    result["ln_A"], result["ln_B"] = float(np.log(law.A)), float(np.log(law.B))
    result["objective"] = value
    result["objective_mean_x1e6"] = 1e6 * value / len(points.loss)
    optimum: dict[str, Any] = dict(zip(("scale", "tokens", "loss"), law.optimum(at_flops)))
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
    best = np.array([Surface(*map(float, row), scale=scale_name).optimum(at_flops) for row in constants])
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
