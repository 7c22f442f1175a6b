"""Products on a simulated photonic tensor core: the adapter between layers and isoflop.optics.

Forward, every product runs on the core as it is configured: encoded by modulators of finite bits and contrast,
disturbed by the noise of light and receiver, clipped and converted. Backward there are four ways, `Backward` below. The
float32 master weight is encoded anew at every call: on a time-multiplexed core the weights are streamed anyway, and a
new weight is the next waveform.

Source: optics.md A12 (training in situ, as "gradient modes"); which of them the published device used is not known.

Shapes: M rows, K in, N out, E width of the error that dfa feeds back.
"""

import dataclasses
import functools
import importlib.util
import json
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from isoflop.errors import RecipeError
from isoflop.numerics.linear import MatmulBackend
from isoflop.numerics.noise import NoiseKey, keyed_generator, keyed_normal
from isoflop.optics.config import CoreConfig, core_config
from isoflop.optics.fused import fused_product, fuses, stop_clipped
from isoflop.optics.signs import to_numbers
from isoflop.optics.tensor_core import Random, TensorCore

Backward = Literal["ste", "core", "dx_core", "dfa"]
"""ste: both gradients digital, from the operands as encoded. core: both on the core, the error signed onto it, the
gradient of a weight a dot product over the rows. dx_core: only the gradient of the input. dfa: the gradient of the
input is the error of the last photonic layer through a fixed random matrix. Clipped outputs get no gradient."""

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, FEEDBACK = range(4)
"""What noise is drawn for: part of its label."""


class ErrorLine:
    """Direct feedback: carries the error of the last layer to all the others within one backward pass."""

    def __init__(self) -> None:
        self.error_ME: Tensor | None = None


class _Call(NamedTuple):
    """What a call needs besides its operands."""

    core: TensorCore
    fused: str | None
    """The core for `_fused`."""
    backward: str
    """One of `Backward`."""
    part: int
    line: ErrorLine | None
    is_last: bool


class PhotonicProduct(MatmulBackend):
    """One layer on a core of its own configuration."""

    counts: Tensor

    def __init__(
        self,
        config: CoreConfig,
        noise_key: NoiseKey,
        layer: int,
        *,
        backward: Backward = "ste",
        line: ErrorLine | None = None,
        is_last: bool = True,
        device: torch.device | None = None,
    ):
        """`layer` tells its noise from that of other layers; `line` and `is_last` matter to dfa alone."""
        super().__init__()
        self.core, self.noise_key, self.backward_mode = TensorCore(config), noise_key, backward
        # Numbers as data: to torch.compile all layers are one program, however many there are.
        self.layer = torch.tensor([layer])
        self.line, self.is_last = line, is_last
        self.noisy = bool(config.noise) or config.stochastic_rounding
        self.device_key, self.fused = None, None
        if device is not None and device.type == "cuda":
            self.device_key, self.fused = (noise_key.key_on(device), self.layer.to(device)), _described(config)
        # Results that the receiver clipped and results in all, of training; taken and reset once a step.
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64, device=device), persistent=False)

    def capturable(self, weight: Tensor) -> bool:
        fused = self.fused is not None and self.backward_mode == "ste" and fuses(self.core.config, weight)
        return weight.ndim == 2 and (fused or not self.noisy)

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        if not self.training:
            self.noise_key.next_call()
        if x.numel() == 0:  # an expert without rows: no window, no statistics
            return x @ weight.to(x.dtype).T
        call = _Call(self.core, self.fused, self.backward_mode, part, self.line, self.is_last)
        # The key as it is now: it may have moved on when the backward pass runs.
        key = torch.cat((self.noise_key.key, self.layer))
        x_MK, on_device = x.reshape(-1, x.shape[-1]), self.device_key or (None, None)
        y_MN, n_clipped = _Photonic.apply(x_MK, weight, key, *on_device, call)  # type: ignore[misc]
        if self.training:  # a validation in between must not show in the metrics of the next step
            with torch.no_grad():
                self.counts[0].add_(n_clipped)
                self.counts[1].add_(y_MN.numel())
        return y_MN.reshape(*x.shape[:-1], len(weight))


