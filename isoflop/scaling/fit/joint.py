"""All laws of one's own sweep on joint bootstrap resamples: records -> `Laws`.

A resample weighs the settings anew (random weights of mean 1: the Bayesian bootstrap, which never loses the
third size of a small budget); their variance is n/(n - 5), which makes up for what five constants hide of the noise of
n cells. On made-up sweeps of 20 to 30 cells each law's 90% interval then held the truth in about 90% of cases; adding
noise to the losses as well doubled the variance for nothing. One rehearsal is kept: without the largest budget,
predict its cells near the optimum.

A sweep over one or two decades of compute does not fix the loss E that no compute removes: fits that differ by 0.01% on
the runs put it anywhere between 0 and the lowest loss, and disagree by 10% ten times further on. So E in bits per byte
has a prior, the same for every law; a sweep that knows better outvotes it.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.scaling.fit.checks import check_resamples, families, fit_rows, held_out, import_checks
from isoflop.scaling.fit.isoflop import (
    Budget,
    find_vertices,
    fit_allocation,
    group_budgets,
    lines,
    resampled_vertices,
)
from isoflop.scaling.fit.lr_batch import fit_hyper
from isoflop.scaling.fit.parametric import Objective, Points, fit_centre, make_objective, minimise, surface_points
from isoflop.scaling.fit.pooled import NO_PRIOR, FloorPrior, PooledCurve, fit_pooled
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import (
    CONSTANTS,
    FLOPS_FACTOR,
    Allocation,
    Laws,
    LossAtOptimum,
    Noise,
    Rehearsal,
    Surface,
)
from isoflop.scaling.lr_batch_law import RateBatchFit
from isoflop.scaling.sweep.records import RunRecord

logger = logging.getLogger(__name__)

LAW = "law set"
SURFACES = ("log_huber", "raw_huber", "mse", "varpro")
RESAMPLED = ("log_huber", "varpro")
SMALL_SWEEP_EXPONENTS = (0.05, 1.5)  # assumption: keeps five constants from running away on twenty cells
LEAST_CELLS, LEAST_BUDGETS = 9, 3
FLOOR_BITS_PER_BYTE, FLOOR_SPREAD = 0.9, 0.25
"""Prior of E: median, and standard deviation of ln E; 90% from 0.6 to 1.36 bits per byte.

