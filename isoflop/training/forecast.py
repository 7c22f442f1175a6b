"""Where a run will end, from its own curve so far, and whether it has left its band: an onlooker of the training loop.

Losses are averaged over a hundredth of the run each. Through these means goes the law of schedules with only three
constants free (L0, A and the gain of a falling rate), for each of twenty exponents of the decline; exponents are
weighed by how well they fit, so that what a short curve cannot tell is in the interval. Where the difficulty of every
batch is known, losses are first made those that the text of the last steps would have had. Everything is a function of
the recipe and of the losses so far: a resumed run forecasts what an undisturbed one does. Numbers only, no torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from isoflop.training.schedule_law import Schedule

BLOCKS = 100
"""Means of a run; a run of fewer than twice as many steps is not forecast."""
GAIN, GAIN_SPREAD = 0.51, 0.15
"""Nats that a whole fall of the rate gains in the end at the sizes below; give or take a part of it."""
GAIN_SIZES = ((48, 0.37), (0.004, 0.46), (896, -0.20), (2400, -0.18))
"""Width, peak rate, tokens of a batch and steps at which the gain is GAIN, and the powers that it goes with: fitted to
11 runs that no table of docs/schedules.md has. It tells what five demos and a target 480 wide gained (docs/log.md)."""
C, BETA, GAMMA = 0.01, 1.0, 0.3
"""How soon it arrives, in steps at the peak (measured with GAIN)."""
ALPHAS = np.linspace(0.05, 1.0, 20)
ALPHA, ALPHA_SPREAD = 0.3, 0.25
"""Prior of the exponent of the decline (assumption: published fits lie between 0.3 and 0.5, small runs below)."""
MISFIT = 0.002
"""Relative error of a mean that is no noise: text differs, and the law is not exact (measured with GAIN)."""
DRIFT = 0.012
"""Relative standard deviation of the end for each e-fold of steps to come: young curves are less of a power law yet."""
HARDER = 1.05
"""Nats that a batch costs for each nat that pairs of tokens find it harder: measured 1.02 to 1.10 (docs/log.md)."""
LEVEL = 1.645
"""Standard deviations of a 90% interval."""
FORGOTTEN, LEAST_BLOCKS = 0.3, 8
"""The first plateaus of a run are no power law: this share of the steps is left out, and so many means are needed."""
OUTSIDE, IN_A_ROW = 4.0, 3
"""A run has left its band when so many means in a row lie so many standard deviations above what was expected."""


class Interval(NamedTuple):
    """Training loss in nats per token: center, and 90% between low and high."""

    center: float
    low: float
    high: float


class Fit(NamedTuple):
    """What the law makes of a curve: for Q averages of steps, and the gain of a whole fall of the rate."""

    center_Q: np.ndarray
    sd_Q: np.ndarray
    gain: float


def arrived(schedule: Schedule, steps_M: np.ndarray, stride: int = 1) -> np.ndarray:
    """Share of the gain of a whole fall that has arrived (M); a step of the schedule is `stride` steps of training."""
    scale = C * stride * schedule.peak ** (GAMMA - 1.0)
    return schedule.gained(steps_M, scale, BETA, GAMMA)[0] / schedule.peak + 1.0


def fit_curve(
    schedule: Schedule,
    steps_M: np.ndarray,
    losses_M: np.ndarray,
    noise_sd: float,
    targets: Sequence[np.ndarray],
    *,
    gain: float,
    gain_spread: float = GAIN_SPREAD,
) -> Fit:
    """Bayesian linear regression for each exponent, averaged over exponents; `targets` are the Q averages, as steps.

    Shapes: M means with the steps in their middle; A exponents. Units: nats per token; `noise_sd` of one mean.
    """
    reach = schedule.sums / schedule.sums[steps_M[-1]]

    def basis(steps: np.ndarray) -> np.ndarray:
        declined_AM = reach[steps] ** -ALPHAS[:, None]
        return np.stack(np.broadcast_arrays(1.0, declined_AM, -arrived(schedule, steps)), axis=-1)

    X_AM3, at_AQ3 = basis(steps_M), np.stack([basis(steps).mean(axis=1) for steps in targets], axis=1)
    variance = noise_sd**2 + (MISFIT * losses_M[-1]) ** 2
    prior_3 = np.array([1e-6, 1e-6, 1.0 / (gain_spread * gain) ** 2])
    precision_A33 = np.einsum("ami,amj->aij", X_AM3, X_AM3) / variance + np.diag(prior_3)
    covariance_A33 = np.linalg.inv(precision_A33)
    right_A3 = X_AM3.transpose(0, 2, 1) @ losses_M / variance + prior_3 * [0.0, 0.0, gain]
    theta_A3 = (covariance_A33 @ right_A3[:, :, None])[:, :, 0]
    left_AM = losses_M - (X_AM3 @ theta_A3[:, :, None])[:, :, 0]
    misfit_A = (left_AM**2).sum(axis=1) / variance + prior_3[2] * (theta_A3[:, 2] - gain) ** 2
    misfit_A += ((ALPHAS - ALPHA) / ALPHA_SPREAD) ** 2 + np.linalg.slogdet(precision_A33)[1]
    weight_A = np.exp(-0.5 * (misfit_A - misfit_A.min()))
    weight_A /= weight_A.sum()
    center_AQ = (at_AQ3 @ theta_A3[:, :, None])[:, :, 0]
    variance_AQ = np.einsum("aqi,aij,aqj->aq", at_AQ3, covariance_A33, at_AQ3)
    center_Q = weight_A @ center_AQ
    return Fit(center_Q, np.sqrt(weight_A @ (variance_AQ + (center_AQ - center_Q) ** 2)), weight_A @ theta_A3[:, 2])


def usual_gain(d_model: int, learning_rate: float, batch_tokens: int, n_steps: int) -> float:
    """Nats that a fall of the rate from its peak to 0 gains in the end."""
    sizes = (d_model, learning_rate, batch_tokens, n_steps)
    return GAIN * math.prod((size / at) ** power for size, (at, power) in zip(sizes, GAIN_SIZES, strict=True))


class LossForecast:
    """Takes the metrics of every step, in order; knows the final loss, its interval, and when to warn."""

    def __init__(
        self,
        rates: Sequence[float],
        *,
        gain: float,
        stages: Sequence[int] = (),
        planned: Interval | None = None,
        difficulty: Callable[[int, int], np.ndarray] | None = None,
    ):
        """`rates` of the whole recipe; `gain` in nats; `stages`: steps at which the data change; `planned`: the end.

        `difficulty` of the steps from one up to another, in nats (isoflop.training.pretrain.difficulty).
        """
        self._rates, self._schedule = rates, Schedule(rates)
        self._gain, self._stages, self._planned = gain, stages, planned
        self._n_last = max(1, min(100, len(rates) // 10))  # as `train_loss_nats` of a result is averaged
        self.difficulty = difficulty
        self._last_difficulty: float | None = None
        self._open: list[dict[str, Any]] = []
        self._outside: list[list[dict[str, Any]]] = []
        self._blocks: list[tuple[int, float, float]] = []
        """Step in the middle, mean and noise of a step."""
        self._expected: Interval | None = None
        self._warned = False
        self._resumed_at = 0
        self.final: Interval | None = None
        """Of the mean training loss over the last steps; None while the curve is too short."""

    def resume(self, step: int, lines: list[dict[str, Any]]) -> None:
        """The run goes on from `step`; `lines` are the metrics of the steps before."""
        for line in lines:
            self.add(line)
        self._resumed_at = step

    def add(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """One line of metrics; each hundredth of the run returns what is known then, with a `warning` at most once."""
        self._open.append(line)
        if len(self._open) < len(self._rates) // BLOCKS:
            return None
        block, harder = self._on_last_text(self._open)
        self._open = []
        middle, mean, noise = average(block)
        found: dict[str, Any] = {"step": block[-1]["step"], "loss_nats": mean + harder}
        if self._expected is not None:
            found["expected"] = _moved(self._expected, harder)._asdict()
            if mean > self._expected.high:
                self._outside.append(block)
        if self._expected is None or mean <= self._expected.high:
            self._blocks += [*map(average, self._outside), (middle, mean, noise)]
            self._outside = []
        elif len(self._outside) == IN_A_ROW:
            if not self._warned:
                found["warning"] = self._left_band(mean + harder, _moved(self._expected, harder))
            self._warned, self._blocks, self._outside = True, list(map(average, self._outside)), []
        self._fit(block[-1]["step"])
        if self.final is not None:
            found["final"] = self.final._asdict()
            late = block[-1]["step"] > len(self._rates) / 2
            if late and not self._warned and self._planned and self.final.low > self._planned.high:
                self._warned = True
                found["warning"] = f"the run is heading for {_text(self.final)}; planned was {_text(self._planned)}"
        return found

    def _on_last_text(self, block: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        """The lines as if their text were as hard as that of the last steps, and what its difficulty cost, in nats."""
        if self.difficulty is None:
            return block, 0.0
        if self._last_difficulty is None:
            n_steps = len(self._rates)
            self._last_difficulty = float(self.difficulty(n_steps - self._n_last, n_steps).mean())
        first = block[0]["step"]
        hard = self.difficulty(first - 1, block[-1]["step"]) - self._last_difficulty
        costs = [HARDER * float(hard[line["step"] - first]) for line in block]
        lines = [
            {**line, "loss_nats": line["loss_nats"] - cost, "measured_nats": line["loss_nats"]}
            for line, cost in zip(block, costs, strict=True)
        ]
        return lines, float(np.mean(costs))

    def _fit(self, step: int) -> None:
        """The interval of the next block, and that of the end."""
        start = max(2 * self._schedule.warmup_steps, FORGOTTEN * step)
        used = [block for block in self._blocks if block[0] > start]
        self._expected = self.final = None
        if len(used) < LEAST_BLOCKS or step >= len(self._rates):
            return
        steps, means, noise = map(np.array, zip(*used, strict=True))
        length, n_steps = len(self._rates) // BLOCKS, len(self._rates)
        step_sd = float(np.median(noise))
        next_block = np.arange(step + 1, min(step + length, n_steps) + 1)
        end = np.arange(n_steps - self._n_last, n_steps) + 1
        fit = fit_curve(
            self._schedule, steps.astype(int), means, step_sd / length**0.5, [next_block, end], gain=self._gain
        )
        own_Q = np.array([step_sd**2 / length, step_sd**2 / self._n_last])
        doubt_Q = fit.center_Q * [MISFIT, np.hypot(MISFIT, DRIFT * np.log(n_steps / step))]
        sd_Q = np.sqrt(fit.sd_Q**2 + own_Q + doubt_Q**2)
        (near, far), (near_sd, far_sd) = fit.center_Q.tolist(), sd_Q.tolist()
        self._expected = Interval(near, near - OUTSIDE * near_sd, near + OUTSIDE * near_sd)
        self.final = Interval(far, far - LEVEL * far_sd, far + LEVEL * far_sd)

    def _left_band(self, mean: float, expected: Interval) -> str:
        """The warning: what happened where, and what most likely caused it."""
        lines = [line for block in self._outside for line in block]
        first, last, recent = lines[0]["step"], lines[-1]["step"], len(self._rates) // 20
        worst = max(lines, key=lambda line: line["loss_nats"])
        ratio = lines[0]["learning_rate"] / self._rates[first - 1]
        near = [stage for stage in self._stages if first - recent <= stage < last]
        if abs(ratio - 1) > 0.01:
            cause = f"the learning rate is {ratio:.3g} times that of the recipe"
        elif near:
            cause = f"data.curriculum changes at step {near[0]}"
        elif self._resumed_at and first - recent <= self._resumed_at < last:
            cause = f"the run was resumed at step {self._resumed_at}: other software, device or data than before"
        elif worst["loss_nats"] - mean > 10 * np.median([noise for _, _, noise in self._blocks]):
            cause = (
                f"a bad batch: step {worst['step']} had a loss of {worst.get('measured_nats', worst['loss_nats']):.3f}"
            )
        else:
            cause = "usual causes are a learning rate that is too high, other data, a bad batch, a restart"
        return f"step {last}: loss {mean:.3f} instead of {_text(expected)}, above its band since step {first}; {cause}"


def average(lines: list[dict[str, Any]]) -> tuple[int, float, float]:
    """Step in the middle, mean without spikes, and standard deviation of a step (from neighbours, free of trend)."""
    losses = np.array([line["loss_nats"] for line in lines])
    noise, middle = float(np.std(np.diff(losses))) / 2**0.5, float(np.median(losses))
    return lines[len(lines) // 2]["step"], float(losses.clip(middle - 5 * noise, middle + 5 * noise).mean()), noise


def _moved(interval: Interval, nats: float) -> Interval:
    return Interval(*(end + nats for end in interval))


def _text(interval: Interval) -> str:
    return f"{interval.center:.3f} ({interval.low:.3f} to {interval.high:.3f})"
