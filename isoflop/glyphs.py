"""Glyphs: characters of the fonts that the plotting library installs, turned and bent at random.

No file is read that does not come with matplotlib, so a machine that can draw a report can train on them.
Shapes: N images, Y X pixels, values in [0, 1].
"""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import DataError

SYMBOL_FONTS = ("STIXNonUni", "STIXSiz", "LastResort", "cmex", "cmsy", "cmmi", "Display")
"""Fonts without letters, by a part of their file name."""


def fonts() -> tuple[list[Path], list[Path]]:
    """(to train, to test) fonts; every fourth is kept for testing.

    Raises:
        DataError: matplotlib is missing, or installed without its fonts.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise DataError("glyphs are drawn from the fonts of matplotlib, which is missing: pip install isoflop[report]")
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = sorted(p for p in folder.glob("*.ttf") if not any(part in p.name for part in SYMBOL_FONTS))
    if len(found) < 4:
        raise DataError(f"{folder} holds {len(found)} fonts, at least 4 are needed: install matplotlib completely")
    return [font for font in found if font not in found[::4]], found[::4]


def draw_glyphs(
    n: int, characters: str, among: Sequence[Path], side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(images [N, side, side], number of the character [N]): a random font and a random distortion each."""
    picked = torch.randint(len(among) * len(characters), (n,), generator=generator)
    if not n:
        return torch.zeros(0, side, side), picked
    needed, places = picked.unique(return_inverse=True)
    pairs = [divmod(number, len(characters)) for number in needed.tolist()]
    clean = torch.stack([_glyph(among[font], characters[character], side) for font, character in pairs])
    # A few at a time: large images take memory. Strengths are assumptions.
    parts = [
        distorted(clean[part], generator, turn_rad=0.3, scale=0.2, shift=0.12, bend=0.07) for part in places.split(500)
    ]
    return torch.cat(parts), picked % len(characters)


def distorted(
    images_NYX: Tensor, generator: torch.Generator, *, turn_rad: float, scale: float, shift: float, bend: float
) -> Tensor:
    """Every image under its own map: turn up to `turn_rad`, log-scale and shear `scale`, `shift` and `bend` of the half
    width."""
    n, height, width = images_NYX.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    turn, size, aspect, shear = uniform(n) * turn_rad, uniform(n) * scale, uniform(n) * scale / 2, uniform(n) * scale
    cos, sin = torch.cos(turn) * torch.exp(-size), torch.sin(turn) * torch.exp(-size)
    row_x = torch.stack((cos * torch.exp(aspect), shear - sin, uniform(n) * shift), 1)
    row_y = torch.stack((sin, cos * torch.exp(-aspect), uniform(n) * shift), 1)
    grid = F.affine_grid(torch.stack((row_x, row_y), 1), [n, 1, height, width], align_corners=False)
    coarse = uniform(n, 2, 5, 5) * bend
    bends = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images_NYX.unsqueeze(1), grid + bends, align_corners=False).squeeze(1).clamp(0, 1)


def _glyph(font: Path, character: str, side: int) -> Tensor:
    """One character, centred, five eighths of the side high or wide; strokes are 1. Shapes: [Y, X]."""
    from matplotlib.ft2font import FT2Font, LoadFlags

    face = FT2Font(str(font))
    face.set_size(float(math.ceil(9 / 14 * side)), 72)
    face.set_text(character, 0.0, flags=LoadFlags.NO_HINTING)
    face.draw_glyphs_to_bitmap(antialiased=True)
    drawn = torch.from_numpy(np.asarray(face.get_image()).astype(np.float32) / 255)
    ys, xs = drawn.sum(1).nonzero()[:, 0], drawn.sum(0).nonzero()[:, 0]
    drawn = drawn[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    size = [max(1, round(n * 0.625 * side / max(drawn.shape))) for n in drawn.shape]
    drawn = F.interpolate(drawn[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    canvas = torch.zeros(side, side)
    top, left = ((side - n) // 2 for n in size)
    canvas[top : top + size[0], left : left + size[1]] = drawn
    return canvas
