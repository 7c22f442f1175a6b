"""All laws of one set of runs on joint bootstrap resamples: runs -> `Laws`.

Where the runs are IsoFLOP curves, the laws see only sizes near the optimum of each budget: far from it the three-term
law bends otherwise than the runs, and its E pays for it. A law goes through the bottoms of the curves, one through all
curves at once, and two surfaces through the runs. Other tables have the surfaces alone, through all runs.

A resample weighs the settings anew (random weights of mean 1: the Bayesian bootstrap, which never loses the
third size of a small budget); their variance is n/(n - 5), which makes up for what five constants hide of the noise of
n cells. Rehearsals are kept: fitted below one compute, runs beyond it predicted.

A sweep over one or two decades of compute does not fix the loss E that no compute removes: fits that differ by 0.01% on
the runs put it anywhere between 0 and the lowest loss. So E has a prior, a share of the lowest loss and so the same in
every unit; a sweep that knows better outvotes it.
"""

import dataclasses
import itertools
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
    NEAR,
    Budget,
    find_vertices,
    fit_allocation,
    group_budgets,
    lines,
    near_optimum,
    resampled_vertices,
)
from isoflop.scaling.fit.lr_batch import fit_hyper
from isoflop.scaling.fit.parametric import (
    Objective,
    Points,
    fit_centre,
    make_objective,
    minimise,
    surface_points,
)
from isoflop.scaling.fit.pooled import FloorPrior, PooledCurve, fit_pooled
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import (
    AT_OPTIMUM,
    CONSTANTS,
    FLOPS_FACTOR,
    Allocation,
    Laws,
    LossAtOptimum,
    Noise,
    Rehearsal,
    Surface,
    Vertex,
)
from isoflop.scaling.lr_batch_law import RateBatchFit
from isoflop.scaling.sweep.records import RunRecord

logger = logging.getLogger(__name__)

