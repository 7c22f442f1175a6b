"""Products of a token or two with weights that are read once, and what stands beside them: norm, residual, gate.

A step of so few tokens is bound by reading weights and by the start of each kernel. Where kernels may begin `early`, a
product fetches its weights while the kernel in front of it ends. Arithmetic is float32 between loads and stores.

Shapes: N tokens, D in, F out.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _wait(early: tl.constexpr):
    """Let the next kernel begin, and wait for the one before: nothing that it wrote may be read earlier."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _fetch(rows, n: tl.constexpr, lines: tl.constexpr):
    """Begin to bring rows [tile, 1] of n values into the cache, 128 bytes at a time (64 values of bf16)."""
    at = rows + tl.minimum(tl.arange(0, lines) * 64, n - 1)[None, :]
    asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(asm, "=r,l", [at.to(tl.int64)], tl.int32, False, 1)


@triton.jit
def products(
    x, update, gain, total, weight, other, out, n_out, n_first, eps, n_in: tl.constexpr,
    two: tl.constexpr, joined: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr, pair: tl.constexpr,
    tile: tl.constexpr, depth: tl.constexpr, stages: tl.constexpr, lines: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """out [N, F] = norm(x + update) W^T, or silu(first half) * second half of it; the sum itself goes to `total`.

    The first `n_first` rows of W are those of `weight` [n_first, D], the others of `other`. Each token reads all of
    them: that is for one token, or for few rows. A `pair` is two tokens that read them once. The scale of a norm is one
    number, so it multiplies the result.
    """
    first, token, lane = tl.program_id(0) * tile, tl.program_id(1), tl.arange(0, depth)
    base, ahead, end = weight, 0, n_first
    if two and first >= n_first:  # rounded up to whole tiles
        base, ahead, end = other, n_first, n_out - n_first
        first -= (n_first + tile - 1) // tile * tile
    place = first + tl.arange(0, tile)
    inside_n = (place < end)[:, None]
    base += tl.minimum(place, end - 1)[:, None].to(tl.int64) * n_in
    if early:  # weights do not wait for what comes before
        tl.extra.cuda.gdc_launch_dependents()
        _fetch(base, n_in, lines)
        if gated:
            _fetch(base + n_out * n_in, n_in, lines)
        tl.extra.cuda.gdc_wait()
    x += token * n_in
    if joined:
        update += token * n_in
    sums, ups = tl.zeros([tile, depth], tl.float32), tl.zeros([tile, depth], tl.float32)
    sums_2, ups_2 = tl.zeros([tile, depth], tl.float32), tl.zeros([tile, depth], tl.float32)  # of the second of a pair
    squares, squares_2 = tl.zeros([depth], tl.float32), tl.zeros([depth], tl.float32)
    for start in tl.range(0, n_in, depth, num_stages=stages):
        k = start + lane
        inside = inside_n if n_in % depth == 0 else inside_n & (k < n_in)[None, :]
        w = tl.load(base + k[None, :], inside, 0.0).to(tl.float32)
        h = _stream(x, update, k, n_in, joined).to(tl.float32)
        if normed:
            squares += h * h
            h *= tl.load(gain + k, k < n_in, 0.0)
        if pair:
            h_2 = _stream(x + n_in, update + n_in if joined else update, k, n_in, joined).to(tl.float32)
            if normed:
                squares_2 += h_2 * h_2
                h_2 *= tl.load(gain + k, k < n_in, 0.0)
        sums += w * h[None, :]
        if pair:
            sums_2 += w * h_2[None, :]
        if gated:
            w = tl.load(base + n_out * n_in + k[None, :], inside, 0.0).to(tl.float32)
            ups += w * h[None, :]
            if pair:
                ups_2 += w * h_2[None, :]
    target = out + token * n_out + ahead + place
    tl.store(target, _finished(sums, ups, squares, n_in, eps, normed, gated).to(out.dtype.element_ty), place < end)
    if pair:
        y = _finished(sums_2, ups_2, squares_2, n_in, eps, normed, gated)
        tl.store(target + n_out, y.to(out.dtype.element_ty), place < end)
    if joined and tl.program_id(0) == 0:
        for start in range(0, n_in, depth):
            k = start + lane
            tl.store(total + token * n_in + k, _stream(x, update, k, n_in, joined), k < n_in)
            if pair:
                tl.store(total + n_in + k, _stream(x + n_in, update + n_in, k, n_in, joined), k < n_in)


@triton.jit
def held_products(
    x, update, gain, total, weight, other, out, n_out, n_first, eps, n_in: tl.constexpr,
    two: tl.constexpr, joined: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr, pair: tl.constexpr,
    tile: tl.constexpr, depth: tl.constexpr, rest: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The same as `products`; a program has its rows of W in registers before the kernel in front of it ends.

    Rows are `depth` columns and up to `rest` more, both powers of two. What is left to do after the wait is to read x.
    """
    first, token = tl.program_id(0) * tile, tl.program_id(1)
    base, ahead, end = weight, 0, n_first
    if two and first >= n_first:  # rounded up to whole tiles
        base, ahead, end = other, n_first, n_out - n_first
        first -= (n_first + tile - 1) // tile * tile
    place = first + tl.arange(0, tile)
    inside_n = (place < end)[:, None]
    base += tl.minimum(place, end - 1)[:, None].to(tl.int64) * n_in
    k = tl.arange(0, depth)
    inside = inside_n if n_in >= depth else inside_n & (k < n_in)[None, :]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.load(base + k[None, :], inside, 0.0, eviction_policy="evict_first")
    if gated:
        w_up = tl.load(base + n_out * n_in + k[None, :], inside, 0.0, eviction_policy="evict_first")
    if rest:
        k_rest = depth + tl.arange(0, rest)
        inside_rest = inside_n & (k_rest < n_in)[None, :]
        v = tl.load(base + k_rest[None, :], inside_rest, 0.0, eviction_policy="evict_first")
        if gated:
            v_up = tl.load(base + n_out * n_in + k_rest[None, :], inside_rest, 0.0, eviction_policy="evict_first")
    if early:
        tl.extra.cuda.gdc_wait()
    for n in tl.static_range(2 if pair else 1):
        at = (token + n) * n_in
        h = _stream(x + at, update + at if joined else update, k, n_in, joined).to(tl.float32)
        squares = tl.sum(h * h) if normed else 0.0
        if normed:
            h *= tl.load(gain + k, k < n_in, 0.0)
        y = tl.sum(w.to(tl.float32) * h[None, :], 1)
        if gated:
            y_up = tl.sum(w_up.to(tl.float32) * h[None, :], 1)
        if rest:
            h = _stream(x + at, update + at if joined else update, k_rest, n_in, joined).to(tl.float32)
            if normed:
                squares += tl.sum(h * h)
                h *= tl.load(gain + k_rest, k_rest < n_in, 0.0)
            y += tl.sum(v.to(tl.float32) * h[None, :], 1)
            if gated:
                y_up += tl.sum(v_up.to(tl.float32) * h[None, :], 1)
        if normed:
            y *= tl.rsqrt(squares / n_in + eps)
        if gated:
            if normed:
                y_up *= tl.rsqrt(squares / n_in + eps)
            y = y * tl.sigmoid(y) * y_up
        tl.store(out + (token + n) * n_out + ahead + place, y.to(out.dtype.element_ty), place < end)
        if joined and tl.program_id(0) == 0:
            tl.store(total + at + k, _stream(x + at, update + at, k, n_in, joined), k < n_in)
            if rest:
                tl.store(total + at + k_rest, _stream(x + at, update + at, k_rest, n_in, joined), k_rest < n_in)


@triton.jit
def _stream(x, update, k, n_in: tl.constexpr, joined: tl.constexpr):
    """Places k of x, or of x + update as it is stored."""
    h = tl.load(x + k, k < n_in, 0.0)
    if joined:
        h = (h.to(tl.float32) + tl.load(update + k, k < n_in, 0.0).to(tl.float32)).to(x.dtype.element_ty)
    return h


@triton.jit
def _finished(sums, ups, squares, n_in: tl.constexpr, eps, normed: tl.constexpr, gated: tl.constexpr):
    """Products of the rows of a tile, scaled and gated."""
    y, y_up = tl.sum(sums, 1), tl.sum(ups, 1)
    if normed:
        scale = tl.rsqrt(tl.sum(squares) / n_in + eps)
        y *= scale
        y_up *= scale
    if gated:
        y = y * tl.sigmoid(y) * y_up
    return y


@triton.jit
def last_norm(x, update, gain, out, n, eps, width: tl.constexpr, early: tl.constexpr):
    """out [N, n] = norm(x + update), a row for each program; the sum is rounded as the stream is."""
    _wait(early)
    at, k = tl.program_id(0) * n, tl.arange(0, width)
    h = _stream(x + at, update + at, k, n, True).to(tl.float32)
    h *= tl.rsqrt(tl.sum(h * h) / n + eps) * tl.load(gain + k, k < n, 0.0)
    tl.store(out + at + k, h.to(out.dtype.element_ty), k < n)
