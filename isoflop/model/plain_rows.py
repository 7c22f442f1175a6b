"""A decoding step of a dense model on a CPU in float32: what `Transformer.step` computes, in fewer calls.

Weights of a step go through the caches and take everything else with them, so each small operator that comes between
two products is slow, whatever it computes. A norm is three here instead of nine, a rotation three instead of eight.

Shapes: N tokens, D model, H heads, G key/value heads, C channels of a head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model.pages import LayerPages, Step
from isoflop.model.transformer import MLP, Attention, Block, RMSNorm, Transformer


def takes(model: Transformer, step: Step) -> bool:
    """Whether this step is computed here: rows only, none by itself, attention and MLPs without latents and experts."""
    config = model.config
    if step.rows is None or step.chunks or step.rows.one_by_one or torch.is_grad_enabled():
        return False
    plain = config.latent is None and config.experts is None
    return plain and model.dtype == torch.float32 and model.embedding.weight.device.type == "cpu"


def run_step(model: Transformer, tokens_N: Tensor, step: Step, layers: Sequence[LayerPages]) -> Tensor:
    n_tokens, d_model = len(tokens_N), model.config.d_model
    # one more column, so that the length of a row is the root of its squares and of D eps
    stream_NX = torch.full((n_tokens, d_model + 1), math.sqrt(d_model * model.config.norm_eps))
    x_ND = stream_NX[:, :d_model]
    x_ND.copy_(model.embedding.weight.index_select(0, tokens_N))
    cos_NC, sin_NC = model.angles_at(step.positions_N)
    angles = torch.cat((cos_NC, cos_NC), 1)[:, None], torch.cat((-sin_NC, sin_NC), 1)[:, None]
    zero = stream_NX.new_zeros(1)
    for block, pages in zip(model.blocks, layers):
        _block(block, stream_NX, x_ND, zero, angles, step, pages)  # type: ignore[arg-type]
    return _normed(model.norm, stream_NX, x_ND, zero)


def _block(
    block: Block,
    stream_NX: Tensor,
    x_ND: Tensor,
    zero: Tensor,
    angles: tuple[Tensor, Tensor],
    step: Step,
    pages: LayerPages,
) -> None:
    """Adds to x in place."""
    attention: Attention = block.attention  # type: ignore[assignment]
    mlp: MLP = block.mlp  # type: ignore[assignment]
    n_heads, n_turned = attention.n_heads, attention.n_heads + attention.n_kv_heads
    heads_NHC = attention.qkv(_normed(block.attention_norm, stream_NX, x_ND, zero))
    heads_NHC = heads_NHC.view(len(x_ND), -1, attention.d_head)
    qk_NHC = heads_NHC[:, :n_turned]  # slices and views: split and unflatten are written in Python
    swapped_NHC = qk_NHC.roll(attention.d_head // 2, 2)
    turned_NHC = (qk_NHC * angles[0]).addcmul_(swapped_NHC, angles[1])
    q_NHC = turned_NHC[:, :n_heads]
    pages.write(step, turned_NHC[:, n_heads:], heads_NHC[:, n_turned:])
    assert step.rows is not None
    x_ND += attention.out(pages.attend_rows(step.rows, q_NHC, attention.scale).flatten(1))
    gate_NF, up_NF = mlp.gate_up(_normed(block.mlp_norm, stream_NX, x_ND, zero)).chunk(2, 1)
    x_ND += mlp.down(F.silu(gate_NF).mul_(up_NF))


def _normed(norm: RMSNorm, stream_NX: Tensor, x_ND: Tensor, zero: Tensor) -> Tensor:
    """x / rms(x) * weight: x times the root of D over the length of its row."""
    length_N1 = torch.linalg.vector_norm(stream_NX, dim=1, keepdim=True)
    return torch.addcdiv(zero, x_ND, length_N1, value=math.sqrt(x_ND.shape[1])).mul_(norm.weight)
