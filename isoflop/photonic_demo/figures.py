"""Pictures of the experiments, from their plain data, in the style of every other figure here."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoflop.pages.plot import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    MAUVE,
    MUTED,
    SKY,
    VERMILION,
    halo,
    light_grid,
    log_axis,
    new_figure,
    note,
    style,
    subtitle,
)
from isoflop.photonic_demo.page import TERM_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tree = Mapping[str, Any]

PART_NAMES = {
    "input_dac": "input DAC",
    "weight_dac": "weight DACs",
    "memory": "memory",
    "laser": "laser",
    "bias": "bias control",
    "receiver": "receivers",
    "input_modulator": "input modulator",
    "weight_modulator": "weight modulators",
    "adc": "ADC",
}
PART_COLORS = (VERMILION, AMBER, MUTED, BLUE, SKY, GREEN, MAUVE, "#8c6bb1", INK)
BIT_COLORS = {"12": "#2f56b0", "8": "#7449b6", "6": "#b73c90", "4": "#ee7b2f"}


def transfer_figure(found: Tree) -> "Figure":
    """Light against voltage of both modulators, with the levels that a coarse DAC can set."""
    with style():
        figure = new_figure(3.5)
        left, right = figure.subplots(1, 2)
        pairs = (
            (left, "input", "input_levels", "Input modulator: one output", BLUE),
            (right, "weight", "weight_levels", "Weight modulator: both outputs", VERMILION),
        )
        for axes, curve, levels, title, color in pairs:
            axes.plot(found["volts_per_v_pi"], found[curve], color=color)
            axes.axvspan(-0.5, 0.5, color=color, alpha=0.07, linewidth=0)
            contrast = found["contrast"]
            for level in found[levels]:
                sine = (2.0 * level - 1.0 if curve == "input" else level) / contrast
                volt = math.asin(max(-1.0, min(1.0, sine))) / math.pi
                axes.plot([-1.5, volt, volt], [level, level, -1.1], color=MUTED, linewidth=0.5, alpha=0.7)
                axes.plot([volt], [level], "o", color=color, markersize=3.4)
            axes.set_title(title)
            axes.set_xlabel(r"voltage / V$_\pi$, from quadrature")
            axes.set_xlim(-1.5, 1.5)
        left.set_ylim(-0.03, 1.05)
        right.set_ylim(-1.1, 1.1)
        left.set_ylabel("share of the light")
        right.set_ylabel("bar minus cross")
        return figure


def eye_figure(found: Tree) -> "Figure":
    """Density of light over two symbols, one panel for each way to drive the modulator."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from numpy import array, ma

    ramp = LinearSegmentedColormap.from_list("eye", ["#cfd8ef", "#6f86cf", "#7449b6", "#dc4c5c", "#f7b267"])
    ramp = ramp.with_extremes(bad=(1.0, 1.0, 1.0, 0.0))
    with style():
        figure = new_figure(3.3)
        panels = figure.subplots(1, len(found), sharey=True)
        for axes, (name, eye) in zip(panels, found.items(), strict=True):
            counts = array(eye["counts"])
            axes.imshow(
                ma.masked_less(counts, 1.0),
                origin="lower",
                aspect="auto",
                extent=(0.0, 2.0, eye["low"], eye["high"]),
                cmap=ramp,
                norm=PowerNorm(0.45, vmin=0.0, vmax=counts.max() * 0.5),
                interpolation="bilinear",
            )
            subtitle(axes, name, f"error {eye['error']:.1%} (symbol model {eye['model_error']:.1%})")
            axes.set_xlabel("time / symbols")
            axes.set_xticks([0.0, 0.5, 1.0, 1.5, 2.0])
        panels[0].set_ylabel("light behind the input modulator")
        return figure


