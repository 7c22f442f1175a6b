"""Losses of many runs from laws: what `isoflop predict` writes.

Laws and a table of runs go in, or rows that name sizes, tokens or compute; one entry for each row comes out, in its
order. A row that can't be predicted keeps its place with the reason.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from isoflop.columns import as_number
from isoflop.errors import PlanError
from isoflop.recipe import MOST, Tree
from isoflop.scaling.fit.table import Table
from isoflop.scaling.fit.units import LEAST_COUNT
from isoflop.scaling.laws import Laws
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.predict import predict
from isoflop.scaling.published import LawsSource, load_laws

READ = ("n_params", "flops_per_token", "n_tokens", "total_flops", "budget_flops", "unique_tokens")
UNITS = {"loss_nats": "nats"}
CHECKED, MOST_CHECKED = 100.0, 400.0
"""Times the largest compute of a sweep at which forecasts were scored (docs/forecast.md): about, and at most."""


def forecast(
    laws: LawsSource, runs: str | Path | Sequence[Mapping[str, object]], *, mapping: str = "", level: float = 0.9
) -> tuple[Tree, list[str]]:
    """Predictions as `{unit, level, predictions: [{n_params, n_tokens, total_flops, center, low, high, by_law}]}`.

    A run is a size and tokens, one of them with its compute, or compute alone: then it is at the optimum. Where the
    laws count size in FLOPs per token an entry has `flops_per_token` too. Tokens beyond a column `unique_tokens` are
    repeated. Units: `unit` is nats, bits_per_byte or perplexity, as the laws' table had it. The second part of the
    answer is what was inferred from the table.

    Raises:
        PlanError: laws without intervals. DataError, FitError: a table that can't be read, a wrong `mapping`.
    """
    laws = load_laws(laws)
    laws.draws()  # without resamples no row can have an interval: one error, not one for each row
    given = Table.of(runs)
    texts = [name for name in given.no_number if name in READ or name in mapping]
    table = _as_numbers(given, texts).map(mapping)
    in_perplexity = laws.conventions.get("unit") == "perplexity"
    rows = [_predict_row(laws, table, row, level, in_perplexity) for row in range(table.n_rows)]
    for row, found in enumerate(rows):
        wrong = [given.cell(name, row) for name in texts if found["center"] is None]
        if wrong and all(math.isnan(table.columns[name][row]) for name in texts):
            found["reason"] += f"; {', '.join(wrong)} is no number"
    unit = "perplexity" if in_perplexity else UNITS.get(laws.loss, laws.loss)
    return {"unit": unit, "level": level, "predictions": rows}, table.inferences


def far_beyond(laws: Laws, flops: Iterable[float | None]) -> list[str]:
    """A warning where the largest of some runs lies farther beyond the sweep than forecasts were scored."""
    most, largest = max((one for one in flops if one), default=0.0), laws.largest_budget_flops
    if not largest or most <= CHECKED * largest:
        return []
    return [
        f"{most:.3g} FLOPs are {most / largest:.3g} times the largest run of the sweep ({largest:.3g}); forecasts and "
        f"their intervals were checked at about {CHECKED:g} times, {MOST_CHECKED:g} at most: train runs in between"
    ]


def _predict_row(laws: Laws, table: Table, row: int, level: float, in_perplexity: bool) -> Tree:
    cells = {name: float(table.columns[name][row]) for name in READ if name in table.columns}
    given = {name: value for name, value in cells.items() if math.isfinite(value) and value > 0}
    flops = given.get("total_flops", given.get("budget_flops"))
    found: Tree = {"n_params": given.get("n_params"), "n_tokens": given.get("n_tokens"), "total_flops": flops}
    empty = found | {"center": None, "low": None, "high": None, "by_law": {}}
    try:
        scale, n_tokens = _run(laws, given, flops)
        unique = given.get("unique_tokens")
        unique = unique if unique and unique < n_tokens else None
        made = predict(laws, scale, n_tokens, level=level, unique_tokens=unique)
    except PlanError as error:
        return empty | {"reason": f"{table.place(row)}: {error}"}
    shown = math.exp if in_perplexity else float
    found |= {laws.scale: scale, "n_tokens": n_tokens, "total_flops": made.total_flops}
    found |= {name: shown(getattr(made, name)) for name in ("center", "low", "high")}
    return found | {"by_law": {name: shown(value) for name, value in made.by_law.items()}}


def _run(laws: Laws, given: Mapping[str, float], flops: float | None) -> tuple[float, float]:
    """Scale and tokens of a run. Raises PlanError: they do not follow from what is given."""
    scale, n_tokens, factor = given.get(laws.scale), given.get("n_tokens"), laws.flops_factor
    for name, value in given.items():
        if value > MOST:
            raise PlanError(f"{name} = {value:g} must be at most {MOST:g}; correct its unit")
    for name, value in ((laws.scale, scale), ("n_tokens", n_tokens)):
        if value is not None and value < LEAST_COUNT:
            raise PlanError(f"{name} = {value:g} must be a count of at least {LEAST_COUNT:g}; in millions or billions?")
    if scale and n_tokens:
        return scale, n_tokens
    if flops and n_tokens:
        return flops / (factor * n_tokens), n_tokens
    if flops and scale:
        return scale, flops / (factor * scale)
    if flops and not given.get("n_params"):
        split = best_split(laws, flops)
        return split.scale, split.n_tokens
    needed = f"{laws.scale} and n_tokens, or compute with one of them or alone"
    if "n_params" in given and laws.scale != "n_params":
        needed += "; the laws count size in FLOPs per token: fit them with --map n_params=... to predict by parameters"
    raise PlanError(f"known: {', '.join(given) or 'nothing'}; a prediction needs {needed}")


def _as_numbers(table: Table, names: Sequence[str]) -> Table:
    """With text columns as numbers: a cell that is none costs its own row, not the table."""
    columns, said = {}, []
    for name in names:
        values = [as_number(cell) for cell in table.text(name).tolist()]
        columns[name] = np.array([math.nan if value is None else value for value in values])
        row = next((row for row, value in enumerate(values) if value is not None), 0)
        said.append(
            f"{table.cell(name, row)} read as {columns[name][row]:.15g}, and other cells of this column one by one"
        )
    table = table.adding(**columns)
    return dataclasses.replace(table, inferences=[*table.inferences, *said])
