"""Which tensor of a Hugging Face folder is which rows of which tensor of ours.

Ours are larger: queries, keys and values are one matrix, so are gate and up, and all experts of a layer. Stacked in the
right order each of theirs is a range of rows, so both directions move rows and nothing else. The one exception is the
rotary layout: released DeepSeek weights turn neighbouring channels (0,1), (2,3), ..., ours turn i with i + d/2 as Llama
does, so the rotary rows of queries and keys are reordered.

Source: DeepSeek LLM (arXiv 2401.02954) and DeepSeek-V3 (arXiv 2412.19437) as released: names and shapes of their files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from isoflop.model.config import ModelConfig

INDEX = "model.safetensors.index.json"
ROUTER_BIAS = "e_score_correction_bias"
SCALES = "weight_scales.safetensors"
"""In the run folder of an FP8 import: the scales its weights came with."""


@dataclass(frozen=True)
class Rotary:
    """Rows in groups of `period`; the last `d_rope` of each group are rotary channels."""

    period: int
    d_rope: int


@dataclass(frozen=True)
class Piece:
    """One tensor of theirs."""

    name: str
    shape: tuple[int, ...]
    first_row: int = 0
    """Where it starts in the rows of ours."""
    rotary: Rotary | None = None
    """How its rows are reordered; None: not at all."""
    fp8: bool = False
    """Quantised in FP8 folders."""
    factor: float = 1.0
    """Theirs is ours times this; a power of two, so that no bit is lost."""

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)


@dataclass(frozen=True)
class Target:
    """One tensor of ours and the pieces that it is stacked from; an empty name: theirs has zeros that ours has not."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def layout(config: ModelConfig, format: str) -> list[Target]:
    """All tensors of a model, in the order of ours."""
    targets = [Target("embedding.weight", *_one("model.embed_tokens.weight", config.vocab_size, config.d_model))]
    for index in range(config.n_layers):
        targets += _block(config, format, f"blocks.{index}.", f"model.layers.{index}.", index)
    targets.append(Target("norm.weight", *_one("model.norm.weight", config.d_model)))
    targets.append(Target("head.weight", *_one("lm_head.weight", config.vocab_size, config.d_model)))
    for depth in range(config.mtp_depth):
        targets += _prediction_module(config, format, depth)
    return targets


def copies(config: ModelConfig) -> dict[str, tuple[Piece, ...]]:
    """Pieces of multi-token prediction layers that repeat a whole tensor of ours, by its name."""
    shape = (config.vocab_size, config.d_model)
    layers = [f"model.layers.{config.n_layers + depth}." for depth in range(config.mtp_depth)]
    return {
        "embedding.weight": tuple(Piece(f"{layer}embed_tokens.weight", shape) for layer in layers),
        "head.weight": tuple(Piece(f"{layer}shared_head.head.weight", shape) for layer in layers),
    }