def budget_figure(found: Tree) -> "Figure":
    """Share of each cause in the error, at several fan-ins."""
    colors = (SKY, BLUE, "#16325c")

    def worst(term: str) -> float:
        return max(budget["relative_error"].get(term, 0.0) for budget in found.values())

    with style():
        order = sorted({term for budget in found.values() for term in budget["relative_error"]}, key=worst)
        figure = new_figure(0.75 + 0.34 * (len(order) + 2))
        axes = figure.subplots()
        height = 0.8 / len(found)
        rows = [*order, "in all"]
        for index, (fan_in, budget) in enumerate(found.items()):
            values = [budget["relative_error"].get(term, 0.0) for term in order] + [budget["total_relative_error"]]
            places = [row + 0.4 - height * (index + 0.5) for row in range(len(rows))]
            axes.barh(places, values, height * 0.92, color=colors[index], label=f"{int(fan_in):,} inputs", linewidth=0)
            measured = budget["measured_relative_error"]
            axes.plot([measured], [places[-1]], "D", color=INK, markersize=4, label=None if index else "measured")
        axes.set_yticks(range(len(rows)), [str(TERM_NAMES.get(row, row)) for row in rows])
        axes.set_xlim(1e-5, 0.1)
        log_axis(axes, "x")
        axes.set_xlabel("error / rms of the results")
        light_grid(axes, "x")
        axes.legend(frameon=False, loc="lower right", fontsize=9.5)
        return figure


def light_figure(found: Tree) -> "Figure":
    """Effective bits over optical power."""
    with style():
        figure = new_figure(3.9)
        axes = figure.subplots()
        for bits, values in found["effective_bits"].items():
            color = BIT_COLORS[bits]
            axes.plot(found["electrons"], values, "o-", color=color, markersize=3.5)
            end = (found["electrons"][-1], values[-1])
            note(axes, f"{bits}-bit converters", end, (0, 7), ha="right", color=color, path_effects=halo())
        axes.axhline(0.0, color=MUTED, linewidth=0.8)
        log_axis(axes, "x")
        axes.set_xlabel("electrons that one full-scale symbol frees")
        axes.set_ylabel("effective bits of a result")
        axes.set_ylim(top=1.18 * max(max(values) for values in found["effective_bits"].values()))
        light_grid(axes)
        above = axes.secondary_xaxis(
            "top",
            functions=(
                lambda e: e * found["power_mw"][0] / found["electrons"][0],
                lambda p: p * found["electrons"][0] / found["power_mw"][0],
            ),
        )
        above.set_xlabel("light at the detectors, mW")
        return figure


