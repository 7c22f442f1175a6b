"""Parameters, FLOPs and bytes of a model, from its sizes alone: the only place where they are counted. No torch here.

In: a ModelConfig. Out: plain numbers. The convention of a FLOP count is part of every scaling law, so each count has a
name (`FLOPS_CONVENTIONS`); the project's model scale is "M", and a compute budget is C = M * D with D in tokens.

One product of a [T, d_in] activation with a [d_out, d_in] weight costs 2 FLOPs per weight and token forward and twice
that backward, hence 6. Attention costs 2 products over the attended tokens, hence 6 * layers * heads * (channels of a
key + channels of a value) * attended: 12 * layers * heads * d_head * attended where both are d_head. Looking up an
embedding, norms, rotary turns, softmax, sorting tokens by expert and adding up their outputs are not counted.

A mixture of experts costs what the active experts cost; its router is one of the products. Multi-token prediction
modules are no part of the model that is served: its parameters and M leave them out, "exact" and "causal" count them,
as if they ran on all positions (depth k leaves out the last k).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from isoflop.errors import RecipeError
from isoflop.model.config import ModelConfig

Convention = Literal["M", "M_formula", "6N1", "6N2", "6N_non_embedding", "6N_total", "exact", "causal"]

FLOPS_CONVENTIONS: dict[str, str] = {
    "M": "6 x active weights of the blocks' matrix products + 12 n (heads d_head) s; full attention, no output head",
    "M_formula": "72 n d^2 + 12 n d s: M as printed in arXiv 2401.02954, exact for MHA with d_ff = 8/3 d",
    "6N1": "72 n d^2: non-embedding parameters as printed in arXiv 2401.02954, no attention",
    "6N2": "72 n d^2 + 6 V d: all parameters as printed in arXiv 2401.02954 (one table of V d), no attention",
    "6N_non_embedding": "6 x active parameters without embedding and head (norms included), no attention",
    "6N_total": "6 x active parameters, embedding and head included, no attention",
    "exact": "M + 6 d V: the output head included, multi-token prediction too, full attention",
    "causal": "exact with attention over the causal half only, s/2 tokens on average",
}

ATTENTION_CONVENTION = "full s x s, causal half not taken out (except in 'causal')"

BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of one number in the formats that activations can have."""

Step = Literal["plain", "kernels", "fp8"]
"""How a training step is computed. plain: by PyTorch's own operations; kernels: bf16 on an NVIDIA GPU, where the steps
between products are joined (compiled blocks keep about as much); fp8: the same with all products of the blocks in
FP8, whose inputs are kept as codes."""


@dataclass(frozen=True)
class ParameterCount:
    """Exact parameter counts; multi-token prediction modules only in `n_params_mtp`.

    Norms are included and so are selection biases, which the published 671,026,419,200 of V3 contains: they are moved
    by load and not by gradients, but they are part of a checkpoint.
    """

    n_params_total: int
    n_params_active: int
    """Used by one token, embedding and head included; a dense model uses all of them."""
    n_params_non_embedding: int
    """Total without the embedding and the output head."""
    n_params_matmul: int
    """Weights of the blocks' matrix products, all experts'."""
    n_params_matmul_active: int
    """Those that one token uses: what M multiplies by 6."""
    n_params_embedding: int
    n_params_head: int
    n_params_norm: int
    n_params_mtp: int
    """Of the multi-token prediction modules, without the shared embedding and head."""


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count every parameter of the model."""
    n_dense, n_last = config.n_layers - config.n_expert_layers, config.n_expert_layers
    dense, _ = _block_weights(config, 0) if n_dense else (0, 0)
    last, last_active = _block_weights(config, config.n_layers - 1)
    matmul, active = n_dense * dense + n_last * last, n_dense * dense + n_last * last_active
    norm = config.n_layers * _block_norms(config) + config.d_model
    table = config.vocab_size * config.d_model
    bias = config.experts.n_experts if config.experts is not None and config.experts.selection_bias else 0
    # a prediction module joins two normed inputs in one product and has a norm before the head
    module = last + 2 * config.d_model**2 + _block_norms(config) + 3 * config.d_model + bias
    return ParameterCount(
        n_params_total=matmul + norm + n_last * bias + 2 * table,
        n_params_active=active + norm + n_last * bias + 2 * table,
        n_params_non_embedding=matmul + norm + n_last * bias,
        n_params_matmul=matmul,
        n_params_matmul_active=active,
        n_params_embedding=table,
        n_params_head=table,
        n_params_norm=norm,
        n_params_mtp=config.mtp_depth * module,
    )


def _attention_weights(config: ModelConfig) -> int:
    """Weights of one layer's attention products."""
    d, heads, latent = config.d_model, config.n_heads, config.latent
    if latent is None:
        return d * config.d_head * (2 * heads + 2 * config.n_kv_heads)  # q and out, k and v
    queries, rows = latent.d_q_latent, heads * config.d_head
    query = queries * (d + rows) if queries else d * rows
    keys_values = d * (latent.d_kv_latent + latent.d_rope)
    keys_values += latent.d_kv_latent * heads * (latent.d_nope + latent.d_value)
    return query + keys_values + heads * latent.d_value * d


