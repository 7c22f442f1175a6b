"""Random distortions of small images: turns, scales, shifts and bends, all drawn from one generator.

Shapes: B images, Y X pixels, values in [0, 1] before and after.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def distorted(
    images_BYX: Tensor, generator: torch.Generator, *, turn_rad: float, scale: float, shift: float, bend: float
) -> Tensor:
    """Every image under its own map: turn up to `turn_rad`, log-scale and shear `scale`, `shift` and `bend` of the half
    width."""
    n, height, width = images_BYX.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    turn, size, aspect, shear = uniform(n) * turn_rad, uniform(n) * scale, uniform(n) * scale / 2, uniform(n) * scale
    cos, sin = torch.cos(turn) * torch.exp(-size), torch.sin(turn) * torch.exp(-size)
    row_x = torch.stack((cos * torch.exp(aspect), shear - sin, uniform(n) * shift), 1)
    row_y = torch.stack((sin, cos * torch.exp(-aspect), uniform(n) * shift), 1)
    grid = F.affine_grid(torch.stack((row_x, row_y), 1), [n, 1, height, width], align_corners=False)
    coarse = uniform(n, 2, 5, 5) * bend
    bends = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images_BYX.unsqueeze(1), grid + bends, align_corners=False).squeeze(1).clamp(0, 1)


def mildly(images_BYX: Tensor, generator: torch.Generator) -> Tensor:
    """As another hand might write the same: keeps what the image shows (assumption: 14 degrees, 15%, 12%, 6%)."""
    return distorted(images_BYX, generator, turn_rad=0.25, scale=0.15, shift=0.12, bend=0.06)


def wildly(images_BYX: Tensor, other_BYX: Tensor, generator: torch.Generator) -> Tensor:
    """Strokes of any direction and, for the first half, of two images laid over each other: keeps no meaning."""
    strong = {"turn_rad": math.pi, "scale": 0.35, "bend": 0.2}
    first = distorted(images_BYX, generator, shift=0.2, **strong)
    second = distorted(other_BYX, generator, shift=0.5, **strong)
    half = len(first) // 2
    return torch.cat((torch.maximum(first[:half], second[:half]), first[half:]))