class _Photonic(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_MK: Tensor, w_NK: Tensor, key: Tensor, device_key: Tensor | None, layer: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor]:
        if device_key is None or layer is None or call.fused is None or not fuses(call.core.config, x_MK):
            y_MN, light_MK, weight_NK, clipped_MN, n_clipped = _composed(x_MK, w_NK, key, call)
        elif torch.compiler.is_compiling():
            y_MN, light_MK, weight_NK, clipped_MN, n_clipped = _fused(
                x_MK, w_NK, device_key, layer, call.part, call.fused
            )
        else:  # without the operator's own time
            found = fused_product(call.core.config, x_MK, w_NK, (device_key, layer), call.part)
            y_MN, light_MK, weight_NK, clipped_MN, n_clipped = found
        dtype = _product_dtype(x_MK)
        needs_master = call.backward in ("core", "dx_core")
        ctx.save_for_backward(
            light_MK.to(dtype),
            None if needs_master else weight_NK.to(dtype),
            clipped_MN,
            x_MK if call.backward == "core" else None,
            w_NK if needs_master else None,
            key,
        )
        ctx.call, ctx.dtype = call, x_MK.dtype
        ctx.mark_non_differentiable(n_clipped)
        # A view: compiled by torch 2.11, an output that was written in place gets no gradient (2.13 does without).
        return y_MN.to(x_MK.dtype).view_as(y_MN), n_clipped

    @staticmethod
    def backward(ctx, d_y_MN: Tensor, _):  # type: ignore[override]
        light_MK, weight_NK, clipped_MN, x_MK, w_NK, key = ctx.saved_tensors
        call: _Call = ctx.call
        d_y_MN = d_y_MN.to(light_MK.dtype)
        if clipped_MN is not None:
            has_kernels = call.fused is not None and clipped_MN.is_cuda
            composed = torch.compiler.is_compiling() or not has_kernels
            d_y_MN = d_y_MN.masked_fill(clipped_MN, 0.0) if composed else stop_clipped(d_y_MN, clipped_MN)
        d_x_MK = d_w_NK = None
        if call.backward == "dfa" and call.is_last and call.line is not None:
            call.line.error_ME = d_y_MN
        if ctx.needs_input_grad[0]:
            if call.backward == "dfa":
                d_x_MK = _fed_back(d_y_MN, light_MK.shape[1], key, call)
            elif weight_NK is None:
                d_x_MK = _on_core(d_y_MN, w_NK.T, key, call, INPUT_GRADIENT)
            else:
                d_x_MK = d_y_MN @ weight_NK
            d_x_MK = d_x_MK.to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            if call.backward == "core":
                d_w_NK = _on_core(d_y_MN.T, x_MK.to(d_y_MN.dtype).T, key, call, WEIGHT_GRADIENT).float()
            else:
                d_w_NK = _float32_product(d_y_MN.T, light_MK)
        return d_x_MK, d_w_NK, None, None, None, None


def _product_dtype(x: Tensor) -> torch.dtype:
    """bfloat16 activations ask for bfloat16 products with float32 accumulation, as everywhere."""
    return x.dtype


