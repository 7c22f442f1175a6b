"""Laws of one variable, compute, fitted alone to any table: `isoflop fit TABLE --law parabola`, `power` or `lstar`.

Optima N* = k C^a, found by IsoFLOP curves or given as rows, and the loss at the optimum, L* = E + k (C/C0)^-g.
Power laws are straight lines in logarithms. L* is linear in E and k once g is known, so only g is searched, on a grid
that is refined three times, for all resamples at once.

Source: Hoffmann et al. 2022, approach 2 (arXiv 2203.15556); DeepSeek LLM 2024, section 3.2 (2401.02954).
Shapes: R resamples, B budgets.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.interpolate

from isoflop.errors import FitError
from isoflop.recipe import Tree
from isoflop.scaling.fit.isoflop import (
    FLAT,
    LAW,
    SAME_BUDGET,
    Bottom,
    Budget,
    find_vertex,
    find_vertices,
    fit_allocation,
    group_budgets,
    no_bowl,
    resampled_vertices,
)
from isoflop.scaling.fit.one_law import OneLaw
from isoflop.scaling.fit.table import Table

WALL = 1 / 3  # assumption: a quadratic in log N holds up to this much above the best loss
WALLED_SHARE = 1 / 4  # assumption: with this share of budgets beyond it, "auto" interpolates
DECAY_BOUNDS = (0.005, 1.5)  # assumption: wider than any published exponent of loss against compute


def fit_power(table: Table, *, bootstrap: int, seed: int) -> OneLaw:
    """Fit N* = k C^a and D* = k' C^b to a table of optima, one row each, with weights where the table has them.

    Intervals: optima are resampled by exponential weights (the Bayesian bootstrap) on top of their own.

    Raises:
        FitError: no column of optima or compute, fewer than two budgets.
    """
    law = "law power"
    _, flops = table.compute(law)
    columns = {"n": "n_params" if table.has("n_params") else "flops_per_token", "d": "n_tokens"}
    names = {letter: name for letter, name in columns.items() if table.has(name)}
    if not names:
        raise table.missing(["n_params or flops_per_token or n_tokens"], law)
    if flops.max() <= SAME_BUDGET * flops.min():
        raise FitError(f"{law}: {table.n_rows} row(s) at one compute; a slope needs optima at two budgets: add one")
    weight = table.weights()
    result: dict[str, object] = {}
    for letter, name in names.items():
        best = table.columns[name]
        if not (best > 0).all():
            raise FitError(f"{law}: column {name} must be above 0 in every row; drop the others with --where")
        draws_RB = np.tile(np.log10(best), (bootstrap, 1))
        weight_RB = np.random.default_rng(seed).exponential(size=draws_RB.shape)  # the same for N and D
        result |= fit_allocation(flops, best, letter, draws_RB=draws_RB, weight_RB=weight_RB, weight=weight)[0]
    vertices = [
        {"total_flops": float(flops[i])}
        | {key: float(table.columns[names[k]][i]) for k, key in (("n", "scale_opt"), ("d", "tokens_opt")) if k in names}
        for i in np.argsort(flops, kind="stable")
    ]
    result |= {"vertices": vertices, "n_rows": table.n_rows, "scale": names.get("n")}
    result["bootstrap"] = {"resamples": bootstrap, "seed": seed, "group": "row"}
    law = "ln-ln regression on compute; N* = n_coefficient C^n_exponent, likewise D*"
    return OneLaw(result, _shrinking(result), {"law": law})


def _shrinking(result: Mapping[str, object]) -> list[str]:
    """A warning where more compute asks for a smaller model or fewer tokens, which no known law says."""
    return [
        f"{letter}_exponent = {exponent:.3g}: the best {what} do not grow with compute; check the columns and budgets"
        for letter, what in (("n", "model sizes"), ("d", "token counts"))
        if isinstance(exponent := result.get(f"{letter}_exponent"), float) and not exponent > 1e-6
    ]


def fit_parabola(
    table: Table, *, bootstrap: int, seed: int = 0, interpolation: str = "auto"
) -> tuple[OneLaw, np.ndarray | None]:
    """Fit N* = k C^a and D* = k' C^b through the bottoms of the IsoFLOP curves.

    Intervals: runs inside each budget are resampled by exponential weights (the Bayesian bootstrap: no resample loses
    the third size of a budget); interpolated bottoms are resampled as whole budgets, likewise. Also returns the
    resampled losses at the used vertices (R x budgets; None where budgets are resampled).

    Raises:
        FitError: a budget with fewer than three sizes, or fewer than two budgets with a vertex in the tested range.
    """
    scale_name = table.scale(LAW)[0]
    budgets = group_budgets(table)
    check_sizes(budgets)
    method, reason = choose_interpolation(budgets, interpolation)
    vertices, warnings = find_vertices(budgets, akima_vertex if method == "akima" else find_vertex)
    used = [index for index, vertex in enumerate(vertices) if vertex.used]
    if budgets[-1].total_flops <= SAME_BUDGET * budgets[0].total_flops:
        raise FitError(
            f"{LAW}: all {table.n_rows} rows have one compute, {budgets[0].total_flops:.4g} FLOPs; a law of compute "
            "needs two budgets at least, better four: add one"
        )
    if len(used) < 2:
        raise FitError(
            f"{LAW}: vertex outside the tested range in {len(budgets) - len(used)} of {len(budgets)} budgets; two "
            f"usable budgets are the least: {'; '.join(warnings[:4])}"
        )
    flops = np.array([vertices[i].total_flops for i in used])
    if flops.max() <= SAME_BUDGET * flops.min():
        raise FitError(f"{LAW}: the usable budgets have one compute, {flops[0]:.4g} FLOPs: {'; '.join(warnings[:4])}")
    if not vertices[used[-1]].loss < vertices[used[0]].loss:
        warnings.append(
            "the lowest loss does not fall from the smallest to the largest budget; no law of compute says so"
        )
    generator = np.random.default_rng(seed)
    draws = None
    budget_weight_RB = np.ones((bootstrap, len(used)))
    if bootstrap and method == "parabola":
        weight_RN = generator.exponential(size=(bootstrap, table.n_rows)) * table.weights()
        draws = resampled_vertices([budgets[i] for i in used], weight_RN)
    elif bootstrap:
        budget_weight_RB = generator.exponential(size=(bootstrap, len(used)))
    result: dict[str, object] = {}
    for letter, key, part in (("n", "scale_opt", 0), ("d", "tokens_opt", 1)):
        best = np.array([getattr(vertices[i], key) for i in used])
        moved = np.tile(np.log10(best), (bootstrap, 1)) if draws is None else draws[part]
        result |= fit_allocation(flops, best, letter, draws_RB=moved, weight_RB=budget_weight_RB)[0]
    warnings += _shrinking(result)
    result |= {"vertices": [dataclasses.asdict(vertex) for vertex in vertices]}
    result |= {"n_budgets": len(budgets), "n_budgets_used": len(used), "n_rows": table.n_rows, "scale": scale_name}
    group = "budget" if draws is None else "row in budget"
    result |= {"interpolation": method, "bootstrap": {"resamples": bootstrap, "seed": seed, "group": group}}
    conventions = {
        "law": "N* = n_coefficient C^n_exponent, D* = d_coefficient C^d_exponent, unweighted in log10",
        "N": scale_name,
        "interpolation": f"{method} ({reason})",
        "vertex": "quadratic in log10 N and, separately, log10 D, through all points of a budget"
        if method == "parabola"
        else "Akima through ln loss over ln N and, separately, ln D; the lowest point between the tested sizes",
    }
    return OneLaw(result, warnings, conventions), None if draws is None else draws[2]


def check_sizes(budgets: list[Budget], law: str = LAW) -> None:
    """Refuse budgets that cannot have a vertex. Raises FitError when one has fewer than three sizes."""
    thin = [budget for budget in budgets if budget.n_sizes < 3]
    if thin:
        named = ", ".join(f"{b.budget_flops:.3g} ({b.n_sizes})" for b in thin[:6]) + (" ..." if len(thin) > 6 else "")
        raise FitError(
            f"{law}: {len(thin)} of {len(budgets)} budgets have fewer than three model sizes: {named}; a vertex needs "
            "at least three, better five: add sizes, or leave the budget out with --where"
        )


def choose_interpolation(budgets: list[Budget], asked: str) -> tuple[str, str]:
    """`parabola` or `akima`, and why."""
    if asked in ("parabola", "akima"):
        return asked, "as asked"
    if asked != "auto":
        raise FitError(
            f"interpolation = {asked!r} must be auto, parabola or akima; auto decides by the height of walls"
        )
    walled = sum(bool(budget.loss.max() > (1 + WALL) * budget.loss.min()) for budget in budgets)
    reason = f"{walled} of {len(budgets)} budgets reach more than a third above their best loss"
    return ("akima" if walled >= WALLED_SHARE * len(budgets) else "parabola"), reason


def akima_vertex(x: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Bottom:
    if flat := no_bowl(x, loss):
        return flat
    positions, index = np.unique(x, return_inverse=True)
    mean_loss = np.bincount(index, weight * loss) / np.bincount(index, weight)
    lowest = int(mean_loss.argmin())
    if lowest in (0, len(positions) - 1):
        side = "below" if lowest == 0 else "above"
        note = (
            f"the lowest loss is at the edge, so the vertex lies {side} 10^{positions[0]:.2f} to 10^{positions[-1]:.2f}"
        )
        return Bottom(float(positions[lowest]), float(mean_loss[lowest]), False, False, note)
    curve = scipy.interpolate.Akima1DInterpolator(positions, np.log(mean_loss))
    fine = np.linspace(positions[lowest - 1], positions[lowest + 1], 4001)
    values = curve(fine)
    best = int(values.argmin())
    return Bottom(float(fine[best]), float(np.exp(values[best])), True, True)


def search_decay(
    flops: np.ndarray, loss_RB: np.ndarray, weight_RB: np.ndarray, reference_flops: float
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of E + k (C/C0)^-g with E, k >= 0: E, k, g of shape (R, 3), and the sum of squares."""
    ratio = np.log(flops / reference_flops)
    n_resamples = len(loss_RB)
    low = np.full(n_resamples, np.log(DECAY_BOUNDS[0]))
    high = np.full(n_resamples, np.log(DECAY_BOUNDS[1]))
    best = np.zeros((n_resamples, 4))
    each = np.arange(n_resamples)
    for n_points in (97, 33, 33, 33, 33):
        grid_RG = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, n_points)
        basis_RGB = np.exp(-np.exp(grid_RG)[:, :, None] * ratio)
        floor_RG, rate_RG, sum_RG = _floor_and_rate(basis_RGB, loss_RB, weight_RB)
        lowest = sum_RG.argmin(1)
        best = np.stack([part[each, lowest] for part in (floor_RG, rate_RG, np.exp(grid_RG), sum_RG)], axis=1)
        step = (high - low) / (n_points - 1)
        centre = grid_RG[each, lowest]
        low = np.clip(centre - step, np.log(DECAY_BOUNDS[0]), None)
        high = np.clip(centre + step, None, np.log(DECAY_BOUNDS[1]))
    return best[:, :3], best[:, 3]


