"""Fitted and published laws as one frozen type: what a fit returns, `laws.json` holds, and every plan reads.

    Laws.surfaces      L = E + A / S^alpha + B / D^beta, by objective
        .lstar         L* = E + k C^-g, loss at the optimum
        .allocation    S* = n_coefficient C^n_exponent, D* likewise, with the vertices of the IsoFLOP curves
        .hyper         batch and learning rate (isoflop.scaling.lr_batch_law)
        .bottoms       the same through the bottoms of the IsoFLOP curves
        .noise, .rehearsals, .resamples     how sure they are

Row i of every array in `resamples` comes from the same bootstrap resample, so that a plan can carry the joint
uncertainty to the decision. `Laws.tree` is the JSON of a laws file, `Laws.from_tree` reads it, also older ones.

Symbols: S model scale (FLOPs per token M, or parameters N), D tokens, C = S D or 6 S D training FLOPs, R resamples.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from isoflop.errors import PlanError, undamaged
from isoflop.recipe import Positive, Tree, with_types, write_json
from isoflop.scaling.lr_batch_law import RateBatchFit

FORMAT = 2
"""Of laws files; those of format 1 carry no number."""
Scale = Literal["flops_per_token", "n_params"]
FLOPS_FACTOR = {"n_params": 6.0, "flops_per_token": 1.0}
"""C / (S D) by what S is."""
CONSTANTS = ("E", "A", "B", "alpha", "beta")
POOLED = ("log_huber", "varpro", "published")
"""Surfaces that take part in a prediction; `published` stands alone."""
AT_OPTIMUM = ("lstar", "bottoms")
"""Laws that know the best loss of a compute only."""
REPEAT_TOKENS, REPEAT_SCALE = 15.387756, 5.309743
"""Decay constants of repeated data and of excess size (arXiv 2305.16264, section 5; they are poorly determined)."""
MIN_RESAMPLES = 100
"""Below this, percentiles of a 90% interval rest on a handful of values (assumption)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Surface:
    """L = E + A / S^alpha + B / D^beta, and how sure its constants are."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    a: float | None = None
    """beta / (alpha + beta): the optimal scale grows as C^a."""
    objective: float | None = None
    objective_mean_x1e6: float | None = None
    bootstrap_sd: dict[str, float] | None = None
    interval_95: dict[str, list[float]] | None = None

    @classmethod
    def of(cls, constants: Iterable[float]) -> "Surface":
        """From E, A, B, alpha, beta."""
        E, A, B, alpha, beta = map(float, constants)
        return cls(E, A, B, alpha, beta)

    @property
    def constants(self) -> np.ndarray:
        """E, A, B, alpha, beta, in the order that all resamples use."""
        return np.array([self.E, self.A, self.B, self.alpha, self.beta], dtype=float)

    def loss(self, scale: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Predicted loss at a model scale and a number of tokens."""
        return self.E + self.A * np.asarray(scale) ** -self.alpha + self.B * np.asarray(tokens) ** -self.beta

    def optimum(self, total_flops: float, factor: float) -> tuple[float, float, float]:
        """The best model scale and tokens at C = factor S D, and the loss there."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        product = total_flops / factor
        scale = ratio ** (1 / (self.alpha + self.beta)) * product ** (self.beta / (self.alpha + self.beta))
        return float(scale), float(product / scale), float(self.loss(scale, product / scale))


@dataclass(frozen=True)
class LossAtOptimum:
    """L* = E + k (C / reference_flops)^-g."""

    E: float
    k: float
    g: float
    reference_flops: Positive = 1.0
    bootstrap_sd: dict[str, float] | None = None
    interval_95: dict[str, list[float]] | None = None


@dataclass(frozen=True)
class Vertex:
    """The optimum of one budget: the bottom of its IsoFLOP curve. A place that is not known is NaN."""

    budget_flops: float
    total_flops: float
    scale_opt: float = math.nan
    tokens_opt: float = math.nan
    loss: float = math.nan
    inside: bool = True
    """Between the tested sizes."""
    used: bool = True
    """Inside, or outside by no more than its standard error."""
    points: list[dict[str, float]] = field(default_factory=list)
    """Scale, tokens and loss of the runs."""


@dataclass(frozen=True)
class Allocation:
    """S* = n_coefficient C^n_exponent and D* = d_coefficient C^d_exponent; without coefficients only vertices."""

    vertices: tuple[Vertex, ...] = ()
    interpolation: str | None = None
    source: str | None = None
    """What gave the law: vertices, or the pooled curve."""
    n_exponent: float | None = None
    n_coefficient: float | None = None
    n_exponent_sd: float | None = None
    n_exponent_interval_95: list[float] | None = None
    n_coefficient_interval_95: list[float] | None = None
    d_exponent: float | None = None
    d_coefficient: float | None = None
    d_exponent_sd: float | None = None
    d_exponent_interval_95: list[float] | None = None
    d_coefficient_interval_95: list[float] | None = None

    def law(self, letter: str) -> tuple[float, float] | None:
        """Coefficient and exponent of the scale ("n") or the tokens ("d")."""
        coefficient, exponent = getattr(self, f"{letter}_coefficient"), getattr(self, f"{letter}_exponent")
        return None if coefficient is None or exponent is None else (coefficient, exponent)

    def best(self, letter: str, total_flops: Any) -> Any:
        """The best scale ("n") or tokens ("d") at a compute; NaN without a law."""
        coefficient, exponent = self.law(letter) or (math.nan, math.nan)
        return coefficient * np.power(total_flops, exponent)


@dataclass(frozen=True)
class Noise:
    """Of one run: how far its loss lies off what equal runs or its neighbours say."""

    relative_sd: float
    degrees_of_freedom: int | None = None
    source: str | None = None
    """What it was taken from: repeats, bowls or surface."""


@dataclass(frozen=True)
class Rehearsal:
    """Fitted without the largest runs, those near the optimum predicted."""

    relative_error: float
    """predicted / measured - 1."""
    extrapolation_factor: float
    budget_flops: float | None = None
    n_cells: int | None = None
    predicted: float | None = None
    measured: float | None = None
    by_law: dict[str, float] | None = None


@dataclass(frozen=True)
class TaskLaw:
    """From a run to a benchmark: bits per byte of right answers by a surface, then a metric by a sigmoid of them."""

    bits: list[list[float]]
    """E, A, B, alpha, beta: the centre, then one row a resample."""
    bits_sd: float
    """Of one run, relative."""
    metrics: dict[str, list[list[float]]]
    """Floor, top, steepness and middle of each sigmoid, the rows as those of `bits`."""
    metrics_sd: dict[str, float]
    """Of one run around its sigmoid."""
    n_runs: int
    asked: str = ""
    """Hash of the items that every run was asked, and how many of them."""


@dataclass(frozen=True, eq=False)
class Laws:
    """All laws of one sweep, or one published law."""

    scale: Scale
    """What S is."""
    loss: Literal["loss_nats", "bits_per_byte"]
    """`bits_per_byte` or `loss_nats`."""
    surfaces: dict[str, Surface] = field(default_factory=dict)
    allocation: Allocation | None = None
    lstar: LossAtOptimum | None = None
    """Of all IsoFLOP curves fitted together."""
    bottoms: LossAtOptimum | None = None
    """Through the bottoms of the IsoFLOP curves."""
    hyper: RateBatchFit | None = None
    noise: Noise | None = None
    rehearsal: Rehearsal | None = None
    """Without the largest budget."""
    rehearsals: tuple[Rehearsal, ...] = ()
    """All of them: fitted below one compute, runs beyond it predicted."""
    steepening: float | None = None
    """How much faster ln L falls with ln C at the end of the sweep than the laws say there; 0 where it does not."""
    resamples: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """By law; a row that failed is NaN."""
    benchmarks: dict[str, TaskLaw] = field(default_factory=dict)
    """By task, where cells of the sweep were evaluated (isoflop.scaling.fit.task_law)."""
    floor_prior: dict[str, object] | None = None
    """Lognormal prior of E: median, standard deviation of ln E, unit."""
    bootstrap: dict[str, object] | None = None
    """How many resamples, their seed, and what one draw weighs."""
    n_runs: int | None = None
    budgets: tuple[float, ...] = ()
    largest_budget_flops: Positive | None = None
    """Most compute of any run, as the laws count it."""
    largest_budget_flops_exact: float | None = None
    """With the output head."""
    held_out_sha256: str = ""
    """Of the held-out text that every run was measured on; empty where they differ or do not say."""
    held_out_bytes: int | None = None
    conventions: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    inferences: tuple[str, ...] = ()
    """What was read from the cells and names of a table that a stricter reader would refuse."""
    name: str = "laws"
    """A published law's own, else where these laws were read."""
    source: str = ""
    grade: str = ""
    published_hyper: str = ""
    """Of a published law: the law of batch and rate that goes with it. Own laws leave it empty."""
    sha256: str = ""
    """Of the file."""

    @property
    def published(self) -> bool:
        return bool(self.published_hyper)

    @property
    def flops_factor(self) -> float:
        """C / (S D): 1 for FLOPs per token, 6 for parameters."""
        return FLOPS_FACTOR[self.scale]

    @property
    def noise_sd(self) -> float:
        return self.noise.relative_sd if self.noise else 0.0

    def surface_constants(self) -> dict[str, np.ndarray]:
        """Central constants (E, A, B, alpha, beta) of each surface that a prediction uses."""
        return {f"surface_{name}": self.surfaces[name].constants for name in POOLED if name in self.surfaces}

    def constants(self) -> dict[str, np.ndarray]:
        """Central constants of every law of loss: the surfaces, and E, k, g of the laws at the optimum."""
        found = self.surface_constants()
        for name in AT_OPTIMUM:
            if law := getattr(self, name):
                found[name] = np.array([law.E, law.k, law.g], dtype=float)
        return found

    def draws(self) -> dict[str, np.ndarray]:
        """Resampled constants by law of loss, rows joined: row i of each comes from the same bootstrap resample.

        Rows in which any law failed are left out of all. Raises PlanError if fewer than `MIN_RESAMPLES` remain.
        """
        names = [name for name in ("surface_log_huber", "surface_varpro", *AT_OPTIMUM) if name in self.resamples]
        rows = {name: self.resamples[name] for name in names}
        if not rows or len({len(values) for values in rows.values()}) != 1:
            way_out = "isoflop plan takes published laws" if self.published else "fit again with --bootstrap 1000"
            raise PlanError(
                f"resamples of {self.name} are missing or of unequal length, so no interval is available; {way_out}"
            )
        fine = np.all([np.isfinite(values).all(axis=1) for values in rows.values()], axis=0)
        if fine.sum() < MIN_RESAMPLES:
            raise PlanError(
                f"resamples = {int(fine.sum())} usable rows of the laws must be at least {MIN_RESAMPLES} for an "
                "interval; fit again with --bootstrap 1000, or add runs if most resamples fail"
            )
        return {name: values[fine] for name, values in rows.items()}

    def optimum_losses(self, constants: Mapping[str, np.ndarray], total_flops: Any) -> dict[str, np.ndarray]:
        """Best loss at compute C by law. Shapes: constants (..., 5) or (..., 3); C broadcasts against (...)."""
        losses = {}
        for name, values in constants.items():
            if name in AT_OPTIMUM:
                law = getattr(self, name)
                E, k, g = np.moveaxis(np.asarray(values, dtype=float), -1, 0)
                reference_flops = law.reference_flops if law else 1.0
                losses[name] = E + k * np.exp(-g * (np.log(total_flops) - math.log(reference_flops)))
            else:
                losses[name] = surface_loss(values, *surface_optimum(values, total_flops, self.flops_factor))
        return losses

    def losses(
        self,
        constants: Mapping[str, np.ndarray],
        scale: Any,
        n_tokens: Any,
        unique_tokens: float | None = None,
        *,
        repeat_scale: float = REPEAT_SCALE,
    ) -> dict[str, np.ndarray]:
        """Loss of runs by each law; to laws at the optimum the surfaces' mean penalty off it is added."""
        best = self.optimum_losses(constants, self.flops_factor * np.asarray(scale) * n_tokens)
        found = {
            name: repeated_loss(values, scale, n_tokens, unique_tokens, repeat_scale=repeat_scale)
            for name, values in constants.items()
            if name not in AT_OPTIMUM
        }
        penalty = np.mean([found[name] - best[name] for name in found], axis=0) if found else 0.0
        return found | {name: best[name] + penalty for name in constants if name in AT_OPTIMUM}

    def tree(self) -> Tree:
        """Plain data, as in a laws file."""
        parts = {key: _plain(getattr(self, name)) for key, name in _PARTS.items()}
        given = {name: getattr(self, name) for name in _PLAIN}
        given |= {} if self.published else {"name": None}
        tree = {"law_set": 1, "format": FORMAT, **given, **parts}
        kept = () if self.published else ("floor_prior", "leave_out", "resamples", "conventions", "warnings")
        return {name: value for name, value in tree.items() if name in kept or value not in (None, "", {}, (), [])}

    @classmethod
    def from_tree(cls, tree: Tree, *, name: str = "laws", sha256: str = "") -> "Laws":
        """Read the JSON of a laws file; keys that nothing reads are left out.

        Raises:
            PlanError: not a set of laws, a part without its numbers, or a format of a later version.
        """
        if tree.get("law_set") != 1 or tree.get("scale") not in [*FLOPS_FACTOR]:
            raise PlanError(
                f"laws {name} is not a set of laws (law_set, scale); fit a sweep with isoflop fit records.jsonl"
            )
        if int(tree.get("format") or 1) > FORMAT:
            raise PlanError(
                f"laws {name}: format = {tree['format']} must be at most {FORMAT}, which this version reads; "
                "update isoflop, or fit the records again"
            )

        def part(kind: type[T], key: str) -> T | None:
            return _read(kind, tree[key], f"laws {name}: {key}") if tree.get(key) else None

        def parts(kind: type[T], key: str) -> dict[str, T]:
            return {k: _read(kind, one, f"laws {name}: {key}.{k}") for k, one in (tree.get(key) or {}).items()}

        allocation = part(Allocation, "parabola")
        if allocation:
            found = tree["parabola"].get("vertices") or ()
            places = [{"total_flops": v.get("budget_flops"), "used": v.get("inside", True), **v} for v in found]
            vertices = tuple(_read(Vertex, place, f"laws {name}: vertex") for place in places)
            allocation = dataclasses.replace(allocation, vertices=vertices)
        given = with_types(cls, {key: tree[key] for key in _PLAIN if tree.get(key) is not None}, "")
        for key in ("budgets", "warnings", "inferences"):
            given[key] = tuple(given.get(key, ()))
        return cls(
            **{"loss": "bits_per_byte", "name": name, "sha256": sha256, **given},
            surfaces=parts(Surface, "surface"),
            allocation=allocation,
            lstar=part(LossAtOptimum, "lstar"),
            bottoms=part(LossAtOptimum, "bottoms"),
            hyper=RateBatchFit.from_tree(tree["hyper"]) if tree.get("hyper") else None,
            benchmarks=parts(TaskLaw, "benchmarks"),
            noise=part(Noise, "noise"),
            rehearsal=part(Rehearsal, "leave_out"),
            rehearsals=tuple(_read(Rehearsal, one, f"laws {name}: rehearsals") for one in tree.get("rehearsals") or ()),
            resamples={key: _rows(rows) for key, rows in (tree.get("resamples") or {}).items() if rows},
        )

    @classmethod
    def read(cls, path: str | Path) -> "Laws":
        """Read a laws file. Raises PlanError: not JSON, damaged, or whatever `from_tree` refuses."""
        data = Path(path).read_bytes()
        with undamaged(f"laws {path}", PlanError, "write it with isoflop fit"):
            tree = json.loads(data)
            tree = tree if isinstance(tree, dict) else {}
            return cls.from_tree({**tree, "name": str(path)}, name=str(path), sha256=hashlib.sha256(data).hexdigest())

    def write(self, path: str | Path) -> None:
        """Write a laws file."""
        write_json(path, self.tree())

    def fingerprint(self) -> str:
        """SHA-256 of the file, or of the content where there is none."""
        return self.sha256 or hashlib.sha256(json.dumps(self.tree(), sort_keys=True).encode()).hexdigest()


