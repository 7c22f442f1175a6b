"""The laws that joint.py fits: what they are fitted to, their minima, their resamples, and their rehearsals.

`Sweep` -> `Centre` (every law at its minimum) -> resampled constants; `find_rehearsals` does the first again below one
compute after the other and predicts the runs beyond. A resample weighs the settings anew (random weights of mean 1: the
Bayesian bootstrap, which never loses the third size of a small budget); their variance is n/(n - 5), which makes up for
what five constants hide of the noise of n cells.

A sweep over one or two decades of compute does not fix the loss E that no compute removes: fits that differ by 0.01% on
the runs put it anywhere between 0 and the lowest loss. So E has a prior, a share of the lowest loss and so the same in
every unit; a sweep that knows better outvotes it. Priors are weighed against the misfit of a surface without them.

Shapes: R resamples, S runs, B budgets.
"""

import dataclasses
import itertools
import math
from statistics import NormalDist
from typing import Any

import numpy as np

from isoflop.scaling.fit.isoflop import Budget, find_vertices, resampled_vertices
from isoflop.scaling.fit.parametric import Objective, Points, fit_centre, make_objective, minimise
from isoflop.scaling.fit.pooled import FloorPrior, PooledCurve, fit_pooled
from isoflop.scaling.laws import CONSTANTS, FLOPS_FACTOR, Laws, LossAtOptimum, Noise, Rehearsal, Scale, Surface, Vertex

