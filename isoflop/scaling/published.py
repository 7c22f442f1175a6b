"""Published scaling laws as data: allocation of compute, and loss against size and tokens; and where laws come from.

Each law carries its source, what it counts, and a grade: `data` (refitted on the authors' measurements), `consistent`
(the constants agree with each other or with what the authors trained), `read` (read, not recomputed). They serve as
priors for a plan and as lines in figures, in the same form as a fit of one's own but without resamples (nobody
published them). Laws for batch and learning rate are in `isoflop.scaling.lr_batch_law`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import PlanError, did_you_mean, undamaged
from isoflop.recipe import Tree
from isoflop.scaling.laws import Allocation, Laws, Scale, Surface
from isoflop.scaling.lr_batch_law import HYPER_LAWS

LawsSource = Laws | Tree | str | Path
"""Laws, the content of a laws file, such a file, or the name of a published law."""
PAPER_M = "C = M D; M = 72 n d^2 + 12 n d s: no embedding, no head, attention without causal halving"


def _law(name: str, scale: Scale, law: Allocation | Surface, *, counts: str, hyper: str, **origin: Any) -> Laws:
    """One law in nats per token, with source, grade and, where it is known, the compute of its largest run."""
    allocation, surfaces = (law, {}) if isinstance(law, Allocation) else (None, {"published": law})
    told = {"flops": counts, "params": counts, "loss_unit": "nats per token"}
    return Laws(scale, "loss_nats", surfaces, allocation, name=name, published_hyper=hyper, conventions=told, **origin)


def _allocation(name: str, scale: Scale, n: tuple[float, float], d: tuple[float, float], **rest: Any) -> Laws:
    """Coefficient and exponent of the model scale and of the tokens: only the optimum was published."""
    law = Allocation(n_coefficient=n[0], n_exponent=n[1], d_coefficient=d[0], d_exponent=d[1])
    return _law(name, scale, law, **{"hyper": "deepseek", **rest})


def _surface(name: str, *constants: float, **rest: Any) -> Laws:
    """E, A, B, alpha, beta with N in parameters; the optimum follows from them."""
    return _law(name, "n_params", Surface.of(constants), **{"hyper": "steplaw", **rest})


DEEPSEEK = _allocation(
    "deepseek",
    "flops_per_token",
    (0.1715, 0.5243),
    (5.8316, 0.4757),
    source="DeepSeek LLM, arXiv 2401.02954, section 3.2",
    grade="consistent",
    counts=PAPER_M,
    largest_budget_flops=3e20,
)
LAWS: dict[str, Laws] = {
    law.name: law
    for law in (
        DEEPSEEK,
        _allocation(
            "llama3",
            "n_params",
            (1 / (6 * 0.299), 1 - 0.537),  # only the token law was published: N = C / (6 D)
            (0.299, 0.537),
            source="Llama 3, arXiv 2407.21783, section 3.2.1",
            grade="read",
            counts="C = 6 N D; N follows from D",
            largest_budget_flops=1e22,
            hyper="steplaw",
        ),
        _allocation(
            "ling",
            "flops_per_token",
            (0.0655, 0.5422),
            (15.2582, 0.4578),
            source="Ling, arXiv 2507.17702, dense models",
            grade="consistent",
            counts=PAPER_M,
            hyper="ling",
        ),
        _allocation(
            "ling_experts",
            "flops_per_token",
            (0.1915, 0.5095),
            (5.2232, 0.4905),
            source="Ling, arXiv 2507.17702, models with experts",
            grade="consistent",
            counts=f"{PAPER_M}; active experts only",
            hyper="ling",
        ),
        _surface(
            "chinchilla",
            *(1.817, 482.0, 2085.0, 0.348, 0.366),
            source="Besiroglu et al., arXiv 2404.10102: refit of Hoffmann et al., arXiv 2203.15556",
            grade="data",
            counts="C = 6 N D, N with embeddings; loss on MassiveText",
            largest_budget_flops=1.3e22,
        ),
        _surface(
            "hoffmann",
            *(1.6934, 406.4, 410.7, 0.33917, 0.28491),
            source="Hoffmann et al., arXiv 2203.15556, approach 3, precision as recovered by Epoch",
            grade="read",
            counts="C = 6 N D, N with embeddings; loss on MassiveText; fits its own data poorly",
            largest_budget_flops=1.3e22,
        ),
        _surface(
            "muennighoff",
            *(1.8691436784, 520.82495166, 1487.71609378, 0.3526596, 0.3526596),
            source="Muennighoff et al., arXiv 2305.16264; exponents tied, constants as in the authors' notebook",
            grade="data",
            counts="C = 6 N D; loss on C4",
            largest_budget_flops=9.3e21,
        ),
    )
}
"""Published laws by name."""
_ALIASES = {"besiroglu": "chinchilla"}
NAMES = (*LAWS, *_ALIASES)


def load_laws(laws: LawsSource) -> Laws:
    """Laws as they are, from the content of a laws file, from such a file, or by the name of a published law.

    Raises:
        PlanError: a file that is not a laws file, no file and no known name, or the name of a law that sets batch and
            learning rate only.
    """
    if isinstance(laws, Laws):
        return laws
    if isinstance(laws, Mapping):
        with undamaged("laws", PlanError, "give the content of a laws file"):
            return Laws.from_tree(laws)
    name = _ALIASES.get(str(laws), str(laws))
    if name in LAWS:
        return LAWS[name]
    if Path(name).is_file():
        return Laws.read(name)
    if name in HYPER_LAWS:
        raise PlanError(
            f"law {name!r} sets batch and learning rate but no size; name one of {', '.join(NAMES)} "
            f"for the size and give {name!r} as the hyper-parameter law"
        )
    if name.endswith(".json") or "/" in name:
        raise PlanError(f"{name}: there is no such laws file; isoflop fit writes one, or name a published law")
    hint = did_you_mean(name, NAMES, f"published laws: {', '.join(NAMES)}")
    raise PlanError(f"law {name!r} is neither a laws file (isoflop fit writes one) nor a published law; {hint}")
