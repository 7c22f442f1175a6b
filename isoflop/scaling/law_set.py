"""All laws of one's own sweep on joint bootstrap resamples: records -> the dictionary that `laws.json` holds.

Row i of every list in `resamples` comes from resample i, so that whoever plans can carry the joint uncertainty to the
decision. A resample weighs the settings anew (random weights of mean 1: the Bayesian bootstrap, which never loses the
third size of a small budget); their variance is n/(n - 5), which makes up for what five constants hide of the noise of
n cells. On made-up sweeps of 20 to 30 cells each law's 90% interval then held the truth in about 90% of cases; adding
noise to the losses as well doubled the variance for nothing. One rehearsal is kept: without the largest budget,
predict its cells near the optimum.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.scaling.checks import fit_rows, import_checks
from isoflop.scaling.hyper import fit_hyper
from isoflop.scaling.isoflop_curve import (
    Budget,
    choose_interpolation,
    group_budgets,
    resampled_vertices,
    vertex_table,
)
from isoflop.scaling.pooled_curve import PooledCurve, fit_pooled
from isoflop.scaling.power_law import fit_allocation, lines
from isoflop.scaling.records import RunRecord
from isoflop.scaling.solver import Objective, minimise
from isoflop.scaling.surface import CONSTANTS, FLOPS_FACTOR, Points, Surface, fit_centre, make_objective, surface_points
from isoflop.scaling.table import Table

logger = logging.getLogger(__name__)

LAW = "law set"
SURFACES = ("log_huber", "raw_huber", "mse", "varpro")
RESAMPLED = ("log_huber", "varpro")
SMALL_SWEEP_EXPONENTS = (0.05, 1.5)  # assumption: keeps five constants from running away on twenty cells
LEAST_CELLS, LEAST_BUDGETS = 9, 3


def fit_law_set(
    records: Table | Sequence[RunRecord],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    loss: str | None = None,
    scale: str | None = None,
    hyper: bool = True,
) -> dict[str, Any]:
    """Fit every law to the cells of a sweep, with joint resamples, noise, and a rehearsal without the largest budget.

    Targets and runs that diverged or were not cooled are left out and named in `warnings`. `loss` is bits_per_byte
    where the records have it, `scale` flops_per_token; without them loss_nats and n_params.

    Raises:
        FitError: fewer than 9 cells or 3 budgets with three sizes.
    """
    table = records if isinstance(records, Table) else Table.from_records(records)
    scale = scale or ("flops_per_token" if table.has("flops_per_token") else table.scale(LAW)[0])
    loss = loss or ("bits_per_byte" if table.has("bits_per_byte") else table.loss(LAW)[0])
    table, warnings = _cells(table, scale, loss)
    budgets, thin = _budgets(table, scale, loss)
    warnings += thin
    rows = np.sort(np.concatenate([budget.rows for budget in budgets]))
    if len(rows) < table.n_rows:
        table = table.select(rows)
        budgets, _ = _budgets(table, scale, loss)
    points = surface_points(table, loss=loss, scale=scale)
    generator = np.random.default_rng(seed)

    centres = {name: _surface_centre(points, name) for name in SURFACES}
    relative_sd = _noise(points, centres["mse"][0])
    flops = np.array([budget.total_flops for budget in budgets])
    compute = FLOPS_FACTOR[scale] * points.scale * points.tokens
    pooled = fit_pooled(compute, points.scale, points.loss, points.weight[None])

    n_cells = len(points.loss)
    weight_RS = _joint_weights(points, generator, bootstrap)
    resamples: dict[str, Any] = {}
    surfaces: dict[str, Any] = {}
    for name, (theta, value, _) in centres.items():
        surfaces[name] = _surface_entry(points, theta, value)
        if bootstrap and name in RESAMPLED:
            rows_R5 = _resample_surface(points, name, theta, weight_RS)
            resamples[f"surface_{name}"] = rows_R5.tolist()
            surfaces[name] |= _spread(CONSTANTS, rows_R5)
    lstar = dict(zip("Ekg", pooled.lstar()[0].tolist())) | {"reference_flops": 1.0}
    if bootstrap:
        moved = fit_pooled(compute, points.scale, points.loss, weight_RS, start=pooled)
        resamples["lstar"] = moved.lstar().tolist()
        lstar |= _spread("Ekg", moved.lstar())
    else:
        moved = None
    parabola, allocation, notes = _allocation(budgets, flops, pooled, moved, weight_RS)
    resamples |= allocation
    warnings += notes
    laws: dict[str, Any] = {
        "law_set": 1,
        "scale": scale,
        "loss": loss,
        "n_runs": n_cells,
        "budgets": [budget.budget_flops for budget in budgets],
        "largest_budget_flops": float(compute.max()),
        "conventions": _conventions(records, table, scale, loss),
        "surface": surfaces,
        "parabola": parabola,
        "lstar": lstar,
        "noise": {"relative_sd": relative_sd, "degrees_of_freedom": n_cells - 5},
        "resamples": resamples,
        "bootstrap": {"resamples": bootstrap, "seed": seed, "group": "cell, jointly for all laws"},
        "leave_out": _rehearsal(points, budgets, scale),
        "warnings": warnings,
    }
    if hyper and table.has("learning_rate"):
        fitted = _hyper(table, seed, bootstrap)
        if fitted is not None:
            laws["hyper"] = fitted
    return laws


def _cells(table: Table, scale: str, loss: str) -> tuple[Table, list[str]]:
    warnings = []
    if "kind" in table.columns and table.columns["kind"].dtype.kind == "U":
        target = table.columns["kind"] == "target"
        if target.any():
            warnings.append(f"{int(target.sum())} target runs left out: a law is not fitted to what it predicts")
            table = table.select(~target)
    table, left_out = fit_rows(table, [name for name in (scale, "n_tokens", "total_flops", loss) if table.has(name)])
    return table, import_checks(table) + warnings + left_out


def _budgets(table: Table, scale: str, loss: str) -> tuple[list[Budget], list[str]]:
    budgets = group_budgets(table, LAW, loss=loss, scale=scale)
    fine = [budget for budget in budgets if budget.n_sizes >= 3]
    warnings = [
        f"budget {budget.budget_flops:.4g} left out: {budget.n_sizes} finished sizes, a vertex needs three: add sizes"
        for budget in budgets
        if budget.n_sizes < 3
    ]
    n_cells = sum(len(budget.rows) for budget in fine)
    if len(fine) < LEAST_BUDGETS or n_cells < LEAST_CELLS:
        raise FitError(
            f"{LAW}: {len(fine)} budgets with at least three sizes ({n_cells} finished cells) must be at least "
            f"{LEAST_BUDGETS} and {LEAST_CELLS}; {'; '.join(warnings) or 'sweep more budgets'}"
        )
    return fine, warnings


def _objective(points: Points, name: str) -> Objective:
    objective = make_objective(points, name)
    low, high = SMALL_SWEEP_EXPONENTS
    objective.lower[3:], objective.upper[3:] = low, high
    return objective


def _surface_centre(points: Points, name: str) -> tuple[np.ndarray, float, int]:
    """Within bounds for small sweeps; varpro goes through the descent, which knows them (the minimum is the same)."""
    return fit_centre(points, "mse" if name == "varpro" else name, _objective(points, name))


def _surface_entry(points: Points, theta: np.ndarray, value: float) -> dict[str, Any]:
    constants = dict(zip(CONSTANTS, points.constants(theta[None])[0].tolist()))
    share = constants["beta"] / (constants["alpha"] + constants["beta"])
    return constants | {"a": share, "objective": value, "objective_mean_x1e6": 1e6 * value / len(points.loss)}


def _resample_surface(points: Points, name: str, theta: np.ndarray, weight_RS: np.ndarray) -> np.ndarray:
    """Constants of every resample, shape R5, each started at the centre."""
    found, _, _ = minimise(_objective(points, name), np.tile(theta, (len(weight_RS), 1)), weight_RS)
    return points.constants(found)


def _noise(points: Points, theta: np.ndarray) -> float:
    """Relative standard deviation of one run around the least-squares surface, with its five constants counted."""
    law = Surface(*points.constants(theta[None])[0])
    residual = points.loss / law.loss(points.scale, points.tokens) - 1
    return float(np.sqrt((residual**2).sum() / max(len(residual) - 5, 1)))


def _joint_weights(points: Points, generator: np.random.Generator, bootstrap: int) -> np.ndarray:
    """Weights of mean 1 per setting, the same for every law; equal settings (seeds) move together."""
    n_settings = int(points.setting.max()) + 1
    shape = max(1 - len(CONSTANTS) / n_settings, 0.25)  # variance 1 / shape
    drawn = generator.gamma(shape, 1 / shape, size=(bootstrap, n_settings))
    return drawn[:, points.setting] * points.weight


def _spread(names: Sequence[str], rows: np.ndarray) -> dict[str, Any]:
    return {
        "bootstrap_sd": dict(zip(names, rows.std(0, ddof=1).tolist())),
        "interval_95": dict(zip(names, np.percentile(rows, [2.5, 97.5], axis=0).T.tolist())),
    }


def _allocation(
    budgets: list[Budget],
    flops: np.ndarray,
    pooled: PooledCurve,
    moved: PooledCurve | None,
    weight_RS: np.ndarray,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Parabola vertices and M*(C), D*(C); where too few vertices lie inside, the pooled curve gives the law."""
    method, reason = choose_interpolation(budgets, "parabola")
    vertices, warnings = vertex_table(budgets, method)
    used = [index for index, vertex in enumerate(vertices) if vertex["used"]]
    parabola: dict[str, Any] = {"vertices": vertices, "interpolation": f"{method} ({reason})", "source": "vertices"}
    resamples: dict[str, Any] = {}
    if len(used) < LEAST_BUDGETS:
        warnings.append(
            f"vertex outside the tested range in {len(vertices) - len(used)} of {len(vertices)} budgets: the "
            "allocation comes from all curves fitted together; add sizes on the side the vertices lie"
        )
        parabola["source"] = "pooled curve"
        centre = pooled.allocation()[0]
        parabola |= {"n_coefficient": centre[0], "n_exponent": centre[1]}
        factor = float(np.mean([b.total_flops / np.mean(b.scale * b.tokens) for b in budgets]))
        parabola |= {"d_coefficient": 1 / (factor * centre[0]), "d_exponent": 1 - centre[1]}
        if moved is not None:
            rows = moved.allocation()
            resamples["n_allocation"] = rows.tolist()
            resamples["d_allocation"] = np.stack([1 / (factor * rows[:, 0]), 1 - rows[:, 1]], axis=1).tolist()
        return parabola, resamples, warnings
    draws = resampled_vertices([budgets[i] for i in used], weight_RS)
    for letter, key, part in (("n", "scale_opt", 0), ("d", "tokens_opt", 1)):
        best = np.array([vertices[i][key] for i in used])
        ones = np.ones_like(draws[part])
        parabola |= fit_allocation(flops[used], best, letter, draws_RB=draws[part], weight_RB=ones)
        slope, intercept = lines(np.log10(flops[used]), draws[part], ones)
        if len(weight_RS):
            resamples[f"{letter}_allocation"] = np.stack([10**intercept, slope], axis=1).tolist()
    return parabola, resamples, warnings


