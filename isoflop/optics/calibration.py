"""What a core finds out about itself: curves of its modulators, offsets, gain, interference, leak, and its own noise.

Everything is measured through the same products that do the work, of operands with known answers; the waveform core
stands for the chip. A result is a module of buffers, so it is saved with a model and compared after a restart.
Source: A9.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from isoflop.optics.config import EXACT_BITS, CoreConfig, OpticsError
from isoflop.optics.converters import HALF_PI
from isoflop.optics.modulator import input_light_
from isoflop.optics.receiver import Moments, noise_terms
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.waveform import WaveformCore


@dataclass(frozen=True)
class SweepFit:
    """A modulator from its curve of light against voltage."""

    v_pi_v: float
    bias_error_rad: float
    contrast: float


class Calibration(nn.Module):
    """Results of one calibration, each a buffer: they belong to the state of whatever holds them."""

    gain: Tensor
    offset: Tensor
    imbalance: Tensor
    interference: Tensor
    decay_rate: Tensor
    noise_std: Tensor
    predicted_std: Tensor
    residual: Tensor

    NAMES = ("gain", "offset", "imbalance", "interference", "decay_rate", "noise_std", "predicted_std", "residual")

    def __init__(self, **values: float):
        super().__init__()
        for name in self.NAMES:
            self.register_buffer(name, torch.tensor(values.get(name, 0.0), dtype=torch.float64))

    def apply_to(self, config: CoreConfig) -> CoreConfig:
        """The analytic core that behaves like the calibrated one: its residual error, its known imbalance."""
        return dataclasses.replace(config, residual=self.residual.item(), imbalance=self.imbalance.item())

    def has_drifted(self, live_std: float, factor: float = 1.5) -> bool:
        """Whether the noise seen at work exceeds what calibration saw by `factor` (assumption): time to do it again."""
        return live_std > factor * self.noise_std.item()


def fit_sweep(volts: Tensor, light: Tensor) -> SweepFit:
    """V_pi, bias and contrast of a modulator from measured light T = (1 + g sin(pi V / V_pi + d))/2.

    Shapes: both [n]. Raises OpticsError when the sweep spans less than half a period.
    """
    v, t = volts.double().numpy(), light.double().numpy()
    if len(v) < 8 or t.max() - t.min() < 0.2:
        raise OpticsError(
            f"a sweep of {len(v)} points over {t.max() - t.min():.2g} of the light fixes no curve; give 8 points or "
            f"more over a voltage of V_pi"
        )
    slope = np.abs(np.gradient(t, v)).max()  # pi g / (2 V_pi) at quadrature
    start = (HALF_PI * (t.max() - t.min()) / slope, 0.0, min(1.0, t.max() - t.min()))
    found = least_squares(lambda p: 0.5 * (1.0 + p[2] * np.sin(np.pi * v / p[0] + p[1])) - t, start)
    v_pi, bias, contrast = (float(value) for value in found.x)
    return SweepFit(v_pi, math.remainder(bias, 2.0 * math.pi), contrast)


def sweep_light(config: CoreConfig, volts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Light of the input modulator at given voltages, averaged over 1,000 symbols with their noise."""
    light = input_light_(config, math.pi * volts.double() / config.v_pi_v)
    if generator is None:
        return light
    spread = (light / config.n_e + light.square() * config.rin_per_symbol).clamp_min(0.0).sqrt() / math.sqrt(1000.0)
    return light + spread * torch.randn(light.shape, dtype=torch.float64, generator=generator)


def lookup_table(fit: SweepFit, bits: int) -> Tensor:
    """Voltages that make 2^bits even steps of light from dark to bright, in a measured modulator. Shapes: [2^bits]."""
    light = torch.linspace(0.0, 1.0, 2**bits, dtype=torch.float64)
    phase = torch.asin(((2.0 * light - 1.0) / fit.contrast).clamp(-1.0, 1.0))
    return (phase - fit.bias_error_rad) * (fit.v_pi_v / math.pi)


