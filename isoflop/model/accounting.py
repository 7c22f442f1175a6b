"""Parameters, FLOPs and bytes of a model, from its sizes alone: the only place where they are counted. No torch here.

In: a ModelConfig. Out: plain numbers. The convention of a FLOP count is part of every scaling law, so each count has a
name (`FLOPS_CONVENTIONS`); the project's model scale is "M", and a compute budget is C = M * D with D in tokens.

One product of a [T, d_in] activation with a [d_out, d_in] weight costs 2 FLOPs per weight and token forward and twice
that backward, hence 6. Attention costs 2 products over the attended tokens, hence 12 * layers * (heads * d_head) *
attended. Looking up an embedding, norms, rotary turns and softmax are not counted.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from isoflop.errors import RecipeError
from isoflop.model.config import ModelConfig

Convention = Literal["M", "M_formula", "6N1", "6N2", "6N_non_embedding", "6N_total", "exact", "causal"]

FLOPS_CONVENTIONS: dict[str, str] = {
    "M": "6 x weights of the blocks' matrix products + 12 n (heads d_head) s; full attention, no output head",
    "M_formula": "72 n d^2 + 12 n d s: M as printed in arXiv 2401.02954, exact for MHA with d_ff = 8/3 d",
    "6N1": "72 n d^2: non-embedding parameters as printed in arXiv 2401.02954, no attention",
    "6N2": "72 n d^2 + 6 V d: all parameters as printed in arXiv 2401.02954 (one table of V d), no attention",
    "6N_non_embedding": "6 x counted parameters without embedding and head (norms included), no attention",
    "6N_total": "6 x counted parameters, embedding and head included, no attention",
    "exact": "M + 6 d V: the output head included, full attention",
    "causal": "exact with attention over the causal half only, s/2 tokens on average",
}

ATTENTION_CONVENTION = "full s x s, causal half not taken out (except in 'causal')"

BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of one number in the formats that activations can have."""


@dataclass(frozen=True)
class ParameterCount:
    """Exact parameter counts, norms included."""

    n_params_total: int
    n_params_active: int
    """Used by one token; a dense model uses all of them."""
    n_params_non_embedding: int
    """Total without the embedding and the output head."""
    n_params_matmul: int
    """Weights of the blocks' matrix products: what M multiplies by 6."""
    n_params_embedding: int
    n_params_head: int
    n_params_norm: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count every parameter of the model."""
    attention = config.d_model * config.d_head * (2 * config.n_heads + 2 * config.n_kv_heads)  # q and out, k and v
    matmul = config.n_layers * (attention + 3 * config.d_model * config.d_ff)
    norm = (2 * config.n_layers + 1) * config.d_model
    table = config.vocab_size * config.d_model
    total = matmul + norm + 2 * table
    return ParameterCount(
        n_params_total=total,
        n_params_active=total,
        n_params_non_embedding=matmul + norm,
        n_params_matmul=matmul,
        n_params_embedding=table,
        n_params_head=table,
        n_params_norm=norm,
    )


def flops_per_token(config: ModelConfig, convention: Convention = "M", seq_len: int | None = None) -> int:
    """FLOPs of one token, forward and backward, under a named convention (see FLOPS_CONVENTIONS).

    `seq_len` is the training context; it defaults to the model's.
    """
    seq_len = config.seq_len if seq_len is None else seq_len
    n, d, v = config.n_layers, config.d_model, config.vocab_size
    count = count_parameters(config)
    attention = 12 * n * config.n_heads * config.d_head * seq_len
    head = 6 * count.n_params_head
    match convention:
        case "M":
            return 6 * count.n_params_matmul + attention
        case "M_formula":
            return 72 * n * d * d + 12 * n * d * seq_len
        case "6N1":
            return 72 * n * d * d
        case "6N2":
            return 72 * n * d * d + 6 * v * d
        case "6N_non_embedding":
            return 6 * count.n_params_non_embedding
        case "6N_total":
            return 6 * count.n_params_total
        case "exact":
            return 6 * count.n_params_matmul + attention + head
        case "causal":
            return 6 * count.n_params_matmul + attention // 2 + head
    raise RecipeError(f"FLOP convention {convention!r} must be one of {', '.join(FLOPS_CONVENTIONS)}")


def flops_by_convention(config: ModelConfig, seq_len: int | None = None) -> dict[str, int]:
    """`flops_per_token` under every convention."""
    return {name: flops_per_token(config, name, seq_len) for name in FLOPS_CONVENTIONS}  # type: ignore[arg-type]


def forward_flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs to decode one token that attends to `context` tokens, the output head included."""
    count = count_parameters(config)
    attention = 4 * config.n_layers * config.n_heads * config.d_head * context
    return 2 * (count.n_params_matmul + count.n_params_head) + attention