def _rehearsal(points: Points, budgets: list[Budget], scale: str) -> dict[str, Any] | None:
    """Fit without the largest budget, predict its cells near the optimum; None with fewer than four budgets.

    Judged on the mean of the half of its cells (at least three) that were predicted to be best: choosing by what was
    measured would pick the luckiest run and call its luck a miss.
    """
    if len(budgets) <= LEAST_BUDGETS:
        return None
    largest = budgets[-1]
    keep = np.setdiff1d(np.arange(len(points.loss)), largest.rows)
    part = Points(*(getattr(points, name)[keep] for name in ("scale", "tokens", "loss", "weight", "setting")))
    held_scale, held_tokens = points.scale[largest.rows], points.tokens[largest.rows]
    predicted = []
    for name in RESAMPLED:
        theta, _, _ = _surface_centre(part, name)
        law = Surface(*part.constants(theta[None])[0], scale=scale)
        predicted.append(np.asarray(law.loss(held_scale, held_tokens)))
    factor = FLOPS_FACTOR[scale]
    pooled = fit_pooled(factor * part.scale * part.tokens, part.scale, part.loss, part.weight[None])
    spent = factor * held_scale * held_tokens
    predicted.append(np.array([float(pooled.loss(c, m)[0]) for c, m in zip(spent, held_scale)]))
    order = np.argsort(np.mean(predicted, axis=0))[: max(3, len(held_scale) // 2)]
    by_law = [float(values[order].mean()) for values in predicted]
    centre, measured = float(np.mean(by_law)), float(points.loss[largest.rows][order].mean())
    return {
        "budget_flops": largest.budget_flops,
        "n_cells": len(order),
        "predicted": centre,
        "measured": measured,
        "relative_error": centre / measured - 1,
        "extrapolation_factor": largest.total_flops / budgets[-2].total_flops,
        "by_law": dict(zip(("surface_log_huber", "surface_varpro", "lstar"), by_law)),
    }


def _conventions(records: Table | Sequence[RunRecord], table: Table, scale: str, loss: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if not isinstance(records, Table):
        given = next((dict(record.conventions) for record in records if record.conventions), {})
    return {
        **given,
        **table.conventions,
        "compute": "C = M D, M = flops_per_token" if scale == "flops_per_token" else "C = 6 N D",
        "loss_column": loss,
        "surface": "L = E + A/N^alpha + B/D^beta, exponents within 0.05 to 1.5",
        "lstar": "L* = E + k C^-g, bottoms of all IsoFLOP curves fitted together",
    }


def _hyper(table: Table, seed: int, bootstrap: int) -> dict[str, Any] | None:
    """The hyper-parameter law, where the sweep varied them; a ladder that follows a prior law has nothing to fit."""
    grids = np.unique(
        np.stack([table.columns["learning_rate"], table.columns.get("batch_tokens", table.weights())]), axis=1
    )
    if grids.shape[1] < 3:
        return None
    try:
        return fit_hyper(table, bootstrap=bootstrap, seed=seed)
    except FitError as error:
        logger.info("no hyper-parameter law from this sweep: %s", error)
        return None
