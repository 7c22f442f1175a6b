"""Figures of the prediction: loss against compute with the target marked, and predicted against measured.

A `Study` goes in, a matplotlib Figure comes out, or None where there is nothing to show.
"""

from typing import TYPE_CHECKING

import numpy as np

from isoflop.pages.plot import (
    INK,
    LAW_COLOR,
    MUTED,
    OCHRE,
    PAPER,
    VERMILION,
    budget_colors,
    halo,
    light_grid,
    log_axis,
    new_figure,
    note,
    number,
    power_text,
    spread,
    style,
    subtitle,
)
from isoflop.scaling.laws import surface_loss
from isoflop.scaling.report.study import LAW_LABEL, LawAtTarget, Study, law_curves, lstar_band, target_laws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def compute_figure(study: Study) -> "Figure | None":
    """Loss against compute: cells, minima, laws with bands, and at the target what was predicted and measured."""
    if not study.cells:
        return None
    with style():
        figure = new_figure(5.0)
        rows = target_laws(study)
        if rows:
            main, zoom = figure.subplots(1, 2, width_ratios=[1.75, 1.0])
            _draw_zoom(zoom, study, rows)
        else:
            main = figure.subplots()
        _draw_curves(main, study, named=not rows)
        _draw_target(main, study)
        log_axis(main, "x")
        light_grid(main)
        main.set_xlabel("compute C (FLOPs)")
        main.set_ylabel(f"validation {study.loss_label}")
        subtitle(main, "Loss against compute", "dots: runs; diamonds: vertices of the budgets")
    return figure


def residual_figure(study: Study) -> "Figure | None":
    """Relative error of the log-Huber surface on every cell it was fitted to, and of the prediction on the target."""
    surface = study.laws and study.laws.surfaces.get("log_huber")
    cells = study.tuned
    if not surface or not cells:
        return None
    with style():
        figure = new_figure(4.1)
        axes = figure.subplots()
        single_pc = 164.5 * (study.laws.noise_sd if study.laws else 0.0)
        if single_pc:
            axes.axhspan(-single_pc, single_pc, color=INK, alpha=0.07, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=1)
        colors = budget_colors(study.budgets)
        best: dict[float, float] = {}
        misses = []
        for cell in cells:
            fitted = float(surface_loss(surface.constants, study.scale(cell), cell.n_tokens))
            misses.append(100 * (fitted / study.loss(cell) - 1))
            budget = number(cell.budget_flops)
            color = MUTED if budget is None else colors[budget]
            axes.plot(fitted, misses[-1], "o", color=color, markersize=6.5, markeredgecolor=PAPER)
            if budget is not None:
                best[budget] = min(fitted, best.get(budget, fitted))
        _draw_target_residual(axes, study)
        low, high = axes.get_xlim()
        reach = 1.3 * max(abs(bound) for bound in axes.get_ylim())
        axes.set_ylim(-reach, reach)
        axes.set_xlim(high, low - 0.02 * (high - low))  # better runs to the right, as in the figures against compute
        budgets = list(best)
        for budget, place in zip(budgets, spread(best.values(), 0.11 * (high - low)), strict=True):
            axes.text(place, 0.93 * reach, power_text(budget), color=colors[budget], ha="center", fontweight="bold")
        light_grid(axes)
        axes.set_xlabel(f"predicted {study.loss_label}")
        axes.set_ylabel("predicted over measured (%)")
        worst, rms = max(map(abs, misses)), float(np.sqrt(np.mean(np.square(misses))))
        text = f"{LAW_LABEL['surface_log_huber']}, {len(misses)} cells: rms {rms:.2g}%, worst {worst:.2g}%"
        text += "; shaded: 90% of single runs" if single_pc else ""
        subtitle(axes, "What the fit misses", text)
    return figure


def _draw_curves(axes: "Axes", study: Study, *, named: bool) -> None:
    """Runs, minima and laws; `named` labels the laws here, where no panel beside it does."""
    colors = budget_colors(study.budgets)
    cells = study.tuned
    compute = [study.flops(cell) for cell in cells]
    for cell, flops in zip(cells, compute, strict=True):
        color = colors.get(number(cell.budget_flops) or -1.0, MUTED)
        axes.plot(flops, study.loss(cell), "o", color=color, markersize=4.5, alpha=0.75, markeredgewidth=0, zorder=3)
    end = max([*compute, (study.target.flops or 0.0) if study.target else 0.0])
    grid = np.geomspace(min(compute) / 1.15, end * 1.25, 120)
    if interval := lstar_band(study, grid):
        axes.fill_between(grid, *interval, color=OCHRE, alpha=0.18, linewidth=0, zorder=1)
    curves = law_curves(study, grid)
    for law, curve in curves.items():
        _law_line(axes, grid, curve, law, study)
    if named and curves:
        low, high = axes.get_ylim()
        places = spread([curve[-1] for curve in curves.values()], 0.06 * (high - low))
        raised = max(0.0, low + 0.04 * (high - low) - min(places))  # above the axis
        for law, place in zip(curves, places, strict=True):
            axes.text(
                grid[-1] * 1.06,
                place + raised,
                LAW_LABEL.get(law, law),
                color=LAW_COLOR.get(law, MUTED),
                va="center",
                fontsize=9.5,
            )
    for vertex in study.vertices:
        color = colors.get(vertex.budget_flops, INK)
        axes.plot(vertex.total_flops, vertex.loss, "D", color=color, markersize=7, markeredgecolor=PAPER, zorder=5)


