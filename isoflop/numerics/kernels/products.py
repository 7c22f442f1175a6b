"""Products of a token or two with weights that are read once, and what stands beside them: norm, residual, gate.

A step of so few tokens is bound by reading weights and by the start of each kernel. Where kernels may begin `early`, a
product fetches its weights while the kernel in front of it ends. Arithmetic is float32 between loads and stores.

Shapes: N tokens, D in, F out.
"""

# A tuple that grows in a loop over compile-time numbers is no Python that pyright knows.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

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
    x, gain, weight, other, plus, out, n_out, n_first, eps, n_in: tl.constexpr,
    two: tl.constexpr, joined: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr, pair: tl.constexpr,
    tile: tl.constexpr, depth: tl.constexpr, stages: tl.constexpr, lines: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """out [N, F] = norm(x) W^T, or silu(first half) * second half of it, with `plus` [N, F] added where `joined`.

    The first `n_first` rows of W are those of `weight` [n_first, D], the others of `other`. Each token reads all of
    them: that is for one token, or for few rows. A `pair` is two tokens that read them once. The scale of a norm is one
    number, so it multiplies the result.
    """
    token, lane = tl.program_id(1), tl.arange(0, depth)
    base, place, end, ahead = _rows(weight, other, n_out, n_first, n_in, two, tile)
    inside_n = (place < end)[:, None]
    if early:  # weights do not wait for what comes before
        tl.extra.cuda.gdc_launch_dependents()
        _fetch(base, n_in, lines)
        if gated:
            _fetch(base + n_out * n_in, n_in, lines)
        tl.extra.cuda.gdc_wait()
    x += token * n_in
    sums, ups = tl.zeros([tile, depth], tl.float32), tl.zeros([tile, depth], tl.float32)
    sums_2, ups_2 = tl.zeros([tile, depth], tl.float32), tl.zeros([tile, depth], tl.float32)  # of the second of a pair
    squares, squares_2 = tl.zeros([depth], tl.float32), tl.zeros([depth], tl.float32)
    for start in tl.range(0, n_in, depth, num_stages=stages):
        k = start + lane
        inside = inside_n if n_in % depth == 0 else inside_n & (k < n_in)[None, :]
        w = tl.load(base + k[None, :], inside, 0.0).to(tl.float32)
        h = tl.load(x + k, k < n_in, 0.0).to(tl.float32)
        if normed:
            squares += h * h
            h *= tl.load(gain + k, k < n_in, 0.0)
        if pair:
            h_2 = tl.load(x + n_in + k, k < n_in, 0.0).to(tl.float32)
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
    at = token * n_out + ahead + place
    y, y_up, square = tl.sum(sums, 1), tl.sum(ups, 1), tl.sum(squares)
    _finish(y, y_up, square, plus, out, at, place < end, n_in, eps, joined, normed, gated)
    if pair:
        y, y_up, square = tl.sum(sums_2, 1), tl.sum(ups_2, 1), tl.sum(squares_2)
        _finish(y, y_up, square, plus, out, at + n_out, place < end, n_in, eps, joined, normed, gated)


