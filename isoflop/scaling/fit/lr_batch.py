"""Best learning rate and batch from grids of runs, their laws of scale, and what a law costs (its regret).

A table of runs goes in: several settings (a size and a token count), each a grid of learning rates and batches. Per
setting the optimum is found in two ways: the near-optimal *band* (arXiv 2401.02954: every run within 0.25% of the best
counts) and a quadratic *surface* in (ln learning rate, ln batch). Optima are regressed on scale; whole settings are
resampled for the intervals, because runs inside a grid are not independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.errors import FitError, RecipeError
from isoflop.scaling.lr_batch_law import EXPONENTS, HYPER_LAWS, FittedPower, HyperLaw, PowerLaw, RateBatchFit, Regret

BAND = 0.0025
"""Runs this close to the best of their setting (relative loss) count as optimal. Source: arXiv 2401.02954, 3.1."""
WITHIN = 0.02
"""The quadratic surface holds for runs this close to the best (scaling-law fact sheet, section 4)."""
SAME_SETTING = 0.03
"""Sizes and token counts closer than this (relative) are one setting: token counts are rounded to whole steps."""


Regressors = dict[str, tuple[list[str], list[str]]]
"""Suffix of a method's name -> quantities that rate and batch are regressed on."""
Rows = list[tuple[int, float, float]]
"""(setting, ln learning rate, ln batch) of everything that counts as optimal."""
ACTIVE = "n_params_non_embedding less the experts that a token does not use"
"""What N is of a mixture."""


@dataclass(frozen=True)
class Setting:
    """The grid of one size and token count, in natural logarithms."""

    scale: dict[str, float]
    """total_flops, and n_params, n_tokens, flops_per_token as far as known; plain values, not logarithms."""
    ln_lr: np.ndarray
    ln_batch: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Optimum:
    """The vertex of one setting's quadratic, or why there is none."""

    ln_lr: float = math.nan
    ln_batch: float = math.nan
    loss: float = math.nan
    curvature: tuple[float, float] = (math.nan, math.nan)
    """Eigenvalues of the Hessian of the loss relative to the best, both above 0 at an optimum."""
    points: int = 0
    refused: str = ""


def fit_hyper(
    table: Mapping[str, np.ndarray],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    count: Literal["active", "total"] = "active",
) -> RateBatchFit:
    """Fit laws of learning rate and batch to grids of runs.

    `table` has the columns learning_rate, loss_nats or bits_per_byte, two of scale, tokens and compute (n_params or
    flops_per_token; n_tokens; total_flops or budget_flops), and batch_tokens if it was varied.
    `count` says which parameters of a mixture of experts N counts in own records; which of them enters a law is an open
    question, so that by default the law of the other count is reported beside it.

    Raises:
        FitError: a column is missing, or fewer than two settings have an optimum by either method.
    """
    columns, names, warnings = _columns(table, count)
    settings = _settings(columns, warnings)
    regressors = _regressors(settings)
    optima = [quadratic_optimum(setting) for setting in settings]
    for setting, optimum in zip(settings, optima, strict=True):
        if optimum.refused:
            label = ", ".join(f"{name} {value:.3g}" for name, value in setting.scale.items())
            warnings.append(f"setting {label}: surface refused, {optimum.refused}")
    vertices = [(i, o.ln_lr, o.ln_batch) for i, o in enumerate(optima) if not o.refused]
    points = {"surface": vertices, "band": _band_points(settings)}
    vary_batch = any(np.ptp(setting.ln_batch) > 0 for setting in settings)
    laws: dict[str, dict[str, FittedPower]] = {"learning_rate": {}, "batch": {}}
    generator = np.random.default_rng(seed)
    for method, rows in points.items():
        for suffix, (lr_on, batch_on) in regressors.items():
            for part, on in [("learning_rate", lr_on), ("batch", batch_on)][: 1 + vary_batch]:
                if law := _regress(settings, rows, part, on, bootstrap, generator):
                    laws[part][f"{method}{suffix}"] = law
    if not laws["learning_rate"]:
        raise FitError(
            f"hyper: {len(settings)} settings of size and tokens give fewer than two usable optima, and a law needs "
            f"at least two; run grids of learning rate (and batch) at two or more scales. {'; '.join(warnings)}"
        )
    if not vary_batch:
        warnings.append("batch_tokens does not vary inside any setting: no batch law was fitted")
    own_law = _own_law(laws, settings, regressors)
    regret = _regrets(laws, own_law, settings, regressors, warnings)
    total = None
    if names["n_params"] == ACTIVE:
        total = fit_hyper(table, bootstrap=bootstrap, seed=seed, count="total")
    return RateBatchFit(
        own_law,
        **laws,
        regret=regret,
        settings=[_row(setting, optimum) for setting, optimum in zip(settings, optima, strict=True)],
        conventions={
            **names,
            "band": BAND,
            "within": WITHIN,
            "bootstrap": f"{bootstrap} resamples of whole settings, seed {seed}",
        },
        warnings=warnings,
        by_total_parameters=total,
    )