def accuracy_figure(found: Tree) -> "Figure":
    """Accuracy against bits and against electrons: digital weights moved to the core, and training on it."""
    with style():
        figure = new_figure(3.8)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, rows, key in ((left, found["bits"], "bits"), (right, found["electrons"], "electrons")):
            for name, color, label in (
                ("in_situ", BLUE, "trained on the core"),
                ("moved", VERMILION, "moved to the core"),
            ):
                x, y = [row[key] for row in rows], [row[name] for row in rows]
                spread = [1.645 * math.sqrt(max(p * (1.0 - p), 1e-6) / found["n_test"]) for p in y]
                axes.errorbar(x, y, spread, fmt="o-", color=color, markersize=4.5, linewidth=1.6, label=label)
            axes.axhline(found["digital"], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
            light_grid(axes)
        note(left, "digital", (8.35, found["digital"]), (0, 5))
        left.set_xlim(8.4, 2.6)
        left.set_xticks([row["bits"] for row in found["bits"]])
        left.set_xlabel("bits of all converters")
        left.set_ylabel("accuracy on unseen fonts")
        left.set_ylim(0.0, 1.0)
        right.set_xlim(right.get_xlim()[::-1])
        right.set_xscale("log")
        right.set_xlim(1600, 6)
        right.set_xticks([row["electrons"] for row in found["electrons"]])
        right.set_xticklabels([f"{row['electrons']:g}" for row in found["electrons"]])
        right.minorticks_off()
        right.set_xlabel("electrons a symbol, shot noise alone")
        right.legend(frameon=False, loc="lower left")
        return figure


def throughput_figure(found: Tree) -> "Figure":
    """GOPS over fan-in."""
    with style():
        figure = new_figure(3.7)
        axes = figure.subplots()
        for (name, line), color in zip(found["lines"].items(), (SKY, BLUE), strict=False):
            axes.plot(found["fan_in"], line["hidden"], color=color, linestyle=(0, (4, 2)), linewidth=1.3)
            axes.plot(found["fan_in"], line["visible"], color=color)
            for mark in line["marks"]:
                axes.plot([mark["fan_in"]], [mark["gops"]], "o", color=color, markersize=5)
                note(axes, f"{mark['gops']:.1f}", (mark["fan_in"], mark["gops"]), (4, -14), path_effects=halo())
            look = {"color": color, "fontsize": 10.5, "path_effects": halo()}
            note(axes, f"{name}: {line['peak']:g} GOPS", (found["fan_in"][0], line["peak"]), (0, 5), **look)
        axes.set_ylim(0.0, 1.12 * max(line["peak"] for line in found["lines"].values()))
        log_axis(axes, "x", "count")
        axes.set_xlabel("fan-in (symbols of one integration)")
        axes.set_ylabel("GOPS of one neuron")
        light_grid(axes)
        return figure


def energy_figure(rows: list[Tree]) -> "Figure":
    """pJ per operation by part, for several channels that share one input stream."""
    with style():
        figure = new_figure(3.6)
        axes = figure.subplots()
        bottom = [0.0] * len(rows)
        names = [str(row["channels"]) for row in rows]
        for part, color in zip(PART_NAMES, PART_COLORS, strict=True):
            values = [row["pj_per_op"][part] for row in rows]
            axes.bar(names, values, 0.56, bottom, color=color, label=PART_NAMES[part], linewidth=0)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        for index, row in enumerate(rows):
            note(axes, f"{row['tops_per_w']:.2f} TOPS/W", (index, bottom[index]), (0, 4), ha="center")
        axes.set_ylim(0.0, 1.12 * max(bottom))
        axes.set_xlabel("weight channels that share one input stream")
        axes.set_ylabel("pJ per operation")
        light_grid(axes)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], frameon=False, loc="outside right upper", fontsize=9.5)
        return figure


def fidelity_figure(found: Tree) -> "Figure":
    """Errors of one dot product, drawn by both models, over the Gaussian that the closed form predicts."""
    from numpy import exp, linspace

    with style():
        figure = new_figure(3.1)
        axes = figure.subplots()
        std = found["analytic"]["std"]
        edges = linspace(-4.0 * std, 4.0 * std, 61)
        for name, color, label in (("analytic", BLUE, "closed form"), ("waveform", VERMILION, "symbol by symbol")):
            histogram = {"histtype": "step", "linewidth": 1.5, "density": True}
            axes.hist(found[name]["errors"], bins=edges, color=color, label=label, **histogram)
        density = exp(-0.5 * (edges / std) ** 2) / (std * math.sqrt(2.0 * math.pi))
        axes.plot(edges, density, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), label="Gaussian")
        axes.set_xlabel(f"error of one dot product of {found['fan_in']} symbols, MAC units")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.legend(frameon=False)
        return figure


def glyph_figure(found: Tree) -> "Figure":
    """A few test images."""
    from matplotlib.colors import LinearSegmentedColormap

    ink = LinearSegmentedColormap.from_list("ink", ["#e9edf6", "#16325c"])
    with style():
        figure = new_figure(1.1)
        for axes, sample in zip(figure.subplots(1, len(found["samples"])), found["samples"], strict=True):
            axes.imshow(sample, cmap=ink, vmin=0.0, vmax=1.0)
            axes.set_axis_off()
        return figure
