"""What a run will reach: loss of a model scale and token count from fitted laws, with an interval.

`Laws` + scale + tokens -> `Prediction`. The one idea: three things may be wrong, and each is known from the runs. The
constants: all laws are evaluated on the same bootstrap resamples, and they disagree. The noise of one run. And the
recipe drifts: what held over the sweep holds less, the further one goes. How fast is known before any run is seen from
public series (`drift.json`, written by benchmarks/forecast.py), and is corrected by the sweep's own rehearsals (fitted
below one compute, runs beyond it predicted), which also say how much each law counts.

Symbols: S model scale (FLOPs per token M, or parameters N), D tokens, C = S D or 6 S D training FLOPs, R resamples.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np

from isoflop.errors import PlanError
from isoflop.recipe import Tree
from isoflop.scaling.laws import REPEAT_SCALE, REPEAT_TOKENS, Laws, effective, surface_loss, task_metric
from isoflop.scaling.published import LawsSource, load_laws

PRIOR_WITNESSES, MOST_WITNESSES = 6.0, 6
"""Rehearsals that the prior of the drift counts as, and that a sweep's own count as at most (they are nested)."""
LAW_DRIFT = 0.005  # assumption: prior of one law's drift per e-fold, where the laws are weighed against each other
LEAST_REHEARSED = 1.35  # assumption: predicting less far than this times the compute rehearses nothing
VOTES = {"surface_log_huber": 0.5, "surface_varpro": 0.5}
"""Of a law before it is weighed, else 1: two surfaces through the same runs make the same mistakes."""


@dataclass(frozen=True)
class Experience:
    """What public series say of intervals, besides the runs at hand."""

    drift: float
    """Prior of the drift, relative per e-fold of compute."""
    constants: float
    """Factor on the spread of resampled constants: joint resamples of few, unequally weighed runs say too much."""

    @classmethod
    @cache
    def of(cls, curves: bool) -> "Experience":
        """From IsoFLOP curves or from other tables, as benchmarks/forecast.py learned it (drift.json)."""
        tree = json.loads(Path(__file__).with_name("drift.json").read_text(encoding="utf-8"))
        return cls(**tree["curves" if curves else "tables"])

    def causes(self, known: Mapping[str, float]) -> dict[str, float]:
        """Relative standard deviations, from what `predict` keeps of a forecast under `components`."""
        return {
            "noise": known["noise"],
            "constants": self.constants * known["resampled"],
            "drift": drift_rate(self.drift, known["rehearsed_drift"], known["rehearsals"]) * known["e_folds"],
            "steepening": known["steepening"],
        }


def drift_rate(prior: float, rehearsed: float, rehearsals: float) -> float:
    """Drift per e-fold: the prior and the rehearsals, each counting as its witnesses."""
    witnesses = min(rehearsals, MOST_WITNESSES)
    squares = PRIOR_WITNESSES * prior**2 + witnesses * rehearsed**2
    return math.sqrt(squares / (PRIOR_WITNESSES + witnesses))


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
    components: Tree = field(default_factory=dict)
    """Relative standard deviations by cause (`noise`, `constants`, `drift`, `steepening`), what they rest on, and the
    extrapolation factor and effective tokens."""

    @property
    def relative_width(self) -> float:
        """Whole width of the interval over its centre."""
        return (self.high - self.low) / self.center


def central_loss(laws: Laws, scale: float, n_tokens: float, unique_tokens: float | None = None) -> float:
    """Mean of the laws' centres, without an interval; nan if the laws say nothing about loss."""
    losses = laws.losses(laws.constants(), scale, n_tokens, unique_tokens)
    return float(np.mean(list(losses.values()))) if losses else math.nan


