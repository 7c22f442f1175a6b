"""Records and laws files made from a known surface: what tests of fits, prediction, plan and comparison are given."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from isoflop.scaling.fit.parametric import fit_centre, make_objective, minimise, surface_points
from isoflop.scaling.fit.power_law import fit_parabola
from isoflop.scaling.fit.surface import draw_settings
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import CONSTANTS, surface_loss, surface_optimum
from isoflop.scaling.sweep.records import RunRecord

TRUTH = np.array([0.7, 67.0, 210.0, 0.33, 0.36])
"""E, A, B, alpha, beta in bits per byte, with FLOPs per token as the scale."""
BUDGETS = (1e13, 3e13, 1e14, 3e14)


def example_records(
    truth: np.ndarray,
    budgets: Iterable[float],
    spreads: Iterable[float],
    *,
    noise: float = 0.0,
    seed: int = 0,
    worth: float = 1.0,
    off: float = 0.0,
    **fields: Any,
) -> list[RunRecord]:
    """Cells of a sweep at these spreads around the optimum of each budget, which it misses by `off` in ln scale.

    `noise` is relative, of one run; the truth sees `worth` times the compute.
    """
    generator = np.random.default_rng(seed)
    records = []
    for budget in budgets:
        best = float(surface_optimum(truth, budget, 1.0)[0])
        if off:
            best *= np.exp(off * generator.standard_normal())
        for spread in spreads:
            scale, tokens = best * spread, budget / (best * spread)
            loss = float(surface_loss(truth, scale * worth**0.5, tokens * worth**0.5))
            loss *= 1 + noise * generator.standard_normal()
            own = {"budget_flops": budget, "total_flops": budget, "flops_per_token": scale, "n_tokens": int(tokens)}
            own |= {"bits_per_byte": loss, "learning_rate": 1e-3, "batch_tokens": 4096, "cooled": True}
            records.append(RunRecord(f"{budget:.3g}-{spread:.3g}", **own, **fields))
    return records


def example_laws(
    truth: np.ndarray = TRUTH,
    *,
    budgets: tuple[float, ...] = BUDGETS,
    noise: float = 0.003,
    rows: int = 300,
    seed: int = 0,
    data_gain: float = 1.0,
    **extra: Any,
) -> dict[str, Any]:
    """A laws file as if cells around the optimum of `truth` had been run with this relative noise.

    Every resample draws its own noise and solves for E, A, B at slightly moved exponents: constants are correlated as
    in a real bootstrap. `data_gain` multiplies the compute that the truth sees (a better corpus is worth that much).
    """
    generator = np.random.default_rng(seed)
    best = surface_optimum(truth, np.array(budgets), 1.0)[0]
    scales = np.outer(best, [0.4, 0.63, 1.0, 1.6, 2.5]).ravel()
    tokens = np.repeat(budgets, 5) / scales
    losses = surface_loss(truth, scales * np.sqrt(data_gain), tokens * np.sqrt(data_gain))

    def solve(values: np.ndarray, alpha: float, beta: float) -> list[float]:
        design = np.stack([np.ones_like(scales), scales**-alpha, tokens**-beta], axis=1)
        unit = np.abs(design).max(axis=0)
        E, A, B = np.linalg.lstsq(design / unit, values, rcond=None)[0] / unit
        return [float(E), float(A), float(B), alpha, beta]

    draws: dict[str, list[list[float]]] = {"surface_log_huber": [], "surface_varpro": [], "lstar": []}
    allocations: dict[str, list[list[float]]] = {"n_allocation": [], "d_allocation": []}
    for _ in range(rows):
        noisy = losses * (1 + noise * generator.standard_normal(len(losses)))
        for name in ("surface_log_huber", "surface_varpro"):
            # The exponents stay close to the truth: a real fit moves them more, together with A and B.
            moved = truth[3:] * (1 + 2 * noise * generator.standard_normal(2))
            draws[name].append(solve(noisy, float(moved[0]), float(moved[1])))
        row = np.array(draws["surface_log_huber"][-1])
        draws["lstar"].append(_lstar(row, budgets))
        a = float(row[4] / (row[3] + row[4]))
        coefficient = float(surface_optimum(row, 1.0, 1.0)[0])
        allocations["n_allocation"].append([coefficient, a])
        allocations["d_allocation"].append([1 / coefficient, 1 - a])
    center = solve(losses, float(truth[3]), float(truth[4]))
    a = center[4] / (center[3] + center[4])
    coefficient = float(surface_optimum(np.array(center), 1.0, 1.0)[0])
    optima = {budget: surface_optimum(np.array(center), budget, 1.0) for budget in budgets}
    vertices = [
        {"budget_flops": budget, "inside": True, "scale_opt": float(scale), "tokens_opt": float(n_tokens)}
        | {"loss": float(surface_loss(np.array(center), scale, n_tokens))}
        for budget, (scale, n_tokens) in optima.items()
    ]
    return {
        "law_set": 1,
        "scale": "flops_per_token",
        "loss": "bits_per_byte",
        "n_runs": len(losses),
        "budgets": list(budgets),
        "largest_budget_flops": budgets[-1],
        "held_out_sha256": "e" * 64,
        "held_out_bytes": 178_000,
        "conventions": {"flops": "M D", "schedule": "constant_cooldown", "tokenizer_sha256": "f" * 64},
        "surface": {"log_huber": dict(zip(CONSTANTS, center)), "varpro": dict(zip(CONSTANTS, center))},
        "parabola": {
            "n_exponent": a,
            "n_coefficient": coefficient,
            "d_exponent": 1 - a,
            "d_coefficient": 1 / coefficient,
            "vertices": vertices,
        },
        "lstar": dict(zip(("E", "k", "g"), _lstar(np.array(center), budgets))),
        "noise": {"relative_sd": noise},
        "resamples": {**draws, **allocations},
        "leave_out": {
            "budget_flops": budgets[-1],
            "predicted": 1.5,
            "measured": 1.5 * (1 + noise),
            "relative_error": -noise,
            "extrapolation_factor": budgets[-1] / budgets[-2],
        },
        "warnings": [],
        **extra,
    }


def _lstar(constants: np.ndarray, budgets: tuple[float, ...]) -> list[float]:
    """E + k C^-g through the optima of a surface, with the surface's own E."""
    compute = np.array(budgets)
    reducible = surface_loss(constants, *surface_optimum(constants, compute, 1.0)) - constants[0]
    slope, intercept = np.polyfit(np.log(compute), np.log(reducible), 1)
    return [float(constants[0]), float(np.exp(intercept)), float(-slope)]


