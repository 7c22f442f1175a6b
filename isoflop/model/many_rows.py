"""A step of many tokens on a CPU where only some are asked about: what `Transformer.step` computes, and less of it.

Nothing is defined here: each line is one or several of transformer.py, and tests hold both together. On a CPU such a
step is bound by its products, so those are left out that nobody reads: of the last layer, what follows attention at
tokens that nothing is asked of; of the first, queries, keys and values of a token that stands there again, which only
turn differently. What follows attention goes by in chunks of rows that caches hold; products add updates themselves.

Shapes: N tokens, M asked ones, U different ones, D model, H heads, C channels of a head.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from isoflop.model.pages import LayerPages, Step
from isoflop.model.transformer import MLP, Attention, Block, Transformer
from isoflop.numerics.linear import Linear

CHUNK_ROWS = 512
"""Rows that are computed at once behind attention (assumption: their gates stay in a cache of some MB)."""


def takes(model: Transformer) -> bool:
    """Whether steps of this model are computed here: on a CPU, with plain products in the format of the weights."""
    weight, config = model.head.weight, model.config
    plain = config.latent is None and config.experts is None and weight.dtype == model.dtype
    return (
        plain
        and weight.device.type == "cpu"
        and not any(layer.numerics is not None for layer in model.modules() if isinstance(layer, Linear))
    )


def run_step(model: Transformer, tokens_N: Tensor, step: Step, layers: Sequence[LayerPages], asked_M: Tensor) -> Tensor:
    """`model.step` at the asked places only, [M, D]; no autograd."""
    if not takes(model):
        return model.step(tokens_N, step, layers).index_select(0, asked_M)
    cos_NC, sin_NC = model.angles_at(step.positions_N)
    x_ND = model.embedding(tokens_N)
    tokens_U, place_N = tokens_N.unique(return_inverse=True)
    for at, (block, pages) in enumerate(zip(model.blocks, layers)):
        assert isinstance(block, Block) and isinstance(block.attention, Attention)
        attention = block.attention
        if at == 0:
            heads_NX = attention.qkv(block.attention_norm(model.embedding(tokens_U))).index_select(0, place_N)
        else:
            heads_NX = attention.qkv(block.attention_norm(x_ND))
        q_NHC = pages.write_heads(step, heads_NX.view(len(tokens_N), -1, attention.d_head), cos_NC, sin_NC)
        mixed_NX = pages.attend(step, q_NHC, attention.scale).flatten(1)
        if at == len(model.blocks) - 1:
            x_ND, mixed_NX = x_ND.index_select(0, asked_M), mixed_NX.index_select(0, asked_M)
        assert isinstance(block.mlp, MLP)
        for x_RD, mixed_RX in zip(x_ND.split(CHUNK_ROWS), mixed_NX.split(CHUNK_ROWS)):
            x_RD.addmm_(mixed_RX, attention.out.weight.T)
            normed_RD = block.mlp_norm(x_RD)
            gate_RF, up_RF = (F.linear(normed_RD, weight_FD) for weight_FD in block.mlp.gate_up.weight.chunk(2))
            x_RD.addmm_(F.silu(gate_RF, inplace=True).mul_(up_RF), block.mlp.down.weight.T)
    return model.norm(x_ND)
