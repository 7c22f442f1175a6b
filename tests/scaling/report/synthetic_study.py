"""A made-up but lifelike study with a known law, for the tests of figures and report: records, laws, plan, score."""

import math

import numpy as np
from law_examples import example_laws

from isoflop.scaling.laws import surface_loss, surface_optimum

TRUTH = np.array([0.9, 40.0, 60.0, 0.30, 0.33])
"""E, A, B, alpha, beta of bits per byte against M (FLOPs per token) and D."""
CONVENTIONS = {
    "flops": "M = 6 x non-embedding matmul weights + attention",
    "attention": "full, no causal halving",
    "loss": "bits per byte",
    "schedule": "constant_cooldown",
    "tokenizer": "byte-level BPE 512",
    "eval_set": "validation shards",
}


def true_loss(scale, tokens):
    return surface_loss(TRUTH, scale, tokens)


def true_scale(flops):
    return surface_optimum(TRUTH, flops, 1.0)[0]


def hyper_penalty(rate, batch):
    """Loss over the best of a setting: a quadratic valley along rate ~ sqrt(batch), best at 3e-3 and 700 tokens."""
    return 1 + 0.006 * math.log(rate / 3e-3 / (batch / 700) ** 0.5) ** 2 + 0.004 * math.log(batch / 700) ** 2


def make_record(scale, tokens, budget, rng, **changes):
    loss = float(true_loss(scale, tokens)) * (1 + rng.normal(0, 0.002))
    record = {
        "run_id": f"{budget or 0:.0e}-{scale:.0f}-{len(changes)}",
        "study": "synthetic",
        "kind": "cell",
        "status": "finished",
        "seed": 1,
        "budget_flops": budget,
        "n_layers": 3,
        "d_model": 64,
        "flops_per_token": scale,
        "flops_per_token_exact": scale * 1.2,
        "planned_tokens": tokens,
        "n_tokens": tokens,
        "total_flops": scale * tokens,
        "total_flops_exact": 1.2 * scale * tokens,
        "batch_tokens": 512,
        "learning_rate": 4e-3,
        "schedule": "constant_cooldown",
        "cooldown_fraction": 0.2,
        "loss_nats": loss * 1.5,
        "bits_per_byte": loss,
        "trunk_id": f"trunk-{scale:.0f}",
        "trunk_tokens_shared": 0.8 * tokens,
        "cooled": True,
        "wall_s": 12.0,
        "tokens_per_s": 25000.0,
        "device": "cpu",
        "threads": 1,
        "commit": "0123456789abcdef",
        "conventions": CONVENTIONS,
    }
    return {**record, **changes}


