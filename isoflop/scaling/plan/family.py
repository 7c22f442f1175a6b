"""What a plan says because of the kind of model it plans: its experts, their worth in compute, which laws fit.

Experts are priced twice where that is possible: by published laws (a prior) and, given laws of a dense sweep of one's
own, by comparing those with the laws of the plan.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import PlanError
from isoflop.model.config import ModelConfig
from isoflop.scaling.laws_file import load_laws
from isoflop.scaling.lr_batch_law import HyperLaw
from isoflop.scaling.plan.compare import compare
from isoflop.scaling.plan.moe_leverage import expected_leverage
from isoflop.scaling.plan.size_run import Run
from isoflop.scaling.sweep.family import family_text


def check_laws_family(laws: Mapping[str, Any], config: ModelConfig) -> None:
    """Laws of one kind of model say nothing about another. Raises PlanError where the laws name their kind."""
    stated, planned = str((laws.get("conventions") or {}).get("family") or ""), family_text(config)
    if stated and stated != planned:
        raise PlanError(
            f"conventions.family = {stated!r} of the laws is not the planned model's ({planned!r}), and a law holds "
            f"for its own family; give the ladder recipe of the fitted sweep (--ladder), or laws of this family"
        )


def leverage_of(
    laws: Mapping[str, Any],
    config: ModelConfig,
    paper_flops: float,
    total_flops: float,
    dense_laws: Mapping[str, Any] | str | Path | None,
    level: float,
) -> dict[str, Any] | None:
    """What the plan's experts should be worth by published laws, and what one's own dense laws say; None without both.

    `paper_flops` is M D, `total_flops` the compute as the laws count it; `warnings` come beside the two.
    """
    expected = expected_leverage(config, paper_flops)
    if expected is None and dense_laws is None:
        return None
    found: dict[str, Any] = {"expected": expected, "measured": None, "warnings": []}
    if expected is not None:
        found["warnings"] += expected.pop("warnings")
    if dense_laws is not None:
        base, name, _ = load_laws(dense_laws)
        result = compare(base, laws, budget_flops=total_flops, level=level)
        kept = ("center", "low", "high", "by_law")
        found["measured"] = {
            **{key: result["multiplier"][key] for key in kept},
            "level": level,
            "over": name,
            "verdict": result["verdict"],
        }
        found["warnings"] += [f"measured leverage: {text}" for text in result["warnings"]]
    return found


def leverage_rows(leverage: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Label and text of both, for people."""
    rows = []
    expected, measured = ((leverage or {}).get(key) for key in ("expected", "measured"))
    if expected:
        by_law = "; ".join(f"{name} {value:.3g}" for name, value in expected["by_law"].items())
        text = (
            f"{expected['center']:.3g} x the compute of a dense model ({expected['low']:.3g} to {expected['high']:.3g}"
        )
        rows.append(("expected leverage", f"{text} over published laws: {by_law})"))
    if measured:
        text = f"{measured['center']:.3g} x ({measured['level']:.0%} {measured['low']:.3g} to {measured['high']:.3g})"
        rows.append(("measured leverage", f"{text} over {measured['over']}"))
    return rows


def family_rows(config: ModelConfig) -> list[tuple[str, str]]:
    """Label and text of experts and latents; nothing for a dense model with plain attention."""
    rows = []
    if config.experts is not None:
        e = config.experts
        text = f"{e.n_experts} of width {e.d_expert}, {e.n_active} active and {e.n_shared} shared ({e.affinity})"
        rows.append(("experts", f"{text}, {e.n_dense_layers} dense layers"))
    if config.latent is not None:
        a = config.latent
        query = f", query latent {a.d_q_latent}" if a.d_q_latent else ""
        rows.append(("latent attention", f"{a.d_kv_latent} + {a.d_rope} rotary channels cached a layer{query}"))
    return rows


def by_total_parameters(law: HyperLaw, run: Run, total_flops: float) -> dict[str, Any]:
    """What a law of N would choose if it meant all parameters of a mixture: an open question, so both are shown."""
    if run.config.experts is None or "n_params" not in law.needs():
        return {}
    other = law.choose_for(run.config, total_flops=total_flops, n_tokens=run.n_tokens, count="total")
    return {
        "by_total_parameters": {
            "learning_rate": other.learning_rate,
            "batch_tokens": other.batch_tokens,
            "why": "the plan takes N as the parameters that a token uses; which count enters is not settled",
        }
    }
