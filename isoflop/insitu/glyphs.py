"""Labelled glyphs, natively large: characters of the fonts that the plotting library installs, turned and bent.

No file is read that does not come with matplotlib, so whoever can draw a report can train on them.
"""

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import DataError
from isoflop.insitu.images import Images

SYMBOL_FONTS = ("STIXNonUni", "STIXSiz", "LastResort", "cmex", "cmsy", "cmmi", "Display")
"""Fonts without letters, by a part of their file name."""


def draw_glyphs(
    n_train: int, n_test: int, *, characters: str = "0123456789", side: int = 112, seed: int = 0
) -> tuple[Images, Images]:
    """(train, test): one random font and one random distortion an image; test images use fonts that training never saw.

    Raises:
        DataError: matplotlib is missing, or installed without its fonts.
    """
    fonts = _fonts()
    held_out = fonts[::4]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n, chosen in ((n_train, [font for font in fonts if font not in held_out]), (n_test, held_out)):
        clean = torch.stack([_glyph(font, character, side) for font in chosen for character in characters])
        picked = torch.randint(len(clean), (n,), generator=generator)
        x = torch.cat([_distorted(clean[part], generator) for part in picked.split(500)])
        found.append(Images(x.flatten(1), picked % len(characters), side, len(characters)))
    return found[0], found[1]


def _distorted(images_NYX: Tensor, generator: torch.Generator) -> Tensor:
    """Turns up to 17 degrees, sizes and shears up to 20%, shifts up to 6%, smooth bends (all assumptions)."""
    n, side = images_NYX.shape[0], images_NYX.shape[-1]
    turn, size, shear, shift_x, shift_y = (torch.rand(5, n, generator=generator) * 2 - 1).unbind()
    angle, factor = 0.3 * turn, torch.exp(0.2 * size)
    cos, sin = torch.cos(angle) * factor, torch.sin(angle) * factor
    rows = torch.stack([cos, 0.2 * shear - sin, 0.12 * shift_x, sin, cos, 0.12 * shift_y], 1).view(n, 2, 3)
    grid = F.affine_grid(rows, [n, 1, side, side], align_corners=False)
    bends = 0.07 * (torch.rand(n, 2, 5, 5, generator=generator) * 2 - 1)
    grid = grid + F.interpolate(bends, side, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images_NYX[:, None], grid, align_corners=False)[:, 0].clamp(0.0, 1.0)


def _fonts() -> list[Path]:
    if importlib.util.find_spec("matplotlib") is None:
        raise DataError("glyphs are drawn from the fonts of matplotlib, which is missing: pip install isoflop[report]")
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = sorted(p for p in folder.glob("*.ttf") if not any(part in p.name for part in SYMBOL_FONTS))
    if len(found) < 4:
        raise DataError(f"{folder} holds {len(found)} fonts, at least 4 are needed: install matplotlib completely")
    return found


def _glyph(font: Path, character: str, side: int) -> Tensor:
    """One character, centred, five eighths of the side high or wide; strokes are 1. Shapes: [Y, X]."""
    from matplotlib.ft2font import FT2Font, LoadFlags

    face = FT2Font(str(font))
    face.set_size(float(math.ceil(0.65 * side)), 72)
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
