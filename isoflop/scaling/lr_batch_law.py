"""Batch size and peak learning rate as power laws of scale: a size and a token count go in, two numbers come out.

A law is `value = coefficient * product of quantity ** exponent` over the quantities in `QUANTITIES`. Published laws are
kept by name in `HYPER_LAWS`; a law of one's own comes from `[hyper]` of a recipe, from JSON, or from a `RateBatchFit`,
what `isoflop.scaling.fit.lr_batch.fit_hyper` found (`hyper_law` reads all of them).
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from isoflop.errors import RecipeError, did_you_mean
from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.model.config import ModelConfig
from isoflop.recipe import Tree
from isoflop.scaling.sweep.family import activated_share

QUANTITIES = ("total_flops", "flops_per_token", "n_params", "n_tokens", "n_experts")
"""What a law may depend on: training FLOPs C, FLOPs per token M, parameters N (see the law's `counts`; of a mixture the
active ones), tokens D, experts E for every one that a token uses (dense: 1)."""
EXPONENTS = {"n_params": "n_exponent", "n_tokens": "d_exponent", "total_flops": "c_exponent"}
"""What a fit calls the exponent of a quantity."""


@dataclass(frozen=True)
class PowerLaw:
    """`coefficient` times the product of each named quantity to its exponent."""

    coefficient: float
    """Value of the law where every quantity is 1; above 0."""
    exponents: dict[str, float] = field(default_factory=dict)
    """Exponent by quantity; empty is a constant."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient > 0):
            raise RecipeError(f"coefficient = {self.coefficient} of a power law must be a finite number above 0")
        for name, exponent in self.exponents.items():
            if name not in QUANTITIES:
                hint = did_you_mean(name, QUANTITIES, f"use one of {', '.join(QUANTITIES)}")
                raise RecipeError(f"exponent of {name} = {exponent}: a power law has no such quantity; {hint}")
            if not math.isfinite(exponent):
                raise RecipeError(f"exponent of {name} = {exponent} must be a finite number")

    def at(self, **quantities: float | None) -> float:
        """Value at the given quantities; those that the law does not use are ignored.

        Raises:
            RecipeError: a quantity that the law uses is missing or not above 0.
        """
        value = math.log(self.coefficient)
        for name, exponent in self.exponents.items():
            given = quantities.get(name)
            if given is None or not given > 0:
                raise RecipeError(f"{name} = {given} is needed by this power law and must be above 0; pass {name}")
            value += exponent * math.log(given)
        return math.exp(value)

    def tree(self) -> dict[str, float]:
        """The plain form that `power_law` reads: coefficient beside the exponents."""
        return {"coefficient": self.coefficient, **self.exponents}


@dataclass(frozen=True)
class HyperChoice:
    """Batch and peak learning rate for one run."""

    learning_rate: float
    batch_tokens: int
    batch_tokens_exact: float
    """What the law says before rounding to whole sequences."""


