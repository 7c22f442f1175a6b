"""bf16 or float32 to E4M3 codes with scales, in both directions of a matrix from one reading of it.

A tensor core sums over contiguous values only, so the gradient of a weight needs activations and their gradients
transposed: the same program that writes the codes of a tile along its rows writes those along its columns. Scales are
laid out as `torch.nn.functional.scaled_mm` reads them: group by group, [K / 128, R].

A tile of 128 x 128 is worked on as four tiles of 32 x 128: of every four rows the first, second, third and fourth. Four
codes of a column then come from one place of the four, and are transposed as one 32-bit word instead of four bytes,
which is what such a kernel spends its time on otherwise.

Shapes: R rows, K columns; codes along rows [R, K rounded up to 128], along columns [K, R rounded up to 128] as words of
four, the padding zero. Nothing is clamped: the largest value of a scale is its 448, give or take a rounding that the
nearest code takes back, and a NaN stays one.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _scale_of(largest, power_of_two: tl.constexpr):
    """largest / 448, 1 where all is zero, rounded up to a power of two if asked to."""
    scale = tl.where(largest > 0.0, largest * (1.0 / 448.0), 1.0)
    scale = tl.maximum(scale, 1e-37)  # its inverse stays finite
    if power_of_two:
        scale = tl.exp2(tl.ceil(tl.log2(scale)))
    return scale


@triton.jit
def _loaded(x, row, column, n_rows, n_columns):
    """A tile of x [R, K] in float32, zero outside."""
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    return tl.load(x + row[:, None].to(tl.int64) * n_columns + column[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def _rows(tile, codes, scales, row, column, group, n_rows, n_padded, power_of_two: tl.constexpr):
    """Codes and scales of a 128-wide tile along its rows; returns the values that they stand for."""
    scale = _scale_of(tl.max(tl.abs(tile), 1), power_of_two)
    coded = (tile * (1.0 / scale)[:, None]).to(tl.float8e4nv)
    tl.store(codes + row[:, None].to(tl.int64) * n_padded + column[None, :], coded, (row < n_rows)[:, None])
    tl.store(scales + group.to(tl.int64) * n_rows + row, scale, row < n_rows)
    return coded.to(tl.float32) * scale[:, None]


@triton.jit
def _word(a, b, c, d):
    """Four codes as one 32-bit number, the first in its lowest byte."""
    word = a.to(tl.uint8, bitcast=True).to(tl.uint32) | (b.to(tl.uint8, bitcast=True).to(tl.uint32) << 8)
    word |= c.to(tl.uint8, bitcast=True).to(tl.uint32) << 16
    return word | (d.to(tl.uint8, bitcast=True).to(tl.uint32) << 24)


@triton.jit
def _store_words(word, words, column, place, n_columns, n_words):
    at = words + column[:, None].to(tl.int64) * n_words + place[None, :]
    tl.store(at, tl.trans(word).to(tl.int32, bitcast=True), (column < n_columns)[:, None])


@triton.jit
def _columns(a, b, c, d, words, scales, column, place, group, n_columns, n_words, power_of_two: tl.constexpr):
    """Codes and scales along the columns of the four tiles of 128 rows, transposed."""
    largest = tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d)))
    scale = _scale_of(tl.max(largest, 0), power_of_two)
    inverse = (1.0 / scale)[None, :]
    a, b = (a * inverse).to(tl.float8e4nv), (b * inverse).to(tl.float8e4nv)
    c, d = (c * inverse).to(tl.float8e4nv), (d * inverse).to(tl.float8e4nv)
    _store_words(_word(a, b, c, d), words, column, place, n_columns, n_words)
    tl.store(scales + group.to(tl.int64) * n_columns + column, scale, column < n_columns)


@triton.jit
def quantise_tiles(
    x, rows, row_scales, words, column_scales, n_rows, n_columns, n_words, n_padded,
    again: tl.constexpr, power_of_two: tl.constexpr,
):  # fmt: skip
    """1 x 128 tiles of x [R, K] along rows and along columns; `again`: columns from the codes of the rows."""
    group, other = tl.program_id(1), tl.program_id(0)
    place, column = group * 32 + tl.arange(0, 32), other * 128 + tl.arange(0, 128)
    row = 4 * place
    a, b = _loaded(x, row, column, n_rows, n_columns), _loaded(x, row + 1, column, n_rows, n_columns)
    c, d = _loaded(x, row + 2, column, n_rows, n_columns), _loaded(x, row + 3, column, n_rows, n_columns)
    a_held = _rows(a, rows, row_scales, row, column, other, n_rows, n_padded, power_of_two)
    b_held = _rows(b, rows, row_scales, row + 1, column, other, n_rows, n_padded, power_of_two)
    c_held = _rows(c, rows, row_scales, row + 2, column, other, n_rows, n_padded, power_of_two)
    d_held = _rows(d, rows, row_scales, row + 3, column, other, n_rows, n_padded, power_of_two)
    if again:
        a, b, c, d = a_held, b_held, c_held, d_held
    _columns(a, b, c, d, words, column_scales, column, place, group, n_columns, n_words, power_of_two)


@triton.jit
def _scaled(tile, by_row, by_column, rows, row, column, n_rows, n_padded):
    """Store a tile's codes along rows; returns those along columns.

    Both are made even where the scales are equal: with Triton 3.6 on Hopper, codes that were stored as they are and
    transposed too came out wrong the second time (docs/log.md).
    """
    coded = (tile * (1.0 / by_row)).to(tl.float8e4nv)
    tl.store(rows + row[:, None].to(tl.int64) * n_padded + column[None, :], coded, (row < n_rows)[:, None])
    return (tile * (1.0 / by_column)).to(tl.float8e4nv)


@triton.jit
def quantise_blocks(
    w, rows, row_scales, words, column_scales, n_rows, n_columns, n_words, n_padded, row_groups, column_groups, one,
    power_of_two: tl.constexpr,
):  # fmt: skip
    """128 x 128 blocks of w [N, K]: codes [N, K] and transposed [K, N], scales [N / 128, row_groups] and
    [K / 128, column_groups]; `one` is 1 (see `_scaled`)."""
    group, other = tl.program_id(1), tl.program_id(0)
    place, column = group * 32 + tl.arange(0, 32), other * 128 + tl.arange(0, 128)
    row = 4 * place
    a, b = _loaded(w, row, column, n_rows, n_columns), _loaded(w, row + 1, column, n_rows, n_columns)
    c, d = _loaded(w, row + 2, column, n_rows, n_columns), _loaded(w, row + 3, column, n_rows, n_columns)
    highest = tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d)))
    scale = _scale_of(tl.max(tl.max(highest, 1), 0), power_of_two)
    again = scale * one
    a = _scaled(a, scale, again, rows, row, column, n_rows, n_padded)
    b = _scaled(b, scale, again, rows, row + 1, column, n_rows, n_padded)
    c = _scaled(c, scale, again, rows, row + 2, column, n_rows, n_padded)
    d = _scaled(d, scale, again, rows, row + 3, column, n_rows, n_padded)
    _store_words(_word(a, b, c, d), words, column, place, n_columns, n_words)
    tl.store(row_scales + group * row_groups + other, scale)
    tl.store(column_scales + other * column_groups + group, scale)


@triton.jit
def _sigmoid(x):
    """Through 1 / sqrt, which has an instruction of its own; a division takes eight to get its last bit right."""
    root = tl.rsqrt(1.0 + tl.exp(-x))
    return root * root


@triton.jit
def _gated(gate_up, row, column, n_rows, n):
    """silu(gate) * up of a tile."""
    gate, up = _loaded(gate_up, row, column, n_rows, 2 * n), _loaded(gate_up, row, n + column, n_rows, 2 * n)
    return gate * _sigmoid(gate) * up


@triton.jit
def swiglu_tiles(gate_up, rows, row_scales, words, column_scales, n_rows, n, n_words, power_of_two: tl.constexpr):
    """silu(gate) * up of gate_up [R, 2 F], F a multiple of 128, quantised along rows and, again, along columns."""
    group, other = tl.program_id(1), tl.program_id(0)
    place, column = group * 32 + tl.arange(0, 32), other * 128 + tl.arange(0, 128)
    row = 4 * place
    a, b = _gated(gate_up, row, column, n_rows, n), _gated(gate_up, row + 1, column, n_rows, n)
    c, d = _gated(gate_up, row + 2, column, n_rows, n), _gated(gate_up, row + 3, column, n_rows, n)
    a = _rows(a, rows, row_scales, row, column, other, n_rows, n, power_of_two)
    b = _rows(b, rows, row_scales, row + 1, column, other, n_rows, n, power_of_two)
    c = _rows(c, rows, row_scales, row + 2, column, other, n_rows, n, power_of_two)
    d = _rows(d, rows, row_scales, row + 3, column, other, n_rows, n, power_of_two)
    _columns(a, b, c, d, words, column_scales, column, place, group, n, n_words, power_of_two)


@triton.jit
def _gated_backward(d_out, gate_up, row, column, of_up, n_rows, n):
    """Gradient of a tile of up, or of gate."""
    gate, d = _loaded(gate_up, row, column, n_rows, 2 * n), _loaded(d_out, row, column, n_rows, n)
    share = _sigmoid(gate)
    if of_up == 1:
        d *= gate * share
    else:
        d *= _loaded(gate_up, row, n + column, n_rows, 2 * n) * share * (1.0 + gate * (1.0 - share))
    return d


@triton.jit
def swiglu_backward_tiles(
    d_out, gate_up, rows, row_scales, words, column_scales, n_rows, n, n_words, power_of_two: tl.constexpr
):  # fmt: skip
    """Gradient [R, 2 F] of gate and up, quantised along rows and along columns.

    A program makes a tile of one of them; its neighbour makes the other from the same operands, out of the cache.
    """
    group, other, of_up = tl.program_id(1), tl.program_id(0) // 2, tl.program_id(0) % 2
    place, column = group * 32 + tl.arange(0, 32), other * 128 + tl.arange(0, 128)
    row = 4 * place
    a = _gated_backward(d_out, gate_up, row, column, of_up, n_rows, n)
    b = _gated_backward(d_out, gate_up, row + 1, column, of_up, n_rows, n)
    c = _gated_backward(d_out, gate_up, row + 2, column, of_up, n_rows, n)
    d = _gated_backward(d_out, gate_up, row + 3, column, of_up, n_rows, n)
    column += of_up * n
    other += of_up * (n // 128)
    _rows(a, rows, row_scales, row, column, other, n_rows, 2 * n, power_of_two)
    _rows(b, rows, row_scales, row + 1, column, other, n_rows, 2 * n, power_of_two)
    _rows(c, rows, row_scales, row + 2, column, other, n_rows, 2 * n, power_of_two)
    _rows(d, rows, row_scales, row + 3, column, other, n_rows, 2 * n, power_of_two)
    _columns(a, b, c, d, words, column_scales, column, place, group, 2 * n, n_words, power_of_two)


@triton.jit
def largest(x, row_largest, column_largest, n_rows, n_columns, per_row: tl.constexpr, block: tl.constexpr):
    """max |x| of rows [R] and columns [K], or of all (`row_largest` [1]); the results start at 0."""
    row, column = tl.program_id(1) * 64 + tl.arange(0, 64), tl.program_id(0) * block + tl.arange(0, block)
    tile = tl.abs(_loaded(x, row, column, n_rows, n_columns))
    if per_row:
        tl.atomic_max(row_largest + row, tl.max(tile, 1), row < n_rows)
        tl.atomic_max(column_largest + column, tl.max(tile, 0), column < n_columns)
    else:
        tl.atomic_max(row_largest, tl.max(tl.max(tile, 1), 0))


@triton.jit
def _row_scales(row_largest, row_scales, row, n_rows, power_of_two: tl.constexpr):
    """Scales of rows [32, 1], stored by the programs of the first columns."""
    scale = _scale_of(tl.load(row_largest + row, row < n_rows, 0.0), power_of_two)
    tl.store(row_scales + row, scale, (row < n_rows) & (tl.program_id(0) == 0))
    return scale[:, None]


@triton.jit
def quantise_scaled(
    x, row_largest, column_largest, rows, row_scales, words, column_scales,
    n_rows, n_columns, n_words, n_padded, one, per_row: tl.constexpr, power_of_two: tl.constexpr,
):  # fmt: skip
    """x [R, K] by scales of whole rows and columns, or one of all: codes [R, K] and transposed [K, R]."""
    group, other = tl.program_id(1), tl.program_id(0)
    place, column = group * 32 + tl.arange(0, 32), other * 128 + tl.arange(0, 128)
    row = 4 * place
    a, b = _loaded(x, row, column, n_rows, n_columns), _loaded(x, row + 1, column, n_rows, n_columns)
    c, d = _loaded(x, row + 2, column, n_rows, n_columns), _loaded(x, row + 3, column, n_rows, n_columns)
    if per_row:
        by_column = _scale_of(tl.load(column_largest + column, column < n_columns, 0.0), power_of_two)
        tl.store(column_scales + column, by_column, (column < n_columns) & (group == 0))
        by_column = by_column[None, :]
        a_scale = _row_scales(row_largest, row_scales, row, n_rows, power_of_two)
        b_scale = _row_scales(row_largest, row_scales, row + 1, n_rows, power_of_two)
        c_scale = _row_scales(row_largest, row_scales, row + 2, n_rows, power_of_two)
        d_scale = _row_scales(row_largest, row_scales, row + 3, n_rows, power_of_two)
    else:
        scale = _scale_of(tl.load(row_largest), power_of_two)
        tl.store(row_scales, scale)
        a_scale, b_scale, c_scale, d_scale = scale, scale, scale, scale
        by_column = scale * one
    a = _scaled(a, a_scale, by_column, rows, row, column, n_rows, n_padded)
    b = _scaled(b, b_scale, by_column, rows, row + 1, column, n_rows, n_padded)
    c = _scaled(c, c_scale, by_column, rows, row + 2, column, n_rows, n_padded)
    d = _scaled(d, d_scale, by_column, rows, row + 3, column, n_rows, n_padded)
    _store_words(_word(a, b, c, d), words, column, place, n_columns, n_words)