def to_ours(rows: Tensor, rotary: Rotary | None) -> Tensor:
    """Rows of theirs in the order of ours: of a rotary pair, first all first channels, then all second ones."""
    return _reorder(rows, rotary, (rotary.d_rope // 2, 2)) if rotary else rows


def to_theirs(rows: Tensor, rotary: Rotary | None) -> Tensor:
    """The inverse of `to_ours`."""
    return _reorder(rows, rotary, (2, rotary.d_rope // 2)) if rotary else rows


def _reorder(rows: Tensor, rotary: Rotary, pairs: tuple[int, int]) -> Tensor:
    groups = rows.view(-1, rotary.period, rows.shape[-1])
    fixed = rotary.period - rotary.d_rope
    turned = groups[:, fixed:].unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
    result = groups.clone()
    result[:, fixed:] = turned
    return result.view_as(rows)


def _one(name: str, *shape: int, fp8: bool = False) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
    return shape, (Piece(name, shape, fp8=fp8),)


def _zeros(name: str, *shape: int) -> Target:
    """What ours has not and theirs has to hold as zeros."""
    return Target("", *_one(name, *shape))


def _stack(
    d_in: int, parts: list[tuple[str, int]], rotary: Rotary | None = None
) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
    """A matrix made of several, one below the other."""
    pieces, row = [], 0
    for name, rows in parts:
        pieces.append(Piece(name, (rows, d_in), row, rotary, fp8=True))
        row += rows
    return (row, d_in), tuple(pieces)


def _block(config: ModelConfig, format: str, ours: str, theirs: str, index: int) -> Iterator[Target]:
    d = config.d_model
    yield Target(f"{ours}attention_norm.weight", *_one(f"{theirs}input_layernorm.weight", d))
    yield from _latent_attention(config, ours, theirs) if config.latent else _attention(config, format, ours, theirs)
    yield Target(f"{ours}mlp_norm.weight", *_one(f"{theirs}post_attention_layernorm.weight", d))
    if config.experts is None or index < config.experts.n_dense_layers:
        yield from _swiglu(f"{ours}mlp.", f"{theirs}mlp.", d, config.d_ff)
    else:
        yield from _experts(config, format, f"{ours}mlp.", f"{theirs}mlp.")


def _attention(config: ModelConfig, format: str, ours: str, theirs: str) -> Iterator[Target]:
    d, queries, keys = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    widths = dict(zip("qkv", (queries, keys, keys)))
    parts = [(f"{theirs}self_attn.{letter}_proj.weight", rows) for letter, rows in widths.items()]
    yield Target(f"{ours}attention.qkv.weight", *_stack(d, parts))
    if format == "qwen2_moe":  # its readers expect biases, whatever config.json says
        yield from (_zeros(f"{theirs}self_attn.{letter}_proj.bias", rows) for letter, rows in widths.items())
    yield Target(f"{ours}attention.out.weight", *_one(f"{theirs}self_attn.o_proj.weight", d, queries, fp8=True))


def _latent_attention(config: ModelConfig, ours: str, theirs: str) -> Iterator[Target]:
    latent, d, heads = config.latent, config.d_model, config.n_heads
    assert latent is not None
    ours, theirs = f"{ours}attention.", f"{theirs}self_attn."
    per_head = latent.d_nope + latent.d_rope
    turned = Rotary(per_head, latent.d_rope)
    if latent.d_q_latent:
        yield Target(f"{ours}q_down.weight", *_one(f"{theirs}q_a_proj.weight", latent.d_q_latent, d, fp8=True))
        yield Target(f"{ours}q_norm.weight", *_one(f"{theirs}q_a_layernorm.weight", latent.d_q_latent))
        parts = [(f"{theirs}q_b_proj.weight", heads * per_head)]
        yield Target(f"{ours}q_up.weight", *_stack(latent.d_q_latent, parts, turned))
    else:
        yield Target(f"{ours}q.weight", *_stack(d, [(f"{theirs}q_proj.weight", heads * per_head)], turned))
    wide = latent.d_kv_latent + latent.d_rope
    parts = [(f"{theirs}kv_a_proj_with_mqa.weight", wide)]
    yield Target(f"{ours}kv_down.weight", *_stack(d, parts, Rotary(wide, latent.d_rope)))
    yield Target(f"{ours}kv_norm.weight", *_one(f"{theirs}kv_a_layernorm.weight", latent.d_kv_latent))
    parts = [(f"{theirs}kv_b_proj.weight", heads * (latent.d_nope + latent.d_value))]
    yield Target(f"{ours}kv_up.weight", *_stack(latent.d_kv_latent, parts))
    yield Target(f"{ours}out.weight", *_one(f"{theirs}o_proj.weight", d, heads * latent.d_value, fp8=True))


def _swiglu(ours: str, theirs: str, d_model: int, d_ff: int, factor: float = 1.0) -> Iterator[Target]:
    parts = [(f"{theirs}gate_proj.weight", d_ff), (f"{theirs}up_proj.weight", d_ff)]
    yield Target(f"{ours}gate_up.weight", *_stack(d_model, parts))
    shape, (piece,) = _one(f"{theirs}down_proj.weight", d_model, d_ff, fp8=True)
    yield Target(f"{ours}down.weight", shape, (replace(piece, factor=factor),))


def _experts(config: ModelConfig, format: str, ours: str, theirs: str) -> Iterator[Target]:
    experts, d = config.experts, config.d_model
    assert experts is not None
    n, width = experts.n_experts, experts.d_expert
    yield Target(f"{ours}router.weight", *_one(f"{theirs}gate.weight", n, d))
    if format == "deepseek_v3":
        name = f"{ours}router.bias" if experts.selection_bias else ""
        yield Target(name, *_one(f"{theirs}gate.{ROUTER_BIAS}", n))
    each = [(f"{theirs}experts.{j}.{side}_proj.weight", width) for j in range(n) for side in ("gate", "up")]
    _, pieces = _stack(d, each)
    yield Target(f"{ours}experts.gate_up", (n, 2 * width, d), pieces)
    _, pieces = _stack(width, [(f"{theirs}experts.{j}.down_proj.weight", d) for j in range(n)])
    yield Target(f"{ours}experts.down", (n, d, width), pieces)
    if format == "qwen2_moe":
        # weighs the shared experts by a sigmoid; of zeros that is 1/2, which a factor of 2 undoes
        yield from _swiglu(f"{ours}shared.", f"{theirs}shared_expert.", d, experts.n_shared * width, factor=2.0)
        yield _zeros(f"{theirs}shared_expert_gate.weight", 1, d)
    elif experts.n_shared:
        yield from _swiglu(f"{ours}shared.", f"{theirs}shared_experts.", d, experts.n_shared * width)


def _prediction_module(config: ModelConfig, format: str, depth: int) -> Iterator[Target]:
    index, d = config.n_layers + depth, config.d_model
    ours, theirs = f"mtp.{depth}.", f"model.layers.{index}."
    yield Target(f"{ours}embedding_norm.weight", *_one(f"{theirs}enorm.weight", d))
    yield Target(f"{ours}hidden_norm.weight", *_one(f"{theirs}hnorm.weight", d))
    # columns: embedding first, then hidden, in the files and in our module (the reports write the reverse)
    yield Target(f"{ours}project.weight", *_one(f"{theirs}eh_proj.weight", d, 2 * d))
    yield from _block(config, format, f"{ours}block.", theirs, index)
    yield Target(f"{ours}norm.weight", *_one(f"{theirs}shared_head.norm.weight", d))