def _block_weights(config: ModelConfig, layer: int) -> tuple[int, int]:
    """Weights of one block's matrix products: all of them, and those that one token uses."""
    attention, experts = _attention_weights(config), config.experts_of(layer)
    if experts is None:
        dense = attention + 3 * config.d_model * config.d_ff
        return dense, dense
    one, router = 3 * config.d_model * experts.d_expert, config.d_model * experts.n_experts
    always = attention + router + experts.n_shared * one
    return always + experts.n_experts * one, always + experts.n_active * one


def _block_norms(config: ModelConfig) -> int:
    latent = config.latent
    return 2 * config.d_model + (0 if latent is None else latent.d_q_latent + latent.d_kv_latent)


def flops_per_token(config: ModelConfig, convention: Convention = "M", seq_len: int | None = None) -> int:
    """FLOPs of one token, forward and backward, under a named convention (see FLOPS_CONVENTIONS).

    `seq_len` is the training context; it defaults to the model's.
    """
    seq_len = config.seq_len if seq_len is None else seq_len
    n, d, v = config.n_layers, config.d_model, config.vocab_size
    count = count_parameters(config)
    layer_attention = 6 * config.n_heads * (config.d_head + config.d_value) * seq_len
    products, attention = 6 * count.n_params_matmul_active, n * layer_attention
    head = 6 * count.n_params_head
    module = 6 * (_block_weights(config, n - 1)[1] + 2 * d * d) + head
    match convention:
        case "M":
            return products + attention
        case "M_formula":
            return 72 * n * d * d + 12 * n * d * seq_len
        case "6N1":
            return 72 * n * d * d
        case "6N2":
            return 72 * n * d * d + 6 * v * d
        case "6N_non_embedding":
            return 6 * (count.n_params_active - count.n_params_embedding - count.n_params_head)
        case "6N_total":
            return 6 * count.n_params_active
        case "exact":
            return products + attention + head + config.mtp_depth * (module + layer_attention)
        case "causal":
            return products + attention // 2 + head + config.mtp_depth * (module + layer_attention // 2)
    raise RecipeError(f"FLOP convention {convention!r} must be one of {', '.join(FLOPS_CONVENTIONS)}")


def flops_by_convention(config: ModelConfig, seq_len: int | None = None) -> dict[str, int]:
    """`flops_per_token` under every convention."""
    return {name: flops_per_token(config, name, seq_len) for name in FLOPS_CONVENTIONS}  # type: ignore[arg-type]


