"""Which rows of a table a law is fitted to, and how they count: what --where, --drop-highest-loss and --weights do."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isoflop.columns import as_number
from isoflop.errors import FitError, did_you_mean
from isoflop.scaling.fit.table import Table, read_table


def load_table(
    paths: str | Path | Sequence[str | Path],
    *,
    mapping: str = "",
    where: Sequence[str] = (),
    drop_highest_loss: int = 0,
    weights: str = "",
) -> Table:
    """Read, map, filter: what `isoflop fit TABLE... --map --where --drop-highest-loss --weights` does to a table."""
    table = read_table(paths).map(mapping)
    for condition in where:
        table = where_rows(table, condition)
    table = without_highest_loss(table.latest_of_each_run(), drop_highest_loss)
    return weighted(table, weights) if weights else table


def where_rows(table: Table, condition: str) -> Table:
    """Rows that meet COLUMN=VALUE, COLUMN<VALUE or COLUMN>VALUE (also <=, >=, !=), numbers or text."""
    match = re.match(r"^\s*([^<>=!]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*$", condition)
    if not match:
        raise FitError(f"--where {condition!r} must read COLUMN=VALUE, COLUMN<VALUE or COLUMN>VALUE")
    name, operator, value = match.groups()
    if name not in table.columns:
        hint = did_you_mean(name, table.columns, f"columns: {', '.join(table.columns)}")
        raise FitError(f"--where {condition!r}: there is no column {name}; {hint}")
    column = table.columns[name]
    number = as_number(value)
    if name in table.no_number and number is not None and operator in ("<", ">", "<=", ">="):
        raise table.unreadable(name)
    if column.dtype.kind == "f" and number is not None:
        equal = np.isclose(column, number, rtol=1e-9, atol=0)
        keep = {"<": column < number, ">": column > number, "<=": (column < number) | equal}
        keep |= {">=": (column > number) | equal, "!=": ~equal}
        mask = keep.get(operator, equal)
    elif operator in ("=", "==", "!="):
        equal = table.text(name) == value
        mask = ~equal if operator == "!=" else equal
    else:
        raise FitError(f"--where {condition!r}: {name} and {value!r} are not both numbers; use = for text")
    if not mask.any():
        seen = ", ".join(sorted(set(table.text(name).tolist()))[:8])
        raise FitError(f"--where {condition!r} keeps none of {table.n_rows} rows; {name} takes: {seen}")
    return table.select(mask)


def without_highest_loss(table: Table, n_rows: int) -> Table:
    """Leave out the `n_rows` runs with the highest loss."""
    if n_rows <= 0:
        return table
    name, loss = table.loss("--drop-highest-loss")
    if n_rows >= table.n_rows:
        raise FitError(f"--drop-highest-loss {n_rows} leaves none of {table.n_rows} rows; drop fewer")
    order = np.argsort(-np.where(np.isfinite(loss), loss, np.inf), kind="stable")
    table = table.select(np.sort(order[n_rows:]))
    table.conventions["dropped"] = f"{n_rows} rows of highest {name}, down to {loss[order[n_rows - 1]]:.6g}"
    return table


def weighted(table: Table, column: str) -> Table:
    """Weigh rows by a column; a standard deviation (name ends in _std or _sd, or 1/NAME^2) by 1/sd^2."""
    match = re.fullmatch(r"\s*1\s*/\s*([A-Za-z_]\w*)\s*(?:\^|\*\*)\s*2\s*", column)
    name = match.group(1) if match else column.strip()
    values = table.numbers(name, f"--weights {column}")
    is_deviation = bool(match) or name.endswith(("_std", "_sd"))
    if not (np.isfinite(values) & (values > 0)).all():
        raise FitError(f"--weights {column}: {name} must be above 0 in every row; drop the others with --where")
    table = table.adding(weight=1 / values**2 if is_deviation else values)
    table.conventions["weights"] = f"1 / {name}^2" if is_deviation else name
    return table
