"""Experts in FP8: three grouped products for each of their two weights, on E4M3 operands with scales of rows.

What `fp8_whole.py` says of a layer holds for every expert: a scale for each row of an operand ("row"), or one for all
rows of an expert ("tensor", which the grouped product takes as equal scales of rows). Products are
`torch.nn.functional.scaled_grouped_mm`'s; how many rows an expert has stays on the device.

The gradient of a weight sums over the rows of an expert, so those must lie in whole 16 bytes of codes and can't be
none: each expert gets sixteen rows or the next multiple of it, filled up with zeros, the last one all that is left.
Activations and gradients are quantised where they arise: rows of tokens as they are taken to their experts, the
SwiGLU's results and their gradients before they are written. Every step has a plain form, which the kernels are tested
against.

Shapes: T tokens, A active experts, P rows with those filled in, E experts, D in and out, F d_expert, N out, K in.
"""

import functools
import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.expert_gradients import expert_gradient
from isoflop.numerics.fp8_block import LARGEST
from isoflop.numerics.joined import summed_rows, swiglu, swiglu_gradients
from isoflop.numerics.launch import has_kernels, launch, power_of_two

ROWS = 16
"""Rows of an expert come in multiples of it: codes of 16 bytes along the rows."""
TILE = 128
"""Rows of all experts come in multiples of it; columns that a program works on."""
HALF = TILE // 2
"""Columns of the gate, and as many of up, that a program works on in the backward pass."""
WARPS = {True: 8, False: 4}
"""Of a program that writes codes, by `per_row`: measured (docs/log.md 2026-11-30)."""
SMALLEST = 1e-37
"""Scale: zeros stay zeros by any."""
FAST_GRADIENTS = True
"""Sums of input gradients too stay in the tensor cores, with fewer bits than float32. Exact ones take three times as
long on an H200 (1,235 us, not 406; torch 2.11, `benchmarks/kernels.py --experts`, docs/log.md)."""


class Rows(NamedTuple):
    """Where tokens lie once every expert's rows are filled up."""

    token_P: Tensor
    """Token of a row, int32; -1: a row of zeros."""
    row_TA: Tensor
    """Row of a choice."""
    ends_E: Tensor
    """Row after the last one of each expert, int32; the last is P."""
    group: Tensor
    """Expert of every sixteen rows [P / 16], int32."""


class Codes(NamedTuple):
    """E4M3 codes of a matrix [P, K] in both directions."""

    rows: Tensor
    """[P, K]; of weights [E, N, K]."""
    row_scales: Tensor
    """[P]; of weights [E, N]."""
    columns: Tensor
    """Transposed: [K, P]; of weights [E, K, N]."""
    column_scales: Tensor
    """[E, K]."""


