"""What light becomes behind a scattering slab: one interface, object in, intensity frame out, six kinds of medium.

    tm          one random transmission matrix; every frame pixel is a mix of all object pixels (a thick static slab)
    structured  the same statistics from Fourier transforms and random phases, for frames too large for a matrix
    multislice  thin phase screens and free space in turn; has a ballistic part and an anisotropy g
    memory      intensity is the object blurred by a speckle pattern (thin diffusers, inside the memory range)
    dynamic     a matrix that decorrelates with time; `draw` is the time
    family      another matrix of the same statistics for every `draw`

`build_medium(section)` makes one; its `intensity(objects_BYX, draw)` is the interface, static media ignore `draw`. A
seed fixes a medium for good. Shapes: B batch, Y X image axes, N object pixels, P frame pixels. Source: optics.md B3.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.optics.field import angular_frequencies, intensity, through_aperture, transfer_function, wave_number
from isoflop.optics.medium import MediumSection, illuminated

BLOCK_ROWS = 1024
"""Rows of a matrix that share a generator, so that any part of a matrix can be made alone."""
STORED_BYTES = 2**29
"""Matrices above this are made again, block by block, at every use."""


def seeded(*words: int) -> torch.Generator:
    """A generator that depends on all words and on nothing else."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class TransmissionMatrix(nn.Module):
    """E = T a with T_ij ~ CN(0, 1/N), so that the mean intensity is the mean of |a|^2 over the object."""

    def __init__(self, section: MediumSection, *words: int):
        super().__init__()
        section.check()
        self.section = section
        self._words = words or (section.seed,)
        self._n, self._p = section.object_px**2, section.frame_px**2
        if section.transmission and self._p < self._n:
            raise ValueError(
                f"medium.transmission needs frame_px = {section.frame_px} >= object_px = {section.object_px}; "
                f"take a crop of a larger frame instead"
            )
        self._matrices = nn.ParameterList()
        for polarisation in range(1 if section.polarised == 1 else 2):
            if 8 * self._n * self._p <= STORED_BYTES or section.transmission:
                matrix_PN = torch.cat([self._block(polarisation, start) for start in range(0, self._p, BLOCK_ROWS)])
                if section.transmission:
                    matrix_PN = _diffusive(matrix_PN, section.transmission)
                self._matrices.append(nn.Parameter(matrix_PN, requires_grad=False))

    def _block(self, polarisation: int, start: int) -> Tensor:
        rows = min(BLOCK_ROWS, self._p - start)
        generator = seeded(*self._words, polarisation, start // BLOCK_ROWS)
        parts = torch.randn(BLOCK_ROWS, self._n, 2, generator=generator)[:rows]
        return torch.view_as_complex(parts / math.sqrt(2 * self._n))

    def matrix(self, polarisation: int = 0) -> Tensor:
        """T [P, N] of one polarisation."""
        if len(self._matrices) > polarisation:
            return self._matrices[polarisation].data
        return torch.cat([self._block(polarisation, start) for start in range(0, self._p, BLOCK_ROWS)])

    def field(self, objects_BYX: Tensor, polarisation: int = 0) -> Tensor:
        """The complex field on the frame, before the power of the polarisations is shared."""
        section = self.section
        lit_BN = illuminated(objects_BYX, section).flatten(1).to(torch.complex64)
        if len(self._matrices) > polarisation:
            field_BP = lit_BN @ self._matrices[polarisation].T
        else:
            starts = range(0, self._p, BLOCK_ROWS)
            field_BP = torch.cat([lit_BN @ self._block(polarisation, start).T.to(lit_BN.device) for start in starts], 1)
        field_BYX = field_BP.unflatten(1, (section.frame_px, section.frame_px))
        if section.aperture:
            field_BYX = through_aperture(field_BYX, section.aperture)
        if section.ballistic and polarisation == 0:
            image_BYX = _enlarged(lit_BN.unflatten(1, (section.object_px, section.object_px)), section.frame_px)
            field_BYX = (
                math.sqrt(1 - section.ballistic) * field_BYX
                + math.sqrt(section.ballistic / section.polarised) * image_BYX
            )
        return field_BYX

    def intensity(self, objects_BYX: Tensor, draw: int = 0) -> Tensor:
        """The frames [B, Y, X]; `draw` makes no difference."""
        share = self.section.polarised
        frames = share * intensity(self.field(objects_BYX))
        return frames if share == 1 else frames + (1 - share) * intensity(self.field(objects_BYX, 1))


class Structured(nn.Module):
    """Random phases and Fourier transforms in turn: the statistics of a matrix in N log N time and no memory."""

    def __init__(self, section: MediumSection):
        super().__init__()
        section.check()
        self.section = section
        shape = (section.layers, section.frame_px, section.frame_px)
        angles = 2 * math.pi * torch.rand(shape, generator=seeded(section.seed, 1))
        self._screens = nn.Parameter(torch.polar(torch.ones(shape), angles), requires_grad=False)

    def field(self, objects_BYX: Tensor) -> Tensor:
        """The complex field on the frame; a unitary map of the padded object, scaled as a matrix of CN(0, 1/N)."""
        section = self.section
        field_BYX = _centred(illuminated(objects_BYX, section).to(torch.complex64), section.frame_px)
        for screen_YX in self._screens:
            field_BYX = torch.fft.fft2(field_BYX * screen_YX, norm="ortho")
        field_BYX = field_BYX * (section.frame_px / section.object_px)
        return through_aperture(field_BYX, section.aperture) if section.aperture else field_BYX

    def intensity(self, objects_BYX: Tensor, draw: int = 0) -> Tensor:
        """The frames [B, Y, X]; `draw` makes no difference."""
        return intensity(self.field(objects_BYX))


class Multislice(nn.Module):
    """E <- propagate(E exp(i phi)), slice by slice, on a grid twice the frame, of which the middle is seen.

    Screens are Gaussian with variance dz/l_s, so the ballistic power is exp(-L/l_s), and correlation
    exp(-r^2/l_c^2) with l_c = sqrt(2/(1-g))/k0. Source: optics.md B3.
    """

    def __init__(self, section: MediumSection):
        super().__init__()
        section.check()
        self.section = section
        self.n_slices = section.slices or max(1, math.ceil(2 * section.optical_depth))
        self._grid = 2 * section.frame_px
        dz = section.thickness_um / self.n_slices
        screens = torch.stack([self._screen(index) for index in range(self.n_slices)])
        self._screens = nn.Parameter(torch.polar(torch.ones_like(screens), screens), requires_grad=False)
        transfer = transfer_function(
            (self._grid, self._grid), pitch_um=section.pitch_um, wavelength_um=section.wavelength_um, distance_um=dz
        )
        self._transfer = nn.Parameter(transfer.to(torch.complex64), requires_grad=False)

    def _screen(self, index: int) -> Tensor:
        section = self.section
        return gaussian_screen(
            self._grid,
            variance=section.optical_depth / self.n_slices,
            correlation_um=correlation_length_um(section.anisotropy, section.wavelength_um),
            pitch_um=section.pitch_um,
            generator=seeded(section.seed, 2, index),
        )

    def through(self, field_BYX: Tensor) -> Tensor:
        """A field on the whole periodic grid behind all slices."""
        for screen_YX in self._screens:
            field_BYX = torch.fft.ifft2(torch.fft.fft2(field_BYX * screen_YX) * self._transfer)
        return field_BYX

    def field(self, objects_BYX: Tensor) -> Tensor:
        """The complex field of the middle half of the grid, the object filling it in front of the slab."""
        size = self.section.frame_px
        lit_BYX = _enlarged(illuminated(objects_BYX, self.section).to(torch.complex64), size)
        edge = size // 2
        return self.through(_centred(lit_BYX, self._grid))[..., edge : edge + size, edge : edge + size]

    def intensity(self, objects_BYX: Tensor, draw: int = 0) -> Tensor:
        """The frames [B, Y, X]; `draw` makes no difference."""
        return intensity(self.field(objects_BYX))


class MemoryEffect(nn.Module):
    """I = psf * |a|^2 with a speckle pattern as psf: every object point makes the same pattern, moved with it."""

    def __init__(self, section: MediumSection):
        super().__init__()
        section.check()
        self.section = section
        angles = 2 * math.pi * torch.rand(section.frame_px, section.frame_px, generator=seeded(section.seed, 3))
        pattern = torch.polar(torch.ones_like(angles), angles)
        psf = intensity(through_aperture(torch.fft.fft2(pattern, norm="ortho"), section.aperture or 0.5))
        self.psf = nn.Parameter(psf / psf.sum(), requires_grad=False)

    def intensity(self, objects_BYX: Tensor, draw: int = 0) -> Tensor:
        """The frames [B, Y, X], a circular convolution that keeps the power; `draw` makes no difference."""
        power_BYX = _centred(
            intensity(illuminated(objects_BYX, self.section).to(torch.complex64)), self.section.frame_px
        )
        return torch.fft.irfft2(torch.fft.rfft2(power_BYX) * torch.fft.rfft2(self.psf), s=power_BYX.shape[-2:])


class Dynamic(nn.Module):
    """T(t) = sqrt(rho) T0 + sqrt(1 - rho) T1 with rho = exp(-t/lifetime); `draw` is the time t."""

    def __init__(self, section: MediumSection):
        super().__init__()
        self.section = section
        self._old, self._new = (TransmissionMatrix(section, section.seed, part) for part in (4, 5))

    def intensity(self, objects_BYX: Tensor, draw: int = 0) -> Tensor:
        """The frames [B, Y, X] at time `draw`."""
        rho = math.exp(-draw / self.section.lifetime)
        total = torch.zeros(())
        for polarisation, share in enumerate((self.section.polarised, 1 - self.section.polarised)):
            if share:
                old, new = (part.field(objects_BYX, polarisation) for part in (self._old, self._new))
                total = total.to(old.device) + share * intensity(math.sqrt(rho) * old + math.sqrt(1 - rho) * new)
        return total


class Family(nn.Module):
    """Another matrix of the same statistics for every draw."""

    def __init__(self, section: MediumSection):
        super().__init__()
        section.check()
        self.section = section

    def member(self, draw: int) -> TransmissionMatrix:
        """The medium number `draw`."""
        return TransmissionMatrix(self.section, self.section.seed, 6, draw)

    def intensity(self, objects_BYX: Tensor, draw: int = 0) -> Tensor:
        """The frames [B, Y, X] of medium number `draw`."""
        return self.member(draw).to(objects_BYX.device).intensity(objects_BYX)


Medium = TransmissionMatrix | Structured | Multislice | MemoryEffect | Dynamic | Family


def build_medium(section: MediumSection) -> Medium:
    """The medium that a section describes. Raises ValueError naming the field at fault."""
    made = {
        "tm": TransmissionMatrix,
        "structured": Structured,
        "multislice": Multislice,
        "memory": MemoryEffect,
        "dynamic": Dynamic,
        "family": Family,
    }
    return made[section.kind](section)


def correlation_length_um(anisotropy: float, wavelength_um: float) -> float:
    """l_c = sqrt(2 / (1 - g)) / k0 (optics.md B3, small angles)."""
    return math.sqrt(2 / (1 - anisotropy)) / wave_number(wavelength_um)


def gaussian_screen(
    size: int, *, variance: float, correlation_um: float, pitch_um: float, generator: torch.Generator
) -> Tensor:
    """A periodic phase screen [size, size] of zero mean, given variance and correlation exp(-r^2/l_c^2)."""
    k_X = angular_frequencies(size, pitch_um)
    spectrum_YX = torch.exp(-(k_X[:, None] ** 2 + k_X[None, :] ** 2) * correlation_um**2 / 4)
    spectrum_YX = spectrum_YX * (variance / spectrum_YX.mean())
    white_YX = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.fft.ifft2(torch.fft.fft2(white_YX) * spectrum_YX.sqrt()).real.float()


def _diffusive(matrix_PN: Tensor, transmission: float) -> Tensor:
    """Give T the bimodal eigenvalues of a diffusive slab: tau = 1/cosh^2(x), x uniform on 0 to x0, mean transmission.

    Scaled back to the mean power of the independent matrix. Source: Dorokhov's distribution, a textbook value.
    """
    if transmission == 1:
        x0 = 0.0
    else:
        low, high = 1e-6, 1.0 / transmission + 1.0  # tanh(x0) / x0 = transmission
        for _ in range(80):
            x0 = 0.5 * (low + high)
            low, high = (x0, high) if math.tanh(x0) / x0 > transmission else (low, x0)
        x0 = 0.5 * (low + high)
    u, s, vh = torch.linalg.svd(matrix_PN, full_matrices=False)
    x = (torch.arange(len(s)) + 0.5) / len(s) * x0
    shaped = 1 / torch.cosh(x)
    return (u * (shaped * (s.norm() / shaped.norm()))) @ vh


def _enlarged(image_BYX: Tensor, size: int) -> Tensor:
    """Nearest-neighbour resize to `size` pixels a side, complex or not."""
    index = (torch.arange(size, device=image_BYX.device) * image_BYX.shape[-1]) // size
    return image_BYX[..., index[:, None], index[None, :]]


def _centred(image_BYX: Tensor, size: int) -> Tensor:
    """The image in the middle of a dark square of `size` pixels a side."""
    left = (size - image_BYX.shape[-1]) // 2
    right = size - image_BYX.shape[-1] - left
    return F.pad(image_BYX, (left, right, left, right))
