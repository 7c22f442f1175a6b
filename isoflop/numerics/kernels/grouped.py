"""Values of experts to E4M3 codes in both directions: scales of rows, and of every column within a group of rows.

Rows of a group lie together, sixteen of them at least and a multiple of it, so `group` names the group of every
sixteen rows. What is quantised is a matrix as it stands, rows of tokens taken to their experts (`token`, -1: zeros),
what a SwiGLU makes of gate and up, weighed by row, or the gradient of gate and up; it is made anew by the kernel that
looks for the largest values and by the one that writes codes, instead of being written between.

A thread holds four columns of four rows: four values of bf16 are read as one 64-bit word, four codes are a 32-bit word,
and sixteen of them are transposed by eight permutations of bytes. Byte by byte that takes most of the time.

Shapes: P rows, a multiple of 128, K columns, a multiple of 16, in W = K / 4 words, G groups, F columns of a gate.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


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
def _coded(a, b, c, d):
    """Four values as E4M3 codes in one word, the first in its lowest byte; beyond 448 it is 448, NaN stays NaN."""
    return tl.inline_asm_elementwise(
        """{ .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high}; }""",
        "=r,f,f,f,f", [a, b, c, d], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _turned(a, b, c, d):
    """Words of four rows, four columns each, to words of four columns, four rows each."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 t, u, v, w;
        prmt.b32 t, $4, $5, 0x5140; prmt.b32 u, $4, $5, 0x7362;
        prmt.b32 v, $6, $7, 0x5140; prmt.b32 w, $6, $7, 0x7362;
        prmt.b32 $0, t, v, 0x5410; prmt.b32 $1, t, v, 0x7632;
        prmt.b32 $2, u, w, 0x5410; prmt.b32 $3, u, w, 0x7632; }""",
        "=&r,=&r,=&r,=&r,r,r,r,r", [a, b, c, d],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _sigmoid(x):
    """In four instructions; its last bits do not matter to codes of three."""
    return tl.inline_asm_elementwise(
        """{ mul.f32 $0, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 $0, $0; add.f32 $0, $0, 0f3F800000;
        rcp.approx.ftz.f32 $0, $0; }""",
        "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _four(at, inside):
    """The four bf16 values of a 64-bit word, in float32."""
    words = tl.load(at, inside, 0)
    low, high = words.to(tl.int32), (words >> 32).to(tl.int32)
    return (
        (low << 16).to(tl.float32, bitcast=True), (low & -65536).to(tl.float32, bitcast=True),
        (high << 16).to(tl.float32, bitcast=True), (high & -65536).to(tl.float32, bitcast=True),
    )  # fmt: skip


@triton.jit
def _values(x, token, weights, row, word, n_words, taken: tl.constexpr, gated: tl.constexpr):
    """Four columns of a tile in float32, zero outside and where no token is."""
    inside = (word < n_words)[None, :]
    if taken:
        source = tl.load(token + row)
        at = x + tl.maximum(source, 0).to(tl.int64)[:, None] * n_words + word[None, :]
        a, b, c, d = _four(at, inside & (source >= 0)[:, None])
    elif gated:
        at = x + row.to(tl.int64)[:, None] * (2 * n_words) + word[None, :]
        a, b, c, d = _four(at, inside)
        a_up, b_up, c_up, d_up = _four(at + n_words, inside)
        weight = tl.load(weights + row)[:, None]
        a, b = a * _sigmoid(a) * a_up * weight, b * _sigmoid(b) * b_up * weight
        c, d = c * _sigmoid(c) * c_up * weight, d * _sigmoid(d) * d_up * weight
    else:
        at = x + (row.to(tl.int64)[:, None] * n_words + word[None, :]) * 4
        a, b = tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + 1, inside, 0.0).to(tl.float32)
        c, d = tl.load(at + 2, inside, 0.0).to(tl.float32), tl.load(at + 3, inside, 0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _largest(a, b, c, d):
    return tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d)))


@triton.jit
def _raise_columns(a, b, c, d, scales, inside):
    """Raise scales of four columns each to max |value| / 448."""
    part: tl.constexpr = 1.0 / 448.0
    tl.atomic_max(scales, tl.max(tl.abs(a), 0) * part, inside, sem="relaxed")
    tl.atomic_max(scales + 1, tl.max(tl.abs(b), 0) * part, inside, sem="relaxed")
    tl.atomic_max(scales + 2, tl.max(tl.abs(c), 0) * part, inside, sem="relaxed")
    tl.atomic_max(scales + 3, tl.max(tl.abs(d), 0) * part, inside, sem="relaxed")


@triton.jit
def _raise(a, b, c, d, group, row_scales, column_scales, row, word, n_words, n_columns, per_row: tl.constexpr):
    """Raise scales of rows [P] and of columns within groups [G, K], or of groups [G], to max |value| / 448."""
    of_rows = tl.max(_largest(a, b, c, d), 1) * (1.0 / 448.0)
    first, last = tl.load(group + tl.program_id(0) * 8), tl.load(group + tl.program_id(0) * 8 + 7)
    if per_row:
        tl.atomic_max(row_scales + row, of_rows, sem="relaxed")
        inside = word < n_words
        if first == last:
            _raise_columns(a, b, c, d, column_scales + first * n_columns + 4 * word, inside)
        else:
            of_row = tl.load(group + row // 16)[:, None]
            for at in range(first, last + 1):
                e, f = tl.where(of_row == at, a, 0.0), tl.where(of_row == at, b, 0.0)
                g, h = tl.where(of_row == at, c, 0.0), tl.where(of_row == at, d, 0.0)
                _raise_columns(e, f, g, h, column_scales + at * n_columns + 4 * word, inside)
    else:
        of_row = tl.load(group + row // 16)
        for at in range(first, last + 1):
            tl.atomic_max(column_scales + at, tl.max(tl.where(of_row == at, of_rows, 0.0)), sem="relaxed")


@triton.jit
def _inverses(column_scales, of_row, word, n_words, n_columns):
    """Of the scales of four columns each."""
    at, inside = column_scales + of_row[:, None] * n_columns + 4 * word[None, :], (word < n_words)[None, :]
    a, b = tl.load(at, inside, 1.0), tl.load(at + 1, inside, 1.0)
    c, d = tl.load(at + 2, inside, 1.0), tl.load(at + 3, inside, 1.0)
    return 1.0 / a, 1.0 / b, 1.0 / c, 1.0 / d


@triton.jit
def _row(values, by_columns, scale, rows, row, word, n_words, n_all, per_row: tl.constexpr):
    """Store the codes of a row with words of all columns; returns the same columns' codes by the columns' scales."""
    a, b, c, d = values
    inverse = (1.0 / scale)[:, None]
    coded = _coded(a * inverse, b * inverse, c * inverse, d * inverse)
    tl.store(rows + row.to(tl.int64)[:, None] * n_all + word[None, :], coded, (word < n_words)[None, :])
    if per_row:
        by_a, by_b, by_c, by_d = by_columns
        coded = _coded(a * by_a, b * by_b, c * by_c, d * by_d)
    return coded


@triton.jit
def _columns(words, columns, word, place, n_words, n_places, inside):
    """Store words of four rows transposed, a column's `n_places` after the last column's."""
    a, b, c, d = _turned(words[0], words[1], words[2], words[3])
    at = columns + (4 * word)[:, None].to(tl.int64) * n_places + place[None, :]
    tl.store(at, tl.trans(a), inside)
    tl.store(at + n_places, tl.trans(b), inside)
    tl.store(at + 2 * n_places, tl.trans(c), inside)
    tl.store(at + 3 * n_places, tl.trans(d), inside)


@triton.jit
def _scale(row_scales, group_scales, of_row, row, first, per_row: tl.constexpr):
    """Scales of rows; one of a group is stored for its rows by the programs of the first columns."""
    if per_row:
        scale = tl.load(row_scales + row)
    else:
        scale = tl.load(group_scales + of_row)
        tl.store(row_scales + row, scale, first)
    return scale


@triton.jit
def largest_of_tokens(x, largest, n_words, block: tl.constexpr):
    """max |x| of each row [T]; `block` words at least a row."""
    token, word = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    a, b, c, d = _four(x + token * n_words + word, word < n_words)
    tl.store(largest + token, tl.max(_largest(a, b, c, d)))


@triton.jit
def scales_of_tokens(largest, token, group, group_scales):
    """The same scales of groups [G] as `scales_of_groups` finds, from max |x| of the tokens."""
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    source, of_row = tl.load(token + row), tl.load(group + row // 16)
    scale = tl.load(largest + source, source >= 0, 0.0) * (1.0 / 448.0)
    for at in range(tl.load(group + tl.program_id(0) * 8), tl.load(group + tl.program_id(0) * 8 + 7) + 1):
        tl.atomic_max(group_scales + at, tl.max(tl.where(of_row == at, scale, 0.0)), sem="relaxed")


@triton.jit
def scales_of_groups(
    x, token, weights, group, row_scales, column_scales, n_columns, width: tl.constexpr,
    taken: tl.constexpr, gated: tl.constexpr, per_row: tl.constexpr,
):  # fmt: skip
    """max |value| / 448 of rows [P] and of columns within groups [G, K], or of groups [G]: the scales, which start at
    almost nothing. Programs of the same columns run together: tokens stay in the cache for all of their places."""
    row, word = tl.program_id(0) * 128 + tl.arange(0, 128), tl.program_id(1) * width + tl.arange(0, width)
    a, b, c, d = _values(x, token, weights, row, word, n_columns // 4, taken, gated)
    _raise(a, b, c, d, group, row_scales, column_scales, row, word, n_columns // 4, n_columns, per_row)


@triton.jit
def quantise_groups(
    x, token, weights, group, row_scales, column_scales, rows, columns, n_columns, n_places, jump, width: tl.constexpr,
    taken: tl.constexpr, gated: tl.constexpr, per_row: tl.constexpr,
):  # fmt: skip
    """Codes [P, K] and, transposed, as words of four: a column's begin `n_places` after the last column's, a group's
    `jump` further than its rows say."""
    place, word = tl.program_id(0) * 32 + tl.arange(0, 32), tl.program_id(1) * width + tl.arange(0, width)
    row, n_words, first = 4 * place, n_columns // 4, tl.program_id(1) == 0
    of_row, by = tl.load(group + place // 4), (0, 0, 0, 0)
    if per_row:
        by = _inverses(column_scales, of_row, word, n_words, n_columns)
    coded = ()
    for i in tl.static_range(4):
        values = _values(x, token, weights, row + i, word, n_words, taken, gated)
        scale = _scale(row_scales, column_scales, of_row, row + i, first, per_row)
        coded += (_row(values, by, scale, rows, row + i, word, n_words, n_words, per_row),)
    inside = (word < n_words)[:, None]
    _columns(coded, columns, word, place + of_row.to(tl.int64) * jump, n_words, n_places, inside)


@triton.jit
def _gradients(d_inner, gate_up, weights, row, word, n_words):
    """Gradients of four columns of gate and of up, and what they add to that of the rows' weights."""
    inside = (word < n_words)[None, :]
    at = gate_up + row.to(tl.int64)[:, None] * (2 * n_words) + word[None, :]
    gates, ups = _four(at, inside), _four(at + n_words, inside)
    ds = _four(d_inner + row.to(tl.int64)[:, None] * n_words + word[None, :], inside)
    weight = tl.load(weights + row)[:, None]
    a, a_up, a_sum = _gradient(gates[0], ups[0], ds[0], weight)
    b, b_up, b_sum = _gradient(gates[1], ups[1], ds[1], weight)
    c, c_up, c_sum = _gradient(gates[2], ups[2], ds[2], weight)
    d, d_up, d_sum = _gradient(gates[3], ups[3], ds[3], weight)
    return (a, b, c, d), (a_up, b_up, c_up, d_up), tl.sum(a_sum + b_sum + c_sum + d_sum, 1)


