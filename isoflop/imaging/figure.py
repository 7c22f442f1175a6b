"""The pictures of an imaging study: galleries, correlation over crop and photons, speckle against its law.

In: records of `sweep.py` and the galleries that runs left. Out: matplotlib Figures. Frames are drawn in the red of a
633 nm laser, images in grey.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.pages.plot import BLUE, GREEN, INK, MUTED, VERMILION, WIDTH, light_grid, new_figure, style, subtitle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LASER = ("#0d0507", "#5c0a12", "#c4281c", "#f58a4b", "#fff1dc")
KINDS = {"test": "digits", "unseen": "unseen letters"}
COLORS = {"test": BLUE, "unseen": VERMILION}

Gallery = Mapping[str, np.ndarray]
"""KIND.frame, KIND.truth, KIND.ridge, KIND.network of a run."""


def gallery_figure(gallery: Gallery, *, n: int = 5) -> "Figure":
    """Columns are objects: the frame that the camera saw, the ridge's image, the network's, the truth."""
    kinds = [kind for kind in KINDS if f"{kind}.truth" in gallery]
    rows = {"frame": "speckle", "ridge": "ridge", "network": "network", "truth": "truth"}
    with style():
        figure = new_figure(WIDTH * (len(rows) + 0.7) / (n * len(kinds)))
        axes = figure.subplots(len(rows), n * len(kinds), squeeze=False)
        for block, kind in enumerate(kinds):
            for index in range(n):
                truth = gallery[f"{kind}.truth"][index]
                for row, (part, label) in enumerate(rows.items()):
                    panel = axes[row, block * n + index]
                    image = gallery[f"{kind}.{part}"][index]
                    _image(panel, image, laser=part == "frame")
                    if part in ("ridge", "network"):
                        panel.set_xlabel(f"{_pcc(image, truth):.2f}", fontsize=8.5, labelpad=1.5, color=MUTED)
                    if block == index == 0:
                        panel.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
            axes[0, block * n].set_title(KINDS[kind], fontsize=10.5, pad=5)
        figure.get_layout_engine().set(wspace=0.02, hspace=0.02, w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr]
    return figure


def crops_figure(galleries: Mapping[int, Gallery], frame: np.ndarray, *, n: int = 4) -> "Figure":
    """Rows are crops, largest first: which part of the frame was read, and what the network makes of it."""
    from matplotlib.patches import Rectangle

    crops = sorted(galleries, reverse=True)
    kinds = [kind for kind in KINDS if f"{kind}.truth" in galleries[crops[0]]]
    columns = 1 + n * len(kinds)
    with style():
        figure = new_figure(WIDTH * (len(crops) + 1.5) / columns)
        axes = figure.subplots(len(crops) + 1, columns, squeeze=False)
        for row, crop in enumerate(crops):
            left = axes[row, 0]
            _image(left, frame, laser=True)
            edge = (frame.shape[0] - crop) / 2
            if crop < frame.shape[0]:
                shade = np.full((*frame.shape, 4), (0.05, 0.02, 0.03, 0.72))
                shade[int(edge) : int(edge) + crop, int(edge) : int(edge) + crop, 3] = 0
                left.imshow(shade)
            left.add_patch(Rectangle((edge - 0.5, edge - 0.5), crop, crop, fill=False, color="#7fe8ff", linewidth=1.4))
            left.set_ylabel(f"{crop**2:,}\npixels", rotation=0, ha="right", va="center", labelpad=6)
            for column, (kind, index) in enumerate((k, i) for k in kinds for i in range(n)):
                truth, image = galleries[crop][f"{kind}.truth"][index], galleries[crop][f"{kind}.network"][index]
                panel = axes[row, 1 + column]
                _image(panel, image)
                panel.set_xlabel(f"{_pcc(image, truth):.2f}", fontsize=8.5, labelpad=1.5, color=MUTED)
                if row == len(crops) - 1:
                    _image(axes[row + 1, 1 + column], truth)
        axes[-1, 0].set_axis_off()
        axes[-1, 1].set_ylabel("truth", rotation=0, ha="right", va="center", labelpad=6)
        axes[0, 0].set_title("what is read", fontsize=10.5, pad=5)
        for block, kind in enumerate(kinds):
            axes[0, 1 + block * n].set_title(KINDS[kind], fontsize=10.5, pad=5)
        figure.get_layout_engine().set(wspace=0.02, hspace=0.02, w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr]
    return figure


def crop_curve(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Correlation over the number of camera pixels, for network, ridge and the mean image."""
    with style():
        figure = new_figure(4.7)
        axes = figure.subplots()
        _curves(axes, records, "camera_px")
        axes.set_xscale("log", base=2)
        pixels = sorted({record["camera_px"] for record in records})
        axes.set_xticks(pixels, [f"{value:,}\n({math.isqrt(value)} x {math.isqrt(value)})" for value in pixels])
        axes.minorticks_off()
        axes.set_xlabel("camera pixels")
        subtitle(axes, "How little of the pattern is enough", "mean correlation with the truth over all test objects")
    return figure


