"""Mach-Zehnder modulators: from a value to a voltage, and from the voltage to light.

Push-pull arms, biased at quadrature: T = (1 + g sin(pi V / V_pi))/2 on the bar output. The input modulator uses one
output (x in [0, 1]), the weight modulator the difference of both (w in [-1, 1]). Phases stand for voltages here:
phase = pi V / V_pi, so the range of a DAC is -pi/2 to pi/2. Source: A3.

A function whose name ends in _ overwrites its argument.
"""

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS, CoreConfig
from isoflop.optics.converters import HALF_PI, straight_through, to_levels_, to_range_levels_

Random = torch.Generator | None


def input_phase_(config: CoreConfig, u: Tensor) -> Tensor:
    """The drive of the input modulator for values u in [0, 1], before its DAC."""
    if config.encoding == "raw":
        return u.mul_(2.0 * HALF_PI).sub_(HALF_PI)
    return u.mul_(2.0 / config.contrast).sub_(1.0 / config.contrast).clamp_(-1.0, 1.0).asin_()


def weight_phase_(config: CoreConfig, v: Tensor) -> Tensor:
    """The drive of the weight modulator for values v in [-1, 1], before its DAC."""
    return v.mul_(HALF_PI) if config.encoding == "raw" else v.mul_(1.0 / config.contrast).clamp_(-1.0, 1.0).asin_()


def input_dac_(config: CoreConfig, phase: Tensor, generator: Random = None) -> Tensor:
    """The drive of the input modulator as its DAC puts it out."""
    limit = config.drive_limit_rad
    return to_range_levels_(phase, config.input_bits, -limit, limit, generator)


def weight_dac_(config: CoreConfig, phase: Tensor, generator: Random = None) -> Tensor:
    """The drive of the weight modulator as its DAC puts it out."""
    return to_levels_(phase, config.weight_bits, config.drive_limit_rad, generator)


def input_light_(config: CoreConfig, phase: Tensor) -> Tensor:
    """Share of the light that the bar output lets through, for a drive."""
    phase = phase.add_(config.bias_error_rad) if config.bias_error_rad else phase
    return phase.sin_().mul_(0.5 * config.contrast).add_(0.5)


def weight_light_(config: CoreConfig, phase: Tensor) -> Tensor:
    """Bar minus cross output, for a drive."""
    phase = phase.add_(config.bias_error_rad) if config.bias_error_rad else phase
    return phase.sin_().mul_(config.contrast)


def encode_inputs_(config: CoreConfig, u: Tensor, generator: Random = None) -> Tensor:
    """Light x' that stands for u in [0, 1]; its gradient is that of exact converters."""
    exact = config.input_bits == EXACT_BITS and not config.bias_error_rad
    if exact or u.requires_grad:
        ideal = ideal_inputs(config, u)
        if exact:
            return ideal
        u = u.detach().clone()
    else:
        ideal = u
    with torch.no_grad():
        if config.encoding == "linear":
            actual = to_range_levels_(u, config.input_bits, 0.0, 1.0, generator)
        else:
            actual = input_light_(config, input_dac_(config, input_phase_(config, u), generator))
    return straight_through(ideal, actual)


def encode_weights_(config: CoreConfig, v: Tensor, generator: Random = None) -> Tensor:
    """Light w' that stands for v in [-1, 1]; its gradient is that of exact converters."""
    exact = config.weight_bits == EXACT_BITS and not config.bias_error_rad
    if exact or v.requires_grad:
        ideal = ideal_weights(config, v)
        if exact:
            return ideal
        v = v.detach().clone()
    else:
        ideal = v
    with torch.no_grad():
        if config.encoding == "linear":
            actual = to_levels_(v, config.weight_bits, 1.0, generator)
        else:
            actual = weight_light_(config, weight_dac_(config, weight_phase_(config, v), generator))
    return straight_through(ideal, actual)


def ideal_inputs(config: CoreConfig, u: Tensor) -> Tensor:
    """Light for u in [0, 1] with exact converters; a finite contrast ends the range at both sides."""
    if config.encoding == "linear":
        return u.clamp(0.0, 1.0)
    if config.encoding == "raw":
        return 0.5 + 0.5 * config.contrast * torch.sin((2.0 * u - 1.0) * HALF_PI)
    dark = 0.5 * (1.0 - config.contrast)
    return u.clamp(dark, 1.0 - dark)


def ideal_weights(config: CoreConfig, v: Tensor) -> Tensor:
    """Light for v in [-1, 1] with exact converters."""
    if config.encoding == "linear":
        return v.clamp(-1.0, 1.0)
    if config.encoding == "raw":
        return config.contrast * torch.sin(v * HALF_PI)
    return v.clamp(-config.contrast, config.contrast)
