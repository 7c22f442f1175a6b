"""Two sweeps in one picture: their runs, and the best loss at each compute by each side's laws."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoflop.pages.plot import BLUE, VERMILION, light_grid, log_axis, new_figure, style
from isoflop.scaling.published import load_laws
from isoflop.scaling.sweep.records import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS_LABEL = {"bits_per_byte": "loss (bits per byte)", "loss_nats": "loss (nats per token)"}
FURTHER = 3.0
"""The curves go on to this factor beyond the last run."""


def comparison_figure(laws: tuple[Path, Path], records: tuple[Path, Path]) -> "Figure":
    """Loss against compute of A and B; a side is called by the name of its laws file."""
    sides = [(path.stem, load_laws(path), read_records(runs)) for path, runs in zip(laws, records, strict=True)]
    unit = sides[0][1].loss
    with style():
        figure = new_figure(4.6)
        axes = figure.subplots()
        for (name, law, runs), color in zip(sides, (BLUE, VERMILION)):
            dots = [(run.total_flops, getattr(run, unit)) for run in runs if run.kind == "cell" and run.total_flops]
            flops, losses = np.array([dot for dot in dots if dot[1]], dtype=float).T
            axes.plot(flops, losses, "o", color=color, markersize=4, alpha=0.6, label=f"{name}: runs")
            line = np.geomspace(flops.min(), FURTHER * flops.max(), 60)
            best = np.mean(list(law.optimum_losses(law.constants(), line).values()), axis=0)  # over the laws
            axes.plot(line, best, color=color, label=f"{name}: best, by its laws")
        log_axis(axes, "x")
        axes.set_xlabel("training compute C (FLOPs)")
        axes.set_ylabel(f"validation {LOSS_LABEL.get(unit, unit)}")
        axes.legend(frameon=False)
        light_grid(axes, "y")
    return figure
