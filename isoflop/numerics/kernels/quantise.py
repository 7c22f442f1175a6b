"""bf16 or float32 to E4M3 codes with scales, in both directions of a matrix from one reading of it.

A tensor core sums over contiguous values only, so the gradient of a weight needs activations and their gradients
transposed: the same program that writes the codes of a tile along its rows writes those along its columns. Scales are
laid out as `torch.nn.functional.scaled_mm` reads them: group by group, [K / 128, R].

Shapes: R rows, K columns; codes along rows [R, K rounded up to 128], along columns [K, R rounded up to 128], the
padding zero. `codes` below is an E4M3 pointer; `largest` of E4M3 is 448.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _scale_of(largest, power_of_two: tl.constexpr):
    """largest / 448, 1 where all is zero, rounded up to a power of two if asked to."""
    scale = tl.where(largest > 0.0, tl.div_rn(largest, 448.0), 1.0)
    scale = tl.maximum(scale, 1e-37)  # its inverse stays finite
    if power_of_two:
        scale = tl.exp2(tl.ceil(tl.log2(scale)))
    return scale


@triton.jit
def _store_rows(tile, codes, scales, row, column, group, n_rows, n_padded, power_of_two: tl.constexpr):
    """Codes and scales of a 128-wide tile along its rows; returns the values that they stand for."""
    scale = _scale_of(tl.max(tl.abs(tile), 1), power_of_two)
    coded = (tile * (1.0 / scale)[:, None]).to(tl.float8e4nv)
    tl.store(codes + row[:, None].to(tl.int64) * n_padded + column[None, :], coded, (row < n_rows)[:, None])
    tl.store(scales + group.to(tl.int64) * n_rows + row, scale, row < n_rows)
    return coded.to(tl.float32) * scale[:, None]


@triton.jit
def _store_columns(tile, codes, scales, row, column, group, n_columns, n_padded, power_of_two: tl.constexpr):
    """The same along its columns, transposed: codes [K, R padded], scales [R / 128, K]."""
    scale = _scale_of(tl.max(tl.abs(tile), 0), power_of_two)
    coded = (tile * (1.0 / scale)[None, :]).to(tl.float8e4nv)
    at = codes + column[:, None].to(tl.int64) * n_padded + row[None, :]
    tl.store(at, tl.trans(coded), (column < n_columns)[:, None])
    tl.store(scales + group.to(tl.int64) * n_columns + column, scale, column < n_columns)


@triton.jit
def quantise_tiles(
    x, rows, row_scales, columns, column_scales, n_rows, n_columns, padded_rows, padded_columns,
    along_rows: tl.constexpr, along_columns: tl.constexpr, again: tl.constexpr, power_of_two: tl.constexpr,
):  # fmt: skip
    """1 x 128 tiles of x [R, K] along rows, columns or both; `again`: columns from the codes of the rows."""
    row, column = tl.program_id(0) * 128 + tl.arange(0, 128), tl.program_id(1) * 128 + tl.arange(0, 128)
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    tile = tl.load(x + row[:, None].to(tl.int64) * n_columns + column[None, :], inside, 0.0).to(tl.float32)
    if along_rows:
        held = _store_rows(tile, rows, row_scales, row, column, tl.program_id(1), n_rows, padded_columns, power_of_two)
        if again:
            tile = held
    if along_columns:
        _store_columns(
            tile, columns, column_scales, row, column, tl.program_id(0), n_columns, padded_rows, power_of_two
        )


@triton.jit
def quantise_blocks(
    w, rows, row_scales, columns, column_scales, n_rows, n_columns, padded_rows, padded_columns,
    row_groups, column_groups, power_of_two: tl.constexpr,
):  # fmt: skip
    """128 x 128 blocks of w [N, K]: codes [N, K] and transposed [K, N], scales [N / 128, row_groups] and
    [K / 128, column_groups]."""
    block_row, block_column = tl.program_id(0), tl.program_id(1)
    row, column = block_row * 128 + tl.arange(0, 128), block_column * 128 + tl.arange(0, 128)
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    tile = tl.load(w + row[:, None].to(tl.int64) * n_columns + column[None, :], inside, 0.0).to(tl.float32)
    scale = _scale_of(tl.max(tl.max(tl.abs(tile), 1), 0), power_of_two)
    coded = (tile * (1.0 / scale)).to(tl.float8e4nv)
    at = rows + row[:, None].to(tl.int64) * padded_columns + column[None, :]
    tl.store(at, coded, (row < n_rows)[:, None])
    at = columns + column[:, None].to(tl.int64) * padded_rows + row[None, :]
    tl.store(at, tl.trans(coded), (column < n_columns)[:, None])
    tl.store(row_scales + block_row * row_groups + block_column, scale)
    tl.store(column_scales + block_column * column_groups + block_row, scale)


@triton.jit
def swiglu_tiles(
    gate_up, rows, row_scales, columns, column_scales, n_rows, n, padded_rows, power_of_two: tl.constexpr
):  # fmt: skip
    """silu(gate) * up of gate_up [R, 2 F], rounded to bf16 and quantised along rows and, again, along columns."""
    row, column = tl.program_id(0) * 128 + tl.arange(0, 128), tl.program_id(1) * 128 + tl.arange(0, 128)
    at, inside = gate_up + row[:, None].to(tl.int64) * 2 * n + column[None, :], (row < n_rows)[:, None]
    gate, up = tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + n, inside, 0.0).to(tl.float32)
    tile = (gate * tl.sigmoid(gate) * up).to(gate_up.dtype.element_ty).to(tl.float32)
    held = _store_rows(tile, rows, row_scales, row, column, tl.program_id(1), n_rows, n, power_of_two)
    _store_columns(held, columns, column_scales, row, column, tl.program_id(0), n, padded_rows, power_of_two)


@triton.jit
def swiglu_backward_tiles(
    d_out, gate_up, rows, row_scales, columns, column_scales, n_rows, n, padded_rows, power_of_two: tl.constexpr
):  # fmt: skip
    """Gradient [R, 2 F] of gate and up, rounded to bf16 and quantised along rows and along columns.

    A program makes a tile of one of them; its neighbour makes the other from the same operands, out of the cache.
    """
    group, place, of_up = tl.program_id(1), tl.program_id(0) // 2, tl.program_id(0) % 2
    row, column = group * 128 + tl.arange(0, 128), place * 128 + tl.arange(0, 128)
    wide, inside = row[:, None].to(tl.int64), (row < n_rows)[:, None]
    at = gate_up + wide * 2 * n + column[None, :]
    gate = tl.load(at, inside, 0.0).to(tl.float32)
    tile = tl.load(d_out + wide * n + column[None, :], inside, 0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    if of_up == 1:
        tile *= gate * share
    else:
        tile *= tl.load(at + n, inside, 0.0).to(tl.float32) * share * (1.0 + gate * (1.0 - share))
    tile = tile.to(gate_up.dtype.element_ty).to(tl.float32)
    column += of_up * n
    other = place + of_up * (n // 128)
    _store_rows(tile, rows, row_scales, row, column, other, n_rows, 2 * n, power_of_two)
    _store_columns(tile, columns, column_scales, row, column, group, 2 * n, padded_rows, power_of_two)


@triton.jit
def largest(x, row_largest, column_largest, n_rows, n_columns, per_row: tl.constexpr, block: tl.constexpr):
    """max |x| of rows [R] and columns [K], or of all (`row_largest` [1]); the results start at 0."""
    row, column = tl.program_id(0) * 128 + tl.arange(0, 128), tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    tile = tl.load(x + row[:, None].to(tl.int64) * n_columns + column[None, :], inside, 0.0).to(tl.float32)
    tile = tl.abs(tile)
    if per_row:
        tl.atomic_max(row_largest + row, tl.max(tile, 1), row < n_rows)
        tl.atomic_max(column_largest + column, tl.max(tile, 0), column < n_columns)
    else:
        tl.atomic_max(row_largest, tl.max(tl.max(tile, 1), 0))


@triton.jit
def quantise_scaled(
    x, row_largest, column_largest, rows, columns, row_scales, column_scales,
    n_rows, n_columns, padded_rows, padded_columns, per_row: tl.constexpr, power_of_two: tl.constexpr,
):  # fmt: skip
    """x [R, K] by scales of whole rows and columns, or one of all: codes [R, K] and transposed [K, R]."""
    row, column = tl.program_id(0) * 128 + tl.arange(0, 128), tl.program_id(1) * 128 + tl.arange(0, 128)
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    tile = tl.load(x + row[:, None].to(tl.int64) * n_columns + column[None, :], inside, 0.0).to(tl.float32)
    if per_row:
        by_row = _scale_of(tl.load(row_largest + row, row < n_rows, 0.0), power_of_two)
        by_column = _scale_of(tl.load(column_largest + column, column < n_columns, 0.0), power_of_two)
        coded = (tile * (1.0 / by_row)[:, None]).to(tl.float8e4nv)
        turned = (tile * (1.0 / by_column)[None, :]).to(tl.float8e4nv)
        tl.store(row_scales + row, by_row, (row < n_rows) & (tl.program_id(1) == 0))
        tl.store(column_scales + column, by_column, (column < n_columns) & (tl.program_id(0) == 0))
    else:
        scale = _scale_of(tl.load(row_largest), power_of_two)
        coded = (tile * (1.0 / scale)).to(tl.float8e4nv)
        turned = coded
        tl.store(row_scales, scale)
    at = rows + row[:, None].to(tl.int64) * padded_columns + column[None, :]
    tl.store(at, coded, (row < n_rows)[:, None])
    at = columns + column[:, None].to(tl.int64) * padded_rows + row[None, :]
    tl.store(at, tl.trans(turned), (column < n_columns)[:, None])
