"""The tensor core symbol by symbol: drive voltages, bandwidth, light, electrons, charge; in bounded memory.

It shares scales, converters and read-out with the analytic core and nothing in between, so each checks the other. What
only it knows: interference of neighbouring symbols, pre-emphasis, skew of the two streams, counting of single photons.

Shapes: M windows, N neurons, K symbols; a block of symbols [M, N, B] is in memory at a time.
"""

import math

import torch
from torch import Tensor

from isoflop.optics.config import CoreConfig, OpticsError
from isoflop.optics.modulator import input_dac_, input_light_, input_phase_, weight_dac_, weight_light_, weight_phase_
from isoflop.optics.receiver import constant_variance, decay, full_scale_of, reset_slope
from isoflop.optics.tensor_core import Random, Readout, TensorCore

BLOCK_ELEMENTS = 1 << 21
"""Numbers of a block: a dozen such tensors are alive at a time, about 100 MB in float32."""
POISSON_BELOW = 50.0
"""Mean electrons of a symbol below which they are counted; a Gaussian is close enough above (A6)."""


class WaveformCore(TensorCore):
    """`TensorCore` with every symbol simulated; no gradients, and `residual` is left to the physics."""

    @torch.no_grad()
    def product(self, x: Tensor, w: Tensor, generator: Random = None, *, full_scale: Tensor | None = None) -> Readout:
        """x W^T with everything that the core does to it. Shapes: x [..., K], w [N, K] -> y [..., N]."""
        return super().product(x, w, generator, full_scale=full_scale)

    def _window(self, x: Tensor, w: Tensor, generator: Random, full_scale: Tensor | None) -> Readout:
        config = self.config
        if config.noise and not isinstance(generator, torch.Generator):
            raise OpticsError("every symbol of a waveform has noise of its own: pass a torch.Generator, or use quiet()")
        draw = generator if isinstance(generator, torch.Generator) else None
        sent_MK, x_MK, scale_M1 = self.normalise_inputs(x)
        weight_NK, scale_N = self.normalise_weights(w)
        charge_MN, light_M1 = self._integrate(sent_MK, x_MK, weight_NK, draw)
        if full_scale is None and config.is_limited:
            full_scale = full_scale_of(config, charge_MN, None)
        if config.noise and draw is not None:
            once = constant_variance(config, sent_MK.shape[1])
            variance = charge_MN.square() * (config.gain_error**2 if "gain" in config.noise else 0.0)
            variance += once.get("output", 0.0) + once.get("reset", 0.0)
            variance += reset_slope(config) * full_scale if full_scale is not None else 0.0
            charge_MN += variance.sqrt_() * _normal(charge_MN.shape, draw, charge_MN)
        offset_M1 = 0.5 * config.imbalance * light_M1 if config.imbalance else None
        # The digital side knows what it sent, not what arrived: `offset` subtracts the weights as the DAC put them out.
        sum_N = self.encode_weights(w, generator).value.sum(1) if config.signs == "offset" else None
        return self._convert(charge_MN, full_scale, offset_M1, sum_N, (scale_M1, scale_N))

    def _integrate(
        self, sent_MK: Tensor, x_MK: Tensor, weight_NK: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Charge of every window with the noise of its symbols, and what its light alone would leave on one diode."""
        config, (m, k), n = self.config, sent_MK.shape, weight_NK.shape[0]
        field, fold = config.signs == "field", config.signs == "fold"
        left_K, taps = decay(config, k, sent_MK), pre_emphasis(config)
        late = config.skew_s * config.symbol_rate_hz  # an early weight stream is a late input stream
        rounding = generator if config.stochastic_rounding else None
        charge_MN, light_M1 = sent_MK.new_zeros(m, n), sent_MK.new_zeros(m, 1)
        block, reach = max(1, BLOCK_ELEMENTS // (m * n)), len(taps) + 2
        for start in range(0, k, block):
            end, first = min(k, start + block), max(0, start - reach)  # what the symbols before it leave behind
            sent_MB, weight_NB = sent_MK[:, first:end].clone(), weight_NK[:, first:end].clone()
            in_MB = weight_phase_(self._input_field, sent_MB) if field else input_phase_(config, sent_MB)
            by_MNB = weight_phase_(self._optics, weight_NB)[None]
            if fold:
                by_MNB = by_MNB * x_MK[:, None, first:end].sign()
            in_MB, by_MNB = filtered(in_MB, taps), filtered(by_MNB, taps)
            in_MB = weight_dac_(self._input_field, in_MB, rounding) if field else input_dac_(config, in_MB, rounding)
            by_MNB = weight_dac_(self._optics, by_MNB, rounding)
            in_MB = mixed(mixed(in_MB, config.isi), max(0.0, -late))[..., start - first :]
            by_MNB = mixed(mixed(by_MNB, config.isi), max(0.0, late))[..., start - first :]
            x_MB = weight_light_(self._input_field, in_MB) if field else input_light_(config, in_MB)
            left_B = None if left_K is None else left_K[start:end]
            light_M1 += x_MB.abs().sum(1, keepdim=True) if left_B is None else (x_MB.abs() @ left_B).unsqueeze(1)
            symbols_MNB = photocharge(config, x_MB[:, None], weight_light_(self._optics, by_MNB), generator)
            charge_MN += symbols_MNB.sum(2) if left_B is None else symbols_MNB @ left_B
        return charge_MN, light_M1


def pre_emphasis(config: CoreConfig) -> list[float]:
    """Filter that undoes the bandwidth: u_k = (v_k - a u_(k-1))/(1 - a), written out until it is below 1e-7.

    Raises:
        OpticsError: the bandwidth is too small for the filter to be stable.
    """
    if not config.pre_emphasis or config.isi == 0.0:
        return [1.0]
    if config.isi >= 0.49:
        least = 0.29 * config.symbol_rate_hz  # there the share is 0.46
        raise OpticsError(
            f"bandwidth_hz = {config.bandwidth_hz:g} mixes {config.isi:.0%} of the previous symbol into each one: that "
            f"cannot be corrected; give at least {least:.3g} Hz, or pre_emphasis = false"
        )
    ratio = -config.isi / (1.0 - config.isi)
    count = 1 + math.ceil(math.log(1e-7) / math.log(-ratio))
    return [ratio**tap / (1.0 - config.isi) for tap in range(count)]


def filtered(drive: Tensor, taps: list[float]) -> Tensor:
    """Causal filter along the last dimension; before its start a stream stood still."""
    if len(taps) == 1:
        return drive.contiguous()
    padded = torch.cat([drive[..., :1].expand(*drive.shape[:-1], len(taps) - 1), drive], -1)
    length = drive.shape[-1]
    out = drive * taps[0]
    for tap, weight in enumerate(taps[1:], start=1):
        begin = len(taps) - 1 - tap
        out.add_(padded[..., begin : begin + length], alpha=weight)
    return out


def mixed(drive: Tensor, share: float) -> Tensor:
    """Average of a symbol that remembers a share of the one before it. Source: A4."""
    if share == 0.0:
        return drive
    before = torch.cat([drive[..., :1], drive[..., :-1]], -1)
    return torch.lerp(drive, before, share)


def photocharge(config: CoreConfig, x: Tensor, w: Tensor, generator: torch.Generator | None) -> Tensor:
    """Charge of each symbol with its noise, MAC units: laser, electrons of both diodes, dark current, amplifier.

    Shapes: x [M, 1, B], w [M or 1, N, B] -> [M, N, B].
    """
    shape = torch.broadcast_shapes(x.shape, w.shape)
    if generator is not None and "rin" in config.noise:
        x = x * (1.0 + math.sqrt(config.rin_per_symbol) * _normal(shape, generator, x))
    signal = x * w
    field = config.signs == "field"
    if generator is None or not config.noise:
        return signal if not config.imbalance else signal + 0.5 * config.imbalance * x
    if field:  # reference and signal as strong as each other at x = w = 1
        bright, cross = 0.25 * (1.0 + signal).square(), 0.25 * (1.0 - signal).square()
    else:
        bright, cross = 0.5 * (x + signal), 0.5 * (x - signal)
    bright, cross = bright * (1.0 + 0.5 * config.imbalance), cross * (1.0 - 0.5 * config.imbalance)
    per_symbol = constant_variance(config, 1)
    variance = per_symbol.get("dark", 0.0) + per_symbol.get("amplifier", 0.0)
    charge = bright - cross
    if "shot" in config.noise and config.n_e < POISSON_BELOW:
        counted = torch.poisson((bright * config.n_e).clamp_min(0.0), generator)
        charge = counted.sub_(torch.poisson((cross * config.n_e).clamp_min(0.0), generator)).div_(config.n_e)
    elif "shot" in config.noise:
        spread = (bright + cross).clamp_min_(0.0).mul_(1.0 / config.n_e).add_(variance).sqrt_()
        return charge.addcmul_(spread, _normal(shape, generator, charge))
    if variance:
        charge = charge + math.sqrt(variance) * _normal(shape, generator, charge)
    return charge


def _normal(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