def forward_flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs to decode one token that attends to `context` tokens, the output head included.

    Latent attention decodes in its absorbed form: scores and values are products with the latents themselves.
    """
    count, latent = count_parameters(config), config.latent
    channels = 2 * config.d_head if latent is None else 2 * latent.d_kv_latent + latent.d_rope
    attention = 2 * config.n_layers * config.n_heads * channels * context
    return 2 * (count.n_params_matmul_active + count.n_params_head) + attention


def kv_bytes_per_token(config: ModelConfig, precision: str = "bf16") -> int:
    """Bytes that decoding keeps per token: keys and values, or the latent and the shared rotary key."""
    latent = config.latent
    kept = 2 * config.n_kv_heads * config.d_head if latent is None else latent.d_kv_latent + latent.d_rope
    return config.n_layers * kept * _bytes(precision)


def decode_bytes(config: ModelConfig, batch: int, context: int, precision: str = "bf16") -> int:
    """Bytes that a decoding step must read: one new token for each of `batch` sequences that hold `context` tokens.

    Over the read bandwidth of a device this is the floor of a step's time. Read once whatever the batch: weights of
    products, in the compute format, and norms, routers and selection biases, in float32. Read for each sequence: its
    row of the embedding and what is kept of its tokens. Of the routed experts those that some token uses: E (1 -
    (1 - A/E)^batch) of E on average, if tokens choose their A independently and evenly. Prediction modules are left
    out.
    """
    if batch < 1 or context < 0:
        raise RecipeError(f"batch = {batch} must be at least 1 and context = {context} at least 0")
    width, count, experts = _bytes(precision), count_parameters(config), config.experts
    products, wide, idle = count.n_params_matmul + count.n_params_head, count.n_params_norm, 0.0
    if experts is not None:
        router = config.n_expert_layers * config.d_model * experts.n_experts
        products, wide = products - router, wide + router
        wide += config.n_expert_layers * experts.n_experts if experts.selection_bias else 0
        unused = (1 - experts.n_active / experts.n_experts) ** batch * experts.n_experts
        idle = config.n_expert_layers * unused * 3 * config.d_model * experts.d_expert
    per_sequence = config.d_model * width + context * kv_bytes_per_token(config, precision)
    return round((products - idle) * width) + 4 * wide + batch * per_sequence


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
    """Logits that are there at one time, and the head's float32 gradient of every loss."""
    total_bytes: int


def activation_bytes_per_token(config: ModelConfig, precision: str = "bf16", step: Step | None = None) -> int:
    """Bytes that the backward pass keeps for one token. With a the bytes of the compute format, per layer:

    - norms: two inputs a d (plain: widened, 4 d), a float32 scale each, and two outputs a d;
    - attention: the joint query/key/value product a (H + 2 G) C, turned queries and keys a (H + G) C, the mixed values
      a H C and one float32 normaliser a head: 4 H;
    - latent attention instead: each latent a L (plain: widened, 4 L), its scale and its norm a L, the joint key/value
      product a H (nope + value), whole queries and keys 2 a H C, the mixed values and normalisers as above;
    - SwiGLU: gate and up 2 a F, their product a F (plain: silu(gate) too);
    - experts instead: affinities 4 E, for each of the A active ones the row a d, a SwiGLU and about 40 bytes of
      indices and weights (plain: the router's widened input too, and the product before and after weighing); the
      shared experts are a SwiGLU;
    - in FP8 the input of a product is its codes and scales, a byte and 4 / 128 for each value;

    plus the final norm, and a d for the gradient that the loss computes in its forward pass. A multi-token prediction
    module keeps a block, its norms, its joined input and a loss gradient of its own.
    """
    a, d, step = _bytes(precision), config.d_model, step or step_of(precision)
    norm = (4 if step == "plain" else a) * d + 4  # the input as the backward pass reads it, and its scale
    n_last = config.n_expert_layers
    n_first = config.n_layers - n_last
    first = _block_activations(config, 0, a, step) if n_first else 0
    last = _block_activations(config, config.n_layers - 1, a, step)
    ending = norm + 2 * a * d
    module = last + 2 * norm + 2 * a * d + ending
    return n_first * first + n_last * last + ending + config.mtp_depth * module


def step_of(precision: str) -> Step:
    """How a step of this precision is computed unless something else is asked for."""
    return "plain" if _bytes(precision) == 4 else "kernels"


def _block_activations(config: ModelConfig, layer: int, a: int, step: Step) -> int:
    d, latent, experts = config.d_model, config.latent, config.experts_of(layer)
    plain, wide = step == "plain", 4 if step == "plain" else a

    def operand(width: int) -> int:
        """Input of a product that nothing else keeps."""
        return width + width // 32 if step == "fp8" else a * width

    def swiglu(width: int) -> int:
        return 2 * a * width + (a * width if plain else 0) + operand(width)

    norms = 2 * (wide * d + 4) + 2 * operand(d)
    if latent is None:
        heads, kv_heads = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        attention = a * (3 * heads + 3 * kv_heads) + 4 * config.n_heads
    else:
        latents = [width for width in (latent.d_q_latent, latent.d_kv_latent) if width]
        attention = sum(wide * width + operand(width) + 4 for width in latents)
        attention += 4 * latent.d_rope if a == 4 else 0
        attention += a * config.n_heads * (latent.d_nope + 2 * latent.d_value + 2 * config.d_head) + 4 * config.n_heads
        heads = config.n_heads * latent.d_value
    attention += operand(heads) if step == "fp8" else 0  # attention keeps the mixed values themselves
    if experts is None:
        return norms + attention + swiglu(config.d_ff)
    widened = 4 * d if plain and a < 4 else 0
    weighed = a * experts.d_expert if plain else 0
    routed = experts.n_active * (a * d + swiglu(experts.d_expert) + weighed + 40)
    return norms + attention + widened + 4 * experts.n_experts + routed + swiglu(experts.n_shared * experts.d_expert)


