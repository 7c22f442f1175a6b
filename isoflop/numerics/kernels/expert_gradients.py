"""Gradients of the weights of experts in float32: products over the rows of each expert, written or added to."""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def expert_gradients(
    total, d, x, ends, d_scales, x_scales, n_out, n_in, n_rows, first: tl.constexpr, coded: tl.constexpr,
    of_out: tl.constexpr, of_in: tl.constexpr, of_rows: tl.constexpr,
):  # fmt: skip
    """total [E, N, K] = d^T x, added to what is there unless `first`, of bf16 rows [P, N] and [P, K]; or d x^T of
    `coded` columns [N, P] and [K, P] with scales [E, N] and [E, K], each expert's rows a multiple of 16."""
    e, n_tiles = tl.program_id(1), tl.cdiv(n_in, of_in)
    n = tl.program_id(0) // n_tiles * of_out + tl.arange(0, of_out)
    k = tl.program_id(0) % n_tiles * of_in + tl.arange(0, of_in)
    start, end, row = tl.load(ends + e - 1, e > 0, 0), tl.load(ends + e), tl.arange(0, of_rows)
    if coded:
        start, end = tl.multiple_of(start, 16), tl.multiple_of(end, 16)
        d_at = d + n[:, None].to(tl.int64) * n_rows + (start + row)[None, :]
        x_at = x + k[None, :].to(tl.int64) * n_rows + (start + row)[:, None]
        d_step, x_step = of_rows, of_rows
    else:
        d_at = d + (start + row)[None, :].to(tl.int64) * n_out + n[:, None]
        x_at = x + (start + row)[:, None].to(tl.int64) * n_in + k[None, :]
        d_step, x_step = of_rows * n_out, of_rows * n_in
    found = tl.zeros([of_out, of_in], tl.float32)
    for at in range(start, end, of_rows):
        left = end - at
        if coded:
            left = tl.multiple_of(left, 16)
        inside = row < left
        a = tl.load(d_at, inside[None, :] & (n < n_out)[:, None], 0.0)
        found = tl.dot(a, tl.load(x_at, inside[:, None] & (k < n_in)[None, :], 0.0), found)
        d_at += d_step
        x_at += x_step
    if coded:
        found *= tl.load(d_scales + e * n_out + n, n < n_out, 0.0)[:, None]
        found *= tl.load(x_scales + e * n_in + k, k < n_in, 0.0)[None, :]
    at, inside = total + (e.to(tl.int64) * n_out + n[:, None]) * n_in + k[None, :], (k < n_in)[None, :]
    if first:
        tl.store(at, found, inside & (n < n_out)[:, None])
    else:
        tl.atomic_add(at, found, inside & (n < n_out)[:, None], sem="relaxed")
