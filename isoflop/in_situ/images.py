"""Images as rows of light: values in [0, 1], one label each, and folds that keep writers apart.

Files are NumPy archives without pickled objects, in the layouts of MNIST and Omniglot that their loaders name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import DataError
from isoflop.glyphs import draw_glyphs, fonts


@dataclass(frozen=True)
class Images:
    """Shapes: x [n, height * width] float32 in [0, 1], y [n] int64; `group` [n] says who wrote it, where known."""

    x: Tensor
    y: Tensor
    side: int
    """Height and width in pixels."""
    n_classes: int
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor) -> "Images":
        """Some of the images."""
        group = None if self.group is None else self.group[index]
        return Images(self.x[index], self.y[index], self.side, self.n_classes, group)

    def first(self, n: int) -> "Images":
        """The first `n` images."""
        return self.rows(torch.arange(min(n, len(self))))

    def enlarged(self, times: int) -> "Images":
        """Every pixel `times` x `times` times: more inputs, no more information."""
        planes = self.x.view(len(self), 1, self.side, self.side)
        planes = F.interpolate(planes, scale_factor=times, mode="nearest")
        return Images(planes.flatten(1), self.y, times * self.side, self.n_classes, self.group)

    def folds(self, n_folds: int) -> list[tuple["Images", "Images"]]:
        """(train, test) pairs; a writer is never on both sides.

        Raises:
            DataError: the images do not say who wrote them, or there are fewer writers than folds.
        """
        if self.group is None or len(writers := self.group.unique()) < n_folds:
            known = 0 if self.group is None else len(self.group.unique())
            raise DataError(
                f"{n_folds} folds need at least as many writers, these images have {known}; use fewer folds"
            )
        sides = []
        for fold in range(n_folds):
            held_out = torch.isin(self.group, writers[fold::n_folds])
            sides.append((self.rows(torch.nonzero(~held_out)[:, 0]), self.rows(torch.nonzero(held_out)[:, 0])))
        return sides


def drawn_glyphs(
    n_train: int, n_test: int, *, characters: str = "0123456789", side: int = 112, seed: int = 0
) -> tuple[Images, Images]:
    """(train, test) of drawn characters; test images use fonts that training never saw. Raises DataError."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n, among in zip((n_train, n_test), fonts(), strict=True):
        x, y = draw_glyphs(n, characters, among, side, generator)
        found.append(Images(x.flatten(1), y, side, len(characters)))
    return found[0], found[1]


def read_digits(path: Path) -> tuple[Images, Images]:
    """(train, test) of an archive with train_x, train_y, test_x, test_y, as MNIST is kept. Raises DataError."""
    found = _read(path, ("train_x", "train_y", "test_x", "test_y"))

    def side(name: str) -> Images:
        pixels, labels = found[f"{name}_x"], found[f"{name}_y"]
        x = torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32) / 255)
        return Images(x, torch.from_numpy(labels.astype(np.int64)), pixels.shape[1], 10)

    return side("train"), side("test")


def read_omniglot(path: Path) -> Images:
    """Characters of an archive with bits, alphabet and drawer; the class is the alphabet. Raises DataError."""
    found = _read(path, ("bits", "alphabet", "drawer", "alphabet_names"))
    x = torch.from_numpy(np.unpackbits(found["bits"], axis=1).astype(np.float32))
    y = torch.from_numpy(found["alphabet"].astype(np.int64))
    group = torch.from_numpy(found["drawer"].astype(np.int64))
    return Images(x, y, round(x.shape[1] ** 0.5), len(found["alphabet_names"]), group)


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"images {path} do not exist; give the path of a .npz archive")
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in keys if key not in archive.files]
        if missing:
            raise DataError(f"images {path} have no {', '.join(missing)}; an archive with {', '.join(keys)} is needed")
        return {key: archive[key] for key in keys}