LAW = "law set"
SURFACES = {"log_huber": "log_huber", "varpro": "mse"}
"""Surfaces by name, and their objectives; varpro's minimum is found by the descent, which knows bounds and prior."""
SMALL_SWEEP_EXPONENTS = (0.05, 1.5)  # assumption: keeps five constants from running away on twenty cells
LEAST_CELLS, LEAST_BUDGETS, LEAST_RUNS, LEAST_VALUES = 9, 3, 8, 3
FLOOR_SHARE, FLOOR_SPREAD = 0.6, 0.2
"""Prior of E: median as a share of the lowest loss, and standard deviation of ln E.

Assumption; 0.45 or 0.75 instead change public forecasts little (docs/forecast.md). Chinchilla's E is 0.8 of its lowest
loss (arXiv 2404.10102), the best of the demo's 15 minutes about half.
"""
EXPONENT, EXPONENT_SPREAD = 0.35, 0.1
"""Prior of alpha and beta (published fits: 0.28 to 0.46); without it one of them can take all the decline."""
NEARNESS, NEARNESS_OF_TABLES = 2.0, 1.0
"""Weight of a run: (C / largest C) to this power; the laws are approximations, used beyond the largest C.

Assumption: 1 to 2 do equally well on public curves (docs/forecast.md). Tables hold few runs at their upper end.
"""
PRIOR_STRATA = 8  # resamples are dealt out over so many equally likely means of the prior: its doubt is in the interval
REHEARSED = (100.0, 30.0, 10.0, 3.0)  # largest compute / cut of a table without budgets
_SCALE_OF = {factor: name for name, factor in FLOPS_FACTOR.items()}
_OF_CURVES = {
    "lstar": "L* = E + k C^-g, all IsoFLOP curves fitted together",
    "bottoms": "L* = E + k C^-g through the bottoms of the IsoFLOP curves",
    "sizes": f"within {NEAR:g} times the optimal one of each budget",
}
LEAST_NOISE = 1e-3  # assumption: runs that agree better agree by chance
LEAST_STEEP = (
    5e-3  # assumption: the last bottom lies lower by this, and by a run's noise, than the exponent before says
)
LEAST_FREEDOM = 4  # spare runs below which a noise means nothing


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """What the laws are fitted to."""

    points: Points
    budgets: list[Budget]
    """Near the optimum, `rows` being indices into `points`; empty for a table without budgets."""
    factor: float
    """C / (S D)."""
    noise: Noise
    misfit: float
    """How far runs lie off a surface without priors, sd of ln L: what a prior is weighed against."""
    vertices: list[Vertex]
    warnings: list[str]

    @classmethod
    def of(cls, points: Points, budgets: list[Budget], factor: float) -> "_Sweep":
        weight = points.weight * (points.scale * points.tokens) ** (NEARNESS if budgets else NEARNESS_OF_TABLES)
        points = dataclasses.replace(points, weight=weight / weight.mean())
        theta, _, _ = fit_centre(points, "log_huber", _objective(points, "log_huber"))
        residual = np.log(Surface.of(points.constants(theta[None])[0]).loss(points.scale, points.tokens) / points.loss)
        noise = _noise(points, budgets, residual)
        misfit = math.sqrt(math.pi / 2) * float(np.abs(residual).mean()) * len(residual) / max(len(residual) - 5, 1)
        return cls(points, budgets, factor, noise, max(misfit, noise.relative_sd), *find_vertices(budgets))

    @property
    def compute(self) -> np.ndarray:
        """Of each point, as the laws count it."""
        return self.factor * self.points.scale * self.points.tokens

    @property
    def used(self) -> list[int]:
        """Budgets whose curve has its bottom among the tested sizes."""
        return [index for index, vertex in enumerate(self.vertices) if vertex.used]

    @property
    def bottoms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute, loss and weight of the bottoms of these curves."""
        used = [self.vertices[index] for index in self.used]
        flops = np.array([self.factor * vertex.scale_opt * vertex.tokens_opt for vertex in used])
        return flops, np.array([vertex.loss for vertex in used]), (flops / self.compute.max()) ** NEARNESS

    def prior(self, sd: float, n_resamples: int = 0) -> FloorPrior:
        """Of ln E beside squares of ln L that are `sd` large; for resamples, equally likely means dealt out in turn."""
        steps = (np.arange(PRIOR_STRATA) + 0.5) / PRIOR_STRATA if n_resamples else np.array([0.5])
        median = math.log(FLOOR_SHARE * self.points.loss.min())
        means = np.array([NormalDist(median, FLOOR_SPREAD).inv_cdf(step) for step in steps])
        return FloorPrior(np.resize(means, max(n_resamples, 1)), (sd / FLOOR_SPREAD) ** 2)

    def select(self, keep: np.ndarray) -> "_Sweep":
        """Some of the points (sorted), with the budgets that lie wholly among them; the noise stays."""
        points = Points(*(getattr(self.points, f.name)[keep] for f in dataclasses.fields(Points)))
        budgets = [one for one in self.budgets if np.isin(one.rows, keep).all()]
        budgets = [dataclasses.replace(one, rows=np.searchsorted(keep, one.rows)) for one in budgets]
        return _Sweep(points, budgets, self.factor, self.noise, self.misfit, *find_vertices(budgets))

    @property
    def shared_misfit(self) -> float:
        """Cells of one size share a trunk, a shape and a seed, and miss the law together: they count as one witness."""
        return self.misfit * math.sqrt(len(self.points.scale) / len(np.unique(self.points.scale)))


@dataclasses.dataclass(frozen=True)
class _Centre:
    """Every law at its minimum."""

    surfaces: dict[str, tuple[np.ndarray, float]]
    """theta and objective."""
    pooled: PooledCurve | None
    bottoms: PooledCurve | None

    def laws(self, points: Points, **known: Any) -> Laws:
        """As `Laws`, without anything but the central constants."""
        surfaces = {name: _surface(points, *found) for name, found in self.surfaces.items()}
        curves = {
            name: LossAtOptimum(*curve.lstar()[0].tolist())
            for name, curve in (("lstar", self.pooled), ("bottoms", self.bottoms))
            if curve is not None
        }
        return Laws(surfaces=surfaces, **curves, **known)


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
    table, warnings = _cells(table, scale, loss)
    table, curves, thin = _curves(table, scale, loss)
    budgets = near_optimum(curves)
    rows = np.sort(np.concatenate([budget.rows for budget in budgets])) if budgets else np.arange(table.n_rows)
    if len(rows) < table.n_rows:
        thin.append(f"{table.n_rows - len(rows)} runs of sizes more than {NEAR:g} times off the optimum left out")
        budgets = [dataclasses.replace(one, rows=np.searchsorted(rows, one.rows)) for one in budgets]
    sweep = _Sweep.of(surface_points(table.select(rows), loss=loss, scale=scale), budgets, FLOPS_FACTOR[scale])
    points = sweep.points

    centre = _centre(sweep)
    laws = centre.laws(points, scale=scale, loss=loss)
    resamples: dict[str, np.ndarray] = {}
    weight_RS = _joint_weights(points, np.random.default_rng(seed), bootstrap)
    if bootstrap:
        resamples = _resample(sweep, centre, weight_RS)
        laws = dataclasses.replace(
            laws,
            surfaces={
                name: dataclasses.replace(law, **_spread(CONSTANTS, resamples[f"surface_{name}"]))
                for name, law in laws.surfaces.items()
            },
            **{
                name: dataclasses.replace(getattr(laws, name), **_spread("Ekg", resamples[name]))
                for name in AT_OPTIMUM
                if name in resamples
            },
        )
    allocation, moved, notes = _allocation(sweep, centre, resamples, weight_RS)
    resamples.pop("pooled", None)
    rehearsals = _rehearsals(sweep)
    steepening, steep = _steepening(sweep, laws)
    prior = sweep.prior(sweep.misfit)
    return dataclasses.replace(
        laws,
        allocation=allocation,
        hyper=_hyper(table, seed, bootstrap) if hyper and table.has("learning_rate") else None,
        noise=sweep.noise,
        rehearsal=rehearsals[-1] if rehearsals else None,
        rehearsals=tuple(rehearsals),
        steepening=steepening,
        resamples=resamples | moved,
        floor_prior={"median": math.exp(prior.mean_R[0]), "sd_of_ln": FLOOR_SPREAD, "unit": loss},
        bootstrap={"resamples": bootstrap, "seed": seed, "group": "cell, jointly for all laws"},
        n_runs=len(points.loss),
        budgets=tuple(budget.budget_flops for budget in budgets),
        largest_budget_flops=float(sweep.compute.max()),
        conventions=_conventions(runs, table, scale, loss, bool(budgets)),
        **held_out(table),
        warnings=(*warnings, *thin, *sweep.warnings, *notes, *steep),
        inferences=tuple(table.inferences),
    )


def _cells(table: Table, scale: str, loss: str) -> tuple[Table, list[str]]:
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
            f"budget {budget.budget_flops:.4g} left out: {budget.n_sizes} finished sizes, a vertex needs three: add "
            "sizes"
            for budget in budgets
            if budget.n_sizes < LEAST_VALUES
        ]
        rows = np.sort(np.concatenate([budget.rows for budget in fine]))
        fine = [dataclasses.replace(budget, rows=np.searchsorted(rows, budget.rows)) for budget in fine]
        return table.select(rows), fine, warnings
    n_sizes, n_counts = len(np.unique(table.scale(LAW, scale)[1])), len(np.unique(table.tokens(LAW)))
    if table.n_rows < LEAST_RUNS or min(n_sizes, n_counts) < LEAST_VALUES:
        raise FitError(
            f"{LAW}: {table.n_rows} finished runs of {n_sizes} sizes and {n_counts} token counts, {len(fine)} budgets "
            f"with at least three sizes ({n_cells} finished cells); at least {LEAST_RUNS} runs, {LEAST_VALUES} sizes "
            f"and {LEAST_VALUES} token counts must be there, or {LEAST_BUDGETS} budgets with {LEAST_CELLS} cells: add "
            "runs"
        )
    return table, [], [f"no IsoFLOP curves ({len(fine)} budgets with three sizes): surfaces through all runs"]


def _noise(points: Points, budgets: list[Budget], off_surface: np.ndarray) -> Noise:
    """Of one run, relative: from repeats, else from the parabolas of the budgets, else from a surface.

    Robust: the median size of a residual, with the constants that were fitted counted.
    """
    ln_loss = np.log(points.loss)
    repeats = ln_loss - (np.bincount(points.setting, ln_loss) / np.bincount(points.setting))[points.setting]
    repeated = np.bincount(points.setting)[points.setting] > 1
    off = [_off_parabola(budget) for budget in budgets if len(budget.rows) > 3]
    kinds = [
        ("repeats", repeats[repeated], int(repeated.sum()) - len(np.unique(points.setting[repeated]))),
        ("bowls", np.concatenate([*off, np.empty(0)]), sum(len(part) - 3 for part in off)),
        ("surface", off_surface, max(len(points.loss) - len(CONSTANTS), LEAST_FREEDOM)),
    ]
    source, residual, freedom = next(kind for kind in kinds if kind[2] >= LEAST_FREEDOM)
    sd = 1.4826 * float(np.median(np.abs(residual))) * math.sqrt(len(residual) / freedom)
    return Noise(max(sd, LEAST_NOISE), freedom, source)


def _off_parabola(budget: Budget) -> np.ndarray:
    """Residuals of ln L."""
    x = np.log(budget.scale / budget.scale.mean())
    return np.log(budget.loss) - np.polyval(np.polyfit(x, np.log(budget.loss), 2), x)


def _objective(points: Points, name: str, prior: FloorPrior | None = None, sd: float = 0.0) -> Objective:
    """The objective with bounds for small sweeps and priors of E and the exponents, against misfits of `sd`."""
    found = make_objective(points, name)
    low, high = SMALL_SWEEP_EXPONENTS
    found.lower[3:], found.upper[3:] = low, high
    if prior is None:
        return found
    if found.huber_delta is None:  # squares: 2 sigma^2 x the negative log-likelihood of a Gaussian
        unit = 2 * (sd * points.loss.mean()) ** 2
    else:  # beyond delta Huber's loss is delta x |r|: delta x scale x that of a Laplace law
        unit = found.huber_delta * max(sd * math.sqrt(2 / math.pi), found.huber_delta)
    spread = np.array([FLOOR_SPREAD, np.inf, np.inf, EXPONENT_SPREAD, EXPONENT_SPREAD])
    means = np.array([prior.mean_R[0], 0.0, 0.0, EXPONENT, EXPONENT])
    return dataclasses.replace(found, prior_mean=means, prior_precision=unit / spread**2)


def _surface_objective(sweep: _Sweep, name: str) -> Objective:
    return _objective(sweep.points, SURFACES[name], sweep.prior(sweep.shared_misfit), sweep.shared_misfit)


def _centre(sweep: _Sweep) -> _Centre:
    points = sweep.points
    surfaces = {name: fit_centre(points, path, _surface_objective(sweep, name))[:2] for name, path in SURFACES.items()}
    if not sweep.budgets:
        return _Centre(surfaces, None, None)
    prior = sweep.prior(sweep.shared_misfit)
    pooled = fit_pooled(sweep.compute, points.scale, points.loss, points.weight[None], prior=prior)
    flops, loss, weight = sweep.bottoms
    bottoms = (
        fit_pooled(flops, None, loss, weight[None], prior=sweep.prior(sweep.noise.relative_sd))
        if len(loss) >= 2
        else None
    )
    return _Centre(surfaces, pooled, bottoms)


def _resample(sweep: _Sweep, centre: _Centre, weight_RS: np.ndarray) -> dict[str, np.ndarray]:
    """Constants of every resample by law, each started at the centre; `pooled` is the place of the optimum."""
    points, n_resamples = sweep.points, len(weight_RS)
    prior = sweep.prior(sweep.shared_misfit, n_resamples)
    found = {}
    for name, (theta, _) in centre.surfaces.items():
        objective, rows_R5 = _surface_objective(sweep, name), np.tile(theta, (n_resamples, 1))
        for mean in np.unique(prior.mean_R):
            rows = prior.mean_R == mean
            moved = dataclasses.replace(objective, prior_mean=np.array([mean, *objective.prior_mean[1:]]))
            rows_R5[rows] = minimise(moved, rows_R5[rows], weight_RS[rows])[0]
        found[f"surface_{name}"] = points.constants(rows_R5)
    if centre.pooled:
        pooled = fit_pooled(sweep.compute, points.scale, points.loss, weight_RS, centre.pooled, prior)
        found |= {"lstar": pooled.lstar(), "pooled": pooled.allocation()}
    if centre.bottoms:
        flops, loss, weight = sweep.bottoms
        loss_RB = resampled_vertices([sweep.budgets[index] for index in sweep.used], weight_RS)[2]
        weight_RB = np.where(np.isfinite(loss_RB), weight, 0.0)
        loss_RB = np.where(np.isfinite(loss_RB), loss_RB, loss)
        prior = sweep.prior(sweep.noise.relative_sd, n_resamples)
        found["bottoms"] = fit_pooled(flops, None, loss_RB, weight_RB, centre.bottoms, prior).lstar()
    return found


def _surface(points: Points, theta: np.ndarray, value: float) -> Surface:
    E, A, B, alpha, beta = points.constants(theta[None])[0].tolist()
    mean = 1e6 * value / len(points.loss)
    return Surface(E, A, B, alpha, beta, a=beta / (alpha + beta), objective=value, objective_mean_x1e6=mean)


def _joint_weights(points: Points, generator: np.random.Generator, bootstrap: int) -> np.ndarray:
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
    sweep: _Sweep, centre: _Centre, resamples: dict[str, np.ndarray], weight_RS: np.ndarray
) -> tuple[Allocation, dict[str, np.ndarray], list[str]]:
    """M*(C) and D*(C) through the vertices, with resamples and warnings.

    Where too few vertices lie inside, the pooled curve gives the law; without curves, the log-Huber surface.
    """
    vertices, budgets = sweep.vertices, sweep.budgets
    warnings: list[str] = []
    if len(sweep.used) < LEAST_BUDGETS:
        if centre.pooled:
            source, rows = "pooled curve", centre.pooled.allocation()
            moved = resamples.get("pooled", np.empty((0, 2)))
            factor = float(np.mean([b.total_flops / np.mean(b.scale * b.tokens) for b in budgets]))
            warnings.append(
                f"vertex outside the tested range in {len(vertices) - len(sweep.used)} of {len(vertices)} budgets: the "
                "allocation comes from all curves fitted together; add sizes on the side the vertices lie"
            )
        else:
            source, factor = "surface", sweep.factor
            constants = sweep.points.constants(centre.surfaces["log_huber"][0][None])
            rows, moved = (
                _optimum_law(c, factor) for c in (constants, resamples.get("surface_log_huber", constants[:0]))
            )
        coefficient, exponent = rows[0].tolist()
        found = {}
        if len(moved):
            found = {
                "n_allocation": moved,
                "d_allocation": np.stack([1 / (factor * moved[:, 0]), 1 - moved[:, 1]], axis=1),
            }
        law = {"n_coefficient": coefficient, "n_exponent": exponent}
        law |= {"d_coefficient": 1 / (factor * coefficient), "d_exponent": 1 - exponent}
        return Allocation(tuple(vertices), "parabola (as asked)", source, **law), found, warnings
    allocation, found = Allocation(tuple(vertices), "parabola (as asked)", "vertices"), {}
    flops = np.array([vertices[index].total_flops for index in sweep.used])
    draws = resampled_vertices([budgets[index] for index in sweep.used], weight_RS)
    for letter, key, part in (("n", "scale_opt", 0), ("d", "tokens_opt", 1)):
        best = np.array([getattr(vertices[index], key) for index in sweep.used])
        ones = np.ones_like(draws[part])
        law = fit_allocation(flops, best, letter, draws_RB=draws[part], weight_RB=ones)
        allocation = dataclasses.replace(allocation, **law)  # type: ignore[arg-type]
        slope, intercept = lines(np.log10(flops), draws[part], ones)
        if len(weight_RS):
            found[f"{letter}_allocation"] = np.stack([10**intercept, slope], axis=1)
    return allocation, found, warnings


def _optimum_law(constants_R5: np.ndarray, factor: float) -> np.ndarray:
    """Coefficient and exponent of S* = G (C / factor)^a, shape R2. Source: arXiv 2203.15556, equation 4."""
    _, A, B, alpha, beta = constants_R5.T
    exponent = beta / (alpha + beta)
    return np.stack([(alpha * A / (beta * B)) ** (1 / (alpha + beta)) * factor**-exponent, exponent], axis=1)


def _rehearsals(sweep: _Sweep) -> list[Rehearsal]:
    """Fitted below one compute, runs beyond it predicted; the last one leaves out the largest budget alone.

    Judged on the mean of the half of a budget's cells (at least three) that were predicted to be best: choosing by what
    was measured would pick the luckiest run and call its luck a miss. Tables without budgets: all runs beyond.
    """
    found = []
    for keep, groups in _cuts(sweep):
        part = sweep.select(keep)
        laws = _centre(part).laws(part.points, scale=_SCALE_OF[sweep.factor], loss="")
        for rows in groups:
            by_law = laws.losses(laws.constants(), sweep.points.scale[rows], sweep.points.tokens[rows])
            best = np.argsort(np.mean(list(by_law.values()), axis=0))[: max(3, len(rows) // 2)]
            best = best if sweep.budgets else np.arange(len(rows))
            ratio = {
                name: float(np.mean(values[best] / sweep.points.loss[rows][best])) for name, values in by_law.items()
            }
            measured = float(sweep.points.loss[rows][best].mean())
            mean = float(np.mean(list(ratio.values())))
            reached = float(np.exp(np.log(sweep.compute[rows][best]).mean()))
            found.append(
                Rehearsal(
                    relative_error=mean - 1,
                    extrapolation_factor=reached / float(sweep.compute[keep].max()),
                    budget_flops=reached,
                    n_cells=len(best),
                    predicted=mean * measured,
                    measured=measured,
                    by_law={name: value * measured for name, value in ratio.items()},
                )
            )
    return found


def _cuts(sweep: _Sweep) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Rows to fit, and groups of rows to predict, smallest cut first."""
    every = np.arange(len(sweep.compute))
    if sweep.budgets:
        tops = range(2, len(sweep.budgets))
        rows = [budget.rows for budget in sweep.budgets]
        return [(np.sort(np.concatenate(rows[:top])), rows[top:]) for top in tops]
    found = []
    for step in REHEARSED:
        top = sweep.compute.max() / step
        keep = every[sweep.compute <= top]
        values = [len(np.unique(part[keep])) for part in (sweep.points.scale, sweep.points.tokens)]
        if len(keep) >= LEAST_RUNS and min(values) >= LEAST_VALUES:
            edges = [top * np.sqrt(3.0), *(top * 3.0 ** (k + 0.5) for k in range(1, 6))]
            groups = [every[(sweep.compute > low) & (sweep.compute <= high)] for low, high in itertools.pairwise(edges)]
            found.append((keep, [rows for rows in groups if len(rows)]))
    return found


