"""What stands behind the slab: images to train on, images to test on, and a kind of image that training never sees.

Two sources: glyphs drawn from the fonts that matplotlib installs (digits to train and, from other fonts, to test;
capital letters as the unseen kind), or arrays in .npz files (`train_x`, `test_x`; for the unseen kind `bits` with an
`alphabet`). All end as float32 in [0, 1]. Shapes: N images, Y X pixels.
"""

import functools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import DataError, RecipeError
from isoflop.glyphs import draw_glyphs, fonts
from isoflop.recipe import NotNegativeInt, Range, Seed, check_ranges

GLYPH_PX = 112


@dataclass(frozen=True)
class ObjectsSection:
    """Which images, and how many."""

    source: Literal["glyphs", "file"] = "glyphs"
    """glyphs: drawn here; file: read from `digits` and `letters`."""
    digits: str = ""
    """.npz with train_x and test_x (N, Y, X) uint8."""
    letters: str = ""
    """.npz with bits (N, 1568), 112x112 images of one bit, alphabet and alphabet_names; empty: no unseen kind."""
    alphabet: str = "Latin"
    """Which alphabet of `letters` is the unseen kind."""
    n_train: Annotated[int, Range(at_least=16)] = 4000
    """Measured pairs to learn from."""
    n_test: Annotated[int, Range(at_least=2)] = 500
    """Pairs that are kept apart to score with."""
    n_unseen: NotNegativeInt = 520
    """Images of the unseen kind, at most; 0: none."""
    seed: Seed = 0
    """Of the drawn glyphs."""

    def check(self) -> None:
        """Raises RecipeError naming key, value and rule."""
        check_ranges(self, "objects.")
        if self.source == "file" and not self.digits:
            raise RecipeError('objects.digits = "" must name an .npz file when objects.source = "file"')


class ObjectSet(NamedTuple):
    """Images [N, Y, X] in [0, 1]."""

    train: Tensor
    test: Tensor
    unseen: Tensor


def load_objects(section: ObjectsSection, size: int) -> ObjectSet:
    """The images of a section at `size` pixels a side.

    Raises: RecipeError for bad counts, DataError for files that are missing or hold something else.
    """
    section.check()
    if section.source == "glyphs":
        return _drawn(section, size)
    arrays = _read(section.digits, ("train_x", "test_x"), "objects.digits")
    parts = []
    for name, wanted, key in (("train_x", section.n_train, "n_train"), ("test_x", section.n_test, "n_test")):
        images = np.atleast_1d(arrays[name])
        if len(images) < wanted:
            raise DataError(
                f"objects.{key} = {wanted} but {section.digits} has {len(images)} rows of {name}; ask for fewer"
            )
        parts.append(_resized(_unit(images[:wanted], f"{section.digits}: {name}"), size))
    unseen = _letters(section, size) if section.letters and section.n_unseen else torch.zeros(0, size, size)
    return ObjectSet(parts[0], parts[1], unseen)


def _letters(section: ObjectsSection, size: int) -> Tensor:
    arrays = _read(section.letters, ("bits", "alphabet", "alphabet_names"), "objects.letters")
    bits, alphabet, names = arrays["bits"], arrays["alphabet"], [str(name) for name in arrays["alphabet_names"].flat]
    if bits.dtype != np.uint8 or bits.shape != (alphabet.size, GLYPH_PX**2 // 8) or alphabet.ndim != 1:
        raise DataError(
            f"{section.letters}: bits of shape {bits.shape} and type {bits.dtype} must be uint8, {GLYPH_PX**2 // 8} of "
            f"them for each of the {alphabet.size} letters in alphabet; write the file again"
        )
    if section.alphabet not in names:
        raise DataError(
            f"objects.alphabet = {section.alphabet!r} is not in {section.letters}; it has {', '.join(names)}"
        )
    rows = bits[alphabet == names.index(section.alphabet)][: section.n_unseen]
    images = torch.from_numpy(np.unpackbits(rows, axis=1).reshape(-1, GLYPH_PX, GLYPH_PX)).float()
    # Thin strokes of one bit: made 3 pixels thicker, so that they look like the digits after pooling.
    return _resized(F.max_pool2d(images.unsqueeze(1), 3, 1, 1).squeeze(1), size)


@functools.lru_cache(maxsize=1)
def _drawn(section: ObjectsSection, size: int) -> ObjectSet:
    to_train, to_test = fonts()  # digits are tested in fonts that training never saw
    generator = torch.Generator().manual_seed(section.seed)

    def draw(n: int, characters: str, among: list[Path]) -> Tensor:
        return _resized(draw_glyphs(n, characters, among, GLYPH_PX, generator)[0], size)

    digits, letters = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return ObjectSet(
        draw(section.n_train, digits, to_train),
        draw(section.n_test, digits, to_test),
        draw(section.n_unseen, letters, sorted([*to_train, *to_test])),
    )


def _resized(images_NYX: Tensor, size: int) -> Tensor:
    """Mean over areas where the size falls, bilinear where it rises."""
    if images_NYX.shape[-1] == size:
        return images_NYX
    if images_NYX.shape[-1] > size:
        return F.adaptive_avg_pool2d(images_NYX.unsqueeze(1), size).squeeze(1)
    return F.interpolate(images_NYX.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def _unit(images: np.ndarray, where: str) -> Tensor:
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise DataError(f"{where} has shape {images.shape}, it must be (N, side, side)")
    if images.dtype.kind not in "buif":
        raise DataError(f"{where} holds {images.dtype}, no brightness; it must be uint8 or in 0 to 1")
    if images.dtype == np.uint8:
        return torch.from_numpy(images.astype(np.float32) / 255)
    found = torch.from_numpy(images.astype(np.float32))
    low, high = (float(value) for value in found.aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(f"{where} has values {low:.4g} to {high:.4g}, they must be uint8 or in 0 to 1")
    return found


def _read(path: str, keys: tuple[str, ...], name: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise DataError(f"{name} = {path!r} is not a file; give an .npz file with {', '.join(keys)}")
    try:
        with Path(path).open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise DataError(f"{name} = {path!r} is a single array; give an .npz file with {', '.join(keys)}")
            missing = [key for key in keys if key not in found]
            if missing:
                raise DataError(f"{name} = {path!r} has no array {missing[0]}; it must hold {', '.join(keys)}")
            return {key: found[key] for key in keys}
    except DataError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:  # ValueError: no .npz at all, as a text
        raise DataError(
            f"{name} = {path!r} is not a whole .npz file ({error}); give one with {', '.join(keys)}"
        ) from error
