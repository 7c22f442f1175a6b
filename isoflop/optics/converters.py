"""DAC and ADC: uniform, mid-tread, saturating; the gradient passes straight through and stops where they saturate.

A function whose name ends in _ overwrites its argument: encoding is bound by memory, and half of it is allocation.
"""

import math

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS

HALF_PI = math.pi / 2


def at_least_float(x: Tensor) -> Tensor:
    """x in float32 or as it is: converters have more steps than bfloat16 has digits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def straight_through(ideal: Tensor, actual: Tensor) -> Tensor:
    """`actual` in value, `ideal` in gradient."""
    return ideal + (actual - ideal).detach() if ideal.requires_grad else actual


def to_levels_(value: Tensor, bits: int, full_scale: float, generator: torch.Generator | None = None) -> Tensor:
    """Signed values on 2^bits - 1 levels that include 0 and full scale at both ends; one bit is a sign at full scale.

    With a generator, rounding goes up with the probability that keeps the mean.
    """
    if bits == EXACT_BITS:
        return value
    if bits == 1:
        return value.copy_(torch.where(value >= 0, full_scale, -full_scale))
    top = float(2 ** (bits - 1) - 1)
    return _round_(value.mul_(top / full_scale), generator).clamp_(-top, top).mul_(full_scale / top)


def on_steps(x: Tensor, gain: Tensor, top: int) -> Tensor:
    """x gain, at most 1 in magnitude, on `top` even steps to either side of 0: scale and DAC in three passes."""
    return x.mul(gain * top).round_().mul_(1.0 / top)


def to_range_levels_(value: Tensor, bits: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Values on 2^bits levels from `low` to `high`, both included: an input modulator from dark to bright."""
    if bits == EXACT_BITS:
        return value
    top = 2**bits - 1
    step = (high - low) / top
    value = value.mul_(1.0 / step)
    codes = _round_(value.sub_(low / step) if low else value, generator).clamp_(0.0, float(top)).mul_(step)
    return codes.add_(low) if low else codes


def read_codes(y: Tensor, bits: int, full_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the ADC, the charge of one code, which charges were beyond full scale.

    Overwrites y unless it has a gradient.
    A bin is 2 full_scale/(2^bits - 1) (A6), centred on 0, so every charge within full scale is read to half a bin; one
    bit is a comparator. Shapes: y [..., N], full_scale [] (a tensor, since it follows from the results).
    """
    half = 1.0 if bits in (1, EXACT_BITS) else 0.5 * (2**bits - 1)  # full scale, in codes
    unit = full_scale / half
    if y.requires_grad:
        held = torch.minimum(torch.maximum(y, -full_scale), full_scale) / unit
        codes, _, clipped = read_codes(y.detach().clone(), bits, full_scale)
        return straight_through(held, codes), unit, clipped
    codes = y.mul_(half / full_scale)
    clipped = codes.abs() > half
    if bits == 1:
        codes = torch.where(codes >= 0, 0.5, -0.5).to(y.dtype)
    elif bits == EXACT_BITS:
        codes.clamp_(-half, half)
    else:
        codes.round_().clamp_(0.5 - half, half - 0.5)
    return codes, unit, clipped


def _round_(codes: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return codes.round_()
    up = torch.rand(codes.shape, dtype=codes.dtype, device=codes.device, generator=generator)
    return codes.add_(up).floor_()
