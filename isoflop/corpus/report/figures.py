"""Pictures of a corpus: the flow from stage to stage, what was dropped, lengths, languages, duplicates, the mixture.

Plain values of `page.py` go in, a matplotlib Figure comes out, or None where there is nothing to show.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.corpus.dedup.options import candidate_probability
from isoflop.pages.html import size
from isoflop.pages.plot import INK, MUTED, SKY, VERMILION, count, light_grid, literal, new_figure, note, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colors = Mapping[str, str]
Shares = Mapping[str, float]

BAR = 0.06
"""Half the width of a column of the flow, where columns are 1 apart."""


def flow_figure(stages: Sequence[Mapping[str, Any]], colors: Colors) -> "Figure | None":
    """A column of domains per stage, and ribbons of what goes on; what a stage drops thins out below its ribbon."""
    totals = [sum(stage["sizes"].values()) for stage in stages]
    if not max(totals, default=0):
        return None
    with style():
        figure = new_figure(3.9)
        axes = figure.subplots()
        tops = [_stacked(stage["sizes"], colors) for stage in stages]
        for place, (stage, total) in enumerate(zip(stages, totals, strict=True)):
            for name, (top, height) in tops[place].items():
                axes.bar(place, height, 2 * BAR, bottom=top, color=colors[name])
                if place:
                    _ribbon(axes, place, tops[place - 1][name], (top, height), colors[name])
            lost = f"\n{total / totals[place - 1] - 1:+.1%}" if place and totals[place - 1] else ""
            text = f"{size(total)}\n{sum(stage['documents'].values()):,} documents"
            head = {"va": "bottom", "fontweight": "bold", "fontsize": 10.5}
            note(axes, stage["title"], (place, 0), (0, 8), ha="center", **head)
            note(axes, text + lost, (place, max(totals)), (0, -6), ha="center", va="top", color=MUTED)
        axes.set_xlim(-0.35, len(stages) - 0.65)
        axes.set_ylim(max(totals), 0)
        axes.axis("off")
    return figure


def bars_figure(rows: Sequence[tuple[str, float, str, str]]) -> "Figure | None":
    """Horizontal bars: (name, length, what is written beside it, colour)."""
    if not any(row[1] for row in rows):
        return None
    with style():
        figure = new_figure(0.35 + 0.28 * len(rows))
        axes = figure.subplots()
        for place, (_, length, text, color) in enumerate(rows):
            axes.barh(place, length, 0.66, color=color)
            note(axes, text, (length, place), (6, 0), va="center", color=MUTED)
        _name_rows(axes, [row[0] for row in rows])
        axes.set_xlim(0, 1.5 * max(row[1] for row in rows))
    return figure


def shares_figure(rows: Sequence[tuple[str, Shares, str]], colors: Colors) -> "Figure | None":
    """Bars of 100% cut up by share: (name, value by part, what is written beside it)."""
    if not rows:
        return None
    with style():
        figure = new_figure(0.35 + 0.31 * len(rows))
        axes = figure.subplots()
        for place, (_, values, text) in enumerate(rows):
            left, total = 0.0, sum(values.values()) or 1.0
            for name, color in colors.items():
                share = values.get(name, 0.0) / total
                axes.barh(place, share, 0.72, left=left, color=color, edgecolor="white", linewidth=0.8)
                if share > 0.06:
                    axes.text(left + share / 2, place, f"{share:.0%}", **_ON_COLOR)
                left += share
            note(axes, text, (1.0, place), (6, 0), va="center", color=MUTED)
        _name_rows(axes, [name for name, _, _ in rows])
        axes.set_xlim(0, 1.16)
    return figure


def lengths_figure(
    panels: Sequence[tuple[str, Mapping[int, int], Mapping[int, int]]], colors: Colors
) -> "Figure | None":
    """Documents by powers of two of bytes, a panel per domain: read as an outline, kept as filled bars."""
    if not panels:
        return None
    bins = [int(place) for _, before, after in panels for place in (*before, *after)]
    low, high = min(bins), max(bins) + 1
    lines = -(-len(panels) // 3)
    with style():
        figure = new_figure(0.3 + 1.75 * lines)
        grid = figure.subplots(lines, 3, squeeze=False, sharex=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, before, after) in zip(grid.flat, panels, strict=False):
            heights = [[values.get(place, 0) for place in range(low, high)] for values in (before, after)]
            axes.bar(np.arange(low, high) + 0.5, heights[1], 0.88, color=colors[name])
            axes.stairs(heights[0], np.arange(low, high + 1), color=MUTED, linewidth=1.1)
            axes.set_title(literal(name), fontsize=10.5)
            axes.set_xticks([place for place in range(low, high + 1) if place % 4 == 0])
            axes.xaxis.set_major_formatter(lambda place, _: power_of_two(int(place)))
            axes.tick_params(labelbottom=True)
            axes.yaxis.set_major_formatter(lambda value, _: count(value))
            axes.locator_params(axis="y", nbins=3)
            light_grid(axes)
        grid[0, 0].set_ylabel("documents")
    return figure


def similarity_figure(bands: int, rows: int, threshold: float, pairs: Sequence[tuple[float, int]]) -> "Figure":
    """How probably a pair is compared, over its similarity; behind it, how many pairs of this corpus were compared."""
    with style():
        figure = new_figure(2.9)
        axes = figure.subplots()
        similarity = np.linspace(0, 1, 201)
        if pairs:
            behind = axes.twinx()
            behind.bar([place for place, _ in pairs], [found for _, found in pairs], 0.045, color=SKY, alpha=0.45)
            behind.set_ylabel("pairs compared", color=MUTED)
            behind.locator_params(axis="y", nbins=4, integer=True)
            axes.set_zorder(behind.get_zorder() + 1)
        axes.axvline(threshold, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(similarity, candidate_probability(similarity, bands, rows), color=VERMILION, linewidth=2.2)
        note(axes, f"threshold {threshold:g}", (threshold, 1.04), (-5, 0), ha="right", va="center", color=MUTED)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.08)
        light_grid(axes)
        axes.set_xlabel("Jaccard similarity of a pair")
        axes.set_ylabel("probability of\nbeing compared")
    return figure


def curriculum_figure(stages: Sequence[Mapping[str, Any]], colors: Colors) -> "Figure | None":
    """Shares over training: a block per stage, as wide as its part of training."""
    if len(stages) < 2:
        return None
    with style():
        figure = new_figure(2.6)
        axes = figure.subplots()
        for stage in stages:
            middle, top = stage["start"] + stage["part"] / 2, 1.0
            for name, color in colors.items():
                share = stage["realised"].get(name, 0.0)
                axes.bar(middle, -share, stage["part"], bottom=top, color=color, edgecolor="white", linewidth=0.8)
                if share > 0.08 and stage["part"] > 0.06:
                    axes.text(middle, top - share / 2, f"{share:.0%}", **_ON_COLOR)
                top -= share
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("part of training")
        axes.set_ylabel("share of tokens")
    return figure


def power_of_two(place: int) -> str:
    """2^place bytes as 512 B, 4 kB, 1 MB."""
    unit, power = next((item for item in (("MB", 20), ("kB", 10)) if place >= item[1]), ("B", 0))
    return f"{1 << (place - power)} {unit}"


_ON_COLOR: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": 9, "fontweight": "bold"}


def _stacked(sizes: Shares, colors: Colors) -> dict[str, tuple[float, float]]:
    """Top and height of each name, one below the other."""
    placed, top = {}, 0.0
    for name in colors:
        placed[name] = (top, sizes.get(name, 0.0))
        top += placed[name][1]
    return placed


def _ribbon(axes: "Axes", place: int, before: tuple[float, float], after: tuple[float, float], color: str) -> None:
    """What goes on from one column to the next, and below it what was lost on the way."""
    (top, height), (to, kept) = before, after
    t = np.linspace(0, 1, 40)
    x, bend = place - 1 + BAR + (1 - 2 * BAR) * t, t * t * (3 - 2 * t)
    upper = top + (to - top) * bend
    axes.fill_between(x, upper, upper + kept, color=color, alpha=0.25, linewidth=0)
    lost = height - kept
    if lost > 0:
        axes.fill_between(x, upper + kept, upper + kept + lost * (1 - bend), color=INK, alpha=0.13, linewidth=0)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=[literal(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