def filled_up(slot_R: Tensor, ends_E: Tensor, n_active: int) -> Rows:
    """Rows with zeros between, from the choice [T A] that each row without them holds, and the ends of its experts."""
    n_slots, n_experts = len(slot_R), len(ends_E)
    n_rows = -(-(n_slots + n_experts * ROWS) // TILE) * TILE
    row_TA, token_P = torch.empty_like(slot_R).view(-1, n_active), ends_E.new_full((n_rows,), -1)
    new_ends_E, group = torch.empty_like(ends_E), ends_E.new_empty(n_rows // ROWS)
    if has_kernels(slot_R, integers=True):
        launch(
            _kernels().fill_up, (n_rows // TILE,), ends_E, slot_R, token_P, row_TA, new_ends_E, group,
            n_slots, n_rows, n_experts, n_active, experts=power_of_two(n_experts), num_warps=4,
        )  # fmt: skip
        return Rows(token_P, row_TA, new_ends_E, group)
    counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    filled_E = ((counts_E + (ROWS - 1)) // ROWS).clamp(min=1) * ROWS
    torch.cumsum(filled_E, 0, out=new_ends_E)
    shift_E = (new_ends_E - filled_E) - (ends_E - counts_E)
    new_row_R = torch.arange(n_slots) + shift_E.repeat_interleave(counts_E)
    new_ends_E[-1] = n_rows
    row_TA.view(-1)[slot_R] = new_row_R
    token_P[new_row_R] = (slot_R // n_active).int()
    torch.searchsorted(
        new_ends_E, torch.arange(0, n_rows, ROWS, dtype=torch.int32), right=True, out_int32=True, out=group
    )
    return Rows(token_P, row_TA, new_ends_E, group)


def quantise(
    x: Tensor, group: Tensor, n_groups: int, per_row: bool, *, token_P: Tensor | None = None,
    weights_P: Tensor | None = None, apart: bool = False,
) -> Codes:  # fmt: skip
    """Codes of x [P, K], of x[token] with x [T, K], or of a weighed SwiGLU with x [P, 2 K].

    `apart`: groups of equal size, as experts of a weight [E, N, K], are transposed one by one.
    """
    x, taken, gated = x.contiguous(), token_P is not None, weights_P is not None
    n_rows, n_columns = len(group) * ROWS, x.shape[-1] // (2 if gated else 1)
    if not has_kernels(x, wide=not (taken or gated)):
        return _plain(_values(x, token_P, weights_P), group, n_groups, per_row, apart)
    codes, found = _empty(x, n_rows, n_columns, n_groups, per_row, apart)
    grid, n_places = (n_rows // TILE, -(-n_columns // TILE)), codes.columns.shape[-1] // 4
    words = x.view(torch.int64) if taken or gated else x
    kind = {"width": TILE // 4, "taken": taken, "gated": gated, "per_row": per_row, "num_warps": 8}
    if taken and not per_row:  # a token's largest value is that of all its places
        largest_T, n_words = x.new_empty(len(x), dtype=torch.float32), n_columns // 4
        kernel = _kernels().largest_of_tokens
        launch(kernel, (len(x),), words, largest_T, n_words, block=power_of_two(n_words), num_warps=4)
        launch(_kernels().scales_of_tokens, grid[:1], largest_T, token_P, group, found, num_warps=4)
    else:
        kernel = _kernels().scales_of_groups
        launch(kernel, grid, words, token_P, weights_P, group, codes.row_scales, found, n_columns, **kind)
    launch(
        _kernels().quantise_groups, grid, words, token_P, weights_P, group, codes.row_scales, found,
        codes.rows.view(torch.int32), codes.columns.view(torch.int32), n_columns, n_places,
        (n_columns - 1) * n_places if apart else 0, **(kind | {"num_warps": WARPS[per_row]}),
    )  # fmt: skip
    return codes._replace(column_scales=_of_columns(found, n_columns, per_row))


def quantise_gradients(
    d_inner_PF: Tensor, gate_up_PF: Tensor, weights_P: Tensor, group: Tensor, n_groups: int, per_row: bool
) -> tuple[Codes, Tensor]:
    """Codes of the gradient [P, 2 F] of gate and up of a weighed SwiGLU, and the gradient of its weights [P]."""
    if not has_kernels(gate_up_PF):
        d_gate_up_PF, d_weights_P1 = swiglu_gradients(d_inner_PF.float(), gate_up_PF.float(), weights_P[:, None])
        assert d_weights_P1 is not None
        return _plain(d_gate_up_PF, group, n_groups, per_row, False), d_weights_P1[:, 0]
    d_inner_PF, gate_up_PF, weights_P = d_inner_PF.contiguous(), gate_up_PF.contiguous(), weights_P.contiguous()
    n_rows, n_columns = d_inner_PF.shape
    codes, found = _empty(d_inner_PF, n_rows, 2 * n_columns, n_groups, per_row, False)
    grid = (n_rows // TILE, -(-n_columns // HALF))
    parts = weights_P.new_empty(grid[1], n_rows)
    operands = d_inner_PF.view(torch.int64), gate_up_PF.view(torch.int64), weights_P, group, codes.row_scales, found
    kind = {"width": HALF // 4, "per_row": per_row, "num_warps": 8}
    launch(_kernels().scales_of_gradients, grid, *operands, parts, n_columns, n_rows, **kind)
    launch(
        _kernels().quantise_gradients, grid, *operands, codes.rows.view(torch.int32), codes.columns.view(torch.int32),
        n_columns, n_rows // 4, **(kind | {"num_warps": WARPS[per_row]}),
    )  # fmt: skip
    return codes._replace(column_scales=_of_columns(found, 2 * n_columns, per_row)), parts.sum(0)


def _empty(x: Tensor, n_rows: int, n_columns: int, n_groups: int, per_row: bool, apart: bool) -> tuple[Codes, Tensor]:
    """Memory for codes, and the scales of groups' columns, or of groups, to be raised from almost nothing."""
    new = functools.partial(torch.empty, dtype=torch.float8_e4m3fn, device=x.device)
    columns = new(n_groups, n_columns, n_rows // n_groups) if apart else new(n_columns, n_rows)
    shape = (n_groups, n_columns) if per_row else (n_groups,)
    scales = x.new_full((n_rows + math.prod(shape),), SMALLEST, dtype=torch.float32)
    found = scales[n_rows:].view(shape)
    return Codes(new(n_rows, n_columns), scales[:n_rows], columns, found), found


def _of_columns(found: Tensor, n_columns: int, per_row: bool) -> Tensor:
    """Scales [E, K]."""
    return found if per_row else found[:, None].repeat(1, n_columns)


def _plain(values_PK: Tensor, group: Tensor, n_groups: int, per_row: bool, apart: bool) -> Codes:
    """What the kernels compute."""
    of_row, found_PK = group.repeat_interleave(ROWS), values_PK.abs() / LARGEST
    column_scales = found_PK.new_full((n_groups, values_PK.shape[1]), SMALLEST)
    column_scales.scatter_reduce_(0, of_row[:, None].expand_as(values_PK).long(), found_PK, "amax")
    if per_row:
        row_scales = found_PK.amax(1).clamp_(min=SMALLEST)
    else:
        column_scales = column_scales.amax(1, keepdim=True).repeat(1, values_PK.shape[1])
        row_scales = column_scales[of_row, 0]
    rows = (values_PK / row_scales[:, None]).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    turned_KP = (values_PK / column_scales[of_row]).clamp_(-LARGEST, LARGEST).T
    if apart:
        turned_KP = turned_KP.unflatten(1, (n_groups, -1)).transpose(0, 1)
    return Codes(rows, row_scales, turned_KP.to(torch.float8_e4m3fn).contiguous(), column_scales)


def quantise_weight(weight_ENK: Tensor, per_row: bool) -> Codes:
    """Codes of the experts' weights; rows of 16 of an expert, all of them together a multiple of 128."""
    n_experts, n_out, _ = weight_ENK.shape
    group = torch.arange(n_experts, dtype=torch.int32, device=weight_ENK.device).repeat_interleave(
        n_out // ROWS, output_size=n_experts * n_out // ROWS
    )
    codes = quantise(weight_ENK.detach().flatten(0, 1), group, n_experts, per_row, apart=True)
    return codes._replace(rows=codes.rows.view_as(weight_ENK), row_scales=codes.row_scales.view(n_experts, n_out))


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], ends_E: Tensor, dtype: torch.dtype, fast: bool):
    """a b_e^T [P, N] for the rows of each expert, of codes and scales [P, K], [P] and [E, N, K], [E, N]; `fast`: sums
    of tensor cores are not taken to float32 in between."""
    if a[0].is_cuda:
        row_wise = F.ScalingType.RowWise  # type: ignore[attr-defined]
        return F.scaled_grouped_mm(  # type: ignore[attr-defined]
            a[0], b[0].transpose(-2, -1), a[1], row_wise, b[1], row_wise,
            offs=ends_E, output_dtype=torch.bfloat16, use_fast_accum=fast,
        )  # fmt: skip
    counts = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()
    parts = (a[0].float() * a[1][:, None]).split(counts)
    return torch.cat([part @ w.T for part, w in zip(parts, b[0].float() * b[1][..., None], strict=True)]).to(dtype)


def takes(weights: tuple[Tensor, ...]) -> bool:
    """Whether tensor cores take experts with these weights [E, N, K]: Hopper, widths and rows that fill words."""
    plain = all(type(w.data) is Tensor and w.is_cuda for w in weights)
    fits = all(w.shape[1] % ROWS == 0 and w.shape[2] % ROWS == 0 and len(w) * w.shape[1] % TILE == 0 for w in weights)
    return plain and fits and len(weights[0]) < 1024 and torch.cuda.get_device_properties(weights[0].device).major == 9


def experts(
    x_TD: Tensor, weights_TA: Tensor, plus_TD: Tensor | None, rows: Rows, weights: tuple[Tensor, Tensor],
    codes: tuple[Codes, ...], per_row: bool, adds: bool,
) -> Tensor:  # fmt: skip
    """Weighted sum of the SwiGLUs of every token's experts, plus `plus`, [T, D]; `weights`: gate_up [E, 2 F, D], down
    [E, D, F]; `adds`: their gradients are added to `grad`."""
    return _Experts.apply(x_TD, weights_TA, plus_TD, *weights, rows, codes, per_row, adds)  # type: ignore[return-value]


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_TD: Tensor, weights_TA: Tensor, plus_TD: Tensor | None, gate_up: Tensor, down: Tensor, rows: Rows,
        codes: tuple[Codes, Codes], per_row: bool, adds: bool,
    ) -> Tensor:  # fmt: skip
        first, last = codes
        ends_E, group, n_experts, dtype = rows.ends_E, rows.group, len(rows.ends_E), x_TD.dtype
        weights_P = weights_TA.new_zeros(len(rows.token_P), dtype=torch.float32)
        weights_P.scatter_(0, rows.row_TA.flatten(), weights_TA.detach().flatten().float())
        x = quantise(x_TD, group, n_experts, per_row, token_P=rows.token_P)
        gate_up_PF = product(x[:2], first[:2], ends_E, dtype, True)
        inner = quantise(gate_up_PF, group, n_experts, per_row, weights_P=weights_P)
        y_PD = product(inner[:2], last[:2], ends_E, dtype, True)
        ctx.save_for_backward(*rows, weights_P, *x[2:], gate_up_PF, *inner[2:], *first[2:], *last[2:])
        ctx.weights, ctx.per_row, ctx.adds, ctx.of_weights = (gate_up, down), per_row, adds, weights_TA.dtype
        return summed_rows(y_PD, rows.row_TA, plus_TD)

    @staticmethod
    def backward(ctx, d_y_TD: Tensor):  # type: ignore[override]
        *rows, weights_P, x, x_scales, gate_up_PF, inner, inner_scales, first, first_scales, last, last_scales = (
            ctx.saved_tensors
        )
        token_P, row_TA, ends_E, group = rows
        per_row, n_experts, dtype = ctx.per_row, len(ends_E), d_y_TD.dtype
        d_y = quantise(d_y_TD, group, n_experts, per_row, token_P=token_P)
        d_down = expert_gradient(ctx.weights[1], d_y[2], inner, ends_E, ctx.adds, (d_y[3], inner_scales))
        d_inner_PF = product(d_y[:2], (last, last_scales), ends_E, dtype, FAST_GRADIENTS)
        d, d_weights_P = quantise_gradients(d_inner_PF, gate_up_PF, weights_P, group, n_experts, per_row)
        d_gate_up = expert_gradient(ctx.weights[0], d[2], x, ends_E, ctx.adds, (d[3], x_scales))
        d_x_PD = product(d[:2], (first, first_scales), ends_E, dtype, FAST_GRADIENTS)
        d_weights_TA = d_weights_P[row_TA].to(ctx.of_weights)
        d_plus_TD = d_y_TD if ctx.needs_input_grad[2] else None
        return summed_rows(d_x_PD, row_TA), d_weights_TA, d_plus_TD, d_gate_up, d_down, None, None, None, None


def _values(x: Tensor, token_P: Tensor | None, weights_P: Tensor | None) -> Tensor:
    """What is quantised, in float32."""
    if token_P is not None:
        return torch.where((token_P >= 0)[:, None], x[token_P.clamp(min=0)].float(), 0.0)
    return x.float() if weights_P is None else swiglu(x.float(), weights_P[:, None])


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("isoflop.numerics.kernels.grouped")