def kv_bytes_per_token(config: ModelConfig, precision: str = "bf16") -> int:
    """Bytes of keys and values that decoding keeps per token."""
    return 2 * config.n_layers * config.n_kv_heads * config.d_head * _bytes(precision)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device during a training step; the parts are held at once, temporaries of one operation are not in.

    Without sharding each rank holds everything; zero_stage 1 shares the optimizer state over world_size ranks, 2 also
    the gradients, 3 also the weights.
    """

    weights_bytes: int
    """float32 master weights, 4 bytes each."""
    compute_weights_bytes: int
    """Casts of the product weights to the compute format that the backward pass keeps (0 in fp32)."""
    gradients_bytes: int
    """float32, 4 bytes each."""
    optimizer_bytes: int
    """AdamW: two float32 moments, 8 bytes a parameter."""
    activations_bytes: int
    """Kept for the backward pass of one micro-batch; see `activation_bytes_per_token`."""
    logits_bytes: int
    """One chunk of logits in the compute format and float32, and the head's gradient of one micro-batch in float32."""
    total_bytes: int


def activation_bytes_per_token(config: ModelConfig, precision: str = "bf16") -> int:
    """Bytes that the eager backward pass keeps for one token. With a the bytes of the compute format, per layer:

    - norms: two inputs, widened to float32: 2 * 4 d (+ 2 float32 scales), and two outputs: 2 a d;
    - attention: the joint query/key/value product a (H + 2 G) C, turned queries and keys a (H + G) C, the mixed values
      a H C and one float32 normaliser a head: 4 H;
    - SwiGLU: gate and up 2 a F, silu(gate) a F, their product a F;

    plus the final norm (4 + a) d, and a d for the gradient that the loss computes in its forward pass.
    A compiled step recomputes cheap parts and keeps less; this is the upper bound to plan with.
    """
    a, d = _bytes(precision), config.d_model
    heads, kv_heads = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    norms = 2 * (4 * d + 4) + 2 * a * d
    attention = a * (3 * heads + 3 * kv_heads) + 4 * config.n_heads
    mlp = 4 * a * config.d_ff
    return config.n_layers * (norms + attention + mlp) + (4 + 2 * a) * d + 4


def training_memory(
    config: ModelConfig,
    *,
    precision: str = "bf16",
    micro_batch: int = 1,
    chunk_tokens: int = 4096,
    world_size: int = 1,
    zero_stage: int = 0,
) -> Memory:
    """Bytes per device of a training step with `micro_batch` sequences on each of `world_size` devices."""
    if zero_stage not in (0, 1, 2, 3):
        raise RecipeError(f"zero_stage = {zero_stage} must be 0 (nothing shared), 1, 2 or 3")
    if world_size < 1 or micro_batch < 1:
        raise RecipeError(f"world_size = {world_size} and micro_batch = {micro_batch} must be at least 1")
    count = count_parameters(config)
    total = count.n_params_total

    def share(size: int, from_stage: int) -> int:
        return -(-size // world_size) if zero_stage >= from_stage else size

    tokens = micro_batch * config.seq_len
    width = _bytes(precision)
    chunk = min(chunk_tokens, tokens)
    parts = {
        "weights_bytes": share(4 * total, 3),
        "compute_weights_bytes": 0 if width == 4 else width * (count.n_params_matmul + count.n_params_head),
        "gradients_bytes": share(4 * total, 2),
        "optimizer_bytes": share(8 * total, 1),
        "activations_bytes": tokens * activation_bytes_per_token(config, precision),
        # In float32 the logits are overwritten by their gradient: no second table.
        "logits_bytes": chunk * config.vocab_size * (width if width == 4 else width + 4) + 4 * count.n_params_head,
    }
    return Memory(**parts, total_bytes=sum(parts.values()))


def inspect(
    config: ModelConfig,
    *,
    precision: str = "bf16",
    micro_batch: int = 1,
    world_size: int = 1,
    zero_stage: int = 0,
    n_tokens: int | None = None,
) -> dict[str, Any]:
    """Everything that is counted, as plain data: what `isoflop inspect RECIPE --json F` writes.

    With `n_tokens` also the compute of the whole run under each convention.
    """
    by_convention = flops_by_convention(config)
    memory = training_memory(
        config, precision=precision, micro_batch=micro_batch, world_size=world_size, zero_stage=zero_stage
    )
    found: dict[str, Any] = {
        "model": dataclasses.asdict(config),
        **dataclasses.asdict(count_parameters(config)),
        "flops_per_token": by_convention,
        "flops_conventions": FLOPS_CONVENTIONS,
        "attention_convention": ATTENTION_CONVENTION,
        "kv_bytes_per_token": {name: kv_bytes_per_token(config, name) for name in BYTES},
        "activation_bytes_per_token": activation_bytes_per_token(config, precision),
        "memory": {
            "precision": precision,
            "micro_batch": micro_batch,
            "world_size": world_size,
            "zero_stage": zero_stage,
            **dataclasses.asdict(memory),
        },
    }
    if n_tokens is not None:
        found["n_tokens"] = n_tokens
        found["total_flops"] = {name: value * n_tokens for name, value in by_convention.items()}
        found["tokens_per_param"] = n_tokens / found["n_params_total"]
    return found


def _bytes(precision: str) -> int:
    if precision not in BYTES:
        raise RecipeError(f"precision = {precision!r} must be one of {', '.join(BYTES)}")
    return BYTES[precision]
