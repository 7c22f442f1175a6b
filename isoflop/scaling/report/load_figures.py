"""How evenly experts were used: a run's metrics in, a picture of every layer over training and a table out.

Lines of metrics.jsonl that carry `expert_load` go in: {"step": s, "expert_load": {"max_violation": [per layer],
"entropy": [...], "dead": [...]}}. `max_violation` is (largest load - mean load) / mean load of a layer (MaxVio of arXiv
2408.15664), `entropy` that of the loads over its maximum (1: even), `dead` the experts that no token chose.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop.pages.plot import (
    BLUE,
    INK,
    MUTED,
    VERMILION,
    count,
    light_grid,
    log_axis,
    new_figure,
    number,
    style,
    subtitle,
)
from isoflop.recipe import Tree
from isoflop.scaling.report.study import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAST_SHARE = 0.1
"""Of the lines: what the table calls the end of training."""
MEASURES = ("max_violation", "entropy", "dead")
PUBLISHED = {"auxiliary loss": 0.72, "loss-free": 0.04}
"""Global MaxVio of a 1B model by its balancing (arXiv 2408.15664, table 2): what a reader may compare with."""


def read_load(metrics: Sequence[Json]) -> dict[str, np.ndarray] | None:
    """Steps (S,) and each measure (S, layers) from the lines that carry them; None with fewer than two lines.

    Lines of another number of layers than the last one (a changed run) and lines with a missing value are left out.
    """
    rows: list[tuple[float, list[list[float]]]] = []
    for line in metrics:
        load, step = line.get("expert_load"), number(line.get("step"))
        if not isinstance(load, Mapping) or step is None:
            continue
        values = [[number(item) for item in load.get(name) or []] for name in MEASURES]
        if len({len(row) for row in values}) == 1 and values[0] and all(v is not None for row in values for v in row):
            rows.append((step, values))  # type: ignore[arg-type]
    rows = [row for row in rows if len(row[1][0]) == len(rows[-1][1][0])]
    if len(rows) < 2:
        return None
    found = {"step": np.array([step for step, _ in rows])}
    for index, name in enumerate(MEASURES):
        found[name] = np.array([values[index] for _, values in rows], dtype=float)
    return found


def load_figure(metrics: Sequence[Json]) -> "Figure | None":
    """MaxVio, entropy and dead experts over training, a line per layer from shallow (light) to deep (dark)."""
    load = read_load(metrics)
    if load is None:
        return None
    with style():
        figure = new_figure(6.4)
        violation, entropy, dead = figure.subplots(3, 1, sharex=True, height_ratios=[3.0, 1.6, 1.0])
        _draw_layers(violation, load["step"], load["max_violation"])
        log_axis(violation, "y", "count")
        violation.set_ylabel("MaxVio of a batch")
        n_layers = load["max_violation"].shape[1]
        text = f"{n_layers} layers with experts, light is shallow and dark is deep; the heavy line is their mean"
        subtitle(violation, "Load of the experts", text)
        _draw_layers(entropy, load["step"], load["entropy"])
        entropy.set_ylabel("entropy of loads\n(1: even)")
        entropy.set_ylim(top=1.0)
        total = load["dead"].sum(axis=1)
        dead.fill_between(load["step"], 0, total, step="mid", color=VERMILION, alpha=0.35, linewidth=0)
        dead.plot(load["step"], total, color=VERMILION, linewidth=1.2, drawstyle="steps-mid")
        dead.set_ylim(0, max(1.0, 1.1 * float(total.max())))
        dead.locator_params(axis="y", nbins=3, integer=True)
        dead.set_ylabel("dead experts\n(all layers)")
        dead.set_xlabel("step")
        dead.xaxis.set_major_formatter(lambda value, _: count(value))
        dead.set_xlim(load["step"][0], load["step"][-1])
        for axes in (violation, entropy, dead):
            light_grid(axes)
    return figure


def load_values(metrics: Sequence[Json], validated: Json | None) -> Tree | None:
    """Each layer at the first step and over the end of training, and the mean load over the validation set."""
    load = read_load(metrics)
    if load is None:
        return None
    last = slice(-max(1, round(LAST_SHARE * len(load["step"]))), None)
    columns = {"first": load["max_violation"][0], **{name: load[name][last].mean(axis=0) for name in MEASURES}}
    rows = [
        {"layer": str(layer + 1), **{name: float(values[layer]) for name, values in columns.items()}}
        for layer in range(len(columns["first"]))
    ]
    rows.append({"layer": "mean", **{name: float(values.mean()) for name, values in columns.items()}})
    given = (validated or {}).get("max_violation")
    known = [x for item in (given if isinstance(given, (list, tuple)) else [given]) if (x := number(item))]
    return {
        "rows": rows,
        "validated": sum(known) / len(known) if known else None,
        "published": PUBLISHED,
        "last_share": LAST_SHARE,
    }


def _draw_layers(axes: "Axes", steps: np.ndarray, values_SL: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("layers", ["#a8d1ee", BLUE, "#0a2f4d"])
    n_layers = values_SL.shape[1]
    for layer in range(n_layers):
        color = ramp(layer / max(1, n_layers - 1))
        axes.plot(steps, values_SL[:, layer], color=color, linewidth=0.8, alpha=0.75)
    axes.plot(steps, values_SL.mean(axis=1), color=INK, linewidth=2.2)
    axes.tick_params(labelcolor=MUTED)