def _steepening(sweep: _Sweep, laws: Laws) -> tuple[float, list[str]]:
    """How much faster ln L falls with ln C at the end of the sweep than before, and a warning; 0 where it does not.

    The exponents between neighbouring bottoms, in excess over E, are one number if the law holds; where the last is
    larger by more than their noise, the smallest budgets were still on their way to it (a first plateau, say).
    """
    if laws.bottoms is None or len(sweep.used) <= LEAST_BUDGETS:
        return 0.0, []
    flops, loss, _ = sweep.bottoms
    excess = loss - laws.bottoms.E
    steps = np.diff(np.log(flops))
    exponents = -np.diff(np.log(excess)) / steps
    before = float(np.average(exponents[:-1], weights=steps[:-1]))
    gain, share = float(exponents[-1]) - before, float(excess[-1] / loss[-1])
    if gain * share * steps[-1] < max(LEAST_STEEP, sweep.noise.relative_sd):
        return 0.0, []
    said = (
        f"the loss at the optimum, in excess over E = {laws.bottoms.E:.3g}, falls as C^-{exponents[-1]:.3g} between "
        f"the last two budgets and as C^-{before:.3g} before: small runs were still on a plateau, forecasts are wider; "
        "add larger budgets"
    )
    return gain * share, [said]


def _conventions(runs: object, table: Table, scale: str, loss: str, curves: bool) -> dict[str, str]:
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
        **(_OF_CURVES if curves else {}),
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
