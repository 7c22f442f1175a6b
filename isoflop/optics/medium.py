"""What a scattering medium is, as data: `MediumSection`, and how an object becomes a field in front of it.

Source: optics.md B2 and B3. The thickness of 13.4 mean free paths is the paper's (arXiv 1708.07881), every other
value is an assumption of ours. Shapes: B batch, Y X image axes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class MediumSection:
    """The slab and the light in front of it."""

    kind: Literal["tm", "structured", "multislice", "memory", "dynamic", "family"] = "tm"
    """tm: random matrix; structured: random phases and Fourier transforms in turn; multislice: phase screens in a
    row; memory: one speckle that moves with the point; dynamic: a matrix that drifts; family: one for every frame."""
    object_px: int = 28
    """Side of the object in pixels, 1 to 512."""
    frame_px: int = 64
    """Side of the frame in pixels, at least 2; for multislice and memory at least object_px."""
    seed: int = 0
    """Which slab it is, 0 or above."""
    light: Literal["amplitude", "phase"] = "amplitude"
    """How an object value v in [0, 1] acts on the light: a = v, or a = exp(i pi v)."""
    aperture: float = 0.0
    """Radius of the exit aperture as a share of the Nyquist frequency, 0 to 1: the grain size; 0: none (tm kinds)."""
    transmission: float = 0.0
    """Mean transmission of a diffusive slab with bimodal eigenvalues, 0 to 1; 0: independent entries (tm kinds)."""
    polarised: float = 1.0
    """Share of the power in the stronger of two polarisations, 0.5 to 1; the other has its own matrix (tm kinds)."""
    ballistic: float = 0.0
    """Share of the power that crosses unscattered and coherent, 0 to below 1 (tm kinds)."""
    layers: int = 2
    """Random phase screens of a structured medium, at least 1."""
    lifetime: float = 100.0
    """Draws until the field correlation of a dynamic medium's old part, rho, has fallen to 1/e, above 0."""
    optical_depth: float = 13.4
    """Thickness over scattering mean free path of a multislice medium, above 0 (paper: 13.4)."""
    anisotropy: float = 0.9
    """Mean cosine g of the scattering angle (multislice), 0.5 to below 1; assumption, the paper's is not known."""
    slices: int = 0
    """Phase screens of a multislice medium; 0: enough for a variance of 0.5 each."""
    thickness_um: float = 60.0
    """Of a multislice medium, above 0: a slab scaled down, the same in mean free paths (assumption)."""
    wavelength_um: float = 0.633
    """Above 0 (assumption)."""
    pitch_um: float = 0.3
    """Grid of a multislice medium, above 0 and at most half a wavelength."""

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the valid range."""
        whole = {"object_px": (1, 512), "frame_px": (2, 4096), "seed": (0, 2**62), "layers": (1, 16)}
        for name, (low, high) in whole.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"medium.{name} = {getattr(self, name)} must be in {low} to {high}")
        shares = {"aperture": (0.0, 1.0), "transmission": (0.0, 1.0), "polarised": (0.5, 1.0)}
        for name, (low, high) in shares.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"medium.{name} = {getattr(self, name)} must be in {low:g} to {high:g}")
        if not 0 <= self.ballistic < 1:
            raise ValueError(f"medium.ballistic = {self.ballistic} must be at least 0 and below 1")
        if not 0.5 <= self.anisotropy < 1:
            raise ValueError(
                f"medium.anisotropy = {self.anisotropy} must be at least 0.5 and below 1: small angles only"
            )
        for name in ("lifetime", "optical_depth", "thickness_um", "wavelength_um", "pitch_um"):
            if not getattr(self, name) > 0:
                raise ValueError(f"medium.{name} = {getattr(self, name)} must be above 0")
        if self.kind in ("structured", "multislice", "memory") and self.frame_px < self.object_px:
            raise ValueError(
                f"medium.frame_px = {self.frame_px} must be at least medium.object_px = {self.object_px} "
                f"for {self.kind}"
            )
        if self.kind == "multislice":
            if self.pitch_um > 0.5 * self.wavelength_um:
                raise ValueError(
                    f"medium.pitch_um = {self.pitch_um} must be at most half of medium.wavelength_um = "
                    f"{self.wavelength_um}"
                )
            if self.slices and self.optical_depth / self.slices >= 1:
                least = math.floor(self.optical_depth) + 1
                raise ValueError(
                    f"medium.slices = {self.slices} gives each screen a variance of "
                    f"{self.optical_depth / self.slices:.3g}, it must be below 1: use at least {least} slices"
                )


def illuminated(objects_BYX: Tensor, section: MediumSection) -> Tensor:
    """The field behind the objects; complex objects are fields already.

    Raises: ValueError for objects of another size, or values outside 0 to 1.
    """
    shape = tuple(objects_BYX.shape)
    if len(shape) != 3 or shape[1:] != (section.object_px, section.object_px):
        raise ValueError(
            f"objects of shape {shape} do not fit medium.object_px = {section.object_px}; "
            f"give (batch, {section.object_px}, {section.object_px})"
        )
    if objects_BYX.is_complex():
        return objects_BYX
    low, high = (float(value) for value in objects_BYX.aminmax()) if objects_BYX.numel() else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"object values are {low:.4g} to {high:.4g}, they must be in 0 to 1; divide 8-bit images by 255"
        )
    values = objects_BYX.float()
    if section.light == "phase":
        return torch.polar(torch.ones_like(values), math.pi * values)
    return values
