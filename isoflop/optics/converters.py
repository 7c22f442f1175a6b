"""DAC and ADC: uniform, mid-tread, saturating; the gradient passes straight through and stops where they saturate."""

import math

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS


def straight_through(ideal: Tensor, actual: Tensor) -> Tensor:
    """`actual` in value, `ideal` in gradient."""
    return ideal + (actual - ideal).detach() if ideal.requires_grad else actual


def step_of(bits: int, full_scale: float) -> float:
    """Width of a bin of a converter from -full_scale to full_scale. Source: A6, LSB."""
    return 2.0 * full_scale / (2**bits - 1)


def rounded(value: Tensor, step: float, generator: torch.Generator | None) -> Tensor:
    """Multiples of `step`, the nearest, or with a generator the one above with the probability that keeps the mean."""
    scaled = value * (1.0 / step)
    if generator is None:
        return scaled.round_().mul_(step)
    noise = torch.rand(value.shape, dtype=value.dtype, device=value.device, generator=generator)
    return scaled.add_(noise).floor_().mul_(step)


def to_levels(value: Tensor, bits: int, full_scale: float, generator: torch.Generator | None = None) -> Tensor:
    """Signed values on 2^bits - 1 levels that include 0; every value within full scale is at most half a bin away.

    One bit is a comparator: half of full scale, with the sign of the value.
    """
    if bits == EXACT_BITS:
        return value
    if bits == 1:
        return torch.where(value >= 0, 0.5 * full_scale, -0.5 * full_scale).to(value.dtype)
    step = step_of(bits, full_scale)
    top = (2 ** (bits - 1) - 1) * step
    return rounded(value, step, generator).clamp_(-top, top)


def to_range_levels(value: Tensor, bits: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Values on 2^bits levels from `low` to `high`, both included: an input modulator from dark to bright."""
    if bits == EXACT_BITS:
        return value
    step = (high - low) / (2**bits - 1)
    return rounded(value - low, step, generator).add_(low).clamp_(low, high)


def digitise(y: Tensor, bits: int, full_scale: Tensor) -> Tensor:
    """What the ADC reads of charges; `full_scale` is a tensor, since it follows from the results.

    Gradients are those of a clamp. Shapes: y [..., N], full_scale [] or what broadcasts.
    """
    held = torch.minimum(torch.maximum(y, -full_scale), full_scale)
    if bits == EXACT_BITS:
        return held
    with torch.no_grad():
        if bits == 1:
            read = torch.where(held >= 0, 0.5 * full_scale, -0.5 * full_scale)
        else:
            step = full_scale * (2.0 / (2**bits - 1))
            top = 2 ** (bits - 1) - 1
            read = (held / step).round_().clamp_(-top, top).mul_(step)
    return straight_through(held, read)


HALF_PI = math.pi / 2
