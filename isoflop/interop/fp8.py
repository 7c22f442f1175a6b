"""Weights in FP8 (E4M3) with one float32 scale for each block of 128 x 128, as DeepSeek-V3 was released.

A stored scale is a multiplier, weight = code * scale, although the files call it weight_scale_inv. Blocks at the lower
and right edge are smaller where the shape is no multiple of 128.

Source: DeepSeek-V3 (arXiv 2412.19437) section 3.3 and its released weights. Where we deviate: the released kernels
raise the largest magnitude of an activation block to at least 1e-4; weights need no such bound, so only an all-zero
block gets a scale that is not its own (1).
"""

import torch
from torch import Tensor

from isoflop.interop.formats import FP8_BLOCK

LARGEST = 448.0
"""Of E4M3."""


def n_blocks(length: int) -> int:
    """Blocks along one dimension."""
    return -(-length // FP8_BLOCK)


def quantise(weight: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float32 matrix whose first row starts a block; with `scales` those are used.

    Shapes: [M, K] -> E4M3 [M, K], float32 [ceil(M / 128), ceil(K / 128)].
    """
    if scales is None:
        rows, columns = weight.shape
        padded = torch.zeros(n_blocks(rows) * FP8_BLOCK, n_blocks(columns) * FP8_BLOCK)
        padded[:rows, :columns] = weight.abs()
        largest = padded.view(n_blocks(rows), FP8_BLOCK, n_blocks(columns), FP8_BLOCK).amax((1, 3))
        scales = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    codes = (weight / _spread(scales, weight.shape)).clamp_(-LARGEST, LARGEST)
    return codes.to(torch.float8_e4m3fn), scales


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 matrix that codes and scales stand for."""
    return codes.to(torch.float32).mul_(_spread(scales, codes.shape))


def _spread(scales: Tensor, shape: torch.Size) -> Tensor:
    rows = scales.repeat_interleave(FP8_BLOCK, 0)[: shape[0]]
    return rows.repeat_interleave(FP8_BLOCK, 1)[:, : shape[1]]
