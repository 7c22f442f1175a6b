"""A plan and a comparison for people: label and text of everything that was decided, in that order."""

from pathlib import Path

import numpy as np

from isoflop.model.config import ModelConfig
from isoflop.model.hardware import TRAINS_ON_GPUS
from isoflop.scaling.plan.choose import NEAR_OPTIMAL, Plan
from isoflop.scaling.plan.compare import Comparison
from isoflop.scaling.plan.moe_leverage import Leverage

SHOWN = (0.1, 0.25, 0.5, 0.8, 0.9, 1.0)
"""Shares of the steps at which the predicted curve is stated."""


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """The plan for people: label and text, in the order in which it was decided."""
    config, tree = plan.config, plan.tree()
    batch = f"{plan.batch_tokens} tokens, {plan.batch_tokens // config.seq_len} sequences of {config.seq_len}"
    unserved = " for training alone" if plan.serving else ""
    optima = "; ".join(f"{name} {value:.4g}" for name, value in plan.by_law_scale.items())
    rows = [
        ("shape", f"{config.n_layers} layers x {config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}"),
        (
            "parameters",
            f"{tree['n_params_total']:.4g}, {tree['n_params_non_embedding']:.4g} without embedding and head"
            + (f"; {tree['n_params_active']:.4g} active" if config.experts else ""),
        ),
        *_family_rows(config),
        ("model scale", f"{plan.scale:.4g} {plan.scale_name}; optimum by law{unserved}: {optima}"),
        ("tokens", f"{plan.n_tokens:.4g} ({tree['tokens_per_param']:.3g} per parameter), {plan.steps} steps"),
        *_corpus_rows(plan),
        ("batch", batch),
        ("learning rate", f"{plan.learning_rate:.4g}, {plan.recipe['train']['schedule']} ({plan.hyper.name} law)"),
        ("compute", f"{plan.total_flops:.4g} FLOPs as the laws count, {plan.total_flops_exact:.4g} with the head"),
    ]
    if plan.hours is not None and plan.gpu_hours is not None:
        cost = f", cost {plan.cost:.4g}" if plan.cost is not None else ""
        rows.append(
            ("time", f"{_time(plan.hours)} on {plan.memory.n_gpus} devices, {plan.gpu_hours:,.4g} device hours{cost}")
        )
    if plan.extrapolation is not None:
        largest = plan.total_flops / plan.extrapolation
        rows.append(("extrapolation", f"{plan.extrapolation:.2g} x the largest run of the laws ({largest:.3g} FLOPs)"))
    memory = f"{plan.memory.parts.total_bytes / 2**30:.3g} GiB per device at {plan.memory.micro_batch} sequence"
    memory += "s" if plan.memory.micro_batch > 1 else ""
    sharding = f", zero_stage {plan.memory.zero_stage}" if plan.memory.zero_stage else ""
    rows.append(("memory", memory + sharding + (": does not fit" if plan.memory.refusal else "")))
    if plan.serving:
        text = f"{plan.serving['saving']:.1%} less compute for training and serving together than at the same loss with"
        rows.append(("serving", f"{text} {plan.serving['scale_optimum']:.4g}, best for training alone"))
    near = [row.scale for row in plan.near_optimal if row.relative_loss <= NEAR_OPTIMAL]
    if near and not plan.serving:
        rows.append((f"within {NEAR_OPTIMAL:.1%} loss", f"{len(near)} shapes, scale {near[0]:.3g} to {near[-1]:.3g}"))
    rows.extend(_leverage_rows(plan.leverage))
    if plan.prediction is not None:
        p = plan.prediction
        rows.append(("predicted", f"{p.center:.4f} {p.unit}, {p.level:.0%} interval {p.low:.4f} to {p.high:.4f}"))
        if curve := plan.recipe["prediction"].get("curve"):
            at = [(share, np.interp(share * plan.steps, curve["steps"], curve["of_final"])) for share in SHOWN]
            text = ", ".join(f"{p.center * of_final:.3f} at {share:.0%}" for share, of_final in at)
            rows.append(("predicted curve", f"{text} of the steps"))
        rows.append(("by law", "; ".join(f"{name} {value:.4f}" for name, value in p.by_law.items())))
        for task, metrics in tree["benchmarks"].items():
            scores = (f"{name} {v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for name, v in metrics.items())
            rows.append((f"predicted {task}", "; ".join(scores)))
    if plan.rough_loss:
        losses = plan.rough_loss.values()
        by_law = "; ".join(f"{name} {value:.3f}" for name, value in plan.rough_loss.items())
        rows.append(
            ("rough loss", f"{min(losses):.2f} to {max(losses):.2f} nats per token: other data, no interval ({by_law})")
        )
    return rows


def next_step(plan: Plan, recipe: Path) -> str:
    """What to do with the recipe of a plan."""
    n_gpus = plan.memory.n_gpus
    if n_gpus > TRAINS_ON_GPUS:
        return f"it needs {n_gpus} devices and isoflop train uses {TRAINS_ON_GPUS} so far: not to be run yet"
    unnamed = plan.recipe["data"] == {"tokens": "tokens"}  # no ladder said which
    return f"run it: isoflop train {recipe}{' data.tokens=FOLDER' if unnamed else ''}"


def _corpus_rows(plan: Plan) -> list[tuple[str, str]]:
    """The share of the tokens at hand that is used, or the passes over them."""
    if not plan.unique_tokens:
        return []
    passes = plan.n_tokens / plan.unique_tokens
    used = f"{passes:.0%} of" if passes <= 1 else f"{passes:.3g} passes over"
    return [("corpus", f"{used} {plan.unique_tokens:.4g} tokens at hand")]


def _time(hours: float) -> str:
    return f"{hours:.3g} hours" if hours < 48 else f"{hours / 24:.3g} days"


def comparison_rows(found: Comparison) -> list[tuple[str, str]]:
    """A comparison for people, without its verdict and warnings."""
    m, text = found.multiplier, found.held_out
    by_law = "; ".join(f"{name} {value:.3g}" for name, value in m.by_law.items())
    size = f", {text.n_bytes:,} bytes" if text.n_bytes else ""
    rows = [
        ("compute multiplier", f"{m.center:.3g} ({found.level:.0%} {m.low:.3g} to {m.high:.3g}); by law: {by_law}"),
        (f"{found.loss.unit} at {found.budget_flops:.3g} FLOPs", f"A {found.loss.a:.4f}, B {found.loss.b:.4f}"),
        (
            "held-out text",
            "the same by --same-held-out" if text.stated else f"the same, {(text.sha256 or '')[:12]}{size}",
        ),
    ]
    for test in found.exponents:
        interval = f"difference {test.difference:+.3f} ({test.interval[0]:+.3f} to {test.interval[1]:+.3f})"
        rows.append((test.exponent, f"A {test.a:.3f}, B {test.b:.3f}, {interval}, p = {test.p:.2g}"))
    for pair in found.paired:
        m = pair.multiplier
        worth = f", worth {m[0]:.3f} x the compute ({m[1]:.3f} to {m[2]:.3f})" if m else ""
        rows.append((f"equal cells, {pair.group}", f"{pair.mean:+.2%} ({pair.low:+.2%} to {pair.high:+.2%}){worth}"))
    return rows


def _leverage_rows(leverage: Leverage | None) -> list[tuple[str, str]]:
    """Label and text of both, for people."""
    rows = []
    expected, measured = (leverage.expected, leverage.measured) if leverage else (None, None)
    if expected:
        by_law = "; ".join(f"{name} {value:.3g}" for name, value in expected.by_law.items())
        text = f"{expected.center:.3g} x the compute of a dense model ({expected.low:.3g} to {expected.high:.3g}"
        rows.append(("expected leverage", f"{text} over published laws: {by_law})"))
    if measured:
        text = f"{measured.center:.3g} x ({measured.level:.0%} {measured.low:.3g} to {measured.high:.3g})"
        rows.append(("measured leverage", f"{text} over {measured.over}"))
    return rows


def _family_rows(config: ModelConfig) -> list[tuple[str, str]]:
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
