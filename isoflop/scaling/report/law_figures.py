"""Figures of the laws: IsoFLOP curves and the optimal allocation of compute.

A `Study` goes in, a matplotlib Figure comes out, or None where the records do not hold what the figure shows.
"""

from collections.abc import Mapping
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
    halo,
    light_grid,
    log_axis,
    new_figure,
    number,
    power_text,
    spread,
    style,
)
from isoflop.scaling.plan.predict import central_constants, surface_optimum
from isoflop.scaling.report.study import Study, band, power, resamples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Optimal allocation of DeepSeek LLM. Source: 2401.02954, section 3.2 (M in FLOPs per token, D in tokens).
DEEPSEEK_ALLOCATION = {"scale": (0.1715, 0.5243), "tokens": (5.8316, 0.4757)}


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
        axes.set_title("Every budget has one best model size")
    return figure


def allocation_figure(study: Study) -> "Figure | None":
    """Optimal model scale and optimal tokens against compute, with 90% bands and a published line for reference."""
    parabola = study.laws.get("parabola") or {}
    known = [number(parabola.get(f"{letter}_{what}")) for letter in "nd" for what in ("coefficient", "exponent")]
    if None in known:
        return None
    end = max(study.largest_flops or 0.0, (study.target.flops or 0.0) if study.target else 0.0)
    start = min([vertex["flops"] for vertex in study.vertices] or study.budgets or [end / 30])
    flops = np.geomspace(start / 1.4, max(end, start * 2) * 1.4, 80)
    with style():
        figure = new_figure(4.3)
        left, right = figure.subplots(1, 2)
        _draw_allocation(left, study, flops, "scale")
        _draw_allocation(right, study, flops, "tokens")
        symbol = "M" if study.scale_key == "flops_per_token" else "N"
        left.set_ylabel(f"optimal {study.scale_label}")
        right.set_ylabel("optimal tokens D")
        left.set_title(f"Model scale: {_power_law_text(study, symbol)}")
        right.set_title(f"Tokens: {_power_law_text(study, 'D')}")
    return figure


def curve_of(study: Study, budget: float, scale: np.ndarray) -> np.ndarray | None:
    """The curve whose lowest point is the vertex of a budget: a quadratic of log10 scale, or what the law interpolated.

    None with fewer than three sizes, through which no bowl can be drawn.
    """
    points = next((vertex["points"] for vertex in study.vertices if vertex["budget"] == budget), [])
    pairs = [(number(point.get("scale")), number(point.get("loss"))) for point in points if isinstance(point, Mapping)]
    if not pairs or any(None in pair for pair in pairs):
        pairs = [(cell[study.scale_key], cell[study.loss_key]) for cell in study.of_budget(budget)]
    sizes, loss = np.array(pairs, dtype=float).T
    distinct, index = np.unique(np.log10(sizes), return_inverse=True)
    if len(distinct) < 3:
        return None
    x = np.log10(scale)
    if str((study.laws.get("parabola") or {}).get("interpolation")).startswith("akima"):
        mean = np.bincount(index, loss) / np.bincount(index)
        return np.exp(Akima1DInterpolator(distinct, np.log(mean))(np.clip(x, distinct[0], distinct[-1])))
    return np.polyval(np.polyfit(np.log10(sizes), loss, 2), x)


def _draw_budget(axes: "Axes", study: Study, budget: float, color: str) -> tuple[float, float]:
    """Points and parabola of one budget; returns where its label attaches (the largest model)."""
    cells = study.of_budget(budget)
    scale = np.array([cell[study.scale_key] for cell in cells], dtype=float)
    loss = np.array([cell[study.loss_key] for cell in cells], dtype=float)
    axes.plot(scale, loss, "o", color=color, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=4)
    fine = np.geomspace(scale.min(), scale.max(), 120)
    curve = curve_of(study, budget, fine)
    if curve is None:
        axes.plot(scale, loss, color=color, linewidth=1.0, alpha=0.6)
        return float(scale[-1]), float(loss[-1])
    axes.plot(fine, curve, color=color, zorder=3)
    return float(fine[-1]), float(curve[-1])