@dataclass(frozen=True)
class HyperLaw:
    """A pair of power laws, with where they come from."""

    name: str
    learning_rate: PowerLaw
    """Peak learning rate of AdamW."""
    batch_tokens: PowerLaw
    """Tokens per optimizer step."""
    source: str = "own fit"
    """Paper and arXiv id, or where the own numbers are."""
    grade: str = "assumption"
    """How far the constants were checked: data, consistent, read (as in the project's fact sheet), or assumption."""
    counts: str = ""
    """Which parameters or FLOPs the law counts, and where it is valid."""

    def needs(self) -> tuple[str, ...]:
        """Quantities that this law depends on."""
        return tuple(q for q in QUANTITIES if q in {**self.learning_rate.exponents, **self.batch_tokens.exponents})

    def choose(self, *, seq_len: int, **scale: float | None) -> HyperChoice:
        """Learning rate and batch at this scale (of `QUANTITIES`, by name), the batch rounded to whole sequences.

        Two of C, M, D give the third where it was left out (C = M D). N is never derived: the laws count it
        differently. Raises RecipeError when a needed quantity is missing.
        """
        c, m, d = (scale.get(name) for name in ("total_flops", "flops_per_token", "n_tokens"))
        if c is None and m and d:
            scale["total_flops"] = m * d
        if d is None and c and m:
            scale["n_tokens"] = c / m
        if m is None and c and d:
            scale["flops_per_token"] = c / d
        scale.setdefault("n_experts", 1.0)
        batch = self.batch_tokens.at(**scale)
        return HyperChoice(self.learning_rate.at(**scale), whole_batch(batch, seq_len), batch)

    def choose_for(
        self, config: ModelConfig, *, total_flops: float, n_tokens: float, count: Literal["active", "total"] = "active"
    ) -> HyperChoice:
        """`choose` for a shape, N being its parameters without embedding and head.

        Which parameters of a mixture enter a law of N is an open question, so that both can be asked for: those that
        one token uses, or all.
        """
        counts = count_parameters(config)
        idle = counts.n_params_total - counts.n_params_active if count == "active" else 0
        return self.choose(
            seq_len=config.seq_len,
            total_flops=total_flops,
            flops_per_token=float(flops_per_token(config, "M")),
            n_params=counts.n_params_non_embedding - idle,
            n_tokens=n_tokens,
            n_experts=1 / activated_share(config),
        )

    def tree(self) -> Tree:
        """Plain form for a recipe's `[hyper]` section or for JSON; `hyper_law` reads it back."""
        tree = dataclasses.asdict(self)
        tree["learning_rate"], tree["batch_tokens"] = self.learning_rate.tree(), self.batch_tokens.tree()
        return tree


@dataclass(frozen=True)
class FittedPower:
    """A power law of optima, with its interval; exponents that it does not have are None."""

    coefficient: float
    n_exponent: float | None = None
    d_exponent: float | None = None
    c_exponent: float | None = None
    settings: int = 0
    points: int = 0
    residual_sd: float | None = None
    """Of the logarithm."""
    interval_95: dict[str, list[float]] | None = None
    resamples: int | None = None

    def law(self) -> PowerLaw:
        found = {quantity: getattr(self, name) for quantity, name in EXPONENTS.items()}
        return PowerLaw(self.coefficient, {quantity: value for quantity, value in found.items() if value is not None})

    def tree(self) -> dict[str, float]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Regret:
    """Relative loss that a law costs on the grids it is judged by."""

    mean: float
    max: float
    settings: int


