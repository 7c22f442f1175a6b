"""Values of experts to E4M3 codes in both directions: scales of rows, and of every column within a group of rows.

Rows of a group lie together, sixteen of them at least and a multiple of it, so `group` names the group of every
sixteen rows. What is quantised is a matrix as it stands, rows of tokens taken to their experts (`token`, -1: zeros), or
what a SwiGLU makes of gate and up, weighed by row; it is made anew by both kernels instead of being written between.

Shapes: P rows, a multiple of 128, K columns, G groups; as in quantise.py a tile of 128 x 128 is worked on as four tiles
of every fourth row, and four codes of a column are written as one word.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from isoflop.numerics.kernels.quantise import _sigmoid, _word


@triton.jit
def fill_up(
    ends, slots, token, row, new_ends, group, n_slots, n_rows, n_experts, n_active, experts: tl.constexpr
):  # fmt: skip
    """Every expert's rows rounded up to a multiple of 16, at least 16, the last one's to all that is left: the token of
    each of the `n_rows` rows (-1: none), the row of each slot, the experts' new ends, the expert of every 16 rows."""
    e, p = tl.arange(0, experts), tl.program_id(0) * 128 + tl.arange(0, 128)
    end = tl.load(ends + e, e < n_experts, n_slots)
    start = tl.load(ends + e - 1, (e > 0) & (e <= n_experts), 0)
    filled = tl.maximum((end - start + 15) // 16, 1) * 16
    new_end = tl.cumsum(filled)
    of_row = tl.sum(((new_end[None, :] <= p[:, None]) & (e < n_experts - 1)[None, :]).to(tl.int32), 1)
    its = e[None, :] == of_row[:, None]
    source = p - tl.sum(tl.where(its, (new_end - filled - start)[None, :], 0), 1)
    inside = source < tl.sum(tl.where(its, end[None, :], 0), 1)
    slot = tl.load(slots + source, inside, 0)
    tl.store(token + p, tl.where(inside, slot // n_active, -1).to(tl.int32))
    tl.store(row + slot, p.to(tl.int64), inside)
    tl.store(group + p // 16, of_row, p % 16 == 0)
    if tl.program_id(0) == 0:
        tl.store(new_ends + e, tl.where(e == n_experts - 1, n_rows, new_end), e < n_experts)


@triton.jit
def _values(x, token, weights, row, column, n_columns, taken: tl.constexpr, gated: tl.constexpr):
    """A tile in float32, zero outside and where no token is."""
    inside = (column < n_columns)[None, :]
    if taken:
        source = tl.load(token + row)
        at = x + tl.maximum(source, 0).to(tl.int64)[:, None] * n_columns + column[None, :]
        values = tl.load(at, inside & (source >= 0)[:, None], 0.0).to(tl.float32)
    elif gated:
        at = x + row.to(tl.int64)[:, None] * (2 * n_columns) + column[None, :]
        gate = tl.load(at, inside, 0.0).to(tl.float32)
        up = tl.load(at + n_columns, inside, 0.0).to(tl.float32)
        values = gate * _sigmoid(gate) * up * tl.load(weights + row)[:, None]
    else:
        values = tl.load(x + row.to(tl.int64)[:, None] * n_columns + column[None, :], inside, 0.0).to(tl.float32)
    return values


@triton.jit
def scales_of_groups(
    x, token, weights, group, row_scales, column_scales, n_columns, taken: tl.constexpr, gated: tl.constexpr
):  # fmt: skip
    """max |value| / 448 of rows [P] and of columns within groups [G, K]: the scales, which start at almost nothing."""
    row, column = tl.program_id(1) * 128 + tl.arange(0, 128), tl.program_id(0) * 128 + tl.arange(0, 128)
    tile = tl.abs(_values(x, token, weights, row, column, n_columns, taken, gated)) * (1.0 / 448.0)
    tl.atomic_max(row_scales + row, tl.max(tile, 1), sem="relaxed")
    of_row = tl.load(group + row // 16)
    first, last = tl.load(group + tl.program_id(1) * 8), tl.load(group + tl.program_id(1) * 8 + 7)
    for at in range(first, last + 1):
        found = tl.max(tl.where((of_row == at)[:, None], tile, 0.0), 0)
        tl.atomic_max(column_scales + at * n_columns + column, found, column < n_columns, sem="relaxed")


@triton.jit
def _coded(tile, by_row, by_column, rows, row, column, n_columns):
    """Store a tile's codes along rows; returns those along columns."""
    at = rows + row.to(tl.int64)[:, None] * n_columns + column[None, :]
    tl.store(at, (tile * (1.0 / by_row)[:, None]).to(tl.float8e4nv), (column < n_columns)[None, :])
    return (tile * by_column).to(tl.float8e4nv)


@triton.jit
def quantise_groups(
    x, token, weights, group, row_scales, column_scales, rows, words, n_columns, n_words, jump,
    taken: tl.constexpr, gated: tl.constexpr,
):  # fmt: skip
    """Codes [P, K] and, transposed, as words of four: a column's begin `n_words` after the last column's, a group's
    `jump` further than its rows say."""
    place, column = tl.program_id(1) * 32 + tl.arange(0, 32), tl.program_id(0) * 128 + tl.arange(0, 128)
    row, inside = 4 * place, (column < n_columns)[None, :]
    of_row = tl.load(group + place // 4)
    scale = tl.load(column_scales + of_row[:, None] * n_columns + column[None, :], inside, 1.0)
    inverse = 1.0 / scale
    a = _values(x, token, weights, row, column, n_columns, taken, gated)
    b = _values(x, token, weights, row + 1, column, n_columns, taken, gated)
    c = _values(x, token, weights, row + 2, column, n_columns, taken, gated)
    d = _values(x, token, weights, row + 3, column, n_columns, taken, gated)
    a = _coded(a, tl.load(row_scales + row), inverse, rows, row, column, n_columns)
    b = _coded(b, tl.load(row_scales + row + 1), inverse, rows, row + 1, column, n_columns)
    c = _coded(c, tl.load(row_scales + row + 2), inverse, rows, row + 2, column, n_columns)
    d = _coded(d, tl.load(row_scales + row + 3), inverse, rows, row + 3, column, n_columns)
    at = words + column[:, None].to(tl.int64) * n_words + (place + of_row.to(tl.int64) * jump)[None, :]
    tl.store(at, tl.trans(_word(a, b, c, d)).to(tl.int32, bitcast=True), (column < n_columns)[:, None])
