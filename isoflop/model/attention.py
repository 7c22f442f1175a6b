"""One attention call, its kernel chosen by device. What decoding keeps of earlier tokens is in pages.py.

Shapes: B batch, T new tokens, S tokens attended to, H query heads, G key/value heads, C channels of a head.
"""

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

_CUDA_ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fastest_kernels(device: torch.device) -> contextlib.AbstractContextManager:
    """Order in which attention kernels are tried on this device, for as long as the context lasts.

    cuDNN has the fastest causal kernel on Hopper for heads of 64 and 128 channels (docs/log.md).
    """
    return sdpa_kernel(_CUDA_ORDER, set_priority=True) if device.type == "cuda" else contextlib.nullcontext()


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
    lower_right = causal_lower_right(n_new, n_seen)  # a rule, not a tensor, where the device has a kernel for it
    return F.scaled_dot_product_attention(
        q_BHTC, k_BGSC, v_BGSC, attn_mask=lower_right, scale=scale, enable_gqa=grouped
    )