SURFACES = {"log_huber": "log_huber", "varpro": "mse"}
"""Surfaces by name, and their objectives; varpro's minimum is found by the descent, which knows bounds and prior."""
SMALL_SWEEP_EXPONENTS = (0.05, 1.5)  # assumption: keeps five constants from running away on twenty cells
LEAST_BUDGETS, LEAST_RUNS, LEAST_VALUES = 3, 8, 3
FLOOR_SHARES, FLOOR_FLOPS, FLOOR_SPREAD = (0.4, 0.6), (5e11, 5e12), 0.2
"""Prior of E: median over the lowest loss, for sweeps that begin below 5e11 and above 5e12 FLOPs, and sd of ln E.

Assumption; docs/forecast.md and docs/log.md have the errors with other values. Chinchilla's E is 0.8 of its lowest loss
(arXiv 2404.10102); what a laptop's sweep reaches is far above anything irreducible. Where a sweep begins decides, not
where it ends: a larger budget that is bought must not move the prior. Public series begin above 1e15.
"""
EXPONENT, EXPONENT_SPREAD = 0.35, 0.1
"""Prior of alpha and beta (published fits: 0.28 to 0.46); without it one of them can take all the decline."""
NEARNESS, NEARNESS_OF_TABLES = 2.0, 1.0
"""Weight of a run: (C / largest C) to this power; the laws are approximations, used beyond the largest C.

Assumption: 1 to 2 do equally well on public curves (docs/forecast.md). Tables hold few runs at their upper end.
"""
PRIOR_STRATA = 8  # resamples are dealt out over so many equally likely means of the prior: its doubt is in the interval
CUTS = (100.0, 30.0, 10.0, 3.0)  # rehearsals of a table without budgets: largest compute over that of the cut
LEAST_NOISE = 1e-3  # assumption: runs that agree better agree by chance
LEAST_FREEDOM = 4  # spare runs below which a noise means nothing
LOSS_RISES = "the lowest loss does not fall with compute"
LEAST_STEEP = 5e-3
"""Assumption: the last bottom lies lower by this, and by a run's noise, than the exponent before says."""
Floor = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the laws are fitted to."""

    points: Points
    budgets: list[Budget]
    """Near the optimum, `rows` being indices into `points`; empty for a table without budgets."""
    scale: Scale
    """What S is."""
    noise: Noise
    misfit: float
    """How far runs lie off a surface without priors, sd of ln L: what a prior is weighed against."""
    vertices: list[Vertex]
    warnings: list[str]
    floor: Floor
    """Prior of E: share of the lowest loss, and sd of ln E."""

    @classmethod
    def of(cls, points: Points, budgets: list[Budget], scale: Scale, floor: Floor | None = None) -> "Sweep":
        if floor is None:
            flops = FLOPS_FACTOR[scale] * (points.scale * points.tokens).min()
            floor = float(np.interp(np.log(flops), np.log(FLOOR_FLOPS), FLOOR_SHARES)), FLOOR_SPREAD
        weight = points.weight * (points.scale * points.tokens) ** (NEARNESS if budgets else NEARNESS_OF_TABLES)
        points = dataclasses.replace(points, weight=weight / weight.mean())
        theta, _, _ = fit_centre(points, "log_huber", _bounded(points, "log_huber"))
        residual = np.log(Surface.of(points.constants(theta[None])[0]).loss(points.scale, points.tokens) / points.loss)
        noise = _noise(points, budgets, residual)
        misfit = math.sqrt(math.pi / 2) * float(np.abs(residual).mean()) * len(residual) / max(len(residual) - 5, 1)
        return cls(points, budgets, scale, noise, max(misfit, noise.relative_sd), *find_vertices(budgets), floor)

    @property
    def compute(self) -> np.ndarray:
        """Of each point, as the laws count it."""
        return FLOPS_FACTOR[self.scale] * self.points.scale * self.points.tokens

    @property
    def used(self) -> list[tuple[Budget, Vertex]]:
        """Budgets whose curve has its bottom among the tested sizes."""
        return [pair for pair in zip(self.budgets, self.vertices) if pair[1].used]

    @property
    def bottoms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute, loss and weight of the bottoms of these curves."""
        flops = np.array([FLOPS_FACTOR[self.scale] * vertex.scale_opt * vertex.tokens_opt for _, vertex in self.used])
        return flops, np.array([vertex.loss for _, vertex in self.used]), (flops / self.compute.max()) ** NEARNESS

    def prior(self, sd: float, n_resamples: int = 0) -> FloorPrior:
        """Of ln E beside squares of ln L that are `sd` large; for resamples, equally likely means dealt out in turn."""
        steps = (np.arange(PRIOR_STRATA) + 0.5) / PRIOR_STRATA if n_resamples else np.array([0.5])
        share, spread = self.floor
        median = math.log(share * self.points.loss.min())
        means = np.array([NormalDist(median, spread).inv_cdf(step) for step in steps])
        return FloorPrior(np.resize(means, max(n_resamples, 1)), (sd / spread) ** 2)

    def select(self, keep: np.ndarray) -> "Sweep":
        """Some of the points (sorted), with the budgets that lie wholly among them; the noise stays."""
        points = Points(*(getattr(self.points, f.name)[keep] for f in dataclasses.fields(Points)))
        budgets = [one.among(keep) for one in self.budgets if np.isin(one.rows, keep).all()]
        return Sweep(points, budgets, self.scale, self.noise, self.misfit, *find_vertices(budgets), self.floor)

    @property
    def shared_misfit(self) -> float:
        """Cells of one size share a trunk, a shape and a seed, and miss the law together: they count as one witness."""
        return self.misfit * math.sqrt(len(self.points.scale) / len(np.unique(self.points.scale)))


@dataclasses.dataclass(frozen=True)
class Centre:
    """Every law at its minimum."""

    surfaces: dict[str, tuple[np.ndarray, float]]
    """theta and objective."""
    pooled: PooledCurve | None
    bottoms: PooledCurve | None

    def laws(self, points: Points, **known: Any) -> Laws:
        """As `Laws`, without anything but the central constants."""
        surfaces = {name: _surface(points, *found) for name, found in self.surfaces.items()}
        lstar, bottoms = (c and LossAtOptimum(*c.lstar()[0].tolist()) for c in (self.pooled, self.bottoms))
        return Laws(surfaces=surfaces, lstar=lstar, bottoms=bottoms, **known)


