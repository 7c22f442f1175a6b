"""Complex light fields on a grid: propagation through free space by the angular spectrum, apertures, what is seen.

A field is a complex tensor whose last two dimensions are Y and X; its intensity is |E|^2. Nothing here is random.
Shapes: B batch, Y X image axes. Units: lengths in micrometres throughout, so only their ratios matter.
"""

import math

import torch
from torch import Tensor


def wave_number(wavelength_um: float) -> float:
    """k = 2 pi / lambda, in radians per micrometre."""
    return 2 * math.pi / wavelength_um


def angular_frequencies(size: int, pitch_um: float, *, device: torch.device | str = "cpu") -> Tensor:
    """Wave numbers in radians per micrometre along one axis, in the order of the FFT, float64."""
    return 2 * math.pi * torch.fft.fftfreq(size, d=pitch_um, device=device, dtype=torch.float64)


def transfer_function(
    shape: tuple[int, int],
    *,
    pitch_um: float,
    wavelength_um: float,
    distance_um: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """exp(i z kz) on the grid of the FFT; evanescent waves decay. complex128.

    Computed in double precision because z kz is thousands of radians.
    Source: optics.md B3, kz = sqrt(k0^2 - kx^2 - ky^2).
    """
    ky_Y, kx_X = (angular_frequencies(size, pitch_um, device=device) for size in shape)
    kz_squared_YX = wave_number(wavelength_um) ** 2 - ky_Y[:, None] ** 2 - kx_X[None, :] ** 2
    kz_YX = torch.sqrt(kz_squared_YX.to(torch.complex128))  # imaginary where evanescent
    return torch.exp(1j * kz_YX.real * distance_um - kz_YX.imag * abs(distance_um))


def through_aperture(field_BYX: Tensor, aperture: float) -> Tensor:
    """The field behind a round aperture, scaled so that white light keeps its mean power; sets the grain size.

    `aperture` is its radius in the frequency plane as a share of the Nyquist frequency.
    """
    fy_Y, fx_X = (torch.fft.fftfreq(size, d=0.5, device=field_BYX.device) for size in field_BYX.shape[-2:])
    passes_YX = (fy_Y[:, None] ** 2 + fx_X[None, :] ** 2 <= aperture**2).float()
    share = passes_YX.mean()
    return torch.fft.ifft2(torch.fft.fft2(field_BYX) * passes_YX) / share.sqrt()


def intensity(field: Tensor) -> Tensor:
    """|E|^2, without the square root that abs() would take."""
    return field.real.square() + field.imag.square()


def correlation(a_BYX: Tensor, b_BYX: Tensor) -> Tensor:
    """Pearson correlation of two frames, pair by pair."""
    a_BP, b_BP = (frames.flatten(1).double() for frames in (a_BYX, b_BYX))
    a_BP, b_BP = (x - x.mean(1, keepdim=True) for x in (a_BP, b_BP))
    return (a_BP * b_BP).sum(1) / (a_BP.norm(dim=1) * b_BP.norm(dim=1)).clamp_min(1e-30)