def quadratic_optimum(setting: Setting) -> Optimum:
    """Vertex of a least-squares quadratic in (ln lr, ln batch) over the runs within `WITHIN` of the best.

    Refused: too few runs, a saddle or a maximum, a vertex outside the range of the grid. A batch that does not vary
    leaves a parabola in ln lr.
    """
    best, n = float(setting.loss.min()), 2 if np.ptp(setting.ln_batch) > 0 else 1
    near = setting.loss <= best * (1 + WITHIN)
    grid = (setting.ln_lr, setting.ln_batch)[:n]
    axes = [values[near] for values in grid]
    count, terms = int(near.sum()), 6 if n == 2 else 3
    if count < terms or any(len(np.unique(axis)) < 3 for axis in axes):
        return Optimum(points=count, refused=f"{count} runs within {WITHIN:.0%} of the best do not fix a quadratic")
    centers, widths = [axis.mean() for axis in axes], [axis.std() for axis in axes]
    z = [(axis - c) / w for axis, c, w in zip(axes, centers, widths, strict=True)]
    design = [np.ones(count), *z, *(v * v for v in z)]
    if n == 2:
        design.append(z[0] * z[1])
    relative = setting.loss[near] / best - 1
    constants, _, rank, _ = np.linalg.lstsq(np.stack(design, axis=1), relative, rcond=None)
    if rank < terms:
        return Optimum(points=count, refused="the runs lie on a line and do not fix a quadratic")
    hessian = np.diag(2 * constants[1 + n : 1 + 2 * n])
    if n == 2:
        hessian[0, 1] = hessian[1, 0] = constants[5]
    eigenvalues = np.linalg.eigvalsh(hessian)
    if eigenvalues[0] <= 0:
        return Optimum(points=count, refused="the quadratic is a saddle or a maximum: no optimum inside")
    vertex_z = np.linalg.solve(hessian, -constants[1 : 1 + n])
    vertex = [float(c + v * w) for c, v, w in zip(centers, vertex_z, widths, strict=True)]
    for name, value, values in zip(("learning rate", "batch"), vertex, grid, strict=False):
        low, high = float(values.min()), float(values.max())
        if not low <= value <= high:
            side, tested = "below" if value < low else "above", f"{math.exp(low):.3g} to {math.exp(high):.3g}"
            refused = f"{name} {math.exp(value):.3g} of the vertex lies {side} the tested range {tested}"
            return Optimum(points=count, refused=f"{refused}: extend the grid")
    at_vertex = float(constants[0] + 0.5 * constants[1 : 1 + n] @ vertex_z)
    curvature = np.linalg.eigvalsh(hessian / np.outer(widths, widths))
    ln_batch = vertex[1] if n == 2 else float(setting.ln_batch[0])
    return Optimum(vertex[0], ln_batch, best * (1 + at_vertex), (float(curvature[0]), float(curvature[-1])), count)