Chinchilla's 1.69 to 1.82 nats per token (arXiv 2203.15556, 2404.10102) are about 0.6 at 4.2 bytes a token, and the best
published models reach 0.54 to 0.64 on the Pile with thousands of tokens of context; contexts of 64 to 1,024 tokens and
held-out packages cost more. Median and spread are an assumption (docs/scaling.md says what they change).
"""
EXPONENT, EXPONENT_SPREAD = 0.35, 0.1
"""Prior of alpha and beta (published fits: 0.28 to 0.46); without it one of them can take all the decline."""
NEARNESS = (
    0.5  # weight of a cell: (C / largest C) to this power; the laws are approximations, used beyond the largest C
)
PRIOR_STRATA = 8  # resamples are dealt out over so many equally likely means of the prior: its doubt is in the interval


def fit(
    runs: Table | str | Path | Sequence[str | Path] | Sequence[RunRecord] | Sequence[Mapping[str, object]],
    *,
    mapping: str = "",
    bootstrap: int = 1000,
    seed: int = 0,
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
    check_resamples(bootstrap)
    table = Table.of(runs).map(mapping).latest_of_each_run()
    scale = scale or ("flops_per_token" if table.has("flops_per_token") else table.scale(LAW)[0])
    loss = loss or ("bits_per_byte" if table.has("bits_per_byte") else table.loss(LAW)[0])
    table, warnings = fit_cells(table, scale, loss)
    budgets, thin = _budgets(table, scale, loss)
    warnings += thin
    rows = np.sort(np.concatenate([budget.rows for budget in budgets]))
    if len(rows) < table.n_rows:
        table = table.select(rows)
        budgets, _ = _budgets(table, scale, loss)
    points = nearer_counts_more(surface_points(table, loss=loss, scale=scale))
    generator = np.random.default_rng(seed)

    prior = Prior(FLOOR_BITS_PER_BYTE, FLOOR_SPREAD) if loss == "bits_per_byte" else None
    centres = {name: surface_centre(points, name, prior) for name in SURFACES}
    flops = np.array([budget.total_flops for budget in budgets])
    compute = FLOPS_FACTOR[scale] * points.scale * points.tokens
    pooled = _pooled_centre(compute, points, prior)

    weight_RS = joint_weights(points, generator, bootstrap)
    resamples: dict[str, np.ndarray] = {}
    surfaces = {name: _surface(points, theta, value) for name, (theta, value, _) in centres.items()}
    lstar = LossAtOptimum(*pooled.lstar()[0].tolist())
    moved = None
    if bootstrap:
        for name in RESAMPLED:
            rows_R5 = resample_surface(points, name, centres[name][0], weight_RS, prior)
            resamples[f"surface_{name}"] = rows_R5
            surfaces[name] = dataclasses.replace(surfaces[name], **_spread(CONSTANTS, rows_R5))
        moved = fit_pooled(
            compute, points.scale, points.loss, weight_RS, pooled, _pooled_prior(compute, points, prior, bootstrap)
        )
        resamples["lstar"] = moved.lstar()
        lstar = dataclasses.replace(lstar, **_spread("Ekg", moved.lstar()))
    allocation, allocation_draws, notes = _allocation(budgets, flops, pooled, moved, weight_RS)
    return Laws(
        scale=scale,  # type: ignore[arg-type]
        loss=loss,
        surfaces=surfaces,
        allocation=allocation,
        lstar=lstar,
        hyper=_hyper(table, seed, bootstrap) if hyper and table.has("learning_rate") else None,
        noise=Noise(_noise_sd(points, centres["mse"][0]), len(points.loss) - 5),
        rehearsal=_rehearsal(points, budgets, scale, prior),
        resamples=resamples | allocation_draws,
        floor_prior=prior and {"median": prior.median, "sd_of_ln": prior.spread, "unit": loss},
        bootstrap={"resamples": bootstrap, "seed": seed, "group": "cell, jointly for all laws"},
        n_runs=len(points.loss),
        budgets=tuple(budget.budget_flops for budget in budgets),
        largest_budget_flops=float(compute.max()),
        conventions=_conventions(runs, table, scale, loss),
        **held_out(table),
        warnings=(*warnings, *notes),
        inferences=tuple(table.inferences),
    )


def nearer_counts_more(points: Points) -> Points:
    """Weights grow with compute: small models are late to learn some things, and the law is wanted at the other end."""
    weight = (points.scale * points.tokens) ** NEARNESS
    return dataclasses.replace(points, weight=points.weight * weight / weight.mean())


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


@dataclasses.dataclass(frozen=True)
class Prior:
    """Of E, lognormal."""

    median: float
    spread: float

    def means(self, n_resamples: int) -> np.ndarray:
        """ln E's prior mean for every resample: equally likely values, dealt out in turn (the order is no matter)."""
        steps = (np.arange(PRIOR_STRATA) + 0.5) / PRIOR_STRATA
        values = [NormalDist(math.log(self.median), self.spread).inv_cdf(step) for step in steps]
        return np.resize(values, n_resamples)


def _objective(points: Points, name: str, prior: Prior | None = None) -> Objective:
    """The objective with bounds for small sweeps and the prior, weighed by the noise that a fit without it leaves."""
    found = make_objective(points, name)
    low, high = SMALL_SWEEP_EXPONENTS
    found.lower[3:], found.upper[3:] = low, high
    if prior is None:
        return found
    theta, _, _ = fit_centre(points, name, found)
    size = np.abs(found.residuals(theta[None])[0])
    lost = len(size) / max(len(size) - 5, 1) * _cells_per_size(points)
    if found.huber_delta is None:  # squares: 2 sigma^2 x the negative log-likelihood of a Gaussian
        unit = 2 * (size**2).mean() * lost
    else:  # beyond delta Huber's loss is delta x |r|: delta x scale x that of a Laplace law
        unit = found.huber_delta * max(size.mean() * lost, found.huber_delta)
    spread = np.array([prior.spread, np.inf, np.inf, EXPONENT_SPREAD, EXPONENT_SPREAD])
    means = np.array([math.log(prior.median), 0.0, 0.0, EXPONENT, EXPONENT])
    precision = unit / spread**2
    return dataclasses.replace(found, prior_mean=means, prior_precision=precision)


