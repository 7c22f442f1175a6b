"""Tokens to their experts and back: the permutation, and one product with every expert's weight. No parameters here.

Each token is copied once for each of its experts and the copies are sorted by expert, so that an expert's rows lie
together. No token is ever dropped, so all shapes are known before routing is: the number of rows of an expert stays on
the device, and a step can be captured in a CUDA graph.

Shapes: T tokens (the batch flattened), A active experts of a token, R = T A rows, E experts, D in, F out.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.expert_gradients import expert_gradient, takes_rows
from isoflop.numerics.joined import add_to, spread_rows, summed_rows
from isoflop.numerics.linear import Held, MatmulBackend


class Arrangement(NamedTuple):
    """Where every copy of a token lies once the copies are sorted by expert."""

    token_R: Tensor
    """Token of a row."""
    slot_R: Tensor
    """Index into the flattened [T, A] choices of a row."""
    row_TA: Tensor
    """Row of a choice: the inverse of `slot_R`."""
    ends_E: Tensor
    """Row after the last one of each expert, int32."""

    def load_E(self) -> Tensor:
        """Rows of each expert."""
        return torch.diff(self.ends_E, prepend=self.ends_E.new_zeros(1))


def arrange(chosen_TA: Tensor, n_experts: int) -> Arrangement:
    """Sort the chosen experts; rows of one expert keep the order of their tokens."""
    expert_R, slot_R = chosen_TA.flatten().int().sort(stable=True)  # 32 bits: half the passes of a radix sort
    rows_R = torch.arange(len(slot_R), device=slot_R.device)
    row_TA = torch.empty_like(slot_R).scatter_(0, slot_R, rows_R).view_as(chosen_TA)
    # searchsorted and not bincount: bincount asks the device for its longest answer
    experts_E = torch.arange(n_experts, dtype=torch.int32, device=expert_R.device)
    ends_E = torch.searchsorted(expert_R, experts_E, right=True, out_int32=True)
    return Arrangement(slot_R // chosen_TA.shape[1], slot_R, row_TA, ends_E)


def permute(x_TD: Tensor, at: Arrangement) -> Tensor:
    """Copy every token to the rows of its experts, [R, D]."""
    return _Permute.apply(x_TD, at.token_R, at.row_TA)  # type: ignore[return-value]


def permute_choices(x_TA: Tensor, at: Arrangement) -> Tensor:
    """One value per choice, in the order of the rows, [R, 1]."""
    return _Permute.apply(x_TA.reshape(-1, 1), at.slot_R, at.row_TA.view(-1, 1))  # type: ignore[return-value]


def unpermute(rows_RD: Tensor, at: Arrangement, plus_TD: Tensor | None = None) -> Tensor:
    """Add up the rows of every token and its row of `plus`, [T, D]."""
    return _Unpermute.apply(rows_RD, at.token_R, at.row_TA, plus_TD)  # type: ignore[return-value]


class _Permute(torch.autograd.Function):
    """A gather whose backward is a gather too: indexing's own backward adds atomically, in changing order."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, token_R: Tensor, row_TA: Tensor) -> Tensor:
        ctx.save_for_backward(token_R, row_TA)
        return spread_rows(x_TD, token_R, row_TA)

    @staticmethod
    def backward(ctx, d_rows_RD: Tensor):  # type: ignore[override]
        _, row_TA = ctx.saved_tensors
        return summed_rows(d_rows_RD, row_TA), None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_RD: Tensor, token_R: Tensor, row_TA: Tensor, plus_TD: Tensor | None) -> Tensor:
        ctx.save_for_backward(token_R, row_TA)
        return summed_rows(rows_RD, row_TA, plus_TD)

    @staticmethod
    def backward(ctx, d_y_TD: Tensor):  # type: ignore[override]
        token_R, row_TA = ctx.saved_tensors
        return spread_rows(d_y_TD, token_R, row_TA), None, None, d_y_TD if ctx.needs_input_grad[3] else None


def runs_grouped(device: torch.device, dtype: torch.dtype, *widths: int) -> bool:
    """Whether `grouped_product` is one kernel that never asks the device for row counts (and so can be captured).

    The kernel takes bf16 on Hopper and later, with rows of whole 16 bytes.
    """
    if device.type != "cuda" or dtype != torch.bfloat16 or any(width % 8 for width in widths):
        return False
    return torch.cuda.get_device_properties(device).major >= 9  # a constant to torch.compile