def photon_curve(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Correlation over photons per pixel; without photon noise at the right end."""
    counts = sorted({record["photons"] for record in records if record["photons"]})
    quiet = 10 * counts[-1]
    shown = [{**record, "photons": record["photons"] or quiet} for record in records]
    with style():
        figure = new_figure(4.7)
        axes = figure.subplots()
        _curves(axes, shown, "photons")
        axes.set_xscale("log")
        axes.set_xticks([*counts, quiet], [*(f"{value:g}" for value in counts), "no noise"])
        axes.minorticks_off()
        axes.set_xlabel("detected photons per camera pixel (mean)")
        subtitle(axes, "How little light is enough", f"{records[0]['camera_px']:,} camera pixels")
    return figure


def histogram_figure(frames: np.ndarray, contrast: float) -> "Figure":
    """Brightness of the pixels of all frames against exp(-I/<I>)."""
    with style():
        figure = new_figure(3.6)
        axes = figure.subplots()
        values = (frames / frames.mean(axis=(1, 2), keepdims=True)).ravel()
        edges = np.linspace(0, 8, 41)
        density, _ = np.histogram(values, bins=edges, density=True)
        middle = (edges[1:] + edges[:-1]) / 2
        seen = density > 0
        axes.bar(middle[seen], density[seen], width=0.2, color=GREEN, alpha=0.45, label="simulated frames")
        axes.plot(middle, np.exp(-middle), color=INK, label="fully developed speckle, exp(-I/<I>)")
        axes.set_yscale("log")
        axes.set_xlim(0, 8)
        axes.set_xlabel("brightness over the mean")
        axes.set_ylabel("density")
        axes.legend(frameon=False)
        light_grid(axes)
        subtitle(axes, "Is it speckle?", f"contrast {contrast:.3f}; fully developed speckle has 1")
    return figure


def _curves(axes: "Axes", records: Sequence[Mapping[str, Any]], by: str) -> None:
    ordered = sorted(records, key=lambda record: record[by])
    x = [record[by] for record in ordered]
    for kind, name in KINDS.items():
        if kind not in ordered[0]["scores"]:
            continue
        color = COLORS[kind]
        axes.plot(x, [r["scores"][kind]["pcc"] for r in ordered], "o-", color=color, label=f"network, {name}")
        ridge = [r["ridge"][kind]["pcc"] for r in ordered]
        axes.plot(x, ridge, "o--", color=color, markersize=4, linewidth=1.2, label="ridge")
        axes.axhline(ordered[0]["mean_image_pcc"][kind], color=color, linewidth=1.2, linestyle=":", label="mean image")
    axes.set_ylim(min(0.3, axes.get_ylim()[0]), 1.01)
    axes.set_ylabel("correlation")
    axes.legend(frameon=False, ncols=2, fontsize=9.5, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    light_grid(axes)


def _image(axes: "Axes", image: np.ndarray, *, laser: bool = False) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    if laser:
        top = float(np.quantile(image, 0.995)) or 1.0
        colors = LinearSegmentedColormap.from_list("laser", LASER)
        axes.imshow(image, cmap=colors, vmin=0, vmax=top, interpolation="nearest")
    else:
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _pcc(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(found.ravel(), truth.ravel())[0, 1])
