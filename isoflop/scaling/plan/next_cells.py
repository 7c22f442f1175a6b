"""Which runs to buy next: laws, a target and runs on offer -> those that narrow the target's interval most per cost.

Each bootstrap resample is a world: what a run would measure in it and what the target's loss is in it are known, so
their covariance says how much of the target's variance the run would take away, with the noise of one run (linear
update). Drift is not in the resamples: it grows with the distance from the largest budget to the target, which a larger
budget shortens. Runs are chosen one after the other, the ones before counted. Noise of the target itself always stays.

Runs that only mean something together (the three sizes of a budget that the sweep lacks) are offered together.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from isoflop.errors import PlanError
from isoflop.recipe import Tree
from isoflop.scaling.laws import Laws
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.predict import Prediction, predict

BETWEEN, NEW_BUDGET = (0.6, 0.77, 1.0, 1.3, 1.7), (0.6, 1.0, 1.7)
"""Sizes on offer, times the optimal one: at tested budgets and at a new one; a fit uses those within a factor 2."""
SAME_SIZE = 1.1  # assumption: nearer sizes say the same
BUDGET_RATIO = 3.0  # from the largest budget to a new one, where the sweep has no ratio of its own
NEW_BUDGETS = 20  # at most; a target too far for the sweep's ratio gets a larger one (assumption)
LEAST_GAIN = 0.01  # assumption: what takes less of the variance that can still go is no reason for a run
TAIL = 0.01  # of resamples on each side, clipped: a few may be far off


@dataclass(frozen=True)
class Run:
    """A run that could be bought."""

    budget_flops: float
    scale: float
    """In the laws' own measure."""
    n_tokens: float
    cost: float
    """FLOPs, or whatever cells are paid in."""


@dataclass(frozen=True)
class NextCells:
    """What to buy, and what it should bring."""

    target: Prediction
    width: float
    """Asked for: high - low over the centre."""
    runs: tuple[Run, ...]
    width_left: tuple[float, ...]
    """Expected after each run; runs that are bought together share it."""
    least_width: float
    """What noise alone leaves: no further run narrows it."""

    @property
    def reached(self) -> bool:
        return self.target.relative_width <= self.width

    @property
    def verdict(self) -> str:
        """One sentence."""
        now, asked = f"the interval is {self.target.relative_width:.2%} wide", f"{self.width:.2%}"
        if self.reached:
            return f"{now}, {asked} or less was asked for: no further run is needed"
        if not self.runs:
            return f"{now} and no run on offer narrows it by much (noise of one run alone: {self.least_width:.2%})"
        more = "" if self.width_left[-1] <= self.width else "; fit again and ask again"
        return f"{now}; {len(self.runs)} runs should leave {self.width_left[-1]:.2%}{more}"

    def tree(self) -> Tree:
        """Plain data for `--json`; `scale` under its own name."""
        rows = [dataclasses.asdict(run) | {"width_left": left} for run, left in zip(self.runs, self.width_left)]
        return {
            "width": self.target.relative_width,
            "asked_width": self.width,
            "least_width": self.least_width,
            "reached": self.reached,
            "verdict": self.verdict,
            "target": dataclasses.asdict(self.target),
            "cells": rows,
        }


def next_cells(
    laws: Laws,
    scale: float,
    n_tokens: float,
    *,
    width: float = 0.05,
    most: int = 4,
    level: float = 0.9,
    offers: Sequence[Sequence[Run]] | None = None,
    least_gain: float = LEAST_GAIN,
) -> NextCells:
    """Runs that narrow the interval of a target (S, D), best first, until `width` (relative) or `most` runs.

    `offers`: runs that are bought together, and whole; `offered(laws, C)` unless given.

    Raises:
        PlanError: width or most out of range, laws without resamples, an optimum that no tested size surrounds, a
            target below the sweep.
    """
    if not 0 < width < 1 or most < 1:
        raise PlanError(f"width = {width:g} must lie between 0 and 1, and cells = {most} must be at least 1")
    target = predict(laws, scale, n_tokens, level=level)
    if laws.budgets and target.total_flops < min(laws.budgets):
        raise PlanError(
            f"the target of {target.total_flops:.3g} FLOPs lies below the smallest budget of the sweep, "
            f"{min(laws.budgets):.3g}: no run there has to be forecast; name the run that you want to know"
        )
    noise = target.components["noise"]
    found = NextCells(target, width, (), (), _width(noise, level))
    if offers is None:
        offers = offered(laws, target.total_flops)
    if found.reached or not offers:
        return found
    runs = [run for offer in offers for run in offer]
    joint = covariance(laws, target, runs)
    ends = np.cumsum([len(offer) for offer in offers])
    groups = [list(range(end - len(offer), end)) for offer, end in zip(offers, ends)]
    largest = laws.largest_budget_flops or target.total_flops
    steps = choose(
        joint,
        np.full(len(runs), laws.noise_sd**2),
        groups,
        cost=np.array([sum(run.cost for run in offer) for offer in offers]),
        apart=_drift(target, largest),
        apart_if=np.array([_drift(target, max(largest, *(run.budget_flops for run in offer))) for offer in offers]),
        least_gain=least_gain,
    )
    chosen, left = [], []
    for group, variance in steps:
        chosen += offers[group]
        left += [_width(math.sqrt(variance + noise**2), level)] * len(offers[group])
        if left[-1] <= width or len(chosen) >= most:
            break
    return dataclasses.replace(found, runs=tuple(chosen), width_left=tuple(left))


