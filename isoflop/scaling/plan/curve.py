"""The loss of a planned run over its steps: the laws say where it would be if cooled, the schedule how far above it is.

    L(t) = surface(S, D s(t)) + gain x (what the falls of the rate that are still to come will gain),   s(T) = 1

s is the share of the summed rates that has passed. What a fall gains is measured on the cells of the sweep, where its
folder is at hand; else it is the usual one of isoflop.training.forecast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.recipe import Tree, from_tree, load_recipe
from isoflop.run import read_json_lines
from isoflop.scaling.laws import Laws, surface_loss
from isoflop.scaling.plan.predict import Prediction
from isoflop.scaling.sweep.records import RunRecord, read_records
from isoflop.training.forecast import BLOCKS, LEVEL, arrived, average, fit_curve
from isoflop.training.pretrain.recipe import PretrainRecipe
from isoflop.training.schedule_law import Schedule

POINTS, LEAST_CELLS = 32, 5
NATS_PER_UNIT = {"loss_nats": 1.0, "bits_per_byte": 2.9}
"""Training loss over the laws' loss where no sweep tells: a bit per byte at 4.2 bytes a token (assumption)."""


@dataclass(frozen=True)
class SweepCurves:
    """What the loss curves of a sweep say beside its laws."""

    gain: float
    """Of a fall of the rate, times the usual one."""
    cells: list[RunRecord]
    """Finished runs; each has its training and its validation loss."""

    def final_nats(self, prediction: Prediction) -> list[float]:
        """Center, low and high of the training loss at the end, in nats per token.

        How far training lies below validation is linear in validation^-2: so it was in our studies (docs/log.md).
        What cells scatter by, and half of what the gap grows by beyond them, join the interval.
        """
        own, training, validation = np.array(
            [(getattr(r, prediction.unit), r.train_loss_nats, r.loss_nats) for r in self.cells], float
        ).T
        inverse, gap = (own.mean() / own) ** 2, validation - training
        slope = max(0.0, np.polyfit(inverse, gap, 1)[0])  # a model that learns more never fits its own text less
        offset = (gap - slope * inverse).mean()
        scatter = float(np.std(gap - slope * inverse, ddof=2))
        ends = np.array([prediction.center, prediction.low, prediction.high])
        nats = ends * (validation / own).mean() - slope * (own.mean() / ends) ** 2 - offset
        beyond = slope * max(0.0, (own.mean() / ends[0]) ** 2 - inverse.max())
        doubt = np.hypot(LEVEL * scatter, beyond / 2)
        return (nats[0] + [0, -1, 1] * np.hypot(nats - nats[0], [0.0, doubt, doubt])).tolist()


def predicted_curve(
    laws: Laws, prediction: Prediction, recipe: Tree, scale: float, curves: SweepCurves | None = None
) -> Tree | None:
    """`[prediction.curve]` of a plan: steps and loss over final loss; None where no law knows other token counts.

    `final_nats` (center, low, high of the training loss) is there with the curves of a sweep only.
    """
    surfaces = laws.surface_constants()
    if not surfaces:
        return None
    made = from_tree(recipe, PretrainRecipe)
    n_steps = made.n_steps()
    stride = max(1, n_steps // 4000)
    schedule = Schedule([made.rate(step) for step in range(0, n_steps, stride)])
    places = np.unique(np.linspace(schedule.n_steps / POINTS, schedule.n_steps, POINTS).astype(int))
    tokens = made.train.n_tokens * schedule.sums[places] / schedule.sums[-1]
    cooled = np.mean([surface_loss(constants, scale, tokens) for constants in surfaces.values()], axis=0)
    gain_nats = made.usual_gain() * (curves.gain if curves else 1.0)
    gained = arrived(schedule, places, stride)
    nats = curves.final_nats(prediction) if curves else None
    gain = gain_nats / (nats[0] / prediction.center if nats else NATS_PER_UNIT[prediction.unit])
    loss = prediction.center + cooled - cooled[-1] + gain * (gained[-1] - gained)
    return {
        "steps": np.minimum(places * stride, n_steps).tolist(),
        "of_final": [round(float(value), 5) for value in loss / prediction.center],
        "gain_nats": gain_nats,
        **({"final_nats": nats} if nats else {}),
    }


def sweep_curves(sweep: Path) -> SweepCurves | None:
    """From records.jsonl, cells/ and trunks/ in the folder of a sweep; None where they are not there, or too few."""
    records = read_records(sweep / "records.jsonl") if (sweep / "records.jsonl").is_file() else []
    cells = [r for r in records if r.kind == "cell" and r.status == "finished" and r.loss_nats and r.train_loss_nats]
    gains = [gain for record in cells if (gain := _gain(sweep, record)) is not None]
    gain = float(np.median(gains)) ** 0.5 if gains else 0.0  # cells and the usual law count alike (docs/schedules.md)
    return SweepCurves(gain, cells) if len(gains) >= LEAST_CELLS else None


def _gain(sweep: Path, record: RunRecord) -> float | None:
    """What the cooldown of a cell gained, by its own curve and that of its trunk."""
    folder = sweep / "cells" / record.run_id
    if not (folder / "metrics.jsonl").is_file():
        return None
    recipe = load_recipe(folder / "recipe.toml", PretrainRecipe)
    own = _losses(folder / "metrics.jsonl")
    trunk = sweep / "trunks" / str(record.trunk_id) / "metrics.jsonl"
    earlier = [line for line in _losses(trunk) if line["step"] < own[0]["step"]] if trunk.is_file() else []
    lines, length = [*earlier, *own], recipe.n_steps() // BLOCKS
    if length < 2 or len(lines) < recipe.n_steps():
        return None
    schedule = Schedule([recipe.rate(step) for step in range(recipe.n_steps())])
    blocks = [average(lines[start : start + length]) for start in range(0, len(lines) - length + 1, length)]
    steps, means, noise = map(np.array, zip(*blocks[BLOCKS // 4 :], strict=True))
    usual = recipe.usual_gain()
    noise_sd = float(np.median(noise)) / length**0.5
    fit = fit_curve(schedule, steps, means, noise_sd, [steps[-1:]], gain=usual, gain_spread=2.0)
    return fit.gain / usual


def _losses(metrics: Path) -> Sequence[dict]:
    return [row for row in read_json_lines(metrics) if "loss_nats" in row]
