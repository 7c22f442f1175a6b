"""The pictures of a study, drawn from records and laws only.

`draw_figures` writes every figure that its inputs allow, as SVG and PNG; `figures_of` gives the matplotlib objects.
The order of `FIGURES` is the order of the argument: curves, optimum, prediction, fit quality, then how it was run.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import DataError
from isoflop.pages.plot import save
from isoflop.scaling.published import LawsSource
from isoflop.scaling.report.law_figures import allocation_figure, isoflop_figure
from isoflop.scaling.report.load_figures import load_figure
from isoflop.scaling.report.prediction_figures import compute_figure, residual_figure
from isoflop.scaling.report.run_figures import hyper_figure, training_figure, trunk_figure
from isoflop.scaling.report.study import Json, Study, read_study
from isoflop.scaling.sweep.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "isoflop": isoflop_figure,
    "compute": compute_figure,
    "allocation": allocation_figure,
    "residuals": residual_figure,
    "hyper": hyper_figure,
    "trunks": trunk_figure,
}
"""File name -> function of a Study. The target's `training` curve and expert `load` are drawn from its metrics."""

_log = logging.getLogger(__name__)


def figures_of(study: Study, target_metrics: Sequence[Json] | None = None) -> "dict[str, Figure]":
    """Every figure that this study has the data for, by name."""
    drawn = {name: function(study) for name, function in FIGURES.items()}
    if target_metrics:
        drawn["training"] = training_figure(target_metrics, study.target, curve=study.target and study.target.curve)
        drawn["load"] = load_figure(target_metrics)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def draw_figures(
    out: str | Path,
    *,
    records: Iterable[RunRecord | Json],
    laws: LawsSource | None = None,
    plan: Json | None = None,
    score: Json | None = None,
    target_metrics: Sequence[Json] | None = None,
    formats: Sequence[str] = ("svg", "png"),
) -> dict[str, list[Path]]:
    """Write the figures into folder `out` and return their paths by name.

    Raises:
        DataError: matplotlib is missing, nothing usable was given, or a format is not svg or png.
    """
    wrong = [name for name in formats if name not in ("svg", "png")]
    if wrong:
        raise DataError(f"figure format {wrong[0]!r} is unknown; use svg or png")
    figures = figures_of(read_study(records, laws, plan, score), target_metrics)
    if not figures:
        raise DataError("the records and laws hold nothing to draw; a sweep of at least two finished cells is needed")
    _log.info("drawing %s", ", ".join(figures))
    return {
        name: [save(figure, Path(out) / f"{name}.{ending}") for ending in formats] for name, figure in figures.items()
    }
