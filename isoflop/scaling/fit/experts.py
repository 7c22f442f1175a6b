"""Laws with experts, fitted: a table of runs of several expert counts goes in, each form's constants come out.

`fit_experts` is `isoflop fit --law experts`. Every form of isoflop.scaling.fit.expert_forms that the columns allow is
fitted to ln loss by least squares from a grid of starts, with bootstrap intervals. Published constants are the priors:
those that a table cannot fix (saturation from three expert counts, say) are held at their published values and named.

Columns: loss; n_params_active (or n_params); n_tokens; n_experts with n_active and n_shared (absent: one active, none
shared), or activated_share; granularity, or d_model and d_expert. A row without experts is dense.
"""

import dataclasses
import itertools

import numpy as np

from isoflop.errors import FitError
from isoflop.scaling.fit.expert_forms import FORMS, PUBLISHED_FORMS, Form, Runs, leverage_at
from isoflop.scaling.fit.expert_runs import (
    LAW,
    SAME,
    SAME_CUT,
    distinct_values,
    near,
    read_runs,
    rows_for,
    undetermined,
)
from isoflop.scaling.fit.one_law import OneLaw
from isoflop.scaling.fit.solver import least_squares
from isoflop.scaling.fit.table import Table

PRIORS = {"clark": "clark_sbase", "joint": "joint", "granularity": "granularity", "leverage": "ling_leverage"}
"""Whose constants stand in for those that a table does not fix."""