@dataclass(frozen=True)
class RateBatchFit:
    """Laws of learning rate and batch fitted to grids of runs, by method; what the runs cannot give is absent."""

    own_law: HyperLaw
    """The one to use: the surface, else the band."""
    learning_rate: dict[str, FittedPower] = field(default_factory=dict)
    """By method: `surface` or `band` on N and D, `surface_compute` or `band_compute` on C."""
    batch: dict[str, FittedPower] = field(default_factory=dict)
    """Tokens; by method."""
    regret: dict[str, Regret] = field(default_factory=dict)
    """By law; own_law is the one above, published_law is steplaw, the one published in the same variables."""
    settings: list[dict[str, object]] = field(default_factory=list)
    """N, D, C, best loss, optimum, curvature or why it was refused, of each grid."""
    conventions: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_total_parameters: "RateBatchFit | None" = None
    """Of mixtures, N counting all experts; above it is the active ones."""

    def tree(self) -> Tree:
        """The JSON of a laws file."""
        laws = {
            "learning_rate": {name: law.tree() for name, law in self.learning_rate.items()},
            "batch": {name: law.tree() for name, law in self.batch.items()},
        }
        methods = {
            method: {"lr": laws["learning_rate"].get(method), "batch": laws["batch"].get(method)}
            for method in ("surface", "band")
        }
        regret = {name: dataclasses.asdict(found) for name, found in self.regret.items()}
        law = self.own_law
        batch = _fitted_tree(law.batch_tokens) if law.batch_tokens.exponents else law.batch_tokens.coefficient
        own = {"name": law.name, "learning_rate": _fitted_tree(law.learning_rate), "batch_tokens": batch}
        own |= {"source": law.source, "grade": law.grade}
        rest = {"settings": self.settings, "conventions": self.conventions, "warnings": self.warnings}
        tree = {**laws, **methods, "own_law": own, "regret": regret, **rest}
        if self.by_total_parameters:
            other = self.by_total_parameters.tree()
            tree["by_total_parameters"] = {key: other[key] for key in ("learning_rate", "regret")}
        return tree

    @classmethod
    def from_tree(cls, tree: Tree) -> "RateBatchFit":
        """Read the JSON of a laws file, or a plain law (`[hyper]` of a recipe)."""
        known = {f.name for f in dataclasses.fields(FittedPower)}
        rate, batch = (
            {
                name: FittedPower(**{key: value for key, value in law.items() if key in known})
                for name, law in ((tree.get(part) or {}) if "own_law" in tree else {}).items()
            }
            for part in ("learning_rate", "batch")
        )
        return cls(
            hyper_law(tree),
            rate,
            batch,
            regret={name: Regret(**found) for name, found in (tree.get("regret") or {}).items()},
            settings=list(tree.get("settings") or ()),
            conventions=dict(tree.get("conventions") or {}),
            warnings=list(tree.get("warnings") or ()),
        )


def whole_batch(batch_tokens: float, seq_len: int) -> int:
    """The multiple of `seq_len` nearest to `batch_tokens`, at least one sequence.

    Known answer (arXiv 2401.02954): 9.22e6 tokens at sequence 4096 are 2252 sequences; the 7B was trained with 2304.
    """
    if seq_len < 1:
        raise RecipeError(f"seq_len = {seq_len} must be at least 1 token")
    return max(1, round(batch_tokens / seq_len)) * seq_len


def power_law(tree: Tree, *, where: str = "power law") -> PowerLaw:
    """Read `{coefficient, total_flops, n_tokens, ...}`; fitted names (`n_exponent`, ...) are understood too.

    Raises:
        RecipeError: no coefficient, an unknown quantity, or a value that is not a number.
    """
    fitted = {"m_exponent": "flops_per_token"} | {name: quantity for quantity, name in EXPONENTS.items()}
    if "coefficient" not in tree:
        raise RecipeError(
            f"{where} has no coefficient; write for example {{ coefficient = 0.3118, total_flops = -0.125 }}"
        )
    values: dict[str, float] = {}
    is_fit = any(name in tree for name in fitted)  # a fit carries intervals beside its exponents
    for key, value in tree.items():
        if is_fit and key not in ("coefficient", *fitted, *QUANTITIES):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RecipeError(f"{where}.{key} = {value!r} must be a number")
        values[fitted.get(key, key)] = float(value)
    return PowerLaw(values.pop("coefficient"), values)


