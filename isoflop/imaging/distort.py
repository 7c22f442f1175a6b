"""Random distortions of training objects: mild ones, as of another hand, and wild ones that leave strokes.

Shapes: B images, Y X pixels, values in [0, 1] before and after.
"""

import math

import torch
from torch import Tensor

from isoflop.glyphs import distorted


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
