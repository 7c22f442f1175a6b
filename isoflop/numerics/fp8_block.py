"""Blockwise-scaled FP8 (E4M3), the reference arithmetic of DeepSeek-V3's training in plain PyTorch.

All three products of a layer run on E4M3 operands: output, gradient of the input, gradient of the weight. A scale is
shared by 1 x 128 values of activations and gradients (along the dimension that is summed over) and by 128 x 128 values
of weights; it is found online as absmax / 448. The activation is kept in FP8 between forward and backward, and is
dequantised and quantised again along the other dimension for the gradient of the weight.

Source: arXiv 2412.19437, section 3.3 (format, tiles, which products) and 3.3.2 (online scales). Where we deviate: the
sum is a float32 product of the dequantised operands, which is what promotion to float32 registers every 128 values
approaches; optimizer moments stay float32; inputs of the layer after attention are no exception (E5M6 there).

Shapes: M rows, K in, N out, G groups of 128.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.fp8_scaled import BLOCK, ROWS, HeldFormat, ScaledFormat, scaled_gated
from isoflop.numerics.linear import MatmulBackend

LARGEST = 448.0
"""Of E4M3."""
ALMOST_NOTHING = 2.0**-100
"""A block below it is zeros: its scale would be no number that can be divided by."""


def quantise_rows(x_RK: Tensor, block: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Codes [R, K] in E4M3 and float32 scales [R, G], one for each `block` values of a row."""
    padded_RGB = F.pad(x_RK, (0, -x_RK.shape[1] % block)).unflatten(1, (-1, block))
    scale_RG = _scale(padded_RGB.abs().amax(-1), power_of_two)
    codes_RGB = (padded_RGB / scale_RG[..., None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes_RGB.flatten(1)[:, : x_RK.shape[1]], scale_RG


def quantise_blocks(w_NK: Tensor, block: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Codes [N, K] in E4M3 and float32 scales [ceil(N / block), G], one for each block x block values."""
    n_out, n_in = w_NK.shape
    padded = F.pad(w_NK, (0, -n_in % block, 0, -n_out % block))
    tiles = padded.unflatten(1, (-1, block)).unflatten(0, (-1, block))  # [rows of blocks, block, G, block]
    scale = _scale(tiles.abs().amax((1, 3)), power_of_two)
    codes = (tiles / scale[:, None, :, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.flatten(2).flatten(0, 1)[:n_out, :n_in], scale


def dequantise(codes_RK: Tensor, scale: Tensor, block: int) -> Tensor:
    """The float32 matrix that codes and scales stand for; scales of rows [R, G] or of blocks [R / block, G]."""
    rows, columns = codes_RK.shape
    if scale.shape[0] != rows:
        scale = scale.repeat_interleave(block, 0)[:rows]
    return codes_RK.to(torch.float32) * scale.repeat_interleave(block, 1)[:, :columns]


def _scale(largest: Tensor, power_of_two: bool) -> Tensor:
    scale = torch.where(largest > ALMOST_NOTHING, largest / LARGEST, 1.0)  # zeros stay zeros by any scale
    return torch.exp2(torch.ceil(torch.log2(scale))) if power_of_two else scale


class Fp8BlockProduct(MatmulBackend):
    """The three products of a layer on E4M3 operands: on tensor cores where they take them, else simulated."""

    def __init__(self, block: int = 128, power_of_two_scales: bool = False):
        super().__init__()
        self.block, self.power_of_two = block, power_of_two_scales
        self.scaled = HeldFormat(ScaledFormat("block", power_of_two_scales) if block == BLOCK else None)

    def hold(self, weight: Tensor, adds: bool) -> bool:
        return self.scaled.hold(weight, adds)

    def release(self) -> None:
        self.scaled.release()

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        if x.is_cuda and (y := self.scaled.linear(x, weight)) is not None:
            return y
        y_MN = _Fp8Block.apply(x.reshape(-1, x.shape[-1]), weight, self.block, self.power_of_two)
        return y_MN.reshape(*x.shape[:-1], len(weight))  # type: ignore[union-attr]

    def gated(self, x: Tensor, weight: Tensor, last: "Fp8BlockProduct", last_weight: Tensor) -> Tensor | None:
        """A gated MLP of this format, None where tensor cores do not take it (see `scaled_gated`)."""
        format, d_ff = self.scaled.format, last_weight.shape[1]
        if format is None or format != last.scaled.format or d_ff % BLOCK or x.numel() // x.shape[-1] % ROWS:
            return None
        if not format.runs(x, weight):
            return None
        first, then = self.scaled, last.scaled
        return scaled_gated(x, (weight, last_weight), (first.codes, then.codes), format.power_of_two, first.adds)


class _Fp8Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_MK: Tensor, w_NK: Tensor, block: int, power_of_two: bool) -> Tensor:
        x8_MK, x_scale_MG = quantise_rows(x_MK.float(), block, power_of_two)
        w8_NK, w_scale = quantise_blocks(w_NK.float(), block, power_of_two)
        ctx.save_for_backward(x8_MK, x_scale_MG, w8_NK, w_scale)
        ctx.block, ctx.power_of_two, ctx.dtype = block, power_of_two, x_MK.dtype
        y_MN = dequantise(x8_MK, x_scale_MG, block) @ dequantise(w8_NK, w_scale, block).T
        # A view: compiled by torch 2.11, an output that went through an empty cast gets no gradient.
        return y_MN.to(x_MK.dtype).view_as(y_MN)

    @staticmethod
    def backward(ctx, d_y_MN: Tensor):  # type: ignore[override]
        x8_MK, x_scale_MG, w8_NK, w_scale = ctx.saved_tensors
        block, power_of_two = ctx.block, ctx.power_of_two

        def along_rows(matrix: Tensor) -> Tensor:
            return dequantise(*quantise_rows(matrix, block, power_of_two), block)

        d_y_MN = d_y_MN.float()
        d_x_MK = d_w_NK = None
        if ctx.needs_input_grad[0]:
            d_x_MK = (along_rows(d_y_MN) @ dequantise(w8_NK, w_scale, block)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:  # summed over the rows, so tiles run along them
            x_KM = along_rows(dequantise(x8_MK, x_scale_MG, block).T)
            d_w_NK = along_rows(d_y_MN.T) @ x_KM.T
        return d_x_MK, d_w_NK, None, None