def hyper_law(spec: "str | Tree | HyperLaw | RateBatchFit") -> HyperLaw:
    """A law by published name, from a `[hyper]` tree, or from the result of `fit_hyper` (its `own_law` is used).

    Raises:
        RecipeError: unknown name or key (with the nearest one), missing part, unknown quantity.
    """
    if isinstance(spec, HyperLaw):
        return spec
    if isinstance(spec, RateBatchFit):
        return spec.own_law
    if isinstance(spec, str):
        if spec not in HYPER_LAWS:
            hint = did_you_mean(spec, HYPER_LAWS, f"known laws: {', '.join(HYPER_LAWS)}")
            raise RecipeError(f"hyper-parameter law {spec!r} is unknown; {hint}")
        return HYPER_LAWS[spec]
    tree: Tree = spec
    known = ("law", "learning_rate", "batch_tokens", "name", "source", "grade", "counts")
    unknown = [key for key in tree if key not in known and "own_law" not in tree]  # a fit says more than its law
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        raise RecipeError(
            f"unknown key hyper.{unknown[0]}; "
            + (f"did you mean hyper.{close[0]}?" if close else f"known keys: {', '.join(known)}")
        )
    fitted, published = tree.get("own_law"), tree.get("law")
    if isinstance(fitted, Mapping):
        tree = dict(fitted)
    elif isinstance(published, str) and "learning_rate" not in tree:
        return hyper_law(published)
    parts: dict[str, PowerLaw] = {}
    for part in ("learning_rate", "batch_tokens"):
        value = tree.get(part)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            parts[part] = PowerLaw(float(value))  # a plain number is a constant
        elif isinstance(value, Mapping):
            parts[part] = power_law(dict(value), where=f"hyper.{part}")
        else:
            raise RecipeError(
                f"hyper.{part} = {value!r} must be a number or a power law; write hyper.{part} = "
                f"{{ coefficient = ..., total_flops = ... }} or name a published law: {', '.join(HYPER_LAWS)}"
            )
    text = {key: str(tree[key]) for key in ("name", "source", "grade", "counts") if key in tree}
    return HyperLaw(**{"name": "own", **text}, **parts)  # type: ignore[arg-type]


def _fitted_tree(law: PowerLaw) -> dict[str, float]:
    return {"coefficient": law.coefficient} | {EXPONENTS[name]: value for name, value in law.exponents.items()}


DEEPSEEK = HyperLaw(
    name="deepseek",
    learning_rate=PowerLaw(0.3118, {"total_flops": -0.1250}),
    batch_tokens=PowerLaw(0.2920, {"total_flops": 0.3271}),
    source="DeepSeek LLM, arXiv 2401.02954, section 3.1",
    grade="consistent",
    counts="C = M D with M = 72 n d^2 + 12 n d s (no embedding, no head, full attention); near the optimal D/M only",
)
STEPLAW = HyperLaw(
    name="steplaw",
    learning_rate=PowerLaw(1.79, {"n_params": -0.713, "n_tokens": 0.307}),
    batch_tokens=PowerLaw(0.58, {"n_tokens": 0.571}),
    source="Step Law, arXiv 2503.04715",
    grade="data",
    counts="N without embedding; cosine that ends at a fixed rate of 1e-5",
)
PORIAN = HyperLaw(
    name="porian",
    learning_rate=PowerLaw(0.0047 * 1.08e8 ** (1 / 3), {"n_params": -1 / 3}),
    batch_tokens=PowerLaw(160 * 2048 * 1.08e8 ** (-2 / 3), {"n_params": 2 / 3}),
    source="Porian et al., arXiv 2406.19146, as used by OLMo (which halves the rate)",
    grade="read",
    counts="N at about 20 tokens per parameter; beta2 0.99 below 2^19 tokens a batch, else 0.95",
)
LING = HyperLaw(
    name="ling",
    learning_rate=PowerLaw(1.1576, {"total_flops": -0.1529}),
    batch_tokens=PowerLaw(0.0694, {"total_flops": 0.3644}),
    source="Ling, arXiv 2507.17702",
    grade="read",
    counts="C = M D of models with experts (active FLOPs)",
)
JOINT = HyperLaw(
    name="joint_experts",
    learning_rate=PowerLaw(math.exp(8.39), {"n_params": -0.81, "n_experts": -0.25}),
    batch_tokens=LING.batch_tokens,
    source="rate: joint law of experts, arXiv 2502.05172; batch: Ling, arXiv 2507.17702",
    grade="read",
    counts="N active parameters, E experts of which one is active (fine-grained experts: E for every active one)",
)
HYPER_LAWS: dict[str, HyperLaw] = {law.name: law for law in (DEEPSEEK, STEPLAW, PORIAN, LING, JOINT)}
"""Published laws by name."""