def joint_weights(points: Points, generator: np.random.Generator, bootstrap: int) -> np.ndarray:
    """Weights of mean 1 per setting, the same for every law; equal settings (seeds) move together."""
    n_settings = int(points.setting.max()) + 1
    shape = max(1 - len(CONSTANTS) / n_settings, 0.25)  # variance 1 / shape
    drawn = generator.gamma(shape, 1 / shape, size=(bootstrap, n_settings))
    return drawn[:, points.setting] * points.weight


def _noise(points: Points, budgets: list[Budget], off_surface: np.ndarray) -> Noise:
    """Of one run, relative: from repeats, else from the parabolas of the budgets, else from a surface.

    Robust: the median size of a residual, with the constants that were fitted counted.
    """
    ln_loss = np.log(points.loss)
    repeats = ln_loss - (np.bincount(points.setting, ln_loss) / np.bincount(points.setting))[points.setting]
    repeated = np.bincount(points.setting)[points.setting] > 1
    off = []
    for budget in (budget for budget in budgets if len(budget.rows) > 3):
        x, y = np.log(budget.scale / budget.scale.mean()), np.log(budget.loss)
        off.append(y - np.polyval(np.polyfit(x, y, 2), x))
    kinds = [
        ("repeats", repeats[repeated], int(repeated.sum()) - len(np.unique(points.setting[repeated]))),
        ("bowls", np.concatenate([*off, np.empty(0)]), sum(len(part) - 3 for part in off)),
        ("surface", off_surface, max(len(points.loss) - len(CONSTANTS), LEAST_FREEDOM)),
    ]
    source, residual, freedom = next(kind for kind in kinds if kind[2] >= LEAST_FREEDOM)
    sd = 1.4826 * float(np.median(np.abs(residual))) * math.sqrt(len(residual) / freedom)
    return Noise(max(sd, LEAST_NOISE), freedom, source)


def _bounded(points: Points, name: str) -> Objective:
    """The objective with bounds for small sweeps."""
    found = make_objective(points, name)
    found.lower[3:], found.upper[3:] = SMALL_SWEEP_EXPONENTS
    return found


def _objective(sweep: Sweep, name: str) -> Objective:
    """That of a surface, bounded, with priors of E and the exponents against the misfit of the runs."""
    found, sd = _bounded(sweep.points, SURFACES[name]), sweep.shared_misfit
    if found.huber_delta is None:  # squares: 2 sigma^2 x the negative log-likelihood of a Gaussian
        unit = 2 * (sd * sweep.points.loss.mean()) ** 2
    else:  # beyond delta Huber's loss is delta x |r|: delta x scale x that of a Laplace law
        unit = found.huber_delta * max(sd * math.sqrt(2 / math.pi), found.huber_delta)
    spread = np.array([sweep.floor[1], np.inf, np.inf, EXPONENT_SPREAD, EXPONENT_SPREAD])
    means = np.array([sweep.prior(sd).mean_R[0], 0.0, 0.0, EXPONENT, EXPONENT])
    return dataclasses.replace(found, prior_mean=means, prior_precision=unit / spread**2)


def find_centre(sweep: Sweep) -> Centre:
    points = sweep.points
    surfaces = {name: fit_centre(points, path, _objective(sweep, name))[:2] for name, path in SURFACES.items()}
    if not sweep.budgets:
        return Centre(surfaces, None, None)
    prior = sweep.prior(sweep.shared_misfit)
    pooled = fit_pooled(sweep.compute, points.scale, points.loss, points.weight[None], prior=prior)
    flops, loss, weight = sweep.bottoms
    if len(loss) < 2:
        return Centre(surfaces, pooled, None)
    prior = sweep.prior(sweep.noise.relative_sd)
    return Centre(surfaces, pooled, fit_pooled(flops, None, loss, weight[None], prior=prior))


