"""A decoding step of a few tokens in as few kernels as possible: what `Transformer.step` computes, joined otherwise.

Nothing is defined here: each line is one or several of transformer.py and experts.py, and tests hold both together. At
batch 1 a step is bound by reading weights and by the starts of its kernels, so residuals, norms and gates go into the
products beside them: 6 kernels a dense layer, 8 a latent one with experts, instead of some 30 and 60.

Shapes: N tokens, D model, H heads, C channels of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model import plain_rows
from isoflop.model.experts import Experts, MixtureOfExperts
from isoflop.model.pages import LayerPages, Step
from isoflop.model.transformer import MLP, Attention, Block, LatentAttention, MTPModule, RMSNorm, Transformer
from isoflop.numerics import few_rows
from isoflop.numerics.few_rows import MOST_ROWS, Mixture, Norm, last_norm, most_likely, product
from isoflop.numerics.launch import has_kernels
from isoflop.numerics.linear import Linear
from isoflop.numerics.rounds import begin_draft


def takes(model: Transformer, step: Step) -> bool:
    """Whether this step is computed here: rows only, on a GPU, with plain products and ungrouped experts."""
    if step.rows is None or step.chunks or step.rows.n_tokens > MOST_ROWS or step.rows.one_by_one:
        return False
    if model.config.experts is not None and model.config.experts.n_groups > 1:
        return False
    weight = model.head.weight
    return has_kernels(weight, wide=True) and not any(
        layer.numerics is not None for layer in model.modules() if isinstance(layer, (Linear, Experts))
    )


class Start(NamedTuple):
    """What a step begins with, where it is there already."""

    x_ND: Tensor
    """Embeddings, or what a prediction module's first product takes [N, 2 D]."""
    angles: tuple[Tensor, Tensor]


def run_step(
    model: Transformer, tokens_N: Tensor, step: Step, layers: Sequence[LayerPages], start: Start | None = None
) -> Tensor:
    """`model.step`, here or in plain_rows.py where that is possible."""
    if plain_rows.takes(model, step):
        return plain_rows.run_step(model, tokens_N, step, layers)
    if not takes(model, step):
        return model.step(tokens_N, step, layers)
    if start is None:
        start = Start(model.embedding.rows(tokens_N, model.dtype), model.angles_at(step.positions_N))
    x_ND, angles = start
    for block, pages in zip(model.blocks, layers):
        x_ND = _block(block, x_ND, angles, step, pages)  # type: ignore[arg-type]
    return last_norm(x_ND, _norm(model.norm))  # type: ignore[arg-type]


def run_mtp_step(
    model: Transformer, depth: int, hidden_ND: Tensor, tokens_N: Tensor, step: Step, pages: LayerPages
) -> Tensor:
    """`model.mtp_step`, here where that is possible."""
    if not takes(model, step):
        return model.mtp_step(depth, hidden_ND, tokens_N, step, pages)
    module: MTPModule = model.mtp[depth - 1]  # type: ignore[assignment]
    embedded_ND = module.embedding_norm(model.embedding.rows(tokens_N, model.dtype))
    joined_NX = torch.cat((embedded_ND, module.hidden_norm(hidden_ND)), dim=-1)
    x_ND = _mtp(module, Start(joined_NX, model.angles_at(step.positions_N)), step, pages)
    return last_norm(x_ND, _norm(module.norm))


def _mtp(module: MTPModule, start: Start, step: Step, pages: LayerPages) -> Tensor:
    return _block(module.block, product(start.x_ND, module.project.weight), start.angles, step, pages)