def training_memory(
    config: ModelConfig,
    *,
    precision: str = "bf16",
    step: Step | None = None,
    micro_batch: int = 1,
    world_size: int = 1,
    zero_stage: int = 0,
) -> Memory:
    """Bytes per device of a training step with `micro_batch` sequences on each of `world_size` devices.

    `step` is that of the precision unless given: plain in fp32, kernels in bf16.
    """
    step = step or step_of(precision)
    if zero_stage not in (0, 1, 2, 3):
        raise RecipeError(f"zero_stage = {zero_stage} must be 0 (nothing shared), 1, 2 or 3")
    if world_size < 1 or micro_batch < 1:
        raise RecipeError(f"world_size = {world_size} and micro_batch = {micro_batch} must be at least 1")
    count = count_parameters(config)
    total = count.n_params_total + count.n_params_mtp

    def share(size: int, from_stage: int) -> int:
        return -(-size // world_size) if zero_stage >= from_stage else size

    tokens = micro_batch * config.seq_len
    width, losses = _bytes(precision), 1 + config.mtp_depth
    chunk = min(4096, tokens)  # as Transformer cuts them
    if width == 4:  # the logits are overwritten by their gradient
        logits = 4 * chunk
    elif step == "plain":
        logits = (width + 4) * chunk
    else:  # overwritten too
        chunk = logit_rows(config, tokens)
        whole = chunk >= tokens  # then every loss's are there until its backward
        logits = width * (losses * tokens if whole else min(2 * chunk, tokens))
    products = count.n_params_matmul + count.n_params_head + count.n_params_mtp
    parts = {
        "weights_bytes": share(4 * total, 3),
        "compute_weights_bytes": 0 if width == 4 else width * products,
        "gradients_bytes": share(4 * total, 2),
        "optimizer_bytes": share(8 * total, 1),
        "activations_bytes": tokens * activation_bytes_per_token(config, precision, step),
        "logits_bytes": logits * config.vocab_size + 4 * count.n_params_head * losses,
    }
    return Memory(**parts, total_bytes=sum(parts.values()))


LOGITS_BYTES = 7 * 10**9
"""Of all losses of a micro-batch, up to which a GPU makes them in one piece (assumption: a twentieth of an H200)."""


def logit_rows(config: ModelConfig, n_rows: int) -> int:
    """Rows of logits that a training step on a GPU makes at a time: larger products are faster (docs/log.md)."""
    whole = 2 * n_rows * config.vocab_size * (1 + config.mtp_depth) <= LOGITS_BYTES
    return n_rows if whole else min(n_rows, 8192)


def inspect(
    config: ModelConfig,
    *,
    precision: str = "bf16",
    step: Step | None = None,
    micro_batch: int = 1,
    world_size: int = 1,
    zero_stage: int = 0,
    n_tokens: int | None = None,
) -> dict[str, Any]:
    """Everything that is counted, as plain data: what `isoflop inspect RECIPE --json F` writes.

    With `n_tokens` also the compute of the whole run under each convention.
    """
    by_convention = flops_by_convention(config)
    step = step or step_of(precision)
    where = {"micro_batch": micro_batch, "world_size": world_size, "zero_stage": zero_stage}
    memory = training_memory(config, precision=precision, step=step, **where)
    found: dict[str, Any] = {
        "model": dataclasses.asdict(config),
        **dataclasses.asdict(count_parameters(config)),
        "flops_per_token": by_convention,
        "flops_conventions": FLOPS_CONVENTIONS,
        "attention_convention": ATTENTION_CONVENTION,
        "decode_flops_per_token": forward_flops_per_token(config, config.seq_len),
        "kv_bytes_per_token": {name: kv_bytes_per_token(config, name) for name in BYTES},
        "activation_bytes_per_token": activation_bytes_per_token(config, precision, step),
        "memory": {"precision": precision, "step": step, **where, **dataclasses.asdict(memory)},
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