def grouped_product(
    x_RD: Tensor,
    weight_EFD: Tensor,
    ends_E: Tensor,
    numerics: MatmulBackend | None = None,
    *,
    first_part: int = 0,
    held: Held | None = None,
) -> Tensor:
    """x W_e^T for the rows of each expert e, [R, F]; the float32 weights are cast to the dtype of x at the call.

    With a number format each expert is one call of it, numbered from `first_part`; `held` is what a step keeps of the
    weights, if anything.
    """
    if numerics is not None:
        return looped_product(x_RD, weight_EFD, ends_E, numerics, first_part)
    if held is not None and runs_grouped(x_RD.device, x_RD.dtype, *weight_EFD.shape[1:]):
        return _HeldGroupedProduct.apply(x_RD, weight_EFD, ends_E, *held)  # type: ignore[return-value]
    weight_EFD = weight_EFD.to(x_RD.dtype)
    if runs_grouped(x_RD.device, x_RD.dtype, *weight_EFD.shape[1:]):
        return _GroupedProduct.apply(x_RD, weight_EFD, ends_E)  # type: ignore[return-value]
    return looped_product(x_RD, weight_EFD, ends_E)


def looped_product(
    x_RD: Tensor, weight_EFD: Tensor, ends_E: Tensor, numerics: MatmulBackend | None = None, first_part: int = 0
) -> Tensor:
    """The same, one product per expert: for every device and format, at the price of asking for the row counts."""
    if ends_E.is_meta:  # nobody knows the counts there, and no shape depends on them
        return x_RD @ weight_EFD[0].T
    counts = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()
    parts = list(enumerate(zip(x_RD.split(counts), weight_EFD.unbind(0), strict=True), start=first_part))
    if not torch.is_grad_enabled() and len(x_RD):  # decoding has many experts without rows; training wants their zeros
        parts = [part for part, count in zip(parts, counts, strict=True) if count]
    if numerics is None:
        return torch.cat([part_RD @ weight_FD.T for _, (part_RD, weight_FD) in parts])
    return torch.cat([numerics(part_RD, weight_FD, part) for part, (part_RD, weight_FD) in parts])


class _GroupedProduct(torch.autograd.Function):
    """Its own backward, because the kernel wants whole rows and the gradient may come as a broadcast view."""

    @staticmethod
    def forward(ctx, x_RD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EFD, ends_E)
        return F.grouped_mm(x_RD, weight_EFD.transpose(1, 2), offs=ends_E)

    @staticmethod
    def backward(ctx, d_y_RF: Tensor):  # type: ignore[override]
        x_RD, weight_EFD, ends_E = ctx.saved_tensors
        d_y_RF = d_y_RF.contiguous()
        d_x_RD = F.grouped_mm(d_y_RF, weight_EFD, offs=ends_E)
        return d_x_RD, _weight_gradient(d_y_RF, x_RD, ends_E), None


class _HeldGroupedProduct(torch.autograd.Function):
    """The same with weights cast before; their gradient, in float32, is added to `grad` where `adds`."""

    @staticmethod
    def forward(ctx, x_RD: Tensor, weight_EFD: Tensor, ends_E: Tensor, held_EFD: Tensor, adds: bool) -> Tensor:
        ctx.save_for_backward(x_RD, held_EFD, ends_E)
        ctx.weight, ctx.adds = weight_EFD, adds
        return F.grouped_mm(x_RD, held_EFD.transpose(1, 2), offs=ends_E)

    @staticmethod
    def backward(ctx, d_y_RF: Tensor):  # type: ignore[override]
        x_RD, held_EFD, ends_E = ctx.saved_tensors
        d_y_RF = d_y_RF.contiguous()
        d_x_RD = F.grouped_mm(d_y_RF, held_EFD, offs=ends_E)
        if takes_rows(x_RD, ctx.weight):
            return d_x_RD, expert_gradient(ctx.weight, d_y_RF, x_RD, ends_E, ctx.adds), None, None, None
        d_weight_EFD = _weight_gradient(d_y_RF, x_RD, ends_E)
        if ctx.adds and ctx.weight.grad is not None:
            add_to(ctx.weight.grad, d_weight_EFD)  # bf16 to float32: no copy in between
            return d_x_RD, None, None, None, None
        return d_x_RD, d_weight_EFD.to(ctx.weight.dtype), None, None, None


def _weight_gradient(d_y_RF: Tensor, x_RD: Tensor, ends_E: Tensor) -> Tensor:
    d_weight_EFD = F.grouped_mm(d_y_RF.T, x_RD, offs=ends_E)
    if x_RD.is_cuda and torch.cuda.get_device_properties(x_RD.device).major == 9:  # a constant to torch.compile
        return d_weight_EFD
    # Experts without rows: zero on Hopper, left unwritten by newer devices' kernels (pytorch issue 172439).
    empty_E11 = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).eq(0)[:, None, None]
    return d_weight_EFD.masked_fill_(empty_E11, 0.0)
