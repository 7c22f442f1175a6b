"""Tables of runs on disk -> laws, in numpy and scipy only: what `isoflop fit` does.

`fit_files` is `isoflop fit TABLE...`: read, map, filter, check, fit every law (fit/joint.py). `run_fit` does the same
with `--law LAW`; its result is the command's JSON. `fit_table` fits one law to a table in memory.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from isoflop.errors import FitError
from isoflop.recipe import Tree
from isoflop.scaling.fit import joint
from isoflop.scaling.fit.checks import check_resamples, families, fit_rows, import_checks
from isoflop.scaling.fit.experts import fit_experts
from isoflop.scaling.fit.isoflop import group_budgets
from isoflop.scaling.fit.lr_batch import fit_hyper
from isoflop.scaling.fit.one_law import OneLaw
from isoflop.scaling.fit.overtraining import fit_error, fit_overtraining
from isoflop.scaling.fit.power_law import check_sizes, fit_lstar, fit_parabola, fit_power
from isoflop.scaling.fit.repeated import fit_repeated
from isoflop.scaling.fit.selection import load_table
from isoflop.scaling.fit.surface import fit_surface
from isoflop.scaling.fit.table import COMPUTE, LOSSES, Table
from isoflop.scaling.fit.task_law import with_benchmarks
from isoflop.scaling.laws import Laws
from isoflop.scaling.published import load_laws

Law = Literal["parabola", "surface", "lstar", "hyper", "power", "experts", "repeated", "overtraining", "error"]
LAWS = get_args(Law)


def fit_files(
    tables: str | Path | Sequence[str | Path],
    *,
    mapping: str = "",
    where: Sequence[str] = (),
    drop_highest_loss: int = 0,
    weights: str = "",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Laws:
    """Fit every law to tables on disk, also those of benchmarks where cells beside a table were evaluated.

    A size or a loss that `mapping` names is the one that is fitted, also where the table has another by our name.

    Raises:
        DataError: a table is missing or malformed.
        FitError: a column is missing, a filter keeps nothing, or the runs cannot carry the laws.
    """
    table = load_table(tables, mapping=mapping, where=where, drop_highest_loss=drop_highest_loss, weights=weights)
    named = [pair.partition("=")[0].strip() for pair in mapping.split(",")]
    scale = next((name for name in ("flops_per_token", "n_params") if name in named), None)
    loss = next((name for name in ("bits_per_byte", "loss_nats") if name in named), None)
    laws = joint.fit(table, bootstrap=bootstrap, seed=seed, scale=scale, loss=loss)
    files = [Path(table) for table in ([tables] if isinstance(tables, (str, Path)) else tables)]
    folders = [folder for file in files for folder in (file.parent / "cells", file.parent / "sweep/cells")]
    return with_benchmarks(laws, table, folders, bootstrap=bootstrap, seed=seed)


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
    base: str = "",
) -> Tree:
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
        base=base,
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
    form: str = "",
    base: str = "",
) -> Tree:
    """Fit one law to a table; the result holds the law's numbers, `warnings` and `conventions`.

    `group`: what one bootstrap draw of the surface is (row, setting or budget). `interpolation`: how the bottom of an
    IsoFLOP curve is found (auto, parabola, akima). `at_flops`: where the optimum of the surface or the loss of lstar is
    stated. `form`: which law of experts (clark, joint, granularity, leverage; empty: every one that the columns allow).
    `base`: laws of fresh tokens for the law of repeated ones, a file or a published name; empty: rows of one pass.

    Raises:
        FitError: unknown law, a missing column, or runs that cannot carry the law.
    """
    if law not in LAWS:
        raise FitError(f"law = {law!r} must be one of {', '.join(LAWS)}")
    check_resamples(bootstrap)
    warnings = table.warnings + import_checks(table)
    if 0 < bootstrap < 100:
        warnings.append(f"bootstrap = {bootstrap}: 95% intervals from so few resamples are rough; 1000 is usual")
    loss = table.first_of(LOSSES)
    if law != "experts":
        warnings += _mixed_families(table)
    table, left_out = fit_rows(table, _columns_read(table, law, loss))
    if law == "surface":
        fit = fit_surface(table, bootstrap=bootstrap, seed=seed, group=group, at_flops=at_flops)
    elif law == "parabola":
        fit, _ = fit_parabola(table, bootstrap=bootstrap, seed=seed, interpolation=interpolation)
    elif law == "power":
        fit = fit_power(table, bootstrap=bootstrap, seed=seed)
    elif law == "experts":
        fit = fit_experts(table, bootstrap=bootstrap, seed=seed, form=form)
    elif law == "repeated":
        fit = fit_repeated(table, base=load_laws(base) if base else None, bootstrap=bootstrap, seed=seed)
    elif law == "overtraining":
        fit = fit_overtraining(table, bootstrap=bootstrap, seed=seed)
    elif law == "error":
        fit = fit_error(table, bootstrap=bootstrap, seed=seed)
    elif law == "lstar":
        fit = _fit_lstar_table(table, bootstrap=bootstrap, seed=seed, interpolation=interpolation, at_flops=at_flops)
    else:
        tree = fit_hyper(table.columns, bootstrap=bootstrap, seed=seed).tree()
        fit = OneLaw(tree, tree.pop("warnings"), tree.pop("conventions"))
    stated = {"loss": loss} if loss and law != "power" else {}
    return {
        "law": law,
        **fit.found,
        "inferences": table.inferences,
        "warnings": warnings + left_out + fit.warnings,
        "conventions": {**table.conventions, **fit.conventions, **stated},
    }


def _mixed_families(table: Table) -> list[str]:
    """A warning where one law would be fitted to models of several kinds."""
    kinds = families(table)
    if len(kinds) < 2:
        return []
    shown = "; ".join(f"{name} ({count} rows)" for name, count in kinds.items())
    return [f"{len(kinds)} kinds of models share one law: {shown}; fit each alone (--where), or --law experts to all"]


def _columns_read(table: Table, law: str, loss: str | None) -> list[str]:
    """The columns whose gaps cost a law a row; a bad value in a column that it does not read costs nothing."""
    scale, compute = table.first_of(("n_params", "flops_per_token")), table.first_of(COMPUTE)
    if law in ("hyper", "experts"):
        return []  # they sort their own rows
    if law in ("repeated", "overtraining"):
        read = [scale, "n_tokens", "unique_tokens" if law == "repeated" else None, loss]
    elif law == "error":
        read = ["error", loss]
    elif law == "power":
        read = [scale, "n_tokens", compute]
    else:
        derived = scale is None or not table.has("n_tokens")
        read = [scale, "n_tokens", compute if law != "surface" or derived else None, loss]
    return [name for name in read if name]


def _fit_lstar_table(table: Table, *, bootstrap: int, seed: int, interpolation: str, at_flops: float | None) -> OneLaw:
    """L*(C) from the bottoms of IsoFLOP curves, or, where a budget has one row, from a table of optima."""
    law = "law lstar"
    _, flops = table.compute(law)
    name, losses = table.loss(law)
    has_scale = table.first_of(("n_params", "flops_per_token", "n_tokens"))
    budgets = group_budgets(table, law) if has_scale else []
    if not budgets or np.median([budget.n_sizes for budget in budgets]) < 2:
        fit = fit_lstar(flops, losses, weight=table.weights(), bootstrap=bootstrap, seed=seed, at_flops=at_flops)
        fit.conventions["points"] = f"each row is one optimum ({name})"
        return fit
    check_sizes(budgets, law)
    curves, draws = fit_parabola(table, bootstrap=bootstrap, seed=seed, interpolation=interpolation)
    used = [vertex for vertex in curves.found["vertices"] if vertex["used"]]
    fit = fit_lstar(
        np.array([vertex["total_flops"] for vertex in used]),
        np.array([vertex["loss"] for vertex in used]),
        draws_RB=draws,
        bootstrap=bootstrap,
        seed=seed,
        at_flops=at_flops,
    )
    points = f"bottoms of IsoFLOP curves ({name}); {curves.conventions['interpolation']}"
    return dataclasses.replace(
        fit,
        found={**fit.found, "vertices": curves.found["vertices"]},
        warnings=curves.warnings + fit.warnings,
        conventions={**fit.conventions, "points": points},
    )