def surface_centre(points: Points, name: str, prior: Prior | None) -> tuple[np.ndarray, float, int]:
    """Within bounds for small sweeps; varpro goes through the descent, which knows them (the minimum is the same)."""
    path = "mse" if name == "varpro" else name
    return fit_centre(points, path, _objective(points, path, prior))


def _cells_per_size(points: Points) -> float:
    """Cells of one size share a trunk, a shape and a seed, and miss the law together: they count as one witness."""
    return len(points.scale) / len(np.unique(points.scale))


def _pooled_prior(compute: np.ndarray, points: Points, prior: Prior | None, n_resamples: int = 0) -> FloorPrior:
    """The prior for the pooled curve: precision from the noise of a fit without it."""
    if prior is None:
        return NO_PRIOR
    free = fit_pooled(compute, points.scale, points.loss, points.weight[None])
    residual = free.residuals(compute, points.scale, points.loss)[0]
    variance = (residual**2).sum() / max(len(residual) - 6, 1) * _cells_per_size(points)
    means = prior.means(n_resamples) if n_resamples else np.array([math.log(prior.median)])
    return FloorPrior(means, float(variance / prior.spread**2))


def _pooled_centre(compute: np.ndarray, points: Points, prior: Prior | None) -> PooledCurve:
    return fit_pooled(
        compute, points.scale, points.loss, points.weight[None], prior=_pooled_prior(compute, points, prior)
    )


def _surface(points: Points, theta: np.ndarray, value: float) -> Surface:
    E, A, B, alpha, beta = points.constants(theta[None])[0].tolist()
    mean = 1e6 * value / len(points.loss)
    return Surface(E, A, B, alpha, beta, a=beta / (alpha + beta), objective=value, objective_mean_x1e6=mean)


def resample_surface(
    points: Points, name: str, theta: np.ndarray, weight_RS: np.ndarray, prior: Prior | None
) -> np.ndarray:
    """Constants of every resample, shape R5, each started at the centre."""
    name = "mse" if name == "varpro" else name
    start_R5 = np.tile(theta, (len(weight_RS), 1))
    if prior is None:
        return points.constants(minimise(_objective(points, name), start_R5, weight_RS)[0])
    objective, found_R5 = _objective(points, name, prior), np.empty_like(start_R5)
    means_R = prior.means(len(weight_RS))
    for mean in np.unique(means_R):
        rows = means_R == mean
        moved = dataclasses.replace(objective, prior_mean=np.array([mean, *objective.prior_mean[1:]]))
        found_R5[rows] = minimise(moved, start_R5[rows], weight_RS[rows])[0]
    return points.constants(found_R5)


def _noise_sd(points: Points, theta: np.ndarray) -> float:
    """Relative standard deviation of one run around the least-squares surface, with its five constants counted."""
    law = Surface.of(points.constants(theta[None])[0])
    residual = points.loss / law.loss(points.scale, points.tokens) - 1
    return float(np.sqrt((residual**2).sum() / max(len(residual) - 5, 1)))


def joint_weights(points: Points, generator: np.random.Generator, bootstrap: int) -> np.ndarray:
    """Weights of mean 1 per setting, the same for every law; equal settings (seeds) move together."""
    n_settings = int(points.setting.max()) + 1
    shape = max(1 - len(CONSTANTS) / n_settings, 0.25)  # variance 1 / shape
    drawn = generator.gamma(shape, 1 / shape, size=(bootstrap, n_settings))
    return drawn[:, points.setting] * points.weight