def fit_lstar(
    flops: np.ndarray,
    loss: np.ndarray,
    *,
    draws_RB: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bootstrap: int,
    seed: int,
    at_flops: float | None,
) -> OneLaw:
    """Fit the loss at the optimum against compute, L* = E + k (C/C0)^-g, C0 stated as `reference_flops`.

    `draws_RB`: resampled minima; without them the points are resampled by exponential weights. `at_flops`: where the
    loss is stated, with the interval of the law alone (not of one run).

    Raises:
        FitError: fewer than three budgets.
    """
    law = "law lstar"
    if len(np.unique(flops)) < 3 or flops.max() <= SAME_BUDGET * flops.min():
        near = " within 10% of one another" if len(np.unique(flops)) > 2 else ""
        raise FitError(
            f"{law}: {len(np.unique(flops))} budgets{near}; E, k and g need at least three, better five: add some"
        )
    if not ((flops > 0).all() and (loss > 0).all()):
        raise FitError(f"{law}: compute and loss must be above 0; drop the other rows with --where")
    reference_flops = float(10.0 ** np.round(np.log10(flops).mean()))
    weight = np.ones(len(flops)) if weight is None else weight
    constants, sums = search_decay(flops, loss[None], weight[None], reference_flops)
    E, k, g = map(float, constants[0])
    fitted = E + k * (flops / reference_flops) ** -g
    result: Tree = {"E": E, "k": k, "g": g, "reference_flops": reference_flops, "objective": float(sums[0])}
    result["max_relative_residual"] = float(np.abs(fitted / loss - 1).max())
    result["points"] = [
        {"total_flops": float(c), "loss": float(y), "fitted": float(f)} for c, y, f in zip(flops, loss, fitted)
    ]
    if at_flops:
        result["optimum"] = {"total_flops": at_flops, "loss": E + k * (at_flops / reference_flops) ** -g}
    errors = _standard_errors(flops / reference_flops, loss, weight, (E, k, g))
    if errors is not None:
        result["standard_error"] = dict(zip("Ekg", errors))
    warnings = []
    if k <= FLAT * loss.max():
        warnings.append(
            "lstar: k is 0, because the losses do not fall with compute; E is their mean, and g means nothing"
        )
    elif loss.min() * 1e-9 >= E:
        warnings.append("lstar: E is at 0, so a pure power law fits as well; it is useless far beyond the data")
    if not DECAY_BOUNDS[0] * 1.01 < g < DECAY_BOUNDS[1] / 1.01:
        warnings.append(f"lstar: g = {g:.3g} stands at the edge of its range; the minima do not fix it")
    if len(flops) == 3:
        warnings.append("lstar: three budgets and three constants leave no residual; the fit is not tested")
    if bootstrap:
        if draws_RB is None:
            draws_RB = np.tile(loss, (bootstrap, 1))
            weight_RB = np.random.default_rng(seed).exponential(size=draws_RB.shape) * weight
        else:
            weight_RB = np.tile(weight, (len(draws_RB), 1))
        fine = np.isfinite(draws_RB).all(1)
        resamples = search_decay(flops, draws_RB[fine], weight_RB[fine], reference_flops)[0]
        if len(resamples) >= 2:
            result["bootstrap_sd"] = dict(zip("Ekg", resamples.std(0, ddof=1).tolist()))
            result["interval_95"] = dict(zip("Ekg", np.percentile(resamples, [2.5, 97.5], axis=0).T.tolist()))
            if at_flops:
                there = resamples[:, 0] + resamples[:, 1] * (at_flops / reference_flops) ** -resamples[:, 2]
                result["optimum"] |= {"interval_95": np.percentile(there, [2.5, 97.5]).tolist()}
    conventions = {"law": f"L* = E + k (C / {reference_flops:.6g})^-g, least squares", "E": "not below 0"}
    return OneLaw(result, warnings, conventions)


