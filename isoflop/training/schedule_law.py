"""Loss over time under any schedule: the multi-power law, which says what a falling rate gains, and when.

A learning rate of every step goes in, a loss at any step comes out. Numbers only, no torch, so that fits and plans read
it too; constants are fitted in isoflop.scaling.fit.schedule_law.

Symbols: S(t) sum of the rates before step t; T steps, K falls of the rate, M steps asked for, R sets of constants.
Source: arXiv 2503.12811, equation 1.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

STRETCHES = 256
"""A rate that always falls is cut into so many falls; on a cosine of 72,000 steps this moves no loss by 2e-4 nats."""


class Schedule:
    """The rates of a run, summed up once for many evaluations."""

    def __init__(self, rates: Sequence[float] | np.ndarray):
        rates_T = np.asarray(rates, dtype=float)
        self.n_steps, self.peak = len(rates_T), float(rates_T.max())
        self.sums = np.concatenate([[0.0], np.cumsum(rates_T)])
        """T + 1: S before every step, and at the end."""
        top = int(rates_T.argmax())
        steps = top + np.flatnonzero(np.diff(rates_T[top:])) + 1
        fall = rates_T[steps - 1] - rates_T[steps]
        large = np.abs(fall) > 0.02 * self.peak  # such a fall stands alone
        length = max(1, math.ceil(len(steps) / STRETCHES))
        parts = [
            part[start : start + length]
            for part in np.split(np.arange(len(steps)), np.flatnonzero(large[1:] | large[:-1]) + 1)
            for start in range(0, len(part), length)
            if len(part)
        ]
        middle = steps[[int(part[len(part) // 2]) for part in parts]] if parts else steps
        self.warmup_steps = top
        """Steps before the first one at the peak."""
        self.falls = np.array([fall[part].sum() for part in parts])
        """K: how far the rate falls, after the warm-up."""
        self._before_K = self.sums[middle]
        self._rate_K = np.maximum(rates_T[middle], 1e-3 * self.peak)  # a rate of 0 would gain all at once

    def gained(self, steps_M: np.ndarray, C, beta, gamma) -> np.ndarray:
        """Falls of the rate before a step, each times the share of its gain that has arrived, less the peak: RM.

        The warm-up counts as a rise that has arrived: leaving it out would shift every loss by B times the peak.

        Shapes: steps_M counts of finished steps; C, beta and gamma numbers, or R of them (complex too).
        Units: of the learning rate; times B it is a loss.
        """
        since_MK = np.maximum(self.sums[steps_M][:, None] - self._before_K, 0.0)
        C, beta, gamma = (np.reshape(value, (-1, 1, 1)) for value in (C, beta, gamma))
        return (1.0 - (1.0 + C * self._rate_K**-gamma * since_MK) ** -beta) @ self.falls - self.peak


@dataclass(frozen=True)
class ScheduleLaw:
    """L(t) = L0 + A S(t)^-alpha - B sum_k (r_{k-1} - r_k) (1 - (1 + C r_k^-gamma S_k(t))^-beta), in nats per token."""

    L0: float
    A: float
    alpha: float
    B: float
    C: float
    beta: float
    gamma: float

    def loss(self, schedule: Schedule, steps: np.ndarray) -> np.ndarray:
        """Loss after so many steps, at least 1."""
        return losses(np.array([astuple(self)]), schedule, np.asarray(steps))[0]


def losses(constants_RP: np.ndarray, schedule: Schedule, steps_M: np.ndarray) -> np.ndarray:
    """The law for R sets of its constants, in the order of `ScheduleLaw`: RM."""
    L0, A, alpha, B, C, beta, gamma = (column[:, None] for column in constants_RP.T)
    return L0 + A * schedule.sums[steps_M] ** -alpha - B * schedule.gained(steps_M, C, beta, gamma)
