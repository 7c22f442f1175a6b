"""Figures of runs: learning-rate/batch heat maps, the target's training curve, and what shared trunks saved.

Records or metrics go in, a matplotlib Figure comes out, or None where they do not hold what the figure shows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.pages.plot import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PAPER,
    SKY,
    VERMILION,
    count,
    halo,
    light_grid,
    new_figure,
    note,
    number,
    power_text,
    style,
    subtitle,
)
from isoflop.scaling.fit.lr_batch import BAND, Setting, quadratic_optimum
from isoflop.scaling.report.study import Json, Study, Target, hyper_settings
from isoflop.scaling.sweep.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 3  # the settings of most compute
MAX_POINTS = 1500
"""Of a training curve; more make the file larger and no reader wiser."""


def hyper_figure(study: Study) -> "Figure | None":
    """Excess loss over learning rate and batch, one panel per setting that varies both; the largest settings first."""
    settings = hyper_settings(study.cells)
    chosen = sorted(sorted(settings, key=lambda item: -item[0])[:MAX_PANELS])
    if not chosen:
        return None
    with style():
        figure = new_figure(4.0, width=8.4 if len(chosen) > 1 else 5.6)
        panels = figure.subplots(1, len(chosen), squeeze=False)[0]
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize

        ramp = LinearSegmentedColormap.from_list(
            "excess", ["#0b4f6c", "#2f8fa8", "#9ccfd0", "#f3ead7", "#efb366", "#d55e00"]
        )
        paint = ScalarMappable(Normalize(0.0, 3.0), ramp)
        for axes, (_, rows) in zip(panels, chosen, strict=True):
            _draw_heat_map(axes, rows, study, paint)
        panels[0].set_ylabel("peak learning rate")
        note = f"outlined: within {100 * BAND:.2f}% of the best run; star: vertex of a fitted quadratic"
        figure.supxlabel(note, color=MUTED, fontsize=9)
        figure.colorbar(paint, ax=list(panels), label="loss above the best (%)", extend="max", shrink=0.8, pad=0.02)
    return figure


def training_figure(
    metrics: Sequence[Json],
    target: Target | None = None,
    *,
    curve: Json | None = None,
    forecasts: Sequence[Json] = (),
) -> "Figure | None":
    """Training loss, validation and learning rate of one run against tokens, with the predicted interval at its end.

    `metrics` are the lines of `metrics.jsonl`: a step has `loss_nats`, a validation has `validation.bits_per_byte`.
    `curve` is `[prediction.curve]` of the plan, `forecasts` are the lines of `forecast.jsonl`.
    """
    steps = [line for line in metrics if number(line.get("loss_nats")) is not None and number(line.get("n_tokens"))]
    if len(steps) < 2:
        return None
    per_step = steps[-1]["n_tokens"] / steps[-1]["step"] if number(steps[-1].get("step")) else 0.0
    checks = [
        (float(line.get("n_tokens") or per_step * line["step"]), float(found))
        for line in metrics
        if number(line.get("step")) is not None
        and (found := number((line.get("validation") or line).get("bits_per_byte"))) is not None
    ]
    tokens = np.array([line["n_tokens"] for line in steps], dtype=float)
    with style():
        figure = new_figure(4.6)
        loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=[3.6, 1.0])
        loss = np.array([line["loss_nats"] for line in steps], dtype=float)
        shown = slice(None, None, max(1, len(loss) // MAX_POINTS))
        loss_axes.plot(tokens[shown], loss[shown], color=SKY, linewidth=0.7, alpha=0.55)
        loss_axes.plot(tokens[shown], smooth(loss)[shown], color=BLUE)
        # The first steps fall from ln(vocabulary) and would squeeze the rest of the curve into nothing.
        tail = smooth(loss)[len(loss) // 30 :]
        room = max(float(tail.max() - tail.min()), 0.1)
        loss_axes.set_ylim(float(tail.min()) - 0.15 * room, float(tail.max()) + 0.10 * room)
        loss_axes.set_ylabel("training loss (nats per token)", color=BLUE)
        light_grid(loss_axes)
        loss_axes.set_title("The target run" if target else "Training")
        _draw_forecasts(loss_axes, per_step, curve or {}, forecasts)
        if len(checks) >= 1:
            _draw_validation(loss_axes, checks, target, float(tokens[-1]))
        rate = np.array([line.get("learning_rate") or np.nan for line in steps], dtype=float)
        rate_axes.plot(tokens[shown], rate[shown], color=MUTED)
        rate_axes.set_ylim(bottom=0)
        rate_axes.set_ylabel("learning rate")
        rate_axes.locator_params(axis="y", nbins=3)
        light_grid(rate_axes)
        rate_axes.set_xlabel("tokens")
        rate_axes.xaxis.set_major_formatter(lambda value, _: count(value))
        rate_axes.set_xlim(0, tokens[-1] * 1.03)
    return figure


def trunk_figure(study: Study) -> "Figure | None":
    """Shared trunks as a timeline: what ran once, the cooldowns that branch from it, and the FLOPs this saved."""
    saving = trunk_saving([*study.cells, *study.diverged])
    if saving is None:
        return None
    trunks = [trunk for trunk in saving.trunks if len(trunk.cells) > 1]
    trunks.sort(key=lambda trunk: trunk.flops_per_token)
    with style():
        figure = new_figure(1.5 + 0.55 * len(trunks))
        axes = figure.subplots()
        for lane, trunk in enumerate(trunks):
            scale = trunk.flops_per_token
            axes.plot([0, scale * trunk.trunk_tokens], [lane, lane], color=BLUE, linewidth=3.4, zorder=3)
            for branch, end in trunk.cells:
                axes.plot([scale * branch, scale * end], [lane, lane + 0.4], color=VERMILION, linewidth=2, zorder=2)
                axes.plot(scale * end, lane + 0.4, "o", color=VERMILION, markersize=5, markeredgecolor=PAPER, zorder=4)
                axes.plot(scale * branch, lane, "|", color=PAPER, markersize=8, markeredgewidth=1.2, zorder=4)
            last = scale * max(end for _, end in trunk.cells)
            note(axes, rf"$\times${trunk.separate / trunk.shared:.2f}", (last, lane + 0.2), (12, 0), va="center")
        axes.set_yticks(range(len(trunks)), labels=[f"M = {count(trunk.flops_per_token)}" for trunk in trunks])
        axes.set_ylim(-0.45, len(trunks) - 0.35)
        axes.set_xlim(left=0)
        axes.margins(x=0.09)
        axes.xaxis.set_major_formatter(lambda value, _: power_text(value))
        light_grid(axes, "x")
        axes.set_xlabel("training compute of one size (FLOPs)")
        text = f"{power_text(saving.shared, 2)} FLOPs run instead of {power_text(saving.separate, 2)}: "
        text += "each size runs once (blue), and cooldowns branch off (red)"
        subtitle(axes, rf"Shared trunks: $\times${saving.factor:.2f} fewer FLOPs for the same runs", text)
    return figure


@dataclass(frozen=True)
class Trunk:
    """Runs of one size: their common stretch was trained once. Units: tokens and FLOPs."""

    flops_per_token: float
    trunk_tokens: float
    cells: list[tuple[float, float]]
    """Where each run left the trunk, and where it ended."""

    @property
    def shared(self) -> float:
        return self.flops_per_token * (self.trunk_tokens + sum(end - branch for branch, end in self.cells))

    @property
    def separate(self) -> float:
        return self.flops_per_token * sum(end for _, end in self.cells)


@dataclass(frozen=True)
class TrunkSaving:
    """What sharing saved in a whole sweep."""

    trunks: list[Trunk]
    shared: float
    separate: float

    @property
    def factor(self) -> float:
        return self.separate / self.shared


@dataclass(frozen=True)
class SharingRegret:
    """A control (a cell run alone, at its own budget's rate and batch) against its twin; pairs: shared, alone."""

    budget_flops: float | None
    scale: float
    learning_rates: tuple[float | None, float | None]
    batch_tokens: tuple[float | None, float | None]
    losses: tuple[float, float]

    @property
    def regret(self) -> float:
        """Above 0, sharing made it worse."""
        return self.losses[0] / self.losses[1] - 1


def trunk_saving(runs: Sequence[RunRecord]) -> TrunkSaving | None:
    """What sharing saved, or None if no two runs share a trunk.

    A trunk runs once, to its last branch point; each run then adds only its own tokens after the branch. Runs without
    a trunk cost the same either way and count on both sides, so that the factor is the one of the whole sweep.
    Units: FLOPs by the convention of the records' `flops_per_token`.
    """
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for index, run in enumerate(runs):
        if number(run.flops_per_token) and number(run.n_tokens):
            groups[run.trunk_id or f"alone {index}"].append(run)
    trunks = []
    for _, members in sorted(groups.items()):
        cells = sorted((float(run.trunk_tokens_shared or 0.0), float(run.n_tokens or 0.0)) for run in members)
        trunks.append(Trunk(float(members[0].flops_per_token or 0.0), cells[-1][0], cells))
    if not any(len(trunk.cells) > 1 and trunk.trunk_tokens > 0 for trunk in trunks):
        return None
    return TrunkSaving(trunks, sum(trunk.shared for trunk in trunks), sum(trunk.separate for trunk in trunks))


def sharing_regret(study: Study) -> list[SharingRegret]:
    """What sharing cost, for every control whose shared twin is there."""
    twins = {(cell.budget_flops, study.scale(cell), cell.seed): cell for cell in study.cells}
    found = []
    for control in study.controls:
        cell = twins.get((control.budget_flops, study.scale(control), control.seed))
        if cell is not None:
            found.append(
                SharingRegret(
                    control.budget_flops,
                    study.scale(control),
                    (cell.learning_rate, control.learning_rate),
                    (cell.batch_tokens, control.batch_tokens),
                    (study.loss(cell), study.loss(control)),
                )
            )
    return found


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average without start-up bias; the horizon is 1% of the curve, at least 5 points."""
    decay = 1.0 - 1.0 / max(5.0, 0.01 * len(values))
    result, total, weight = np.empty(len(values)), 0.0, 0.0
    for index, value in enumerate(values):
        total, weight = decay * total + (1 - decay) * float(value), decay * weight + (1 - decay)
        result[index] = total / weight
    return result


def _draw_heat_map(axes: "Axes", rows: Sequence[RunRecord], study: Study, paint: Any) -> None:
    from matplotlib.patches import Rectangle

    rate, batch = (np.array([getattr(row, key) for row in rows], float) for key in ("learning_rate", "batch_tokens"))
    loss = np.array(list(map(study.loss, rows)))
    excess = loss / loss.min() - 1
    rate_edges, batch_edges = _edges(rate), _edges(batch)
    for r, b, e in sorted(zip(rate, batch, excess, strict=True), key=lambda item: -item[2]):
        (bottom, top), (left, right) = rate_edges[r], batch_edges[b]
        near = e <= BAND
        box = Rectangle(
            (left, bottom),
            right - left,
            top - bottom,
            facecolor=paint.to_rgba(100 * e),
            edgecolor=INK if near else PAPER,
            linewidth=2.0 if near else 0.8,
            zorder=3 if near else 2,
        )
        axes.add_patch(box)
        red, green, blue, _ = paint.to_rgba(100 * e)
        dark = 0.30 * red + 0.59 * green + 0.11 * blue < 0.52
        text = "best" if e == 0 else f"{100 * e:.2f}" if e < 0.0995 else f"{100 * e:.0f}"
        axes.text(
            np.sqrt(left * right),
            np.sqrt(bottom * top),
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if dark else "#222222",
            zorder=4,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlim(min(low for low, _ in batch_edges.values()), max(high for _, high in batch_edges.values()))
    axes.set_ylim(min(low for low, _ in rate_edges.values()), max(high for _, high in rate_edges.values()))
    for axis, edges in ((axes.xaxis, batch_edges), (axes.yaxis, rate_edges)):
        axis.set_ticks(list(edges), labels=[f"{value:,.3g}" if value < 1 else f"{value:,.0f}" for value in edges])
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    best = quadratic_optimum(Setting({}, np.log(rate), np.log(batch), loss))
    if not best.refused:
        axes.plot(
            np.exp(best.ln_batch), np.exp(best.ln_lr), "*", color="white", markersize=17, markeredgecolor=INK, zorder=6
        )
    axes.set_xlabel("batch (tokens)")
    scale = study.scale(rows[0])
    symbol = "M" if study.scale_key == "flops_per_token" else "N"
    axes.set_title(
        f"{power_text(study.flops(rows[0]))} FLOPs, {symbol} = {count(scale)}" if number(scale) else "", fontsize=10.5
    )


def _edges(values: np.ndarray) -> dict[float, tuple[float, float]]:
    """Borders of each distinct value on a log axis: half-way to its neighbours."""
    logs = np.log(np.unique(values))
    middles = (logs[1:] + logs[:-1]) / 2
    first, last = logs[0] - (middles[0] - logs[0]), logs[-1] + (logs[-1] - middles[-1])
    borders = np.exp(np.concatenate([[first], middles, [last]]))
    return {value: (borders[i], borders[i + 1]) for i, value in enumerate(np.unique(values))}


def _draw_forecasts(axes: "Axes", per_step: float, curve: Json, forecasts: Sequence[Json]) -> None:
    """The planned curve with its interval, and where the run was heading as it went on."""
    bottom, top = axes.get_ylim()
    if nats := curve.get("final_nats"):
        tokens, planned = per_step * np.array(curve["steps"]), np.array(curve["of_final"])
        center, low, high = (planned * value for value in nats)
        axes.fill_between(tokens, low, high, color=INK, alpha=0.08, linewidth=0)
        axes.plot(tokens, center, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="planned")
        bottom = min(bottom, low[-1])
    ends = [(per_step * line["step"], *line["final"].values()) for line in forecasts if line.get("final")]
    if ends:
        tokens, center, low, high = np.array(ends).T
        axes.fill_between(tokens, low, high, color=VERMILION, alpha=0.18, linewidth=0)
        axes.plot(tokens, center, color=VERMILION, linewidth=1.2, label="forecast of the end (90%)")
        bottom = min(bottom, low[len(low) // 4 :].min())
    for line in forecasts:
        if "warning" in line:
            axes.axvline(per_step * line["step"], color=VERMILION, linewidth=1.0)
            note(axes, "warning", (per_step * line["step"], top), (4, -12), color=VERMILION)
    axes.set_ylim(bottom, top)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right", frameon=False)


def _draw_validation(axes: "Axes", checks: list[tuple[float, float]], target: Target | None, end: float) -> None:
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    tokens, values = np.array(checks).T
    right.plot(tokens, values, "o-", color=GREEN, markersize=5, linewidth=1.2, markeredgecolor=PAPER)
    right.set_ylabel("validation bits per byte", color=GREEN)
    bounds = [values[len(values) // 10 :].min(), values[len(values) // 10 :].max()]
    if target is not None and target.predicted:
        low, high = target.low or target.predicted, target.high or target.predicted
        right.plot([end, end], [low, high], color=INK, linewidth=5, alpha=0.35, solid_capstyle="butt")
        right.plot(end, target.predicted, "_", color=INK, markersize=14, markeredgewidth=2.2)
        note(right, f"predicted {target.predicted:.4g}", (end, high), (-2, 8), ha="right", path_effects=halo())
        bounds += [low, high]
    room = max(max(bounds) - min(bounds), 0.02)
    right.set_ylim(min(bounds) - 0.15 * room, max(bounds) + 0.25 * room)