@triton.jit
def _gradient(gate, up, d, weight):
    share = _sigmoid(gate)
    opened = gate * share
    of_weight = d * opened * up
    d *= weight
    return d * up * (share + opened * (1.0 - share)), d * opened, of_weight


@triton.jit
def scales_of_gradients(
    d_inner, gate_up, weights, group, row_scales, column_scales, d_weights, n_columns, n_rows,
    width: tl.constexpr, per_row: tl.constexpr,
):  # fmt: skip
    """As `scales_of_groups`, of the gradients of gate and up [P, 2 F]; F = `n_columns`. The gradient of the rows'
    weights as parts [programs of a row, P]."""
    row, word = tl.program_id(0) * 128 + tl.arange(0, 128), tl.program_id(1) * width + tl.arange(0, width)
    n_words = n_columns // 4
    values, ups, parts = _gradients(d_inner, gate_up, weights, row, word, n_words)
    tl.store(d_weights + tl.program_id(1) * n_rows + row, parts)
    a, b, c, d = values
    e, f, g, h = ups
    if per_row:
        _raise(a, b, c, d, group, row_scales, column_scales, row, word, n_words, 2 * n_columns, per_row)
        up_scales = column_scales + n_columns
        _raise(e, f, g, h, group, row_scales, up_scales, row, word, n_words, 2 * n_columns, per_row)
    else:
        a, b = tl.maximum(tl.abs(a), tl.abs(e)), tl.maximum(tl.abs(b), tl.abs(f))
        c, d = tl.maximum(tl.abs(c), tl.abs(g)), tl.maximum(tl.abs(d), tl.abs(h))
        _raise(a, b, c, d, group, row_scales, column_scales, row, word, n_words, n_columns, per_row)


