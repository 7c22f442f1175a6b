"""Free space: plane waves, energy, Gaussian beams against their formula, and torchoptics where it is installed."""

import math

import pytest
import torch

from isoflop.optics.field import intensity, through_aperture, transfer_function, wave_number

LIGHT = {"pitch_um": 0.5, "wavelength_um": 0.633}


def propagate(field: torch.Tensor, distance_um: float, dark: int = 0) -> torch.Tensor:
    """The field after free space: on a periodic grid, or with so many dark pixels around it."""
    wide = torch.nn.functional.pad(field, (dark,) * 4)
    transfer = transfer_function(tuple(wide.shape[-2:]), **LIGHT, distance_um=distance_um)  # type: ignore[arg-type]
    passed = torch.fft.ifft2(torch.fft.fft2(wide) * transfer)
    return passed[..., dark : dark + field.shape[-2], dark : dark + field.shape[-1]]


def gaussian_beam(size: int, waist_um: float, pitch_um: float) -> torch.Tensor:
    x = (torch.arange(size, dtype=torch.float64) - size // 2) * pitch_um
    return torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / waist_um**2).to(torch.complex128)


def test_a_plane_wave_gains_the_phase_of_its_direction_and_nothing_else():
    size, order = 64, 5
    x = torch.arange(size, dtype=torch.float64)
    wave = torch.exp(2j * math.pi * order * x / size).expand(size, size)
    kx = 2 * math.pi * order / (size * 0.5)
    expected = wave * complex(math.cos(z := 7.0 * math.sqrt(wave_number(0.633) ** 2 - kx**2)), math.sin(z))
    assert torch.allclose(propagate(wave, 7.0), expected, atol=1e-10)


def test_energy_is_kept_and_going_back_undoes_going_forth():
    field = torch.randn(2, 48, 32, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    there = propagate(field, 20.0)
    assert torch.allclose(intensity(there).sum(), intensity(field).sum(), rtol=1e-12)
    assert torch.allclose(propagate(there, -20.0), field, atol=1e-11)


def test_waves_finer_than_the_wavelength_die_out():
    transfer = transfer_function((32, 32), pitch_um=0.1, wavelength_um=0.633, distance_um=2.0)
    assert transfer.abs().max() <= 1 + 1e-12
    assert transfer[16, 16].abs() < 1e-12


def test_a_gaussian_beam_spreads_as_its_formula_says():
    waist, z = 12.0, 900.0
    beam = propagate(gaussian_beam(256, waist, 0.5), z, dark=128)
    width = waist * math.sqrt(1 + (z * 0.633 / (math.pi * waist**2)) ** 2)
    x = (torch.arange(256) - 128) * 0.5
    profile = intensity(beam)
    measured = 2 * math.sqrt(float((profile.sum(0) * x**2).sum() / profile.sum()))
    assert measured == pytest.approx(width, rel=0.01)


def test_an_aperture_keeps_the_mean_power_of_white_light():
    field = torch.randn(256, 256, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    assert intensity(through_aperture(field, 0.4)).mean() == pytest.approx(1.0, rel=0.03)


def test_propagation_agrees_with_torchoptics():
    torchoptics = pytest.importorskip("torchoptics", reason="torchoptics is not installed")
    data = gaussian_beam(128, 10.0, 0.5)
    theirs = torchoptics.Field(data, wavelength=0.633, spacing=0.5).propagate_to_z(150.0, propagation_method="ASM")
    ours = propagate(data, 150.0, dark=64)
    assert (ours - theirs.data).norm() / theirs.data.norm() < 1e-5  # they pad another way
