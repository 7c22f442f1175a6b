"""Queries, keys and values out of their products: heads split and turned by position, in one pass each way.

Plain forms and kernels as in `joined.py`.

Shapes: B batch, T tokens, H heads that turn, G key/value heads, C channels of a head.
"""

import torch
from torch import Tensor

from isoflop.numerics.launch import block_kernels, has_kernels, launch, power_of_two, warps_of


def rotate(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn channel i together with channel i + C/2 by the angle of its position."""
    wide = torch.promote_types(x_BTHC.dtype, torch.float32)  # bf16 angles would lose far positions
    first, second = x_BTHC.to(wide).chunk(2, dim=-1)
    cos_T1C, sin_T1C = cos_TC[:, None], sin_TC[:, None]
    turned = torch.cat((first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C), dim=-1)
    return turned.to(x_BTHC.dtype)


def rotate_in_step(x_NHC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
    """`rotate` in half the passes over memory, rounded elsewhere: for models that are only asked."""
    if x_NHC.dtype != cos_NC.dtype:
        return rotate(x_NHC[None], cos_NC, sin_NC)[0]
    half, sin_N1C = cos_NC.shape[-1], sin_NC[:, None]
    turned_NHC = x_NHC * torch.cat((cos_NC, cos_NC), -1)[:, None]
    turned_NHC[..., :half].addcmul_(x_NHC[..., half:], sin_N1C, value=-1)
    turned_NHC[..., half:].addcmul_(x_NHC[..., :half], sin_N1C)
    return turned_NHC


def turned_heads(
    heads_BTHC: Tensor, n_heads: int, n_kv_heads: int, cos_TC: Tensor, sin_TC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, T, C], keys and values [B, G, T, C] of a product [B, T, H + 2 G, C]; the first two turned."""
    if has_kernels(heads_BTHC):
        return _TurnedHeads.apply(heads_BTHC, n_heads, n_kv_heads, cos_TC, sin_TC)  # type: ignore[return-value]
    # split, not slices: the backward of a split is one concatenation, that of a slice fills a zero tensor
    qk_BTHC, v_BTGC = heads_BTHC.split((n_heads + n_kv_heads, n_kv_heads), dim=2)
    turned_BHTC = rotate(qk_BTHC, cos_TC, sin_TC).transpose(1, 2)
    q_BHTC, k_BGTC = turned_BHTC.split((n_heads, n_kv_heads), dim=1)
    return q_BHTC, k_BGTC, v_BTGC.transpose(1, 2)


class _TurnedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, heads_BTHC: Tensor, n_heads: int, n_kv_heads: int, cos_TC: Tensor, sin_TC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads_BTHC = heads_BTHC.contiguous()
        batch, n_tokens, n_all, channels = heads_BTHC.shape
        turning, half = n_heads + n_kv_heads, channels // 2
        out_BTHC = heads_BTHC.new_empty(batch, n_tokens, turning, channels)
        launch(
            block_kernels().turn_heads, (batch * n_tokens,),
            heads_BTHC, cos_TC.contiguous(), sin_TC.contiguous(), out_BTHC, n_tokens, turning, n_all, half,
            heads=power_of_two(turning), channels=power_of_two(half),
            num_warps=warps_of(power_of_two(turning) * power_of_two(half)),
        )  # fmt: skip
        ctx.save_for_backward(cos_TC, sin_TC)
        ctx.sizes = (batch, n_tokens, n_heads, n_kv_heads, channels)
        turned_BHTC = out_BTHC.transpose(1, 2)
        return turned_BHTC[:, :n_heads], turned_BHTC[:, n_heads:], heads_BTHC[:, :, turning:].transpose(1, 2)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # type: ignore[override]
        cos_TC, sin_TC = ctx.saved_tensors
        batch, n_tokens, n_heads, n_kv_heads, channels = ctx.sizes
        d_q, d_k, d_v = (d if d.stride(-1) == 1 else d.contiguous() for d in gradients)
        d_heads_BTHC = d_q.new_empty(batch, n_tokens, n_heads + 2 * n_kv_heads, channels)
        strides = [stride for d in (d_q, d_k, d_v) for stride in d.stride()[:3]]
        launch(
            block_kernels().turn_back, (batch * n_tokens,),
            d_q, d_k, d_v, cos_TC.contiguous(), sin_TC.contiguous(), d_heads_BTHC,
            n_tokens, n_heads, n_kv_heads, channels // 2, *strides,
            q_heads=power_of_two(n_heads), kv_heads=power_of_two(n_kv_heads),
            channels=power_of_two(channels // 2),
            num_warps=warps_of(power_of_two(n_heads + n_kv_heads) * power_of_two(channels // 2)),
        )  # fmt: skip
        return d_heads_BTHC, None, None, None, None


def turned_latent_heads(
    q_BTHC: Tensor, kv_BTHC: Tensor, k_rope_BTC: Tensor, d_nope: int, cos_TC: Tensor, sin_TC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, T, ...] of latent attention, whose last channels are turned by position.

    q [B, T, H, nope + rope], kv [B, T, H, nope + value]; the rotary key [B, T, rope] is shared by all heads.
    """
    if has_kernels(q_BTHC):
        return _TurnedLatentHeads.apply(q_BTHC, kv_BTHC, k_rope_BTC, d_nope, cos_TC, sin_TC)  # type: ignore[return-value]
    q_nope_BTHC, q_rope_BTHC = q_BTHC.split((d_nope, q_BTHC.shape[-1] - d_nope), -1)
    k_nope_BTHC, v_BTHC = kv_BTHC.split((d_nope, kv_BTHC.shape[-1] - d_nope), -1)
    k_rope_BT1C = rotate(k_rope_BTC[:, :, None], cos_TC, sin_TC)
    q_BTHC = torch.cat((q_nope_BTHC, rotate(q_rope_BTHC, cos_TC, sin_TC)), -1)
    k_BTHC = torch.cat((k_nope_BTHC, k_rope_BT1C.expand(-1, -1, q_BTHC.shape[2], -1)), -1)
    return q_BTHC.transpose(1, 2), k_BTHC.transpose(1, 2), v_BTHC.transpose(1, 2)


class _TurnedLatentHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q: Tensor, kv: Tensor, k_rope: Tensor, d_nope: int, cos_TC: Tensor, sin_TC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, kv = q.contiguous(), kv.contiguous()
        k_rope = (
            k_rope
            if k_rope.stride(2) == 1 and k_rope.stride(0) == len(k_rope[0]) * k_rope.stride(1)
            else (k_rope.contiguous())
        )
        batch, n_tokens, n_heads, width = q.shape
        half, value = (width - d_nope) // 2, kv.shape[-1] - d_nope
        q_out, k_out = torch.empty_like(q), torch.empty_like(q)
        launch(
            block_kernels().turn_latent_heads, (batch * n_tokens,),
            q, kv, k_rope, cos_TC.contiguous(), sin_TC.contiguous(), q_out, k_out,
            n_tokens, n_heads, d_nope, half, value, k_rope.stride(1),
            heads=power_of_two(n_heads), nopes=power_of_two(d_nope), channels=power_of_two(half), num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(cos_TC, sin_TC)
        ctx.sizes = (batch, n_tokens, n_heads, d_nope, half, value)
        return q_out.transpose(1, 2), k_out.transpose(1, 2), kv[..., d_nope:].transpose(1, 2)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # type: ignore[override]
        cos_TC, sin_TC = ctx.saved_tensors
        batch, n_tokens, n_heads, d_nope, half, value = ctx.sizes
        d_q, d_k, d_v = (d if d.stride(-1) == 1 else d.contiguous() for d in gradients)
        d_q_out = d_q.new_empty(batch, n_tokens, n_heads, d_nope + 2 * half)
        d_kv = d_q.new_empty(batch, n_tokens, n_heads, d_nope + value)
        d_k_rope = d_q.new_empty(batch, n_tokens, 2 * half)
        strides = [stride for d in (d_q, d_k, d_v) for stride in d.stride()[:3]]
        launch(
            block_kernels().turn_latent_back, (batch * n_tokens,),
            d_q, d_k, d_v, cos_TC.contiguous(), sin_TC.contiguous(), d_q_out, d_kv, d_k_rope,
            n_tokens, n_heads, d_nope, half, value, *strides,
            heads=power_of_two(n_heads), nopes=power_of_two(d_nope), values=power_of_two(value),
            channels=power_of_two(half), num_warps=4,
        )  # fmt: skip
        return d_q_out, d_kv, d_k_rope, None, None, None