def _law_line(axes: "Axes", grid: np.ndarray, curve: np.ndarray, law: str, study: Study) -> None:
    """Solid where runs support the law, dashed where it extrapolates."""
    edge = study.largest_flops or grid[-1]
    color = LAW_COLOR.get(law, MUTED)
    axes.plot(grid[grid <= edge], curve[grid <= edge], color=color, zorder=2)
    axes.plot(grid[grid >= edge], curve[grid >= edge], color=color, linestyle=(0, (3, 2)), zorder=2)


def _draw_target(axes: "Axes", study: Study) -> None:
    target, largest = study.target, study.largest_flops
    if target is None or not target.flops:
        return
    level = f"{100 * target.level:.0f}%"
    if target.predicted:
        if target.low and target.high:
            axes.plot([target.flops] * 2, [target.low, target.high], color=INK, linewidth=5, alpha=0.35, zorder=4)
        axes.plot(target.flops, target.predicted, "_", color=INK, markersize=15, markeredgewidth=2.4, zorder=6)
    if target.measured:
        axes.plot(target.flops, target.measured, "*", color=VERMILION, markersize=15, markeredgecolor=PAPER, zorder=7)
    if not largest or target.flops <= largest * 1.05:
        return
    low, high = axes.get_ylim()
    height = high - 0.10 * (high - low)
    for edge in (largest, target.flops):
        axes.plot([edge] * 2, [height - 0.03 * (high - low), height + 0.03 * (high - low)], color=MUTED, linewidth=1)
    axes.annotate(
        "", (target.flops, height), (largest, height), arrowprops={"arrowstyle": "->", "color": MUTED, "linewidth": 1.1}
    )
    axes.text(
        np.sqrt(largest * target.flops),
        height + 0.02 * (high - low),
        rf"$\times${target.flops / largest:.3g} compute",
        ha="center",
        va="bottom",
        color=INK,
        fontsize=9.5,
        path_effects=halo(),
    )
    notes = [(f"predicted, {level}" if target.low else "predicted", INK)] if target.predicted else []
    notes += [("measured", VERMILION)] if target.measured else []
    for line, (text, color) in enumerate(notes):  # below the point: the curves come from above
        lowest = min(value for value in (target.low, target.measured, target.predicted) if value)
        look = {"ha": "right", "va": "top", "color": color, "path_effects": halo()}
        note(axes, text, (target.flops, lowest), (8, -9 - 14 * line), **look)
    axes.set_ylim(low - 0.09 * (high - low), high)


def _draw_zoom(axes: "Axes", study: Study, rows: list[LawAtTarget]) -> None:
    """The laws side by side at the target, on a scale where their disagreement shows."""
    target = study.target
    assert target is not None
    entries = [(row.label, row.centre, row.low, row.high, LAW_COLOR.get(row.law, MUTED)) for row in rows]
    if target.predicted:
        entries.append((f"prediction, {100 * target.level:.0f}%", target.predicted, target.low, target.high, INK))
    if target.low and target.high:
        axes.axvspan(target.low, target.high, color=INK, alpha=0.07, linewidth=0)
    for position, (label, centre, low, high, color) in enumerate(entries):
        height = -position
        if low and high:
            axes.plot([low, high], [height] * 2, color=color, linewidth=5, alpha=0.40)
        axes.plot(centre, height, "D", color=color, markersize=7, markeredgecolor=PAPER)
        axes.annotate(
            f"{label}: {centre:.4g}",
            (0.02, height + 0.24),
            xycoords=("axes fraction", "data"),
            fontsize=9.5,
            color=color,
            path_effects=halo(),
        )
    bottom = -len(entries)
    if target.measured:
        axes.axvline(target.measured, color=VERMILION, linewidth=1.2, alpha=0.5, zorder=0)
        axes.plot(target.measured, bottom, "*", color=VERMILION, markersize=15, markeredgecolor=PAPER, zorder=5)
        text = f"measured: {target.measured:.4g}"
        if target.predicted:
            text += f" (error {100 * (target.predicted / target.measured - 1):+.2f}%)"
        axes.annotate(
            text,
            (0.02, bottom + 0.24),
            xycoords=("axes fraction", "data"),
            fontsize=9.5,
            color=VERMILION,
            weight="bold",
            path_effects=halo(),
        )
    axes.set_ylim(bottom - 0.5, 0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)
    light_grid(axes, "x")
    axes.set_xlabel(study.loss_label)
    bars = f"bars: {100 * target.level:.0f}% intervals" if any(low and high for _, _, low, high, _ in entries) else ""
    subtitle(axes, f"At the target, {power_text(target.flops or 0)} FLOPs", bars)


def _draw_target_residual(axes: "Axes", study: Study) -> None:
    target = study.target
    if target is None or not target.predicted:
        return
    truth = target.measured or target.predicted
    top = height = 100 * (target.predicted / truth - 1)
    if target.low and target.high:
        bottom, top = (100 * (bound / truth - 1) for bound in (target.low, target.high))
        axes.plot([target.predicted] * 2, [bottom, top], color=INK, linewidth=5, alpha=0.35)
    axes.plot(target.predicted, height, "*", color=VERMILION, markersize=15, markeredgecolor=PAPER)
    text = f"target {height:+.2f}%" if target.measured else "target, not yet measured"
    note(axes, text, (target.predicted, top), (14, 8), ha="right", color=VERMILION)
