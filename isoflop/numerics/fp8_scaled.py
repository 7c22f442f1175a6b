"""Scaled FP8 products on tensor cores: what `fp8_block.py` and `fp8_whole.py` simulate, at the speed of the hardware.

Quantisation is one pass over a matrix that writes its codes in both directions (kernels/quantise.py), the products are
cuBLAS's with float32 accumulation, through `torch.nn.functional.scaled_mm`. Weights are quantised once a step, the
activation of the forward pass is kept as the codes that the gradient of the weight needs, in FP8. Scales stay on the
device: nothing waits, and a step can be captured in a CUDA graph.

Shapes: M rows, K in, N out, F d_ff, G groups of 128; contracted dimensions are padded to a multiple of 128 with zeros.
"""

import functools
import importlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.launch import has_kernels, launch

BLOCK = 128
ROWS = 16
"""Rows of an operand come in whole multiples of it."""
Scaling = Literal["block", "row", "tensor"]
"""block: 1 x 128 tiles, 128 x 128 blocks of weights; row: one scale for each row or column; tensor: one of all."""


class Codes(NamedTuple):
    """A matrix [R, K] as E4M3 codes in both directions, with their scales."""

    rows: Tensor
    """[R, K padded]."""
    row_scales: Tensor
    columns: Tensor
    """Transposed, [K, R padded]."""
    column_scales: Tensor


