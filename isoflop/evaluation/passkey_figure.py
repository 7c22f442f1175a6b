"""Passkey accuracy as a picture: context length from left to right, depth from top to bottom, a panel per run.

In: what `isoflop.evaluation.passkey.compare_context` found. Out: a matplotlib Figure.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.pages.plot import INK, PAPER, count, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAMP = ("#d55e00", "#efb366", "#f3ead7", "#9ccfd0", "#0b6f8a")
"""Accuracy 0 to 1; readable under the common colour deficiencies."""

TITLES = {"before": "Before extension", "after": "After extension", "run": "Passkey accuracy"}


def passkey_figure(found: Mapping[str, Any]) -> "Figure":
    """One panel per run; a dark line ends the length that the model was first trained at."""
    names = list(found["runs"])
    with style():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize

        paint = ScalarMappable(Normalize(0.0, 1.0), LinearSegmentedColormap.from_list("accuracy", RAMP))
        figure = new_figure(1.6 + 2.0 * len(names))
        panels = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
        for name, axes in zip(names, panels, strict=True):
            _draw(axes, [cell for cell in found["cells"] if cell["run"] == name], found["original_seq_len"], paint)
            text = found["text"][name]
            axes.set_title(
                f"{TITLES.get(name, name)}: perplexity {text['perplexity']:.2f} in windows of {count(text['seq_len'])}"
            )
        panels[-1].set_xlabel("length of the question (tokens)")
        figure.colorbar(
            paint, ax=list(panels), label="keys found (%)", ticks=[0, 0.5, 1], format=lambda v, _: f"{v:.0%}"
        )
    return figure


def _draw(axes: "Axes", cells: list[dict[str, Any]], original: int, paint: Any) -> None:
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    shares = np.full((len(depths), len(lengths)), np.nan)
    for cell in cells:
        shares[depths.index(cell["depth"]), lengths.index(cell["length"])] = cell["accuracy"]
    axes.imshow(shares, aspect="auto", cmap=paint.cmap, norm=paint.norm)
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            dark = share < 0.12 or share > 0.85
            label = "-" if np.isnan(share) else f"{100 * share:.0f}"
            axes.text(column, row, label, ha="center", va="center", fontsize=9, color=PAPER if dark else INK)
    for row in range(len(depths) - 1):
        axes.axhline(row + 0.5, color=PAPER, linewidth=1.2)
    for column in range(len(lengths) - 1):
        edge = lengths[column] <= original < lengths[column + 1]
        axes.axvline(column + 0.5, color=INK if edge else PAPER, linewidth=2.4 if edge else 1.2)
    marks = [f"{length:,}" + ("\n(trained length)" if length == original else "") for length in lengths]
    axes.set_xticks(range(len(lengths)), marks)
    axes.set_yticks(range(len(depths)), [f"{100 * depth:g}" for depth in depths])
    axes.set_ylabel("depth of the key (%)")
