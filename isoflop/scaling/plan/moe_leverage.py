"""What published laws expect a mixture of experts to be worth: compute of a dense model over its own at equal loss.

A shape and a budget go in; the efficiency leverage by each published law, their range and their sources come out. It
is a prior, of other data and other routers; given laws of a dense sweep of one's own, `leverage_of` measures it too.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.model.config import ModelConfig
from isoflop.scaling.fit.expert_forms import PUBLISHED_FORMS, Runs, leverage_at
from isoflop.scaling.laws import Laws
from isoflop.scaling.plan.compare import compare
from isoflop.scaling.sweep.family import activated_share

LEAST_WIDTH = 1.25
"""The stated range reaches at least this factor to both sides of the centre: no source gives the error of its
constants, and two laws may agree by chance (assumption)."""
FITTED_FROM_FLOPS = 1e18
"""Below this compute the published laws are extrapolated downwards (assumption: their smallest runs were near it)."""


def ling_leverage(share: Any, granularity: Any, total_flops: Any) -> Any:
    """EL = A^^(a0 + a1 log10 C + gamma g^2 + beta g), g = log2 G, A^ = A + 0.0163; Source: arXiv 2507.17702.

    Known answer: about 7 at share 1/32, granularity 11.3 and 1e22 FLOPs.
    """
    return leverage_at(list(PUBLISHED_FORMS["ling_leverage"].constants.values()), share, granularity, total_flops)


def joint_leverage(n_experts: float, total_flops: float) -> float:
    """EL by the joint law of experts (arXiv 2502.05172), both sides at their best size and tokens, C = 6 N D."""
    target = _joint_best(n_experts, math.log(total_flops))
    low, high = math.log(total_flops) - math.log(1e3), math.log(total_flops) + math.log(1e6)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _joint_best(1.0, middle) > target else (low, middle)
    return math.exp((low + high) / 2) / total_flops


@dataclass(frozen=True)
class ExpectedLeverage:
    """The prior for a shape. Not a confidence interval, and says so in `meaning`."""

    center: float
    """By Ling's law, which knows share and granularity."""
    low: float
    high: float
    """Range of the published laws, at least a factor 1.25 to both sides."""
    by_law: dict[str, float]
    activated_share: float
    granularity: float
    total_flops: float
    source: str
    meaning: str


@dataclass(frozen=True)
class MeasuredLeverage:
    """By comparing the laws of a plan with those of a dense sweep of one's own."""

    center: float
    low: float
    high: float
    by_law: dict[str, float]
    level: float
    over: str
    verdict: str


@dataclass(frozen=True)
class Leverage:
    expected: ExpectedLeverage | None
    measured: MeasuredLeverage | None


def expected_leverage(config: ModelConfig, total_flops: float) -> tuple[ExpectedLeverage | None, list[str]]:
    """The prior for a shape at a training compute C = M D, and warnings; None for a dense one."""
    if config.experts is None:
        return None, []
    share, granularity = activated_share(config), ling_granularity(config)
    by_law = {
        "ling_leverage": float(ling_leverage(share, granularity, total_flops)),
        "joint": joint_leverage(1 / share, total_flops),
    }
    center = by_law["ling_leverage"]
    warnings = []
    if total_flops < FITTED_FROM_FLOPS:
        warnings.append(
            f"expected leverage: {total_flops:.3g} FLOPs lie below the compute the published laws were fitted to "
            f"(about {FITTED_FROM_FLOPS:g}); compare a dense sweep with a sweep of this family instead of trusting it"
        )
    return ExpectedLeverage(
        center=center,
        low=min(*by_law.values(), center / LEAST_WIDTH),
        high=max(*by_law.values(), center * LEAST_WIDTH),
        by_law=by_law,
        activated_share=share,
        granularity=granularity,
        total_flops=total_flops,
        source="; ".join(f"{name}: {PUBLISHED_FORMS[name].source}" for name in by_law),
        meaning="compute of a dense model over that of this one at equal loss; range over published laws, a prior",
    ), warnings


def leverage_of(
    laws: Laws,
    config: ModelConfig,
    paper_flops: float,
    total_flops: float,
    dense_laws: Laws | None,
    level: float,
    same_held_out: bool = False,
) -> tuple[Leverage | None, list[str]]:
    """What a plan's experts should be worth by published laws, what one's own dense laws say, and warnings.

    `paper_flops` is M D, `total_flops` the compute as the laws count it.
    """
    expected, warnings = expected_leverage(config, paper_flops)
    measured = None
    if dense_laws is not None:
        found = compare(dense_laws, laws, budget_flops=total_flops, level=level, same_held_out=same_held_out)
        worth = found.multiplier
        measured = MeasuredLeverage(
            worth.center, worth.low, worth.high, worth.by_law, level, dense_laws.name, found.verdict
        )
        warnings += [f"measured leverage: {text}" for text in found.warnings]
    return (Leverage(expected, measured) if expected or measured else None), warnings


def _joint_best(n_experts: float, ln_flops: float) -> float:
    """Least loss over sizes at a compute; a grid in ln N is fine enough, because the optimum is flat."""
    ln_size = np.linspace(0.2, 0.8, 601) * (ln_flops - math.log(6))
    sizes = np.exp(ln_size)
    tokens = np.exp(ln_flops - math.log(6) - ln_size)
    unused = np.full(len(sizes), np.nan)
    runs = Runs(sizes, tokens, unused, np.full(len(sizes), n_experts), unused)
    return float(PUBLISHED_FORMS["joint"].loss(runs).min())


def ling_granularity(config: ModelConfig) -> float:
    """G = 2 d_model / d_expert of arXiv 2507.17702; a dense MLP counts as one expert."""
    return 2 * config.d_model / (config.experts.d_expert if config.experts else config.d_ff)
