"""The camera behind the slab: pixels that integrate grains, photons that are counted, electrons, bits, saturation.

In: intensity frames of a medium. Out: frames in photons, and how many pixels were clipped.
Shapes: B frames, Y X pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CameraSection:
    """What the sensor does to the light."""

    crop_px: int = 0
    """Side of the square that is read out of the middle of the frame, in pixels before binning; 0: the whole frame."""
    binning: int = 1
    """Frame pixels per camera pixel and axis, at least 1; contrast falls as grains are averaged."""
    photons: float = 0.0
    """Mean detected photons per camera pixel, 0 or above; 0: no photon noise at all."""
    read_noise_e: float = 0.0
    """Standard deviation of the read-out in electrons, 0 or above (needs photons)."""
    dark_e: float = 0.0
    """Mean dark signal per pixel in electrons, 0 or above; known and subtracted, its noise is not (needs photons)."""
    background: float = 0.0
    """Incoherent light as a share of the mean signal, 0 or above."""
    bits: int = 0
    """Of the converter, 1 to 16; 0: no quantisation."""
    headroom: float = 12.0
    """Full scale over the mean signal, above 1; brighter pixels are clipped and counted (needs bits)."""
    envelope: float = 0.0
    """Standard deviation of a Gaussian blob of light as a share of the frame's side; 0: even light."""

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the valid range."""
        if self.crop_px < 0:
            raise ValueError(f"camera.crop_px = {self.crop_px} must be 0 (whole frame) or a number of pixels")
        if self.binning < 1:
            raise ValueError(f"camera.binning = {self.binning} must be at least 1")
        if self.crop_px and self.crop_px % self.binning:
            raise ValueError(f"camera.crop_px = {self.crop_px} must be a multiple of camera.binning = {self.binning}")
        for name in ("photons", "read_noise_e", "dark_e", "background", "envelope"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"camera.{name} = {getattr(self, name)} must be 0 or above")
        if not 0 <= self.bits <= 16:
            raise ValueError(f"camera.bits = {self.bits} must be 1 to 16, or 0 for no quantisation")
        if not self.headroom > 1:
            raise ValueError(
                f"camera.headroom = {self.headroom} must be above 1: full scale at or below the mean clips everything"
            )
        if (self.read_noise_e or self.dark_e) and not self.photons:
            raise ValueError(
                "camera.read_noise_e and camera.dark_e need camera.photons above 0: noise relative to what?"
            )


class Recording(NamedTuple):
    """Frames as read out, in photons (or in units of the mean, without photon noise)."""

    frames: Tensor
    clipped: int
    """Pixels at full scale or above."""


class Camera:
    """Reads frames out; the exposure is set once, by reference frames, and then stays."""

    def __init__(self, section: CameraSection, reference_BYX: Tensor):
        section.check()
        self.section = section
        size = min(reference_BYX.shape[-2:])
        crop = section.crop_px or size
        if crop > size:
            raise ValueError(f"camera.crop_px = {crop} must be at most the frame's {size} pixels")
        if crop < section.binning or (not section.crop_px and size % section.binning):
            raise ValueError(f"camera.binning = {section.binning} must divide the frame's {size} pixels")
        mean = float(self._optics(reference_BYX).mean())
        if not mean > 0:
            raise ValueError("the reference frames are dark; give frames of at least one object that is not empty")
        self.exposure = (section.photons or 1.0) / mean
        """Photons (or means) per unit of intensity."""

    @property
    def full_scale(self) -> float:
        """The largest value that the converter shows."""
        return self.section.headroom * (self.section.photons or 1.0)

    @property
    def pedestal(self) -> float:
        """Photons of the background on every pixel."""
        return self.section.background * (self.section.photons or 1.0)

    def _optics(self, frames_BYX: Tensor) -> Tensor:
        section = self.section
        if section.envelope:
            blob = torch.linspace(-0.5, 0.5, frames_BYX.shape[-1], device=frames_BYX.device)
            row = torch.exp(-0.5 * (blob / section.envelope) ** 2)
            frames_BYX = frames_BYX * (row[:, None] * row[None, :])
        if section.crop_px:
            top, left = ((size - section.crop_px) // 2 for size in frames_BYX.shape[-2:])
            frames_BYX = frames_BYX[..., top : top + section.crop_px, left : left + section.crop_px]
        if section.binning > 1:
            frames_BYX = F.avg_pool2d(frames_BYX.unsqueeze(1), section.binning).squeeze(1)
        return frames_BYX

    def expose(self, frames_BYX: Tensor) -> Tensor:
        """Mean photons on every camera pixel (or means, without photon noise)."""
        return self._optics(frames_BYX) * self.exposure + self.pedestal

    def read(self, mean_BYX: Tensor, generator: torch.Generator | None = None) -> Recording:
        """Noise, bits and clipping on top of mean photons, as `expose` gives them."""
        section, seen = self.section, mean_BYX
        if section.photons:
            if generator is None:
                raise ValueError("a camera with camera.photons above 0 needs a generator for its noise")
            seen = torch.poisson(seen + section.dark_e, generator=generator)
            if section.read_noise_e:
                seen = seen + section.read_noise_e * torch.randn(seen.shape, generator=generator).to(seen)
            seen = seen - section.dark_e
        clipped = 0
        if section.bits:
            step = self.full_scale / (2**section.bits - 1)
            clipped = int((seen >= self.full_scale).sum())
            seen = (seen / step).round().clamp(0, 2**section.bits - 1) * step
        return Recording(seen, clipped)

    def record(self, frames_BYX: Tensor, generator: torch.Generator | None = None) -> Recording:
        """Read frames out. Noise needs a generator, and only then is anything random."""
        return self.read(self.expose(frames_BYX), generator)
