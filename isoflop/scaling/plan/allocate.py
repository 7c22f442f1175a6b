"""How to split compute between size and tokens: at the optimum, with little data, or for a model that will be served.

Laws and a budget go in, a `Split` comes out. Every law that knows an optimum is asked; the split
is the geometric mean of their answers, because the optimum is flat and no law is right alone.

Symbols: S model scale (FLOPs per token M, or parameters N), D tokens, C = k S D with k = 1 or 6, U unique tokens.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from isoflop.errors import PlanError
from isoflop.scaling.laws import Laws, repeated_loss, surface_loss, surface_optimum

MAX_OVERTRAINING = 5.0
"""More than this times the optimal tokens, three-term laws over-rate extra tokens (fact sheet, section 8)."""


@dataclass(frozen=True)
class Split:
    """Size and tokens for one budget."""

    scale: float
    n_tokens: float
    by_law: dict[str, float] = field(default_factory=dict)
    """Optimal scale that each law gives on its own, before data or serving were considered."""
    warnings: list[str] = field(default_factory=list)
    serving: dict[str, float] = field(default_factory=dict)
    """Costs with and without regard for serving, in FLOPs, and the size without."""


def best_split(
    laws: Laws, total_flops: float, *, unique_tokens: float | None = None, max_epochs: float | None = None
) -> Split:
    """Size and tokens of least loss at `total_flops`.

    With fewer unique tokens than the optimum wants, the size is moved by what the surfaces say once repeated tokens
    count less. `max_epochs` caps the passes; what the cap leaves over goes into size.

    Raises:
        PlanError: no law of allocation, or an optimum that no tested size surrounds.
    """
    warnings = check_vertices(laws)
    factor = laws.flops_factor
    constants = laws.surface_constants()
    by_law = {name: float(surface_optimum(values, total_flops, factor)[0]) for name, values in constants.items()}
    if laws.allocation and (law := laws.allocation.law("n")):
        by_law["parabola"] = law[0] * total_flops ** law[1]
    by_law = {name: scale for name, scale in by_law.items() if math.isfinite(scale) and scale > 0}
    if not by_law:
        raise PlanError("laws hold neither a surface nor an allocation, so no size follows; fit again with more runs")
    scale = math.exp(np.mean(np.log(list(by_law.values()))))
    if max(by_law.values()) > 3 * min(by_law.values()):
        text = ", ".join(f"{name} {value:.3g}" for name, value in by_law.items())
        warnings.append(
            f"the laws disagree on the optimal scale by more than a factor 3 ({text}): their mean was taken"
        )
    n_tokens = total_flops / (factor * scale)
    if unique_tokens is not None and n_tokens > unique_tokens:
        if constants:
            scale *= _shift_by_repetition(laws, total_flops, unique_tokens)
            n_tokens = total_flops / (factor * scale)
        else:
            warnings.append("repeated data was not considered: the laws hold no loss surface")
        epochs = n_tokens / unique_tokens
        if max_epochs is not None and epochs > max_epochs:
            n_tokens = max_epochs * unique_tokens
            scale = total_flops / (factor * n_tokens)
            warnings.append(f"{epochs:.1f} passes over the data were cut to {max_epochs:g}; the rest went into size")
        elif epochs > 4:
            warnings.append(f"{epochs:.1f} passes over {unique_tokens:.3g} unique tokens: beyond 4, repeats lose value")
    return Split(scale, n_tokens, by_law, warnings)


def serving_split(laws: Laws, total_flops: float, serve_tokens: float, split: Split) -> Split:
    """The cheapest size for training plus `serve_tokens` of inference, at the loss that `total_flops` would reach.

    Minimises k S D + k S D_serve / 3 (a forward pass is a third of training) subject to L(S, D) = L_best(C); the mean
    over the surfaces is geometric. Source: Sardana et al., arXiv 2401.00448, equation 2: 6 N D + 2 N D_inf.

    Raises:
        PlanError: the laws hold no loss surface, or serve_tokens is negative.
    """
    if serve_tokens < 0:
        raise PlanError(f"serve_tokens = {serve_tokens:g} must be 0 or more")
    constants, factor = laws.surface_constants(), laws.flops_factor
    if not constants:
        raise PlanError(f"serve_tokens = {serve_tokens:g} needs a loss surface, and these laws only give an allocation")
    ratios = []
    for values in constants.values():
        best_scale, best_tokens = (float(v) for v in surface_optimum(values, total_flops, factor))
        loss = float(surface_loss(values, best_scale, best_tokens))
        scale, n_tokens = cheapest_at_loss(tuple(values), loss, serve_tokens, factor)
        ratios.append((math.log(scale / best_scale), math.log(n_tokens / best_tokens)))
    scale_ratio, tokens_ratio = np.exp(np.mean(ratios, axis=0))
    scale, n_tokens = split.scale * float(scale_ratio), split.n_tokens * float(tokens_ratio)
    warnings = list(split.warnings)
    if tokens_ratio > MAX_OVERTRAINING:
        warnings.append(
            f"{tokens_ratio:.1f} times the optimal tokens: a three-term law over-rates extra tokens that far out"
        )
    serving = {
        "serve_tokens": serve_tokens,
        "scale_optimum": split.scale,
        "training_flops": factor * scale * n_tokens,
        "serving_flops": factor * scale * serve_tokens / 3,
        "training_flops_optimum": total_flops,
        "serving_flops_optimum": factor * split.scale * serve_tokens / 3,
    }
    total, other = (sum(serving[f"{part}_flops{end}"] for part in ("training", "serving")) for end in ("", "_optimum"))
    serving["saving"] = 1 - total / other
    return Split(scale, n_tokens, split.by_law, warnings, serving)


def cheapest_at_loss(
    constants: tuple[float, ...], loss: float, serve_tokens: float, factor: float = 6.0
) -> tuple[float, float]:
    """Scale and tokens with the least k S (D + D_serve / 3) at this loss of the surface E, A, B, alpha, beta."""
    E, A, B, alpha, beta = constants
    smallest = (A / (loss - E)) ** (1 / alpha)  # below this size no number of tokens reaches the loss

    def tokens(scale: float) -> float:
        return (B / (loss - E - A * scale**-alpha)) ** (1 / beta)

    found: Any = minimize_scalar(
        lambda x: math.log(factor * smallest * math.exp(x) * (tokens(smallest * math.exp(x)) + serve_tokens / 3)),
        bounds=(1e-6, math.log(1e4)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    scale = smallest * math.exp(found.x)
    return scale, tokens(scale)


def check_vertices(laws: Laws) -> list[str]:
    """Warnings about budgets whose optimum lies outside the tested sizes.

    Raises:
        PlanError: fewer than two budgets have their optimum inside, so the allocation is a guess.
    """
    vertices = laws.allocation.vertices if laws.allocation else ()
    outside = [vertex for vertex in vertices if not vertex.inside]
    if vertices and len(vertices) - len(outside) < 2:
        budgets = ", ".join(f"{vertex.budget_flops:.3g}" for vertex in outside)
        raise PlanError(
            f"the vertex of the IsoFLOP curve lies outside the tested range at {len(outside)} of {len(vertices)} "
            f"budgets ({budgets}), and a plan needs it inside at two or more; run smaller or larger sizes there "
            f"(ladder.size_span), or plan from a published law"
        )
    return [
        f"at {vertex.budget_flops:.3g} FLOPs the optimum lies outside the tested sizes and was left out"
        for vertex in outside
    ]


def _shift_by_repetition(laws: Laws, total_flops: float, unique_tokens: float) -> float:
    """Factor on the optimal scale once repeated tokens count less: mean over the surfaces."""
    shifts, factor = [], laws.flops_factor
    for values in laws.surface_constants().values():
        fresh = float(surface_optimum(values, total_flops, factor)[0])

        def loss(x: float, values: np.ndarray = values, fresh: float = fresh) -> float:
            scale = fresh * math.exp(x)
            return float(repeated_loss(values, scale, total_flops / (factor * scale), unique_tokens))

        grid = np.linspace(math.log(0.02), math.log(50), 201)
        start = int(np.argmin([loss(x) for x in grid]))
        low, high = grid[max(0, start - 1)], grid[min(len(grid) - 1, start + 1)]
        found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
        shifts.append(found.x)
    return math.exp(float(np.mean(shifts)))