class ScaledFormat(NamedTuple):
    """How values share scales."""

    scaling: Scaling
    power_of_two: bool = False

    def runs(self, x: Tensor, weight: Tensor) -> bool:
        """Whether tensor cores take these operands: Hopper, bf16 activations, widths of whole 16, a plain weight."""
        if not has_kernels(x) or not x.numel() or type(weight.data) is not Tensor or x.device != weight.device:
            return False
        return _fit(weight) and _is_hopper(x.device)

    def quantise(self, x_RK: Tensor, *, again: bool = False) -> Codes:
        """Codes of activations or their gradients; `again`: columns from the values that the codes of the rows stand
        for, as of an activation that is kept in FP8 (blocks only)."""
        x_RK = x_RK.contiguous()
        n_rows, n_columns = x_RK.shape
        codes = _empty(x_RK, self.scaling)
        targets = _in_words(codes)
        sizes = (n_rows, n_columns, targets[2].shape[1], codes.rows.shape[1])
        grid = (-(-n_columns // BLOCK), -(-n_rows // BLOCK))
        power_of_two = self.power_of_two
        if self.scaling == "block":
            kernel = _kernels().quantise_tiles
            launch(kernel, grid, x_RK, *targets, *sizes, again=again, power_of_two=power_of_two, num_warps=8)
            return codes
        per_row = self.scaling == "row"
        found = x_RK.new_zeros(n_rows + n_columns if per_row else 1, dtype=torch.float32)
        by_row, by_column = (found[:n_rows], found[n_rows:]) if per_row else (found, found)
        grid_of_largest = (-(-n_columns // 256), -(-n_rows // 64))
        kernel = _kernels().largest
        launch(kernel, grid_of_largest, x_RK, by_row, by_column, *sizes[:2], per_row=per_row, block=256, num_warps=8)
        launch(
            _kernels().quantise_scaled, grid, x_RK, by_row, by_column, *targets, *sizes, 1.0,
            per_row=per_row, power_of_two=power_of_two, num_warps=8,
        )  # fmt: skip
        return codes

    def quantise_weight(self, w_NK: Tensor) -> Codes:
        """Codes of a weight."""
        if self.scaling != "block":
            return self.quantise(w_NK.detach())
        w_NK = w_NK.detach().contiguous()
        n_rows, n_columns = w_NK.shape
        groups = [_groups(n_columns), _groups(n_rows)]
        row_scales = w_NK.new_ones(-(-n_rows // BLOCK), groups[0])
        column_scales = w_NK.new_ones(-(-n_columns // BLOCK), groups[1])
        rows, _, columns, _ = _empty(w_NK, "tensor")
        codes = Codes(rows, row_scales, columns, column_scales)
        targets = _in_words(codes)
        launch(
            _kernels().quantise_blocks, (len(column_scales), len(row_scales)), w_NK, *targets,
            n_rows, n_columns, targets[2].shape[1], rows.shape[1], *groups, 1.0,
            power_of_two=self.power_of_two, num_warps=8,
        )  # fmt: skip
        return codes

    def product(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], *, of_weight: bool, forward: bool = False):
        """a b^T in bf16 of codes and scales; `of_weight`: b is one. Only a forward product may accumulate coarsely."""
        fast = forward and self.scaling != "block"
        return self._scaled_mm(a, b, self._weights() if of_weight else self._tiles(), torch.bfloat16, fast)

    def weight_product(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """a b^T in float32 of tiles and tiles, for the gradient of a weight."""
        return self._scaled_mm(a, b, self._tiles(), torch.float32, False)

    def _scaled_mm(
        self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], recipe_b: Any, dtype: torch.dtype, fast: bool
    ) -> Tensor:
        recipe_a = self._tiles()
        a_scales, b_scales = a[1], b[1]
        if self.scaling == "block":  # as stored group by group, so that rows lie together
            a_scales, b_scales = a_scales.T, b_scales.T
        elif self.scaling == "row":
            a_scales, b_scales = a_scales[:, None], b_scales[None]
        return F.scaled_mm(
            a[0], b[0].T, a_scales, recipe_a, b_scales, recipe_b, output_dtype=dtype, use_fast_accum=fast
        )

    def _tiles(self) -> Any:
        kinds = F.ScalingType  # type: ignore[attr-defined]
        names = {"block": "BlockWise1x128", "row": "RowWise", "tensor": "TensorWise"}
        return getattr(kinds, names[self.scaling])

    def _weights(self) -> Any:
        return F.ScalingType.BlockWise128x128 if self.scaling == "block" else self._tiles()  # type: ignore[attr-defined]


class _Swiglu(NamedTuple):
    """Gate and up in, codes of their product out, and the same backward."""

    power_of_two: bool

    def forward(self, gate_up_MF: Tensor) -> Codes:
        n_rows, n = len(gate_up_MF), gate_up_MF.shape[1] // 2
        codes = _empty_of(gate_up_MF, n_rows, n, "block")
        targets = _in_words(codes)
        launch(
            _kernels().swiglu_tiles, (n // BLOCK, -(-n_rows // BLOCK)), gate_up_MF, *targets,
            n_rows, n, targets[2].shape[1], power_of_two=self.power_of_two, num_warps=8,
        )  # fmt: skip
        return codes

    def backward(self, d_inner_MF: Tensor, gate_up_MF: Tensor) -> Codes:
        n_rows, n = d_inner_MF.shape
        codes = _empty_of(gate_up_MF, n_rows, 2 * n, "block")
        targets = _in_words(codes)
        launch(
            _kernels().swiglu_backward_tiles, (2 * n // BLOCK, -(-n_rows // BLOCK)), d_inner_MF, gate_up_MF, *targets,
            n_rows, n, targets[2].shape[1], power_of_two=self.power_of_two, num_warps=8, maxnreg=128,
        )  # fmt: skip
        return codes


class HeldFormat:
    """A format of one layer, with the codes of its weight for as long as a step lasts."""

    def __init__(self, format: ScaledFormat | None):
        """`format` None: there is none for tensor cores."""
        self.format, self.codes, self.adds = format, None, False
        self.codes: Codes | None

    def hold(self, weight: Tensor, adds: bool) -> bool:
        """Quantise the weight once for the micro-batches to come; whether tensor cores would take it."""
        if self.format is None or not weight.is_cuda or not _is_hopper(weight.device) or not _fit(weight):
            return False
        self.codes, self.adds = self.format.quantise_weight(weight), adds
        return True

    def release(self) -> None:
        """Forget the codes."""
        self.codes, self.adds = None, False

    def linear(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """x W^T and its two backward products; None where tensor cores do not take the operands."""
        return _scaled_linear(self, x, weight)  # type: ignore[call-arg]


@torch.compiler.disable  # one opaque step of a compiled block
def _scaled_linear(held: HeldFormat, x: Tensor, weight: Tensor) -> Tensor | None:
    format = held.format
    if format is None or not format.runs(x, weight):
        return None
    codes = format.quantise_weight(weight) if held.codes is None else held.codes
    x_MK = x.reshape(-1, x.shape[-1])
    n_rows, missing = len(x_MK), -len(x_MK) % ROWS
    if missing:  # an expert's rows, or decoding's
        x_MK = F.pad(x_MK, (0, 0, 0, missing))
    y_MN: Tensor = _ScaledLinear.apply(x_MK, weight, codes, format, held.adds)  # type: ignore[assignment]
    if missing:  # a slice of all rows would cost two passes over the gradient
        y_MN = y_MN[:n_rows]
    return y_MN.view(*x.shape[:-1], len(weight))


class _ScaledLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, held: Codes, format: ScaledFormat, adds: bool) -> Tensor:
        codes = format.quantise(x.reshape(-1, x.shape[-1]), again=True)
        ctx.save_for_backward(*codes[2:], *held[2:])
        ctx.weight, ctx.format, ctx.adds, ctx.shape = weight, format, adds, x.shape
        y_MN = format.product(codes[:2], held[:2], of_weight=True, forward=True)
        return y_MN.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x_columns, x_scales, w_columns, w_scales = ctx.saved_tensors
        format: ScaledFormat = ctx.format
        codes = format.quantise(d_y.reshape(-1, d_y.shape[-1]))
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            d_x = format.product(codes[:2], (w_columns, w_scales), of_weight=True).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            found = format.weight_product(codes[2:], (x_columns, x_scales))
            d_weight = _added(ctx.weight, found, ctx.adds)
        return d_x, d_weight, None, None, None


def scaled_gated(
    x: Tensor, weights: tuple[Tensor, Tensor], helds: tuple[Codes | None, Codes | None], power_of_two: bool, adds: bool
) -> Tensor:
    """down(silu(gate(x)) * up(x)) in block format, with the SwiGLU's results and gradients quantised where they arise.

    d_ff must be a multiple of 128, so that no tile holds parts of both gate and up.
    """
    format = ScaledFormat("block", power_of_two)
    pairs = zip(weights, helds, strict=True)
    codes = [format.quantise_weight(weight) if held is None else held for weight, held in pairs]
    return _ScaledGated.apply(x, *weights, codes, format, adds)  # type: ignore[return-value]


class _ScaledGated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, gate_up: Tensor, down: Tensor, helds: list[Codes], format: ScaledFormat, adds: bool
    ) -> Tensor:
        first, last = helds
        codes = format.quantise(x.reshape(-1, x.shape[-1]), again=True)
        gate_up_MF = format.product(codes[:2], first[:2], of_weight=True, forward=True)
        inner = _Swiglu(format.power_of_two).forward(gate_up_MF)
        y_MN = format.product(inner[:2], last[:2], of_weight=True, forward=True)
        ctx.save_for_backward(*codes[2:], gate_up_MF, *inner[2:], *first[2:], *last[2:])
        ctx.weights, ctx.format, ctx.adds, ctx.shape = (gate_up, down), format, adds, x.shape
        return y_MN.view(*x.shape[:-1], len(down))

    @staticmethod
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x_columns, x_scales, gate_up_MF, *saved = ctx.saved_tensors
        inner, inner_scales, first, first_scales, last, last_scales = saved
        x_codes = (x_columns, x_scales)
        format: ScaledFormat = ctx.format
        codes = format.quantise(d_y.reshape(-1, d_y.shape[-1]))
        d_down = _added(ctx.weights[1], format.weight_product(codes[2:], (inner, inner_scales)), ctx.adds)
        d_inner_MF = format.product(codes[:2], (last, last_scales), of_weight=True)
        d_codes = _Swiglu(format.power_of_two).backward(d_inner_MF, gate_up_MF)
        d_gate_up = _added(ctx.weights[0], format.weight_product(d_codes[2:], x_codes), ctx.adds)
        d_x = format.product(d_codes[:2], (first, first_scales), of_weight=True).view(ctx.shape)
        return d_x, d_gate_up, d_down, None, None, None


def _added(weight: Tensor, found: Tensor, adds: bool) -> Tensor | None:
    """The gradient to hand on; None where it was added to `grad` in place."""
    if adds and weight.grad is not None:
        weight.grad.add_(found)
        return None
    return found


def _in_words(codes: Codes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same memory, the transposed codes four to a word, as the kernels write them."""
    return codes.rows, codes.row_scales, codes.columns.view(torch.int32), codes.column_scales


def _fit(weight: Tensor) -> bool:
    """Rows of whole 16 bytes, of codes and of results, in both directions."""
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def _groups(size: int) -> int:
    """Groups of a weight's dimension as cuBLAS wants them: rounded up to a multiple of 4."""
    return -(-size // (4 * BLOCK)) * 4


def _empty(x_RK: Tensor, scaling: Scaling) -> Codes:
    n_rows, n_columns = x_RK.shape
    return _empty_of(x_RK, n_rows, n_columns, scaling)


def _empty_of(x: Tensor, n_rows: int, n_columns: int, scaling: Scaling) -> Codes:
    groups = -(-n_rows // BLOCK), -(-n_columns // BLOCK)
    new = functools.partial(torch.empty, dtype=torch.float8_e4m3fn, device=x.device)
    rows, columns = new(n_rows, groups[1] * BLOCK), new(n_columns, groups[0] * BLOCK)
    shapes = {
        "block": ((groups[1], n_rows), (groups[0], n_columns)),
        "row": ((n_rows,), (n_columns,)),
        "tensor": ((1,), (1,)),
    }[scaling]
    scales = [torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes]
    if scaling == "tensor":
        scales[1] = scales[0]  # one scale of all, in both directions
    return Codes(rows, scales[0], columns, scales[1])


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    """Blocks of 128 are Hopper's; newer tensor cores have scales of their own, older ones no FP8."""
    return torch.cuda.get_device_properties(device).major == 9


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("isoflop.numerics.kernels.quantise")