def regret(law: HyperLaw, settings: list[Setting]) -> np.ndarray:
    """Relative loss lost per setting at the grid point nearest in (ln lr, ln batch) to what the law chooses."""
    lost = []
    for setting in settings:
        rate, batch = (math.log(part.at(**setting.scale)) for part in (law.learning_rate, law.batch_tokens))
        nearest = np.argmin((setting.ln_lr - rate) ** 2 + (setting.ln_batch - batch) ** 2)
        lost.append(setting.loss[nearest] / setting.loss.min() - 1)
    return np.array(lost)


def _columns(given: Mapping[str, np.ndarray], count: str) -> tuple[dict[str, np.ndarray], dict[str, object], list[str]]:
    """Columns of usable runs under our names, what stands for loss, N and C, and a warning of what was left out."""
    values = {name: np.asarray(given[name]) for name in given}
    values = {name: v.astype(float) for name, v in values.items() if v.dtype.kind in "fiu" and np.isfinite(v).any()}
    params_name = "n_params"
    if "n_params" not in values and "n_params_non_embedding" in values:  # own records count both
        values["n_params"], params_name = values["n_params_non_embedding"], "n_params_non_embedding"
        idle = np.nan_to_num(values.get("n_params_total", np.zeros(1)) - values.get("n_params_active", np.nan))
        if count == "active" and (idle > 0).any():
            values["n_params"], params_name = values["n_params"] - idle, ACTIVE
    loss = next((name for name in ("bits_per_byte", "loss_nats") if name in values), None)
    scale = next((name for name in ("n_params", "flops_per_token") if name in values), None)
    compute = next((name for name in ("total_flops", "budget_flops") if name in values), None)
    missing = [] if "learning_rate" in values else ["learning_rate"]
    missing += [] if loss else ["loss_nats or bits_per_byte"]
    if not (compute or (scale and "n_tokens" in values)):
        missing.append("n_params (or flops_per_token) and n_tokens, or total_flops")
    if missing:
        raise FitError(
            f"hyper: columns {', '.join(missing)} are missing; the table has {', '.join(map(str, given))}; "
            "name them with --map ours=theirs, for example --map learning_rate=lr,loss_nats=loss"
        )
    columns = {name: values[name] for name in _NAMES if name in values}
    columns["loss"] = columns[str(loss)]
    columns.setdefault("batch_tokens", np.ones_like(columns["loss"]))
    if "n_tokens" not in columns and compute and scale:
        columns["n_tokens"] = columns[compute] / (columns[scale] * (6 if scale == "n_params" else 1))
    name = compute
    if "flops_per_token" in columns and "n_tokens" in columns and name != "total_flops":
        name = "flops_per_token * n_tokens"
        columns["total_flops"] = columns["flops_per_token"] * columns["n_tokens"]
    elif compute:
        columns["total_flops"] = columns[compute]
    else:
        columns["total_flops"], name = 6 * columns["n_params"] * columns["n_tokens"], "6 n_params n_tokens"
    good = np.all([np.isfinite(v) & (v > 0) for v in columns.values()], axis=0)
    text = f"{int((~good).sum())} runs without a finite loss, rate, batch or size were left out (diverged?)"
    names: dict[str, object] = {"loss": loss, "n_params": params_name, "compute": name}
    return {name: v[good] for name, v in columns.items()}, names, [] if good.all() else [text]


_NAMES = (
    *("learning_rate", "batch_tokens", "loss_nats", "bits_per_byte"),
    *("n_params", "flops_per_token", "n_tokens", "total_flops", "budget_flops"),
)