def surface_loss(constants: np.ndarray, scale: Any, n_tokens: Any) -> np.ndarray:
    """E + A / S^alpha + B / D^beta. Shapes: constants (..., 5); scale and n_tokens broadcast against (...)."""
    E, A, B, alpha, beta = np.moveaxis(np.asarray(constants, dtype=float), -1, 0)
    return E + A * np.exp(-alpha * np.log(scale)) + B * np.exp(-beta * np.log(n_tokens))


def surface_optimum(constants: np.ndarray, total_flops: Any, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and tokens of least loss at C = factor * S * D, in closed form. Source: arXiv 2203.15556, equation 4."""
    _, A, B, alpha, beta = np.moveaxis(np.asarray(constants, dtype=float), -1, 0)
    product = np.asarray(total_flops, dtype=float) / factor
    scale = np.exp((np.log(alpha * A) - np.log(beta * B) + beta * np.log(product)) / (alpha + beta))
    return scale, product / scale


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
    if not math.isinf(repeat_scale):  # beyond the scale that unique_tokens are optimal for
        _, A, B, alpha, beta = np.moveaxis(np.asarray(constants, dtype=float), -1, 0)
        best = np.exp((np.log(alpha * A) - np.log(beta * B) + beta * np.log(unique_tokens)) / alpha)
        scale = effective(scale, best, repeat_scale)
    return surface_loss(constants, scale, tokens)


def task_metric(constants: np.ndarray, bits: Any) -> np.ndarray:
    """Floor + (top - floor) / (1 + exp(steepness (bits - middle))). Shapes: constants (..., 4). Source: 2412.04403."""
    floor, top, steepness, middle = np.moveaxis(np.asarray(constants), -1, 0)
    return floor + (top - floor) / (1 + np.exp(steepness * (bits - middle)))


_PARTS = (
    {"surface": "surfaces", "parabola": "allocation", "lstar": "lstar", "bottoms": "bottoms", "noise": "noise"}
    | {"resamples": "resamples", "leave_out": "rehearsal", "rehearsals": "rehearsals", "hyper": "hyper"}
    | {"benchmarks": "benchmarks"}
)
"""Fields that are parts of their own, by their key."""
_PLAIN = (
    *("scale", "loss", "name", "source", "grade", "published_hyper", "n_runs", "budgets", "largest_budget_flops"),
    *("largest_budget_flops_exact", "held_out_sha256", "held_out_bytes", "steepening"),
    *("conventions", "warnings", "inferences", "floor_prior", "bootstrap"),
)
"""Fields that are plain data under the same key."""


def _read(kind: type[T], tree: Tree, where: str) -> T:
    """A part from its JSON: numbers that are null become NaN where one is needed, other keys are left out."""
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    if not isinstance(tree, Mapping):
        raise PlanError(f"{where} = {tree!r} must be an object; fit again with isoflop fit records.jsonl")
    missing = sorted(needed - set(tree))
    if missing:
        raise PlanError(f"{where} has no {missing[0]}; fit again with isoflop fit records.jsonl")
    tree = with_types(kind, tree, where)
    values = {name: math.nan if name in needed and value is None else value for name, value in tree.items()}
    return kind(**{name: value for name, value in values.items() if name in known and value is not None})


def _plain(part: Any) -> Any:
    """A part, or parts by name or in a row, as JSON; values that are not known left out."""
    if isinstance(part, dict):
        return {name: _plain(one) for name, one in part.items()}
    if isinstance(part, tuple):
        return [_plain(one) for one in part]
    if isinstance(part, np.ndarray):
        return part.tolist()
    if part is None or isinstance(part, RateBatchFit):
        return part and part.tree()
    return {name: value for name, value in dataclasses.asdict(part).items() if value is not None}


def _rows(rows: list[Any]) -> np.ndarray:
    """Resamples as an array; null values, and rows that are null, become NaN."""
    width = max((len(row) for row in rows if row is not None), default=0)
    return np.array([[math.nan] * width if row is None else row for row in rows], dtype=float)
