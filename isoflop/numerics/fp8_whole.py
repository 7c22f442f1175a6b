"""FP8 (E4M3) with one scale for each row, or one for a whole matrix: coarser than blocks, faster on Hopper.

All three products of a layer run on E4M3 operands, as in `fp8_block.py`; here a scale is shared by all values that are
summed over ("row": of an activation's token, a weight's output; the gradient of a weight has scales of columns), or by
the whole matrix ("tensor"). Scales are found online as absmax / 448. Values far below the largest of their row lose
bits; what that costs a model is measured by `isoflop compare`, not promised.

Source: formats of `torch.nn.functional.scaled_mm`; E4M3 and online scales as arXiv 2412.19437, section 3.3.

Shapes: M rows, K in, N out.
"""

import torch
from torch import Tensor

from isoflop.numerics import fp8_experts
from isoflop.numerics.fp8_block import LARGEST
from isoflop.numerics.fp8_scaled import HeldFormat, ScaledFormat
from isoflop.numerics.launch import has_kernels
from isoflop.numerics.linear import MatmulBackend


def through_fp8(x_RK: Tensor, per_row: bool) -> Tensor:
    """What is left of float32 values once they were E4M3 codes with a scale of their row or of all."""
    if not x_RK.numel():
        return x_RK
    largest = x_RK.abs().amax(-1, keepdim=True) if per_row else x_RK.abs().amax()
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)  # zeros stay zeros by any scale
    return (x_RK / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(x_RK.dtype) * scale


class Fp8WholeProduct(MatmulBackend):
    """The three products of a layer on E4M3 operands: on tensor cores where they take them, else simulated."""

    def __init__(self, per_row: bool):
        super().__init__()
        self.per_row = per_row
        self.scaled = HeldFormat(ScaledFormat("row" if per_row else "tensor"))
        self.expert_codes: tuple[fp8_experts.Codes, ...] = ()
        self.adds = False

    def hold(self, weight: Tensor, adds: bool) -> bool:
        return self.scaled.hold(weight, adds)

    def hold_experts(self, weights: tuple[Tensor, ...], adds: bool) -> bool:
        """As `hold`, of the weights gate_up and down [E, N, K] of experts."""
        if not fp8_experts.takes(weights):
            return False
        self.expert_codes, self.adds = (
            tuple(fp8_experts.quantise_weight(weight, self.per_row) for weight in weights),
            adds,
        )
        return True

    def release(self) -> None:
        self.scaled.release()
        self.expert_codes, self.adds = (), False

    def capturable(self, weight: Tensor) -> bool:
        return weight.ndim == 2 or fp8_experts.takes((weight,))

    @torch.compiler.disable  # one opaque step of a compiled block
    def experts(
        self, x_TD: Tensor, choices: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor, Tensor],
        plus_TD: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Weighted sum of every token's experts, plus `plus`; None where tensor cores do not take it.

        `choices`: their weights [T, A], which of them each row holds [R], and where each expert's rows end [E].
        """
        if not has_kernels(x_TD) or not x_TD.numel() or not fp8_experts.takes(weights):
            return None
        weights_TA, slot_R, ends_E = choices
        codes = self.expert_codes or tuple(fp8_experts.quantise_weight(weight, self.per_row) for weight in weights)
        rows = fp8_experts.filled_up(slot_R, ends_E, weights_TA.shape[1])
        return fp8_experts.experts(x_TD, weights_TA, plus_TD, rows, weights, codes, self.per_row, self.adds)

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        if x.is_cuda and (y := self.scaled.linear(x, weight)) is not None:
            return y
        y_MN = _Fp8Whole.apply(x.reshape(-1, x.shape[-1]), weight, self.per_row)
        return y_MN.reshape(*x.shape[:-1], len(weight))  # type: ignore[union-attr]


class _Fp8Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_MK: Tensor, w_NK: Tensor, per_row: bool) -> Tensor:
        ctx.save_for_backward(x_MK, w_NK)
        ctx.per_row = per_row
        y_MN = through_fp8(x_MK.float(), per_row) @ through_fp8(w_NK.float(), per_row).T
        # A view: compiled by torch 2.11, an output that went through an empty cast gets no gradient.
        return y_MN.to(x_MK.dtype).view_as(y_MN)

    @staticmethod
    def backward(ctx, d_y_MN: Tensor):  # type: ignore[override]
        x_MK, w_NK = ctx.saved_tensors
        d_y_MN, per_row = d_y_MN.float(), ctx.per_row
        d_x_MK = d_w_NK = None
        if ctx.needs_input_grad[0]:
            d_x_MK = (through_fp8(d_y_MN, per_row) @ through_fp8(w_NK.float().T, per_row).T).to(x_MK.dtype)
        if ctx.needs_input_grad[1]:
            d_w_NK = through_fp8(d_y_MN.T, per_row) @ through_fp8(x_MK.float().T, per_row).T
        return d_x_MK, d_w_NK, None
