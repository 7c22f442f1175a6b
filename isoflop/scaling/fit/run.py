"""Runs in, laws out: the one entrance to every fit, in numpy and scipy only.

`run_fit` is `isoflop fit TABLE... --law LAW`: read, map, filter, check, fit; its result is the command's JSON.
`fit_table` does the same to a table in memory. `fit_law_set` fits all laws to one's own sweep on the same bootstrap
resamples and is what `laws.json` holds: the planner, the comparison and the report read nothing else.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from isoflop.errors import FitError
from isoflop.scaling.fit.checks import check_resamples, fit_rows, import_checks, mixed_families
from isoflop.scaling.fit.experts import fit_experts
from isoflop.scaling.fit.isoflop import check_sizes, fit_curves, fit_parabola, group_budgets
from isoflop.scaling.fit.joint import fit_law_set
from isoflop.scaling.fit.lr_batch import fit_hyper
from isoflop.scaling.fit.parametric import fit_surface
from isoflop.scaling.fit.power_law import fit_lstar, fit_power
from isoflop.scaling.fit.table import LOSSES, Table, load_table

logger = logging.getLogger(__name__)

Law = Literal["parabola", "surface", "lstar", "hyper", "power", "experts"]
LAWS = get_args(Law)
__all__ = ["LAWS", "Law", "fit_law_set", "fit_table", "run_fit"]


def run_fit(
    tables: str | Path | Sequence[str | Path],
    law: str,
    *,
    mapping: str = "",
    where: Sequence[str] = (),
    drop_highest_loss: int = 0,
    weights: str = "",
    bootstrap: int = 1000,
    seed: int = 0,
    interpolation: str = "auto",
    group: str = "setting",
    at_flops: float | None = None,
    form: str = "",
) -> dict[str, Any]:
    """Fit one law to tables on disk, as `isoflop fit` does.

    Raises:
        DataError: a table is missing or malformed.
        FitError: a column is missing, a filter keeps nothing, or the runs cannot carry the law.
    """
    table = load_table(tables, mapping=mapping, where=where, drop_highest_loss=drop_highest_loss, weights=weights)
    return fit_table(
        table,
        law,
        bootstrap=bootstrap,
        seed=seed,
        interpolation=interpolation,
        group=group,
        at_flops=at_flops,
        form=form,
    )


def fit_table(
    table: Table,
    law: str,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    interpolation: str = "auto",
    group: str = "setting",
    at_flops: float | None = None,
    loss: str | None = None,
    scale: str | None = None,
    form: str = "",
) -> dict[str, Any]:
    """Fit one law to a table; the result holds the law's numbers, `warnings` and `conventions`.

    `group`: what one bootstrap draw of the surface is (row, setting or budget). `interpolation`: how the bottom of an
    IsoFLOP curve is found (auto, parabola, akima). `at_flops`: where the surface's optimum is reported. `form`: which
    law of experts (clark, joint, granularity, leverage; empty: every one that the columns allow).

    Raises:
        FitError: unknown law, a missing column, or runs that cannot carry the law.
    """
    if law not in LAWS:
        raise FitError(f"law = {law!r} must be one of {', '.join(LAWS)}")
    check_resamples(bootstrap)
    warnings = import_checks(table)
    if 0 < bootstrap < 100:
        warnings.append(f"bootstrap = {bootstrap}: 95% intervals from so few resamples are rough; 1000 is usual")
    loss_name = loss or next((name for name in LOSSES if table.has(name)), None)
    if law != "experts":
        warnings += mixed_families(table)
    table, left_out = fit_rows(table, _columns_read(table, law, loss_name, scale))
    options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
    if law == "surface":
        result = fit_surface(table, group=group, at_flops=at_flops, loss=loss, scale=scale, **options)
    elif law == "parabola":
        result = fit_parabola(table, interpolation=interpolation, loss=loss, scale=scale, **options)
    elif law == "power":
        result = fit_power(table, scale=scale, **options)
    elif law == "experts":
        result = fit_experts(table, form=form, loss=loss, **options)
    elif law == "lstar":
        result = _fit_lstar_table(table, interpolation=interpolation, loss=loss, scale=scale, **options)
    else:
        result = fit_hyper(table, **options)
    conventions = dict(result.get("conventions") or {})
    if loss_name and law != "power":
        conventions["loss"] = loss_name
    return {
        "law": law,
        **result,
        "warnings": warnings + left_out + list(result.get("warnings") or []),
        "conventions": {**table.conventions, **conventions},
    }


def _columns_read(table: Table, law: str, loss: str | None, scale: str | None) -> list[str]:
    """The columns whose gaps cost a law a row; a bad value in a column that it does not read costs nothing."""
    scales = [scale] if scale else [name for name in ("n_params", "flops_per_token") if table.has(name)][:1]
    compute = [name for name in ("total_flops", "budget_flops") if table.has(name)][:1]
    if law in ("hyper", "experts"):
        return []  # they sort their own rows
    if law == "power":
        return [*scales, "n_tokens", *compute]
    derived = len(scales) + table.has("n_tokens") < 2
    return [*scales, "n_tokens", *(compute if law != "surface" or derived else []), *([loss] if loss else [])]


def _fit_lstar_table(
    table: Table,
    *,
    bootstrap: int,
    seed: int,
    interpolation: str,
    loss: str | None,
    scale: str | None,
) -> dict[str, Any]:
    """L*(C) from the bottoms of IsoFLOP curves, or, where a budget has one row, from a table of optima."""
    law = "law lstar"
    _, flops = table.compute(law)
    name, losses = table.loss(law, loss)
    has_scale = table.has("n_params") or table.has("flops_per_token") or table.has("n_tokens")
    budgets = group_budgets(table, law, loss=loss, scale=scale) if has_scale else []
    if not budgets or np.median([budget.n_sizes for budget in budgets]) < 2:
        fit = fit_lstar(flops, losses, weight=table.weights(), bootstrap=bootstrap, seed=seed)
        fit["conventions"]["points"] = f"each row is one optimum ({name})"
        return fit
    check_sizes(budgets, law)
    curves, draws = fit_curves(
        table, bootstrap=bootstrap, seed=seed, interpolation=interpolation, loss=loss, scale=scale
    )
    used = [vertex for vertex in curves["vertices"] if vertex["used"]]
    fit = fit_lstar(
        np.array([vertex["total_flops"] for vertex in used]),
        np.array([vertex["loss"] for vertex in used]),
        draws_RB=draws,
        bootstrap=bootstrap,
        seed=seed,
    )
    fit["vertices"] = curves["vertices"]
    fit["warnings"] = curves["warnings"] + fit["warnings"]
    fit["conventions"]["points"] = f"bottoms of IsoFLOP curves ({name}); {curves['conventions']['interpolation']}"
    return fit