@triton.jit
def held_products(
    x, gain, weight, other, plus, out, n_out, n_first, eps, n_in: tl.constexpr,
    two: tl.constexpr, joined: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr, pair: tl.constexpr,
    tile: tl.constexpr, depth: tl.constexpr, parts: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The same as `products`; a program has its rows of W in registers before the kernel in front of it ends.

    Rows are `parts` times `depth` columns. What is left to do after the wait is to read x, and to sum across threads:
    of few warps, since each has as many sums to make, and for all rows and tokens at once.
    """
    token, lane = tl.program_id(1), tl.arange(0, depth)
    base, place, end, ahead = _rows(weight, other, n_out, n_first, n_in, two, tile)
    inside_n = (place < end)[:, None]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
    held, held_up, gains = (), (), ()
    for part in tl.static_range(parts):
        k = part * depth + lane
        inside = inside_n if (part + 1) * depth <= n_in else inside_n & (k < n_in)[None, :]
        held += (tl.load(base + k[None, :], inside, 0.0, eviction_policy="evict_first"),)
        if gated:
            up = tl.load(base + n_out * n_in + k[None, :], inside, 0.0, eviction_policy="evict_first")
            held_up += (up,)
        if normed:
            gains += (tl.load(gain + k, k < n_in, 0.0),)
    if early:
        tl.extra.cuda.gdc_wait()
    x += token * n_in
    zeros, square = tl.zeros([tile, depth], tl.float32), tl.zeros([depth], tl.float32)
    y, y_up, y_2, y_up_2, square_2 = zeros, zeros, zeros, zeros, square
    for part in tl.static_range(parts):
        k = part * depth + lane
        h = tl.load(x + k, k < n_in, 0.0).to(tl.float32)
        if pair:
            h_2 = tl.load(x + n_in + k, k < n_in, 0.0).to(tl.float32)
        if normed:
            square += h * h
            h *= gains[part]
            if pair:
                square_2 += h_2 * h_2
                h_2 *= gains[part]
        w = held[part].to(tl.float32)
        y += w * h[None, :]
        if pair:
            y_2 += w * h_2[None, :]
        if gated:
            w = held_up[part].to(tl.float32)
            y_up += w * h[None, :]
            if pair:
                y_up_2 += w * h_2[None, :]
    if normed and pair:
        square, square_2 = tl.reduce((square, square_2), 0, _add_2)
    elif normed:
        square = tl.sum(square)
    if gated and pair:
        y, y_up, y_2, y_up_2 = tl.reduce((y, y_up, y_2, y_up_2), 1, _add_4)
    elif gated:
        y, y_up = tl.reduce((y, y_up), 1, _add_2)
    elif pair:
        y, y_2 = tl.reduce((y, y_2), 1, _add_2)
    else:
        y = tl.sum(y, 1)
    at = token * n_out + ahead + place
    _finish(y, y_up, square, plus, out, at, place < end, n_in, eps, joined, normed, gated)
    if pair:
        _finish(y_2, y_up_2, square_2, plus, out, at + n_out, place < end, n_in, eps, joined, normed, gated)


@triton.jit
def _rows(weight, other, n_out, n_first, n_in: tl.constexpr, two: tl.constexpr, tile: tl.constexpr):
    """Where this program's rows of the weights begin [tile, 1], their numbers, where those end, and what is ahead."""
    first = tl.program_id(0) * tile
    base, ahead, end = weight, 0, n_first
    if two and first >= n_first:  # rounded up to whole tiles
        base, ahead, end = other, n_first, n_out - n_first
        first -= (n_first + tile - 1) // tile * tile
    place = first + tl.arange(0, tile)
    return base + tl.minimum(place, end - 1)[:, None].to(tl.int64) * n_in, place, end, ahead


@triton.jit
def _finish(
    y, y_up, square, plus, out, at, inside, n_in: tl.constexpr, eps,
    joined: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr,
):  # fmt: skip
    """Products of the rows of a tile, scaled and gated, rounded and added to `plus`, to their places."""
    if normed:
        scale = tl.rsqrt(square / n_in + eps)
        y *= scale
        if gated:
            y_up *= scale
    if gated:
        y = y * tl.sigmoid(y) * y_up
    y = y.to(out.dtype.element_ty)
    if joined:
        y = (y.to(tl.float32) + tl.load(plus + at, inside, 0.0).to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + at, y, inside)


@triton.jit
def _add_2(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add_4(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def last_norm(x, gain, out, n, eps, width: tl.constexpr, early: tl.constexpr):
    """out [N, n] = norm(x), a row for each program."""
    _wait(early)
    at, k = tl.program_id(0) * n, tl.arange(0, width)
    h = tl.load(x + at + k, k < n, 0.0).to(tl.float32)
    h *= tl.rsqrt(tl.sum(h * h) / n + eps) * tl.load(gain + k, k < n, 0.0)
    tl.store(out + at + k, h.to(out.dtype.element_ty), k < n)
