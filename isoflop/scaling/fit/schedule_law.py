"""The law of schedules fitted to loss curves: two or three short runs under different schedules, and any other follows.

Judge the predictions, not the constants: B, C, beta and gamma are not identifiable (docs/schedules.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isoflop.errors import FitError
from isoflop.scaling.fit.solver import least_squares
from isoflop.training.schedule_law import Schedule, ScheduleLaw, losses

POINTS = 120
"""Of each curve, evenly spaced in ln(steps): more say nothing new about seven constants."""
USUAL = {"alpha": 0.5, "beta": 0.6, "gamma": 0.65}
"""Source: the fits to models of 25M and 100M parameters of arXiv 2503.12811; the descent starts here, and curves that
do not tell `beta` and `gamma` leave them near."""
SPREAD, MISFIT = 0.15, 0.001
"""How far both may lie from there, where the law misses curves by such a relative error (assumption)."""


class Curve(NamedTuple):
    """The losses of one run after so many finished steps (M each), and the schedule that it followed."""

    schedule: Schedule
    steps: np.ndarray
    losses: np.ndarray


def fit_schedule_law(curves: Sequence[Curve]) -> ScheduleLaw:
    """Least squares of the relative error over the curves of one model, each counted the same.

    Raises:
        FitError: no rate falls, or there are fewer than 20 losses.
    """
    thinned = [_thinned(curve) for curve in curves]
    measured_S = np.concatenate([curve.losses for curve in thinned]) if thinned else np.zeros(0)
    if len(measured_S) < 20:
        raise FitError(f"a law of schedules needs at least 20 losses after the warm-up, there are {len(measured_S)}")
    if not any(len(curve.schedule.falls) for curve in curves):
        raise FitError("the learning rate falls in none of the curves, so nothing says what a fall gains: add a run")
    weight_S = np.concatenate([np.full(len(curve.steps), 1.0 / len(curve.steps)) for curve in thinned] + [np.ones(2)])

    def residuals(theta_RP: np.ndarray) -> np.ndarray:
        constants = _constants(theta_RP)
        predicted = [losses(constants, curve.schedule, curve.steps) for curve in thinned]
        prior = MISFIT / SPREAD * (theta_RP[:, 5:] - [USUAL["beta"], USUAL["gamma"]])
        return np.concatenate([np.concatenate(predicted, axis=1) / measured_S - 1.0, prior], axis=1)

    low, peak = float(measured_S.min()), max(curve.schedule.peak for curve in curves)
    total = max(float(curve.schedule.sums[-1]) for curve in curves)
    alpha, beta, gamma = USUAL.values()
    decline = [0.8 * low, np.log(0.2 * low * total**alpha), alpha]
    starts = [
        [*decline, np.log(gain * low / peak), np.log(speed * peak ** (gamma - 1.0)), beta, gamma]
        for gain in (0.03, 0.1)
        for speed in (0.01, 0.1)
    ]
    bounds = np.array([0.0, -30.0, 0.05, -30.0, -30.0, 0.05, 0.0]), np.array([low, 30.0, 2.0, 30.0, 30.0, 2.0, 2.0])
    theta, cost = least_squares(
        residuals, np.array(starts), weight_S[None], bounds=bounds, max_steps=100, relative_decrease=1e-5
    )
    return ScheduleLaw(*map(float, _constants(theta[[np.argmin(cost)]])[0]))


def _constants(theta_RP: np.ndarray) -> np.ndarray:
    """A, B and C are fitted as logarithms."""
    constants = theta_RP.copy()
    constants[:, [1, 3, 4]] = np.exp(theta_RP[:, [1, 3, 4]])
    return constants


def _thinned(curve: Curve) -> Curve:
    """Losses after the warm-up, at steps evenly spaced in ln(step)."""
    steps, found = np.asarray(curve.steps, dtype=int), np.asarray(curve.losses, dtype=float)
    after = np.flatnonzero(steps > curve.schedule.warmup_steps)
    if len(after) <= POINTS:
        return Curve(curve.schedule, steps[after], found[after])
    wanted = np.geomspace(steps[after[0]], steps[after[-1]], POINTS)
    kept = after[np.unique(np.searchsorted(steps[after], wanted))]
    return Curve(curve.schedule, steps[kept], found[kept])