def resample(sweep: Sweep, centre: Centre, weight_RS: np.ndarray) -> dict[str, np.ndarray]:
    """Constants of every resample by law, each started at the centre; `pooled` is the place of the optimum."""
    points, n_resamples = sweep.points, len(weight_RS)
    prior = sweep.prior(sweep.shared_misfit, n_resamples)
    found = {}
    for name, (theta, _) in centre.surfaces.items():
        objective, rows_R5 = _objective(sweep, name), np.tile(theta, (n_resamples, 1))
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
        loss_RB = resampled_vertices([budget for budget, _ in sweep.used], weight_RS)[2]
        weight_RB = np.where(np.isfinite(loss_RB), weight, 0.0)
        loss_RB = np.where(np.isfinite(loss_RB), loss_RB, loss)
        prior = sweep.prior(sweep.noise.relative_sd, n_resamples)
        found["bottoms"] = fit_pooled(flops, None, loss_RB, weight_RB, centre.bottoms, prior).lstar()
    return found


def _surface(points: Points, theta: np.ndarray, value: float) -> Surface:
    E, A, B, alpha, beta = points.constants(theta[None])[0].tolist()
    mean = 1e6 * value / len(points.loss)
    return Surface(E, A, B, alpha, beta, a=beta / (alpha + beta), objective=value, objective_mean_x1e6=mean)


def find_rehearsals(sweep: Sweep) -> list[Rehearsal]:
    """Fitted below one compute, runs beyond it predicted; the last one leaves out the largest budget alone.

    Judged on the mean of the half of a budget's cells (at least three) that were predicted to be best: choosing by what
    was measured would pick the luckiest run and call its luck a miss. Tables without budgets: all runs beyond.
    """
    found = []
    for keep, groups in _cuts(sweep):
        part = sweep.select(keep)
        laws = find_centre(part).laws(part.points, scale=sweep.scale, loss="")
        for rows in groups:
            by_law = laws.losses(laws.constants(), sweep.points.scale[rows], sweep.points.tokens[rows])
            order = np.argsort(np.mean(list(by_law.values()), axis=0))
            best = order[: max(3, len(rows) // 2)] if sweep.budgets else np.arange(len(rows))
            loss = sweep.points.loss[rows[best]]
            ratio = {name: float(np.mean(values[best] / loss)) for name, values in by_law.items()}
            measured, mean = float(loss.mean()), float(np.mean(list(ratio.values())))
            reached = float(np.exp(np.log(sweep.compute[rows[best]]).mean()))
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


def _cuts(sweep: Sweep) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Rows to fit, and groups of rows to predict, smallest cut first."""
    if sweep.budgets:
        rows = [budget.rows for budget in sweep.budgets]
        return [(np.sort(np.concatenate(rows[:top])), rows[top:]) for top in range(2, len(rows))]
    found, compute = [], sweep.compute
    for step in CUTS:
        top = compute.max() / step
        keep = np.flatnonzero(compute <= top)
        values = [len(np.unique(part[keep])) for part in (sweep.points.scale, sweep.points.tokens)]
        if len(keep) >= LEAST_RUNS and min(values) >= LEAST_VALUES:
            edges = [top * np.sqrt(3.0), *(top * 3.0 ** (k + 0.5) for k in range(1, 6))]
            groups = [np.flatnonzero((compute > a) & (compute <= b)) for a, b in itertools.pairwise(edges)]
            found.append((keep, [rows for rows in groups if len(rows)]))
    return found


def find_steepening(sweep: Sweep, laws: Laws) -> tuple[float, list[str]]:
    """How much faster ln L falls with ln C at the end of the sweep than before, and a warning; 0 where it does not.

    The exponents between neighbouring bottoms, in excess over E, are one number if the law holds; where the last is
    larger by more than their noise, the smallest budgets were still on their way to it (a first plateau, say).
    """
    low, _, high = (sweep.points.loss[rows].min() for rows in np.array_split(np.argsort(sweep.compute), 3))
    if high >= low:
        return 0.0, [f"{LOSS_RISES}: {low:.4g} in the smallest runs, {high:.4g} in the largest; check the column"]
    if not laws.bottoms or len(sweep.used) <= LEAST_BUDGETS or sweep.bottoms[1].min() <= laws.bottoms.E:
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
