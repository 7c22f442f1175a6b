"""Published scaling laws as data: allocation of compute, and loss against size and tokens.

Each law carries its source, what it counts, and a grade: `data` (refitted on the authors' measurements), `consistent`
(the constants agree with each other or with what the authors trained), `read` (read, not recomputed). They serve as
priors for a plan and as lines in figures. `published_laws` gives the same plain form as a laws file of one's own, so
that everything that reads one reads the other. Laws for batch and learning rate are in `isoflop.scaling.lr_batch_law`.
"""

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from isoflop.errors import PlanError
from isoflop.scaling.lr_batch_law import HYPER_LAWS

Scale = Literal["flops_per_token", "n_params"]


@dataclass(frozen=True)
class Allocation:
    """The best model scale and token count for a compute budget C: coefficient * C ** exponent each."""

    name: str
    scale: Scale
    """What the size law gives: FLOPs per token M (C = M D) or parameters N (C = 6 N D)."""
    n_coefficient: float
    n_exponent: float
    """Law of the model scale, whichever it is."""
    d_coefficient: float
    d_exponent: float
    """Law of the tokens."""
    source: str
    grade: str
    counts: str
    """Counting convention of N or M and C."""
    hyper: str = "deepseek"
    """Batch and learning-rate law that goes with it by default."""

    def split(self, total_flops: float) -> tuple[float, float]:
        """Model scale and tokens at this budget; their product is the budget up to the rounding of the constants."""
        return (
            self.n_coefficient * total_flops**self.n_exponent,
            self.d_coefficient * total_flops**self.d_exponent,
        )


@dataclass(frozen=True)
class Surface:
    """L = E + A / N^alpha + B / D^beta in nats per token."""

    name: str
    scale: Scale
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str
    grade: str
    counts: str
    hyper: str = "steplaw"

    @property
    def constants(self) -> tuple[float, float, float, float, float]:
        """E, A, B, alpha, beta, in the order that all resamples use."""
        return self.E, self.A, self.B, self.alpha, self.beta


def _from_tokens(name: str, d_coefficient: float, d_exponent: float, **rest: Any) -> Allocation:
    """An allocation of which only the token law was published: N = C / (6 D)."""
    return Allocation(
        name=name,
        scale="n_params",
        n_coefficient=1 / (6 * d_coefficient),
        n_exponent=1 - d_exponent,
        d_coefficient=d_coefficient,
        d_exponent=d_exponent,
        **rest,
    )


PAPER_M = "C = M D; M = 72 n d^2 + 12 n d s: no embedding, no head, attention without causal halving"
ALLOCATIONS: dict[str, Allocation] = {
    law.name: law
    for law in (
        Allocation(
            "deepseek",
            "flops_per_token",
            0.1715,
            0.5243,
            5.8316,
            0.4757,
            source="DeepSeek LLM, arXiv 2401.02954, section 3.2",
            grade="consistent",
            counts=PAPER_M,
        ),
        _from_tokens(
            "llama3",
            0.299,
            0.537,
            source="Llama 3, arXiv 2407.21783, section 3.2.1",
            grade="read",
            counts="C = 6 N D; N follows from D",
            hyper="steplaw",
        ),
        Allocation(
            "ling",
            "flops_per_token",
            0.0655,
            0.5422,
            15.2582,
            0.4578,
            source="Ling, arXiv 2507.17702, dense models",
            grade="consistent",
            counts=PAPER_M,
            hyper="ling",
        ),
        Allocation(
            "ling_experts",
            "flops_per_token",
            0.1915,
            0.5095,
            5.2232,
            0.4905,
            source="Ling, arXiv 2507.17702, models with experts",
            grade="consistent",
            counts=f"{PAPER_M}; active experts only",
            hyper="ling",
        ),
    )
}
"""Allocations of which only the optimum was published."""

SURFACES: dict[str, Surface] = {
    law.name: law
    for law in (
        Surface(
            "chinchilla",
            "n_params",
            1.817,
            482.0,
            2085.0,
            0.348,
            0.366,
            source="Besiroglu et al., arXiv 2404.10102: refit of Hoffmann et al., arXiv 2203.15556",
            grade="data",
            counts="C = 6 N D, N with embeddings; loss on MassiveText",
        ),
        Surface(
            "hoffmann",
            "n_params",
            1.6934,
            406.4,
            410.7,
            0.33917,
            0.28491,
            source="Hoffmann et al., arXiv 2203.15556, approach 3, precision as recovered by Epoch",
            grade="read",
            counts="C = 6 N D, N with embeddings; loss on MassiveText; fits its own data poorly",
        ),
        Surface(
            "muennighoff",
            "n_params",
            1.8691436784,
            520.82495166,
            1487.71609378,
            0.3526596,
            0.3526596,
            source="Muennighoff et al., arXiv 2305.16264; exponents tied, constants as in the authors' notebook",
            grade="data",
            counts="C = 6 N D; loss on C4",
        ),
    )
}
"""Loss surfaces; the optimum follows from the constants."""

_ALIASES = {"besiroglu": "chinchilla"}


def names() -> tuple[str, ...]:
    """Every name that `published_laws` knows."""
    return (*ALLOCATIONS, *SURFACES, *_ALIASES)


def published_laws(name: str) -> dict[str, Any]:
    """A published law in the form of a laws file, without resamples (nobody published them).

    Raises:
        PlanError: unknown name, or the name of a law that sets batch and learning rate only.
    """
    name = _ALIASES.get(name, name)
    if name in ALLOCATIONS:
        law = ALLOCATIONS[name]
        body: dict[str, Any] = {
            "parabola": {
                key: getattr(law, key) for key in ("n_coefficient", "n_exponent", "d_coefficient", "d_exponent")
            }
        }
    elif name in SURFACES:
        law = SURFACES[name]
        names_ = ("E", "A", "B", "alpha", "beta")
        body = {"surface": {"published": dict(zip(names_, law.constants, strict=True))}}
    elif name in HYPER_LAWS:
        raise PlanError(
            f"law {name!r} sets batch and learning rate but no size; name one of {', '.join(names())} "
            f"for the size and give {name!r} as the hyper-parameter law"
        )
    else:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"published laws: {', '.join(names())}"
        raise PlanError(f"law {name!r} is neither a laws file (isoflop fit writes one) nor a published law; {hint}")
    conventions = {"flops": law.counts, "params": law.counts, "loss_unit": "nats per token"}
    return {
        "law_set": 1,
        "name": name,
        "scale": law.scale,
        "loss": "loss_nats",
        "source": law.source,
        "grade": law.grade,
        "published_hyper": law.hyper,
        "conventions": conventions,
        "warnings": [],
        **body,
    }