def _floor_and_rate(
    basis_RGB: np.ndarray, loss_RB: np.ndarray, weight_RB: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E and k by least squares for given decays, with E >= 0 and k >= 0, and the sum of squares, each RG."""
    total = weight_RB.sum(1)[:, None]
    basis_mean = np.einsum("rgb,rb->rg", basis_RGB, weight_RB) / total
    loss_mean = (weight_RB * loss_RB).sum(1)[:, None] / total
    offset_RGB = basis_RGB - basis_mean[:, :, None]
    spread = np.einsum("rgb,rb->rg", offset_RGB**2, weight_RB)
    rate = np.einsum("rgb,rb->rg", offset_RGB, weight_RB * loss_RB) / np.maximum(spread, 1e-300)
    floor = loss_mean - rate * basis_mean
    no_floor = np.einsum("rgb,rb->rg", basis_RGB, weight_RB * loss_RB) / np.einsum(
        "rgb,rb->rg", basis_RGB**2, weight_RB
    )
    rate = np.where(floor < 0, no_floor, np.maximum(rate, 0.0))
    floor = np.where(floor < 0, 0.0, loss_mean - rate * basis_mean)
    residual = floor[:, :, None] + rate[:, :, None] * basis_RGB - loss_RB[:, None]
    return floor, rate, np.einsum("rgb,rb->rg", residual**2, weight_RB)


def _standard_errors(
    ratio: np.ndarray, loss: np.ndarray, weight: np.ndarray, constants: tuple[float, float, float]
) -> list[float] | None:
    """From the Jacobian at the minimum; None without spare points."""
    E, k, g = constants
    degrees = len(ratio) - 3
    if degrees < 1:
        return None
    power = ratio**-g
    root = np.sqrt(weight / weight.mean())[:, None]
    jacobian = np.stack([np.ones_like(ratio), power, -k * np.log(ratio) * power], axis=1) * root
    residual = (E + k * power - loss) * root[:, 0]
    try:
        covariance = np.linalg.inv(jacobian.T @ jacobian) * (residual @ residual) / degrees
    except np.linalg.LinAlgError:  # E and k cannot be told apart when g is near 0
        return None
    return np.sqrt(np.diag(covariance)).tolist()
