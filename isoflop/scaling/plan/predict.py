"""What a run will reach: loss of a model scale and token count from fitted laws, with an interval.

`Laws` + scale + tokens -> `Prediction`. The one idea: the laws (two fits of the surface, and loss against
compute) are evaluated on the same bootstrap resamples and pooled, so that the interval holds their disagreement; the
noise of one run is added, and it is widened by the miss of a rehearsal (fit without the largest budget, predict it).

Symbols: S model scale (FLOPs per token M, or parameters N), D tokens, C = S D or 6 S D training FLOPs, R resamples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from isoflop.errors import PlanError
from isoflop.scaling.laws import Laws, surface_loss, task_metric
from isoflop.scaling.published import LawsSource, load_laws

REPEAT_TOKENS, REPEAT_SCALE = 15.387756, 5.309743
"""Decay constants of repeated data and of excess size (arXiv 2305.16264, section 5; they are poorly determined)."""


@dataclass(frozen=True)
class Prediction:
    """A predicted validation loss with its interval, and what went into it."""

    unit: str
    """`bits_per_byte` or `loss_nats`."""
    center: float
    low: float
    high: float
    level: float
    """Share of runs that should fall inside."""
    scale: float
    """Model scale in the laws' own measure."""
    n_tokens: float
    total_flops: float
    by_law: dict[str, float] = field(default_factory=dict)
    """The centre of each law."""
    by_law_interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Interval of each law alone, from its resamples, without run noise."""
    components: dict[str, Any] = field(default_factory=dict)
    """Half-widths (relative) by cause, extrapolation factor, effective tokens."""

    @property
    def relative_width(self) -> float:
        """Whole width of the interval over its centre."""
        return (self.high - self.low) / self.center


def optimal_scale_for_tokens(constants: np.ndarray, n_tokens: Any) -> np.ndarray:
    """The scale for which `n_tokens` is the optimal token count (alpha A / S^alpha = beta B / D^beta)."""
    _, A, B, alpha, beta = np.moveaxis(np.asarray(constants, dtype=float), -1, 0)
    return np.exp((np.log(alpha * A) - np.log(beta * B) + beta * np.log(n_tokens)) / alpha)


def effective(amount: Any, unique: Any, decay: float) -> np.ndarray:
    """What `amount` is worth if only `unique` of it is new: U + U R (1 - exp(-(amount / U - 1) / R)) above U.

    Source: Muennighoff et al., arXiv 2305.16264, equation 5. Four passes count as 3.73 fresh ones, forty as 15.2.
    """
    amount, unique = np.asarray(amount, dtype=float), np.asarray(unique, dtype=float)
    excess = np.maximum(amount / unique - 1, 0.0)
    return np.where(amount > unique, unique + unique * decay * -np.expm1(-excess / decay), amount)


def repeated_loss(
    constants: np.ndarray,
    scale: Any,
    n_tokens: Any,
    unique_tokens: float | None,
    *,
    repeat_tokens: float = REPEAT_TOKENS,
    repeat_scale: float = REPEAT_SCALE,
) -> np.ndarray:
    """Surface loss where `n_tokens` are passes over `unique_tokens`; None: all tokens are new.

    Size above the optimal one for the corpus counts less by the same form (U_N). Where we deviate: U_N belongs to the
    whole corpus even if less of it is read, so that the loss is continuous and equals the surface without repetition.
    Pass `math.inf` for a decay constant to switch its term off.
    """
    if unique_tokens is None:
        return surface_loss(constants, scale, n_tokens)
    tokens = n_tokens if math.isinf(repeat_tokens) else effective(n_tokens, unique_tokens, repeat_tokens)
    if not math.isinf(repeat_scale):
        scale = effective(scale, optimal_scale_for_tokens(constants, unique_tokens), repeat_scale)
    return surface_loss(constants, scale, tokens)


def law_losses(
    laws: Laws,
    constants: Mapping[str, np.ndarray],
    scale: float,
    n_tokens: float,
    unique_tokens: float | None = None,
    *,
    repeat_scale: float = REPEAT_SCALE,
) -> dict[str, np.ndarray]:
    """Loss of one run by each law; to L*(C), which holds at the optimum only, the surfaces' mean penalty is added."""
    total_flops = laws.flops_factor * scale * n_tokens
    best = laws.optimum_losses(constants, total_flops)
    losses, penalties = {}, []
    for name, values in constants.items():
        if name != "lstar":
            losses[name] = repeated_loss(values, scale, n_tokens, unique_tokens, repeat_scale=repeat_scale)
            penalties.append(losses[name] - best[name])
    if "lstar" in constants:
        losses["lstar"] = best["lstar"] + (np.mean(penalties, axis=0) if penalties else 0.0)
    return losses