def _settings(columns: dict[str, np.ndarray], warnings: list[str]) -> list[Setting]:
    """Group runs whose size and tokens (or compute, if there is nothing else) agree within `SAME_SETTING`."""
    keys = [name for name in ("n_params", "flops_per_token", "n_tokens") if name in columns]
    keys = keys if len(keys) > 1 else ["total_flops"]
    labels = np.stack([_cluster(np.log(columns[name])) for name in keys], axis=1)
    settings, alone = [], 0
    for label in np.unique(labels, axis=0):
        rows = np.all(labels == label, axis=1)
        if len(np.unique(columns["learning_rate"][rows])) < 3:  # seeds of one rate are no grid
            alone += int(rows.sum())
            continue
        scale = {
            name: float(np.exp(np.log(columns[name][rows]).mean()))
            for name in ("n_params", "n_tokens", "total_flops", "flops_per_token")
            if name in columns
        }
        rate, batch = (np.log(columns[name][rows]) for name in ("learning_rate", "batch_tokens"))
        settings.append(Setting(scale, rate, batch, columns["loss"][rows]))
    if alone:
        warnings.append(
            f"{alone} runs belong to no grid (fewer than three rates at their size and tokens) and were left out"
        )
    if len(settings) < 2:
        raise FitError(
            f"hyper: {len(settings)} setting(s) with a grid of at least three learning rates, a law needs two or more; "
            "run the same grid of learning rates at another size or token count"
        )
    return settings


def _cluster(values: np.ndarray) -> np.ndarray:
    """Group number per value: a gap above `SAME_SETTING` between sorted neighbours starts a new group."""
    order = np.argsort(values, kind="stable")
    return np.concatenate([[0], np.cumsum(np.diff(values[order]) > SAME_SETTING)])[np.argsort(order)]


def _regressors(settings: list[Setting]) -> Regressors:
    """What to regress on: (learning rate, batch) by suffix of the method's name.

    N and D separately only if the settings tell them apart: the condition of the centred design is checked.
    """
    found: Regressors = {}
    if all("n_params" in s.scale and "n_tokens" in s.scale for s in settings) and len(settings) >= 4:
        x = np.array([[math.log(s.scale["n_params"]), math.log(s.scale["n_tokens"])] for s in settings])
        spread = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        if spread[-1] > 0.15 * spread[0]:  # below, N and D move together and only C can be told
            found[""] = (["n_params", "n_tokens"], ["n_tokens"])
    if np.ptp([math.log(s.scale["total_flops"]) for s in settings]) > math.log(1.5):
        found["_compute"] = (["total_flops"], ["total_flops"])
    if not found:
        raise FitError("hyper: all settings have the same compute; run grids at compute at least a factor 1.5 apart")
    return found


def _band_points(settings: list[Setting]) -> Rows:
    rows: Rows = []
    for i, s in enumerate(settings):
        near = s.loss <= s.loss.min() * (1 + BAND)
        rows += [(i, float(rate), float(batch)) for rate, batch in zip(s.ln_lr[near], s.ln_batch[near], strict=True)]
    return rows