def run_draft(
    model: Transformer,
    logits_NV: Tensor,
    hidden_ND: Tensor,
    step: Step,
    pages: LayerPages,
    angles: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The most likely tokens of logits with their scores, [N, 2], and the first module's logits of what follows."""
    module: MTPModule = model.mtp[0]  # type: ignore[assignment]
    norms = _norm(module.embedding_norm), _norm(module.hidden_norm)
    n_tokens = logits_NV.shape[1]
    if not takes(model, step):
        chosen_N2 = most_likely(logits_NV)
        ahead_ND = model.mtp_step(1, hidden_ND, chosen_N2[:, 0].long(), step, pages)
        return chosen_N2, run_head(model, ahead_ND, n_tokens)
    chosen_N2, joined_NX = begin_draft(logits_NV, hidden_ND, model.embedding.weight, *norms)
    x_ND = _mtp(module, Start(joined_NX, angles), step, pages)
    if len(x_ND) <= 2 and n_tokens <= few_rows.HEAD_ROWS:
        return chosen_N2, product(x_ND, model.head.weight[:n_tokens], norm=_norm(module.norm))
    return chosen_N2, run_head(model, last_norm(x_ND, _norm(module.norm)), n_tokens)


def run_head(model: Transformer, hidden_ND: Tensor, n_tokens: int) -> Tensor:
    """Logits [N, n_tokens] of the ids below `n_tokens`."""
    head = model.head
    if head.numerics is not None:
        return head(hidden_ND)[:, :n_tokens]
    if len(hidden_ND) <= 2 and n_tokens <= few_rows.HEAD_ROWS and has_kernels(hidden_ND, wide=True):
        return product(hidden_ND, head.weight[:n_tokens].to(hidden_ND.dtype))
    return F.linear(hidden_ND, head.weight[:n_tokens].to(hidden_ND.dtype))


def _block(block: Block, x_ND: Tensor, angles: tuple[Tensor, Tensor], step: Step, pages: LayerPages) -> Tensor:
    """The stream behind the block; the one given may be written over."""
    attention, norm = block.attention, _norm(block.attention_norm)
    if isinstance(attention, LatentAttention):
        x_ND = _latent_attention(attention, x_ND, norm, angles, step, pages)
    else:
        x_ND = _attention(attention, x_ND, norm, angles, step, pages)
    norm = _norm(block.mlp_norm)
    if isinstance(block.mlp, MixtureOfExperts):
        return few_rows.mixture(x_ND, norm, _mixture(block.mlp))
    inner_NF = product(x_ND, block.mlp.gate_up.weight, norm=norm, gated=True)
    return product(inner_NF, block.mlp.down.weight, plus_NF=x_ND)


def _attention(
    attention: Attention,
    x_ND: Tensor,
    norm: Norm,
    angles: tuple[Tensor, Tensor],
    step: Step,
    pages: LayerPages,
) -> Tensor:
    qkv_NX = product(x_ND, attention.qkv.weight, norm=norm)
    heads_NHC = qkv_NX.view(len(x_ND), -1, attention.d_head)
    q_NHC = few_rows.turn_and_write(heads_NHC, *angles, step.slots_N, pages.keys, pages.values)
    assert step.rows is not None
    mixed_NHC = pages.attend_rows(step.rows, q_NHC, attention.scale)
    return product(mixed_NHC.flatten(1), attention.out.weight, plus_NF=x_ND)


def _latent_attention(
    attention: LatentAttention,
    x_ND: Tensor,
    norm: Norm,
    angles: tuple[Tensor, Tensor],
    step: Step,
    pages: LayerPages,
) -> Tensor:
    """The absorbed form."""
    sizes, up, n_heads = attention.latent, attention.kv_up.weight, attention.n_heads
    if sizes.d_q_latent:
        low_NX = product(x_ND, attention.q_down.weight, attention.kv_down.weight, norm=norm)
        q_low_NX, kv_NX = low_NX.split((sizes.d_q_latent, low_NX.shape[1] - sizes.d_q_latent), 1)
        q_NX = product(q_low_NX.contiguous(), attention.q_up.weight, norm=_norm(attention.q_norm))
        joint_NX = q_NX.new_empty(len(x_ND), q_NX.shape[1] + kv_NX.shape[1])
        joint_NX[:, : q_NX.shape[1]], joint_NX[:, q_NX.shape[1] :] = q_NX, kv_NX
    else:
        joint_NX = product(x_ND, attention.q.weight, attention.kv_down.weight, norm=norm)
    q_NHL = few_rows.absorb_and_write(
        joint_NX, _norm(attention.kv_norm), up, (n_heads, sizes.d_nope, sizes.d_value), angles, step.slots_N, pages.keys
    )
    assert step.rows is not None
    mixed_NHL = pages.attend_rows(step.rows, q_NHL, attention.scale)
    values_NHC = few_rows.values_up(mixed_NHL, up, sizes.d_nope)
    return product(values_NHC.flatten(1), attention.out.weight, plus_NF=x_ND)


def _norm(norm: RMSNorm) -> Norm:
    return Norm(norm.weight, norm.eps)


def _mixture(layer: MixtureOfExperts) -> Mixture:
    router, experts, config = layer.router, layer.experts, layer.router.config
    shared: MLP | None = layer.shared  # type: ignore[assignment]
    return Mixture(
        router.weight,
        router.bias if config.selection_bias else None,
        experts.gate_up,
        experts.down,
        None if shared is None else shared.gate_up.weight,
        None if shared is None else shared.down.weight,
        config.n_active,
        config.affinity == "sigmoid",
        config.normalise,
        config.routed_scale,
    )