def calibrate(config: CoreConfig, generator: torch.Generator, *, fan_in: int = 256, rows: int = 256) -> Calibration:
    """Measure a core of this configuration by products of known operands.

    Zero weights give offset and diode imbalance; random operands give gain, interference and leak by least squares;
    what is left is noise, compared with the closed forms, and the share of it that they do not explain.

    Raises:
        OpticsError: fewer than 8 symbols or rows.
    """
    if min(fan_in, rows) < 8:
        raise OpticsError(f"fan_in = {fan_in} and rows = {rows} must be 8 or more, else the fit has no unknowns left")
    open_loop = dataclasses.replace(
        config, adc_bits=EXACT_BITS, full_scale=2.0 * fan_in, input_scale="tensor", weight_scale="tensor", signs="fold"
    )
    chip = WaveformCore(open_loop)
    offset, imbalance = _zero_weights(dataclasses.replace(open_loop, remove_imbalance=False), fan_in, rows, generator)
    x = torch.rand(rows, fan_in, generator=generator, dtype=torch.float64)
    w = torch.rand(32, fan_in, generator=generator, dtype=torch.float64) * 2.0 - 1.0
    y = chip.matmul(x, w, generator)
    terms = _regressors(x, w, config)
    solved = torch.linalg.lstsq(terms, y.reshape(-1, 1)).solution[:, 0]
    left = (y.reshape(-1) - terms @ solved).std().item()
    predicted = _predicted_std(open_loop, x, w)
    squares = (x.square() @ w.square().T).mean().item()
    unexplained = max(0.0, left**2 - predicted**2)
    gain = solved[0].item()
    return Calibration(
        gain=gain,
        offset=offset,
        imbalance=imbalance,
        interference=solved[1].item() / gain,
        decay_rate=-solved[2].item() / gain,
        noise_std=left,
        predicted_std=predicted,
        residual=math.sqrt(unexplained / squares),
    )


def _zero_weights(config: CoreConfig, fan_in: int, rows: int, generator: torch.Generator) -> tuple[float, float]:
    """Offset of the receiver, and the imbalance that the light itself shows: y = offset + e/2 sum x."""
    brightness = torch.linspace(0.1, 1.0, rows, dtype=torch.float64)
    x = torch.rand(rows, fan_in, generator=generator, dtype=torch.float64) * brightness[:, None]
    y = WaveformCore(config).matmul(x, torch.zeros(8, fan_in, dtype=torch.float64), generator).mean(1)
    design = torch.stack([torch.ones(rows, dtype=torch.float64), x.sum(1)], 1)
    solved = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    # With zero weights the digital scale is 1 and light is x: nothing else to undo.
    return solved[0].item(), 2.0 * solved[1].item()


def _regressors(x: Tensor, w: Tensor, config: CoreConfig) -> Tensor:
    """sum x w, its change by interference of both streams, its change by leak. Shapes: [rows * 32, 3]."""
    before_x, before_w = (torch.cat([v[:, :1], v[:, :-1]], 1) for v in (x, w))
    product = x @ w.T
    mixed = before_x @ w.T + x @ before_w.T - 2.0 * product
    age = torch.arange(x.shape[1] - 1, -1, -1, dtype=torch.float64) * config.symbol_s
    return torch.stack([product, mixed, (x * age) @ w.T], -1).reshape(-1, 3)


def _predicted_std(config: CoreConfig, x: Tensor, w: Tensor) -> float:
    """What the closed forms of A6 expect of the same products, in the units of the result."""
    core = TensorCore(config)
    inputs, weights = core.encode_inputs(x), core.encode_weights(w)
    moments: Moments = core.moments(inputs, weights)
    full_scale = torch.tensor(config.full_scale, dtype=torch.float64)
    charge = core.charge(inputs, weights)
    if not config.noise:
        return 0.0
    variance = sum(v.mean().item() for v in noise_terms(config, moments, charge, full_scale).values())
    return math.sqrt(variance) * (inputs.scale * weights.scale).mean().item()
