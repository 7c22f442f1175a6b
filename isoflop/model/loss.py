"""Cross-entropy of the output head without a full table of float32 logits.

Tokens go through the head in chunks. The forward pass already computes the gradients, so a chunk's logits live once:
bf16 out of the product, float32 only inside the softmax of that chunk, overwritten by their gradient
(Source: the in-place cross-entropy of arXiv 2401.02954, section 2.4).

Shapes: R rows (tokens), D d_model, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.linear import Linear


def chunked_cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, *, chunk_tokens: int) -> Tensor:
    """Sum over rows of -log softmax(hidden @ weight^T)[target] in nats; targets below 0 are ignored."""
    if torch.is_grad_enabled() and (hidden_RD.requires_grad or weight_VD.requires_grad):
        return _ChunkedCrossEntropy.apply(hidden_RD, weight_VD, targets_R, chunk_tokens)
    weight = weight_VD.to(hidden_RD.dtype)
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


def _loss_and_gradient(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """Loss sum (float32) and d loss / d logits in the dtype of the logits."""
    wide_RV = logits_RV.float()
    counted_R1 = (targets_R >= 0)[:, None]
    target_R1 = targets_R.clamp(min=0)[:, None]
    log_z_R1 = torch.logsumexp(wide_RV, dim=-1, keepdim=True)
    loss = ((log_z_R1 - wide_RV.gather(1, target_R1)) * counted_R1).sum()
    columns_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    gradient_RV = (torch.exp(wide_RV - log_z_R1) - (columns_V == target_R1)) * counted_R1
    return loss, gradient_RV.to(logits_RV.dtype)


_compiled_loss_and_gradient = None


def _fused(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """One pass over the logits on a GPU; eager in place elsewhere."""
    global _compiled_loss_and_gradient  # compiled at most once a process, on first use
    if logits_RV.is_cuda and logits_RV.shape[1] >= 16384:  # below that the compile time is not earned back
        if _compiled_loss_and_gradient is None:
            _compiled_loss_and_gradient = torch.compile(_loss_and_gradient, dynamic=False)
        return _compiled_loss_and_gradient(logits_RV, targets_R)
    # In float32 the logits themselves become their gradient: no second table.
    wide_RV = logits_RV.float()
    rows_R = torch.arange(len(targets_R), device=targets_R.device)
    target_R = targets_R.clamp(min=0)
    counted_R = (targets_R >= 0).to(wide_RV.dtype)
    log_z_R1 = torch.logsumexp(wide_RV, dim=-1, keepdim=True)
    loss = ((log_z_R1[:, 0] - wide_RV[rows_R, target_R]) * counted_R).sum()
    gradient_RV = wide_RV.sub_(log_z_R1).exp_()
    gradient_RV[rows_R, target_R] -= 1.0
    gradient_RV.mul_(counted_R[:, None])
    return loss, gradient_RV.to(logits_RV.dtype)


def _product(a_VR: Tensor, b_RD: Tensor) -> Tensor:
    """a @ b in float32 where the device can write its float32 accumulator out, else in the dtype of the operands."""
    if a_VR.is_cuda and a_VR.dtype == torch.bfloat16:
        return torch.mm(a_VR, b_RD, out_dtype=torch.float32)
    return a_VR @ b_RD


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, chunk_tokens: int) -> Tensor:
        weight = weight_VD.to(hidden_RD.dtype)
        d_hidden_RD = torch.empty_like(hidden_RD)
        d_weight_VD = torch.zeros_like(weight_VD)  # float32: chunks are summed here
        total = torch.zeros((), dtype=torch.float32, device=hidden_RD.device)
        for start in range(0, len(hidden_RD), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk_RD = hidden_RD[rows]
            loss, d_logits_RV = _fused(chunk_RD @ weight.T, targets_R[rows])
            total += loss
            torch.mm(d_logits_RV, weight, out=d_hidden_RD[rows])
            d_weight_VD += _product(d_logits_RV.T, chunk_RD)
        ctx.save_for_backward(d_hidden_RD, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx, d_total: Tensor):  # type: ignore[override]
        d_hidden_RD, d_weight_VD = ctx.saved_tensors
        return d_hidden_RD * d_total.to(d_hidden_RD.dtype), d_weight_VD * d_total, None, None
