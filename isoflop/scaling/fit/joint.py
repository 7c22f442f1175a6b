"""All laws of one set of runs on joint bootstrap resamples: runs -> `Laws`.

Where the runs are IsoFLOP curves, the laws see only sizes near the optimum of each budget: far from it the three-term
law bends otherwise than the runs, and its E pays for it. A law goes through the bottoms of the curves, one through all
curves at once, and two surfaces through the runs. Other tables have the surfaces alone, through all runs.

Row i of all resamples weighs the runs alike, and rehearsals are kept (law_set.py has both, and why E has a prior).
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from isoflop.errors import FitError
from isoflop.recipe import NotNegativeInt, Seed, check_arguments
from isoflop.scaling.fit.checks import check_resamples, families, fit_rows, held_out, import_checks
from isoflop.scaling.fit.isoflop import NEAR, Budget, fit_allocation, group_budgets, near_optimum, resampled_vertices
from isoflop.scaling.fit.law_set import (
    LEAST_BUDGETS,
    LEAST_RUNS,
    LEAST_VALUES,
    Centre,
    Sweep,
    find_centre,
    find_rehearsals,
    find_steepening,
    joint_weights,
    resample,
)
from isoflop.scaling.fit.lr_batch import fit_hyper
from isoflop.scaling.fit.parametric import surface_points
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import AT_OPTIMUM, CONSTANTS, FLOPS_FACTOR, Allocation, Laws, LossAtOptimum, Surface
from isoflop.scaling.lr_batch_law import RateBatchFit
from isoflop.scaling.sweep.records import RunRecord

logger = logging.getLogger(__name__)

L = TypeVar("L", Surface, LossAtOptimum)
LAW = "law set"
LEAST_CELLS = 9
CONVENTIONS_OF_CURVES = {
    "lstar": "L* = E + k C^-g, all IsoFLOP curves fitted together",
    "bottoms": "L* = E + k C^-g through the bottoms of the IsoFLOP curves",
    "sizes": f"within {NEAR:g} times the optimal one of each budget",
}


def fit(
    runs: Table | str | Path | Sequence[str | Path] | Sequence[RunRecord] | Sequence[Mapping[str, object]],
    *,
    mapping: str = "",
    bootstrap: NotNegativeInt = 1000,
    seed: Seed = 0,
    loss: str | None = None,
    scale: str | None = None,
    hyper: bool = True,
) -> Laws:
    """Fit every law to the runs of a sweep, with joint resamples, noise, and a rehearsal without the largest budget.

    Runs come as files (CSV or JSONL), records, one mapping per run, or a `Table`. Columns, others with `mapping`
    (ours=theirs,...): flops_per_token or n_params, n_tokens, bits_per_byte or loss_nats, and, where they are known,
    total_flops and budget_flops. Targets and runs that diverged or were not cooled are left out and named in
    `warnings`. `loss` is bits_per_byte where the runs have it, `scale` flops_per_token, unless given.

    Raises:
        DataError: a file is missing or malformed.
        FitError: fewer than 9 cells or 3 budgets with three sizes, cells of several families, a single resample.
    """
    check_arguments(fit, locals())
    check_resamples(bootstrap)
    table = Table.of(runs).map(mapping).latest_of_each_run()
    scale = scale or ("flops_per_token" if table.has("flops_per_token") else table.scale(LAW)[0])
    loss = loss or ("bits_per_byte" if table.has("bits_per_byte") else table.loss(LAW)[0])
    table, warnings = fit_cells(table, scale, loss)
    table, curves, thin = _curves(table, scale, loss)
    budgets = near_optimum(curves)
    rows = np.sort(np.concatenate([budget.rows for budget in budgets])) if budgets else np.arange(table.n_rows)
    if len(rows) < table.n_rows:
        thin.append(f"{table.n_rows - len(rows)} runs of sizes more than {NEAR:g} times off the optimum left out")
        budgets = [budget.among(rows) for budget in budgets]
    sweep = Sweep.of(surface_points(table.select(rows), loss=loss, scale=scale), budgets, scale)  # type: ignore[arg-type]
    points = sweep.points

    centre = find_centre(sweep)
    laws = centre.laws(points, scale=scale, loss=loss)
    resamples: dict[str, np.ndarray] = {}
    weight_RS = joint_weights(points, np.random.default_rng(seed), bootstrap)
    if bootstrap:
        resamples = resample(sweep, centre, weight_RS)
        laws = dataclasses.replace(
            laws,
            surfaces={name: _spread(law, resamples[f"surface_{name}"]) for name, law in laws.surfaces.items()},
            **{name: _spread(getattr(laws, name), resamples[name]) for name in AT_OPTIMUM if name in resamples},
        )
    allocation, moved, notes = _allocation(sweep, centre, resamples, weight_RS)
    resamples.pop("pooled", None)
    rehearsals = find_rehearsals(sweep)
    steepening, steep = find_steepening(sweep, laws)
    prior = sweep.prior(sweep.misfit)
    held_out_sha256, held_out_bytes = held_out(table)
    conventions = {
        "compute": "C = M D, M = flops_per_token" if scale == "flops_per_token" else "C = 6 N D",
        "loss_column": loss,
        "surface": "L = E + A/N^alpha + B/D^beta, exponents within 0.05 to 1.5",
    }
    return dataclasses.replace(
        laws,
        allocation=allocation,
        hyper=_hyper(table, seed, bootstrap) if hyper and table.has("learning_rate") else None,
        noise=sweep.noise,
        rehearsal=rehearsals[-1] if rehearsals else None,
        rehearsals=tuple(rehearsals),
        steepening=steepening,
        resamples=resamples | moved,
        floor_prior={"median": math.exp(prior.mean_R[0]), "sd_of_ln": sweep.floor[1], "unit": loss},
        bootstrap={"resamples": bootstrap, "seed": seed, "group": "cell, jointly for all laws"},
        n_runs=len(points.loss),
        budgets=tuple(budget.budget_flops for budget in budgets),
        largest_budget_flops=float(sweep.compute.max()),
        conventions=table.conventions | conventions | (CONVENTIONS_OF_CURVES if budgets else {}),
        held_out_sha256=held_out_sha256,
        held_out_bytes=held_out_bytes,
        warnings=(*warnings, *thin, *sweep.warnings, *notes, *steep),
        inferences=tuple(table.inferences),
    )


def fit_cells(table: Table, scale: str, loss: str) -> tuple[Table, list[str]]:
    warnings = []
    if "kind" in table.columns and table.columns["kind"].dtype.kind == "U":
        target, control = (table.columns["kind"] == kind for kind in ("target", "control"))
        if target.any():
            warnings.append(f"{int(target.sum())} target runs left out: a law is not fitted to what it predicts")
        table = table.select(~target & ~control)
    kinds = families(table)
    if len(kinds) > 1:
        shown = ", ".join(f"{name} ({count})" for name, count in kinds.items())
        raise FitError(
            f"{LAW}: the records hold {len(kinds)} families of models: {shown}; a law holds for one of them: give the "
            "records of one sweep, and compare the laws of two with isoflop compare"
        )
    table, left_out = fit_rows(table, [name for name in (scale, "n_tokens", "total_flops", loss) if table.has(name)])
    return table, table.warnings + import_checks(table) + warnings + left_out


def _curves(table: Table, scale: str, loss: str) -> tuple[Table, list[Budget], list[str]]:
    """The IsoFLOP curves of a table and their runs; all runs and no curves where most runs lie on none.

    Raises:
        FitError: neither three budgets of three sizes nor eight runs, three sizes and three token counts.
    """
    try:
        budgets = group_budgets(table, LAW, loss=loss, scale=scale)
    except FitError:  # compute without gaps: no budgets
        budgets = []
    fine = [budget for budget in budgets if budget.n_sizes >= LEAST_VALUES]
    n_cells = sum(len(budget.rows) for budget in fine)
    if len(fine) >= LEAST_BUDGETS and n_cells >= max(LEAST_CELLS, table.n_rows / 2):
        warnings = [
            f"budget {one.budget_flops:.4g} left out: {one.n_sizes} finished sizes, a vertex needs three: add sizes"
            for one in budgets
            if one.n_sizes < LEAST_VALUES
        ]
        rows = np.sort(np.concatenate([budget.rows for budget in fine]))
        return table.select(rows), [budget.among(rows) for budget in fine], warnings
    n_sizes, n_counts = len(np.unique(table.scale(LAW, scale)[1])), len(np.unique(table.tokens(LAW)))
    if table.n_rows < LEAST_RUNS or min(n_sizes, n_counts) < LEAST_VALUES:
        raise FitError(
            f"{LAW}: {table.n_rows} finished runs of {n_sizes} sizes and {n_counts} token counts, {len(fine)} budgets "
            f"with at least three sizes ({n_cells} finished cells); at least {LEAST_RUNS} runs, {LEAST_VALUES} sizes "
            f"and {LEAST_VALUES} token counts must be there, or {LEAST_BUDGETS} budgets with {LEAST_CELLS} cells: add "
            "runs"
        )
    return table, [], [f"no IsoFLOP curves ({len(fine)} budgets with three sizes): surfaces through all runs"]


def _spread(law: L, rows: np.ndarray) -> L:
    """A law with the standard deviation and the interval of each of its constants."""
    names = CONSTANTS if isinstance(law, Surface) else "Ekg"
    return dataclasses.replace(
        law,
        bootstrap_sd=dict(zip(names, rows.std(0, ddof=1).tolist())),
        interval_95=dict(zip(names, np.percentile(rows, [2.5, 97.5], axis=0).T.tolist())),
    )


def _allocation(
    sweep: Sweep, centre: Centre, resamples: dict[str, np.ndarray], weight_RS: np.ndarray
) -> tuple[Allocation, dict[str, np.ndarray], list[str]]:
    """M*(C) and D*(C) through the vertices, with resamples and warnings.

    Where too few vertices lie inside, the pooled curve gives the law; without curves, the log-Huber surface.
    """
    used, vertices = sweep.used, tuple(sweep.vertices)
    warnings: list[str] = []
    if len(used) < LEAST_BUDGETS:
        if centre.pooled:
            source, rows = "pooled curve", centre.pooled.allocation()
            moved = resamples.get("pooled", np.empty((0, 2)))
            factor = float(np.mean([b.total_flops / np.mean(b.scale * b.tokens) for b in sweep.budgets]))
            warnings.append(
                f"vertex outside the tested range in {len(vertices) - len(used)} of {len(vertices)} budgets: the "
                "allocation comes from all curves fitted together; add sizes on the side the vertices lie"
            )
        else:
            source, factor = "surface", FLOPS_FACTOR[sweep.scale]
            constants = sweep.points.constants(centre.surfaces["log_huber"][0][None])
            many = resamples.get("surface_log_huber", constants[:0])
            rows, moved = _optimum_law(constants, factor), _optimum_law(many, factor)
        both = np.concatenate([rows, moved])
        of_tokens = np.stack([1 / (factor * both[:, 0]), 1 - both[:, 1]], axis=1)
        law = dict(zip(("n_coefficient", "n_exponent"), both[0].tolist()))
        law |= dict(zip(("d_coefficient", "d_exponent"), of_tokens[0].tolist()))
        found = {"n_allocation": moved, "d_allocation": of_tokens[1:]} if len(moved) else {}
        return Allocation(vertices, "parabola (as asked)", source, **law), found, warnings
    allocation, found = Allocation(vertices, "parabola (as asked)", "vertices"), {}
    flops = np.array([vertex.total_flops for _, vertex in used])
    draws = resampled_vertices([budget for budget, _ in used], weight_RS)
    for letter, key, draws_RB in (("n", "scale_opt", draws[0]), ("d", "tokens_opt", draws[1])):
        best, ones = np.array([getattr(vertex, key) for _, vertex in used]), np.ones_like(draws_RB)
        law, rows = fit_allocation(flops, best, letter, draws_RB=draws_RB, weight_RB=ones)
        allocation = dataclasses.replace(allocation, **law)  # type: ignore[arg-type]
        if len(rows):
            found[f"{letter}_allocation"] = rows
    return allocation, found, warnings


def _optimum_law(constants_R5: np.ndarray, factor: float) -> np.ndarray:
    """Coefficient and exponent of S* = G (C / factor)^a, shape R2. Source: arXiv 2203.15556, equation 4."""
    _, A, B, alpha, beta = constants_R5.T
    exponent = beta / (alpha + beta)
    return np.stack([(alpha * A / (beta * B)) ** (1 / (alpha + beta)) * factor**-exponent, exponent], axis=1)


def _hyper(table: Table, seed: int, bootstrap: int) -> RateBatchFit | None:
    """The hyper-parameter law, where the sweep varied them; a ladder that follows a prior law has nothing to fit."""
    grids = np.unique(
        np.stack([table.columns["learning_rate"], table.columns.get("batch_tokens", table.weights())]), axis=1
    )
    if grids.shape[1] < 3:
        return None
    try:
        return fit_hyper(table.columns, bootstrap=bootstrap, seed=seed)
    except FitError as error:
        logger.info("no hyper-parameter law from this sweep: %s", error)
        return None
