"""Balanced detection and charge integration: leak, full scale, and the variance of every noise term.

Charges are in MAC units (the charge of one symbol with x = w = 1), variances in MAC units squared. Source: A5, A6.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.optics.config import CoreConfig, OpticsError
from isoflop.optics.converters import at_least_float
from isoflop.optics.units import BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C


@dataclass(frozen=True)
class Moments:
    """What noise depends on: sums of x and of x^2 over a window, the mean of w^2 of a neuron, sum x^2 w^2 if asked."""

    light_M1: Tensor
    light2_M1: Tensor
    weight2_N: Tensor
    n_symbols: int
    both2_MN: Tensor | None = None

    def rows(self, stride: int) -> "Moments":
        """Every `stride`-th window."""
        both2_MN = None if self.both2_MN is None else self.both2_MN[::stride]
        return Moments(self.light_M1[::stride], self.light2_M1[::stride], self.weight2_N, self.n_symbols, both2_MN)

    def sum_of_squares(self) -> Tensor:
        """sum x^2 w^2, exact where the second product was made, else as if x^2 and w^2 were uncorrelated (A6)."""
        return self.light2_M1 * self.weight2_N if self.both2_MN is None else self.both2_MN


def decay(config: CoreConfig, n_symbols: int, like: Tensor) -> Tensor | None:
    """Share of each symbol's charge that is left at the end of its window; None without a leak. Shapes: [K].

    Raises:
        OpticsError: the leak is to be corrected, but weights at the start of a window would have to grow without bound.
    """
    if math.isinf(config.leak_s):
        return None
    windows = n_symbols * config.symbol_s / config.leak_s
    if config.leak_correction and windows > 5.0:
        raise OpticsError(
            f"leak_s = {config.leak_s:g} is {1 / windows:.2g} of an integration of {n_symbols} symbols: no headroom to "
            f"correct it; give at least {n_symbols * config.symbol_s / 5.0:.3g} s or leak_correction = false"
        )
    left = torch.arange(n_symbols - 1, -1, -1, dtype=like.dtype, device=like.device)
    return torch.exp(left * (-config.symbol_s / config.leak_s))


def constant_variance(config: CoreConfig, n_symbols: int) -> dict[str, float]:
    """Terms that depend on time alone: dark, amplifier, output, and reset noise of a given capacitor."""
    electrons = {
        "dark": 2.0 * config.dark_current_a * n_symbols * config.symbol_s / ELEMENTARY_CHARGE_C,
        "amplifier": config.amplifier_a_per_rthz**2 * n_symbols * config.symbol_s / (2.0 * ELEMENTARY_CHARGE_C**2),
        "reset": BOLTZMANN_J_PER_K * config.temperature_k * config.capacitor_f / ELEMENTARY_CHARGE_C**2,
    }
    found = {name: value / config.n_e**2 for name, value in electrons.items()}
    found["output"] = config.output_noise**2
    return {name: value for name, value in found.items() if name in config.noise and value > 0.0}


def reset_slope(config: CoreConfig) -> float:
    """kT/C noise for each MAC unit of full scale, when the capacitor is sized by it."""
    if "reset" not in config.noise or config.capacitor_f:
        return 0.0
    volts = BOLTZMANN_J_PER_K * config.temperature_k / ELEMENTARY_CHARGE_C
    return volts / (config.swing_v * config.n_e)


def symbol_variance(config: CoreConfig) -> float:
    """Relative variance of one symbol: fast intensity noise of the laser, and what calibration leaves."""
    rin = config.rin_per_symbol if "rin" in config.noise else 0.0
    return rin + (config.residual**2 if "residual" in config.noise else 0.0)


def noise_terms(
    config: CoreConfig, moments: Moments, charge_MN: Tensor, full_scale: Tensor | None
) -> dict[str, Tensor]:
    """Variance of each term that is on. Shapes: each broadcasts to charge_MN."""
    like = moments.light_M1
    terms = {name: like.new_tensor(value) for name, value in constant_variance(config, moments.n_symbols).items()}
    if "shot" in config.noise:
        terms["shot"] = shot_variance(config, moments)
    for name, relative in (("rin", config.rin_per_symbol), ("residual", config.residual**2)):
        if name in config.noise and relative > 0.0:
            terms[name] = relative * moments.sum_of_squares()
    if "gain" in config.noise and config.gain_error:
        terms["gain"] = config.gain_error**2 * charge_MN.square()
    if full_scale is not None and (slope := reset_slope(config)):
        terms["reset"] = slope * full_scale
    return terms


def shot_variance(config: CoreConfig, moments: Moments) -> Tensor:
    """Both diodes see all light, so weights do not enter; in a homodyne receiver half of the light is the reference.

    Field encoding: power (1 + x^2 w^2)/2 a symbol, for a reference as strong as the signal at x = w = 1 (derived here).
    """
    if config.signs == "field":
        return (0.5 / config.n_e) * (moments.n_symbols + moments.sum_of_squares())
    return moments.light_M1 / config.n_e


def noise_variance(config: CoreConfig, moments: Moments, charge_MN: Tensor, reset: Tensor | float = 0.0) -> Tensor:
    """Sum of all terms in one or two passes; `reset` is that of a capacitor sized by the full scale.

    Shapes: [M, N], or [M, 1] where all neurons see the same.
    """
    per_row = charge_MN.new_full((1, 1), sum(constant_variance(config, moments.n_symbols).values())) + reset
    if "shot" in config.noise:
        per_row = per_row + shot_variance(config, moments)
    if relative := symbol_variance(config):
        if moments.both2_MN is None:
            variance = torch.addcmul(per_row, moments.light2_M1, moments.weight2_N, value=relative)
        else:
            variance = torch.add(per_row, moments.both2_MN, alpha=relative)
    else:
        variance = per_row
    if "gain" in config.noise and config.gain_error:
        variance = torch.addcmul(variance, charge_MN, charge_MN, value=config.gain_error**2)
    return variance


def sampling_stride(n_windows: int) -> int:
    """Full scale follows from about 128 of the windows: every so many-th."""
    return max(1, n_windows // 128)


def full_scale_of(config: CoreConfig, charge_MN: Tensor, moments: Moments | None) -> Tensor:
    """Largest result that will be read, from some of the windows, inside what a given capacitor holds.

    With `moments`, for charges that noise is still to be added to.
    """
    if config.full_scale:
        found = at_least_float(charge_MN.new_full((), config.full_scale))
    else:
        stride = sampling_stride(charge_MN.shape[0])
        sample = at_least_float(charge_MN[::stride])
        mean = sample.mean()
        variance = sample.square().mean() - mean.square()
        if moments is not None:
            variance = variance + noise_variance(config, moments.rows(stride), sample).mean()
        found = mean.abs() + config.range_deviations * variance.clamp_min(0.0).sqrt()
    return found.clamp(1.0 / config.n_e, config.swing_limit)