def make_study(seed=0, *, target=True, hyper=True):
    """(records, laws, plan, score) around the known law; sizes are shared by budgets so that trunks can be, too."""
    rng = np.random.default_rng(seed)
    budgets = [4e11, 8e11, 1.6e12, 3.2e12]
    sizes = true_scale(budgets[0]) * 1.42 ** np.arange(-2.5, 5.5)
    records = [
        make_record(float(size), budget / float(size), budget, rng)
        for index, budget in enumerate(budgets)
        for size in sizes[index : index + 5]
    ]
    records.append(
        make_record(float(sizes[0]), 1e6, budgets[0], rng, status="diverged", run_id="bad", bits_per_byte=None)
    )
    if hyper:
        records += [
            make_record(
                2e5,
                1e6,
                None,
                rng,
                planned_tokens=1e6,
                batch_tokens=batch,
                learning_rate=rate,
                trunk_id=None,
                bits_per_byte=float(true_loss(2e5, 1e6)) * hyper_penalty(rate, batch),
            )
            for batch in (256, 512, 1024, 2048)
            for rate in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ]
    warning = "budget 4e11: its vertex lies near the edge of the tested sizes"
    laws = example_laws(TRUTH, budgets=tuple(budgets), noise=0.002, conventions=CONVENTIONS, warnings=[warning])
    goal = 2e13
    scale, tokens = float(true_scale(goal)), goal / float(true_scale(goal))
    measured = float(true_loss(scale, tokens))
    centre = measured * 1.003
    prediction = {
        "bits_per_byte": centre,
        "low": centre * 0.98,
        "high": centre * 1.022,
        "level": 0.9,
        "predicted_at": "2026-01-02T03:04:05Z",
        "target_flops": goal,
        "largest_sweep_flops": budgets[-1],
    }
    plan = {
        "model": {"n_layers": 5, "d_model": 160, "n_heads": 5, "d_ff": 432, "seq_len": 128, "vocab_size": 512},
        "scale_name": "flops_per_token",
        "scale": scale,
        "n_tokens": int(tokens),
        "steps": int(tokens // 1024),
        "batch_tokens": 1024,
        "learning_rate": 3e-3,
        "total_flops": goal,
        "n_params_total": 1_100_000,
        "n_params_non_embedding": 936_000,
        "unique_tokens": 9e6,
        "hours": 0.08,
        "gpu_hours": 0.08,
        "memory": {"total_bytes": 2.1e8},
        "near_optimal": [
            {
                "n_layers": 4,
                "d_model": 144,
                "n_params_total": 8e5,
                "n_tokens": 6e6,
                "loss": centre * 1.0004,
                "relative_loss": 4e-4,
            },
            {
                "n_layers": 5,
                "d_model": 160,
                "n_params_total": 1e6,
                "n_tokens": 4.8e6,
                "loss": centre,
                "relative_loss": 0.0,
                "chosen": True,
            },
        ],
        "warnings": [],
        "recipe": {"train": {"schedule": "constant_cooldown"}},
        "prediction": prediction,
    }
    score = {
        "predicted_bits_per_byte": centre,
        "interval": [centre * 0.98, centre * 1.022],
        "level": 0.9,
        "measured_bits_per_byte": measured,
        "relative_error": measured / centre - 1,
        "inside_interval": True,
        "target_flops": goal,
        "largest_sweep_flops": budgets[-1],
        "ratio": goal / budgets[-1],
        "predicted_at": "2026-01-02T03:04:05Z",
        "measured_at": "2026-01-02T03:14:05Z",
    }
    if target:
        records.append(
            make_record(
                scale,
                tokens,
                goal,
                rng,
                kind="target",
                bits_per_byte=measured,
                trunk_id=None,
                prediction=prediction,
                score=score,
            )
        )
    return records, laws, plan, score


def make_metrics(n_steps=600):
    """Lines of metrics.jsonl of a run that learns: steps and validations."""
    lines = []
    for step in range(1, n_steps + 1):
        rate = 4e-3 * min(1.0, step / 30) * min(1.0, (n_steps - step) / (0.2 * n_steps))
        loss = 2.2 + 4.0 * step**-0.5 + 0.03 * math.sin(step * 1.7)
        lines.append(
            {"step": step, "n_tokens": step * 1024, "learning_rate": rate, "loss_nats": loss, "gradient_norm": 1.0}
        )
        if step % 60 == 0:
            lines.append(
                {
                    "step": step,
                    "validation": {"loss_nats": loss, "bits_per_byte": (loss - 0.03 * math.sin(step * 1.7)) / 1.4},
                }
            )
    return lines


def make_corpus_manifest():
    return {
        "corpus_sha256": "c" * 64,
        "n_documents": 5321,
        "n_bytes": 25_000_000,
        "n_bad_records": 2,
        "held_out": ["sympy", "email"],
        "duplicates": {"exact": 31, "near": 120, "of_them_train_like_valid": 4},
        "drops": {"code": {"too short": 60, "generated": 12}, "prose": {"too short": 9}},
        "licenses": {"PSF-2.0": 1200, "BSD-3-Clause": 800},
        "files": [
            {"split": "train", "domain": "code", "n_documents": 4000, "n_bytes": 18_000_000, "sha256": "a"},
            {"split": "valid", "domain": "code", "n_documents": 300, "n_bytes": 1_200_000, "sha256": "b"},
        ],
    }


def make_tokens_manifest():
    return {
        "vocab_size": 512,
        "tokenizer_sha256": "d" * 64,
        "data_sha256": "e" * 64,
        "shards": [
            {"split": "train", "domain": "code", "n_tokens": 9_000_000, "n_bytes": 18_000_000, "n_documents": 4000},
            {"split": "valid", "domain": "code", "n_tokens": 600_000, "n_bytes": 1_200_000, "n_documents": 300},
        ],
    }
