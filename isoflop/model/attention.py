"""One attention call, its kernel chosen by device, and the caches that decoding writes into.

Shapes: B batch, T new tokens, S tokens attended to, H query heads, G key/value heads, C channels of a head, L channels
of the latent.
"""

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_CUDA_ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fastest_kernels(device: torch.device) -> contextlib.AbstractContextManager:
    """Order in which attention kernels are tried on this device, for as long as the context lasts.

    cuDNN has the fastest causal kernel on Hopper for heads of 64 and 128 channels (docs/log.md).
    """
    return sdpa_kernel(_CUDA_ORDER, set_priority=True) if device.type == "cuda" else contextlib.nullcontext()


class Cache:
    """Keys and values of one layer for decoding: [B, G, capacity, C] buffers and the number of tokens held."""

    def __init__(self, batch: int, n_kv_heads: int, capacity: int, d_head: int, *, dtype: torch.dtype, device):
        self.keys = torch.zeros(batch, n_kv_heads, capacity, d_head, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, k_BGTC: Tensor, v_BGTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new tokens; return views of everything held so far, [B, G, S, C] each."""
        end = self.length + k_BGTC.shape[2]
        assert end <= self.keys.shape[2], f"cache holds {self.keys.shape[2]} tokens, {end} needed"
        self.keys[:, :, self.length : end] = k_BGTC
        self.values[:, :, self.length : end] = v_BGTC
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class LatentCache:
    """What latent attention keeps of one layer: [B, 1, capacity, L + rotary channels], and the number of tokens held.

    The latent is held after its norm and the rotary key after its turn, so nothing is computed twice.
    """

    def __init__(self, batch: int, capacity: int, d_latent: int, d_rope: int, *, dtype: torch.dtype, device):
        self.joint = torch.zeros(batch, 1, capacity, d_latent + d_rope, dtype=dtype, device=device)
        self.length = 0

    def append(self, latent_BTL: Tensor, k_rope_BTC: Tensor) -> Tensor:
        """Write T new tokens; return a view of everything held so far, [B, 1, S, L + C]."""
        end = self.length + latent_BTL.shape[1]
        assert end <= self.joint.shape[2], f"cache holds {self.joint.shape[2]} tokens, {end} needed"
        self.joint[:, 0, self.length : end] = torch.cat((latent_BTL, k_rope_BTC), dim=-1)
        self.length = end
        return self.joint[:, :, :end]


def document_mask(documents_BT: Tensor) -> Tensor:
    """Where a token may look: its own document, up to itself; bool [B, 1, T, T] from document numbers [B, T]."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril()[:, None]


def attend(
    q_BHTC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor, scale: float | None = None, mask_B1TT: Tensor | None = None
) -> Tensor:
    """Causal softmax attention where the last query sees all S keys; returns [B, H, T, channels of a value].

    Grouped-query attention repeats each key/value head over H / G query heads. `scale` defaults to 1 / sqrt(C);
    a mask (see `document_mask`) takes the place of the causal one.
    """
    n_new, n_seen = q_BHTC.shape[2], k_BGSC.shape[2]
    grouped = q_BHTC.shape[1] != k_BGSC.shape[1]
    if mask_B1TT is not None:
        return F.scaled_dot_product_attention(
            q_BHTC, k_BGSC, v_BGSC, attn_mask=mask_B1TT, scale=scale, enable_gqa=grouped
        )
    if n_new == n_seen:
        return F.scaled_dot_product_attention(q_BHTC, k_BGSC, v_BGSC, is_causal=True, scale=scale, enable_gqa=grouped)
    mask_TS = torch.ones(n_new, n_seen, dtype=torch.bool, device=q_BHTC.device).tril(n_seen - n_new)
    return F.scaled_dot_product_attention(q_BHTC, k_BGSC, v_BGSC, attn_mask=mask_TS, scale=scale, enable_gqa=grouped)