def offered(laws: Laws, target_flops: float) -> list[list[Run]]:
    """Sizes near the optimum that the tested budgets lack, and three sizes at budgets on the way to the target.

    Raises:
        PlanError: an optimum that no tested size surrounds.
    """
    tested = sorted(laws.budgets) or [laws.largest_budget_flops or target_flops / BUDGET_RATIO]
    ratio = (tested[-1] / tested[0]) ** (1 / (len(tested) - 1)) if len(tested) > 1 else BUDGET_RATIO
    vertices = laws.allocation.vertices if laws.allocation else ()
    sizes = {vertex.budget_flops: [point["scale"] for point in vertex.points or ()] for vertex in vertices}

    def run(budget: float, factor: float) -> Run:
        scale = best_split(laws, budget).scale * factor
        return Run(budget, scale, budget / (laws.flops_factor * scale), budget)

    known = [run(budget, factor) for budget in tested for factor in BETWEEN]
    found = [
        [one]
        for one in known
        if all(abs(math.log(one.scale / size)) > math.log(SAME_SIZE) for size in sizes.get(one.budget_flops, ()))
    ]
    ratio = max(ratio, (target_flops / tested[-1]) ** (1 / NEW_BUDGETS))
    budget = tested[-1] * ratio
    while budget <= target_flops:
        found.append([run(float(f"{budget:.3g}"), factor) for factor in NEW_BUDGET])
        budget *= ratio
    return found


def covariance(laws: Laws, target: Prediction, runs: Sequence[Run]) -> np.ndarray:
    """Of the losses of target and runs, relative to the target's: within laws over the resamples and between laws.

    Laws count as they do in the prediction; scaled so that the target's variance is the prediction's `constants`.
    Shape (1 + runs, 1 + runs), target first.
    """
    weights, central, draws = target.components["weights"], laws.constants(), laws.draws()
    places = [(target.scale, target.n_tokens), *((run.scale, run.n_tokens) for run in runs)]
    share = np.array([weights[name] for name in draws])
    within, between = [], []
    for scale, n_tokens in places:
        draws_LR = np.stack([laws.losses(draws, scale, n_tokens)[name] for name in draws])
        center_L = np.array([laws.losses(central, scale, n_tokens)[name] for name in draws])
        mean_R = share @ draws_LR
        within.append(np.clip(mean_R, *np.quantile(mean_R, [TAIL, 1 - TAIL])))
        between.append(center_L - share @ center_L)
    joint = np.cov(np.array(within)) + (np.array(between) * share) @ np.array(between).T
    return joint * target.components["constants"] ** 2 / joint[0, 0]


def choose(
    joint: np.ndarray,
    noise_C: np.ndarray,
    groups: Sequence[Sequence[int]],
    *,
    cost: np.ndarray | None = None,
    apart: float = 0.0,
    apart_if: np.ndarray | None = None,
    least_gain: float = 0.0,
) -> Iterator[tuple[int, float]]:
    """Groups of candidates in the order of what they take from the target's variance per cost, with what is left.

    `joint` is the covariance of the target (first) and the candidates, `noise_C` the variance of measuring each,
    `apart` the target's variance that the candidates say nothing of but that becomes `apart_if` once a group is bought.
    """
    cost = np.ones(len(groups)) if cost is None else cost
    apart_if = np.zeros(len(groups)) + apart if apart_if is None else apart_if
    open_groups = set(range(len(groups)))  # a repeat is worth less than the update says: seeds share the fit's error
    while open_groups:
        now = joint[0, 0] + apart
        after = {g: _measured(joint, noise_C, groups[g]) for g in open_groups}
        gain = {g: now - after[g][0, 0] - min(apart, apart_if[g]) for g in open_groups}
        worth = {g: value / cost[g] for g, value in gain.items() if value > max(least_gain * now, 0.0)}
        if not worth:
            return
        best = max(worth, key=lambda g: worth[g])
        open_groups.remove(best)
        joint, apart = after[best], min(apart, float(apart_if[best]))
        yield best, max(float(joint[0, 0]), 0.0) + apart


def _measured(joint: np.ndarray, noise_C: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
    """The covariance once these candidates were measured."""
    for index in candidates:
        column = joint[:, index + 1]
        joint = joint - np.outer(column, column) / (column[index + 1] + noise_C[index])
    return joint


def _drift(target: Prediction, largest_flops: float) -> float:
    """Variance of drift and steepening from this largest budget to the target: like the distance, each in ln L."""
    known = target.components
    before = math.log(max(known["extrapolation"] or 1.0, 1.0))
    left = max(math.log(target.total_flops / largest_flops), 0.0)
    return (math.hypot(known["drift"], known["steepening"]) * left / before) ** 2 if before else 0.0


def _width(sd: float, level: float) -> float:
    """Of the interval of a loss whose ln has this standard deviation, over its centre."""
    return 2 * math.sinh(NormalDist().inv_cdf((1 + level) / 2) * sd)