def central_loss(laws: Laws, scale: float, n_tokens: float, unique_tokens: float | None = None) -> float:
    """Mean of the laws' centres, without an interval; nan if the laws say nothing about loss."""
    losses = law_losses(laws, laws.constants(), scale, n_tokens, unique_tokens)
    return float(np.mean(list(losses.values()))) if losses else math.nan


def predict(
    laws: LawsSource,
    scale: float,
    n_tokens: float,
    *,
    level: float = 0.9,
    unique_tokens: float | None = None,
) -> Prediction:
    """Predicted loss of a run of model scale S on D tokens, with an interval for one run.

    Each law counts by 1 / sd of its own resamples at this run (at least the noise of one run), because far from the
    data a law that the runs do not fix should not have a full vote. The centre is the weighted mean of the laws'
    centres. The interval pools the laws over joint resamples, spreads each value by the noise of one run, and is
    widened in quadrature by the rehearsal: its relative miss, scaled by ln(extrapolation of the target) /
    ln(extrapolation of the rehearsal), less what resamples and noise already explain, taken as one standard deviation.
    With repeated data, half of the pool uses repeated tokens only and half also the decay of excess size (see
    `repeated_loss`).

    Raises:
        PlanError: no law of loss, no resamples, or a level outside 0.5 to 0.999.
    """
    if not 0.5 <= level <= 0.999:
        raise PlanError(f"level = {level} must lie between 0.5 and 0.999; the usual one is 0.9")
    if not (scale > 0 and n_tokens > 0):
        raise PlanError(f"scale = {scale} and n_tokens = {n_tokens} must be above 0")
    laws = load_laws(laws)
    resamples = laws.draws()
    central = {name: values for name, values in laws.constants().items() if name in resamples}
    if set(central) != set(resamples):
        missing = ", ".join(sorted(set(resamples) - set(central)))
        raise PlanError(f"laws file has resamples but no central fit of {missing}; fit again")
    total_flops = laws.flops_factor * scale * n_tokens
    by_law = {name: float(value) for name, value in law_losses(laws, central, scale, n_tokens, unique_tokens).items()}
    variants = [REPEAT_SCALE] if unique_tokens is None else [REPEAT_SCALE, math.inf]
    many = [law_losses(laws, resamples, scale, n_tokens, unique_tokens, repeat_scale=decay) for decay in variants]
    samples = {name: np.concatenate([one[name] for one in many]) for name in many[0]}
    noise = laws.noise_sd
    weights = _weights(samples, noise)
    center = sum(weights[name] * by_law[name] for name in by_law)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low_fit, high_fit = _pooled_quantiles(samples, weights, 0.0, tails)
    low_run, high_run = _pooled_quantiles(samples, weights, noise, tails)
    z = NormalDist().inv_cdf(tails[1])
    fit_sd = (high_fit - low_fit) / 2 / z / center
    miss, miss_factor = _rehearsal(laws, total_flops)
    unexplained = math.sqrt(max(miss**2 - fit_sd**2 - (noise * miss_factor) ** 2, 0.0))
    extra = z * unexplained * center
    low = center - math.hypot(max(center - low_run, 0.0), extra)
    high = center + math.hypot(max(high_run - center, 0.0), extra)
    components: dict[str, Any] = {
        "resamples": len(next(iter(resamples.values()))),
        "weights": weights,
        "fit_sd": fit_sd,
        "laws_spread": (max(by_law.values()) - min(by_law.values())) / center,
        "run_noise_sd": noise,
        "rehearsal_miss_scaled": miss,
        "rehearsal_miss_unexplained": unexplained,
        "rehearsal_extrapolation": laws.rehearsal.extrapolation_factor if laws.rehearsal else None,
        "extrapolation": total_flops / laws.largest_budget_flops if laws.largest_budget_flops else None,
        "penalty_off_optimum": center - _mean(laws.optimum_losses(central, total_flops), weights),
    }
    if unique_tokens is not None:
        components["epochs"] = n_tokens / unique_tokens
        components["effective_tokens"] = float(effective(n_tokens, unique_tokens, REPEAT_TOKENS))
        components["repetition_penalty"] = center - _mean(law_losses(laws, central, scale, n_tokens), weights)
    intervals = {}
    for name, values_R in samples.items():
        lower, upper = np.quantile(values_R, tails)
        intervals[name] = (float(lower), float(upper))
    return Prediction(
        unit=laws.loss,
        center=center,
        low=low,
        high=high,
        level=level,
        scale=float(scale),
        n_tokens=float(n_tokens),
        total_flops=total_flops,
        by_law=by_law,
        by_law_interval=intervals,
        components=components,
    )


