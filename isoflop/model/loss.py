"""Cross-entropy of the output head without a full table of float32 logits.

Tokens go through the head in chunks. The forward pass already computes the gradients, so a chunk's logits live once:
bf16 out of the product, float32 only inside the softmax of that chunk, overwritten by their gradient
(Source: the in-place cross-entropy of arXiv 2401.02954, section 2.4).

Shapes: R rows (tokens), D d_model, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.joined import loss_and_gradient, scaled_rows
from isoflop.numerics.linear import Held, Linear, weight_gradient


def chunked_cross_entropy(
    hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, *, chunk_tokens: int, held: Held | None = None
) -> Tensor:
    """Sum over rows of -log softmax(hidden @ weight^T)[target] in nats; targets below 0 are ignored.

    `held` is what a step keeps of the weight, if anything.
    """
    if torch.is_grad_enabled() and (hidden_RD.requires_grad or weight_VD.requires_grad):
        return _ChunkedCrossEntropy.apply(hidden_RD, weight_VD, targets_R, chunk_tokens, held)
    weight, chunk_tokens = weight_VD.to(hidden_RD.dtype), min(chunk_tokens, 8192)  # logits are widened here
    total = torch.zeros((), device=hidden_RD.device)
    for start in range(0, len(hidden_RD), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        logits = hidden_RD[rows] @ weight.T
        total += F.cross_entropy(logits.float(), targets_R[rows], ignore_index=-1, reduction="sum")
    return total


def layer_cross_entropy(
    head: Linear, hidden_RD: Tensor, targets_R: Tensor, *, chunk_tokens: int, depth: int = 0
) -> Tensor:
    """The same through a head with a number format of its own, whose backward products autograd calls.

    `depth` tells the multi-token predictions apart that share the head, so that each chunk draws noise of its own.
    """
    total = torch.zeros((), device=hidden_RD.device)
    for chunk, start in enumerate(range(0, len(hidden_RD), chunk_tokens)):
        rows = slice(start, start + chunk_tokens)
        logits_RV = head(hidden_RD[rows], part=depth << 20 | chunk).float()
        total = total + F.cross_entropy(logits_RV, targets_R[rows], ignore_index=-1, reduction="sum")
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, chunk_tokens: int, held: Held | None
    ) -> Tensor:
        weight = weight_VD.to(hidden_RD.dtype) if held is None else held.weight
        ctx.weight, ctx.adds = weight_VD, held is not None and held.adds
        if len(hidden_RD) <= chunk_tokens and hidden_RD.is_cuda and hidden_RD.dtype == torch.bfloat16:
            # The weight's gradient waits for backward, which knows its factor: no pass of its own over the weight.
            total, d_logits_RV, factors_R = loss_and_gradient(hidden_RD @ weight.T, targets_R)
            ctx.late = True
            ctx.save_for_backward(d_logits_RV @ weight, d_logits_RV, hidden_RD, factors_R)
            return total
        ctx.late = False
        d_hidden_RD, d_weight_VD = torch.empty_like(hidden_RD), None
        total = torch.zeros((), dtype=torch.float32, device=hidden_RD.device)
        for start in range(0, len(hidden_RD), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk_RD = hidden_RD[rows]
            loss, d_logits_RV, factors_R = loss_and_gradient(chunk_RD @ weight.T, targets_R[rows])
            total += loss
            torch.mm(d_logits_RV, weight, out=d_hidden_RD[rows])
            if factors_R is not None:
                d_hidden_RD[rows], chunk_RD = scaled_rows(d_hidden_RD[rows], chunk_RD, factors_R, torch.ones_like(loss))
            if ctx.needs_input_grad[1]:
                d_weight_VD = _added(d_weight_VD, d_logits_RV.T, chunk_RD, weight_VD)
        if d_weight_VD is None and ctx.needs_input_grad[1]:
            d_weight_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(d_hidden_RD, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx, d_total: Tensor):  # type: ignore[override]
        if ctx.late:
            d_hidden_RD, d_logits_RV, hidden_RD, factors_R = ctx.saved_tensors
            d_hidden_RD, hidden_RD = scaled_rows(d_hidden_RD, hidden_RD, factors_R, d_total)
            d_weight_VD = None
            if ctx.needs_input_grad[1]:
                d_weight_VD = weight_gradient(ctx.weight, d_logits_RV, hidden_RD, ctx.adds)
            return d_hidden_RD, d_weight_VD, None, None, None
        d_hidden_RD, d_weight_VD = ctx.saved_tensors
        # In the dtype of the states, the factor not rounded to it.
        d_hidden_RD = torch.mul(d_hidden_RD, d_total.view(1), out=torch.empty_like(d_hidden_RD))
        if d_weight_VD is None:
            return d_hidden_RD, None, None, None, None
        if ctx.adds and ctx.weight.grad is not None:
            ctx.weight.grad.addcmul_(d_weight_VD, d_total)  # one pass: scaled and added
            return d_hidden_RD, None, None, None, None
        return d_hidden_RD, d_weight_VD * d_total, None, None, None


def _added(sum_VD: Tensor | None, a_VR: Tensor, b_RD: Tensor, weight_VD: Tensor) -> Tensor:
    """sum + a @ b, in the dtype of the weight: chunks are summed in float32, by the product itself where it can."""
    if a_VR.is_cuda and a_VR.dtype == torch.bfloat16:
        if sum_VD is None:
            return torch.mm(a_VR, b_RD, out_dtype=torch.float32)  # type: ignore[call-overload]
        return torch.addmm(sum_VD, a_VR, b_RD, out_dtype=torch.float32, out=sum_VD)  # type: ignore[call-overload]
    sum_VD = torch.zeros_like(weight_VD) if sum_VD is None else sum_VD
    sum_VD += a_VR @ b_RD
    return sum_VD
