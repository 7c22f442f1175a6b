"""The product of a common core on a GPU: four kernels around one matrix product, instead of fifty passes.

What it computes is what `TensorCore` computes in plain PyTorch, the reference that it is tested against: the same
levels, the same noise variances, the same full scale. Normals come from a counter (Philox) instead of a generator, so
that none is ever stored. Operands of the matrix product are in the units of x and w, since the gradients need them so.

Shapes: M windows, K symbols, N neurons.
"""

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS, CoreConfig
from isoflop.optics.receiver import constant_variance, reset_slope, sampling_stride, symbol_variance
from isoflop.optics.signs import largest_input

BLOCK = 1024
"""Columns that a program of the readout works on; draws of noise depend on it."""
ROWS = 4
"""Windows that it works on."""


class FusedProduct(NamedTuple):
    """y [M, N] in the dtype of x; operands as encoded, light [M, K] and weight [N, K], for the gradients, in the same
    dtype; which results were beyond full scale [M, N], and how many [] (int64)."""

    y: Tensor
    light: Tensor
    weight: Tensor
    clipped: Tensor
    n_clipped: Tensor


def fuses(config: CoreConfig, x: Tensor) -> bool:
    """Whether the kernels know this core: signs folded, one scale a row, converters of 2 to 16 bits, no drift.

    Another core, a window in which much leaks away before it ends, float64 or a CPU takes `TensorCore`.
    """
    fan_in = x.shape[-1]
    leaks = fan_in * config.symbol_s / config.leak_s  # 0 without a leak
    return (
        x.is_cuda
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and config.signs == "fold"
        and (config.encoding == "asin" or (config.encoding == "linear" and leaks == 0.0))
        and config.input_scale == config.weight_scale == "row"
        and all(1 < bits < EXACT_BITS for bits in (config.input_bits, config.weight_bits, config.adc_bits))
        and not (config.stochastic_rounding or config.exact_rin or config.bias_error_rad or config.imbalance)
        and config.leak_correction
        and leaks <= 1e-3
        and fan_in <= config.max_fan_in
    )


def fused_product(config: CoreConfig, x: Tensor, w: Tensor, key: tuple[Tensor, Tensor], part: int) -> FusedProduct:
    """x W^T on a core that `fuses`; noise depends on `key` (when it is, and which layer) and `part` alone.

    Shapes: x [M, K], w [N, K], key [5] and [1] int64, on one GPU. Nothing waits for the device.
    """
    with torch.cuda.device_of(x):
        light, inputs, weight, weights = _encode(config, x.contiguous(), w.contiguous())
        return _read(config, (light, inputs), (weight, weights), key, part)


def _encode(config: CoreConfig, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Operands as encoded, each with the scales and sums of its rows."""
    kernels: Any = importlib.import_module("isoflop.optics.kernels")  # needs Triton, so only here
    (m, k), n = x.shape, len(w)
    linear, leak, limit = config.encoding == "linear", config.symbol_s / config.leak_s, config.drive_limit_rad
    contrast = 1.0 if linear else config.contrast
    light, inputs = torch.empty_like(x), x.new_empty(m, 3, dtype=torch.float32)
    weight, weights = torch.empty_like(w, dtype=x.dtype), x.new_empty(3, n, dtype=torch.float32)
    block = _power_of_two(k) if k <= 4096 else 2048  # measured, as the numbers of warps (docs/log.md)
    kernels.encode_inputs[(m,)](
        x, light, inputs, k, contrast, largest_input(config), limit, float(2**config.input_bits - 1),
        linear=linear, whole=k <= block, block=block, num_warps=4,
    )  # fmt: skip
    kernels.encode_weights[(n,)](
        w, weight, weights, k, n, contrast, contrast, limit, float(2 ** (config.weight_bits - 1) - 1), leak,
        linear=linear, leaks=leak > 0.0, whole=k <= block, block=block, num_warps=8,
    )  # fmt: skip
    return light, inputs, weight, weights


def _read(
    config: CoreConfig, x: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], part: int
) -> FusedProduct:
    """Integrate, disturb, convert."""
    (light, inputs), (weight, weights) = x, w
    kernels: Any = importlib.import_module("isoflop.optics.kernels")
    charge = light @ weight.T
    (m, n), k = charge.shape, light.shape[1]
    variances = (
        float(sum(constant_variance(config, k).values())),
        1.0 / config.n_e if "shot" in config.noise else 0.0,
        symbol_variance(config),
        config.gain_error**2 if "gain" in config.noise else 0.0,
    )
    stride = sampling_stride(m)
    n_sampled = -(-m // stride)
    sums = light.new_empty(n_sampled, 3, dtype=torch.float32)
    if not config.full_scale:
        block = min(1024, _power_of_two(n))
        kernels.sample[(n_sampled,)](charge, inputs, weights, sums, n, stride, *variances, block=block)
    y, clipped = torch.empty_like(charge), torch.empty_like(charge, dtype=torch.bool)
    n_clipped = torch.zeros((), dtype=torch.int64, device=light.device)
    kernels.read[(-(-m // ROWS), -(-n // BLOCK))](
        charge, inputs, weights, sums, y, clipped, n_clipped, m, n, n_sampled,
        config.range_deviations, config.full_scale, 1.0 / config.n_e, min(config.swing_limit, 3e38),
        0.5 * (2**config.adc_bits - 1), *variances, reset_slope(config), *key, part,
        noisy=bool(config.noise), samples=256, rows=ROWS, block=BLOCK, num_warps=1,
    )  # fmt: skip
    return FusedProduct(y, light, weight, clipped, n_clipped)


def stop_clipped(d_y: Tensor, clipped: Tensor) -> Tensor:
    """Gradients of results [M, N], 0 where the receiver clipped them: masked_fill in half of its time."""
    kernels: Any = importlib.import_module("isoflop.optics.kernels")
    d_y, out = d_y.contiguous(), torch.empty_like(clipped, dtype=d_y.dtype)
    with torch.cuda.device_of(d_y):
        kernels.stop_clipped[(-(-d_y.numel() // 4096),)](d_y, clipped, out, d_y.numel(), block=4096)
    return out


def _power_of_two(size: int) -> int:
    return 1 << max(4, (size - 1).bit_length())
