"""Weights in FP8 (E4M3) with one float32 scale for each block of 128 x 128, as DeepSeek-V3 was released.

A stored scale is a multiplier, weight = code * scale, although the files call it weight_scale_inv. Blocks at the lower
and right edge are smaller where the shape is no multiple of 128.

Source: DeepSeek-V3 (arXiv 2412.19437) section 3.3 and its released weights. Where we deviate: the released kernels
raise the largest magnitude of an activation block to at least 1e-4; weights need no such bound, so only an all-zero
block gets a scale that is not its own (1).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.interop.formats import FP8_BLOCK

LARGEST = 448.0
"""Of E4M3."""
ALMOST_NOTHING = 2.0**-100
"""A block below it is zeros: its scale would be no number that can be divided by."""


def n_blocks(length: int) -> int:
    """Blocks along one dimension."""
    return -(-length // FP8_BLOCK)


def quantise(weight: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float32 matrix whose first row starts a block; with `scales` those are used.

    Shapes: [M, K] -> E4M3 [M, K], float32 [ceil(M / 128), ceil(K / 128)].
    """
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    found = torch.empty(n_blocks(rows), n_blocks(columns)) if scales is None else scales
    for block, band in enumerate(weight.split(FP8_BLOCK)):  # a band at a time: no second copy of the matrix
        if scales is None:
            largest = F.pad(band.abs().amax(0), (0, -columns % FP8_BLOCK)).view(-1, FP8_BLOCK).amax(1)
            found[block] = torch.where(largest > ALMOST_NOTHING, largest / LARGEST, torch.ones_like(largest))
        scaled = (band / _spread(found[block], columns)).clamp_(-LARGEST, LARGEST)
        codes[block * FP8_BLOCK :][:FP8_BLOCK] = scaled.to(torch.float8_e4m3fn)
    return codes, found


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 matrix that codes and scales stand for."""
    weight = codes.to(torch.float32)
    for block, band in enumerate(weight.split(FP8_BLOCK)):
        band.mul_(_spread(scales[block], codes.shape[1]))
    return weight


def _spread(scales: Tensor, columns: int) -> Tensor:
    """The scale of every column."""
    return scales.repeat_interleave(FP8_BLOCK)[:columns]
