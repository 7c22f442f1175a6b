"""One attention call, its kernel chosen by device. What decoding keeps of earlier tokens is in pages.py.

Shapes: B batch, T new tokens, S tokens attended to, H query heads, G key/value heads, C channels of a head.
"""

import contextlib
import functools
import inspect
from typing import Any, NamedTuple

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


class Spans(NamedTuple):
    """The same as a document mask for kernels of variable length: where each document begins, all rows in one line."""

    starts: Tensor
    """int32; the end of the last document last, repeated so that the length is a multiple of SPANS_MULTIPLE."""
    longest: int
    """No document is longer."""


SPANS_MULTIPLE = 256
"""Compiled code is made anew for another length (assumption: rows hold some dozens of documents)."""


def document_spans(documents_BT: Tensor) -> Spans:
    """Spans of documents, which are consecutive tokens with one number; the same number in another row is another."""
    n_rows, n_tokens = documents_BT.shape
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts = begins_BT.flatten().nonzero()[:, 0]
    missing = -(len(starts) + 1) % SPANS_MULTIPLE + 1
    ends = starts.new_full((missing,), n_rows * n_tokens)
    return Spans(torch.cat((starts, ends)).int(), n_tokens)


def takes_spans(device: torch.device, dtype: torch.dtype, d_head: int) -> bool:
    """Whether this device has a kernel of variable length for such heads, faster than a mask."""
    narrow = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and narrow and d_head % 8 == 0 and d_head <= 256 and _varlen() is not None


@functools.cache
def _varlen() -> tuple[Any, frozenset[str]] | None:
    """PyTorch's kernel and the names of its parameters, which differ between releases; None before 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def _attend_spans(q_BHTC: Tensor, k_BGTC: Tensor, v_BGTC: Tensor, scale: float | None, spans: Spans) -> Tensor:
    found = _varlen()
    assert found is not None
    kernel, names = found
    batch, n_heads, n_tokens, d_head = q_BHTC.shape
    if k_BGTC.shape[1] != n_heads:  # not every release groups queries itself
        k_BGTC, v_BGTC = (x.repeat_interleave(n_heads // x.shape[1], 1) for x in (k_BGTC, v_BGTC))
    if scale is not None and "scale" not in names:
        q_BHTC = q_BHTC * (scale * d_head**0.5)
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    if scale is not None and "scale" in names:
        options["scale"] = scale
    q_RHC, k_RHC, v_RHC = (x.transpose(1, 2).reshape(batch * n_tokens, n_heads, -1) for x in (q_BHTC, k_BGTC, v_BGTC))
    mixed_RHC = kernel(q_RHC, k_RHC, v_RHC, spans.starts, spans.starts, spans.longest, spans.longest, **options)
    return mixed_RHC.view(batch, n_tokens, n_heads, -1).transpose(1, 2)


def attend(
    q_BHTC: Tensor,
    k_BGSC: Tensor,
    v_BGSC: Tensor,
    scale: float | None = None,
    mask_B1TT: Tensor | Spans | None = None,
) -> Tensor:
    """Causal softmax attention where the last query sees all S keys; returns [B, H, T, channels of a value].

    Grouped-query attention repeats each key/value head over H / G query heads. `scale` defaults to 1 / sqrt(C);
    a mask (see `document_mask`) or spans of documents take the place of the causal one.
    """
    if isinstance(mask_B1TT, Spans):
        return _attend_spans(q_BHTC, k_BGSC, v_BGSC, scale, mask_B1TT)
    n_new, n_seen = q_BHTC.shape[2], k_BGSC.shape[2]
    causal = mask_B1TT is None and n_new == n_seen
    if mask_B1TT is None and not causal:
        mask_B1TT = causal_lower_right(n_new, n_seen)  # a rule, not a tensor, where the device has a kernel for it
    grouped = q_BHTC.shape[1] != k_BGSC.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTC, k_BGSC, v_BGSC, attn_mask=mask_B1TT, is_causal=causal, scale=scale, enable_gqa=grouped
    )