def fitted_laws(table: Table, *, rows: int = 200, seed: int = 0, **extra: Any) -> dict[str, Any]:
    """A laws file fitted to a table of real IsoFLOP runs (n_params, n_tokens, total_flops, loss_nats)."""
    points = surface_points(table)
    draws_RS = draw_settings(points.setting, rows, np.random.default_rng(seed)) * points.weight
    surface, resamples = {}, {}
    for name in ("log_huber", "varpro"):
        objective = make_objective(points, name)
        theta = fit_centre(points, name, objective)[0]
        surface[name] = dict(zip(CONSTANTS, points.constants(theta[None])[0].tolist()))
        moved = minimise(objective, np.tile(theta, (rows, 1)), draws_RS)[0]
        resamples[f"surface_{name}"] = points.constants(moved).tolist()
    curves = fit_parabola(table, bootstrap=0)[0].found
    used = [vertex for vertex in curves["vertices"] if vertex["used"]]
    flops = np.array([vertex["total_flops"] for vertex in used])
    residual = np.log(points.loss) - np.log(
        surface_loss(np.array(list(surface["log_huber"].values())), points.scale, points.tokens)
    )
    return {
        "law_set": 1,
        "scale": "n_params",
        "loss": "loss_nats",
        "budgets": sorted(flops.tolist()),
        "largest_budget_flops": float(flops.max()),
        "conventions": {},
        "surface": surface,
        "parabola": {key: curves[key] for key in ("n_exponent", "n_coefficient", "d_exponent", "d_coefficient")},
        "noise": {"relative_sd": float(residual.std())},
        "resamples": resamples,
        "warnings": [],
        **extra,
    }
