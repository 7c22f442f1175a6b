"""Pairs of speckle and image: an optical bench measures the objects once, batches are drawn from what was measured.

Frames are divided by their own mean, as a camera's automatic exposure would. Every batch is a pure function of the
step. Shapes: N images, Y X pixels, B samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.errors import DataError, RecipeError
from isoflop.imaging.distort import mildly, wildly
from isoflop.imaging.objects import ObjectSet
from isoflop.imaging.twin import Twin
from isoflop.optics.camera import Camera, CameraSection
from isoflop.optics.medium import MediumSection
from isoflop.optics.scattering import Medium, build_medium, seeded


@dataclass
class Measured:
    """Frames as the camera gave them, and what they are frames of."""

    raw: Tensor
    """[N, Y, X] in photons (or means)."""
    images: Tensor
    clipped: int = 0

    @property
    def frames(self) -> Tensor:
        """Every frame divided by its own mean."""
        return by_mean(self.raw)


def by_mean(frames_BYX: Tensor) -> Tensor:
    """Every frame divided by its own mean; a dark frame stays dark."""
    return frames_BYX / frames_BYX.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)


class Bench:
    """A medium and a camera whose exposure was set on the first training objects."""

    def __init__(self, medium: MediumSection, camera: CameraSection, objects: ObjectSet):
        try:
            self.medium: Medium = build_medium(medium)
            self.camera = Camera(camera, self.medium.intensity(objects.train[:64]))
        except ValueError as error:
            raise RecipeError(str(error)) from error
        self._seed = medium.seed
        self._moving = medium.kind in ("dynamic", "family")

    def measure(self, images_NYX: Tensor, place: int) -> Measured:
        """Frames of all images; moving media give every image its own draw, `place` keeps the noise of sets apart."""
        raw, clipped = [], 0
        size = 1 if self._moving else 256
        for start in range(0, len(images_NYX), size):
            try:
                light = self.medium.intensity(images_NYX[start : start + size], draw=start // size)
            except ValueError as error:
                raise DataError(str(error)) from error
            found = self.camera.record(light, seeded(self._seed, 7, place, start))
            raw.append(found.frames)
            clipped += found.clipped
        size_px = self.medium.section.frame_px
        empty = self.camera.record(torch.zeros(0, size_px, size_px), seeded(0)).frames
        return Measured(torch.cat(raw) if raw else empty, images_NYX, clipped)


class Pairs:
    """Batches: measured pairs, and frames of distorted training objects that a twin of the medium predicts."""

    def __init__(
        self,
        measured: Measured,
        left_out_NYX: Tensor | None,
        *,
        camera: Camera,
        twin: Twin | None,
        simulated: float,
        wild: float,
        batch: int,
        seed: int,
    ):
        self._measured, self._frames = measured, measured.frames
        self._left_out, self._camera, self._twin = left_out_NYX, camera, twin
        self._n_simulated = round(batch * simulated) if twin is not None else 0
        self._n_wild = round(self._n_simulated * wild)
        self._n_measured, self._seed = batch - self._n_simulated, seed

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(frames, images, given) of one step; `given` is the leave-one-out linear image, NaN where there is none."""
        generator = seeded(self._seed, 8, step)
        frames, images, given = [], [], []
        if self._n_measured:
            rows = torch.randint(len(self._frames), (self._n_measured,), generator=generator)
            frames.append(self._frames[rows])
            images.append(self._measured.images[rows])
            known = torch.full_like(images[0], torch.nan) if self._left_out is None else self._left_out[rows]
            given.append(known)
        if self._n_simulated:
            assert self._twin is not None
            drawn = self._distorted(generator)
            mean = self._twin.frames(drawn.flatten(1)).unflatten(1, self._measured.raw.shape[1:])
            frames.append(by_mean(self._camera.read(mean + self._camera.pedestal, generator).frames))
            images.append(drawn)
            given.append(torch.full_like(drawn, torch.nan))
        return torch.cat(frames), torch.cat(images), torch.cat(given)

    def _distorted(self, generator: torch.Generator) -> Tensor:
        originals, n_wild = self._measured.images, self._n_wild
        rows = torch.randint(len(originals), (self._n_simulated + n_wild,), generator=generator)
        mild = mildly(originals[rows[n_wild : self._n_simulated]], generator)
        if not n_wild:
            return mild
        return torch.cat((mild, wildly(originals[rows[:n_wild]], originals[rows[self._n_simulated :]], generator)))
