"""Mach-Zehnder modulators: from a value to a voltage, and from the voltage to light.

Push-pull arms, biased at quadrature: T = (1 + g sin(pi V / V_pi))/2 on the bar output. The input modulator uses one
output (x in [0, 1]), the weight modulator the difference of both (w in [-1, 1]). Phases stand for voltages here:
phase = pi V / V_pi, so the range of a DAC is -pi/2 to pi/2. Source: A3.
"""

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS, CoreConfig
from isoflop.optics.converters import HALF_PI, straight_through, to_levels, to_range_levels

Random = torch.Generator | None


def input_phase(config: CoreConfig, u: Tensor, generator: Random = None) -> Tensor:
    """The drive of the input modulator for values u in [0, 1], as its DAC puts it out. No gradient."""
    swing = 2.0 * u - 1.0
    phase = swing * HALF_PI if config.encoding == "raw" else (swing / config.contrast).clamp_(-1.0, 1.0).asin_()
    return to_range_levels(phase, config.input_bits, -HALF_PI, HALF_PI, generator)


def weight_phase(config: CoreConfig, v: Tensor, generator: Random = None) -> Tensor:
    """The drive of the weight modulator for values v in [-1, 1], as its DAC puts it out. No gradient."""
    phase = v * HALF_PI if config.encoding == "raw" else (v / config.contrast).clamp_(-1.0, 1.0).asin_()
    return to_levels(phase, config.weight_bits, HALF_PI, generator)


def input_light(config: CoreConfig, phase: Tensor) -> Tensor:
    """Share of the light that the bar output lets through, for a drive."""
    return torch.sin(phase + config.bias_error_rad).mul_(0.5 * config.contrast).add_(0.5)


def weight_light(config: CoreConfig, phase: Tensor) -> Tensor:
    """Bar minus cross output, for a drive."""
    return torch.sin(phase + config.bias_error_rad).mul_(config.contrast)


def encode_inputs(config: CoreConfig, u: Tensor, generator: Random = None) -> Tensor:
    """Light x' that stands for u in [0, 1]; its gradient is that of exact converters."""
    if config.encoding == "linear":
        held = u.clamp(0.0, 1.0)
        with torch.no_grad():
            levels = to_range_levels(held, config.input_bits, 0.0, 1.0, generator)
        return straight_through(held, levels)
    dark = 0.5 * (1.0 - config.contrast)
    exact = config.input_bits == EXACT_BITS and not config.bias_error_rad
    if u.requires_grad or exact:
        ideal = raw_input(config, u) if config.encoding == "raw" else u.clamp(dark, 1.0 - dark)
        if exact:
            return ideal
    else:
        ideal = u
    with torch.no_grad():
        actual = input_light(config, input_phase(config, u, generator))
    return straight_through(ideal, actual)


def encode_weights(config: CoreConfig, v: Tensor, generator: Random = None) -> Tensor:
    """Light w' that stands for v in [-1, 1]; its gradient is that of exact converters."""
    if config.encoding == "linear":
        held = v.clamp(-1.0, 1.0)
        with torch.no_grad():
            levels = to_levels(held, config.weight_bits, 1.0, generator)
        return straight_through(held, levels)
    exact = config.weight_bits == EXACT_BITS and not config.bias_error_rad
    if v.requires_grad or exact:
        raw = config.encoding == "raw"
        ideal = config.contrast * torch.sin(v * HALF_PI) if raw else v.clamp(-config.contrast, config.contrast)
        if exact:
            return ideal
    else:
        ideal = v
    with torch.no_grad():
        actual = weight_light(config, weight_phase(config, v, generator))
    return straight_through(ideal, actual)


def raw_input(config: CoreConfig, u: Tensor) -> Tensor:
    """Light when the voltage is proportional to the value."""
    return 0.5 + 0.5 * config.contrast * torch.sin((2.0 * u - 1.0) * HALF_PI)
