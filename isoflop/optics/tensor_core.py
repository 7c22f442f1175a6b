"""The photonic tensor core: y = x W^T as light computes it, in the order the light travels.

A window is one dot product: inputs and weights stream past as symbols, one charge is integrated, one number is read.
The core here is `analytic`: all windows in one matrix product, and closed-form statistics of what each of them suffers.
`waveform.py` does the same symbol by symbol. With every imperfection off the product is exact.

Shapes: M windows (rows of x; twice as many for signs = "two_pass"), K symbols (fan-in), N neurons (fan-out).
Units: charges in MAC units, see CoreConfig.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS, CoreConfig, OpticsError, Scaling
from isoflop.optics.converters import at_least_float, on_steps, read_codes, straight_through
from isoflop.optics.modulator import encode_inputs_, encode_weights_, weight_dac_, weight_phase_
from isoflop.optics.receiver import Moments, decay, full_scale_of, noise_variance, reset_slope, symbol_variance
from isoflop.optics.signs import combine, combine_clips, largest_input, signed_light, to_numbers, to_windows

Random = torch.Generator | Callable[[Tensor], Tensor] | None
"""Where noise comes from: a generator, or a function that returns standard normals like its argument."""

ALMOST_NOTHING = 2.0**-100
"""Rows below it are sent as zeros: the reciprocal of a smaller scale, times the steps of a converter, is not finite."""


@dataclass(frozen=True)
class Encoded:
    """An operand as light: signed values, and the digital scales that turn them back.

    Shapes: inputs [M, K] with scale [M or 1, 1] and total light [M, 1] (None: not counted yet), weights [N, K] with
    scale [N or 1]. `common` is light that a drifted bias lets through whatever the sign of the input, None without
    drift.
    """

    value: Tensor
    scale: Tensor
    total: Tensor | None = None
    common: Tensor | None = None


@dataclass(frozen=True)
class Readout:
    """Results [..., N], which windows were beyond full scale (None: there is no limit), and full scale in MAC units."""

    y: Tensor
    clipped: Tensor | None
    full_scale: Tensor | None

    @property
    def n_clipped(self) -> int:
        """How many windows were beyond full scale."""
        return 0 if self.clipped is None else int(self.clipped.sum())


class TensorCore:
    """A core with one configuration and no state: randomness comes from generators."""

    def __init__(self, config: CoreConfig):
        self.config = config
        # A homodyne receiver sees a field and rejects what leaks by its phase: nothing limits the contrast.
        self._optics = dataclasses.replace(config, extinction_db=math.inf) if config.signs == "field" else config
        self._counts_light = "shot" in config.noise or bool(config.imbalance)
        self._input_field = dataclasses.replace(self._optics, weight_bits=config.input_bits)

    def matmul(self, x: Tensor, w: Tensor, generator: Random = None) -> Tensor:
        """`product` without its particulars."""
        return self.product(x, w, generator).y

    def product(self, x: Tensor, w: Tensor, generator: Random = None, *, full_scale: Tensor | None = None) -> Readout:
        """x W^T with everything that the core does to it; differentiable, straight through the converters.

        Shapes: x [..., K], w [N, K] -> y [..., N]. `full_scale` (MAC units) replaces what the config says.

        Raises:
            OpticsError: fan-in beyond the limit without tiling, or noise without a generator.
        """
        size = self.tile_size(x, w)
        if size == x.shape[-1]:
            return self._shaped(self._window(x, w, generator, full_scale), x)
        tiles = [
            self.product(part, w[:, start : start + size], generator, full_scale=full_scale)
            for start, part in zip(range(0, x.shape[-1], size), x.split(size, -1), strict=True)
        ]
        clipped = [tile.clipped for tile in tiles if tile.clipped is not None]
        return Readout(
            y=torch.stack([tile.y for tile in tiles]).sum(0),
            clipped=torch.stack(clipped).any(0) if clipped else None,
            full_scale=tiles[0].full_scale,
        )

    def tile_size(self, x: Tensor, w: Tensor) -> int:
        """Symbols of one integration for these operands. Raises OpticsError."""
        fan_in, limit = x.shape[-1], self.config.max_fan_in
        if w.ndim != 2 or w.shape[1] != fan_in:
            raise OpticsError(f"w has shape {tuple(w.shape)} and x {tuple(x.shape)}; w must be [fan-out, {fan_in}]")
        if fan_in > limit and not self.config.tile_fan_in:
            raise OpticsError(
                f"fan-in {fan_in} is beyond max_fan_in = {limit}; give at most {limit}, or tile_fan_in = true to cut "
                f"it into {math.ceil(fan_in / limit)} tiles that are summed digitally"
            )
        return min(fan_in, limit)

    def normalise_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the first modulator is to send, the numbers that it stands for (for their signs), the digital scale."""
        x_MK = at_least_float(x.reshape(-1, x.shape[-1]))
        scale_M1 = _largest(x_MK, self.config.input_scale) / largest_input(self.config)
        return to_windows(self.config, x_MK * scale_M1.reciprocal()), x_MK, scale_M1

    def normalise_weights(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """What the second modulator is to multiply with, a correction of the leak included, and the digital scale."""
        config, w_NK = self._optics, at_least_float(w)
        left_K = decay(config, w_NK.shape[1], w_NK) if config.leak_correction else None
        grown_NK = w_NK if left_K is None else w_NK / left_K
        # Weights end where the modulator does (raw: at a quarter wave), so that none is clipped by a finite contrast.
        scale_N1 = _largest(grown_NK, config.weight_scale) / (1.0 if config.encoding == "raw" else config.contrast)
        return grown_NK * scale_N1.reciprocal(), scale_N1.reshape(-1)

    def encode_inputs(self, x: Tensor, generator: Random = None) -> Encoded:
        """Inputs as light, one row a window. Shapes: x [..., K] -> value [M, K]."""
        if self._has_even_steps(x, self.config.input_bits) and self.config.signs == "fold":
            x_MK = at_least_float(x.reshape(-1, x.shape[-1]))
            scale_M1 = _largest(x_MK, self.config.input_scale)
            return Encoded(on_steps(x_MK, scale_M1.reciprocal(), 2**self.config.input_bits - 1), scale_M1)
        sent_MK, x_MK, scale_M1 = self.normalise_inputs(x)
        if self.config.signs == "field":
            light_MK = encode_weights_(self._input_field, sent_MK, self._rounding(generator))
            return Encoded(light_MK, scale_M1)
        light_MK = encode_inputs_(self.config, sent_MK, self._rounding(generator))
        total_M1 = light_MK.detach().sum(1, keepdim=True) if self._counts_light else None
        return Encoded(signed_light(self.config.signs, light_MK, x_MK), scale_M1, total_M1)

    def encode_weights(self, w: Tensor, generator: Random = None) -> Encoded:
        """Weights as light, leak included: what an input in the light of symbol k adds to the charge that is read."""
        if self._has_even_steps(w, self.config.weight_bits) and math.isinf(self.config.leak_s):
            w_NK = at_least_float(w)
            scale_N1 = _largest(w_NK, self.config.weight_scale)
            top = 2 ** (self.config.weight_bits - 1) - 1
            return Encoded(on_steps(w_NK, scale_N1.reciprocal(), top), scale_N1.reshape(-1))
        config, (v_NK, scale_N) = self._optics, self.normalise_weights(w)
        rounding, common = self._rounding(generator), None
        if config.bias_error_rad and config.signs == "fold":
            value, common = _drifted(config, v_NK, rounding)
        else:
            value = encode_weights_(config, v_NK, rounding)
        if (left_K := decay(config, w.shape[1], value)) is not None:
            value = value * left_K if value.requires_grad else value.mul_(left_K)
            common = None if common is None else common * left_K
        return Encoded(value, scale_N, None, common)

    def numbers(self, inputs: Encoded) -> Tensor:
        """Inputs as the numbers that they stand for after encoding, in the units of x. Shapes: [rows of x, K]."""
        return to_numbers(self.config.signs, inputs.value) * inputs.scale

    def charge(self, inputs: Encoded, weights: Encoded, dtype: torch.dtype | None = None) -> Tensor:
        """Charge of every window without noise: the one matrix product. Shapes: [M, N]."""
        dtype = dtype or inputs.value.dtype
        charge_MN = inputs.value.to(dtype) @ weights.value.to(dtype).T
        if weights.common is not None:
            charge_MN = charge_MN + (inputs.value.detach().abs().to(dtype) @ weights.common.to(dtype).T)
        return charge_MN

    def moments(self, inputs: Encoded, weights: Encoded) -> Moments:
        """What noise and imbalance depend on."""
        light_MK, weight_NK = inputs.value.detach(), weights.value.detach()
        n_symbols, light_M1 = light_MK.shape[1], inputs.total
        nothing_11 = light_MK.new_zeros(1, 1)
        if not self._counts_light:
            light_M1 = nothing_11
        elif n_symbols * self.config.symbol_s / self.config.leak_s > 1e-3:  # early noise leaks away too
            left_K = decay(self.config, n_symbols, light_MK)
            assert left_K is not None
            light_M1 = (light_MK.abs() @ left_K.square()).unsqueeze(1)
        elif light_M1 is None:
            light_M1 = light_MK.abs().sum(1, keepdim=True)
        if not symbol_variance(self.config) and self.config.signs != "field":
            return Moments(light_M1, nothing_11, nothing_11[0], n_symbols)
        light2_M1 = torch.linalg.vector_norm(light_MK, 2, dim=1, keepdim=True).square()
        weight2_N = torch.linalg.vector_norm(weight_NK, 2, dim=1).square() / n_symbols
        both2_MN = light_MK.square() @ weight_NK.square().T if self.config.exact_rin else None
        return Moments(light_M1, light2_M1, weight2_N, n_symbols, both2_MN)

    def read(
        self,
        inputs: Encoded,
        weights: Encoded,
        generator: Random = None,
        *,
        full_scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Readout:
        """Detect, integrate, convert, undo the scales. `dtype`: of the matrix product (default: of the light).

        Shapes: y [rows of x, N]. `full_scale` (MAC units) replaces what the config says.
        """
        config = self.config
        product_MN = self.charge(inputs, weights, dtype)  # in few digits if the product was; all else is in float32
        charge_MN = at_least_float(product_MN)
        moments = self.moments(inputs, weights) if config.noise or config.imbalance else None
        if moments is not None and config.imbalance:
            charge_MN = charge_MN + 0.5 * config.imbalance * moments.light_M1
        noisy = moments if config.noise else None
        with torch.no_grad():
            if config.is_limited and full_scale is None:
                full_scale = full_scale_of(config, product_MN, noisy)
            if noisy is not None:
                reset = 0.0 if full_scale is None else reset_slope(config) * full_scale
                drawn_MN = _normal(product_MN, generator).to(charge_MN.dtype)
                noise = (drawn_MN, noise_variance(config, noisy, charge_MN, reset).sqrt_())
        if noisy is not None:
            charge_MN = charge_MN.addcmul(*noise) if charge_MN.requires_grad else charge_MN.addcmul_(*noise)
        offset_M1 = 0.5 * config.imbalance * moments.light_M1 if moments is not None and config.imbalance else None
        sum_N = weights.value.sum(1) if config.signs == "offset" else None
        return self._convert(charge_MN, full_scale, offset_M1, sum_N, (inputs.scale, weights.scale))

    def _window(self, x: Tensor, w: Tensor, generator: Random, full_scale: Tensor | None) -> Readout:
        inputs, weights = self.encode_inputs(x, generator), self.encode_weights(w, generator)
        return self.read(inputs, weights, generator, full_scale=full_scale)

    def _convert(
        self,
        charge_MN: Tensor,
        full_scale: Tensor | None,
        offset_M1: Tensor | None,
        weight_sum_N: Tensor | None,
        scales: tuple[Tensor, Tensor],
    ) -> Readout:
        """From charges to results: the ADC, what is known of the imbalance, windows of one result, scales."""
        signs, clipped, scale_M1 = self.config.signs, None, scales[0]
        if full_scale is not None:
            charge_MN, unit, clipped = read_codes(charge_MN, self.config.adc_bits, full_scale)
            if offset_M1 is None and weight_sum_N is None:
                scale_M1 = scale_M1 * unit  # codes and inputs share a pass
            else:
                charge_MN = charge_MN * unit
        if offset_M1 is not None and self.config.remove_imbalance:
            charge_MN = charge_MN - offset_M1
        y_MN = combine(signs, charge_MN, weight_sum_N)
        y_MN = y_MN * scale_M1 * scales[1] if y_MN.requires_grad else y_MN.mul_(scale_M1).mul_(scales[1])
        return Readout(y_MN, combine_clips(signs, clipped), full_scale)

    def _has_even_steps(self, operand: Tensor, bits: int) -> bool:
        """Whether encoding is a scale and a rounding, nothing else: no modulator, and no gradient to pass through."""
        plain = self.config.encoding == "linear" and not (self.config.stochastic_rounding or self.config.bias_error_rad)
        return plain and 1 < bits < EXACT_BITS and not operand.requires_grad

    def _rounding(self, generator: Random) -> torch.Generator | None:
        if not self.config.stochastic_rounding:
            return None
        if not isinstance(generator, torch.Generator):
            raise OpticsError("stochastic_rounding = true needs a torch.Generator; pass one, or set it to false")
        return generator

    def _shaped(self, found: Readout, x: Tensor) -> Readout:
        shape = (*x.shape[:-1], found.y.shape[-1])
        clipped = None if found.clipped is None else found.clipped.reshape(shape)
        return Readout(found.y.to(x.dtype).reshape(shape), clipped, found.full_scale)


def _drifted(config: CoreConfig, v_NK: Tensor, rounding: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """g sin(s phi + d) for both signs s of an input: s g sin(phi) cos(d), and g cos(phi) sin(d) whatever the sign."""
    with torch.no_grad():
        phase = weight_dac_(config, weight_phase_(config, v_NK.detach().clone()), rounding)
        value = torch.sin(phase).mul_(config.contrast * math.cos(config.bias_error_rad))
        common = torch.cos(phase).mul_(config.contrast * math.sin(config.bias_error_rad))
    return straight_through(v_NK, value), common


def _largest(x: Tensor, scaling: Scaling) -> Tensor:
    """Largest magnitude of each row or of all, 1 where it is almost nothing; a digital scale, so without a gradient."""
    x = x.detach()
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))  # two readings, no copy
    if scaling == "tensor":
        largest = largest.amax(0, keepdim=True)
    return torch.where(largest > ALMOST_NOTHING, largest, 1.0)


def _normal(like: Tensor, generator: Random) -> Tensor:
    if generator is None:
        raise OpticsError("a core with noise needs a generator: pass one, or use config.quiet()")
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return generator(like)