@triton.jit
def quantise_gradients(
    d_inner, gate_up, weights, group, row_scales, column_scales, rows, columns, n_columns, n_places,
    width: tl.constexpr, per_row: tl.constexpr,
):  # fmt: skip
    """As `quantise_groups`, of the gradients of gate and up [P, 2 F]."""
    place, word = tl.program_id(0) * 32 + tl.arange(0, 32), tl.program_id(1) * width + tl.arange(0, width)
    row, n_words, first = 4 * place, n_columns // 4, tl.program_id(1) == 0
    of_row, by, by_up = tl.load(group + place // 4), (0, 0, 0, 0), (0, 0, 0, 0)
    if per_row:
        by = _inverses(column_scales, of_row, word, n_words, 2 * n_columns)
        by_up = _inverses(column_scales + n_columns, of_row, word, n_words, 2 * n_columns)
    gates, of_ups = (), ()
    for i in tl.static_range(4):
        values, ups, _ = _gradients(d_inner, gate_up, weights, row + i, word, n_words)
        scale = _scale(row_scales, column_scales, of_row, row + i, first, per_row)
        gates += (_row(values, by, scale, rows, row + i, word, n_words, 2 * n_words, per_row),)
        of_ups += (_row(ups, by_up, scale, rows + n_words, row + i, word, n_words, 2 * n_words, per_row),)
    inside = (word < n_words)[:, None]
    _columns(gates, columns, word, place, n_words, n_places, inside)
    up_columns = columns + n_columns.to(tl.int64) * n_places
    _columns(of_ups, up_columns, word, place, n_words, n_places, inside)