def predict(
    laws: LawsSource,
    scale: float,
    n_tokens: float,
    *,
    level: float = 0.9,
    unique_tokens: float | None = None,
    experience: Experience | None = None,
) -> Prediction:
    """Predicted loss of a run of model scale S on D tokens, with an interval for one run.

    A law counts by its vote over the square of what it may miss: its rehearsals' misses per e-fold of compute (with
    `LAW_DRIFT` as `PRIOR_WITNESSES` more) as far as the target lies beyond the sweep, its resamples' spread, and the
    noise of one run. The centre is the weighted mean of the laws' centres. The interval is that of a normal law of ln
    L whose variance is the sum of `noise`, `constants` (spread of the laws' weighted mean over the resamples, and of
    the laws about it), `drift` (rehearsed likewise by the weighted mean), and of `steepening` where the sweep's loss
    fell faster at its end. `experience` is that of drift.json unless given. With repeated data, half of the pool uses
    repeated tokens only and half also the decay of excess size (see `repeated_loss`).

    Raises:
        PlanError: no law of loss, no resamples, or a level outside 0.5 to 0.999.
    """
    if not 0.5 <= level <= 0.999:
        raise PlanError(f"level = {level} must lie between 0.5 and 0.999; the usual one is 0.9")
    if not (0 < scale < math.inf and 0 < n_tokens < math.inf):
        raise PlanError(f"scale = {scale} and n_tokens = {n_tokens} must be finite numbers above 0")
    laws = load_laws(laws)
    resamples = laws.draws()
    central = {name: values for name, values in laws.constants().items() if name in resamples}
    if set(central) != set(resamples):
        missing = ", ".join(sorted(set(resamples) - set(central)))
        raise PlanError(f"laws file has resamples but no central fit of {missing}; fit again")
    total_flops = laws.flops_factor * scale * n_tokens
    by_law = {name: float(value) for name, value in laws.losses(central, scale, n_tokens, unique_tokens).items()}
    variants = [REPEAT_SCALE] if unique_tokens is None else [REPEAT_SCALE, math.inf]
    many = [laws.losses(resamples, scale, n_tokens, unique_tokens, repeat_scale=decay) for decay in variants]
    samples = {name: np.concatenate([one[name] for one in many]) for name in many[0]}
    noise = laws.noise_sd
    extrapolation = total_flops / laws.largest_budget_flops if laws.largest_budget_flops else None
    distance = max(math.log(extrapolation or 1.0), 0.0)
    doubt = {}
    for name, values in samples.items():
        rate = drift_rate(LAW_DRIFT, *_rehearsed(laws, {name: 1.0}))
        doubt[name] = (rate * distance) ** 2 + _spread(values) ** 2 + noise**2
    total = sum(VOTES.get(name, 1.0) / doubt[name] for name in by_law)
    weights = {name: VOTES.get(name, 1.0) / doubt[name] / total for name in by_law}
    center = sum(weights[name] * by_law[name] for name in by_law)
    rehearsed, count = _rehearsed(laws, weights)
    resampled = _spread(np.sum([weights[name] * samples[name] for name in samples], axis=0))
    disagreement = math.sqrt(sum(weights[name] * (by_law[name] / center - 1) ** 2 for name in by_law))
    known = {
        "noise": noise,
        "resampled": math.hypot(resampled, disagreement),
        "steepening": (laws.steepening or 0.0) * distance / 2,
        "rehearsed_drift": rehearsed,
        "rehearsals": count,
        "e_folds": distance,
    }
    experience = experience or Experience.of(bool(laws.budgets))
    causes = experience.causes(known)
    factor = math.exp(NormalDist().inv_cdf((1 + level) / 2) * math.hypot(*causes.values()))
    components: Tree = {
        **known,
        **causes,
        "drift_per_efold": drift_rate(experience.drift, rehearsed, count),
        "resamples": len(next(iter(resamples.values()))),
        "weights": weights,
        "laws_spread": (max(by_law.values()) - min(by_law.values())) / center,
        "extrapolation": extrapolation,
        "penalty_off_optimum": center - _mean(laws.optimum_losses(central, total_flops), weights),
    }
    if unique_tokens is not None:
        components["epochs"] = n_tokens / unique_tokens
        components["effective_tokens"] = float(effective(n_tokens, unique_tokens, REPEAT_TOKENS))
        components["repetition_penalty"] = center - _mean(laws.losses(central, scale, n_tokens), weights)
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {name: tuple(np.quantile(values, tails).tolist()) for name, values in samples.items()}
    return Prediction(
        unit=laws.loss,
        center=center,
        low=center / factor,
        high=center * factor,
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


def _rehearsed(laws: Laws, weights: Mapping[str, float]) -> tuple[float, float]:
    """Drift per e-fold of the weighted laws in rehearsals, beyond noise; and how many, each by the weight it has."""
    found, total = [], sum(weights.values())
    for one in laws.rehearsals or filter(None, [laws.rehearsal]):
        part = {name: weight for name, weight in weights.items() if (one.by_law or {}).get(name) is not None}
        if part and one.by_law and one.measured and one.n_cells and one.extrapolation_factor >= LEAST_REHEARSED:
            heard = sum(part.values())  # a rehearsal without the heaviest law says little of the mean of all
            miss = sum(weight * one.by_law[name] for name, weight in part.items()) / heard / one.measured - 1
            left = max(miss**2 - laws.noise_sd**2 / one.n_cells, 0.0)
            found.append(heard / total * np.array([left, math.log(one.extrapolation_factor) ** 2, 1.0]))
    left, square, count = np.sum(found, axis=0).tolist() if found else (0.0, 1.0, 0.0)
    return math.sqrt(left / square), count  # far rehearsals say more of drift


def _mean(losses: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> float:
    return float(sum(weights[name] * float(value) for name, value in losses.items()))


def _spread(samples: np.ndarray) -> float:
    """Relative standard deviation, from the 90% interval (a few resamples may be far off)."""
    low, middle, high = np.quantile(samples, [0.05, 0.5, 0.95])
    return float((high - low) / middle / 2 / NormalDist().inv_cdf(0.95))