def _composed(
    x_MK: Tensor, w_NK: Tensor, key: Tensor, call: _Call
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """y, the operands as encoded, which results were clipped and how many; of any core, tile by tile."""
    core, random = call.core, _random(call.core, key, call, FORWARD, x_MK.device)
    size = core.tile_size(x_MK, w_NK)
    y_MN, clipped_MN, lights, weights = None, None, [], []
    for x_MT, w_NT in zip(x_MK.split(size, 1), w_NK.split(size, 1), strict=True):
        light, weight = core.encode_inputs(x_MT, random), core.encode_weights(w_NT, random)
        found = core.read(light, weight, random, dtype=_product_dtype(x_MK))
        y_MN = found.y if y_MN is None else y_MN + found.y
        if found.clipped is not None:
            clipped_MN = found.clipped if clipped_MN is None else clipped_MN | found.clipped
        # Nothing needs the bare light any more: numbers take its place, without memory of their own.
        lights.append(to_numbers(core.config.signs, light.value).mul_(light.scale))
        weights.append(weight.value.mul_(weight.scale.unsqueeze(1)))
    assert y_MN is not None
    light_MK, weight_NK = (parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in (lights, weights))
    n_clipped = y_MN.new_zeros((), dtype=torch.int64) if clipped_MN is None else clipped_MN.count_nonzero()
    return y_MN, light_MK, weight_NK, clipped_MN, n_clipped


@torch.library.custom_op("isoflop::fused_product", mutates_args=())
def _fused(
    x: Tensor, weight: Tensor, key: Tensor, layer: Tensor, part: int, core: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`fused_product` of a core as `_described`, opaque to torch.compile."""
    found = fused_product(_core_of(core), x, weight, (key, layer), part)
    return found.y, found.light, found.weight, found.clipped, found.n_clipped


@_fused.register_fake
def _(x: Tensor, weight: Tensor, key: Tensor, layer: Tensor, part: int, core: str):
    shape = (len(x), len(weight))
    return (
        x.new_empty(shape),
        x.new_empty(x.shape),
        x.new_empty(weight.shape),
        x.new_empty(shape, dtype=torch.bool),
        x.new_empty((), dtype=torch.int64),
    )


def _described(config: CoreConfig) -> str | None:
    """The core as text, which custom operators can take; None where there are no kernels to run it."""
    has_kernels = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
    return json.dumps(dataclasses.asdict(config)) if has_kernels else None


@functools.cache
def _core_of(text: str) -> CoreConfig:
    return core_config(json.loads(text))


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32; a GPU rounds to bfloat16 only if asked to, which would cost a pass to undo."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _random(core: TensorCore, key: Tensor, call: _Call, use: int, device: torch.device) -> Random:
    """Where this product's noise comes from; None without noise."""
    label = [call.part, use]
    if core.config.stochastic_rounding:  # more than one draw: a generator, which torch.compile can't look into
        return keyed_generator(key, label, device)
    if not core.config.noise:
        return None
    n_drawn = 0

    def normal(like: Tensor) -> Tensor:
        nonlocal n_drawn
        n_drawn += 1  # tiles of one product draw one after the other
        return keyed_normal(key, [*label, n_drawn], list(like.shape), like.dtype, like.device)

    return normal


def _on_core(rows_RC: Tensor, weights_SC: Tensor, key: Tensor, call: _Call, use: int) -> Tensor:
    """A backward product on the core: signed errors in the place of inputs. Shapes: [R, S]."""
    if rows_RC.numel() == 0:
        return rows_RC @ weights_SC.to(rows_RC.dtype).T
    return call.core.matmul(rows_RC, weights_SC.detach(), _random(call.core, key, call, use, rows_RC.device))


def _fed_back(d_y_MN: Tensor, n_in: int, key: Tensor, call: _Call) -> Tensor:
    """The error of the last layer through this layer's fixed matrix."""
    error_ME = d_y_MN if call.line is None else call.line.error_ME
    if error_ME is None or len(error_ME) != len(d_y_MN):
        seen = 0 if error_ME is None else len(error_ME)
        raise RecipeError(
            f'numerics.photonic.backward = "dfa" feeds the error of the last photonic layer ({seen} rows) back to one '
            f"with {len(d_y_MN)} rows; it needs layers that all see the same rows: use ste, or narrow numerics.rules"
        )
    fixed = torch.zeros_like(key)
    fixed[0], fixed[-1] = key[0], key[-1]  # seed and layer alone: the same matrix in every step
    width = error_ME.shape[1]
    matrix_EK = keyed_normal(fixed, [FEEDBACK], [width, n_in], torch.float32, error_ME.device)
    return error_ME @ (matrix_EK * width**-0.5).to(error_ME.dtype)