def _regress(
    settings: list[Setting], rows: Rows, part: str, on: list[str], bootstrap: int, generator: np.random.Generator
) -> FittedPower | None:
    """Log-log regression of the optima on scale, resampling whole settings; None if they do not determine it."""
    which = np.array([row[0] for row in rows], dtype=int)
    used, position = np.unique(which, return_inverse=True)
    if len(used) < len(on) + 1:
        return None
    y = np.array([row[1 if part == "learning_rate" else 2] for row in rows])
    x = np.array([[1.0, *(math.log(settings[i].scale[name]) for name in on)] for i in which])
    center = x[:, 1:].mean(axis=0)
    x[:, 1:] -= center  # keeps the normal equations well conditioned

    def solve(weight: np.ndarray) -> np.ndarray:
        root = np.sqrt(weight)
        return np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]

    constants, names, draws = solve(np.ones(len(y))), [EXPONENTS[name] for name in on], []
    residuals = y - x @ constants
    for _ in range(bootstrap):
        weight = np.bincount(generator.integers(0, len(used), len(used)), minlength=len(used))
        if np.count_nonzero(weight) <= len(on):
            continue  # such a resample does not determine the law
        drawn = weight[position].astype(float)
        if np.linalg.matrix_rank(x[drawn > 0]) == x.shape[1]:
            moved = solve(drawn)
            draws.append([moved[0] - moved[1:] @ center, *moved[1:]])
    intervals: dict[str, list[float]] | None = None
    if len(draws) >= 20 and len(used) > len(on) + 1:
        low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0)
        intervals = {"coefficient": [math.exp(low[0]), math.exp(high[0])]}
        intervals |= {n: [float(a), float(b)] for n, a, b in zip(names, low[1:], high[1:], strict=True)}
    return FittedPower(
        coefficient=math.exp(constants[0] - constants[1:] @ center),
        **dict(zip(names, map(float, constants[1:]), strict=True)),
        settings=len(used),
        points=len(rows),
        residual_sd=float(np.sqrt((residuals**2).sum() / max(1, len(y) - x.shape[1]))),
        interval_95=intervals,
        resamples=len(draws) if intervals else None,
    )


def _own_law(
    laws: dict[str, dict[str, FittedPower]],
    settings: list[Setting],
    regressors: Regressors,
    methods: Sequence[str] = ("surface", "band"),
) -> HyperLaw:
    """The law to use: surface before band, N and D before C; batch from the same kind, else a constant."""
    order = [f"{method}{suffix}" for suffix in regressors for method in methods]
    rate_name = next(name for name in order if name in laws["learning_rate"])
    batch_name = next((name for name in order if name in laws["batch"]), None)
    used = PowerLaw(math.exp(float(np.mean([s.ln_batch.mean() for s in settings]))))
    return HyperLaw(
        name="own",
        learning_rate=laws["learning_rate"][rate_name].law(),
        batch_tokens=used if batch_name is None else laws["batch"][batch_name].law(),
        source=f"own fit: learning rate by {rate_name}, batch by {batch_name or 'the one that was used'}",
        grade="data",
    )


def _regrets(
    fitted: dict[str, dict[str, FittedPower]],
    own_law: HyperLaw,
    settings: list[Setting],
    regressors: Regressors,
    warnings: list[str],
) -> dict[str, Regret]:
    laws = {"own_law": own_law}
    for method in ("surface", "band"):
        if any(f"{method}{suffix}" in fitted["learning_rate"] for suffix in regressors):
            laws[f"{method}_law"] = _own_law(fitted, settings, regressors, (method,))
    laws |= {name: HYPER_LAWS[name] for name in ("deepseek", "steplaw")}
    found: dict[str, Regret] = {}
    for name, law in laws.items():
        try:
            lost = regret(law, settings)
        except RecipeError as error:
            warnings.append(f"regret of {name} was not computed: {error}")
            continue
        found[name] = Regret(float(lost.mean()), float(lost.max()), len(lost))
    if "steplaw" in found:
        found["published_law"] = found["steplaw"]
    return found


def _row(setting: Setting, optimum: Optimum) -> dict[str, object]:
    best = int(np.argmin(setting.loss))
    row: dict[str, object] = {**setting.scale, "runs": len(setting.loss), "best_loss": float(setting.loss.min())}
    row["best_learning_rate"] = math.exp(setting.ln_lr[best])
    row["best_batch_tokens"] = math.exp(setting.ln_batch[best])
    if optimum.refused:
        row["refused"] = optimum.refused
    else:
        row["learning_rate"], row["batch_tokens"] = math.exp(optimum.ln_lr), math.exp(optimum.ln_batch)
        row["loss"], row["curvature"] = optimum.loss, optimum.curvature
    return row | {"points": optimum.points}
