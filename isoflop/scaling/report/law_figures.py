"""Figures of the laws: IsoFLOP curves and the optimal allocation of compute.

A `Study` goes in, a matplotlib Figure comes out, or None where the records do not hold what the figure shows.
"""

from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from isoflop.pages.plot import (
    BLUE,
    GRID,
    INK,
    MUTED,
    PAPER,
    VERMILION,
    budget_colors,
    count,
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
from isoflop.scaling.laws import Allocation, surface_optimum
from isoflop.scaling.published import DEEPSEEK
from isoflop.scaling.report.study import Study, allocation_band, band, resamples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def isoflop_figure(study: Study) -> "Figure | None":
    """Loss against model scale, one curve per budget, with the vertices and the bootstrap band of their path."""
    budgets = [budget for budget in study.budgets if len(study.of_budget(budget)) >= 2]
    if not budgets:
        return None
    with style():
        figure = new_figure(5.0)
        axes = figure.subplots()
        colors = budget_colors(budgets)
        ends = [_draw_budget(axes, study, budget, colors[budget]) for budget in budgets]
        _draw_vertex_path(axes, study, budgets)
        low, high = axes.get_ylim()
        _draw_diverged(axes, study, high)
        axes.set_ylim(low, high + 0.02 * (high - low))
        log_axis(axes, "x", "count")
        heights = spread([loss for _, loss in ends], 0.052 * (high - low))
        right = max(scale for scale, _ in ends)
        for budget, (scale, loss), height in zip(budgets, ends, heights, strict=True):
            axes.plot([scale * 1.04, right * 1.10], [loss, height], color=colors[budget], linewidth=0.7, alpha=0.7)
            axes.text(right * 1.12, height, power_text(budget), color=colors[budget], va="center", fontweight="bold")
        axes.text(right * 1.12, max(heights) + 0.06 * (high - low), "FLOPs", color=MUTED, fontsize=9.5)
        axes.set_xlim(right=right * 1.32)
        light_grid(axes)
        axes.set_xlabel(study.scale_label)
        axes.set_ylabel(f"validation {study.loss_label}")
        grey = "; grey: 90% of its resamples" if len(resamples(study, "n_allocation")) else ""
        text = f"diamonds: vertices of the curves; dashed: the fitted optimum{grey}" if study.vertices else ""
        subtitle(axes, "Every budget has one best model size", text)
    return figure


def allocation_figure(study: Study) -> "Figure | None":
    """Optimal model scale and optimal tokens against compute, with 90% bands and a published line for reference."""
    law = study.allocation
    if law is None or law.law("n") is None or law.law("d") is None:
        return None
    end = max(study.largest_flops or 0.0, (study.target.flops or 0.0) if study.target else 0.0)
    start = min([vertex.total_flops for vertex in study.vertices] or study.budgets or [end / 30])
    flops = np.geomspace(start / 1.4, max(end, start * 2) * 1.4, 80)
    with style():
        figure = new_figure(4.3)
        left, right = figure.subplots(1, 2)
        _draw_allocation(left, study, law, flops, "n")
        _draw_allocation(right, study, law, flops, "d")
        symbol = "M" if study.scale_key == "flops_per_token" else "N"
        left.set_ylabel(f"optimal {study.scale_label}")
        right.set_ylabel("optimal tokens D")
        left.set_title(f"Model scale: {_power_law_text(study, law, symbol)}")
        right.set_title(f"Tokens: {_power_law_text(study, law, 'D')}")
    return figure


def curve_of(study: Study, budget: float, scale: np.ndarray) -> np.ndarray | None:
    """The curve whose lowest point is the vertex of a budget: a quadratic of log10 scale, or what the law interpolated.

    None with fewer than three sizes, through which no bowl can be drawn.
    """
    points = next((vertex.points for vertex in study.vertices if vertex.budget_flops == budget), [])
    pairs = [(number(point.get("scale")), number(point.get("loss"))) for point in points]
    if not pairs or any(None in pair for pair in pairs):
        pairs = [(study.scale(cell), study.loss(cell)) for cell in study.of_budget(budget)]
    sizes, loss = np.array(pairs, dtype=float).T
    distinct, index = np.unique(np.log10(sizes), return_inverse=True)
    if len(distinct) < 3:
        return None
    x = np.log10(scale)
    law = study.allocation
    if law and str(law.interpolation).startswith("akima"):
        mean = np.bincount(index, loss) / np.bincount(index)
        return np.exp(Akima1DInterpolator(distinct, np.log(mean))(np.clip(x, distinct[0], distinct[-1])))
    return np.polyval(np.polyfit(np.log10(sizes), loss, 2), x)


def _draw_budget(axes: "Axes", study: Study, budget: float, color: str) -> tuple[float, float]:
    """Points and parabola of one budget; returns where its label attaches (the largest model)."""
    cells = study.of_budget(budget)
    scale = np.array([study.scale(cell) for cell in cells], dtype=float)
    loss = np.array([study.loss(cell) for cell in cells], dtype=float)
    axes.plot(scale, loss, "o", color=color, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=7)
    fine = np.geomspace(scale.min(), scale.max(), 120)
    curve = curve_of(study, budget, fine)
    if curve is None:
        axes.plot(scale, loss, color=color, linewidth=1.0, alpha=0.6)
        return float(scale[-1]), float(loss[-1])
    axes.plot(fine, curve, color=color, zorder=3)
    return float(fine[-1]), float(curve[-1])


def _draw_vertex_path(axes: "Axes", study: Study, budgets: list[float]) -> None:
    """The optima, the line through them, and where 90% of the resampled allocation laws put that line."""
    vertices = study.vertices
    inside = [vertex for vertex in vertices if vertex.inside]
    if len(inside) >= 2:
        flops = np.array([vertex.total_flops for vertex in inside], dtype=float)
        loss = np.array([vertex.loss for vertex in inside], dtype=float)
        if interval := allocation_band(study, "n", flops):
            axes.fill_betweenx(loss, *interval, color=INK, alpha=0.10, linewidth=0, zorder=2)
        if study.allocation and study.allocation.law("n"):
            centre = study.allocation.best("n", flops)
            axes.plot(centre, loss, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=5)
    colors = budget_colors(budgets)
    for vertex in vertices:
        color = colors.get(vertex.budget_flops, INK)
        face = color if vertex.inside else PAPER
        axes.plot(
            vertex.scale_opt,
            vertex.loss,
            "D",
            markersize=8,
            color=face,
            markeredgecolor=PAPER if face != PAPER else color,
            markeredgewidth=1.4,
            zorder=6,
        )


def _draw_diverged(axes: "Axes", study: Study, top: float) -> None:
    scales = [number(study.scale(run)) for run in study.diverged]
    known = [scale for scale in scales if scale]
    if not known:
        return
    axes.plot(known, [top] * len(known), "x", color=VERMILION, markersize=8, markeredgewidth=2, clip_on=False, zorder=7)
    note(axes, f"{len(known)} diverged", (known[0], top), (8, 0), va="center", color=VERMILION)


def _draw_allocation(axes: "Axes", study: Study, law: Allocation, flops: np.ndarray, letter: str) -> None:
    line = law.best(letter, flops)
    if interval := allocation_band(study, letter, flops):
        axes.fill_between(flops, *interval, color=BLUE, alpha=0.16, linewidth=0)
    labels = [(line[-1], "this study", BLUE)]
    largest = study.largest_flops or flops[-1]
    axes.plot(flops[flops <= largest], line[flops <= largest], color=BLUE, zorder=3)
    axes.plot(flops[flops >= largest], line[flops >= largest], color=BLUE, linestyle=(0, (3, 2)), zorder=3)
    fitted = study.laws and study.laws.surfaces.get("log_huber")
    if fitted:
        surface = surface_optimum(fitted.constants, flops, study.per_token)[0 if letter == "n" else 1]
        axes.plot(flops, surface, color=VERMILION, linewidth=1.2, zorder=2)
        labels.append((surface[-1], "its surface", VERMILION))
    if study.scale_key == "flops_per_token":
        assert DEEPSEEK.allocation is not None
        published = DEEPSEEK.allocation.best(letter, flops)
        axes.plot(flops, published, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1.6)), zorder=1)
        labels.append((published[-1], "DeepSeek LLM", MUTED))
    for vertex in study.vertices:
        inside = vertex.inside
        axes.plot(
            vertex.total_flops,
            vertex.scale_opt if letter == "n" else vertex.tokens_opt,
            "o",
            color=BLUE if inside else PAPER,
            markeredgecolor=PAPER if inside else BLUE,
            markersize=7,
            zorder=4,
        )
    target = study.target
    chosen = (target.scale if letter == "n" else target.tokens) if target else None
    if target and target.flops and chosen:
        axes.plot(target.flops, chosen, "*", color=INK, markersize=14, markeredgecolor=PAPER, zorder=5)
        labels.append((chosen, f"target {count(chosen)}", INK))
    log_axis(axes, "x")
    log_axis(axes, "y", "count")
    low, high = axes.get_ylim()
    places = spread([float(np.log10(value)) for value, _, _ in labels], 0.058 * np.log10(high / low))
    for (_, text, color), place in zip(labels, places, strict=True):
        note(axes, text, (flops[-1], 10**place), (4, 0), va="center", color=color, fontsize=9)
    axes.set_xlim(flops[0], flops[-1])
    axes.grid(visible=True, which="major", color=GRID, linewidth=0.8)
    axes.set_xlabel("compute C (FLOPs)")


def _power_law_text(study: Study, law: Allocation, symbol: str) -> str:
    letter = "d" if symbol == "D" else "n"
    exponent = getattr(law, f"{letter}_exponent")
    interval = band(resamples(study, f"{letter}_allocation")[:, 1])
    text = rf"{symbol} $\propto$ C$^{{\,{exponent:.2f}}}$"
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"