def _spread(names: Sequence[str], rows: np.ndarray) -> dict[str, Any]:
    """Standard deviation and interval of each constant, as fields of a law."""
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
) -> tuple[Allocation, dict[str, np.ndarray], list[str]]:
    """Parabola vertices and M*(C), D*(C) with their resamples and warnings.

    Where too few vertices lie inside, the pooled curve gives the law.
    """
    vertices, warnings = find_vertices(budgets)
    used = [index for index, vertex in enumerate(vertices) if vertex.used]
    found = Allocation(tuple(vertices), "parabola (as asked)", "vertices")
    resamples: dict[str, np.ndarray] = {}
    if len(used) < LEAST_BUDGETS:
        warnings.append(
            f"vertex outside the tested range in {len(vertices) - len(used)} of {len(vertices)} budgets: the "
            "allocation comes from all curves fitted together; add sizes on the side the vertices lie"
        )
        coefficient, exponent = pooled.allocation()[0].tolist()
        factor = float(np.mean([b.total_flops / np.mean(b.scale * b.tokens) for b in budgets]))
        law = {"n_coefficient": coefficient, "n_exponent": exponent}
        law |= {"d_coefficient": 1 / (factor * coefficient), "d_exponent": 1 - exponent}
        if moved is not None:
            rows = moved.allocation()
            resamples["n_allocation"] = rows
            resamples["d_allocation"] = np.stack([1 / (factor * rows[:, 0]), 1 - rows[:, 1]], axis=1)
        return dataclasses.replace(found, source="pooled curve", **law), resamples, warnings
    draws = resampled_vertices([budgets[i] for i in used], weight_RS)
    for letter, key, part in (("n", "scale_opt", 0), ("d", "tokens_opt", 1)):
        best = np.array([getattr(vertices[i], key) for i in used])
        ones = np.ones_like(draws[part])
        law = fit_allocation(flops[used], best, letter, draws_RB=draws[part], weight_RB=ones)
        found = dataclasses.replace(found, **law)  # type: ignore[arg-type]
        slope, intercept = lines(np.log10(flops[used]), draws[part], ones)
        if len(weight_RS):
            resamples[f"{letter}_allocation"] = np.stack([10**intercept, slope], axis=1)
    return found, resamples, warnings


def _rehearsal(points: Points, budgets: list[Budget], scale: str, prior: Prior | None) -> Rehearsal | None:
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
        theta, _, _ = surface_centre(part, name, prior)
        law = Surface.of(part.constants(theta[None])[0])
        predicted.append(np.asarray(law.loss(held_scale, held_tokens)))
    factor = FLOPS_FACTOR[scale]
    pooled = _pooled_centre(factor * part.scale * part.tokens, part, prior)
    spent = factor * held_scale * held_tokens
    predicted.append(np.array([float(pooled.loss(c, m)[0]) for c, m in zip(spent, held_scale)]))
    order = np.argsort(np.mean(predicted, axis=0))[: max(3, len(held_scale) // 2)]
    by_law = [float(values[order].mean()) for values in predicted]
    centre, measured = float(np.mean(by_law)), float(points.loss[largest.rows][order].mean())
    return Rehearsal(
        relative_error=centre / measured - 1,
        extrapolation_factor=largest.total_flops / budgets[-2].total_flops,
        budget_flops=largest.budget_flops,
        n_cells=len(order),
        predicted=centre,
        measured=measured,
        by_law=dict(zip(("surface_log_huber", "surface_varpro", "lstar"), by_law)),
    )


def _conventions(runs: object, table: Table, scale: str, loss: str) -> dict[str, str]:
    """How the runs were counted, as their records say, and what the laws make of it."""
    records = [run for run in runs if isinstance(run, RunRecord)] if isinstance(runs, Sequence) else []
    given: dict[str, str] = next((dict(record.conventions) for record in records if record.conventions), {})
    largest = max(records, key=lambda record: record.flops_per_token or 0.0, default=None)
    if largest and (largest.conventions or {}).get("family"):  # a tiny model has one head, which is no GQA yet
        given["family"] = (largest.conventions or {})["family"]
    tokenizers = {record.tokenizer_sha256 for record in records if record.tokenizer_sha256}
    if len(tokenizers) == 1:
        given.setdefault("tokenizer_sha256", tokenizers.pop())
    return {
        **given,
        **table.conventions,
        "compute": "C = M D, M = flops_per_token" if scale == "flops_per_token" else "C = 6 N D",
        "loss_column": loss,
        "surface": "L = E + A/N^alpha + B/D^beta, exponents within 0.05 to 1.5",
        "lstar": "L* = E + k C^-g, bottoms of all IsoFLOP curves fitted together",
    }


def _hyper(table: Table, seed: int, bootstrap: int) -> RateBatchFit | None:
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