def fit_experts(table: Table, *, form: str, bootstrap: int = 1000, seed: int = 0) -> OneLaw:
    """Fit one form, or every form that the table allows.

    Returns `fits` by form: constants, `rmse_log10`, `rmse_ln`, `interval_95`, `bootstrap_sd`, `held` (constants that
    stayed at published values), `published`; of the leverage also `leverage`, one row per kind of mixture. What was
    not fitted is in `skipped`, with the reason.

    Raises:
        FitError: unknown form, no column of experts, or no form that the runs can carry.
    """
    if form and form not in FORMS:
        raise FitError(f"form = {form!r} must be one of {', '.join(FORMS)}, or empty for every form")
    loss_name, losses = table.loss(LAW)
    runs, conventions = read_runs(table)
    if np.ptp(runs.n_experts) < SAME:
        raise FitError(
            f"{LAW}: all {len(losses)} rows have {runs.n_experts[0]:g} experts per active one; a law of experts needs "
            "at least two kinds, for example a dense sweep beside a mixture: give both tables"
        )
    fits: dict[str, dict[str, object]] = {}
    skipped: dict[str, str] = {}
    warnings: list[str] = []
    for name in [form] if form else list(FORMS):
        used = rows_for(FORMS[name], table, runs, losses)
        if isinstance(used, str):
            if form:
                raise FitError(f"{LAW}, form {name}: {used}")
            skipped[name] = used
            continue
        own_runs, own_losses, weight, notes = used
        fit = fit_form(FORMS[name], own_runs, own_losses, weight=weight, bootstrap=bootstrap, seed=seed)
        fits[name] = fit.found
        warnings += [f"{name}: {note}" for note in (*notes, *fit.warnings)]
    if not fits:
        raise FitError(f"{LAW}: no form can be fitted: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    found: dict[str, object] = {"fits": fits, "skipped": skipped, "n_rows": len(losses)}
    found["bootstrap"] = {"resamples": bootstrap, "seed": seed, "group": "row, by weights of mean 1"}
    dense = runs.n_experts < 1 + SAME
    if "clark" in fits and len(np.unique(runs.n_params[dense])) >= 3:
        slope, level = np.polyfit(np.log10(runs.n_params[dense]), np.log10(losses[dense]), 1)
        found["dense"] = {"exponent": float(slope), "log10_coefficient": float(level), "n_rows": int(dense.sum())}
    conventions = {**conventions, "loss": loss_name, "residual": "ln loss, least squares"}
    conventions["E"] = "(n_experts + n_shared) / (n_active + n_shared), dense 1; A = 1 / E"
    return OneLaw(found, warnings, conventions)


def fit_form(form: Form, runs: Runs, losses: np.ndarray, *, weight: np.ndarray, bootstrap: int, seed: int) -> OneLaw:
    """Constants of one form with intervals. Resamples weigh the rows anew (see isoflop.scaling.fit.joint)."""
    n, d, c = (
        float(np.log(getattr(runs, name)).mean()) if name in form.needs else 0.0
        for name in ("n_params", "n_tokens", "total_flops")
    )
    runs = dataclasses.replace(runs, centre=(n, d, c))
    ln_loss = np.log(losses)
    prior = PUBLISHED_FORMS[PRIORS[form.name]]
    held = undetermined(form, runs)
    free = np.array([name not in held for name in form.constants])
    starts = _starts(form, runs, losses, prior.constants)
    bounds = lower, upper = np.array(form.lower), np.array(form.upper)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return form.log_loss(theta, runs) - ln_loss

    scouted, cost = least_squares(
        residuals, starts, weight[None], free=free, max_steps=40, relative_decrease=1e-6, bounds=bounds
    )
    best = scouted[np.argsort(cost, kind="stable")[:6]]
    finished, cost = least_squares(residuals, best, weight[None], free=free, max_steps=600, bounds=bounds)
    theta = finished[int(cost.argmin())]
    constants = form.natural(theta[None], runs.centre)[0]
    rmse = float(np.sqrt((residuals(theta[None])[0].real ** 2).mean()))
    result: dict[str, object] = {
        "formula": form.formula,
        **dict(zip(form.constants, map(float, constants))),
        "n_rows": len(losses),
        "rmse_ln": rmse,
        "rmse_log10": rmse / float(np.log(10)),
        "held": {name: float(constants[form.constants.index(name)]) for name in held},
        "published": {"name": prior.name, "source": prior.source, "grade": prior.grade, **prior.constants},
    }
    notes = [f"{name} held at {prior.name}'s value: {reason}" for name, reason in held.items()]
    notes += [
        f"{name} stands at the edge of its range; the runs do not fix it"
        for index, name in enumerate(form.constants)
        if free[index] and min(theta[index] - lower[index], upper[index] - theta[index]) < 1e-6
    ]
    resamples = np.empty((0, len(theta)))
    if bootstrap:
        # Random weights of mean 1 and variance n / (n - p): the Bayesian bootstrap with the constants counted.
        shape = max(1 - int(free.sum()) / len(losses), 0.25)
        weight_RS = np.random.default_rng(seed).gamma(shape, 1 / shape, size=(bootstrap, len(losses))) * weight
        moved, _ = least_squares(residuals, np.tile(theta, (bootstrap, 1)), weight_RS, free=free, bounds=bounds)
        resamples = form.natural(moved, runs.centre)
        low_high = np.percentile(resamples, [2.5, 97.5], axis=0).T
        result["interval_95"] = dict(zip(form.constants, low_high.tolist()))
        result["bootstrap_sd"] = dict(zip(form.constants, resamples.std(0, ddof=1).tolist()))
    if form.name == "leverage":
        result["leverage"] = _leverage_rows(runs, constants[3:], resamples[:, 3:])
    return OneLaw(result, notes)


def _starts(form: Form, runs: Runs, losses: np.ndarray, published: dict[str, float]) -> np.ndarray:
    """A grid of internal starts; constants that only a source knows start, and may stay, there."""
    low, mean = float(losses.min()), float(losses.mean())
    ends = (
        np.log(published.get("E_start", 2.0)),
        np.log(published.get("E_max", 300.0) / published.get("E_start", 2.0)),
    )
    rows = []
    if form.name == "clark":
        for start, span in itertools.chain([ends], itertools.product((0.0, 0.7, 1.5), (3.0, 5.0, 7.0))):
            rows.append([-0.08, -0.04, 0.01, np.log10(mean), start, span])
        if "E_start" in undetermined(form, runs):
            rows = rows[:1]
    elif form.name == "joint":
        for alpha, beta, floor in itertools.product((-0.1, -0.25, -0.45), (-0.1, -0.25, -0.45), (0.1, 0.5, 0.85)):
            rest = np.log((mean - floor * low) / 2)
            rows.append([rest, -0.1, alpha, 0.0, rest, -0.1, beta, 0.0, np.log(floor * low), *ends])
    elif form.name == "granularity":
        for alpha, beta, floor in itertools.product((0.1, 0.25, 0.45), (0.1, 0.25, 0.45), (0.1, 0.5, 0.85)):
            rest = np.log((mean - floor * low) / 2)
            rows.append([rest, rest - 1.5, published["gamma"], alpha, rest, beta, np.log(floor * low)])
    else:
        exponent = published["a0"] + published["a1"] * runs.centre[2] / np.log(10)
        shape = [published["a1"], published["gamma"], published["beta"], np.log(published["A_start"])]
        for floor, g, shift in itertools.product((0.1, 0.4, 0.7, 0.9), (0.05, 0.12, 0.25), (0.0, -0.3)):
            rows.append([np.log(floor * low), np.log(mean - floor * low), g, exponent + shift, *shape])
    return np.array(rows, dtype=float)


def _leverage_rows(runs: Runs, constants: np.ndarray, resamples: np.ndarray) -> list[dict[str, object]]:
    """EL of each kind of mixture in the table at its largest compute; constants as `leverage_at` takes them."""
    rows = []
    mixture = runs.n_experts > 1 + SAME
    for experts in distinct_values(runs.n_experts[mixture]):
        of_experts = mixture & near(runs.n_experts, experts)
        for granularity in distinct_values(runs.granularity[of_experts], SAME_CUT):
            mine = of_experts & near(runs.granularity, granularity, SAME_CUT)
            flops = float(runs.total_flops[mine].max())
            row: dict[str, object] = {
                "activated_share": 1 / experts,
                "granularity": granularity,
                "total_flops": flops,
                "leverage": float(leverage_at(constants, 1 / experts, granularity, flops)),
            }
            if len(resamples):
                draws = leverage_at(resamples, 1 / experts, granularity, flops)
                row["interval_95"] = np.percentile(draws, [2.5, 97.5]).tolist()
            rows.append(row)
    return rows