def predict_benchmarks(
    laws: Laws, scale: float, n_tokens: float, *, level: float = 0.9
) -> dict[str, dict[str, dict[str, float]]]:
    """{TASK: {METRIC: {value, low, high}}} of one run; what one step does not know is carried into the next."""
    tails, found = [(1 - level) / 2, (1 + level) / 2], {}
    spread_Q = np.array([NormalDist().inv_cdf((i + 0.5) / 15) for i in range(15)])
    for task, law in laws.benchmarks.items():
        bits_R = surface_loss(np.array(law.bits), scale, n_tokens)
        bits_RQ = bits_R[1:, None] * (1 + law.bits_sd * spread_Q)
        metrics = {"answer_bits_per_byte": (bits_R[0], bits_RQ)}
        for metric, rows in law.metrics.items():
            runs_RQQ = task_metric(np.array(rows)[1:, None], bits_RQ)[..., None] + law.metrics_sd[metric] * spread_Q
            metrics[metric] = (task_metric(np.array(rows[0]), bits_R[0]), runs_RQQ.clip(0.0, 1.0))
        found[task] = {
            metric: dict(zip(("value", "low", "high"), map(float, (value, *np.quantile(runs, tails)))))
            for metric, (value, runs) in metrics.items()
        }
    return found


def _weights(samples: Mapping[str, np.ndarray], noise: float) -> dict[str, float]:
    """1 / relative sd of each law's resamples, at least the noise of one run, adding up to 1."""
    spread = {name: max(float(values.std() / abs(values.mean())), noise, 1e-6) for name, values in samples.items()}
    total = sum(1 / sd for sd in spread.values())
    return {name: 1 / sd / total for name, sd in spread.items()}


def _mean(losses: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> float:
    return float(sum(weights[name] * float(value) for name, value in losses.items()))


def _pooled_quantiles(
    samples: Mapping[str, np.ndarray], weights: Mapping[str, float], relative_sd: float, tails: list[float]
) -> tuple[float, float]:
    """Weighted quantiles over all laws, each value spread over quantiles of a normal (no random numbers)."""
    steps = 33 if relative_sd else 1
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / steps) for i in range(steps)])
    values = [(v[:, None] * (1 + relative_sd * quantiles[None, :])).ravel() for v in samples.values()]
    weight = [np.full(len(v), weights[name] / len(v)) for name, v in zip(samples, values, strict=True)]
    pooled, pooled_weight = np.concatenate(values), np.concatenate(weight)
    order = np.argsort(pooled)
    position = np.cumsum(pooled_weight[order]) - pooled_weight[order] / 2
    low, high = np.interp(tails, position, pooled[order])
    return float(low), float(high)


def _rehearsal(laws: Laws, total_flops: float) -> tuple[float, float]:
    """The miss of the rehearsal at the target, and the factor that it was scaled by."""
    largest, own = laws.largest_budget_flops, laws.rehearsal.extrapolation_factor if laws.rehearsal else None
    if laws.rehearsal is None or not own or own <= 1 or not largest or total_flops <= largest:
        return 0.0, 0.0
    factor = math.log(total_flops / largest) / math.log(own)
    return abs(laws.rehearsal.relative_error) * factor, factor