def _draw_vertex_path(axes: "Axes", study: Study, budgets: list[float]) -> None:
    """The optima, the line through them, and where 90% of the resampled allocation laws put that line."""
    parabola = study.laws.get("parabola") or {}
    vertices = study.vertices
    inside = [vertex for vertex in vertices if vertex["inside"]]
    if len(inside) >= 2:
        flops = np.array([vertex["flops"] for vertex in inside], dtype=float)
        loss = np.array([vertex["loss"] for vertex in inside], dtype=float)
        rows = resamples(study.laws, "n_allocation", 2)
        interval = band(rows[:, :1] * flops[None, :] ** rows[:, 1:]) if len(rows) else None
        if interval is not None:
            axes.fill_betweenx(loss, *interval, color=INK, alpha=0.10, linewidth=0, zorder=2)
        if all(number(parabola.get(key)) is not None for key in ("n_coefficient", "n_exponent")):
            centre = power((parabola["n_coefficient"], parabola["n_exponent"]), flops)
            axes.plot(centre, loss, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=5)
            axes.annotate(
                "optimum, 90% band" if interval is not None else "optimum",
                (centre[0], loss[0]),
                xytext=(-12, -22),
                textcoords="offset points",
                ha="right",
                color=INK,
                fontsize=9.5,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkB": 6},
            )
    colors = budget_colors(budgets)
    for vertex in vertices:
        color = colors.get(vertex["budget"], INK)
        face = color if vertex["inside"] else PAPER
        axes.plot(
            vertex["scale"],
            vertex["loss"],
            "D",
            markersize=8,
            color=face,
            markeredgecolor=PAPER if face != PAPER else color,
            markeredgewidth=1.4,
            zorder=6,
        )


def _draw_diverged(axes: "Axes", study: Study, top: float) -> None:
    scales = [number(run.get(study.scale_key)) for run in study.diverged]
    known = [scale for scale in scales if scale]
    if not known:
        return
    axes.plot(known, [top] * len(known), "x", color=VERMILION, markersize=8, markeredgewidth=2, clip_on=False, zorder=7)
    axes.annotate(
        f"{len(known)} diverged",
        (known[0], top),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=VERMILION,
        fontsize=9.5,
    )


def _draw_allocation(axes: "Axes", study: Study, flops: np.ndarray, what: str) -> None:
    parabola = study.laws["parabola"]
    letter = "n" if what == "scale" else "d"
    line = power((parabola[f"{letter}_coefficient"], parabola[f"{letter}_exponent"]), flops)
    rows = resamples(study.laws, f"{letter}_allocation", 2)
    interval = band(rows[:, :1] * flops[None, :] ** rows[:, 1:]) if len(rows) else None
    if interval is not None:
        axes.fill_between(flops, *interval, color=BLUE, alpha=0.16, linewidth=0)
    labels = [(line[-1], "this study", BLUE)]
    largest = study.largest_flops or flops[-1]
    axes.plot(flops[flops <= largest], line[flops <= largest], color=BLUE, zorder=3)
    axes.plot(flops[flops >= largest], line[flops >= largest], color=BLUE, linestyle=(0, (3, 2)), zorder=3)
    constants = central_constants(study.laws).get("surface_log_huber")
    if constants is not None:
        surface = surface_optimum(constants, flops, study.per_token)[0 if what == "scale" else 1]
        axes.plot(flops, surface, color=VERMILION, linewidth=1.2, zorder=2)
        labels.append((surface[-1], "its surface", VERMILION))
    if study.scale_key == "flops_per_token":
        published = power(DEEPSEEK_ALLOCATION[what], flops)
        axes.plot(flops, published, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1.6)), zorder=1)
        labels.append((published[-1], "DeepSeek LLM", MUTED))
    for vertex in study.vertices:
        inside = vertex["inside"]
        axes.plot(
            vertex["flops"],
            vertex[what],
            "o",
            color=BLUE if inside else PAPER,
            markeredgecolor=PAPER if inside else BLUE,
            markersize=7,
            zorder=4,
        )
    target = study.target
    chosen = (target.scale if what == "scale" else target.tokens) if target else None
    if target and target.flops and chosen:
        axes.plot(target.flops, chosen, "*", color=INK, markersize=14, markeredgecolor=PAPER, zorder=5)
        axes.annotate(
            f"target {count(chosen)}",
            (target.flops, chosen),
            xytext=(-9, 9),
            textcoords="offset points",
            ha="right",
            fontsize=9.5,
            path_effects=halo(),
        )
    log_axis(axes, "x")
    log_axis(axes, "y", "count")
    low, high = axes.get_ylim()
    places = spread([float(np.log10(value)) for value, _, _ in labels], 0.058 * np.log10(high / low))
    for (_, text, color), place in zip(labels, places, strict=True):
        axes.annotate(
            text,
            (flops[-1], 10**place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
        )
    axes.set_xlim(flops[0], flops[-1])
    axes.grid(visible=True, which="major", color=GRID, linewidth=0.8)
    axes.set_xlabel("compute C (FLOPs)")


def _power_law_text(study: Study, symbol: str) -> str:
    letter = "d" if symbol == "D" else "n"
    exponent = study.laws["parabola"][f"{letter}_exponent"]
    rows = resamples(study.laws, f"{letter}_allocation", 2)
    interval = band(rows[:, 1]) if len(rows) else None
    text = rf"{symbol} $\propto$ C$^{{\,{exponent:.2f}}}$"
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"
